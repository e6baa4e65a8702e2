// SPDX-License-Identifier: Apache-2.0

package treetest

import (
	"archive/tar"
	"fmt"
	"strings"
)

// blockSize is the unit of the tar format in bytes.
const blockSize = 512

// rawHeader is a ustar header block for what archive/tar's writer refuses to
// write. Only numbers that fit their octal fields are supported.
type rawHeader struct {
	name     string // at most 100 bytes
	typeflag byte
	mode     int64
	size     int64 // of the data that follows, in bytes
	mtime    int64 // seconds
	linkname string
	major    int64
	minor    int64
	gnu      bool   // GNU magic instead of ustar
	oldGNU   []byte // bytes from offset 345 (GNU's sparse area), if any
}

func (h rawHeader) encode() []byte {
	b := make([]byte, blockSize)
	copy(b[0:100], h.name)
	octal(b[100:108], h.mode)
	octal(b[108:116], 0)
	octal(b[116:124], 0)
	octal(b[124:136], h.size)
	octal(b[136:148], h.mtime)
	b[156] = h.typeflag
	copy(b[157:257], h.linkname)
	if h.gnu {
		copy(b[257:265], "ustar  \x00")
	} else {
		copy(b[257:265], "ustar\x0000")
	}
	octal(b[329:337], h.major)
	octal(b[337:345], h.minor)
	copy(b[345:], h.oldGNU)
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// octal fills field with zero-padded digits and a final NUL. A negative value
// is encoded as GNU's base-256 two's complement.
func octal(field []byte, v int64) {
	if v >= 0 {
		copy(field, fmt.Sprintf("%0*o", len(field)-1, v))
		return
	}
	for i := len(field) - 1; i >= 0; i-- {
		field[i] = byte(v)
		v >>= 8
	}
	field[0] |= 0x80
}

// rawEntry is a header with its padded data.
func rawEntry(h rawHeader, data string) []byte {
	h.size = int64(len(data))
	return append(h.encode(), padded(data)...)
}

func padded(data string) []byte {
	b := []byte(data)
	return append(b, make([]byte, -len(b)&(blockSize-1))...)
}

// paxRecords encodes key, value pairs as extended header records.
func paxRecords(pairs ...string) string {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		rest := " " + pairs[i] + "=" + pairs[i+1] + "\n"
		n := len(rest)
		for digits := 1; ; digits++ { // the length counts its own digits
			if len(fmt.Sprint(n+digits)) == digits {
				n += digits
				break
			}
		}
		fmt.Fprintf(&b, "%d%s", n, rest)
	}
	return b.String()
}

// paxHeader is an extended header for the entry that follows.
func paxHeader(pairs ...string) []byte {
	return rawEntry(rawHeader{name: "PaxHeaders/x", typeflag: tar.TypeXHeader, mode: 0o644}, paxRecords(pairs...))
}

// sparsePAX10 is a regular file in GNU's PAX sparse format 1.0. Segments are
// offset, text pairs in ascending order; the rest of size bytes is zero.
func sparsePAX10(name string, size int64, segments ...sparseSegment) Step {
	var table strings.Builder
	fmt.Fprintf(&table, "%d\n", len(segments))
	var data strings.Builder
	for _, s := range segments {
		fmt.Fprintf(&table, "%d\n%d\n", s.offset, len(s.text))
		data.WriteString(s.text)
	}
	raw := paxHeader("GNU.sparse.major", "1", "GNU.sparse.minor", "0",
		"GNU.sparse.name", name, "GNU.sparse.realsize", fmt.Sprint(size))
	raw = append(raw, rawEntry(rawHeader{name: "GNUSparseFile.0/x", typeflag: tar.TypeReg, mode: 0o644, mtime: defaultMtime},
		string(padded(table.String()))+data.String())...)
	return Raw(raw)
}

// sparsePAX01 is the same in format 0.1, whose map is in the extended header.
func sparsePAX01(name string, size int64, segments ...sparseSegment) Step {
	var table []string
	var data strings.Builder
	for _, s := range segments {
		table = append(table, fmt.Sprint(s.offset), fmt.Sprint(len(s.text)))
		data.WriteString(s.text)
	}
	raw := paxHeader("GNU.sparse.major", "0", "GNU.sparse.minor", "1",
		"GNU.sparse.name", name, "GNU.sparse.size", fmt.Sprint(size),
		"GNU.sparse.numblocks", fmt.Sprint(len(segments)), "GNU.sparse.map", strings.Join(table, ","))
	raw = append(raw, rawEntry(rawHeader{name: "GNUSparseFile.0/x", typeflag: tar.TypeReg, mode: 0o644, mtime: defaultMtime},
		data.String())...)
	return Raw(raw)
}

// sparsePAX00 is the same in format 0.0, whose map is a pair of records for
// each segment.
func sparsePAX00(name string, size int64, segments ...sparseSegment) Step {
	records := []string{"GNU.sparse.size", fmt.Sprint(size), "GNU.sparse.numblocks", fmt.Sprint(len(segments))}
	var data strings.Builder
	for _, s := range segments {
		records = append(records, "GNU.sparse.offset", fmt.Sprint(s.offset), "GNU.sparse.numbytes", fmt.Sprint(len(s.text)))
		data.WriteString(s.text)
	}
	return Raw(append(paxHeader(records...),
		rawEntry(rawHeader{name: name, typeflag: tar.TypeReg, mode: 0o644, mtime: defaultMtime}, data.String())...))
}

// sparseGNU is the old GNU format with type flag 'S'.
func sparseGNU(name string, size int64, segment sparseSegment) Step {
	area := make([]byte, blockSize-345)
	octal(area[386-345:398-345], segment.offset)
	octal(area[398-345:410-345], int64(len(segment.text)))
	octal(area[483-345:495-345], size)
	return Raw(rawEntry(rawHeader{name: name, typeflag: tar.TypeGNUSparse, mode: 0o644, mtime: defaultMtime,
		gnu: true, oldGNU: area}, segment.text))
}

// sparseSegment is a run of data in a sparse file.
type sparseSegment struct {
	offset int64
	text   string
}
