// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/pkg/testutil"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// Invariant 1 of stacks: the flat image of some lower layers and images of the
// others by themselves show what overlayfs over all of the layers shows.
func TestStacksShowWhatOverlayShows(t *testing.T) {
	testutil.RequiresRoot(t)
	for _, algorithm := range []string{"zstd", "none"} {
		blobs := newBlobs()
		s := openConfig(t, Config{Content: blobs, Compression: Compression{Algorithm: algorithm}, quiet: never})
		var stacks atomic.Int64
		cases := treetest.Cases()
		t.Run(algorithm, func(t *testing.T) {
			for i, c := range cases {
				t.Run(c.Name, func(t *testing.T) {
					t.Parallel()
					compareWalked(t, s, blobs, c, func(top string) string { return stackedView(t, s, top, len(c.Layers), i, &stacks) })
				})
			}
			for seed := range *randomImages / 4 {
				t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
					t.Parallel()
					c := treetest.Random(t, int64(seed+1_000_000))
					compareWalked(t, s, blobs, c, func(top string) string { return stackedView(t, s, top, len(c.Layers), seed, &stacks) })
				})
			}
		})
		if n := stacks.Load(); n < int64(len(cases))/2 {
			t.Errorf("%s: only %d images were stacks", algorithm, n)
		}
	}
}

// stackedView flattens some lower layers of an image of several, and mounts a
// view or what a container gets.
func stackedView(t *testing.T, s *Snapshotter, top string, layers, choice int, stacks *atomic.Int64) (root string) {
	t.Helper()
	if layers == 1 {
		t.Skip("one layer is no stack")
	}
	ctx := context.Background()
	base := choice % (layers - 1)
	if err := s.Flatten(ctx, fmt.Sprintf("%s layer %d", t.Name(), base)); err != nil {
		t.Fatal(err)
	}
	prepare := s.View
	if choice%2 == 1 {
		prepare = s.Prepare
	}
	key := "stacked view of " + top
	m, err := prepare(ctx, key, top)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Remove(ctx, key); err != nil {
			t.Errorf("remove view: %v", err)
		}
	})
	if len(lowersOf(m)) > 1 { // else others have flattened the same layers
		stacks.Add(1)
	}
	return mountAll(t, m)
}
