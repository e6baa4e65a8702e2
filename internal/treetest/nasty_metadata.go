// SPDX-License-Identifier: Apache-2.0

package treetest

import (
	"archive/tar"
	"fmt"
	"math"
	"strings"
)

// metadataCases are about modes and owners.
func metadataCases() []Case {
	var modes []Step
	for _, m := range []int64{0, 0o1, 0o111, 0o444, 0o777, 0o1777, 0o2755, 0o2644, 0o4755, 0o4644, 0o6755, 0o7777} {
		modes = append(modes,
			Dir(fmt.Sprintf("d%o", m), Mode(m)), File(fmt.Sprintf("f%o", m), "x", Mode(m), Owner(1, 1)),
			Fifo(fmt.Sprintf("p%o", m), Mode(m)), Symlink(fmt.Sprintf("s%o", m), "t", Mode(m)))
	}
	var owners []Step
	for _, id := range []int{0, 1, 65534, 65535, 65536, 2097151, 2097152, math.MaxInt32, math.MaxInt32 + 1, 1<<32 - 2} {
		owners = append(owners, File(fmt.Sprintf("f%d", id), "x", Owner(id, id)), Symlink(fmt.Sprintf("s%d", id), "t", Owner(id, 0)),
			Dir(fmt.Sprintf("d%d", id), Owner(0, id)), File(fmt.Sprintf("gnu%d", id), "x", Owner(id, id), GNU()))
	}
	return []Case{
		valid("modes", Layer(modes...)),
		valid("mode with type bits", Layer(File("f", "x", Mode(0o100755)), Dir("d", Mode(0o40711)), File("odd", "x", Mode(0o120600)))),
		valid("owners", Layer(owners...)),
		// Minus one means to chown(2): leave it.
		valid("owner minus one", Layer(
			Dir("g", Mode(0o2755), Owner(7, 7)),
			File("g/f", "x", Owner(1<<32-1, 1<<32-1)), File("f", "x", Owner(1<<32-1, 5)),
			Dir("g", Mode(0o755), Owner(1<<32-1, 8)))),
		valid("owner beyond 32 bits", Layer(File("f", "x", Owner(1<<32+5, 1<<33+6)))),
		valid("children of a setgid directory have the group of their header", Layer(
			Dir("g", Mode(0o2775), Owner(0, 44)), File("g/f", "x"), Dir("g/d"), Symlink("g/s", "f"))),
		valid("directory without permissions", Layer(Dir("d", Mode(0)), File("d/f", "x", Mode(0))), Layer(File("d/g", "y"))),
		valid("names of user and group are ignored", Layer(Header(tar.Header{
			Typeflag: tar.TypeReg, Name: "f", Mode: 0o644, Uname: "daemon", Gname: "daemon"}, "x"))),
	}
}

// timeCases are about mtimes.
func timeCases() []Case {
	var steps []Step
	for i, ts := range [][2]int64{
		{0, 0}, {0, 1}, {1, 0}, {1, 999_999_999}, {-1, 0}, {-1, 500_000_000}, {-100_000_000_000, 0},
		{1_600_000_000, 123_456_789}, {1<<31 - 1, 999_999_999}, {1 << 31, 0}, {1 << 32, 7},
		{7_258_118_400, 1},           // year 2200
		{9_223_372_036, 854_775_807}, // the last moment within bounds
		{9_223_372_036, 854_775_808}, // the first beyond
		{16_725_225_600, 0},          // year 2500
		{1 << 36, 0},
	} {
		m := Mtime(ts[0], ts[1])
		steps = append(steps, File(fmt.Sprintf("f%d", i), "", m), Dir(fmt.Sprintf("d%d", i), m), Symlink(fmt.Sprintf("s%d", i), "t", m), Fifo(fmt.Sprintf("p%d", i), m))
	}
	return []Case{
		valid("times", Layer(steps...)),
		valid("GNU times", Layer(File("old", "", Mtime(-5, 0), GNU()), File("far", "", Mtime(1<<35, 0), GNU()))),
		valid("fraction of more than nine digits", Layer(Raw(append(paxHeader("mtime", "12.3456789019"),
			rawEntry(rawHeader{name: "f", typeflag: tar.TypeReg, mode: 0o644}, "x")...)))),
		valid("access and change times are ignored", Layer(
			File("f", "x", Mtime(5, 0), PAX("LIBARCHIVE.creationtime", "7"), func(h *tar.Header) {
				h.AccessTime, h.ChangeTime = h.ModTime.Add(1e15), h.ModTime.Add(2e15)
			}))),
		valid("time of a stated directory survives its children", Layer(
			Dir("d", Mtime(1, 1)), Dir("d/e", Mtime(2, 2)), File("d/e/f", "x", Mtime(3, 3)), Hardlink("d/g", "d/e/f", Mtime(4, 4))),
			Layer(Dir("d/e", Mtime(6, 6)), Whiteout("d/e/f"))),
	}
}

// deviceCases are about nodes.
func deviceCases() []Case {
	base := Layer(Dir("d"), File("d/f", "f"), File("g", "g"), File("h", "h"))
	return []Case{
		valid("nodes", Layer(
			Char("null", 1, 3, Mode(0o666)), Block("sda", 8, 0, Mode(0o660), Owner(0, 6)), Fifo("p", Mode(0o622)),
			Char("minor", 1, 255), Char("minor256", 1, 256), Block("large", 4095, 1048575), Block("zero", 0, 0), Char("zero-one", 0, 1), Char("one-zero", 1, 0))),
		// mknod(2) has 12 bits for the major number, 20 for the minor.
		valid("numbers beyond the kernel's", Layer(Char("c", 4097, 1<<20+5, GNU()), Block("b", 1<<31, 1<<31, GNU()))),
		refused("number beyond 32 bits", "out of range", Layer(Char("c", 1<<32, 1, GNU()))),
		refused("negative number", "out of range", Layer(Raw(rawEntry(rawHeader{
			name: "c", typeflag: tar.TypeChar, mode: 0o600, major: -1, minor: 1, gnu: true}, "")))),
		valid("fifo with a device number", Layer(Raw(rawEntry(rawHeader{name: "p", typeflag: tar.TypeFifo, mode: 0o600, major: 1, minor: 3}, "")))),
		// For overlayfs it is a whiteout.
		valid("character device 0:0", base, Layer(Char("d/f", 0, 0), Char("g", 0, 0, Owner(3, 3)))),
		valid("character device 0:0 over a directory", base, Layer(Char("d", 0, 0))),
		valid("character device that becomes 0:0", base, Layer(Char("g", 4096, 1<<20, GNU()))),
		valid("character device 0:0 in the bottom layer", Layer(Dir("d"), Char("d/c", 0, 0), Char("c", 0, 0), File("f", ""))),
		valid("character device 0:0 and a hardlink to it", base, Layer(Char("g", 0, 0), Hardlink("h", "g"))),
		valid("block device 0:0 over a file", base, Layer(Block("g", 0, 0))),
		valid("names that hide device nodes", Layer(Char("c", 5, 1), Fifo("p")), Layer(Whiteout("c"), File("p", "file"))),
	}
}

// xattrCases are about extended attributes other than ACLs.
func xattrCases() []Case {
	many := func(name string, n, size int) Step {
		s := File(name, "x")
		for i := range n {
			Xattr(fmt.Sprintf("user.many%03d", i), strings.Repeat(string(rune('a'+i%26)), size))(&s.hdr)
		}
		return s
	}
	return []Case{
		valid("attributes", Layer(
			File("f", "x", Xattr("user.a", "1"), Xattr("user.empty", ""), Xattr("user.binary", "\x01\xff\n=\x7f"), Xattr("user.nul", "a\x00b\x00"), Xattr("user.dots.in.name", "x")),
			Dir("d", Xattr("user.a", "1"), Xattr("security.test", "s")),
			File("same", "x", Xattr("user.a", "1"), Xattr("user.b", "2")), File("same2", "x", Xattr("user.b", "2"), Xattr("user.a", "1")),
			File("long", "x", Xattr("user."+strings.Repeat("n", 250), "value")))),
		valid("capability", Layer(
			File("ping", "x", Mode(0o755), Owner(0, 5), Xattr("security.capability", capability())),
			File("ping-setuid", "x", Mode(0o4755), Owner(1, 5), Xattr("security.capability", capability())),
			File("rooted", "x", Xattr("security.capability", capability3(1000))))),
		refused("invalid capability", "invalid argument", Layer(File("f", "x", Xattr("security.capability", "no")))),
		valid("other security attributes", Layer(File("f", "x", Xattr("security.selinux", "system_u:object_r:bin_t:s0\x00"), Xattr("security.ima2", "x")))),
		valid("user attributes where the kernel has none", Layer(
			Symlink("s", "t", Xattr("user.a", "1")), Fifo("p", Xattr("user.a", "1")), Char("c", 1, 3, Xattr("user.a", "1")), File("f", "", Xattr("user.a", "1")))),
		valid("security attributes on all types", Layer(
			Symlink("s", "t", Xattr("security.a", "1")), Fifo("p", Xattr("security.a", "1")), Char("c", 1, 3, Xattr("security.a", "1")))),
		valid("trusted attributes are dropped", Layer(
			File("f", "x", Xattr("trusted.a", "1"), Xattr("user.kept", "1")), Dir("d", Xattr("trusted.overlay.opaque", "y")),
			File("r", "x", Xattr("trusted.overlay.redirect", "/f"), Xattr("trusted.overlay.metacopy", "")))),
		valid("trusted opaque in a tar hides nothing", Layer(Dir("d"), File("d/a", "a")), Layer(Dir("d", Xattr("trusted.overlay.opaque", "y")))),
		valid("user overlay attributes are plain ones", Layer(Dir("d"), File("d/a", "a"), File("f", "f")),
			Layer(Dir("d", Xattr("user.overlay.opaque", "y")), File("f", "", Xattr("user.overlay.whiteout", "y"), Xattr("user.overlay.redirect", "/d/a")))),
		valid("unknown namespaces are dropped", Layer(File("f", "x", Xattr("foo.bar", "1"), Xattr("system.foo", "1"), Xattr("nodot", "1"), Xattr("user.a", "1")))),
		valid("other vendors' records are ignored", Layer(File("f", "x", PAX("LIBARCHIVE.xattr.user.a", "MQ"), PAX("SCHILY.fflags", "nodump"), PAX("comment", "c")))),
		refused("attribute without a name", "invalid argument", Layer(File("f", "x", Xattr("user.", "1")))),
		refused("attribute with a name of 256 bytes", "out of range", Layer(File("f", "x", Xattr("user."+strings.Repeat("n", 251), "1")))),
		// The limit of ext4: all attributes of an inode fit its free bytes and one block.
		refused("attribute longer than a block", "no space", Layer(File("f", "x", Xattr("user.a", strings.Repeat("v", 5000))))),
		valid("attribute of almost a block", Layer(File("f", "x", Xattr("user.a", strings.Repeat("v", 3900))), Dir("d", Xattr("user.a", strings.Repeat("w", 3900))))),
		valid("many attributes", Layer(many("short", 90, 3), many("long", 10, 300), many("short2", 90, 3))),
		valid("attributes of the upper file only", Layer(File("f", "x", Xattr("user.lower", "1"))), Layer(File("f", "x", Xattr("user.upper", "1")))),
	}
}

// aclCases are about POSIX ACLs. The mode of the entry is applied after them.
func aclCases() []Case {
	const access, dflt = "system.posix_acl_access", "system.posix_acl_default"
	full := acl(aclUserObj, 7, 0, aclUser, 5, 1000, aclUser, 6, 1001, aclGroupObj, 4, 0, aclGroup, 7, 50, aclMask, 7, 0, aclOther, 1, 0)
	return []Case{
		valid("access ACL whose mask is the mode's", Layer(File("f", "x", Mode(0o771), Xattr(access, full)), Dir("d", Mode(0o771), Xattr(access, full)))),
		valid("access ACL changed by the mode", Layer(
			File("f", "x", Mode(0o640), Xattr(access, full)), File("none", "x", Mode(0), Xattr(access, full)),
			File("bits", "x", Mode(0o6755), Xattr(access, full)), Dir("d", Mode(0o1700), Xattr(access, full)))),
		valid("minimal access ACL", Layer(
			File("same", "x", Mode(0o644), Xattr(access, acl(aclUserObj, 6, 0, aclGroupObj, 4, 0, aclOther, 4, 0))),
			File("other", "x", Mode(0o600), Xattr(access, acl(aclUserObj, 7, 0, aclGroupObj, 7, 0, aclOther, 7, 0))))),
		valid("access ACL with a mask only", Layer(File("f", "x", Mode(0o654), Xattr(access, acl(aclUserObj, 6, 0, aclGroupObj, 4, 0, aclMask, 4, 0, aclOther, 4, 0))))),
		valid("access ACL without entries", Layer(File("f", "x", Xattr(access, acl())))),
		valid("default ACL", Layer(Dir("d", Mode(0o750), Xattr(dflt, full)), Dir("both", Mode(0o2770), Xattr(dflt, full), Xattr(access, full)),
			Dir("minimal", Xattr(dflt, acl(aclUserObj, 7, 0, aclGroupObj, 5, 0, aclOther, 0, 0))))),
		valid("ACL on a device and a fifo", Layer(Char("c", 1, 3, Mode(0o660), Xattr(access, full)), Fifo("p", Mode(0o640), Xattr(access, full)))),
		valid("ACL on a symlink is dropped", Layer(Symlink("s", "t", Xattr(access, full)))),
		valid("ACL on a hardlink", Layer(File("a", "x", Mode(0o600), Xattr(access, full)), Hardlink("b", "a", Mode(0o666)))),
		valid("directory with an ACL stated again without", Layer(Dir("d", Mode(0o700), Xattr(access, full))), Layer(Dir("d", Mode(0o700)))),
		valid("directory with an ACL implied", Layer(Dir("d", Mode(0o751), Xattr(access, full))), Layer(File("d/f", "x"))),
		valid("directory with an ACL implied, then stated", Layer(Dir("d", Mode(0o751), Xattr(access, full))), Layer(File("d/f", "x"), Dir("d", Mode(0o705)))),
		refused("invalid ACL", "invalid argument", Layer(File("f", "x", Xattr(access, acl(aclUserObj, 6, 0, aclUser, 6, 5, aclGroupObj, 4, 0, aclOther, 4, 0))))),
		refused("default ACL on a file", "permission denied", Layer(File("f", "x", Xattr(dflt, full)))),
		artefact("children of a directory with a default ACL", "files created below inherit it", Layer(
			Dir("d", Xattr(dflt, full)), File("d/f", "x", Mode(0o640)), Dir("d/sub", Mode(0o711)))),
		artefact("children of an implied directory with a default ACL", "the implied directory copies the default ACL, files created below inherit it",
			Layer(Dir("d", Xattr(dflt, full))), Layer(File("d/f", "x", Mode(0o640)))),
	}
}
