// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestClustersAreChecked gives bad clusters to a file and to the packed inode.
func TestClustersAreChecked(t *testing.T) {
	const b = BlockSize
	zstd := Cluster{Zstd, 1, 0, b}
	for _, tc := range []struct {
		name     string
		device   uint16
		size     int64
		clusters []Cluster
		want     string
	}{
		{"no device", 0, b, []Cluster{zstd}, "device 0 of 2"},
		{"device that is not there", 3, b, []Cluster{zstd}, "device 3 of 2"},
		{"device without a unified address", 2, b, []Cluster{zstd}, "unified address space"},
		{"empty", 1, b, []Cluster{zstd, {Zstd, 1, 0, 0}}, "cluster 1 has 0 bytes"},
		{"too large", 1, MaxCluster + 1, []Cluster{{Zstd, 1, 0, MaxCluster + 1}}, "cluster 0 has 131073 bytes"},
		{"too large and stored", 1, MaxCluster + b, []Cluster{{Stored, 33, 0, MaxCluster + b}}, "cluster 0 has"},
		{"odd in the middle", 1, 5000 + b, []Cluster{{Zstd, 1, 0, 5000}, zstd}, "inside a block"},
		{"unknown algorithm", 1, b, []Cluster{{Zstd + 1, 1, 0, b}}, "algorithm 3"},
		{"no blocks", 1, b, []Cluster{{LZ4, 0, 0, b}}, "compressed to 0 blocks"},
		{"one block of input in two", 1, b, []Cluster{{Zstd, 2, 0, b}}, "compressed to 2 blocks"},
		{"two blocks of input in two", 1, 2 * b, []Cluster{{Zstd, 2, 0, 2 * b}}, "compressed to 2 blocks"},
		{"no block saved", 1, MaxCluster, []Cluster{{LZ4, 32, 0, MaxCluster}}, "compressed to 32 blocks"},
		{"no block saved at the end", 1, 2*b + 1, []Cluster{{LZ4, 3, 0, 2*b + 1}}, "compressed to 3 blocks"},
		{"blocks beyond all", 1, MaxCluster, []Cluster{{LZ4, math.MaxUint32, 0, MaxCluster}}, "blocks"},
		{"stored in too few", 1, b + 1, []Cluster{{Stored, 1, 0, b + 1}}, "1 blocks store 4097 bytes"},
		{"stored in too many", 1, b, []Cluster{{Stored, 2, 0, b}}, "2 blocks store 4096 bytes"},
		{"beyond the device", 1, 3 * b, []Cluster{{Zstd, 2, 9, 3 * b}}, "blocks 9+2, lies outside device 1 of 10"},
		{"far beyond the device", 1, b, []Cluster{{Zstd, 1, math.MaxUint32, b}}, "outside device 1"},
	} {
		file := func(w *Writer) error {
			_, err := w.Add(Inode{Mode: reg, Size: tc.size, Device: tc.device, Clusters: tc.clusters})
			return err
		}
		packed := func(w *Writer) error { return w.SetPacked(tc.device, tc.clusters) }
		for what, call := range map[string]func(*Writer) error{"file": file, "packed inode": packed} {
			w, err := NewWriter(Options{Devices: []Device{{Blocks: 10, UnifiedAddr: 1000}, {Blocks: 10}}}, Inode{Mode: dirMode})
			if err != nil {
				t.Fatal(err)
			}
			err = call(w)
			if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s, %s: error %v, want an invalid argument about %q", tc.name, what, err, tc.want)
			}
			if _, again := w.Add(Inode{Mode: reg}); again != err {
				t.Errorf("%s, %s: Add after the error gives %v, want the same error", tc.name, what, again)
			}
		}
	}
	for size, want := range map[int64]string{2 * b: "clusters hold 4096 bytes of 8192", b - 1: "cluster 0 has 4096 bytes", 0: "cluster 0 has 4096 bytes"} {
		w := smallWriter(t)
		w.opts.Devices[0].UnifiedAddr = 1000
		if _, err := w.Add(Inode{Mode: reg, Size: size, Device: 1, Clusters: []Cluster{zstd}}); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), want) {
			t.Errorf("size %d: error %v, want an invalid argument about %q", size, err, want)
		}
	}
}

func TestPackedInodeIsSetOnce(t *testing.T) {
	for _, clusters := range [][]Cluster{nil, {{Zstd, 1, 0, 5}}} {
		w := smallWriter(t)
		if err := w.SetPacked(1, clusters); err != nil {
			t.Fatal(err)
		}
		if err := w.SetPacked(1, clusters); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "already") {
			t.Errorf("second SetPacked: %v, want an invalid argument", err)
		}
	}
}

// TestIndexBytes has the entries of all shapes of clusters, written by hand from
// the format's description. The device begins at block 0x100 of the unified space.
func TestIndexBytes(t *testing.T) {
	const b = BlockSize
	for _, tc := range []struct {
		name     string
		clusters []Cluster
		blocks   uint32
		want     string // map header and entries; spaces are for reading
	}{
		{"zstd, one byte", []Cluster{{Zstd, 1, 2, 1}}, 1,
			"00000000 0200 03 00 0000000000000000 0100 0000 02010000"},
		{"zstd, one block", []Cluster{{Zstd, 1, 2, b}}, 1,
			"00000000 0200 03 00 0000000000000000 0100 0000 02010000"},
		{"lz4, a block and a byte: its end takes the place of the count", []Cluster{{LZ4, 1, 2, b + 1}}, 1,
			"00000000 0200 00 00 0000000000000000 0100 0000 02010000  0000 0100 00000000"},
		{"lz4, two blocks", []Cluster{{LZ4, 1, 2, 2 * b}}, 1,
			"00000000 0200 00 00 0000000000000000 0100 0000 02010000  0200 0000 0108 0100"},
		{"zstd, two blocks and a byte", []Cluster{{Zstd, 2, 2, 2*b + 1}}, 2,
			"00000000 0200 03 00 0000000000000000 0100 0000 02010000  0200 0000 0208 0100  0000 0100 00000000"},
		{"zstd, four blocks in three, then a block", []Cluster{{Zstd, 3, 2, 4 * b}, {Zstd, 1, 9, 7}}, 4,
			"00000000 0200 03 00 0000000000000000 0100 0000 02010000  0200 0000 0308 0300  0200 0000 0200 0200  0200 0000 0300 0100" +
				"0100 0000 09010000"},
		{"stored, three blocks", []Cluster{{Stored, 3, 2, 2*b + 5}}, 3,
			"00000000 0000 00 00 0000000000000000 0000 0000 02010000  0000 0000 03010000  0000 0000 04010000"},
		{"lz4, stored and zstd", []Cluster{{LZ4, 1, 5, 2 * b}, {Stored, 1, 4, b}, {Zstd, 1, 3, 2 * b}}, 3,
			"00000000 0600 30 00 0000000000000000 0100 0000 05010000  0200 0000 0108 0100  0000 0000 04010000" +
				"0300 0000 03010000  0200 0000 0108 0100"},
		{"stored, zstd and lz4", []Cluster{{Stored, 1, 4, b}, {Zstd, 1, 3, b}, {LZ4, 1, 5, b}}, 3,
			"00000000 0600 03 00 0000000000000000 0000 0000 04010000  0100 0000 03010000  0300 0000 05010000"},
	} {
		m := newModel(Options{Devices: []Device{{Blocks: 40, UnifiedAddr: 0x100}}})
		m.compressed(RootIno, "file", 1, tc.clusters...)
		want, err := hex.DecodeString(strings.ReplaceAll(tc.want, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		image := m.image(t)
		if !bytes.Contains(image, want) {
			t.Errorf("%s: the image lacks %x", tc.name, want)
		}
		checkIndexes(t, m, image)
	}
}

// TestStoredIndexNamesAnAlgorithmOfTheImage is for kernels that look at it.
func TestStoredIndexNamesAnAlgorithmOfTheImage(t *testing.T) {
	m := newModel(Options{Devices: []Device{{Blocks: 40, UnifiedAddr: 0x100}}})
	m.compressed(RootIno, "a", 1, Cluster{Stored, 1, 2, 9})
	m.compressed(RootIno, "b", 1, Cluster{Zstd, 1, 2, 9})
	want, _ := hex.DecodeString("0000000000000300" + "0000000000000000" + "0000000002010000")
	if !bytes.Contains(m.image(t), want) {
		t.Errorf("the image lacks the map header of a stored file, %x", want)
	}
}

// TestBlocksOfAFileSaturate has a file that names more blocks than the inode can count.
func TestBlocksOfAFileSaturate(t *testing.T) {
	w := smallWriter(t)
	n := &node{size: 0}
	k := w.clusters.add(cluster{length: MaxCluster, blocks: 255})
	n.data = uint64(k)
	for range uint64(math.MaxUint32)/255 + 1 {
		w.clusters.add(cluster{length: MaxCluster, blocks: 255})
		n.size += MaxCluster
	}
	if got := w.clusterBlocks(n); got != math.MaxUint32 {
		t.Errorf("%d blocks, want all ones", got)
	}
}
