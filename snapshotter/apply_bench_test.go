// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/squash-snapshotter/squash/internal/treetest"
	"golang.org/x/sys/unix"
)

var benchBlobs = flag.String("bench-blobs", "", "directory of gzip layers for BenchmarkApply, such as images/blobs/sha256 in the cache of make bench")

// BenchmarkApply takes layers in, on an empty node, one after the other and two at
// once. Where the time goes, by the large image of make bench:
//
//	go test ./snapshotter -test.root -run '^$' -bench 'Apply/zstd/two' -benchtime 1x -cpuprofile cpu.prof \
//	    -bench-blobs ~/.cache/squash-bench/images/blobs/sha256
func BenchmarkApply(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root: mounts file systems")
	}
	must(b, log.SetLevel("error"))
	blobs, source := benchLayers(b)
	for _, algorithm := range []string{"none", "lz4", "zstd"} {
		for name, atOnce := range map[string]int{"one": 1, "two": 2} {
			b.Run(algorithm+"/"+name, func(b *testing.B) {
				var applied int64
				cpu := cpuSeconds()
				for b.Loop() {
					applied = applyAll(b, Config{Content: source, Compression: Compression{Algorithm: algorithm}}, blobs, atOnce)
				}
				b.SetBytes(applied)
				b.ReportMetric((cpuSeconds()-cpu)/float64(b.N), "cpu-s/op")
			})
		}
	}
}

// applyAll takes blobs in and returns how many bytes they are decompressed.
func applyAll(b *testing.B, cfg Config, blobs []ocispec.Descriptor, atOnce int) (bytes int64) {
	b.StopTimer()
	ctx, dir := context.Background(), b.TempDir()
	cfg.Root, cfg.State = filepath.Join(dir, "root"), filepath.Join(dir, "state")
	s, err := New(ctx, cfg)
	must(b, err)
	defer func() {
		b.StopTimer()
		must(b, closeAndUnmount(s))
		must(b, os.RemoveAll(dir))
		b.StartTimer()
	}()
	b.StartTimer()
	slots, sizes := make(chan struct{}, atOnce), make(chan int64, len(blobs))
	for i, blob := range blobs {
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			m, err := s.Prepare(ctx, fmt.Sprintf("ns/%d/extract-%d", i, i), "")
			var applied ocispec.Descriptor
			if err == nil {
				applied, err = s.Apply(ctx, blob, m)
			}
			if err != nil {
				b.Error(err)
			}
			sizes <- applied.Size
		}()
	}
	for range blobs {
		bytes += <-sizes
	}
	return bytes
}

// benchLayers are those of the flag, or two made here: files of all sizes that
// compress well, badly and not at all, the second with half of the first's.
func benchLayers(b *testing.B) (blobs []ocispec.Descriptor, source ContentSource) {
	if *benchBlobs != "" {
		entries, err := os.ReadDir(*benchBlobs)
		must(b, err)
		for _, e := range entries {
			f, err := os.Open(filepath.Join(*benchBlobs, e.Name()))
			must(b, err)
			magic := make([]byte, 2)
			if _, err := io.ReadFull(f, magic); err == nil && string(magic) == "\x1f\x8b" {
				blobs = append(blobs, ocispec.Descriptor{MediaType: gzipType, Digest: digest.NewDigestFromEncoded(digest.SHA256, e.Name())})
			}
			f.Close()
		}
		if len(blobs) == 0 {
			b.Fatalf("no gzip layers in %s", *benchBlobs)
		}
		return blobs, openFunc(func(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
			return os.Open(filepath.Join(*benchBlobs, desc.Digest.Encoded()))
		})
	}
	made := newBlobs()
	r := rand.New(rand.NewPCG(1, 2))
	var steps [2][]treetest.Step
	for i := range 4000 {
		size := 1 << (10 + r.IntN(9))
		content := noise(size, uint64(i))
		if i%8 != 0 { // hexadecimal digits, and sometimes a run of them again and again
			content = string(bytes.Repeat(fmt.Appendf(nil, "%x", content[:size/(2+i%3*14)]), 1+i%3*7))
		}
		for l := range steps {
			if l == 0 || i%2 == 0 {
				steps[l] = append(steps[l], treetest.File(fmt.Sprintf("%d/%d", i/100, i), content, treetest.Owner(l, l)))
			}
		}
	}
	for _, s := range steps {
		desc := made.add(compress(b, treetest.Layer(s...), compression.Gzip))
		desc.MediaType = gzipType
		blobs = append(blobs, desc)
	}
	return blobs, made
}

// cpuSeconds is what this process and its children have used.
func cpuSeconds() (sum float64) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var used unix.Rusage
		if err := unix.Getrusage(who, &used); err == nil {
			sum += float64(used.Utime.Nano()+used.Stime.Nano()) / 1e9
		}
	}
	return sum
}
