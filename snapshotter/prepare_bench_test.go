// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// BenchmarkContainer makes and mounts what a container gets, over flat images of
// few and many layers and files. It tells the median as well.
//
//	go test ./snapshotter -test.root -run '^$' -bench Container
func BenchmarkContainer(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root: mounts file systems")
	}
	must(b, log.SetLevel("error"))
	for _, size := range []struct{ layers, files int }{{1, 100}, {1, 100_000}, {10, 10_000}, {100, 1000}} {
		b.Run(fmt.Sprintf("layers=%d/files=%d", size.layers, size.layers*size.files), func(b *testing.B) {
			ctx, dir, blobs := context.Background(), b.TempDir(), newBlobs()
			s, err := New(ctx, Config{Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Content: blobs})
			must(b, err)
			b.Cleanup(func() { must(b, closeAndUnmount(s)) })
			parent := ""
			for l := range size.layers {
				var files []treetest.Step
				for i := range size.files {
					files = append(files, treetest.File(fmt.Sprintf("%d/%d/%d", l, i/200, i), fmt.Sprint(l, i)))
				}
				key, name := fmt.Sprintf("ns/%d/extract-%d", l, l), fmt.Sprintf("ns/%d/layer", 1000+l)
				m, err := s.Prepare(ctx, key, parent)
				must(b, err)
				_, err = s.Apply(ctx, blobs.add(treetest.Layer(files...)), m)
				must(b, err)
				must(b, s.Commit(ctx, name, key))
				parent = name
			}
			must(b, s.Flatten(ctx, parent))
			target := b.TempDir()
			var took []time.Duration
			for b.Loop() {
				start := time.Now()
				m, err := s.Prepare(ctx, "container", parent)
				must(b, err)
				must(b, mount.All(m, target))
				took = append(took, time.Since(start))
				b.StopTimer()
				must(b, mount.UnmountAll(target, 0))
				must(b, s.Remove(ctx, "container"))
				must(b, s.Cleanup(ctx))
				b.StartTimer()
			}
			slices.Sort(took)
			b.ReportMetric(took[len(took)/2].Seconds()*1000, "median-ms/op")
		})
	}
}
