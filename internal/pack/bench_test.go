// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func BenchmarkPut(b *testing.B) {
	const files, size = 100_000, 2500
	content := noise(1, size)
	run := func(b *testing.B, s *Store, salt uint64) {
		w := s.Begin()
		var r bytes.Reader
		for i := range uint64(files) {
			binary.LittleEndian.PutUint64(content, i)
			binary.LittleEndian.PutUint64(content[8:], salt)
			r.Reset(content)
			if _, err := w.Put(&r, size); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Publish(false); err != nil {
			b.Fatal(err)
		}
		closeWriter(b, w)
	}
	newStore := func(b *testing.B) *Store {
		s, err := Open(b.Context(), b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { s.Close() })
		return s
	}
	b.Run("100k new contents of 2500 bytes", func(b *testing.B) {
		s := newStore(b)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			run(b, s, uint64(i))
		}
	})
	b.Run("100k known contents of 2500 bytes", func(b *testing.B) {
		s := newStore(b)
		run(b, s, 0)
		b.ReportAllocs()
		for b.Loop() {
			run(b, s, 0)
		}
	})
}

func BenchmarkMillionRecords(b *testing.B) {
	all := sampleRecords(1_000_000)
	for _, n := range []int{1, 8} {
		dir := b.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "index"), 0o700); err != nil {
			b.Fatal(err)
		}
		for i := range n {
			var part []record
			for j := i; j < len(all); j += n {
				part = append(part, all[j])
			}
			g := span{first: uint64(i), last: uint64(i)}
			if err := os.WriteFile(filepath.Join(dir, "index", indexName(g)), encodeIndex(b, g, part), 0o600); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "pack"), nil, 0o600); err != nil {
			b.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(dir, "pack"), int64(len(all))*BlockSize); err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("open, %d files", n), func(b *testing.B) {
			for b.Loop() {
				s, err := Open(b.Context(), dir)
				if err != nil {
					b.Fatal(err)
				}
				s.Close()
			}
		})
		s, err := Open(b.Context(), dir)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("lookup, %d files", n), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if _, err := s.Lookup(all[i*7919%len(all)].digest); err != nil {
					b.Fatal(err)
				}
			}
		})
		s.Close()
	}
}
