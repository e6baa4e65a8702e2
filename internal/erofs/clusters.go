// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// cluster is a Cluster as it is kept until it is written.
type cluster struct {
	block     uint32 // first block in the unified address space
	length    uint32
	blocks    uint8
	algorithm Algorithm
}

// inputBlocks is the number of index entries of a cluster: one per block of
// decoded content, the last of which may be cut.
func (c *cluster) inputBlocks() uint32 { return (c.length-1)/BlockSize + 1 }

// compression is what the superblock has to say about clusters.
type compression struct {
	needed     bool   // there are clusters, be it stored ones
	algorithms uint16 // of compressed clusters, a bit by disk id
	lz4Blocks  uint16 // of the largest LZ4 cluster
}

func (c *compression) note(k *cluster) {
	c.needed = true
	switch k.algorithm {
	case LZ4:
		c.algorithms |= 1 << diskLZ4
		c.lz4Blocks = max(c.lz4Blocks, uint16(k.blocks))
	case Zstd:
		c.algorithms |= 1 << diskZstd
	}
}

func (c *compression) add(other compression) {
	c.needed = c.needed || other.needed
	c.algorithms |= other.algorithms
	c.lz4Blocks = max(c.lz4Blocks, other.lz4Blocks)
}

// settle names an algorithm in an image all clusters of which are stored: kernels
// refuse clusters where none is named. LZ4 is the one that all of them have.
func (c *compression) settle() {
	if c.needed && c.algorithms == 0 {
		c.algorithms = 1 << diskLZ4
	}
}

// setClusters checks the clusters of a regular file of n.size bytes, keeps them
// and adds to needs what they ask for.
func (w *Writer) setClusters(n *node, device uint16, clusters []Cluster, needs *compression) error {
	if device == 0 || int(device) > len(w.opts.Devices) {
		return invalid("clusters lie on device %d of %d", device, len(w.opts.Devices))
	}
	d := &w.opts.Devices[device-1]
	if d.UnifiedAddr == 0 {
		return invalid("clusters lie on device %d, which has no place in the unified address space", device)
	}
	n.layout = layoutCompressed
	n.data = uint64(w.clusters.n)
	sum := int64(0)
	for i := range clusters {
		c := &clusters[i]
		if c.Length == 0 || c.Length > MaxCluster || int64(c.Length) > n.size-sum {
			return invalid("cluster %d has %d bytes, at offset %d of a file of %d bytes", i, c.Length, sum, n.size)
		}
		if i < len(clusters)-1 && c.Length%BlockSize != 0 {
			return invalid("cluster %d has %d bytes, and only the last one may end inside a block", i, c.Length)
		}
		k := cluster{length: c.Length, algorithm: c.Algorithm}
		if err := c.checkBlocks(k.inputBlocks()); err != nil {
			return fmt.Errorf("cluster %d: %w", i, err)
		}
		if uint64(c.Block)+uint64(c.Blocks) > uint64(d.Blocks) {
			return invalid("cluster %d, blocks %d+%d, lies outside device %d of %d blocks", i, c.Block, c.Blocks, device, d.Blocks)
		}
		k.block, k.blocks = d.UnifiedAddr+c.Block, uint8(c.Blocks)
		w.clusters.add(k)
		needs.note(&k)
		sum += int64(c.Length)
	}
	if sum != n.size {
		return invalid("clusters hold %d bytes of %d", sum, n.size)
	}
	return nil
}

// checkBlocks judges the size of a cluster of input blocks. The index has no
// room for the size of a compressed cluster of one block of input, hence it is
// one block; neither for that of two if the file ends inside the second, which
// the rule for all others, that they have to save a block, covers.
func (c *Cluster) checkBlocks(input uint32) error {
	switch c.Algorithm {
	case Stored:
		if c.Blocks != input {
			return invalid("%d blocks store %d bytes", c.Blocks, c.Length)
		}
	case LZ4, Zstd:
		if c.Blocks == 0 || c.Blocks > max(1, input-1) {
			return invalid("%d bytes are compressed to %d blocks", c.Length, c.Blocks)
		}
	default:
		return invalid("algorithm %d is unknown", c.Algorithm)
	}
	return nil
}

// packedInode is the hidden file that holds small contents back to back.
type packedInode struct {
	set   bool
	node  node
	needs compression
	// last is, of the inodes that lie in it, the one that reaches farthest; end is
	// where it ends, 0 if there is none.
	last Ino
	end  int64
}

// SetPacked gives the packed inode its content: clusters on a device, as in
// Inode. It may be called any time before WriteTo, once. If no inode lies in it,
// the image does not have it.
func (w *Writer) SetPacked(device uint16, clusters []Cluster) error {
	if err := w.open(); err != nil {
		return err
	}
	if w.packed.set {
		return w.fail(invalid("the packed inode has content already"))
	}
	n := node{mode: unix.S_IFREG | 0o644, nlink: 1, mtime: w.opts.Epoch, nsec: w.opts.EpochNsec, block: noBlock}
	for i := range clusters {
		n.size += int64(clusters[i].Length)
	}
	if n.size > 0 {
		if err := w.setClusters(&n, device, clusters, &w.packed.needs); err != nil {
			return w.fail(fmt.Errorf("packed inode: %w", err))
		}
	}
	w.packed.set, w.packed.node = true, n
	return nil
}

// setPacked lets a regular file of n.size bytes lie in the packed inode.
func (w *Writer) setPacked(n *node, at uint64) error {
	if n.size == 0 {
		return invalid("an empty file lies in the packed inode")
	}
	if at > uint64(math.MaxInt64-n.size) {
		return invalid("%d bytes at offset %d of the packed inode", n.size, at)
	}
	n.layout, n.data = layoutPacked, at
	if end := int64(at) + n.size; end > w.packed.end {
		w.packed.last, w.packed.end = Ino(w.nodes.n), end
	}
	return nil
}

// check finds contents that reach past the end of the packed inode. The kernel
// shows zeros there, without an error.
func (p *packedInode) check() error {
	if p.end > p.node.size {
		return invalid("inode %d ends at offset %d of the packed inode, which has %d bytes", p.last, p.end, p.node.size)
	}
	return nil
}

// indexEntries is the number of index entries of a file with clusters.
func (n *node) indexEntries() int64 { return (n.size-1)/BlockSize + 1 }

// clusterBlocks is the sum of the blocks of a file's clusters, a block that is
// used twice counted twice.
func (w *Writer) clusterBlocks(n *node) uint32 {
	sum := uint64(0)
	i := uint32(n.data)
	for rest := n.size; rest > 0; i++ {
		c := w.clusters.at(i)
		sum += uint64(c.blocks)
		rest -= int64(c.length)
	}
	return uint32(min(sum, math.MaxUint32))
}

// heads are the two algorithms that the index of a file can name, in the order
// of their first clusters. Missing ones are Stored.
func (w *Writer) heads(n *node) (heads [2]Algorithm) {
	i := uint32(n.data)
	for rest := n.size; rest > 0 && heads[1] == Stored; i++ {
		c := w.clusters.at(i)
		switch {
		case c.algorithm == Stored || c.algorithm == heads[0]:
		case heads[0] == Stored:
			heads[0] = c.algorithm
		default:
			heads[1] = c.algorithm
		}
		rest -= int64(c.length)
	}
	return heads
}

// writeIndex writes the map header and the index of a file with clusters.
func (w *Writer) writeIndex(o *output, n *node) {
	heads := w.heads(n)
	putMapHeader(o.next(mapHeaderSize), heads, w.plan.needs.algorithms)
	i := uint32(n.data)
	for rest := n.size; rest > 0 && o.err == nil; i++ {
		c := w.clusters.at(i)
		rest -= int64(c.length)
		switch c.algorithm {
		case Stored:
			for k := range uint32(c.blocks) {
				putHead(o.next(indexEntrySize), entryPlain, c.block+k)
			}
		case heads[0]:
			c.writeEntries(o, entryHead1)
		default:
			c.writeEntries(o, entryHead2)
		}
	}
}

// writeEntries writes the index entries of a compressed cluster.
//
// A file that ends inside a block, hence its last cluster does, gets an entry for
// its end in place of the last one, as if something began there: then the kernel
// knows how much there is to decode. The entry of the second block, which holds
// the number of blocks, may be that last one; but then the cluster has one block,
// which is also what the kernel takes a cluster without the number to have.
func (c *cluster) writeEntries(o *output, head uint16) {
	putHead(o.next(indexEntrySize), head, c.block)
	end := c.inputBlocks()
	cut := uint16(0)
	if end > 1 {
		cut = uint16(c.length % BlockSize)
	}
	if cut > 0 {
		end--
	}
	for k := uint32(1); k < end; k++ {
		back := uint16(k)
		if k == 1 {
			back = entryBlockCount | uint16(c.blocks)
		}
		putNonHead(o.next(indexEntrySize), back, uint16(end-k))
	}
	if cut > 0 {
		putEnd(o.next(indexEntrySize), cut)
	}
}
