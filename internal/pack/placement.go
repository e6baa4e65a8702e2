// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"encoding/binary"
	"fmt"
	"iter"
	"strings"
)

// BlockSize is the unit of the pack in bytes: placements start on a block and
// cover whole blocks.
const BlockSize = 1 << blockBits

const blockBits = 12

// ClusterSize is how many bytes are compressed as one, at most.
const ClusterSize = 1 << clusterBits

const clusterBits = 17

// DigestSize is the size in bytes of a content's name, a SHA-256.
const DigestSize = 32

// Digest names a content: the SHA-256 of its bytes.
type Digest [DigestSize]byte

// Encoding says how the bytes of a content lie in its blocks.
type Encoding uint8

const (
	// EncodingPlain stores the bytes as they are, from the start of the first
	// block on, the last block padded with zeros. Blocks that hold nothing but
	// zeros may be holes of the pack file.
	EncodingPlain Encoding = 0
	// EncodingClusters cuts the content into inputs of equal size, each of which
	// is a cluster of its own. An input of nothing but zeros takes up no blocks:
	// if there is any, the last block of the range is a cluster of zeros for
	// all of them.
	EncodingClusters Encoding = 1
	// EncodingShared puts the content into one cluster together with others.
	// They all have the same range of blocks, and live and die together.
	EncodingShared Encoding = 2
)

// Placement says where a content is in the pack.
type Placement struct {
	Size     uint64 // bytes of the content, decoded
	Block    uint32 // first block
	Blocks   uint32 // blocks of the range, holes included
	Stored   uint32 // blocks of the range that take up disk space
	Encoding Encoding

	// How the clusters are compressed; Stored (and zeros) for EncodingPlain.
	Algorithm Algorithm
	level     uint8 // with which the encoder made them
	bits      uint8 // log2 of the bytes of an input

	// EncodingShared: the content begins Offset bytes into the decoded cluster,
	// which has decoded blocks and that many members.
	Offset  uint32
	decoded uint16
	members uint16

	// EncodingClusters: a byte for each input, see inputZeros. A content of one
	// input has none: its cluster covers the range.
	inputs string
}

// The byte of an input is the number of blocks of its cluster.
const (
	inputZeros  = 0    // the cluster of zeros
	inputStored = 0x80 // this bit: the input is stored as it is
)

// End is the first block behind the placement.
func (p Placement) End() uint64 { return uint64(p.Block) + uint64(p.Blocks) }

// Decoded is the size in bytes of the whole cluster of a content that shares
// one.
func (p Placement) Decoded() uint32 { return uint32(p.decoded) * BlockSize }

// Cluster is a range of blocks that was compressed as one.
type Cluster struct {
	Block, Blocks uint32
	Length        uint32 // bytes, decoded
	Algorithm     Algorithm
}

// Clusters yields the clusters of a content that has its own, in order.
func (p Placement) Clusters() iter.Seq[Cluster] {
	return func(yield func(Cluster) bool) {
		if p.inputs == "" {
			yield(Cluster{p.Block, p.Blocks, uint32(p.Size), p.Algorithm})
			return
		}
		next, left := p.Block, p.Size
		for i := range len(p.inputs) {
			in := p.inputs[i]
			c := Cluster{Block: next, Blocks: uint32(in &^ inputStored), Length: uint32(min(left, 1<<p.bits)), Algorithm: p.Algorithm}
			switch {
			case in == inputZeros:
				c.Block, c.Blocks = p.Block+p.Blocks-1, 1
			case in&inputStored != 0:
				c.Algorithm = Stored
				fallthrough
			default:
				next += c.Blocks
			}
			if !yield(c) {
				return
			}
			left -= uint64(c.Length)
		}
	}
}

// SharedCluster is the cluster of a content that shares one.
func (p Placement) SharedCluster() Cluster {
	return Cluster{p.Block, p.Blocks, p.Decoded(), p.Algorithm}
}

// cost is the space in bytes that the blocks take up, together with the index
// records of all contents that are in them.
func (p Placement) cost() int64 {
	records := int64(1)
	if p.Encoding == EncodingShared {
		records = int64(p.members)
	}
	return int64(p.Stored)*BlockSize + records*recordSize + int64(len(p.inputs))
}

// A record of an index file:
//
//	 0 32  digest
//	32  8  size of the content in bytes
//	40  4  first block
//	44  4  blocks
//	48  4  blocks stored
//	52  1  encoding
//	53  1  algorithm
//	54  1  log2 of the bytes of an input
//	55  1  level of the encoder
//	56  8  clusters: offset in the auxiliary area of a byte for each input, if
//	       there are several
//	   or
//	56  4  shared: offset in the decoded cluster
//	60  2  shared: blocks of the decoded cluster
//	62  2  shared: contents in the cluster
const recordSize = 64

// encode fills b; aux is the offset of the content's inputs.
func (r *record) encode(b []byte, aux int) {
	le, p := binary.LittleEndian, &r.place
	copy(b, r.digest[:])
	le.PutUint64(b[32:], p.Size)
	le.PutUint32(b[40:], p.Block)
	le.PutUint32(b[44:], p.Blocks)
	le.PutUint32(b[48:], p.Stored)
	b[52], b[53], b[54], b[55] = byte(p.Encoding), byte(p.Algorithm), p.bits, p.level
	le.PutUint64(b[56:], 0)
	switch {
	case p.Encoding == EncodingShared:
		le.PutUint32(b[56:], p.Offset)
		le.PutUint16(b[60:], p.decoded)
		le.PutUint16(b[62:], p.members)
	case p.inputs != "":
		le.PutUint64(b[56:], uint64(aux))
	}
}

// decodePlacement is the opposite of encode. The inputs are a part of aux.
// errDamaged: they are not in it.
func decodePlacement(b, aux []byte) (p Placement, err error) {
	le := binary.LittleEndian
	p = Placement{
		Size:      le.Uint64(b[32:]),
		Block:     le.Uint32(b[40:]),
		Blocks:    le.Uint32(b[44:]),
		Stored:    le.Uint32(b[48:]),
		Encoding:  Encoding(b[52]),
		Algorithm: Algorithm(b[53]),
		bits:      b[54],
		level:     b[55],
	}
	damaged := func(format string, args ...any) (Placement, error) {
		return p, fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errDamaged)
	}
	at := le.Uint64(b[56:])
	switch p.Encoding {
	case EncodingPlain:
		if p.bits != 0 || p.level != 0 || at != 0 {
			return damaged("reserved bytes are not zero")
		}
	case EncodingShared:
		if p.bits != 0 {
			return damaged("reserved bytes are not zero")
		}
		p.Offset, p.decoded, p.members = le.Uint32(b[56:]), le.Uint16(b[60:]), le.Uint16(b[62:])
	case EncodingClusters:
		if p.bits < blockBits || p.bits > clusterBits {
			return damaged("inputs of 2^%d bytes", p.bits)
		}
		n := (p.Size-1)>>p.bits + 1
		switch {
		case n == 1 && at != 0:
			return damaged("reserved bytes are not zero")
		case n > 1 && (at > uint64(len(aux)) || n > uint64(len(aux))-at):
			return damaged("%d inputs at %d are not within %d bytes", n, at, len(aux))
		case n > 1:
			p.inputs = string(aux[at:][:n])
		}
	}
	return p, nil
}

// check tells whether the placement can be true at all: errDamaged if not. An
// encoding that is not known is no damage.
func (p *Placement) check() error {
	damaged := func(format string, args ...any) error {
		return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errDamaged)
	}
	switch {
	case p.Encoding > EncodingShared:
		return fmt.Errorf("encoding %d is not known: the pack was written by a newer version", p.Encoding)
	case p.Algorithm > Zstd:
		return fmt.Errorf("algorithm %d is not known: the pack was written by a newer version", p.Algorithm)
	case p.End() > maxBlocks:
		return damaged("blocks %d+%d end behind the address space", p.Block, p.Blocks)
	case p.Stored > p.Blocks:
		return damaged("%d blocks stored in a range of %d", p.Stored, p.Blocks)
	case p.Algorithm == Stored && p.level != 0:
		return damaged("level %d of no algorithm", p.level)
	}
	switch p.Encoding {
	case EncodingPlain:
		if p.Size > uint64(p.Blocks)*BlockSize {
			return damaged("%d bytes do not fit into %d blocks", p.Size, p.Blocks)
		}
		if p.Algorithm != Stored {
			return damaged("plain and compressed at once")
		}
	case EncodingShared:
		switch {
		case p.decoded == 0 || p.Decoded() > ClusterSize || p.members == 0:
			return damaged("%d contents share a cluster of %d blocks", p.members, p.decoded)
		case p.Size > uint64(p.Decoded()) || uint64(p.Offset) > uint64(p.Decoded())-p.Size:
			return damaged("%d bytes at %d do not lie in a cluster of %d", p.Size, p.Offset, p.Decoded())
		}
		return checkCluster(p.SharedCluster())
	case EncodingClusters:
		return p.checkClusters()
	}
	return nil
}

func (p *Placement) checkClusters() error {
	if p.Size == 0 || p.Algorithm == Stored || p.Blocks == 0 {
		return fmt.Errorf("%d bytes in %d blocks are no clusters: %w", p.Size, p.Blocks, errDamaged)
	}
	blocks, zeros := uint64(0), uint64(0)
	for c := range p.Clusters() {
		if err := checkCluster(c); err != nil {
			return err
		}
		blocks += uint64(c.Blocks)
	}
	if z := strings.Count(p.inputs, "\x00"); z > 0 {
		blocks, zeros = blocks-uint64(z), 1
		if p.inputs[len(p.inputs)-1] == inputZeros && p.Size&(1<<p.bits-1) != 0 {
			return fmt.Errorf("the last input is no whole one and shares its cluster: %w", errDamaged)
		}
	}
	if blocks+zeros != uint64(p.Blocks) {
		return fmt.Errorf("clusters of %d blocks in %d blocks: %w", blocks+zeros, p.Blocks, errDamaged)
	}
	return nil
}

// checkCluster: a compressed cluster has at least one block less than its bytes,
// that of the zeros too.
func checkCluster(c Cluster) error {
	plain := blocksOf(uint64(c.Length))
	if c.Algorithm == Stored && uint64(c.Blocks) != plain || c.Algorithm != Stored && (c.Blocks == 0 || uint64(c.Blocks) >= plain) {
		return fmt.Errorf("%d bytes in a cluster of %d blocks: %w", c.Length, c.Blocks, errDamaged)
	}
	return nil
}
