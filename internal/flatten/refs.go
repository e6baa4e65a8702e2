// SPDX-License-Identifier: Apache-2.0

package flatten

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"slices"
)

// A refs file says which contents of the pack a flat image shows, by the block
// at which each begins; integers little-endian:
//
//	8 magic "SQSHREFS", 4 version 1, 4 contents,
//	8 bytes of the flat image, 4 its CRC-32C, 4 zero,
//	then the blocks in ascending order, each as a uvarint of the distance to
//	the one before (the first: to 0), then 4 CRC-32C of all before
const (
	refsMagic   = "SQSHREFS"
	refsVersion = 1
	refsHeader  = 32
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrRefsDamaged marks a refs file whose bytes are not what was written.
var ErrRefsDamaged = errors.New("refs file is damaged")

// Refs is what is noted about a flat image.
type Refs struct {
	Blocks    []uint32 // first blocks of the contents that it shows
	ImageSize uint64   // bytes
	ImageSum  uint32   // CRC-32C
}

// WriteRefs writes a refs file.
func WriteRefs(w io.Writer, r Refs) error {
	b := append([]byte(refsMagic), make([]byte, refsHeader-8)...)
	le := binary.LittleEndian
	le.PutUint32(b[8:], refsVersion)
	le.PutUint32(b[12:], uint32(len(r.Blocks)))
	le.PutUint64(b[16:], r.ImageSize)
	le.PutUint32(b[24:], r.ImageSum)
	last := uint32(0)
	for _, block := range slices.Sorted(slices.Values(r.Blocks)) {
		b = binary.AppendUvarint(b, uint64(block-last))
		last = block
	}
	b = le.AppendUint32(b, crc32.Checksum(b, castagnoli))
	_, err := w.Write(b)
	return err
}

// NewImageSum returns the checksum that Refs keeps of an image.
func NewImageSum() hash.Hash32 { return crc32.New(castagnoli) }

// ReadRefs reads what WriteRefs wrote.
func ReadRefs(r io.Reader) (Refs, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return Refs{}, err
	}
	le := binary.LittleEndian
	if len(b) < refsHeader+4 || string(b[:8]) != refsMagic {
		return Refs{}, fmt.Errorf("no refs start here: %w", ErrRefsDamaged)
	}
	body := b[:len(b)-4]
	if crc32.Checksum(body, castagnoli) != le.Uint32(b[len(body):]) {
		return Refs{}, fmt.Errorf("checksum: %w", ErrRefsDamaged)
	}
	if v := le.Uint32(b[8:]); v != refsVersion {
		return Refs{}, fmt.Errorf("refs version %d is not known (newest known: %d)", v, refsVersion)
	}
	refs := Refs{ImageSize: le.Uint64(b[16:]), ImageSum: le.Uint32(b[24:])}
	n := int(le.Uint32(b[12:]))
	body = body[refsHeader:]
	if n > len(body) {
		return Refs{}, fmt.Errorf("%d blocks in %d bytes: %w", n, len(body), ErrRefsDamaged)
	}
	refs.Blocks = make([]uint32, n)
	last := uint64(0)
	for i := range refs.Blocks {
		d, k := binary.Uvarint(body)
		if k <= 0 || d > 1<<32-1-last {
			return Refs{}, fmt.Errorf("block %d: %w", i, ErrRefsDamaged)
		}
		last, body = last+d, body[k:]
		refs.Blocks[i] = uint32(last)
	}
	if len(body) > 0 {
		return Refs{}, fmt.Errorf("%d bytes behind the last block: %w", len(body), ErrRefsDamaged)
	}
	return refs, nil
}
