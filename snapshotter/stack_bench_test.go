// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// BenchmarkBuildSteps measures small steps of a build on a large image: prepare,
// change two files, commit, and again on top of that.
//
//	go test ./snapshotter -test.root -run '^$' -bench BuildSteps -benchtime 100x
func BenchmarkBuildSteps(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root: mounts file systems")
	}
	must(b, log.SetLevel("error"))
	ctx := context.Background()
	dir, blobs := b.TempDir(), newBlobs()
	s, err := New(ctx, Config{Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Content: blobs})
	must(b, err)
	b.Cleanup(func() { must(b, closeAndUnmount(s)) })

	var files []treetest.Step
	for i := range 100_000 {
		files = append(files, treetest.File(fmt.Sprintf("usr/%d/%d", i/100, i), fmt.Sprint("content ", i)))
	}
	m, err := s.Prepare(ctx, "ns/1/extract-1 base", "")
	must(b, err)
	_, err = s.Apply(ctx, blobs.add(treetest.Layer(files...)), m)
	must(b, err)
	must(b, s.Commit(ctx, "ns/1/base", "ns/1/extract-1 base"))
	must(b, s.Flatten(ctx, "ns/1/base"))

	target, parent := b.TempDir(), "ns/1/base"
	for i := 0; b.Loop(); i++ {
		key, name := fmt.Sprintf("ns/%d/step", 10+i), fmt.Sprintf("ns/%d/committed", 10+i)
		m, err := s.Prepare(ctx, key, parent)
		must(b, err)
		must(b, mount.All(m, target))
		must(b, errors.Join(os.WriteFile(fmt.Sprintf("%s/usr/%d/new", target, i), []byte(noise(5000, uint64(i))), 0o644), os.WriteFile(fmt.Sprintf("%s/usr/%d/%d", target, i, i*100), nil, 0o644)))
		must(b, mount.UnmountAll(target, 0))
		must(b, s.Commit(ctx, name, key))
		parent = name
	}
	entries, err := os.ReadDir(s.imagesDir())
	must(b, err)
	size := int64(0)
	for _, e := range entries {
		info, err := e.Info()
		must(b, err)
		size += info.Size()
	}
	b.ReportMetric(float64(size)/float64(b.N), "image-bytes/op")
}
