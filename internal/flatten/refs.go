// SPDX-License-Identifier: Apache-2.0

package flatten

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
)

// A refs file says which contents of the pack a flat image shows, by the block
// at which each begins; integers little-endian:
//
//	8 magic "SQSHREFS", 4 version 1, 4 contents,
//	then the blocks in ascending order, each as a uvarint of the distance to
//	the one before (the first: to 0), then 4 CRC-32C of all before
const (
	refsMagic   = "SQSHREFS"
	refsVersion = 1
	refsHeader  = 16
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrRefsDamaged marks a refs file whose bytes are not what was written.
var ErrRefsDamaged = errors.New("refs file is damaged")

// WriteRefs writes the first blocks of an image's contents.
func WriteRefs(w io.Writer, blocks []uint32) error {
	b := append([]byte(refsMagic), make([]byte, 8)...)
	binary.LittleEndian.PutUint32(b[8:], refsVersion)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(blocks)))
	last := uint32(0)
	for _, block := range slices.Sorted(slices.Values(blocks)) {
		b = binary.AppendUvarint(b, uint64(block-last))
		last = block
	}
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	_, err := w.Write(b)
	return err
}

// ReadRefs reads what WriteRefs wrote.
func ReadRefs(r io.Reader) ([]uint32, error) {
	b, err := io.ReadAll(bufio.NewReader(r))
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if len(b) < refsHeader+4 || string(b[:8]) != refsMagic {
		return nil, fmt.Errorf("no refs start here: %w", ErrRefsDamaged)
	}
	body := b[:len(b)-4]
	if crc32.Checksum(body, castagnoli) != le.Uint32(b[len(body):]) {
		return nil, fmt.Errorf("checksum: %w", ErrRefsDamaged)
	}
	if v := le.Uint32(b[8:]); v != refsVersion {
		return nil, fmt.Errorf("refs version %d is not known (newest known: %d)", v, refsVersion)
	}
	n := int(le.Uint32(b[12:]))
	body = body[refsHeader:]
	if n > len(body) {
		return nil, fmt.Errorf("%d blocks in %d bytes: %w", n, len(body), ErrRefsDamaged)
	}
	blocks := make([]uint32, n)
	last := uint64(0)
	for i := range blocks {
		d, k := binary.Uvarint(body)
		if k <= 0 || d > 1<<32-1-last {
			return nil, fmt.Errorf("block %d: %w", i, ErrRefsDamaged)
		}
		last, body = last+d, body[k:]
		blocks[i] = uint32(last)
	}
	if len(body) > 0 {
		return nil, fmt.Errorf("%d bytes behind the last block: %w", len(body), ErrRefsDamaged)
	}
	return blocks, nil
}
