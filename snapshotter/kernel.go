// SPDX-License-Identifier: Apache-2.0

package snapshotter

import "github.com/squash-snapshotter/squash/internal/mounts"

// Capabilities returns what the kernel was found to be able to when s was opened, and how flat images are mounted.
func (s *Snapshotter) Capabilities() (mounts.Capabilities, mounts.Mode) {
	return s.kernel, s.mounter.Mode()
}
