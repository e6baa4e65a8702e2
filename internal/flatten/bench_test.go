// SPDX-License-Identifier: Apache-2.0

package flatten

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"runtime"
	"testing"

	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/pack"
	"golang.org/x/sys/unix"
)

// nodeImage is shaped like an image of language runtimes: 100,000 files in 10
// layers, 16 in a directory, each layer adding files to directories of the ones
// below and replacing and hiding some.
func nodeImage(t testing.TB) []Layer {
	const layers, files = 10, 10_000
	var all []Layer
	for l := range layers {
		var entries []layer.Entry
		stated := map[string]bool{}
		dir := func(p string) {
			if !stated[p] {
				stated[p] = true
				entries = append(entries, layer.Entry{Type: layer.TypeDir, Path: p, Mode: 0o755, Mtime: 1_700_000_000})
			}
		}
		for i := range files {
			// A third of the directories belongs to an older layer.
			owner, number := l, i/16
			if number%3 == 0 {
				owner = (l + number) % (l + 1)
			}
			parts := [3]string{"usr", fmt.Sprintf("usr/lib%d", owner), fmt.Sprintf("usr/lib%d/package-%04d", owner, number/4)}
			p := fmt.Sprintf("%s/dir%d", parts[2], number%4)
			for _, d := range parts {
				dir(d)
			}
			dir(p)
			e := layer.Entry{Type: layer.TypeReg, Path: fmt.Sprintf("%s/some-file-name-%d-%d.py", p, l, i), Mode: 0o644, Mtime: 1_700_000_000 + int64(i%7), MtimeNsec: uint32(i)}
			switch {
			case i%25 == 0:
				e.Type, e.Target = layer.TypeSymlink, "../some/where/else"
			case i%97 == 0 && l > 0:
				e.Type = layer.TypeWhiteout
			case i%3 == 0:
				e.Size, e.Inline = int64(i%1024), make([]byte, i%1024)
			default:
				e.Size = int64(1025 + i*13%30_000)
				e.Digest = sha256.Sum256(fmt.Append(nil, l, i))
			}
			entries = append(entries, e)
		}
		all = append(all, layerOf(t, entries))
	}
	return all
}

// cpuTime is what the process has used, in seconds: the wall clock says little
// on a machine that others use.
func cpuTime(b *testing.B) float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

func BenchmarkFlatten100kFiles(b *testing.B) {
	layers := nodeImage(b)
	placements := map[layer.Digest]pack.Placement{}
	place := func(d layer.Digest) (pack.Placement, error) { return placements[d], nil }
	tree, err := Merge(context.Background(), layers)
	if err != nil {
		b.Fatal(err)
	}
	next := uint32(0)
	tree.Contents(func(d layer.Digest, size int64) {
		blocks := uint32((size + pack.BlockSize - 1) / pack.BlockSize)
		placements[d] = pack.Placement{Block: next, Blocks: blocks, Size: uint64(size)}
		next += blocks
	})
	tree = nil
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b.Run("merge", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if tree, err = Merge(context.Background(), layers); err != nil {
				b.Fatal(err)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/(1<<20), "MiB-kept")
	})
	b.Run("image", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := tree.WriteImage(context.Background(), io.Discard, place); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("both", func(b *testing.B) {
		b.ReportAllocs()
		start, n := cpuTime(b), 0
		defer func() { b.ReportMetric((cpuTime(b)-start)/float64(n), "cpu-s/op") }()
		for ; b.Loop(); n++ {
			tree, err := Merge(context.Background(), layers)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := tree.WriteImage(context.Background(), io.Discard, place); err != nil {
				b.Fatal(err)
			}
		}
	})
}
