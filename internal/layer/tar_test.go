// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// take reads a tar stream.
func take(t testing.TB, ctx context.Context, r io.Reader, store ContentStore) ([]Entry, error) {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	if err := FromTar(ctx, r, w, store); err != nil {
		return nil, err
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	all, err := decode(b.Bytes())
	if err != nil {
		t.Fatalf("the TOC does not read back: %v", err)
	}
	return all, nil
}

// member is a header with what follows it.
type member struct {
	tar.Header
	body string
}

func archive(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		if m.Size == 0 {
			m.Size = int64(len(m.body))
		}
		if err := w.WriteHeader(&m.Header); err != nil {
			t.Fatalf("header %q: %v", m.Name, err)
		}
		if _, err := io.WriteString(w, m.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, body string) member {
	return member{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, body}
}

func xattrs(pairs ...string) member {
	m := member{tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755, PAXRecords: map[string]string{}}, ""}
	for i := 0; i < len(pairs); i += 2 {
		m.PAXRecords["SCHILY.xattr."+pairs[i]] = pairs[i+1]
	}
	return m
}

// acl encodes pairs of tag and permissions.
func acl(pairs ...uint16) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for i := 0; i < len(pairs); i += 2 {
		b = binary.LittleEndian.AppendUint16(b, pairs[i])
		b = binary.LittleEndian.AppendUint16(b, pairs[i+1])
		b = binary.LittleEndian.AppendUint32(b, math.MaxUint32)
	}
	return string(b)
}

func capabilities(revision byte, size int) string {
	return string(append([]byte{1, 0, 0, revision}, make([]byte, size-4)...))
}

func TestEntriesOfATar(t *testing.T) {
	long := strings.Repeat("long/", 60) + "name"
	hdr := func(h tar.Header) member { return member{h, ""} }
	at := func(sec, nsec int64) member {
		return hdr(tar.Header{Typeflag: tar.TypeDir, Name: "d", ModTime: time.Unix(sec, nsec), Format: tar.FormatPAX})
	}
	for _, c := range []struct {
		name string
		m    member
		want string // "" for an entry that says nothing
	}{
		{"regular file", file("a/b", "hello"), `reg "a/b" size 5 644 0:0 0.0`},
		{"empty file", file("a", ""), `reg "a" size 0 644 0:0 0.0`},
		{"absolute name", file("/etc/passwd", ""), `reg "etc/passwd" size 0 644 0:0 0.0`},
		{"name with dots", file("./a/.//b/../c", ""), `reg "a/c" size 0 644 0:0 0.0`},
		{"name that leads outside", file("../../../x", ""), `reg "x" size 0 644 0:0 0.0`},
		{"long name", file(long, ""), `reg "` + long + `" size 0 644 0:0 0.0`},
		{"longest path", file(strings.Repeat("d/", 2047)+"f", ""), `reg "` + strings.Repeat("d/", 2047) + `f" size 0 644 0:0 0.0`},
		{"name of odd bytes", file("\xff\n\\", ""), `reg "\xff\n\\" size 0 644 0:0 0.0`},
		{"directory", hdr(tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o1777, Uid: 1, Gid: 2}), `dir "d" 1777 1:2 0.0`},
		{"mode with type bits", hdr(tar.Header{Typeflag: tar.TypeDir, Name: "d", Mode: 0o46755}), `dir "d" 6755 0:0 0.0`},
		{"the root", hdr(tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o700}), ""},
		{"the root, by dots", hdr(tar.Header{Typeflag: tar.TypeDir, Name: "a/../..", Mode: 0o700}), ""},
		{"symlink", hdr(tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "../../outside/./x/"}), `symlink "l" to "../../outside/./x/" 0 0:0 0.0`},
		{"hardlink", hdr(tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: "/../a//b", Mode: 0o600}), `hardlink "l" to "a/b" 600 0:0 0.0`},
		{"char device", hdr(tar.Header{Typeflag: tar.TypeChar, Name: "c", Devmajor: 1, Devminor: 3}), `char "c" 1:3 0 0:0 0.0`},
		{"block device", hdr(tar.Header{Typeflag: tar.TypeBlock, Name: "b", Devmajor: 8, Devminor: 1}), `block "b" 8:1 0 0:0 0.0`},
		{"device numbers are cut as mknod does", hdr(tar.Header{Typeflag: tar.TypeChar, Name: "c", Devmajor: 4097, Devminor: 1<<20 + 2, Format: tar.FormatGNU}), `char "c" 1:2 0 0:0 0.0`},
		{"fifo", hdr(tar.Header{Typeflag: tar.TypeFifo, Name: "p", Mode: 0o600}), `fifo "p" 600 0:0 0.0`},
		{"whiteout", file("a/.wh.b", ""), `whiteout "a/b"`},
		{"whiteout at the top", file(".wh.b", ""), `whiteout "b"`},
		{"whiteout as a directory", hdr(tar.Header{Typeflag: tar.TypeDir, Name: "a/.wh.b/"}), `whiteout "a/b"`},
		{"whiteout of a name like a whiteout's", file("a/.wh..wh.plnk", ""), `whiteout "a/.wh.plnk"`},
		{"opaque directory", file("a/b/.wh..wh..opq", ""), `opaque "a/b"`},
		{"opaque root", file(".wh..wh..opq", ""), `opaque ""`},
		{"file below a name like a whiteout's", file("a/.wh.d/f", ""), `reg "a/.wh.d/f" size 0 644 0:0 0.0`},
		{"names almost like a whiteout's", file("a/.whx", ""), `reg "a/.whx" size 0 644 0:0 0.0`},
		{"global header", hdr(tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"uid": "5"}}), ""},
		{"nanoseconds", at(1_600_000_000, 123_456_789), `dir "d" 0 0:0 1600000000.123456789`},
		{"last time", at(0, math.MaxInt64), `dir "d" 0 0:0 9223372036.854775807`},
		{"time too late", at(9223372036, 854_775_808), `dir "d" 0 0:0 0.0`},
		{"time before 1970", at(-1, 500_000_000), `dir "d" 0 0:0 0.0`},
		{"owner -1", hdr(tar.Header{Typeflag: tar.TypeDir, Name: "d", Uid: math.MaxUint32, Gid: math.MaxUint32}), `dir "d" 0 4294967295:4294967295 0.0`},
		{"owner over 32 bit", hdr(tar.Header{Typeflag: tar.TypeDir, Name: "d", Uid: 1<<32 + 5, Gid: 1<<33 + 6}), `dir "d" 0 5:6 0.0`},
		{"xattrs, sorted", xattrs("user.b", "2", "security.x", "\x00\xff", "user.a", "1", "user.d", "", "user.c", "", "user.e", ""), `dir "d" 755 0:0 0.0 security.x="\x00\xff" user.a="1" user.b="2" user.c="" user.d="" user.e=""`},
		{"xattrs that are not an image's", xattrs("trusted.overlay.opaque", "y", "trusted.x", "1", "system.x", "1", "plain", "1", "user.", "1", "security.", "1"), `dir "d" 755 0:0 0.0`},
		{"overlay xattrs of the user class are ordinary", xattrs("user.overlay.opaque", "y"), `dir "d" 755 0:0 0.0 user.overlay.opaque="y"`},
		{"ACL", xattrs(ACLAccess, acl(1, 7, 2, 5, 4, 5, 0x10, 7, 0x20, 0)), `dir "d" 755 0:0 0.0 system.posix_acl_access="` + strings.ReplaceAll(quote(acl(1, 7, 2, 5, 4, 5, 0x10, 7, 0x20, 0)), "\"", "") + `"`},
		{"ACL without entries", xattrs(ACLDefault, acl()), `dir "d" 755 0:0 0.0`},
		{"capability, revision 2", xattrs("security.capability", capabilities(2, 20)), `dir "d" 755 0:0 0.0 security.capability=` + quote(capabilities(2, 20))},
		{"capability, revision 3", xattrs("security.capability", capabilities(3, 24)), `dir "d" 755 0:0 0.0 security.capability=` + quote(capabilities(3, 24))},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := take(t, t.Context(), bytes.NewReader(archive(t, c.m)), &memoryStore{})
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case c.want == "" && len(got) != 0:
				t.Errorf("got %s, want nothing", brief(got[0]))
			case c.want != "" && (len(got) != 1 || brief(got[0]) != c.want):
				t.Errorf("got %d entries: %s\nwant %s", len(got), brief(slices.Concat(got, []Entry{{}})[0]), c.want)
			}
		})
	}
}

func quote(s string) string {
	e := Entry{Type: TypeDir, Xattrs: []Xattr{{"", []byte(s)}}}
	_, q, _ := strings.Cut(brief(e), " =")
	return q
}

func TestTarEntriesThatAreRefused(t *testing.T) {
	hdr := func(h tar.Header) member { return member{h, ""} }
	for _, c := range []struct {
		name string
		m    member
	}{
		{"whiteout of nothing", file("a/.wh.", "")},
		{"whiteout of .", file("a/.wh..", "")},
		{"whiteout of ..", file("a/.wh...", "")},
		{"name of 256 bytes", file(strings.Repeat("n", 256), "")},
		{"path of 4096 bytes", file(strings.Repeat("d/", 2048)+"f", "")},
		{"hardlink to a path of 4096 bytes", hdr(tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: strings.Repeat("d/", 2048)})},
		{"symlink to nothing", hdr(tar.Header{Typeflag: tar.TypeSymlink, Name: "l"})},
		{"symlink of 4096 bytes", hdr(tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: strings.Repeat("t", 4096)})},
		{"hardlink to nothing", hdr(tar.Header{Typeflag: tar.TypeLink, Name: "l"})},
		{"hardlink to the root", hdr(tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: "/."})},
		{"negative device number", hdr(tar.Header{Typeflag: tar.TypeChar, Name: "c", Devmajor: -1, Format: tar.FormatGNU})},
		{"device number over 32 bit", hdr(tar.Header{Typeflag: tar.TypeBlock, Name: "c", Devminor: 1 << 32, Format: tar.FormatGNU})},
		{"unknown type", hdr(tar.Header{Typeflag: 'Z', Name: "z"})},
		{"capability of revision 1", xattrs("security.capability", capabilities(1, 12))},
		{"capability of a wrong size", xattrs("security.capability", capabilities(2, 24))},
		{"capability of no bytes", xattrs("security.capability", "abc")},
		{"ACL of version 1", xattrs(ACLAccess, "\x01\x00\x00\x00"+acl(1, 7, 4, 5, 0x20, 0)[4:])},
		{"ACL that is cut", xattrs(ACLAccess, acl(1, 7, 4, 5, 0x20, 0)[:27])},
		{"ACL with names and no mask", xattrs(ACLAccess, acl(1, 7, 2, 7, 4, 5, 0x20, 0))},
		{"ACL out of order", xattrs(ACLAccess, acl(4, 5, 1, 7, 0x20, 0))},
		{"ACL without others", xattrs(ACLDefault, acl(1, 7, 4, 5))},
		{"ACL with two owners", xattrs(ACLDefault, acl(1, 7, 1, 7, 4, 5, 0x20, 0))},
		{"ACL with an unknown tag", xattrs(ACLDefault, acl(1, 7, 3, 7, 4, 5, 0x10, 7, 0x20, 0))},
		{"ACL with an unknown permission", xattrs(ACLDefault, acl(1, 8, 4, 5, 0x20, 0))},
		{"xattr value of 64 KiB", xattrs("user.a", strings.Repeat("v", 65536))},
		{"xattrs of more than 64 KiB", xattrs("user.a", strings.Repeat("v", 40_000), "user.b", strings.Repeat("v", 40_000))},
		{"xattr name of 256 bytes", xattrs("user."+strings.Repeat("n", 251), "")},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := take(t, t.Context(), bytes.NewReader(archive(t, c.m)), &memoryStore{})
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("error %v, want ErrInvalidArgument", err)
			}
		})
	}
}

func TestContentsOfATar(t *testing.T) {
	var members []member
	bodies := map[string]string{}
	for i, n := range []int{0, 1, 1023, 1024, 1025, 4096, 3 << 20} {
		body := strings.Repeat(string(rune('a'+i)), n)
		name := strings.Repeat("f", i+1)
		members, bodies[name] = append(members, file(name, body)), body
	}
	members = append(members, file("again", bodies["fffff"]))
	bodies["again"] = bodies["fffff"]
	stream := bytes.NewReader(append(archive(t, members...), "padding behind the end"...))
	store := &memoryStore{}
	got, err := take(t, t.Context(), stream, store)
	if err != nil || len(got) != len(members) {
		t.Fatalf("%d entries, %v", len(got), err)
	}
	if rest, _ := io.ReadAll(stream); string(rest) != "padding behind the end" {
		t.Errorf("%q is left in the stream", rest)
	}
	for _, e := range got {
		body := bodies[e.Path]
		have := string(e.Inline)
		if len(body) > InlineMax {
			have = string(store.contents[e.Digest])
		} else if e.Digest != (Digest{}) {
			t.Errorf("%s: inline and a digest", e.Path)
		}
		if have != body || e.Size != int64(len(body)) {
			t.Errorf("%s: size %d, content of %d bytes; want %d", e.Path, e.Size, len(have), len(body))
		}
	}
	if len(store.contents) != 3 {
		t.Errorf("%d contents in the store, want 3", len(store.contents))
	}
}

func TestBrokenTarStreams(t *testing.T) {
	whole := archive(t, file("small", strings.Repeat("s", 1000)), file("large", strings.Repeat("l", 5000)), file("last", ""))
	// Package archive/tar, and with it containerd, lets a stream end between
	// entries and within the padding behind one.
	for _, part := range [][2]int{{1, 512 + 1000}, {512 + 1024 + 1, 2*512 + 1024 + 5000}, {2*512 + 1024 + 5120 + 1, 3*512 + 1024 + 5120}} {
		for n := part[0]; n < part[1]; n += 97 {
			if _, err := take(t, t.Context(), bytes.NewReader(whole[:n]), &memoryStore{}); err == nil {
				t.Errorf("%d bytes of %d: no error", n, len(whole))
			}
		}
	}
	// In the middle of contents, at a block's end.
	for _, n := range []int{512 + 512, 2*512 + 1024, 2*512 + 2048} {
		if _, err := take(t, t.Context(), bytes.NewReader(whole[:n]), &memoryStore{}); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes of %d: error %v", n, len(whole), err)
		}
	}
	broken := errors.New("the network is gone")
	if _, err := take(t, t.Context(), &failingReader{b: whole[:3000], err: broken}, &memoryStore{}); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}

// A header may promise what no stream could hold.
func TestHugeSizeEndsWithTheStream(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "huge", Size: 1 << 62, Format: tar.FormatGNU}); err != nil {
		t.Fatal(err)
	}
	if _, err := take(t, t.Context(), &b, &memoryStore{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v, want io.ErrUnexpectedEOF", err)
	}
}

type putFunc func(io.Reader, int64) (Digest, error)

func (f putFunc) Put(r io.Reader, size int64) (Digest, error) { return f(r, size) }

func TestErrorsOfTheStorePassThrough(t *testing.T) {
	full := errors.New("disk full")
	_, err := take(t, t.Context(), bytes.NewReader(archive(t, file("a", strings.Repeat("x", 2000)))),
		putFunc(func(io.Reader, int64) (Digest, error) { return Digest{}, full }))
	if !errors.Is(err, full) || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("error %v", err)
	}
}

func TestCancelledBetweenEntriesAndWithinAContent(t *testing.T) {
	stream := archive(t, file("a", strings.Repeat("x", 5000)), file("b", strings.Repeat("x", 5000)))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	_, err := take(t, ctx, bytes.NewReader(stream), putFunc(func(r io.Reader, size int64) (Digest, error) {
		n++
		cancel()
		return Digest{}, nil
	}))
	if !errors.Is(err, context.Canceled) || n != 1 {
		t.Errorf("after %d contents: error %v", n, err)
	}
	// Zeros of a sparse file come from nowhere: only the context ends them.
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	_, err = take(t, ctx, bytes.NewReader(sparse(t, 1<<50)), putFunc(func(r io.Reader, size int64) (Digest, error) {
		if size != 1<<50 {
			t.Errorf("size %d", size)
		}
		b := make([]byte, 1<<16)
		for i := range 1000 {
			if i == 5 {
				cancel()
			}
			if _, err := r.Read(b); err != nil {
				return Digest{}, err
			}
		}
		return Digest{}, errors.New("read on in spite of the context")
	}))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// sparse is a tar of one file of size zeros, in PAX format 1.0.
func sparse(t testing.TB, size int64) []byte {
	t.Helper()
	number := func(n int64) string { return string(appendInt(nil, n)) }
	m := member{tar.Header{Typeflag: tar.TypeReg, Name: "GNUSparseFile.0/sparse", Mode: 0o644, Format: tar.FormatPAX, PAXRecords: map[string]string{
		"SQUASH.sparse.major": "1", "SQUASH.sparse.minor": "0", "SQUASH.sparse.name": "sparse", "SQUASH.sparse.realsize": number(size)}},
		number(1) + "\n" + number(size) + "\n0\n"}
	m.body += strings.Repeat("\x00", 512-len(m.body))
	// archive/tar writes no sparse files, so its records get their names here;
	// the lengths of the records stay, since the padding has the difference.
	b := archive(t, m)
	for _, key := range []string{"major", "minor", "name", "realsize"} {
		b = bytes.Replace(b, []byte("SQUASH.sparse."+key), []byte("   GNU.sparse."+key), 1)
	}
	return paxWithoutSpaces(b)
}

// paxWithoutSpaces rewrites records that got leading spaces in their keys.
func paxWithoutSpaces(b []byte) []byte {
	start := 512
	end := start + bytes.IndexByte(b[start:], 0)
	var records []byte
	for _, line := range strings.SplitAfter(string(b[start:end]), "\n") {
		_, record, ok := strings.Cut(line, " ")
		if !ok {
			continue
		}
		record = strings.TrimLeft(record, " ")
		n := len(record) + 3
		records = append(appendInt(records, int64(n)), " "+record...)
	}
	copy(b[start:start+512], append(records, make([]byte, 512-len(records))...))
	// The header of the records holds their length and a checksum.
	copy(b[124:136], []byte(octal(int64(len(records)), 11)+"\x00"))
	copy(b[148:156], "        ")
	sum := int64(0)
	for _, c := range b[:512] {
		sum += int64(c)
	}
	copy(b[148:156], octal(sum, 6)+"\x00 ")
	return b
}

func appendInt(b []byte, n int64) []byte {
	if n >= 10 {
		b = appendInt(b, n/10)
	}
	return append(b, byte('0'+n%10))
}

func octal(n int64, width int) string {
	b := make([]byte, width)
	for i := range b {
		b[width-1-i] = byte('0' + n>>(3*i)&7)
	}
	return string(b)
}

// What containerd's applier takes is taken, and the TOC reads back; trees are
// compared elsewhere.
func TestEverythingThatContainerdTakesIsTaken(t *testing.T) {
	for _, c := range treetest.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			for i, l := range c.Layers {
				_, err := take(t, t.Context(), bytes.NewReader(l), &memoryStore{})
				if err != nil && (c.Refused == "" || i < len(c.Layers)-1) {
					t.Errorf("layer %d: %v", i, err)
				}
			}
		})
	}
}

func FuzzFromTar(f *testing.F) {
	for _, c := range treetest.Cases() {
		for _, l := range c.Layers {
			if len(l) < 20_000 {
				f.Add(l)
			}
		}
	}
	f.Add(sparse(f, 100_000))
	f.Fuzz(func(t *testing.T, stream []byte) {
		_, _ = take(t, t.Context(), bytes.NewReader(stream), &memoryStore{limit: 1 << 20})
	})
}

// Header records come in a random order.
func TestXattrsOfATarAreSorted(t *testing.T) {
	var pairs []string
	for i := range 40 {
		pairs = append(pairs, "user."+string(rune('A'+i)), "v")
	}
	got, err := take(t, t.Context(), bytes.NewReader(archive(t, xattrs(pairs...))), &memoryStore{})
	if err != nil || len(got[0].Xattrs) != 40 {
		t.Fatalf("%v, %v", got, err)
	}
	if !slices.IsSortedFunc(got[0].Xattrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) }) {
		t.Errorf("%s", brief(got[0]))
	}
}
