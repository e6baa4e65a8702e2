// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// How an inode's data is stored is known here and nowhere else. A further
// layout is a constant in disk.go and a case in each of these functions, which
// the plan and the output call in this order: settle, trailer, wholeBlocks,
// union, writeTrailer, writeBlocks.

// settle chooses between the layouts of data that lies in the image. head is
// the size of the inode with its xattrs.
func (n *node) settle(head int64) {
	switch n.layout {
	case layoutChunked, layoutCompressed, layoutPacked:
		return
	}
	if tail := n.size % BlockSize; tail > 0 && head+tail <= BlockSize {
		n.layout = layoutInline
	}
}

// trailer tells what lies behind an inode and its xattrs: its size and alignment
// in bytes, and whether inode, xattrs and trailer have to share one block. The
// kernel demands that of inline tails (of symlinks as a whole, of others for the
// tail alone; the stricter rule is used for all).
func (n *node) trailer() (size, align int64, oneBlock bool) {
	switch n.layout {
	case layoutChunked:
		return n.chunks() * chunkIndexSize, chunkIndexSize, false
	case layoutCompressed:
		return mapHeaderSize + n.indexEntries()*indexEntrySize, indexEntrySize, false
	case layoutPacked:
		return packedMapSize, packedMapSize, false
	case layoutInline:
		return n.size % BlockSize, 1, true
	}
	return 0, 1, false
}

// wholeBlocks is the number of data blocks that the inode takes in the image.
// Special files have no size, hence none.
func (n *node) wholeBlocks() int64 {
	switch n.layout {
	case layoutPlain:
		return alignUp(n.size, BlockSize) / BlockSize
	case layoutInline:
		return n.size / BlockSize
	}
	return 0
}

// union is the field of the inode whose meaning depends on type and layout.
func (p *plan) union(n *node) uint32 {
	switch n.mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK:
		return uint32(n.data)
	case unix.S_IFIFO, unix.S_IFSOCK:
		return 0
	}
	switch {
	case n.layout == layoutChunked:
		return chunkIndexForm | uint32(n.chunk)
	case n.layout == layoutCompressed:
		return p.w.clusterBlocks(n)
	case n.layout == layoutPacked:
		return 0
	case n.block == noBlock:
		return noBlock
	}
	return p.dataBlock + n.block
}

// writeTrailer writes what trailer announced.
func (w *Writer) writeTrailer(o *output, n *node) {
	switch n.layout {
	case layoutChunked:
		w.writeChunks(o, n)
	case layoutCompressed:
		w.writeIndex(o, n)
	case layoutPacked:
		binary.LittleEndian.PutUint64(o.next(packedMapSize), packedMapFlag|n.data)
	case layoutInline:
		tail := int(n.size % BlockSize)
		if n.isDir() {
			d := w.dirs.at(uint32(n.data))
			w.plan.putDirBlock(o.next(tail), d.tail, d.first+d.count)
		} else {
			o.write(w.bytes.get(ref(n.data), int(n.size))[int(n.size)-tail:])
		}
	}
}

// writeBlocks writes the data blocks of an inode.
func (w *Writer) writeBlocks(o *output, n *node) {
	blocks := n.wholeBlocks()
	if !n.isDir() {
		content := w.bytes.get(ref(n.data), int(n.size))
		o.write(content[:min(n.size, blocks*BlockSize)])
		o.zeroTo(alignUp(o.pos(), BlockSize))
		return
	}
	d := w.dirs.at(uint32(n.data))
	at := d.first
	for range blocks {
		next, _ := w.plan.dirBlock(at, d.first+d.count)
		w.plan.putDirBlock(o.next(BlockSize), at, next)
		at = next
	}
}
