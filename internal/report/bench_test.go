// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"runtime"
	"testing"

	"github.com/squash-snapshotter/squash/internal/flatten"
	"github.com/squash-snapshotter/squash/internal/layer"
)

// manyFiles is an image of that many files in ten layers, 16 in a directory. A fifth of each layer's paths is that of the
// layer below, and every tenth content is there several times.
func manyFiles(b *testing.B, files int) *flatten.Tree {
	b.Helper()
	const layers = 10
	var open []flatten.Layer
	for l := range layers {
		var toc bytes.Buffer
		w, err := layer.NewWriter(&toc)
		if err != nil {
			b.Fatal(err)
		}
		for i := range files / layers {
			owner := l
			if i%5 == 0 {
				owner = max(0, l-1)
			}
			e := layer.Entry{Type: layer.TypeReg, Path: fmt.Sprintf("usr/lib%d/package-%d/dir%d/some-file-name-%d", owner, i/64, i/16%4, i), Mode: 0o644, Size: int64(1025 + i%30_000)}
			e.Digest = sha256.Sum256(fmt.Append(nil, l, i))
			if i%10 == 0 {
				e.Digest = sha256.Sum256(fmt.Append(nil, e.Size))
			}
			if err := w.Add(&e); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := w.Finish(); err != nil {
			b.Fatal(err)
		}
		open = append(open, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(toc.Bytes())), nil })
	}
	tree, err := flatten.Merge(b.Context(), open)
	if err != nil {
		b.Fatal(err)
	}
	return tree
}

// BenchmarkReport explains images of which the tree is there, and tells the memory that the report holds at its end.
//
//	go test ./internal/report -run '^$' -bench Report
func BenchmarkReport(b *testing.B) {
	for _, files := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprint("files=", files), func(b *testing.B) {
			tree := manyFiles(b, files)
			for b.Loop() {
				if _, err := Build(b.Context(), tree, make([]string, 10), fakePlaces{}, 20); err != nil {
					b.Fatal(err)
				}
			}
			runtime.KeepAlive(tree)
		})
	}
}
