// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
)

func TestRandomEntriesComeBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, 10, 5000} { // the last one makes several frames
		want := make([]Entry, n)
		sum := sha256.New()
		var bytes uint64
		for i := range want {
			want[i] = randomEntry(rng)
			sum.Write(appendEntry(nil, &want[i]))
			if want[i].Type == TypeReg {
				bytes += uint64(want[i].Size)
			}
		}
		toc, summary := encode(t, want...)
		got, err := decode(toc)
		if err != nil || !equal(got, want) {
			t.Errorf("%d entries: came back as %d, equal: %t, %v", n, len(got), equal(got, want), err)
		}
		if want := (Summary{uint64(n), bytes, Digest(sum.Sum(nil))}); summary != want {
			t.Errorf("%d entries: summary %+v, want %+v", n, summary, want)
		}
	}
}

// sample has an entry of each type with every field set.
func sample() []Entry {
	xs := []Xattr{{"security.capability", []byte{1, 0, 2}}, {"user.a", []byte("value")}, {"user.empty", nil}}
	return []Entry{
		{Type: TypeDir, Path: "", Mode: 0o755, Mtime: 1},
		{Type: TypeDir, Path: "etc", Mode: 0o1777, UID: 1, GID: 2, Mtime: 1_600_000_000, MtimeNsec: 999_999_999, Xattrs: xs},
		{Type: TypeOpaque, Path: "etc"},
		{Type: TypeReg, Path: "etc/empty", Mode: 0o644},
		{Type: TypeReg, Path: "etc/small", Mode: 0o4755, UID: math.MaxUint32, GID: math.MaxUint32, Mtime: -5, MtimeNsec: 1, Size: 5, Inline: []byte("hello"), Xattrs: xs[1:2]},
		{Type: TypeReg, Path: "etc/large", Mode: 0o600, Size: 1 << 40, Digest: sha256.Sum256([]byte("large"))},
		{Type: TypeSymlink, Path: "etc/link", Mode: 0o777, Target: "../some/where"},
		{Type: TypeHardlink, Path: "etc/other", Mode: 0o600, Target: "etc/large"},
		{Type: TypeChar, Path: "dev/null", Mode: 0o666, Major: 1, Minor: 3},
		{Type: TypeBlock, Path: "dev/b", Mode: 0o660, Major: 4095, Minor: 1<<20 - 1},
		{Type: TypeFifo, Path: "run/fifo", Mode: 0o600},
		{Type: TypeSocket, Path: "run/socket", Mode: 0o600},
		{Type: TypeWhiteout, Path: "usr/gone"},
		{Type: TypeReg, Path: "\xff\xfe \n", Mode: 0o644, Size: 1024, Inline: bytes.Repeat([]byte("0123456789abcdef"), 64)},
	}
}

// The format: this digest may only change together with tocVersion. It does
// not depend on the compressor.
func TestTOCDigest(t *testing.T) {
	_, summary := encode(t, sample()...)
	const want = "96b25cbede256727878a86476a218f4331d025af4f63428c900986fc4cf1874b"
	if got := hex.EncodeToString(summary.Digest[:]); got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
	var raw []byte
	entries := sample()
	for i := range entries {
		raw = appendEntry(raw, &entries[i])
	}
	if summary.Digest != sha256.Sum256(raw) {
		t.Errorf("digest is not that of the encoded entries")
	}
}

// sealed makes a TOC of frames whose checksums are right.
func sealed(frames ...[]byte) []byte {
	b := append([]byte(tocMagic), 1, 0, 0, 0, 0, 0, 0, 0)
	for _, f := range frames {
		b = append(b, f...)
	}
	return b
}

func frameOf(raw uint32, stored []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, raw)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(stored)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(stored, castagnoli))
	return append(b, stored...)
}

func compress(raw []byte) []byte {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	defer enc.Close()
	return enc.EncodeAll(raw, nil)
}

// entriesFrame holds encoded entries; endFrame is the trailer that fits them.
func entriesFrame(raw []byte) []byte { return frameOf(uint32(len(raw)), compress(raw)) }

func endFrame(entries, size uint64, raw []byte) []byte {
	b := binary.LittleEndian.AppendUint64(nil, entries)
	b = binary.LittleEndian.AppendUint64(b, size)
	sum := sha256.Sum256(raw)
	return frameOf(0, append(b, sum[:]...))
}

// hostile are TOCs that must be refused, by what is wrong with them.
func hostile() map[string][]byte {
	entry := func(e Entry) []byte { return appendEntry(nil, &e) }
	one := func(raw []byte) []byte { return sealed(entriesFrame(raw), endFrame(1, 0, raw)) }
	str := func(s string) []byte { return append(binary.AppendUvarint(nil, uint64(len(s))), s...) }
	dir := entry(Entry{Type: TypeDir, Path: "d", Mode: 0o755})
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	huge := binary.AppendUvarint(nil, 1<<63)
	return map[string][]byte{
		"empty":                 nil,
		"header-alone":          sealed(),
		"magic":                 append([]byte("SQSHTOC2"), make([]byte, 8)...),
		"no-trailer":            sealed(entriesFrame(dir)),
		"trailer-short":         sealed(frameOf(0, make([]byte, trailerBytes-1))),
		"trailer-long":          sealed(frameOf(0, make([]byte, trailerBytes+1))),
		"trailer-count":         sealed(entriesFrame(dir), endFrame(2, 0, dir)),
		"trailer-bytes":         sealed(entriesFrame(dir), endFrame(1, 1, dir)),
		"trailer-digest":        sealed(entriesFrame(dir), endFrame(1, 0, append(dir, 0))),
		"frame-too-large":       sealed(binary.LittleEndian.AppendUint64(nil, frameMax+1), make([]byte, 4)),
		"stored-too-large":      sealed([]byte{1, 0, 0, 0}, binary.LittleEndian.AppendUint32(nil, math.MaxUint32), make([]byte, 4)),
		"frame-not-zstd":        sealed(frameOf(3, []byte("abc"))),
		"frame-bomb":            sealed(frameOf(100, compress(make([]byte, 64<<20)))),
		"frame-shorter":         sealed(frameOf(uint32(len(dir)+1), compress(dir)), endFrame(1, 0, dir)),
		"entry-cut":             one(dir[:len(dir)-1]),
		"entry-type-0":          one(cat([]byte{0}, dir[1:])),
		"entry-type-unknown":    one(cat([]byte{byte(typeEnd)}, dir[1:])),
		"path-absolute":         one(cat([]byte{1}, str("/etc"), dir[3:])),
		"path-dotdot":           one(cat([]byte{1}, str("a/../../etc"), dir[3:])),
		"path-dot":              one(cat([]byte{1}, str("./a"), dir[3:])),
		"path-double-slash":     one(cat([]byte{1}, str("a//b"), dir[3:])),
		"path-trailing-slash":   one(cat([]byte{1}, str("a/"), dir[3:])),
		"path-nul":              one(cat([]byte{1}, str("a\x00b"), dir[3:])),
		"path-long-name":        one(cat([]byte{1}, str(strings.Repeat("n", 256)), dir[3:])),
		"path-huge":             one(cat([]byte{1}, huge)),
		"path-over-64k":         one(cat([]byte{1}, str(strings.Repeat("n/", 40_000)+"n"), dir[3:])),
		"root-file":             one(cat([]byte{byte(TypeFifo)}, str(""), dir[3:])),
		"mode-type-bits":        one(cat(dir[:3], binary.AppendUvarint(nil, 0o100644), []byte{0, 0, 0, 0, 0})),
		"uid-over-32-bit":       one(cat(dir[:3], []byte{0}, binary.AppendUvarint(nil, 1<<32), []byte{0, 0, 0, 0})),
		"nanoseconds":           one(cat(dir[:3], []byte{0, 0, 0, 0}, binary.AppendUvarint(nil, 1e9), []byte{0})),
		"xattr-count-huge":      one(cat(dir[:3], []byte{0, 0, 0, 0, 0}, huge)),
		"xattr-count-past-data": one(cat(dir[:3], []byte{0, 0, 0, 0, 0, 2, 1, 'a', 0})),
		"xattr-no-name":         one(cat(dir[:3], []byte{0, 0, 0, 0, 0, 1, 0, 0})),
		"xattr-many":            one(cat(dir[:3], []byte{0, 0, 0, 0, 0}, binary.AppendUvarint(nil, 1<<20), bytes.Repeat([]byte{1, 'a', 0}, 1<<20))),
		"size-negative":         one(cat([]byte{2}, str("f"), []byte{0, 0, 0, 0, 0, 0}, huge, make([]byte, 32))),
		"content-cut":           one(cat([]byte{2}, str("f"), []byte{0, 0, 0, 0, 0, 0}, []byte{100}, make([]byte, 99))),
		"digest-cut":            one(cat([]byte{2}, str("f"), []byte{0, 0, 0, 0, 0, 0}, binary.AppendUvarint(nil, 5000), make([]byte, 31))),
		"symlink-empty":         one(cat([]byte{3}, str("f"), []byte{0, 0, 0, 0, 0, 0}, str(""))),
		"symlink-long":          one(cat([]byte{3}, str("f"), []byte{0, 0, 0, 0, 0, 0}, str(strings.Repeat("t", 4096)))),
		"hardlink-empty":        one(cat([]byte{4}, str("f"), []byte{0, 0, 0, 0, 0, 0}, str(""))),
		"hardlink-outside":      one(cat([]byte{4}, str("f"), []byte{0, 0, 0, 0, 0, 0}, str("../f"))),
		"varint-endless":        one(append([]byte{1}, bytes.Repeat([]byte{0xff}, 20)...)),
	}
}

func TestHostileTOCsAreRefused(t *testing.T) {
	// The helpers above make a good TOC of good parts.
	dir := appendEntry(nil, &Entry{Type: TypeDir, Path: "d", Mode: 0o755})
	if all, err := decode(sealed(entriesFrame(dir), endFrame(1, 0, dir))); err != nil || len(all) != 1 {
		t.Fatalf("good TOC: %d entries, %v", len(all), err)
	}
	for name, toc := range hostile() {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := decode(toc)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, ErrDamaged) || !errdefs.IsDataLoss(err) {
				t.Errorf("error %v, want ErrDamaged", err)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 24<<20 {
				t.Errorf("%d MiB were allocated for it", used>>20)
			}
		})
	}
}

func TestNewerTOCIsNotTakenForDamage(t *testing.T) {
	toc, _ := encode(t, sample()...)
	for at, name := range map[int]string{8: "version", 12: "features"} {
		b := bytes.Clone(toc)
		b[at] = 2
		if _, err := decode(b); err == nil || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "not known") {
			t.Errorf("%s 2: error %v", name, err)
		}
	}
}

func TestNoFlippedByteGivesOtherEntries(t *testing.T) {
	want := sample()
	toc, _ := encode(t, want...)
	for i := range toc {
		for _, mask := range []byte{1 << (i % 8), 0xff} {
			toc[i] ^= mask
			got, err := decode(toc)
			if err == nil && !equal(got, want) {
				t.Errorf("byte %d ^ %#x: other entries and no error", i, mask)
			}
			if i >= 16 && err == nil {
				t.Errorf("byte %d ^ %#x: not noticed", i, mask)
			}
			toc[i] ^= mask
		}
	}
}

func TestTruncatedTOCIsDamaged(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var entries []Entry
	for range 1200 {
		entries = append(entries, randomEntry(rng))
	}
	short, _ := encode(t, sample()...)
	long, _ := encode(t, entries...)
	for _, toc := range [][]byte{short, long} {
		for n := 0; n < len(toc); n += max(1, len(toc)/400) {
			if _, err := decode(toc[:n]); !errors.Is(err, ErrDamaged) {
				t.Errorf("%d bytes of %d: error %v", n, len(toc), err)
			}
			if _, err := ReadSummary(bytes.NewReader(toc[:n]), int64(n)); !errors.Is(err, ErrDamaged) {
				t.Errorf("summary of %d bytes of %d: error %v", n, len(toc), err)
			}
		}
	}
}

func TestSummaryIsReadFromTheEnd(t *testing.T) {
	toc, want := encode(t, sample()...)
	got, err := ReadSummary(bytes.NewReader(toc), int64(len(toc)))
	if err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for i := len(toc) - trailerBytes - 12; i < len(toc); i++ {
		toc[i] ^= 4
		if got, err := ReadSummary(bytes.NewReader(toc), int64(len(toc))); !errors.Is(err, ErrDamaged) {
			t.Errorf("byte %d flipped: %+v, %v", i, got, err)
		}
		toc[i] ^= 4
	}
	if _, err := ReadSummary(bytes.NewReader(toc), int64(len(toc))+1); !errors.Is(err, ErrDamaged) {
		t.Errorf("size too large: %v", err)
	}
}

func TestErrorsOfReadingAreNoDamage(t *testing.T) {
	broken := errors.New("the disk is on fire")
	toc, _ := encode(t, sample()...)
	for _, n := range []int{0, 8, 16, 20, 40, len(toc) - 5} {
		r, err := NewReader(&failingReader{b: toc[:n], err: broken})
		for err == nil {
			var e Entry
			err = r.Next(&e)
		}
		if !errors.Is(err, broken) || errors.Is(err, ErrDamaged) {
			t.Errorf("after %d bytes: error %v", n, err)
		}
	}
}

// failingReader yields b, then err.
type failingReader struct {
	b   []byte
	err error
}

func (r *failingReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, r.err
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}

type failingWriter struct {
	room int
	err  error
}

func (w *failingWriter) Write(p []byte) (int, error) {
	if w.room -= len(p); w.room < 0 {
		return 0, w.err
	}
	return len(p), nil
}

func TestErrorsOfWritingStick(t *testing.T) {
	full := errors.New("disk full")
	rng := rand.New(rand.NewPCG(5, 6))
	w, err := NewWriter(&failingWriter{100 << 10, full})
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < 20_000 && err == nil; i++ {
		e := randomEntry(rng)
		err = w.Add(&e)
	}
	if !errors.Is(err, full) {
		t.Fatalf("Add: %v", err)
	}
	if _, err := w.Finish(); !errors.Is(err, full) {
		t.Errorf("Finish: %v", err)
	}
	w, err = NewWriter(&failingWriter{0, full})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(); !errors.Is(err, full) {
		t.Errorf("Finish: %v", err)
	}
}

func TestWriterEndsByFinish(t *testing.T) {
	var b bytes.Buffer
	w, err := NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	if err := w.Add(&Entry{Type: TypeDir, Path: "a"}); err == nil {
		t.Error("Add after Finish: no error")
	}
	if _, err := w.Finish(); err == nil {
		t.Error("second Finish: no error")
	}
}

func TestEntriesThatNoFileSystemCouldShow(t *testing.T) {
	for name, e := range map[string]Entry{
		"no type":              {Path: "a"},
		"unknown type":         {Type: typeEnd, Path: "a"},
		"path ..":              {Type: TypeDir, Path: ".."},
		"path not clean":       {Type: TypeDir, Path: "a/./b"},
		"file as root":         {Type: TypeReg},
		"whiteout of the root": {Type: TypeWhiteout},
		"long name":            {Type: TypeDir, Path: "a/" + strings.Repeat("n", 256)},
		"mode":                 {Type: TypeDir, Path: "a", Mode: 0o10000},
		"nanoseconds":          {Type: TypeDir, Path: "a", MtimeNsec: 1e9},
		"negative size":        {Type: TypeReg, Path: "a", Size: -1},
		"inline is short":      {Type: TypeReg, Path: "a", Size: 2, Inline: []byte("x")},
		"inline of a large":    {Type: TypeReg, Path: "a", Size: 1025, Inline: make([]byte, 1025)},
		"xattr without name":   {Type: TypeDir, Path: "a", Xattrs: []Xattr{{"", nil}}},
		"xattr name":           {Type: TypeDir, Path: "a", Xattrs: []Xattr{{strings.Repeat("n", 256), nil}}},
		"xattr value":          {Type: TypeDir, Path: "a", Xattrs: []Xattr{{"user.a", make([]byte, 65536)}}},
		"xattrs in sum":        {Type: TypeDir, Path: "a", Xattrs: []Xattr{{"user.a", make([]byte, 40_000)}, {"user.b", make([]byte, 40_000)}}},
		"symlink to nothing":   {Type: TypeSymlink, Path: "a"},
		"long symlink":         {Type: TypeSymlink, Path: "a", Target: strings.Repeat("t", 4096)},
		"hardlink to the root": {Type: TypeHardlink, Path: "a"},
		"hardlink outside":     {Type: TypeHardlink, Path: "a", Target: "../b"},
	} {
		w, err := NewWriter(&bytes.Buffer{})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Add(&e); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: error %v, want ErrInvalidArgument", name, err)
		}
		if err := w.Add(&Entry{Type: TypeDir, Path: "b"}); err == nil {
			t.Errorf("%s: the error does not stick", name)
		}
	}
}

func FuzzReader(f *testing.F) {
	good, _ := encode(f, sample()...)
	f.Add(good)
	for _, toc := range hostile() {
		if len(toc) < 10_000 {
			f.Add(toc)
		}
	}
	f.Fuzz(func(t *testing.T, toc []byte) {
		got, err := decode(toc)
		if err != nil {
			return
		}
		again, _ := encode(t, got...)
		if back, err := decode(again); err != nil || !equal(back, got) {
			t.Errorf("accepted entries do not come back: %v", err)
		}
	})
}

func FuzzDecodeEntry(f *testing.F) {
	for _, e := range sample() {
		f.Add(appendEntry(nil, &e))
	}
	rng := rand.New(rand.NewPCG(8, 9))
	for range 20 {
		e := randomEntry(rng)
		f.Add(appendEntry(nil, &e))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var e, again Entry
		rest, err := decodeEntry(b, &e)
		if err != nil {
			return
		}
		if len(rest) >= len(b) || !bytes.HasSuffix(b, rest) {
			t.Fatalf("%d bytes, %d are left", len(b), len(rest))
		}
		enc := appendEntry(nil, &e)
		if len(enc) > len(b)-len(rest) {
			t.Errorf("%d bytes were read, encoded again it is %d", len(b)-len(rest), len(enc))
		}
		if left, err := decodeEntry(enc, &again); err != nil || len(left) > 0 || !equal([]Entry{e}, []Entry{again}) {
			t.Errorf("%s\ncomes back as\n%s (%v)", brief(e), brief(again), err)
		}
		_ = fmt.Sprint(e.check())
	})
}
