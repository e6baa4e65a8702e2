// SPDX-License-Identifier: Apache-2.0

package flatten

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"iter"
	"maps"
	"slices"

	"github.com/squash-snapshotter/squash/internal/pack"
)

// A refs file says which contents of the pack a flat image shows, by the block
// at which each begins; integers little-endian:
//
//	8 magic "SQSHREFS", 4 version 2, 4 number of blocks,
//	8 bytes of the flat image, 4 its CRC-32C, 4 number of names of regular
//	files in it, 0 if that was not noted,
//	then the blocks in ascending order, each as two uvarints: the distance to
//	the one before (the first: to 0), and if contents share the cluster there,
//	how many bytes of it the image shows, else 0;
//	then 4 CRC-32C of all before
//
// Version 1 had no such bytes. It is taken for damaged, and the image is built
// again.
const (
	refsMagic   = "SQSHREFS"
	refsVersion = 2
	refsHeader  = 32
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrRefsDamaged marks a refs file whose bytes are not what was written.
var ErrRefsDamaged = errors.New("refs file is damaged")

// Refs is what is noted about a flat image.
type Refs struct {
	Blocks    []uint32 // first blocks of the contents that it shows, ascending
	Used      []uint32 // bytes shown of each that contents share, 0 for others
	ImageSize uint64   // bytes
	ImageSum  uint32   // CRC-32C
	Files     uint32   // names of regular files; 0 if that was not noted
}

// NewRefs notes what an image shows whose contents are at these places.
func NewRefs(places iter.Seq[pack.Placement]) (r Refs) {
	used := map[uint32]uint32{}
	for p := range places {
		if p.Encoding == pack.EncodingShared {
			used[p.Block] += uint32(p.Size)
		} else {
			used[p.Block] = 0
		}
	}
	r.Blocks = slices.Sorted(maps.Keys(used))
	for _, b := range r.Blocks {
		r.Used = append(r.Used, used[b])
	}
	return r
}

// WriteRefs writes a refs file.
func WriteRefs(w io.Writer, r Refs) error {
	b := append([]byte(refsMagic), make([]byte, refsHeader-8)...)
	le := binary.LittleEndian
	le.PutUint32(b[8:], refsVersion)
	le.PutUint32(b[12:], uint32(len(r.Blocks)))
	le.PutUint64(b[16:], r.ImageSize)
	le.PutUint32(b[24:], r.ImageSum)
	le.PutUint32(b[28:], r.Files)
	last := uint32(0)
	for i, block := range r.Blocks {
		b = binary.AppendUvarint(b, uint64(block-last))
		b = binary.AppendUvarint(b, uint64(r.Used[i]))
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
	if v := le.Uint32(b[8:]); v < refsVersion {
		return Refs{}, fmt.Errorf("refs version %d: %w", v, ErrRefsDamaged)
	} else if v > refsVersion {
		return Refs{}, fmt.Errorf("refs version %d is not known (newest known: %d)", v, refsVersion)
	}
	refs := Refs{ImageSize: le.Uint64(b[16:]), ImageSum: le.Uint32(b[24:]), Files: le.Uint32(b[28:])}
	n := int(le.Uint32(b[12:]))
	body = body[refsHeader:]
	if n > len(body) {
		return Refs{}, fmt.Errorf("%d blocks in %d bytes: %w", n, len(body), ErrRefsDamaged)
	}
	refs.Blocks, refs.Used = make([]uint32, n), make([]uint32, n)
	last := uint64(0)
	for i := range refs.Blocks {
		d, k := binary.Uvarint(body)
		if k <= 0 || d > 1<<32-1-last {
			return Refs{}, fmt.Errorf("block %d: %w", i, ErrRefsDamaged)
		}
		used, l := binary.Uvarint(body[k:])
		if l <= 0 || used > 1<<32-1 {
			return Refs{}, fmt.Errorf("bytes of block %d: %w", i, ErrRefsDamaged)
		}
		last, body = last+d, body[k+l:]
		refs.Blocks[i], refs.Used[i] = uint32(last), uint32(used)
	}
	if len(body) > 0 {
		return Refs{}, fmt.Errorf("%d bytes behind the last block: %w", len(body), ErrRefsDamaged)
	}
	return refs, nil
}
