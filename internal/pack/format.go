// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// BlockSize is the unit of the pack in bytes: placements start on a block and
// cover whole blocks.
const BlockSize = 4096

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
)

// Placement says where a content is in the pack.
type Placement struct {
	Block    uint32 // first block
	Blocks   uint32 // blocks of the range, holes included
	Stored   uint32 // blocks of the range that take up disk space
	Size     uint64 // bytes of the content, decoded
	Encoding Encoding
}

// End is the first block behind the placement.
func (p Placement) End() uint64 { return uint64(p.Block) + uint64(p.Blocks) }

// record is one line of the index: a content and its placement.
type record struct {
	digest Digest
	place  Placement
}

// An index file, all integers little-endian:
//
//	 0  8  magic "SQSHINDX"
//	 8  4  version, 1
//	12  4  bytes per record, 64
//	16  8  number of records
//	24  4  incompatible features, a bit each; none is defined
//	28  4  revision of the file (see span)
//	32  8  first generation that the file holds
//	40  8  last generation that the file holds
//	48  8  bytes of the auxiliary area behind the records, 0
//	56  4  CRC-32C of records and auxiliary area
//	60  4  CRC-32C of bytes 0..59
//	64     records, in ascending order of their digests, none twice
//
// A record:
//
//	 0 32  digest
//	32  8  size of the content in bytes
//	40  4  first block
//	44  4  blocks
//	48  4  blocks stored
//	52  1  encoding
//	53  3  zero
//	56  8  offset in the auxiliary area, 0 (encodings to come)
const (
	indexMagic   = "SQSHINDX"
	indexVersion = 1
	headerSize   = 64
	recordSize   = 64
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errDamaged marks an index file whose bytes are not what was written.
var errDamaged = errors.New("damaged")

func (r *record) encode(b []byte) {
	le := binary.LittleEndian
	copy(b, r.digest[:])
	le.PutUint64(b[32:], r.place.Size)
	le.PutUint32(b[40:], r.place.Block)
	le.PutUint32(b[44:], r.place.Blocks)
	le.PutUint32(b[48:], r.place.Stored)
	le.PutUint32(b[52:], uint32(r.place.Encoding))
	le.PutUint64(b[56:], 0)
}

func decodePlacement(b []byte) Placement {
	le := binary.LittleEndian
	return Placement{
		Size:     le.Uint64(b[32:]),
		Block:    le.Uint32(b[40:]),
		Blocks:   le.Uint32(b[44:]),
		Stored:   le.Uint32(b[48:]),
		Encoding: Encoding(b[52]),
	}
}

// check tells whether the placement can be true at all: errDamaged if not. An
// encoding that is not known is no damage.
func (p Placement) check() error {
	switch {
	case p.Encoding != EncodingPlain:
		return fmt.Errorf("encoding %d is not known: the pack was written by a newer version", p.Encoding)
	case p.End() > maxBlocks:
		return fmt.Errorf("blocks %d+%d end behind the address space: %w", p.Block, p.Blocks, errDamaged)
	case p.Size > uint64(p.Blocks)*BlockSize:
		return fmt.Errorf("%d bytes do not fit into %d blocks: %w", p.Size, p.Blocks, errDamaged)
	case p.Stored > p.Blocks:
		return fmt.Errorf("%d blocks stored in a range of %d: %w", p.Stored, p.Blocks, errDamaged)
	}
	return nil
}

// span says which publications an index file holds: generations first to last.
// Files are immutable; a file that is written again with fewer records gets the
// next revision.
type span struct {
	first, last uint64
	revision    uint32
}

// replaces tells whether a file with this span makes one with the other span
// superfluous: it was written later and from it.
func (g span) replaces(o span) bool {
	if g.first == o.first && g.last == o.last {
		return g.revision > o.revision
	}
	return g.first <= o.first && o.last <= g.last
}

// writeIndex writes an index file with sorted records.
func writeIndex(w io.Writer, g span, records []record) error {
	body := make([]byte, len(records)*recordSize)
	for i := range records {
		records[i].encode(body[i*recordSize:])
	}
	head := make([]byte, headerSize)
	le := binary.LittleEndian
	copy(head, indexMagic)
	le.PutUint32(head[8:], indexVersion)
	le.PutUint32(head[12:], recordSize)
	le.PutUint64(head[16:], uint64(len(records)))
	le.PutUint32(head[28:], g.revision)
	le.PutUint64(head[32:], g.first)
	le.PutUint64(head[40:], g.last)
	le.PutUint32(head[56:], crc32.Checksum(body, castagnoli))
	le.PutUint32(head[60:], crc32.Checksum(head[:60], castagnoli))
	if _, err := w.Write(head); err != nil {
		return err
	}
	_, err := w.Write(body)
	return err
}

// parseIndex checks an index file's bytes and returns its records, encoded.
// Damage is reported as errDamaged, a file of a newer version as itself.
func parseIndex(b []byte) (span, []byte, error) {
	le := binary.LittleEndian
	if len(b) < headerSize || string(b[:8]) != indexMagic {
		return span{}, nil, fmt.Errorf("not an index file: %w", errDamaged)
	}
	if got, want := crc32.Checksum(b[:60], castagnoli), le.Uint32(b[60:]); got != want {
		return span{}, nil, fmt.Errorf("header checksum is %08x, not %08x: %w", got, want, errDamaged)
	}
	if v := le.Uint32(b[8:]); v != indexVersion {
		return span{}, nil, fmt.Errorf("index version %d is not known (newest known: %d)", v, indexVersion)
	}
	if f := le.Uint32(b[24:]); f != 0 {
		return span{}, nil, fmt.Errorf("index features %#x are not known", f)
	}
	g := span{le.Uint64(b[32:]), le.Uint64(b[40:]), le.Uint32(b[28:])}
	body := b[headerSize:]
	count, aux := le.Uint64(b[16:]), le.Uint64(b[48:])
	if le.Uint32(b[12:]) != recordSize || aux != 0 || count > uint64(len(body))/recordSize || count*recordSize != uint64(len(body)) || g.first > g.last {
		return span{}, nil, fmt.Errorf("%d records do not fit %d bytes: %w", count, len(body), errDamaged)
	}
	if got, want := crc32.Checksum(body, castagnoli), le.Uint32(b[56:]); got != want {
		return span{}, nil, fmt.Errorf("checksum of the records is %08x, not %08x: %w", got, want, errDamaged)
	}
	for i := 0; i < len(body); i += recordSize {
		if i > 0 && bytes.Compare(body[i-recordSize:i-recordSize+DigestSize], body[i:i+DigestSize]) >= 0 {
			return span{}, nil, fmt.Errorf("record %d is out of order: %w", i/recordSize, errDamaged)
		}
		if r := body[i : i+recordSize]; le.Uint32(r[52:])>>8 != 0 || le.Uint64(r[56:]) != 0 {
			return span{}, nil, fmt.Errorf("record %d: reserved bytes are not zero: %w", i/recordSize, errDamaged)
		}
		if err := decodePlacement(body[i:]).check(); err != nil {
			return span{}, nil, fmt.Errorf("record %d: %w", i/recordSize, err)
		}
	}
	return g, body, nil
}
