// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/testutil"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// BenchmarkCompare compares a snapshot of an image of 100,000 files with its
// parent: the cost is that of the change, and with containerd's walking differ
// that of the image.
func BenchmarkCompare(b *testing.B) {
	testutil.RequiresRoot(b)
	must(b, log.SetLevel("warn"))
	c := newComparing(b)
	ctx := context.Background()
	const files, perDir = 100_000, 200
	var steps []treetest.Step
	for i := range files {
		steps = append(steps, treetest.File(fmt.Sprintf("dir%d/file%d", i/perDir, i), fmt.Sprint("content ", i)))
	}
	m, err := c.Prepare(ctx, "b/1/extract-base", "")
	must(b, err)
	_, err = c.Apply(ctx, c.blobs.add(treetest.Layer(steps...)), m)
	must(b, err)
	must(b, c.Commit(ctx, "base", "b/1/extract-base"))

	below := c.viewOf(b, "base")
	for _, changed := range []int{1, 100, 10_000} {
		key := fmt.Sprint("active ", changed)
		active, err := c.Prepare(ctx, key, "base")
		must(b, err)
		root, undo := mountFor(b, active)
		for i := range changed {
			at := i * (files / changed)
			must(b, os.WriteFile(filepath.Join(root, fmt.Sprintf("dir%d/file%d", at/perDir, at)), []byte("changed"), 0o600))
		}
		undo()
		run := func(name string, d diff.Comparer, upper []mount.Mount) {
			b.Run(fmt.Sprintf("%s/%d", name, changed), func(b *testing.B) {
				for b.Loop() {
					_, err := d.Compare(blobContext(), below, upper)
					must(b, err)
				}
			})
		}
		run("active", c, active)
		run("walking", walking.NewWalkingDiff(c.store), active)
		name := fmt.Sprint("committed ", changed)
		must(b, c.Commit(ctx, name, key))
		run("committed", c, c.viewOf(b, name))
	}
}
