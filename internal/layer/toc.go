// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
)

// A TOC file, integers little-endian:
//
//	header   8 magic "SQSHTOC1", 4 version, 4 incompatible features (none)
//	frame    4 bytes of entries, 4 bytes stored, 4 CRC-32C of what is stored,
//	         then the entries, compressed as one zstd frame; whole entries only
//	 ...
//	end      4 zero, 4 length of the trailer, 4 CRC-32C of the trailer, then
//	trailer  8 entries, 8 sum of the sizes of regular files, 32 SHA-256 of all
//	         entries' bytes before compression
//
// An entry, in unsigned (u) and signed (s) varints; "str" is a u length and
// that many bytes:
//
//	1 type, str path, u mode, u uid, u gid, s mtime seconds, u nanoseconds,
//	u xattrs { str name, str value },
//	regular: u size, then the content (size <= 1024) or 32 digest
//	symlink, hardlink: str target;  devices: u major, u minor
//
// Whiteouts and opaque markers end behind the path.
const (
	tocMagic     = "SQSHTOC1"
	tocVersion   = 1
	frameTarget  = 256 << 10 // entries are gathered up to this many bytes
	frameMax     = 4 << 20   // bytes that a reader accepts in one frame
	trailerBytes = 8 + 8 + 32
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrDamaged marks a TOC whose bytes are not what was written.
var ErrDamaged = fmt.Errorf("TOC is damaged: %w", errdefs.ErrDataLoss)

// Summary is what a TOC's trailer says.
type Summary struct {
	Entries uint64
	Bytes   uint64 // sizes of the regular files, added up
	// Digest names the layer as it was taken in: the SHA-256 of the encoded
	// entries. It does not depend on how the TOC is compressed.
	Digest Digest
}

// Writer writes a TOC. It ends by Finish; a file whose writer did not finish
// is no TOC.
type Writer struct {
	w   *bufio.Writer
	enc *zstd.Encoder
	raw []byte
	out []byte
	sum hash.Hash
	sub Summary
	err error
}

// NewWriter starts a TOC.
func NewWriter(w io.Writer) (*Writer, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, fmt.Errorf("TOC: %w", err)
	}
	t := &Writer{w: bufio.NewWriterSize(w, 64<<10), enc: enc, sum: sha256.New()}
	head := append([]byte(tocMagic), make([]byte, 8)...)
	binary.LittleEndian.PutUint32(head[8:], tocVersion)
	_, t.err = t.w.Write(head)
	return t, t.err
}

// Add writes an entry. ErrInvalidArgument: no file system could show it.
func (t *Writer) Add(e *Entry) error {
	if t.err != nil {
		return t.err
	}
	if t.err = e.check(); t.err != nil {
		return t.err
	}
	t.raw = appendEntry(t.raw, e)
	t.sub.Entries++
	if e.Type == TypeReg {
		t.sub.Bytes += uint64(e.Size)
	}
	if len(t.raw) >= frameTarget {
		t.err = t.endFrame()
	}
	return t.err
}

func (t *Writer) endFrame() error {
	if len(t.raw) == 0 {
		return nil
	}
	t.sum.Write(t.raw)
	t.out = t.enc.EncodeAll(t.raw, t.out[:0])
	err := t.frame(len(t.raw), t.out)
	t.raw = t.raw[:0]
	return err
}

func (t *Writer) frame(raw int, stored []byte) error {
	var head [12]byte
	le := binary.LittleEndian
	le.PutUint32(head[0:], uint32(raw))
	le.PutUint32(head[4:], uint32(len(stored)))
	le.PutUint32(head[8:], crc32.Checksum(stored, castagnoli))
	_, err := t.w.Write(head[:])
	_, err1 := t.w.Write(stored)
	return errors.Join(err, err1)
}

// Finish writes the trailer and returns what it says.
func (t *Writer) Finish() (Summary, error) {
	if t.err != nil {
		return Summary{}, t.err
	}
	if t.err = t.endFrame(); t.err != nil {
		return Summary{}, t.err
	}
	t.sum.Sum(t.sub.Digest[:0])
	b := binary.LittleEndian.AppendUint64(nil, t.sub.Entries)
	b = binary.LittleEndian.AppendUint64(b, t.sub.Bytes)
	b = append(b, t.sub.Digest[:]...)
	if t.err = errors.Join(t.frame(0, b), t.w.Flush(), t.enc.Close()); t.err != nil {
		return Summary{}, fmt.Errorf("TOC: write: %w", t.err)
	}
	t.err = errors.New("TOC: writer is finished")
	return t.sub, nil
}

// Reader reads a TOC from its start to its end and checks it on the way.
type Reader struct {
	r      io.Reader
	dec    *zstd.Decoder
	stored []byte
	raw    []byte // rest of the current frame
	buf    []byte
	sum    hash.Hash
	got    Summary
	done   bool
	err    error
}

// NewReader starts reading. Errors that match ErrDamaged tell damage from
// trouble with reading.
func NewReader(r io.Reader) (*Reader, error) {
	head := make([]byte, 16)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, tocReadError(err)
	}
	if string(head[:8]) != tocMagic {
		return nil, fmt.Errorf("no TOC starts here: %w", ErrDamaged)
	}
	if v := binary.LittleEndian.Uint32(head[8:]); v != tocVersion {
		return nil, fmt.Errorf("TOC version %d is not known (newest known: %d)", v, tocVersion)
	}
	if f := binary.LittleEndian.Uint32(head[12:]); f != 0 {
		return nil, fmt.Errorf("TOC features %#x are not known", f)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(frameMax), zstd.IgnoreChecksum(true))
	if err != nil {
		return nil, fmt.Errorf("TOC: %w", err)
	}
	return &Reader{r: r, dec: dec, sum: sha256.New()}, nil
}

func tocReadError(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("file ends too early: %w", ErrDamaged)
	}
	return fmt.Errorf("TOC: read: %w", err)
}

// Next reads the next entry into e. After the last one, when the whole TOC
// proved to be sound, it returns io.EOF.
func (t *Reader) Next(e *Entry) error {
	for t.err == nil && len(t.raw) == 0 {
		t.err = t.nextFrame()
	}
	if t.err != nil {
		return t.err
	}
	var err error
	if t.raw, err = decodeEntry(t.raw, e); err == nil {
		err = e.check()
	}
	if err != nil {
		t.err = fmt.Errorf("entry %d: %w: %w", t.got.Entries, err, ErrDamaged)
		return t.err
	}
	t.got.Entries++
	if e.Type == TypeReg {
		t.got.Bytes += uint64(e.Size)
	}
	return nil
}

func (t *Reader) nextFrame() error {
	var head [12]byte
	if _, err := io.ReadFull(t.r, head[:]); err != nil {
		return tocReadError(err)
	}
	le := binary.LittleEndian
	raw, stored := le.Uint32(head[0:]), le.Uint32(head[4:])
	if raw > frameMax || stored > frameMax {
		return fmt.Errorf("frame of %d bytes: %w", max(raw, stored), ErrDamaged)
	}
	if cap(t.stored) < int(stored) {
		t.stored = make([]byte, stored)
	}
	b := t.stored[:stored]
	if _, err := io.ReadFull(t.r, b); err != nil {
		return tocReadError(err)
	}
	if crc32.Checksum(b, castagnoli) != le.Uint32(head[8:]) {
		return fmt.Errorf("frame checksum: %w", ErrDamaged)
	}
	if raw == 0 {
		return t.end(b)
	}
	var err error
	if t.buf, err = t.dec.DecodeAll(b, t.buf[:0]); err != nil || len(t.buf) != int(raw) {
		return fmt.Errorf("frame does not decode to %d bytes (%v): %w", raw, err, ErrDamaged)
	}
	t.sum.Write(t.buf)
	t.raw = t.buf
	return nil
}

func (t *Reader) end(trailer []byte) error {
	if len(trailer) != trailerBytes {
		return fmt.Errorf("trailer of %d bytes: %w", len(trailer), ErrDamaged)
	}
	t.sum.Sum(t.got.Digest[:0])
	want := decodeTrailer(trailer)
	if want != t.got {
		return fmt.Errorf("trailer speaks of %d entries, %d were read, or their digest differs: %w", want.Entries, t.got.Entries, ErrDamaged)
	}
	t.done = true
	return io.EOF
}

func decodeTrailer(b []byte) Summary {
	le := binary.LittleEndian
	return Summary{Entries: le.Uint64(b), Bytes: le.Uint64(b[8:]), Digest: Digest(b[16:48])}
}

// Close frees the reader's memory.
func (t *Reader) Close() {
	t.dec.Close()
	t.raw, t.buf, t.stored = nil, nil, nil
	if t.err == nil {
		t.err = errors.New("TOC: reader is closed")
	}
}

// ReadSummary reads the trailer alone, of a TOC of size bytes.
func ReadSummary(r io.ReaderAt, size int64) (Summary, error) {
	b := make([]byte, 12+trailerBytes)
	if size < int64(len(b)+16) {
		return Summary{}, fmt.Errorf("file of %d bytes: %w", size, ErrDamaged)
	}
	if _, err := r.ReadAt(b, size-int64(len(b))); err != nil {
		return Summary{}, tocReadError(err)
	}
	le := binary.LittleEndian
	if le.Uint32(b) != 0 || le.Uint32(b[4:]) != trailerBytes || le.Uint32(b[8:]) != crc32.Checksum(b[12:], castagnoli) {
		return Summary{}, fmt.Errorf("trailer: %w", ErrDamaged)
	}
	return decodeTrailer(b[12:]), nil
}

func appendEntry(b []byte, e *Entry) []byte {
	str := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	b = append(b, byte(e.Type))
	str(e.Path)
	if e.Type == TypeWhiteout || e.Type == TypeOpaque {
		return b
	}
	b = binary.AppendUvarint(b, uint64(e.Mode))
	b = binary.AppendUvarint(b, uint64(e.UID))
	b = binary.AppendUvarint(b, uint64(e.GID))
	b = binary.AppendVarint(b, e.Mtime)
	b = binary.AppendUvarint(b, uint64(e.MtimeNsec))
	b = binary.AppendUvarint(b, uint64(len(e.Xattrs)))
	for _, x := range e.Xattrs {
		str(x.Name)
		b = binary.AppendUvarint(b, uint64(len(x.Value)))
		b = append(b, x.Value...)
	}
	switch e.Type {
	case TypeReg:
		b = binary.AppendUvarint(b, uint64(e.Size))
		if e.Size <= InlineMax {
			b = append(b, e.Inline...)
		} else {
			b = append(b, e.Digest[:]...)
		}
	case TypeSymlink, TypeHardlink:
		str(e.Target)
	case TypeChar, TypeBlock:
		b = binary.AppendUvarint(b, uint64(e.Major))
		b = binary.AppendUvarint(b, uint64(e.Minor))
	}
	return b
}

// decodeEntry reads an entry from the front of b and returns the rest. What e
// holds afterwards does not refer to b.
func decodeEntry(b []byte, e *Entry) ([]byte, error) {
	d := decoder{b: b}
	*e = Entry{Type: Type(d.byte()), Path: d.string(maxPath)}
	if e.Type == TypeWhiteout || e.Type == TypeOpaque {
		return d.b, d.err
	}
	e.Mode, e.UID, e.GID = d.uint32(), d.uint32(), d.uint32()
	e.Mtime, e.MtimeNsec = d.varint(), d.uint32()
	if n := d.uvarint(); n > 0 && d.err == nil {
		if n > uint64(len(d.b))/2 || n > maxXattrs {
			return nil, errShort // each takes two bytes and has a name
		}
		e.Xattrs = make([]Xattr, n)
		for i := range e.Xattrs {
			e.Xattrs[i] = Xattr{d.string(maxXattrName), []byte(d.string(maxXattrValue))}
		}
	}
	switch e.Type {
	case TypeReg:
		size := d.uvarint()
		if size > 1<<63-1 {
			return nil, fmt.Errorf("size %d", size)
		}
		e.Size = int64(size)
		if size <= InlineMax {
			e.Inline = append([]byte(nil), d.bytes(size)...)
		} else {
			copy(e.Digest[:], d.bytes(32))
		}
	case TypeSymlink:
		e.Target = d.string(maxSymlink)
	case TypeHardlink:
		e.Target = d.string(maxPath)
	case TypeChar, TypeBlock:
		e.Major, e.Minor = d.uint32(), d.uint32()
	}
	return d.b, d.err
}

var errShort = errors.New("entry ends too early")

// decoder reads from the front of b; the first failure sticks.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
	d.b = nil
}

func (d *decoder) bytes(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.fail(errShort)
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) byte() byte {
	if v := d.bytes(1); v != nil {
		return v[0]
	}
	return 0
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail(errShort)
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail(errShort)
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) uint32() uint32 {
	v := d.uvarint()
	if v > 1<<32-1 {
		d.fail(fmt.Errorf("number %d out of range", v))
		return 0
	}
	return uint32(v)
}

func (d *decoder) string(limit uint64) string {
	n := d.uvarint()
	if n > limit {
		d.fail(fmt.Errorf("string of %d bytes", n))
		return ""
	}
	return string(d.bytes(n))
}
