// SPDX-License-Identifier: Apache-2.0

package erofs

import "math/bits"

// extent is a run of blocks of a chunked file. Neighbours that continue each
// other are merged, so every border between two extents of a file is a real one.
type extent struct {
	blocks int64
	block  uint32 // first block on the device
	device uint16 // 0 for a hole
}

// setExtents checks the extents of a regular file of n.size bytes and keeps
// them. The chunks become as large as they can be while no chunk spans a border
// between extents: a file of one extent has one chunk.
func (w *Writer) setExtents(n *node, extents []Extent) error {
	var (
		sum     int64 // bytes so far
		pos     int64 // blocks so far
		borders int64 // all block positions of borders, or-ed
		last    *extent
	)
	n.layout = layoutChunked
	n.data = uint64(w.extents.n)
	for i, e := range extents {
		if e.Length <= 0 || e.Length > n.size-sum {
			return invalid("extent %d has %d bytes, at offset %d of a file of %d bytes", i, e.Length, sum, n.size)
		}
		if i < len(extents)-1 && e.Length%BlockSize != 0 {
			return invalid("extent %d has %d bytes, and only the last one may end inside a block", i, e.Length)
		}
		next := extent{blocks: (e.Length-1)/BlockSize + 1}
		if e.Device != 0 {
			if int(e.Device) > len(w.opts.Devices) {
				return invalid("extent %d lies on device %d of %d", i, e.Device, len(w.opts.Devices))
			}
			if size := int64(w.opts.Devices[e.Device-1].Blocks); next.blocks > size-int64(e.Block) {
				return invalid("extent %d, blocks %d+%d, lies outside device %d of %d blocks", i, e.Block, next.blocks, e.Device, size)
			}
			next.device, next.block = e.Device, e.Block
		}
		if last != nil && last.device == next.device &&
			(last.device == 0 || int64(last.block)+last.blocks == int64(next.block)) {
			last.blocks += next.blocks
		} else {
			borders |= pos
			last = w.extents.at(w.extents.add(next))
		}
		sum += e.Length
		pos += next.blocks
	}
	if sum != n.size {
		return invalid("extents hold %d bytes of %d", sum, n.size)
	}

	shift := bits.Len64(uint64(pos - 1)) // one chunk for all
	if borders != 0 {
		shift = bits.TrailingZeros64(uint64(borders))
	}
	n.chunk = uint8(min(shift, maxChunkBits))
	if c := n.chunks(); c > maxChunkIndexes {
		return invalid("extents of a file of %d bytes need %d chunk indexes, more than %d", n.size, c, maxChunkIndexes)
	}
	return nil
}

// chunks is the number of indexes of a chunked file.
func (n *node) chunks() int64 { return (n.size-1)>>(blockBits+n.chunk) + 1 }

// writeChunks writes the chunk indexes of a file.
func (w *Writer) writeChunks(o *output, n *node) {
	i := uint32(n.data)
	e := *w.extents.at(i)
	into := int64(0) // blocks of e that lie before the chunk
	for range n.chunks() {
		for into >= e.blocks {
			into -= e.blocks
			i++
			e = *w.extents.at(i)
		}
		b := o.next(chunkIndexSize)
		if e.device == 0 {
			putChunkIndex(b, 0, noBlock)
		} else {
			putChunkIndex(b, e.device, e.block+uint32(into))
		}
		into += 1 << n.chunk
	}
}
