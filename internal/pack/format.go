// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
)

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
//	24  4  incompatible features, a bit each
//	28  4  revision of the file (see span)
//	32  8  first generation that the file holds
//	40  8  last generation that the file holds
//	48  8  bytes of the auxiliary area behind the records
//	56  4  CRC-32C of records and auxiliary area
//	60  4  CRC-32C of bytes 0..59
//	64     records, in ascending order of their digests, none twice
const (
	indexMagic   = "SQSHINDX"
	indexVersion = 1
	headerSize   = 64
)

// Incompatible features of an index file.
const (
	featureClusters = 1 << 0 // some content is not plain
	knownFeatures   = featureClusters
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errDamaged marks an index file whose bytes are not what was written.
var errDamaged = errors.New("damaged")

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

// writeIndex writes an index file with sorted records, which it goes through
// twice: no more than their inputs are held.
func writeIndex(w io.Writer, g span, records iter.Seq[record]) error {
	var b [recordSize]byte
	var aux []byte
	features, sum, count := uint32(0), uint32(0), uint64(0)
	for r := range records {
		r.encode(b[:], len(aux))
		sum = crc32.Update(sum, castagnoli, b[:])
		aux = append(aux, r.place.inputs...)
		if r.place.Encoding != EncodingPlain {
			features |= featureClusters
		}
		count++
	}
	head := make([]byte, headerSize)
	le := binary.LittleEndian
	copy(head, indexMagic)
	le.PutUint32(head[8:], indexVersion)
	le.PutUint32(head[12:], recordSize)
	le.PutUint64(head[16:], count)
	le.PutUint32(head[24:], features)
	le.PutUint32(head[28:], g.revision)
	le.PutUint64(head[32:], g.first)
	le.PutUint64(head[40:], g.last)
	le.PutUint64(head[48:], uint64(len(aux)))
	le.PutUint32(head[56:], crc32.Update(sum, castagnoli, aux))
	le.PutUint32(head[60:], crc32.Checksum(head[:60], castagnoli))
	if _, err := w.Write(head); err != nil {
		return err
	}
	at := 0
	for r := range records {
		r.encode(b[:], at)
		at += len(r.place.inputs)
		if _, err := w.Write(b[:]); err != nil {
			return err
		}
	}
	_, err := w.Write(aux)
	return err
}

// parseIndex checks an index file's bytes and returns its records, encoded,
// and the auxiliary area. Damage is reported as errDamaged, a file of a newer
// version as itself.
func parseIndex(b []byte) (g span, records, aux []byte, err error) {
	bad := func(format string, args ...any) (span, []byte, []byte, error) {
		return span{}, nil, nil, fmt.Errorf(format, args...)
	}
	le := binary.LittleEndian
	if len(b) < headerSize || string(b[:8]) != indexMagic {
		return bad("not an index file: %w", errDamaged)
	}
	if got, want := crc32.Checksum(b[:60], castagnoli), le.Uint32(b[60:]); got != want {
		return bad("header checksum is %08x, not %08x: %w", got, want, errDamaged)
	}
	if v := le.Uint32(b[8:]); v != indexVersion {
		return bad("index version %d is not known (newest known: %d)", v, indexVersion)
	}
	features := le.Uint32(b[24:])
	if f := features &^ knownFeatures; f != 0 {
		return bad("index features %#x are not known", f)
	}
	g = span{le.Uint64(b[32:]), le.Uint64(b[40:]), le.Uint32(b[28:])}
	body := b[headerSize:]
	count, auxSize := le.Uint64(b[16:]), le.Uint64(b[48:])
	if le.Uint32(b[12:]) != recordSize || count > uint64(len(body))/recordSize || auxSize != uint64(len(body))-count*recordSize || g.first > g.last {
		return bad("%d records and %d bytes do not fit %d bytes: %w", count, auxSize, len(body), errDamaged)
	}
	if got, want := crc32.Checksum(body, castagnoli), le.Uint32(b[56:]); got != want {
		return bad("checksum of the records is %08x, not %08x: %w", got, want, errDamaged)
	}
	records, aux = body[:count*recordSize], body[count*recordSize:]
	used, inputs := uint32(0), uint64(0) // what the records need: features, bytes of aux
	for i := 0; i < len(records); i += recordSize {
		if i > 0 && bytes.Compare(records[i-recordSize:i-recordSize+DigestSize], records[i:i+DigestSize]) >= 0 {
			return bad("record %d is out of order: %w", i/recordSize, errDamaged)
		}
		p, err := decodePlacement(records[i:], aux)
		if err == nil {
			err = p.check()
		}
		if err != nil {
			return bad("record %d: %w", i/recordSize, err)
		}
		if p.Encoding != EncodingPlain {
			used |= featureClusters
		}
		if n := uint64(len(p.inputs)); n > 0 {
			if at := le.Uint64(records[i+56:]); at != inputs {
				return bad("record %d: its inputs are at %d, not behind the last ones at %d: %w", i/recordSize, at, inputs, errDamaged)
			}
			inputs += n
		}
	}
	if used != features || inputs != auxSize {
		return bad("features %#x and %d bytes of inputs are not the records' %#x and %d: %w", features, auxSize, used, inputs, errDamaged)
	}
	return g, records, aux, nil
}
