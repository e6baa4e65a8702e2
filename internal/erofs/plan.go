// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"math"
	"slices"
)

// plan is the layout of the image. It is complete before the first byte goes
// out, and depends on the tree alone: inodes are placed in the order of a walk
// by sorted names, the inodes of one directory next to each other, then its
// sub-directories one after the other.
type plan struct {
	w *Writer

	entries []uint32 // entries of all directories, each directory a sorted range
	order   []Ino    // inodes by place

	pos        int64        // end of the inodes, in bytes
	shared     []*xattrPair // by place
	sharedSize int64        // bytes
	blocks     int64        // data blocks
	chunked    bool         // some inode is chunked
	needs      compression  // of all inodes, the packed one included
	devicesAt  int64        // start of the device table, in bytes
	packed     Ino          // the packed inode, if there is one

	sharedAt  int64  // start of shared xattrs, in bytes
	dataBlock uint32 // first data block
	total     uint32 // blocks of the image

	keys     []sortKey // scratch of sortDir
	deferred []Ino     // reached, but waiting for a block with enough room
}

// An inode whose inline tail does not fit into the current block waits for the
// next one while smaller inodes fill the gap. More than maxDeferred do not wait:
// the rest of the block is given up. Few are enough: with 4 as with 64, gaps are
// about a hundredth of a percent of an image of 100,000 files, with 1 half a percent.
const maxDeferred = 16

// nidDeferred marks a deferred inode. It is no valid nid.
const nidDeferred = math.MaxUint32

func (w *Writer) makePlan() (*plan, error) {
	w.xattrs.count()
	p := &plan{
		w:       w,
		entries: make([]uint32, 0, w.entries.n),
		order:   make([]Ino, 0, w.nodes.n+1),
		needs:   w.needs,
	}
	if w.packed.end > 0 {
		if err := w.packed.check(); err != nil {
			return nil, err
		}
		p.needs.add(w.packed.needs)
	}
	p.needs.settle()
	p.devicesAt = p.needs.devicesAt()
	p.pos = p.devicesAt + int64(len(w.opts.Devices))*deviceSlotSize
	if err := p.walk(); err != nil {
		return nil, err
	}
	if w.packed.end > 0 { // outside of the tree, behind all that is in it
		p.packed = Ino(w.nodes.add(w.packed.node))
		p.place(p.packed)
	}
	p.keys, p.deferred = nil, nil
	if p.pos/inodeAlign >= maxNid {
		return nil, invalid("%d bytes of inodes, more than %d", p.pos, int64(maxNid)*inodeAlign)
	}
	if len(p.order) != int(w.nodes.n) {
		return nil, w.unreachable()
	}
	if nid := w.nodes.at(uint32(RootIno)).nid; nid > maxRootNid {
		return nil, invalid("%d devices and root inode: root nid %d exceeds 16 bits", len(w.opts.Devices), nid)
	}
	return p, p.finish()
}

// walk places all inodes that the root reaches.
func (p *plan) walk() error {
	if err := p.sortDir(RootIno); err != nil {
		return err
	}
	p.place(RootIno)
	for len(p.deferred) > 0 { // the root has to come first
		p.nextBlock()
	}
	stack := []Ino{RootIno}
	for len(stack) > 0 {
		top := len(stack) - 1
		d := p.w.dirs.at(uint32(p.w.nodes.at(uint32(stack[top])).data))
		stack = stack[:top]
		for _, e := range p.entries[d.first : d.first+d.count] {
			child := p.w.entries.at(e).child
			n := p.w.nodes.at(uint32(child))
			if n.nid != 0 { // ".", "..", or a further hard link
				continue
			}
			if n.isDir() {
				if err := p.sortDir(child); err != nil {
					return err
				}
				stack = append(stack, child)
			}
			p.place(child)
		}
		slices.Reverse(stack[top:])
	}
	for len(p.deferred) > 0 {
		p.nextBlock()
	}
	return nil
}

// place gives inode i a place now or soon.
func (p *plan) place(i Ino) {
	before := p.pos / BlockSize
	if !p.tryPlace(i) {
		p.w.nodes.at(uint32(i)).nid = nidDeferred
		p.deferred = append(p.deferred, i)
		if len(p.deferred) > maxDeferred {
			p.nextBlock()
		}
	} else if p.pos/BlockSize != before {
		p.retry()
	}
}

// nextBlock gives up the rest of the current block and places what has waited.
func (p *plan) nextBlock() {
	p.pos = alignUp(p.pos, BlockSize)
	p.retry()
}

func (p *plan) retry() {
	p.deferred = slices.DeleteFunc(p.deferred, p.tryPlace)
}

// tryPlace places inode i at the current position unless its tail needs another
// block. At the start of a block it always succeeds, see settle.
func (p *plan) tryPlace(i Ino) bool {
	n := p.w.nodes.at(uint32(i))
	head := p.w.inodeSize(n) + p.planXattrs(n.xattrs)
	n.settle(head)
	size, align, oneBlock := n.trailer()
	start := alignUp(p.pos, inodeAlign)
	end := alignUp(start+head, align) + size
	if oneBlock && start/BlockSize != (end-1)/BlockSize {
		return false
	}
	n.nid = uint32(start / inodeAlign)
	if blocks := n.wholeBlocks(); blocks > 0 {
		n.block = uint32(p.blocks)
		p.blocks += blocks
	}
	p.chunked = p.chunked || n.layout == layoutChunked
	p.order = append(p.order, i)
	p.pos = end
	return true
}

// inodeSize tells which of the two forms an inode takes: the small one if it can
// hold everything.
func (w *Writer) inodeSize(n *node) int64 {
	if n.uid <= math.MaxUint16 && n.gid <= math.MaxUint16 && n.nlink <= math.MaxUint16 &&
		n.size <= math.MaxUint32 && n.mtime == w.opts.Epoch && n.nsec == w.opts.EpochNsec {
		return compactSize
	}
	return extendedSize
}

// finish places what follows the inodes.
func (p *plan) finish() error {
	p.sharedAt = alignUp(p.pos, xattrAlign)
	dataAt := alignUp(p.sharedAt+p.sharedSize, BlockSize)
	total := dataAt/BlockSize + p.blocks
	if total > maxImageBlocks {
		return invalid("image of %d blocks", total)
	}
	for i, d := range p.w.opts.Devices {
		if d.UnifiedAddr != 0 && int64(d.UnifiedAddr) < total {
			return invalid("device %d, at unified address %d, hides blocks of the image, which has %d", i+1, d.UnifiedAddr, total)
		}
	}
	p.dataBlock = uint32(dataAt / BlockSize)
	p.total = uint32(total)
	return nil
}

// unreachable tells why the walk did not meet all inodes.
func (w *Writer) unreachable() error {
	lost := Ino(0)
	for i := range w.nodes.n {
		n := w.nodes.at(i)
		if n.nid != 0 {
			continue
		}
		if n.nlink == 0 || n.isDir() && w.dirs.at(uint32(n.data)).link == 0 {
			return invalid("inode %d was never linked", i)
		}
		lost = Ino(i)
	}
	return invalid("inode %d is not reachable from the root: its directories form a cycle", lost)
}
