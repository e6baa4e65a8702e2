// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const reg, dirMode = unix.S_IFREG | 0o644, unix.S_IFDIR | 0o755

func TestOptionsAreChecked(t *testing.T) {
	root := Inode{Mode: dirMode}
	for _, tc := range []struct {
		name string
		opts Options
		root Inode
		want string
	}{
		{"epoch nanoseconds", Options{EpochNsec: 1e9}, root, "nanoseconds"},
		{"long label", Options{Label: "seventeen bytes !"}, root, "label"},
		{"NUL in label", Options{Label: "a\x00"}, root, "label"},
		{"long tag", Options{Devices: []Device{{}, {Tag: strings.Repeat("x", 65)}}}, root, "device 2: tag"},
		{"device beyond 32 bits", Options{Devices: []Device{{Blocks: 1 << 31, UnifiedAddr: 1 << 31}}}, root, "32-bit"},
		{"devices over each other", Options{Devices: []Device{{Blocks: 9, UnifiedAddr: 100}, {Blocks: 50, UnifiedAddr: 51}}}, root, "devices 2 and 1 overlap"},
		{"devices at one place", Options{Devices: []Device{{Blocks: 1, UnifiedAddr: 100}, {Blocks: 1, UnifiedAddr: 100}}}, root, "overlap"},
		{"too many devices", Options{Devices: make([]Device, 20000)}, root, "root inode"},
		{"root is a file", Options{}, Inode{Mode: reg}, "directory"},
		{"root has a bad xattr", Options{}, Inode{Mode: dirMode, Xattrs: []Xattr{{Name: "x"}}}, "xattr"},
	} {
		_, err := NewWriter(tc.opts, tc.root)
		if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want an invalid argument about %q", tc.name, err, tc.want)
		}
	}
}

func TestAddRefusesWhatTheFormatCannotHold(t *testing.T) {
	const b = BlockSize
	x := func(name string, size int) []Xattr { return []Xattr{{name, make([]byte, size)}} }
	for _, tc := range []struct {
		name string
		in   Inode
		want string
	}{
		{"no type", Inode{Mode: 0o644}, "file type"},
		{"unknown type", Inode{Mode: 0o030000}, "file type"},
		{"high mode bits", Inode{Mode: reg | 1<<16}, "unknown bits"},
		{"nanoseconds", Inode{Mode: reg, MtimeNsec: 1e9}, "nanoseconds"},
		{"negative size", Inode{Mode: reg, Size: -1}, "negative"},
		{"size without content", Inode{Mode: reg, Size: 1}, "content has 0"},
		{"inline shorter than size", Inode{Mode: reg, Size: 3, Inline: []byte("ab")}, "content has 2"},
		{"inline longer than size", Inode{Mode: reg, Inline: []byte("ab")}, "content has 2"},
		{"inline and extents", Inode{Mode: reg, Size: 2, Inline: []byte("ab"), Extents: []Extent{{1, 0, 2}}}, "more than one form"},
		{"extents shorter than size", Inode{Mode: reg, Size: 9, Extents: []Extent{{1, 0, 2}}}, "hold 2 bytes of 9"},
		{"extents longer than size", Inode{Mode: reg, Size: 2, Extents: []Extent{{1, 0, 3}}}, "extent 0"},
		{"extents of an empty file", Inode{Mode: reg, Extents: []Extent{{1, 0, 1}}}, "extent 0"},
		{"empty extent", Inode{Mode: reg, Size: b, Extents: []Extent{{1, 0, b}, {}}}, "extent 1"},
		{"negative extent", Inode{Mode: reg, Size: 1, Extents: []Extent{{1, 0, -1}}}, "extent 0"},
		{"overflowing extents", Inode{Mode: reg, Size: math.MaxInt64, Extents: []Extent{{0, 0, 1 << 62}, {0, 0, 1 << 62}}}, "extent 1"},
		{"odd extent in the middle", Inode{Mode: reg, Size: b + 1, Extents: []Extent{{1, 0, 1}, {1, 0, b}}}, "inside a block"},
		{"device that is not there", Inode{Mode: reg, Size: b, Extents: []Extent{{2, 0, b}}}, "device 2 of 1"},
		{"extent beyond the device", Inode{Mode: reg, Size: b + 1, Extents: []Extent{{1, 9, b + 1}}}, "outside device 1"},
		{"extent far beyond the device", Inode{Mode: reg, Size: 1, Extents: []Extent{{1, math.MaxUint32, 1}}}, "outside device 1"},
		{"chunk table without bound", Inode{Mode: reg, Size: 1<<40 + 1, Extents: []Extent{{0, 0, 1 << 12}, {1, 0, 1 << 12}, {0, 0, 1<<40 - 1<<13 + 1}}}, "chunk indexes"},
		{"clusters and extents", Inode{Mode: reg, Size: 2, Extents: []Extent{{1, 0, 2}}, Device: 1, Clusters: []Cluster{{Zstd, 1, 0, 2}}}, "more than one form"},
		{"clusters and packed", Inode{Mode: reg, Size: 2, Packed: true, Device: 1, Clusters: []Cluster{{Zstd, 1, 0, 2}}}, "more than one form"},
		{"inline and packed", Inode{Mode: reg, Size: 2, Packed: true, Inline: []byte("ab")}, "more than one form"},
		{"empty and packed", Inode{Mode: reg, Packed: true}, "empty file"},
		{"packed far beyond", Inode{Mode: reg, Size: 2, Packed: true, PackedAt: math.MaxInt64 - 1}, "packed inode"},
		{"packed beyond all", Inode{Mode: reg, Size: 2, Packed: true, PackedAt: math.MaxUint64}, "packed inode"},
		{"packed directory", Inode{Mode: dirMode, Packed: true}, "only regular files"},
		{"clusters of a symlink", Inode{Mode: unix.S_IFLNK, Target: "a", Clusters: []Cluster{{Zstd, 1, 0, 2}}}, "only regular files"},
		{"content of a directory", Inode{Mode: dirMode, Inline: []byte{1}}, "only regular files"},
		{"extents of a symlink", Inode{Mode: unix.S_IFLNK, Target: "a", Extents: []Extent{{1, 0, 1}}}, "only regular files"},
		{"target of a file", Inode{Mode: reg, Target: "a"}, "only symlinks"},
		{"empty target", Inode{Mode: unix.S_IFLNK}, "target"},
		{"long target", Inode{Mode: unix.S_IFLNK, Target: strings.Repeat("a", 4096)}, "target"},
		{"NUL in target", Inode{Mode: unix.S_IFLNK, Target: "a\x00b"}, "target"},
		{"major number", Inode{Mode: unix.S_IFCHR, Rdev: unix.Mkdev(4096, 0)}, "12:20 bits"},
		{"minor number", Inode{Mode: unix.S_IFBLK, Rdev: unix.Mkdev(0, 1<<20)}, "12:20 bits"},
		{"xattr namespace", Inode{Mode: reg, Xattrs: x("lustre.lov", 1)}, "cannot store"},
		{"system xattr", Inode{Mode: reg, Xattrs: x("system.posix_acl_accessory", 1)}, "cannot store"},
		{"bare prefix", Inode{Mode: reg, Xattrs: x("user.", 1)}, "cannot store"},
		{"no xattr name", Inode{Mode: reg, Xattrs: x("", 1)}, "cannot store"},
		{"NUL in xattr name", Inode{Mode: reg, Xattrs: x("user.a\x00", 1)}, "cannot store"},
		{"long xattr name", Inode{Mode: reg, Xattrs: x("user."+strings.Repeat("n", 251), 1)}, "cannot store"},
		{"long xattr value", Inode{Mode: reg, Xattrs: x("user.a", 65536)}, "65536"},
		{"xattr twice", Inode{Mode: reg, Xattrs: append(x("user.a", 1), x("user.a", 2)...)}, "twice"},
		{"xattrs beyond the body", Inode{Mode: reg, Xattrs: append(append(append(append(x("user.a", 65535), x("user.b", 65535)...), x("user.c", 65535)...), x("user.d", 65535)...), x("user.e", 65535)...)}, "xattrs take"},
	} {
		w, err := NewWriter(Options{Devices: []Device{{Blocks: 10}}}, Inode{Mode: dirMode})
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.Add(tc.in)
		if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want an invalid argument about %q", tc.name, err, tc.want)
		}
		if _, again := w.WriteTo(io.Discard); again != err {
			t.Errorf("%s: WriteTo after the error gives %v, want the same error", tc.name, again)
		}
	}
}

func TestLinkRefusesWhatIsNoTree(t *testing.T) {
	for _, tc := range []struct {
		name   string
		dir    Ino
		link   string
		child  Ino
		reason string
	}{
		{"empty name", RootIno, "", 3, "not a file name"},
		{"dot", RootIno, ".", 3, "not a file name"},
		{"dot dot", RootIno, "..", 3, "not a file name"},
		{"slash", RootIno, "a/b", 3, "not a file name"},
		{"NUL", RootIno, "a\x00", 3, "not a file name"},
		{"256 bytes", RootIno, strings.Repeat("n", 256), 3, "not a file name"},
		{"parent is a file", 3, "a", 4, "no directory"},
		{"no such parent", 99, "a", 3, "no such inode"},
		{"no such child", RootIno, "a", 99, "no such inode"},
		{"root as a child", 1, "a", RootIno, "only once"},
		{"directory twice", RootIno, "again", 1, "only once"},
	} {
		w := smallWriter(t)
		err := w.Link(tc.dir, tc.link, tc.child)
		if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tc.reason) {
			t.Errorf("%s: error %v, want an invalid argument about %q", tc.name, err, tc.reason)
		}
		if _, again := w.Add(Inode{Mode: reg}); again != err {
			t.Errorf("%s: Add after the error gives %v, want the same error", tc.name, again)
		}
	}
}

// smallWriter has directories 1 (linked as "dir") and 2 (not linked), and the files 3 ("file") and 4 (not linked).
func smallWriter(t *testing.T) *Writer {
	t.Helper()
	w, err := NewWriter(Options{Devices: []Device{{Blocks: 10, UnifiedAddr: 3}}}, Inode{Mode: dirMode})
	for _, mode := range []uint32{dirMode, dirMode, reg, reg} {
		if err == nil {
			_, err = w.Add(Inode{Mode: mode})
		}
	}
	err = errors.Join(err, w.Link(RootIno, "dir", 1), w.Link(RootIno, "file", 3))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestWriteToRefusesWhatIsNoTree(t *testing.T) {
	for _, tc := range []struct {
		name   string
		finish func(w *Writer) error
		want   string
	}{
		{"file never linked", func(w *Writer) error { return w.Link(RootIno, "2", 2) }, "inode 4 was never linked"},
		{"directory never linked", func(w *Writer) error { return w.Link(2, "4", 4) }, "inode 2 was never linked"},
		{"cycle", func(w *Writer) error {
			i, err := w.Add(Inode{Mode: dirMode})
			return errors.Join(err, w.Link(RootIno, "4", 4), w.Link(2, "a", i), w.Link(i, "b", 2))
		}, "cycle"},
		{"own parent", func(w *Writer) error {
			return errors.Join(w.Link(RootIno, "4", 4), w.Link(2, "self", 2))
		}, "cycle"},
		{"name twice", func(w *Writer) error {
			return errors.Join(w.Link(RootIno, "2", 2), w.Link(RootIno, "z", 4), w.Link(1, "x-longer-name", 4), w.Link(1, "y", 4), w.Link(1, "x-longer-name", 3))
		}, `directory /dir: name "x-longer-name" occurs twice`},
		{"packed inode too short", func(w *Writer) error {
			first, err := w.Add(Inode{Mode: reg, Size: 10, Packed: true, PackedAt: 90})
			second, err2 := w.Add(Inode{Mode: reg, Size: 11, Packed: true, PackedAt: 90})
			return errors.Join(err, err2, w.SetPacked(1, []Cluster{{Zstd, 1, 0, 100}}), w.Link(RootIno, "2", 2), w.Link(RootIno, "4", 4),
				w.Link(RootIno, "5", first), w.Link(RootIno, "6", second))
		}, "inode 6 ends at offset 101 of the packed inode, which has 100 bytes"},
		{"no packed inode", func(w *Writer) error {
			i, err := w.Add(Inode{Mode: reg, Size: 1, Packed: true})
			return errors.Join(err, w.Link(RootIno, "2", 2), w.Link(RootIno, "4", 4), w.Link(RootIno, "5", i))
		}, "inode 5 ends at offset 1 of the packed inode, which has 0 bytes"},
		{"packed inode without clusters", func(w *Writer) error {
			i, err := w.Add(Inode{Mode: reg, Size: 1, Packed: true})
			return errors.Join(err, w.SetPacked(1, nil), w.Link(RootIno, "2", 2), w.Link(RootIno, "4", 4), w.Link(RootIno, "5", i))
		}, "which has 0 bytes"},
		{"device over the image", func(w *Writer) error {
			i, err := w.Add(Inode{Mode: reg, Size: 4 * BlockSize, Inline: make([]byte, 4*BlockSize)})
			return errors.Join(err, w.Link(RootIno, "2", 2), w.Link(RootIno, "4", 4), w.Link(RootIno, "big", i))
		}, "hides blocks"},
	} {
		w := smallWriter(t)
		if err := tc.finish(w); err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		var out bytes.Buffer
		n, err := w.WriteTo(&out)
		if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want an invalid argument about %q", tc.name, err, tc.want)
		}
		if n != 0 || out.Len() != 0 {
			t.Errorf("%s: %d bytes were written before the error", tc.name, out.Len())
		}
		if err2 := w.Link(RootIno, "more", 3); err2 != err {
			t.Errorf("%s: Link after the error gives %v, want the same error", tc.name, err2)
		}
	}
}

func TestTreeIsClosedByWriteTo(t *testing.T) {
	w, err := newModel(Options{}).writer()
	if err != nil {
		t.Fatal(err)
	}
	var first, second bytes.Buffer
	if _, err := w.WriteTo(&first); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Add(Inode{Mode: reg}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Add: %v, want a failed precondition", err)
	}
	if err := w.SetPacked(1, nil); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("SetPacked: %v, want a failed precondition", err)
	}
	if err := w.Link(RootIno, "a", RootIno); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Link: %v, want a failed precondition", err)
	}
	if _, err := w.WriteTo(&second); err != nil || !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Errorf("second WriteTo: %v, %d bytes; the first wrote %d", err, second.Len(), first.Len())
	}
}

// limitedOutput fails, or writes short, after some bytes.
type limitedOutput struct {
	left    int
	err     error
	largest int
}

func (o *limitedOutput) Write(b []byte) (int, error) {
	o.largest = max(o.largest, len(b))
	if len(b) > o.left {
		return o.left, o.err
	}
	o.left -= len(b)
	return len(b), nil
}

func TestOutputErrorsAreReported(t *testing.T) {
	full := errors.New("device full")
	w, err := bigDirTree().writer()
	if err != nil {
		t.Fatal(err)
	}
	whole := &limitedOutput{left: math.MaxInt}
	size, err := w.WriteTo(whole)
	if err != nil {
		t.Fatal(err)
	}
	if whole.largest > outputBuffer {
		t.Errorf("a write of %d bytes, above the bound of %d", whole.largest, outputBuffer)
	}
	for _, left := range []int{0, 1, BlockSize, outputBuffer, int(size) / 2, int(size) - 1} {
		if n, err := w.WriteTo(&limitedOutput{left: left, err: full}); !errors.Is(err, full) || n > int64(left)+outputBuffer {
			t.Errorf("output of %d bytes: wrote %d, %v", left, n, err)
		}
		if _, err := w.WriteTo(&limitedOutput{left: left}); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("output of %d bytes without an error: %v", left, err)
		}
	}
}

func TestChunksAreAsLargeAsExtentsAllow(t *testing.T) {
	const b = BlockSize
	for _, tc := range []struct {
		name    string
		extents []Extent
		chunks  int64
	}{
		{"one byte", []Extent{{1, 0, 1}}, 1},
		{"one extent", []Extent{{1, 3, 999*b + 5}}, 1},
		{"one long extent", []Extent{{1, 0, 1 << 40}}, 1},
		{"hole", []Extent{{0, 0, 5 << 30}}, 1},
		{"hole above the largest chunk", []Extent{{0, 0, 1<<43 + 1}}, 2},
		{"extents that continue", []Extent{{1, 3, 2 * b}, {1, 5, 3 * b}, {1, 8, 7}}, 1},
		{"border at 2", []Extent{{1, 3, 2 * b}, {1, 9, 2 * b}}, 2},
		{"border at 2 and 4", []Extent{{1, 3, 2 * b}, {1, 9, 2 * b}, {1, 3, 100 * b}}, 52},
		{"border at 3", []Extent{{1, 3, 3 * b}, {1, 9, 9 * b}}, 12},
		{"border at 64", []Extent{{1, 3, 64 * b}, {0, 0, 64*b + 1}}, 3},
		{"border behind a hole", []Extent{{0, 0, 1 << 30}, {1, 9, 1}}, 2},
	} {
		w, err := NewWriter(Options{Devices: []Device{{Blocks: math.MaxUint32}}}, Inode{Mode: dirMode})
		if err != nil {
			t.Fatal(err)
		}
		in := Inode{Mode: reg, Extents: tc.extents}
		for _, e := range tc.extents {
			in.Size += e.Length
		}
		i, err := w.Add(in)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
		} else if got := w.nodes.at(uint32(i)).chunks(); got != tc.chunks {
			t.Errorf("%s: %d chunks, want %d", tc.name, got, tc.chunks)
		}
	}
}

func TestSuperblockSaysWhatTheImageNeeds(t *testing.T) {
	const padding, configs, chunked, devices, fragments = 0x1, 0x2, 0x4, 0x8, 0x20
	clusters := func(fragment bool, packed []Cluster, file ...Cluster) func() *model {
		return func() *model {
			m := newModel(Options{Devices: []Device{{Tag: "pack", Blocks: 100, UnifiedAddr: 1 << 20}}})
			if file != nil {
				m.compressed(RootIno, "file", 1, file...)
			}
			if fragment {
				m.fragment(RootIno, "fragment", 7, 1)
			}
			m.packedDevice, m.packed = 1, packed
			return m
		}
	}
	stored := Cluster{Stored, 2, 3, 5000}
	lz4, lz4Big := Cluster{LZ4, 1, 3, 8192}, Cluster{LZ4, 17, 3, MaxCluster}
	zstd := Cluster{Zstd, 31, 3, MaxCluster}
	for _, tc := range []struct {
		name     string
		build    func() *model
		incompat uint32
		configs  string // behind the superblock
	}{
		{"nothing special", superblockTree, 0, ""},
		{"chunked without a device", func() *model {
			m := newModel(Options{})
			m.file(RootIno, "hole", Extent{Length: 1})
			return m
		}, chunked, ""},
		{"device without a chunk", func() *model { return newModel(Options{Devices: []Device{{Tag: "a", Blocks: 5}}}) }, devices, ""},
		{"chunks on devices", devicesTree, chunked | devices, ""},
		{"LZ4", clusters(false, nil, lz4, lz4Big, lz4), padding | configs | devices, lz4Config(17)},
		{"LZ4 of one block", clusters(false, nil, lz4), padding | configs | devices, lz4Config(1)},
		{"zstd", clusters(false, nil, zstd), padding | configs | devices, zstdConfig},
		{"LZ4 and zstd", clusters(false, nil, zstd, lz4), padding | configs | devices, lz4Config(1) + zstdConfig},
		{"stored clusters", clusters(false, nil, stored), padding | configs | devices, lz4Config(1)},
		{"fragment", clusters(true, []Cluster{zstd}), padding | configs | devices | fragments, zstdConfig},
		{"stored fragment", clusters(true, []Cluster{stored}), padding | configs | devices | fragments, lz4Config(1)},
		{"fragment and file", clusters(true, []Cluster{zstd, lz4}, lz4Big), padding | configs | devices | fragments, lz4Config(17) + zstdConfig},
		{"nothing in the packed inode", clusters(false, []Cluster{lz4Big}, zstd), padding | configs | devices, zstdConfig},
		{"no cluster but an empty packed inode", clusters(false, []Cluster{zstd}), devices, ""},
	} {
		m := tc.build()
		image := m.image(t)
		b := image[1024:]
		le := binary.LittleEndian
		if got := le.Uint32(b[80:]); got != tc.incompat {
			t.Errorf("%s: incompatible features %#x, want %#x", tc.name, got, tc.incompat)
		}
		if got := le.Uint32(b[8:]); got != 3 {
			t.Errorf("%s: compatible features %#x, want 3", tc.name, got)
		}
		if got := [16]byte(b[48:64]); got != m.opts.UUID {
			t.Errorf("%s: uuid %x, want %x", tc.name, got, m.opts.UUID)
		}
		if got := string(bytes.TrimRight(b[64:80], "\x00")); got != m.opts.Label {
			t.Errorf("%s: label %q, want %q", tc.name, got, m.opts.Label)
		}
		if got := le.Uint32(b[36:]); int(got) != len(image)/BlockSize {
			t.Errorf("%s: %d blocks, want %d", tc.name, got, len(image)/BlockSize)
		}
		inodes := len(m.inodes)
		if tc.incompat&fragments != 0 {
			inodes++
		}
		if got := le.Uint64(b[16:]); int(got) != inodes {
			t.Errorf("%s: %d inodes, want %d", tc.name, got, inodes)
		}
		algorithms := uint16(0)
		if strings.Contains(tc.configs, zstdConfig) {
			algorithms |= 1 << 3
		}
		if len(strings.TrimSuffix(tc.configs, zstdConfig)) > 0 {
			algorithms |= 1 << 0
		}
		if got := le.Uint16(b[84:]); got != algorithms {
			t.Errorf("%s: algorithms %#x, want %#x", tc.name, got, algorithms)
		}
		if got := string(b[128:][:len(tc.configs)]); got != tc.configs {
			t.Errorf("%s: compression configs %x, want %x", tc.name, got, tc.configs)
		}
		if slots := map[bool]uint16{false: 9, true: 10}[tc.configs != ""]; len(m.opts.Devices) > 0 && le.Uint16(b[88:]) != slots {
			t.Errorf("%s: devices at slot %d, want %d", tc.name, le.Uint16(b[88:]), slots)
		}
		if got := le.Uint16(b[86:]); int(got) != len(m.opts.Devices) {
			t.Errorf("%s: %d devices, want %d", tc.name, got, len(m.opts.Devices))
		}
		for i, d := range m.opts.Devices {
			slot := image[int(le.Uint16(b[88:]))*128+i*128:][:128]
			if tag := string(bytes.TrimRight(slot[:64], "\x00")); tag != d.Tag || le.Uint32(slot[64:]) != d.Blocks || le.Uint32(slot[68:]) != d.UnifiedAddr {
				t.Errorf("%s: slot %d is %x, want %+v", tc.name, i, slot[:76], d)
			}
		}
	}
}

// zstdConfig is for windows of 128 KiB.
const zstdConfig = "\x06\x00" + "\x00\x07\x00\x00\x00\x00"

func lz4Config(blocks byte) string {
	return "\x0e\x00" + "\xff\xff" + string([]byte{blocks, 0}) + strings.Repeat("\x00", 10)
}

func TestXattrOfTwoInodesIsStoredOnce(t *testing.T) {
	x := func(value string) []Xattr { return []Xattr{{"user.x", []byte(value)}} }
	m := newModel(Options{})
	m.put(RootIno, "a", Inode{Mode: reg, Xattrs: x("value of two")})
	m.put(RootIno, "b", Inode{Mode: unix.S_IFDIR, Xattrs: x("value of two")})
	m.put(RootIno, "c", Inode{Mode: reg, Xattrs: x("value of one")})
	image := m.image(t)
	for _, value := range []string{"value of two", "value of one"} {
		if n := bytes.Count(image, []byte(value)); n != 1 {
			t.Errorf("%q occurs %d times", value, n)
		}
	}
	// The inode of c comes after the others, and holds its value.
	if bytes.Index(image, []byte("value of one")) > bytes.Index(image, []byte("value of two")) {
		t.Error("a value of one inode lies in the shared area")
	}
}

func TestWriterKeepsNoReferenceToItsInput(t *testing.T) {
	build := func(spoil byte) []byte {
		content, value, extents := []byte("content"), []byte("value"), []Extent{{1, 0, 1}}
		clusters, packed := []Cluster{{LZ4, 1, 0, 9}}, []Cluster{{Zstd, 1, 0, 9}}
		devices := []Device{{Blocks: 2, UnifiedAddr: 99}}
		w, err := NewWriter(Options{Devices: devices}, Inode{Mode: dirMode})
		for i, in := range []Inode{
			{Mode: reg, Size: 7, Inline: content},
			{Mode: reg, Xattrs: []Xattr{{"user.a", value}}},
			{Mode: reg, Size: 1, Extents: extents},
			{Mode: reg, Size: 9, Clusters: clusters, Device: 1},
			{Mode: reg, Size: 9, Packed: true},
		} {
			var ino Ino
			if err == nil {
				ino, err = w.Add(in)
			}
			err = errors.Join(err, w.Link(RootIno, fmt.Sprint(i), ino))
		}
		err = errors.Join(err, w.SetPacked(1, packed))
		clusters[0].Algorithm += Algorithm(spoil)
		packed[0].Block += uint32(spoil)
		content[0] += spoil
		value[0] += spoil
		extents[0].Device += uint16(spoil)
		devices[0].Blocks += uint32(spoil)
		var out bytes.Buffer
		if _, werr := w.WriteTo(&out); errors.Join(err, werr) != nil {
			t.Fatal(err, werr)
		}
		return out.Bytes()
	}
	if !bytes.Equal(build(0), build(1)) {
		t.Error("changing the input after Add changed the image")
	}
}
