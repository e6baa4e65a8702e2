// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"fmt"
	"io"
)

// WriteTo writes the image in one sequential pass, through a buffer of fixed
// size, and returns the number of bytes written: a multiple of BlockSize. It
// closes the tree, so Add and Link fail from then on; it may be called again and
// writes the same bytes.
//
// What only the whole tree can show is found before the first byte goes out and
// is of kind errdefs.ErrInvalidArgument: a name twice in a directory, an inode
// that was never linked or is not reachable, one that reaches past the end of
// the packed inode, a device that would hide blocks of the image.
func (w *Writer) WriteTo(out io.Writer) (int64, error) {
	if w.err != nil {
		return 0, w.err
	}
	if w.plan == nil {
		p, err := w.makePlan()
		if err != nil {
			return 0, w.fail(err)
		}
		w.plan = p
	}

	o := newOutput(out)
	w.writeSuper(o)
	for k, i := range w.plan.order {
		w.writeInode(o, w.nodes.at(uint32(i)), uint32(k)+1)
		if o.err != nil {
			break
		}
	}
	o.zeroTo(w.plan.sharedAt)
	for _, x := range w.plan.shared {
		writeXattr(o, x)
	}
	o.zeroTo(int64(w.plan.dataBlock) * BlockSize)
	for _, i := range w.plan.order {
		if n := w.nodes.at(uint32(i)); n.block != noBlock && o.err == nil {
			w.writeBlocks(o, n)
		}
	}
	o.flush()
	if o.err != nil {
		return o.written, fmt.Errorf("erofs: write image at offset %d: %w", o.written, o.err)
	}
	return o.written, nil
}

// sharedBase is the place of the shared xattrs: a block, and words from there on.
func (p *plan) sharedBase() (block, words uint32) {
	return uint32(p.sharedAt / BlockSize), uint32(p.sharedAt % BlockSize / xattrAlign)
}

func (w *Writer) writeSuper(o *output) {
	o.zeroTo(superOffset)
	s := superblock{
		rootNid:   uint16(w.nodes.at(uint32(RootIno)).nid),
		inodes:    uint64(w.nodes.n),
		epoch:     w.opts.Epoch,
		epochNsec: w.opts.EpochNsec,
		blocks:    w.plan.total,
		uuid:      w.opts.UUID,
		label:     w.opts.Label,
		devices:   uint16(len(w.opts.Devices)),
		devicesAt: w.plan.devicesAt,
	}
	s.xattrBlock, _ = w.plan.sharedBase()
	if w.plan.chunked {
		s.incompat |= incompatChunked
	}
	if len(w.opts.Devices) > 0 {
		s.incompat |= incompatDeviceTable
	}
	if w.plan.needs.needed {
		s.incompat |= incompatZeroPadding | incompatConfigs
		s.algorithms = w.plan.needs.algorithms
	}
	if w.plan.packed != RootIno {
		s.incompat |= incompatFragments
		s.packedNid = w.nodes.at(uint32(w.plan.packed)).nid
	}
	s.encode(o.next(superSize))
	o.write(w.plan.needs.configs())
	o.zeroTo(w.plan.devicesAt)
	for i := range w.opts.Devices {
		w.opts.Devices[i].encode(o.next(deviceSlotSize))
	}
}

// writeInode writes an inode with all that lies behind it. ino is its number on
// 32-bit kernels; others show the nid.
func (w *Writer) writeInode(o *output, n *node, ino uint32) {
	o.zeroTo(int64(n.nid) * inodeAlign)
	xattrCount := uint16(0)
	if n.xattrs != 0 {
		xattrCount = uint16((w.xattrs.sets[n.xattrs].size-xattrHeaderSize)/xattrAlign + 1)
	}
	union := w.plan.union(n)
	if w.inodeSize(n) == compactSize {
		n.encodeCompact(o.next(compactSize), xattrCount, union, ino)
	} else {
		n.encodeExtended(o.next(extendedSize), xattrCount, union, ino)
	}
	if n.xattrs != 0 {
		_, base := w.plan.sharedBase()
		w.xattrs.writeXattrs(o, n.xattrs, base)
	}
	_, align, _ := n.trailer()
	o.zeroTo(alignUp(o.pos(), align))
	w.writeTrailer(o, n)
}

// outputBuffer bounds what WriteTo holds of the image. It is a multiple of
// BlockSize, and larger than any piece that is encoded in place.
const outputBuffer = 256 << 10

// output is a sequential image under construction. Its first error stays.
type output struct {
	w       io.Writer
	buf     []byte
	used    int
	start   int64 // position of buf[0] in the image
	written int64 // bytes that w has taken; start, unless there was an error
	err     error
}

func newOutput(w io.Writer) *output { return &output{w: w, buf: make([]byte, outputBuffer)} }

func (o *output) pos() int64 { return o.start + int64(o.used) }

// next appends size zero bytes, at most BlockSize, for the caller to fill before
// it appends anything else.
func (o *output) next(size int) []byte {
	if size > len(o.buf)-o.used {
		o.flush()
	}
	b := o.buf[o.used : o.used+size]
	clear(b)
	o.used += size
	return b
}

func (o *output) write(b []byte) {
	for len(b) > 0 {
		n := min(len(b), BlockSize)
		copy(o.next(n), b)
		b = b[n:]
	}
}

func (o *output) writeString(s string) {
	for len(s) > 0 {
		n := min(len(s), BlockSize)
		copy(o.next(n), s)
		s = s[n:]
	}
}

// zeroTo appends zeros up to a position.
func (o *output) zeroTo(pos int64) {
	for gap := pos - o.pos(); gap > 0; gap = pos - o.pos() {
		o.next(int(min(gap, BlockSize)))
	}
}

// flush passes on all whole blocks, the first one sealed on its way. After an
// error it drops them.
func (o *output) flush() {
	whole := o.used / BlockSize * BlockSize
	if o.start == 0 && whole > 0 {
		sealFirstBlock(o.buf[:BlockSize])
	}
	if o.err == nil {
		n, err := o.w.Write(o.buf[:whole])
		if err == nil && n < whole {
			err = io.ErrShortWrite
		}
		o.written += int64(n)
		o.err = err
	}
	o.start += int64(whole)
	o.used = copy(o.buf, o.buf[whole:o.used])
}

var _ io.WriterTo = (*Writer)(nil)
