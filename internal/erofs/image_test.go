// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// trees are the shapes that every judge sees.
var trees = []struct {
	name       string
	build      func() *model
	kernelOnly string // why only the kernel can judge it
}{
	{"empty root", func() *model { return newModel(Options{}) }, ""},
	{"superblock fields", superblockTree, ""},
	{"all file types", typesTree, ""},
	{"compact and extended inodes", formsTree, ""},
	{"hard links", hardlinkTree, ""},
	{"65536 hard links", manyLinksTree, "a walk of it by paths takes the second reader seconds"},
	{"directory sizes around blocks", dirSizesTree, ""},
	{"directory of 20000 entries", bigDirTree, ""},
	{"odd names", oddNamesTree, ""},
	{"deep tree", deepTree, ""},
	{"symlink lengths", symlinkTree, ""},
	{"inline content around blocks", inlineTree, ""},
	{"xattrs", xattrTree, ""},
	{"xattr sizes", xattrSizesTree, ""},
	{"shared xattrs", sharedXattrTree, ""},
	{"long shared xattrs", longSharedTree, "the second reader takes no shared xattr above a block"},
	{"extents", extentTree, ""},
	{"files above 4 GiB", hugeFilesTree, ""},
	{"several devices", devicesTree, ""},
	{"clusters", clusterTree, "the second reader takes no clusters"},
	{"fragments", fragmentTree, "the second reader takes no clusters"},
}

func TestKernelShowsTheTree(t *testing.T) {
	for _, tc := range trees {
		t.Run(tc.name, func(t *testing.T) { checkKernel(t, tc.build()) })
	}
}

func superblockTree() *model {
	m := newModel(Options{
		Epoch: -5, EpochNsec: 999_999_999,
		UUID:  [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
		Label: "sixteen bytes ok",
	})
	m.put(RootIno, "at-epoch", Inode{Mode: unix.S_IFREG, Mtime: -5, MtimeNsec: 999_999_999})
	m.put(RootIno, "other-nsec", Inode{Mode: unix.S_IFREG, Mtime: -5})
	return m
}

func typesTree() *model {
	m := newModel(Options{})
	for _, kind := range []uint32{unix.S_IFREG, unix.S_IFDIR, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFLNK} {
		for _, perm := range []uint32{0, 0o644, 0o7777, 0o4755, 0o2070, 0o1777} {
			in := Inode{Mode: kind | perm, Mtime: testEpoch + int64(perm&1)}
			if kind == unix.S_IFLNK {
				in.Target = "target"
			}
			m.put(RootIno, fmt.Sprintf("%o", in.Mode), in)
		}
	}
	for _, dev := range [][2]uint32{{0, 0}, {1, 3}, {8, 255}, {8, 256}, {259, 70000}, {4095, 1<<20 - 1}} {
		rdev := unix.Mkdev(dev[0], dev[1])
		m.put(RootIno, fmt.Sprintf("chr-%d-%d", dev[0], dev[1]), Inode{Mode: unix.S_IFCHR | 0o600, Rdev: rdev})
		m.put(RootIno, fmt.Sprintf("blk-%d-%d", dev[0], dev[1]), Inode{Mode: unix.S_IFBLK | 0o600, Rdev: rdev, Mtime: testEpoch})
	}
	return m
}

func formsTree() *model {
	m := newModel(Options{EpochNsec: 7})
	base := Inode{Mode: unix.S_IFREG | 0o644, Mtime: testEpoch, MtimeNsec: 7}
	m.put(RootIno, "compact", base)
	for i, change := range []func(*Inode){
		func(in *Inode) { in.UID = 65535 },
		func(in *Inode) { in.UID = 65536 },
		func(in *Inode) { in.GID = 65535 },
		func(in *Inode) { in.GID = 65536 },
		func(in *Inode) { in.UID, in.GID = math.MaxUint32-1, math.MaxUint32-1 },
		func(in *Inode) { in.MtimeNsec = 8 },
		func(in *Inode) { in.Mtime++ },
		func(in *Inode) { in.Mtime = 0; in.MtimeNsec = 0 },
		func(in *Inode) { in.Mtime = -1; in.MtimeNsec = 999_999_999 },
		func(in *Inode) { in.Mtime = -1 << 40 },
		func(in *Inode) { in.Mtime = 1 << 40 },
	} {
		in := base
		change(&in)
		m.put(RootIno, fmt.Sprint("variant", i), in)
	}
	return m
}

func hardlinkTree() *model {
	m := newModel(Options{})
	a, b := m.mkdir(RootIno, "a"), m.mkdir(RootIno, "b")
	file := m.inline(a, "file", []byte("one"))
	m.link(b, "same", file)
	m.link(RootIno, "same too", file)
	for i, in := range []Inode{
		{Mode: unix.S_IFLNK | 0o777, Target: "x"},
		{Mode: unix.S_IFIFO | 0o600},
		{Mode: unix.S_IFCHR | 0o600, Rdev: unix.Mkdev(1, 3)},
	} {
		node := m.put(b, fmt.Sprint("special", i), in)
		m.link(a, fmt.Sprint("special", i), node)
	}
	return m
}

// manyLinksTree needs the form with the wide link count.
func manyLinksTree() *model {
	m := newModel(Options{})
	many := m.put(RootIno, "many", Inode{Mode: unix.S_IFREG, Mtime: testEpoch})
	dir := m.mkdir(RootIno, "links")
	for i := range 65536 {
		m.link(dir, fmt.Sprint(i), many)
	}
	return m
}

// dirOf makes a directory whose entries, with "." and "..", take exactly size bytes of one block.
func dirOf(m *model, parent Ino, name string, size int) Ino {
	d := m.mkdir(parent, name)
	size -= 2*direntSize + 3
	for i := 0; size > 0; i++ {
		n := min(size, direntSize+100)
		if rest := size - n; rest > 0 && rest < direntSize+8 {
			n -= 40
		}
		m.inline(d, fmt.Sprintf("%0*d", n-direntSize, i), nil)
		size -= n
	}
	return d
}

func dirSizesTree() *model {
	m := newModel(Options{})
	for i := range 4 {
		d := m.mkdir(RootIno, fmt.Sprint("few", i))
		for k := range i {
			m.mkdir(d, fmt.Sprint(k))
		}
	}
	for _, size := range []int{
		BlockSize - extendedSize - 1, BlockSize - extendedSize, BlockSize - extendedSize + 1,
		BlockSize - compactSize - 1, BlockSize - compactSize, BlockSize - compactSize + 1,
		BlockSize - 1, BlockSize,
	} {
		dirOf(m, RootIno, fmt.Sprint("size", size), size)
		old := dirOf(m, RootIno, fmt.Sprint("extended", size), size)
		m.inodes[old].Mtime = 1
	}
	// Just over one block and just over two.
	for i, n := range []int{120, 150, 151, 152, 153, 154, 155, 170, 300, 310} {
		d := m.mkdir(RootIno, fmt.Sprint("over", i))
		for k := range n {
			m.inline(d, fmt.Sprintf("entry-%08d", k), nil)
		}
	}
	return m
}

func bigDirTree() *model {
	m := newModel(Options{})
	d := m.mkdir(RootIno, "big")
	for i := range 20000 {
		// Unsorted, of many lengths.
		k := i * 7919 % 20000
		m.inline(d, fmt.Sprintf("%d-%s", k, strings.Repeat("n", k%200)), nil)
	}
	return m
}

func oddNamesTree() *model {
	m := newModel(Options{})
	d := m.mkdir(RootIno, "names")
	for _, name := range []string{
		"!before dot", "-", " ", "...", "..a", ".a", ".\x01", "\x01", "\xff", "\xff\xfe", "\xc3\x28", "é", "e\u0301", "日本語",
		"new\nline", "tab\t", `back\slash`, `"quote"`, "*", "~", "a", "A", "aa", "aaaaaaaa", "aaaaaaaaa", "aaaaaaaab", "aaaaaaa",
		strings.Repeat("x", 255), strings.Repeat("x", 254), strings.Repeat("\xff", 255), strings.Repeat("\x01", 255),
	} {
		m.inline(d, name, []byte(name))
	}
	long := m.mkdir(RootIno, "long names")
	for i := range 200 {
		m.inline(long, fmt.Sprintf("%s%03d", strings.Repeat("p", 252), i), nil)
	}
	return m
}

func deepTree() *model {
	m := newModel(Options{})
	d := RootIno
	for i := range 150 {
		d = m.mkdir(d, strings.Repeat("d", 1+i%100))
		m.inline(d, "f", []byte{byte(i)})
	}
	return m
}

func symlinkTree() *model {
	m := newModel(Options{})
	for _, n := range []int{1, 2, 59, 60, 61, 1000, 4031, 4032, 4033, 4063, 4064, 4065, 4094, 4095} {
		for _, mtime := range []int64{testEpoch, 1} {
			m.put(RootIno, fmt.Sprint(n, "-", mtime), Inode{Mode: unix.S_IFLNK | 0o777, Mtime: mtime, Target: strings.Repeat("t/", n)[:n]})
		}
	}
	m.put(RootIno, "bytes", Inode{Mode: unix.S_IFLNK | 0o777, Target: "\xff\x01/../ \n"})
	return m
}

func pattern(n int) []byte {
	b := make([]byte, alignUp(int64(n), 8))
	packBytes(b, 99, uint32(n))
	return b[:n]
}

func inlineTree() *model {
	m := newModel(Options{})
	for _, n := range []int{
		0, 1, 2, 31, 32, 33, 63, 64, 65, 1000, 2000, 3000, 4000, 4031, 4032, 4033, 4063, 4064, 4065, 4095, 4096, 4097,
		8000, 8191, 8192, 8193, 12288 + 4032, 12288 + 4033, 65536, 100001,
	} {
		m.inline(RootIno, fmt.Sprint("compact", n), pattern(n))
		m.put(RootIno, fmt.Sprint("extended", n), Inode{Mode: unix.S_IFREG, Mtime: 1, Size: int64(n), Inline: pattern(n)})
		m.put(RootIno, fmt.Sprint("xattr", n), Inode{Mode: unix.S_IFREG, Mtime: 1, Size: int64(n), Inline: pattern(n),
			Xattrs: []Xattr{{"user.n", pattern(n % 5000)}}})
	}
	// Tails of all sizes after each other force every kind of gap.
	d := m.mkdir(RootIno, "gaps")
	for n := range 1200 {
		m.inline(d, fmt.Sprint(n), pattern(n*37%4100))
	}
	return m
}

// acl is an ACL in the form of the kernel's xattr: user::rw-, user:uid:r--, group::r--, mask::r--, other::r--.
func acl(uid byte) []byte {
	return []byte{2, 0, 0, 0,
		1, 0, 6, 0, 255, 255, 255, 255,
		2, 0, 4, 0, uid, 0, 0, 0,
		4, 0, 4, 0, 255, 255, 255, 255,
		16, 0, 4, 0, 255, 255, 255, 255,
		32, 0, 4, 0, 255, 255, 255, 255}
}

// capability is a security.capability in the form of the kernel's xattr: version 2, cap_net_raw.
var capability = []byte{1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

func xattrTree() *model {
	m := newModel(Options{})
	all := []Xattr{
		{"user.z", []byte("last")}, {"user.a", nil}, {"trusted.t", []byte{0, 1, 2}},
		{"security.capability", capability}, {"security.x", []byte("s")},
		{"system.posix_acl_access", acl(9)},
	}
	m.put(RootIno, "file", Inode{Mode: unix.S_IFREG | 0o644, Xattrs: all})
	m.put(RootIno, "dir", Inode{Mode: unix.S_IFDIR | 0o755, Xattrs: append([]Xattr{{"system.posix_acl_default", acl(8)}}, all...)})
	m.put(RootIno, "overlay", Inode{Mode: unix.S_IFDIR | 0o755, Xattrs: []Xattr{{"trusted.overlay.opaque", []byte("y")}}})
	trusted := []Xattr{{"trusted.a", []byte("1")}, {"security.b", []byte("2")}}
	for _, kind := range []uint32{unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK} {
		m.put(RootIno, fmt.Sprintf("%o", kind), Inode{Mode: kind | 0o600, Xattrs: trusted})
	}
	m.put(RootIno, "link", Inode{Mode: unix.S_IFLNK | 0o777, Target: "file", Xattrs: trusted})
	m.inodes[RootIno].Xattrs = []Xattr{{"user.root", []byte("yes")}, {"system.posix_acl_access", acl(7)}}
	return m
}

func xattrSizesTree() *model {
	m := newModel(Options{Devices: []Device{{Blocks: 10}}})
	for _, n := range []int{0, 1, 2, 3, 4, 5, 1000, 3900, 4000, 4084, 4096, 5000, 10000, 65534, 65535} {
		value := []Xattr{{"user.v", pattern(n)}}
		m.put(RootIno, fmt.Sprint("inline", n), Inode{Mode: unix.S_IFREG, Size: 3, Inline: []byte("abc"), Xattrs: value[:1:1]})
		m.put(RootIno, fmt.Sprint("chunked", n), Inode{Mode: unix.S_IFREG, Size: 30000, Extents: []Extent{{1, 2, 30000}},
			Xattrs: []Xattr{{"user.w" + fmt.Sprint(n), pattern(n)}}})
		m.put(RootIno, fmt.Sprint("dir", n), Inode{Mode: unix.S_IFDIR, Xattrs: []Xattr{{"user.d", pattern(n)}}})
	}
	for _, n := range []int{1, 2, 3, 4, 200, 249, 250} {
		m.put(RootIno, fmt.Sprint("name", n), Inode{Mode: unix.S_IFREG, Xattrs: []Xattr{{"user." + strings.Repeat("n", n), []byte("v")}}})
	}
	var many []Xattr
	for i := range 300 {
		many = append(many, Xattr{fmt.Sprintf("user.many%03d", i), []byte{byte(i)}})
	}
	m.put(RootIno, "many", Inode{Mode: unix.S_IFREG, Xattrs: many})
	m.put(RootIno, "three long", Inode{Mode: unix.S_IFREG, Xattrs: []Xattr{
		{"user.1", pattern(65535)}, {"user.2", pattern(65535)}, {"user.3", pattern(65535)},
	}})
	return m
}

func sharedXattrTree() *model {
	m := newModel(Options{})
	label := Xattr{"security.selinux", []byte("system_u:object_r:usr_t:s0")}
	for i := range 300 {
		x := []Xattr{label}
		if i%2 == 0 {
			x = append(x, Xattr{"user.even", []byte("yes")})
		}
		if i%3 == 0 {
			x = append(x, Xattr{"user.own", []byte(fmt.Sprint(i))})
		}
		if i%100 == 0 {
			x = append(x, Xattr{"user.long", pattern(3000)}, Xattr{"user.empty", nil})
		}
		m.put(RootIno, fmt.Sprint(i), Inode{Mode: unix.S_IFREG, Size: 1, Inline: []byte{byte(i)}, Xattrs: x})
	}
	// More shared ones than an inode can name by id.
	var many []Xattr
	for i := range 300 {
		many = append(many, Xattr{fmt.Sprintf("trusted.many%03d", i), bytes.Repeat([]byte{byte(i)}, i)})
	}
	m.put(RootIno, "many1", Inode{Mode: unix.S_IFREG, Xattrs: many})
	m.put(RootIno, "many2", Inode{Mode: unix.S_IFDIR, Xattrs: many})
	m.put(RootIno, "many3", Inode{Mode: unix.S_IFREG, Xattrs: many[200:]})
	return m
}

func longSharedTree() *model {
	m := newModel(Options{})
	for i := range 30 {
		m.put(RootIno, fmt.Sprint(i), Inode{Mode: unix.S_IFREG | 0o644, Xattrs: []Xattr{
			{"user.longest", pattern(65535)}, {"user.long", pattern(1000 * (i / 2))},
		}})
	}
	return m
}

func extentTree() *model {
	const b = BlockSize
	m := newModel(Options{Devices: []Device{{Tag: "pack", Blocks: 3000, UnifiedAddr: 1 << 24}}})
	m.file(RootIno, "one byte", Extent{1, 0, 1})
	m.file(RootIno, "one block", Extent{1, 1, b})
	m.file(RootIno, "block and byte", Extent{1, 5, b + 1})
	m.file(RootIno, "last block", Extent{1, 2999, b})
	m.file(RootIno, "all", Extent{1, 0, 3000 * b})
	m.file(RootIno, "shared blocks", Extent{1, 5, b + 1})
	m.file(RootIno, "two that touch", Extent{1, 7, 3 * b}, Extent{1, 10, 2*b + 9})
	m.file(RootIno, "two apart", Extent{1, 7, 3 * b}, Extent{1, 20, 2*b + 9})
	m.file(RootIno, "two aligned", Extent{1, 100, 8 * b}, Extent{1, 50, 8 * b}, Extent{1, 300, b})
	m.file(RootIno, "backwards", Extent{1, 9, b}, Extent{1, 8, b}, Extent{1, 7, b - 1})
	m.file(RootIno, "same twice", Extent{1, 9, b}, Extent{1, 9, b})
	m.file(RootIno, "hole of a byte", Extent{Length: 1})
	m.file(RootIno, "hole", Extent{Length: 10 * b})
	m.file(RootIno, "holes that touch", Extent{Length: 3 * b}, Extent{Length: 10*b + 5})
	m.file(RootIno, "hole first", Extent{Length: 3 * b}, Extent{1, 40, 5})
	m.file(RootIno, "hole last", Extent{1, 40, 2 * b}, Extent{Length: 7})
	m.file(RootIno, "data hole data", Extent{1, 40, 2 * b}, Extent{Length: 2 * b}, Extent{1, 44, 2 * b}, Extent{1, 42, 2*b - 77})
	return m
}

func hugeFilesTree() *model {
	m := newModel(Options{Devices: []Device{{Tag: "pack", Blocks: 3000, UnifiedAddr: 1 << 24}}})
	m.file(RootIno, "largest compact", Extent{Length: math.MaxUint32})
	m.file(RootIno, "smallest extended", Extent{Length: 1 << 32})
	m.file(RootIno, "5 GiB of hole", Extent{Length: 5 << 30})
	m.file(RootIno, "5 GiB sparse", Extent{Length: 1 << 30}, Extent{1, 64, 1 << 20}, Extent{Length: 4<<30 - 1<<20}, Extent{1, 512, 1 << 20})
	m.file(RootIno, "1 PiB of hole", Extent{Length: 1 << 43}, Extent{Length: 1 << 50})
	return m
}

func devicesTree() *model {
	const b = BlockSize
	m := newModel(Options{Devices: []Device{{Tag: "a", Blocks: 40}, {Tag: "b", Blocks: 90, UnifiedAddr: 70000}, {Blocks: 7}}})
	for d := range uint16(3) {
		for k := range uint32(5) {
			m.file(RootIno, fmt.Sprint(d, "-", k), Extent{d + 1, k, 2*b + 100})
		}
	}
	m.file(RootIno, "across", Extent{2, 80, 4 * b}, Extent{3, 2, 4 * b}, Extent{1, 30, 4 * b})
	return m
}

// solid is data of which every encoder makes as many blocks: noise, then zeros.
func solid(noise, size int) []byte {
	b := make([]byte, size)
	copy(b, testData(dataNoise, uint64(noise), noise))
	return b
}

func clusterTree() *model {
	const b = BlockSize
	m := newModel(Options{Devices: []Device{{Tag: "pack", Blocks: 3, UnifiedAddr: 1 << 24}}})
	for _, a := range []Algorithm{Stored, LZ4, Zstd} {
		for _, n := range []int{1, b - 1, b, b + 1, 2 * b, 2*b + 1, 3 * b, 3*b + 1, 9*b + 9, MaxCluster - 1, MaxCluster} {
			m.compressed(RootIno, fmt.Sprint(algorithmNames[a], n), 1, m.cluster(1, a, solid(n/2, n)))
		}
		whole, part := m.cluster(1, a, solid(70_000, MaxCluster)), m.cluster(1, a, solid(10_000, 20_000))
		m.compressed(RootIno, "twice "+algorithmNames[a], 1, whole, whole, part)
	}
	m.compressed(RootIno, "mixed", 1,
		m.cluster(1, LZ4, solid(9000, 10*b)), m.cluster(1, Stored, solid(5*b, 5*b)), m.cluster(1, Zstd, solid(2000, 2*b)), m.cluster(1, LZ4, solid(1, 1)))
	return m
}

func fragmentTree() *model {
	m := newModel(Options{Devices: []Device{{Tag: "pack", Blocks: 3, UnifiedAddr: 1 << 24}}})
	m.packedDevice = 1
	for k := range 9 {
		m.packed = append(m.packed, m.cluster(1, Algorithm(k%3), solid(10_000*k, MaxCluster)))
	}
	at := int64(0)
	for k := range int64(100) {
		size := 1 + k*k
		i := m.fragment(RootIno, fmt.Sprint(k), uint64(at), size)
		m.inodes[i].Mtime += k % 2
		if k%5 == 0 {
			m.inodes[i].Xattrs = []Xattr{{"user.k", []byte(fmt.Sprint(k))}}
		}
		at += size
	}
	m.fragment(RootIno, "all", 0, length(m.packed))
	return m
}
