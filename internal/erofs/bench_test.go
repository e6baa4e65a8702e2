// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	benchDirs  = 8_000
	benchFiles = 100_000
	// benchPacked is the number of clusters of the packed inode.
	benchPacked = 2_000
)

// benchTree is a tree of the size and shape of a runner image: directories a few
// levels deep, a dozen files in each, one extent per file, names of 8 to 24
// bytes, a few symlinks, mtimes that differ, xattrs on one file in a hundred. With
// clusters, two files in three lie in the packed inode and the others are compressed.
func benchTree(clusters bool) *model {
	rnd := rand.New(rand.NewPCG(1, 2))
	m := newModel(Options{Devices: []Device{{Tag: "pack", Blocks: 1 << 30, UnifiedAddr: 1 << 31}}})
	dirs := []Ino{RootIno}
	for i := range benchDirs {
		in := Inode{Mode: unix.S_IFDIR | 0o755, Mtime: testEpoch + rnd.Int64N(1e6)}
		parent := dirs[len(dirs)*3/4+rnd.IntN(len(dirs)-len(dirs)*3/4)]
		dirs = append(dirs, m.put(parent, fmt.Sprintf("directory-%d", i), in))
	}
	block := uint32(0)
	for range benchPacked {
		if clusters {
			m.packedDevice, m.packed = 1, append(m.packed, Cluster{Zstd, 10, block, MaxCluster})
			block += 10
		}
	}
	for i := range benchFiles {
		in := Inode{Mode: unix.S_IFREG | 0o644, Mtime: testEpoch + rnd.Int64N(1e6), MtimeNsec: rnd.Uint32N(1e9)}
		switch {
		case i%20 == 0:
			in.Mode, in.Target = unix.S_IFLNK|0o777, fmt.Sprintf("../lib/target-%d.so", i)
		case clusters && i%3 != 0:
			in.Size = 1 + rnd.Int64N(1<<13)
			in.Packed, in.PackedAt = true, uint64(rnd.Int64N(benchPacked*MaxCluster-in.Size))
		case clusters:
			in.Device = 1
			for in.Size = 1 + rnd.Int64N(1<<18); length(in.Clusters) < in.Size; block += 10 {
				n := uint32(min(MaxCluster, in.Size-length(in.Clusters)))
				in.Clusters = append(in.Clusters, Cluster{Zstd, max(1, n/BlockSize/3), block, n})
			}
		default:
			in.Size = 1 + rnd.Int64N(1<<15)
			in.Extents = []Extent{{1, block, in.Size}}
			block += uint32(in.Size/BlockSize) + 1
		}
		if i%100 == 1 {
			in.Xattrs = []Xattr{{"security.capability", capability}}
		}
		name := fmt.Sprintf("%0*d.txt", 4+rnd.IntN(17), i)
		m.put(dirs[rnd.IntN(len(dirs))], name, in)
	}
	return m
}

// BenchmarkWriter measures a whole image: Add, Link, plan, bytes.
func BenchmarkWriter(b *testing.B) { benchmarkWriter(b, benchTree(false)) }

// BenchmarkWriterClusters is the same with compressed content.
func BenchmarkWriterClusters(b *testing.B) { benchmarkWriter(b, benchTree(true)) }

func benchmarkWriter(b *testing.B, m *model) {
	var size int64
	var live uint64
	b.ReportAllocs()
	for b.Loop() {
		w, err := m.writer()
		if err != nil {
			b.Fatal(err)
		}
		if size, err = w.WriteTo(io.Discard); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		live = liveHeap(w)
		b.StartTimer()
	}
	inodes := float64(len(m.inodes))
	b.ReportMetric(inodes*float64(b.N)/b.Elapsed().Seconds(), "inodes/s")
	b.ReportMetric(float64(size)/(1<<20), "image-MiB")
	b.ReportMetric(float64(live)/inodes, "heap-B/inode")
	b.ReportMetric(0, "ns/op")
}

// liveHeap is what w alone keeps alive.
func liveHeap(w *Writer) uint64 {
	var with, without runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&with)
	runtime.KeepAlive(w)
	*w = Writer{}
	runtime.GC()
	runtime.ReadMemStats(&without)
	return with.HeapAlloc - without.HeapAlloc
}
