// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"golang.org/x/sys/unix"
)

// clusterStore knows what the blocks of clusters hold and what comes of them.
type clusterStore map[place]storedCluster

type place struct {
	device uint16
	block  uint32
}

type storedCluster struct{ encoded, decoded []byte }

// content is the bytes [off, off+size) of a file of clusters.
func (s clusterStore) content(device uint16, clusters []Cluster, off, size int64) []byte {
	out := make([]byte, 0, size)
	start := int64(0)
	for _, c := range clusters {
		if from, to := max(off, start), min(off+size, start+int64(c.Length)); from < to {
			out = append(out, s[place{device, c.Block}].decoded[from-start:to-start]...)
		}
		start += int64(c.Length)
	}
	return out
}

// cluster encodes data and puts it behind all that is on the device, which grows.
// Data that saves no block is stored.
func (m *model) cluster(device uint16, a Algorithm, data []byte) Cluster {
	a, encoded := toBlocks(a, data)
	return m.putCluster(device, a, storedCluster{encoded, data})
}

func (m *model) putCluster(device uint16, a Algorithm, s storedCluster) Cluster {
	d := &m.opts.Devices[device-1]
	c := Cluster{a, uint32(len(s.encoded) / BlockSize), d.Blocks, uint32(len(s.decoded))}
	m.store[place{device, d.Blocks}] = s
	d.Blocks += c.Blocks
	return c
}

// toBlocks compresses data, if that saves a block, and pads it.
func toBlocks(a Algorithm, data []byte) (Algorithm, []byte) {
	blocks := func(n int) int { return (n + BlockSize - 1) / BlockSize }
	if a != Stored {
		encoded := encode(a, data)
		if n := blocks(len(encoded)); n > 0 && n <= max(1, blocks(len(data))-1) {
			return a, append(make([]byte, n*BlockSize-len(encoded)), encoded...)
		}
	}
	return Stored, append(slices.Clone(data), make([]byte, blocks(len(data))*BlockSize-len(data))...)
}

// clusters cuts data into clusters of at most size bytes.
func (m *model) clusters(device uint16, a Algorithm, size int, data []byte) (out []Cluster) {
	for len(data) > 0 {
		n := min(size, len(data))
		out = append(out, m.cluster(device, a, data[:n]))
		data = data[n:]
	}
	return out
}

// compressed puts a file of clusters.
func (m *model) compressed(dir Ino, name string, device uint16, clusters ...Cluster) Ino {
	in := Inode{Mode: unix.S_IFREG | 0o644, Mtime: m.opts.Epoch, Device: device, Clusters: clusters, Size: length(clusters)}
	return m.put(dir, name, in)
}

// fragment puts a file that lies in the packed inode.
func (m *model) fragment(dir Ino, name string, at uint64, size int64) Ino {
	return m.put(dir, name, Inode{Mode: unix.S_IFREG | 0o644, Mtime: m.opts.Epoch, Packed: true, PackedAt: at, Size: size})
}

func length(clusters []Cluster) (sum int64) {
	for _, c := range clusters {
		sum += int64(c.Length)
	}
	return sum
}

var zstdEncoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(MaxCluster), zstd.WithEncoderCRC(false))
	if err != nil {
		panic(err)
	}
	return e
})

// encode compresses; nothing comes out if an encoder finds no way to.
func encode(a Algorithm, data []byte) []byte {
	switch a {
	case LZ4:
		out := make([]byte, lz4.CompressBlockBound(len(data)))
		n, err := lz4.CompressBlock(data, out, nil)
		if err != nil {
			panic(err)
		}
		return out[:n]
	case Zstd:
		return zstdEncoder().EncodeAll(data, nil)
	}
	return data
}

var algorithmNames = map[Algorithm]string{Stored: "stored", LZ4: "lz4", Zstd: "zstd"}

// The kinds of test data: what they compress to differs.
const (
	dataText  = "text"  // to a third or so, with matches near and far
	dataTight = "tight" // hardly
	dataNoise = "noise" // not at all
	dataZero  = "zero"
	dataMixed = "mixed" // cluster by cluster one of the others
)

// testData is reproduced by its arguments.
func testData(kind string, seed uint64, size int) []byte {
	rnd := rand.New(rand.NewPCG(seed, uint64(size)))
	noise := func(n int) []byte {
		b := make([]byte, n)
		_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(rnd.Uint32())}).Read(b)
		return b
	}
	switch kind {
	case dataZero:
		return make([]byte, size)
	case dataNoise:
		return noise(size)
	case dataTight: // 9 bytes in 10 are noise
		b := noise(size)
		for i := 0; i+4000 < size; i += 4000 {
			copy(b[i:i+400], bytes.Repeat([]byte{'-'}, 400))
		}
		return b
	case dataMixed:
		var b []byte
		for k := uint64(0); len(b) < size; k++ {
			b = append(b, testData([]string{dataText, dataNoise, dataZero, dataTight}[rnd.IntN(4)], seed+k, 1<<(12+rnd.IntN(6)))...)
		}
		return b[:size]
	}
	words := make([][]byte, 300)
	for i := range words {
		words[i] = noise(2 + rnd.IntN(14))
	}
	var b []byte
	for len(b) < size {
		if rnd.IntN(50) == 0 {
			b = fmt.Appendf(b, "%d\n", len(b))
		}
		b = append(b, words[rnd.IntN(1+rnd.IntN(len(words)))]...)
	}
	return b[:size]
}

func (m *model) hasClusters() bool {
	return slices.ContainsFunc(m.inodes, func(in Inode) bool { return in.Packed || in.Clusters != nil })
}

// withHoles is the same tree with a hole for all that is in clusters.
func (m *model) withHoles() *model {
	out := &model{opts: m.opts, inodes: slices.Clone(m.inodes), links: m.links}
	for i := range out.inodes {
		if in := &out.inodes[i]; in.Packed || in.Clusters != nil {
			in.Packed, in.Clusters, in.Extents = false, nil, []Extent{{Length: in.Size}}
		}
	}
	return out
}
