// SPDX-License-Identifier: Apache-2.0

package snapshotter

import "github.com/squash-snapshotter/squash/internal/mounts"

// Capabilities returns what the kernel was found to be able to when s was opened, how flat images are mounted, and what
// contents that come in are compressed with.
func (s *Snapshotter) Capabilities() (caps mounts.Capabilities, mode mounts.Mode, compression string) {
	return s.kernel, s.mounter.Mode(), s.compression
}
