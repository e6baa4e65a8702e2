// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/testutil"
	"github.com/squash-snapshotter/squash/internal/mounts"
)

// containerd's own suite. It is told that this is "overlayfs": for any other
// name it also renames a directory of a lower layer, which overlayfs refuses
// (EXDEV) whatever snapshotter stands behind it.
func TestConformance(t *testing.T) {
	testutil.RequiresRoot(t)
	for _, mode := range []mounts.Mode{mounts.ModeFile, mounts.ModeLoop} {
		t.Run(string(mode), func(t *testing.T) {
			testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
				s, err := New(ctx, Config{Root: filepath.Join(root, "root"), State: filepath.Join(root, "state"), Mount: mode})
				if err != nil {
					return nil, nil, err
				}
				return s, func() error { return closeAndUnmount(s) }, nil
			})
		})
	}
}
