// SPDX-License-Identifier: Apache-2.0

package treetest

// linkCases are about hardlinks.
func linkCases() []Case {
	group := Layer(
		Dir("d", Mode(0o751), Owner(9, 9), Mtime(90, 9)),
		File("d/a", "shared", Mode(0o640), Owner(1, 2), Mtime(10, 10), Xattr("user.a", "1")),
		Hardlink("b", "d/a", Mode(0o640), Owner(1, 2), Mtime(10, 10)),
		Hardlink("d/c", "/d/a", Mode(0o640), Owner(1, 2), Mtime(10, 10)),
	)
	return []Case{
		valid("hardlinks across directories", group),
		valid("hardlinks of an empty file", Layer(File("a", ""), Hardlink("b", "a"))),
		valid("hardlink to a hardlink", Layer(File("a", "x"), Hardlink("b", "a"), Hardlink("c", "./b"), Hardlink("e", "../../c"))),
		// The metadata of the link's header is applied to the inode.
		valid("hardlink with other metadata than its target", Layer(
			File("a", "x", Mode(0o600), Owner(1, 1), Mtime(1, 1), Xattr("user.a", "1"), Xattr("user.b", "1")),
			Hardlink("b", "a", Mode(0o4755), Owner(2, 3), Mtime(2, 2), Xattr("user.b", "2"), Xattr("user.c", "2")))),
		valid("hardlink drops the capability of its target", Layer(
			File("a", "x", Xattr("security.capability", capability())), Hardlink("b", "a"))),
		valid("hardlink repeats the capability of its target", Layer(
			File("a", "x", Xattr("security.capability", capability())), Hardlink("b", "a", Xattr("security.capability", capability())))),
		valid("hardlink with owner minus one drops the capability", Layer(
			File("a", "x", Owner(5, 6), Xattr("security.capability", capability())), Hardlink("b", "a", Owner(1<<32-1, 1<<32-1)))),
		valid("hardlink keeps owner by minus one", Layer(File("a", "x", Owner(5, 6)), Hardlink("b", "a", Owner(1<<32-1, 1<<32-1)))),
		valid("hardlink to a symlink", Layer(
			File("a", "x"), Symlink("s", "a", Mtime(1, 1)), Hardlink("t", "s", Owner(4, 4), Mtime(2, 2)))),
		valid("hardlink to a fifo and a device", Layer(
			Fifo("p"), Hardlink("p2", "p", Mode(0o622)), Block("k", 7, 300), Hardlink("k2", "k", Mode(0o660)))),
		valid("hardlink through a symlinked parent of the same layer", Layer(
			Dir("real"), File("real/a", "x"), Symlink("link", "real"), Hardlink("b", "link/a"), Hardlink("link/c", "b"))),
		valid("hardlink over an existing file", Layer(File("a", "x"), File("b", "other"), Hardlink("b", "a"))),
		valid("hardlink over an existing directory", Layer(File("a", "x"), Dir("e"), File("e/in", ""), Symlink("s", "e"), Hardlink("e", "a", Mtime(3, 3)))),
		valid("hardlink over another name of the same file", Layer(File("a", "x"), Hardlink("b", "a"), Hardlink("b", "a"))),
		// The other name keeps the old file.
		valid("hardlink, then the target replaced", Layer(File("a", "old"), Hardlink("b", "a"), File("a", "new"))),
		valid("hardlink into a replaced file", Layer(File("a", "old"), File("a", "new", Mode(0o600)), Hardlink("b", "a"))),
		valid("hardlink into a file that replaced a directory", Layer(Dir("a", Mtime(4, 4)), File("a", "x"), Hardlink("b", "a"))),

		valid("partly replaced group", group, Layer(File("b", "own"))),
		valid("partly removed group", group, Layer(Whiteout("d/a"))),
		valid("group down to one name", group, Layer(Whiteout("d/a"), Whiteout("d/c"))),
		valid("group hidden by an opaque directory", group, Layer(Dir("d"), Opaque("d"))),
		valid("group over a group of the same names", group, Layer(
			Dir("d"), File("d/a", "upper"), Hardlink("b", "d/a"), Hardlink("d/c", "d/a"))),
		valid("upper group that takes names of two lower groups",
			Layer(File("a1", "a"), Hardlink("a2", "a1"), File("b1", "b"), Hardlink("b2", "b1")),
			Layer(File("a2", "c"), Hardlink("b2", "a2"))),

		// The walking differ refuses these; on an overlay mount the lower
		// file is copied up and both names are of the upper layer.
		valid("hardlink to a file of a lower layer", Layer(File("a", "x", Mode(0o640), Mtime(1, 1))),
			Layer(Hardlink("b", "a", Mode(0o600), Owner(2, 2), Mtime(2, 2)))),
		valid("hardlink to a file of a lower group", group, Layer(Hardlink("n", "d/a", Mode(0o640), Owner(1, 2), Mtime(10, 10)))),
		valid("hardlink to a lower symlink", Layer(Symlink("s", "nowhere")), Layer(Hardlink("b", "s", Mtime(5, 5)))),
		valid("hardlinks to a lower file below new directories", Layer(File("a", "x")),
			Layer(Hardlink("p/q/b", "a"), Hardlink("p/c", "p/q/b"))),
		valid("hardlink to a file two layers below", Layer(File("a", "x")), Layer(File("other", "")), Layer(Hardlink("b", "a"))),

		refused("hardlink to a missing file", "no such file", Layer(Hardlink("b", "nothing"))),
		refused("hardlink to a file that comes later", "no such file", Layer(Hardlink("b", "a"), File("a", "x"))),
		refused("hardlink to itself", "the name is removed first", Layer(File("a", "x"), Hardlink("a", "a"))),
		refused("hardlink to a directory", "not permitted", Layer(Dir("d"), Hardlink("b", "d"))),
		refused("hardlink to a file that a lower layer has deleted", "no such file",
			Layer(File("a", "x")), Layer(Whiteout("a")), Layer(Hardlink("b", "a"))),
		refused("hardlink to a file deleted in the same layer", "no such file",
			Layer(Dir("d"), File("d/a", "x"), File("d", "file"), Hardlink("b", "d/a"))),
	}
}
