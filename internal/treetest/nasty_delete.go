// SPDX-License-Identifier: Apache-2.0

package treetest

import "archive/tar"

// deletionCases are about whiteouts and opaque directories.
func deletionCases() []Case {
	base := Layer(
		Dir("d", Mode(0o750), Owner(1, 2), Mtime(100, 1)),
		File("d/a", "a"),
		File("d/b", "b"),
		Dir("d/sub", Mode(0o711), Mtime(101, 0)),
		File("d/sub/x", "x"),
		Dir("d/sub/deep"),
		File("d/sub/deep/y", "y"),
		File("f", "f"),
		Symlink("s", "d"),
		Dir("empty"),
	)
	return []Case{
		valid("whiteout of a file", base, Layer(Whiteout("f"), Whiteout("d/a"))),
		valid("whiteout of a directory", base, Layer(Whiteout("d"))),
		valid("whiteout of a symlink keeps its target", base, Layer(Whiteout("s"))),
		valid("whiteout of an empty directory", base, Layer(Whiteout("empty"))),
		valid("whiteout of a missing name", base, Layer(Whiteout("nothing"), Whiteout("d/nothing"), Whiteout("new/nothing"))),
		valid("whiteout in the bottom layer", Layer(Dir("d"), File("d/a", "a"), Whiteout("d/gone"), Whiteout("gone"))),
		valid("whiteout of a name that only a still lower layer has", base, Layer(File("other", "")), Layer(Whiteout("f"))),
		valid("whiteouts of all names of a directory", base, Layer(Whiteout("d/a"), Whiteout("d/b"), Whiteout("d/sub"))),
		valid("whiteout, then a file in the next layer", base, Layer(Whiteout("f")), Layer(File("f", "again", Mode(0o600)))),
		valid("whiteout, then a directory in the next layer", base, Layer(Whiteout("d")), Layer(Dir("d", Mode(0o700)), File("d/new", "n"))),
		valid("whiteout, then an implied directory in the next layer", base, Layer(Whiteout("d")), Layer(File("d/new", "n"))),
		valid("whiteout, then nothing about it in the next layer", base, Layer(Whiteout("d")), Layer(File("other", "o"))),
		valid("whiteout and file of one name in one layer", base, Layer(Whiteout("f"), File("f", "again"))),
		// The whiteout gives way to a directory that is not opaque, so
		// the lower content is back.
		valid("whiteout and directory of one name in one layer", base, Layer(Whiteout("d"), Dir("d", Mode(0o700)), File("d/new", "n"))),
		valid("whiteout and symlink of one name in one layer", base, Layer(Whiteout("d"), Symlink("d", "empty"))),
		valid("whiteout and hardlink of one name in one layer", base, Layer(File("n", "n"), Whiteout("f"), Hardlink("f", "n"))),
		refused("whiteout and implied directory of one name in one layer", "a whiteout is no directory",
			base, Layer(Whiteout("d"), File("d/new", "n"))),
		refused("whiteout after a file of one name in one layer", "the whiteout device exists as a file",
			base, Layer(File("f", "again"), Whiteout("f"))),
		refused("whiteout after a directory of one name in one layer", "the whiteout device exists as a directory",
			base, Layer(Dir("d"), Whiteout("d"))),
		refused("whiteout twice in one layer", "the whiteout device exists", base, Layer(Whiteout("f"), Whiteout("f"))),
		valid("whiteout below a symlinked parent of the same layer", base, Layer(Symlink("link", "d"), Whiteout("link/a"))),
		valid("whiteout below a symlinked parent of a lower layer", base, Layer(Whiteout("s/a"))),
		valid("whiteout written as a directory entry", base, Layer(Dir("d/.wh.sub"))),
		valid("whiteout written as a symlink", base, Layer(Symlink(".wh.f", "d"))),
		valid("whiteout with content, owner and mode", base, Layer(File("d/.wh.a", "ignored", Owner(7, 8), Mode(0o6777), Xattr("user.a", "1")))),
		valid("whiteout of a whiteout-like name", base, Layer(File("d/x.wh.a", "1"), File("d/.wha", "2"), File(".wh", "3"), Dir("d/wh."))),
		valid("aufs names are whiteouts of .wh. names", base, Layer(File(".wh..wh.plnk", ""), File(".wh..wh.aufs", ""), Dir(".wh..wh.orph"))),
		// Only the last component decides.
		valid("entry below a .wh. directory", base, Layer(File("d/.wh.sub/x", "visible"))),
		refused("whiteout of nothing", "invalid whiteout name", base, Layer(File("d/.wh.", ""))),
		refused("whiteout of dot", "invalid whiteout name", base, Layer(File("d/.wh..", ""))),
		refused("whiteout of dot dot", "invalid whiteout name", base, Layer(File("d/.wh...", ""))),
		valid("hardlink to a whiteout", base, Layer(Whiteout("f"), Hardlink("d/a", "f"))),
		valid("replaced whiteouts go with their directory", base, Layer(Dir("d"), Whiteout("d/a"), File("d", "file"), Dir("d", Mode(0o705)))),

		valid("opaque marker first", base, Layer(Dir("d", Mode(0o700)), Opaque("d"), File("d/new", "n"), Dir("d/sub"))),
		valid("opaque marker before its directory", base, Layer(Opaque("d"), Dir("d", Mode(0o700), Mtime(5, 5)), File("d/new", "n"))),
		valid("opaque marker in the middle", base, Layer(Dir("d"), File("d/new", "n"), Opaque("d"), File("d/late", "l"))),
		valid("opaque marker last", base, Layer(Dir("d"), File("d/a", "new a"), Dir("d/sub"), File("d/sub/z", "z"), Opaque("d"))),
		valid("opaque marker twice", base, Layer(Opaque("d"), Dir("d"), Opaque("d"))),
		valid("opaque marker alone on an implied directory", base, Layer(Opaque("d"))),
		valid("opaque marker alone on implied directories", base, Layer(Opaque("d/sub/deep"))),
		valid("opaque marker on a new directory", base, Layer(Opaque("new/dir"))),
		valid("opaque marker on a lower file", base, Layer(Opaque("f"))),
		valid("opaque marker on a lower symlink", base, Layer(Opaque("s"))),
		valid("opaque marker below a symlinked parent of the same layer", base, Layer(Symlink("link", "d"), Opaque("link"))),
		// Overlayfs does not look at the flag of a layer's root.
		valid("opaque marker on the root", base, Layer(Opaque("."), File("new", "n"))),
		valid("opaque marker in the bottom layer", Layer(Dir("d"), Opaque("d"), File("d/a", "a"))),
		valid("opaque directory replaced by a file and a directory", base, Layer(Dir("d"), Opaque("d"), File("d", "x"), Dir("d"))),
		valid("opaque directory in a middle layer", base, Layer(Dir("d"), Opaque("d"), File("d/m", "m")), Layer(File("d/t", "t"))),
		// The metadata of the implied d/sub comes from below the opaque d.
		valid("implied directory hidden by an opaque one", base, Layer(Dir("d"), Opaque("d")), Layer(File("d/sub/t", "t"))),
		valid("whiteouts inside an opaque directory", base, Layer(Dir("d"), Opaque("d"), Whiteout("d/a"), File("d/b", "new b"))),
		valid("opaque marker written as a directory entry", base, Layer(Header(tar.Header{
			Typeflag: tar.TypeDir, Name: "d/.wh..wh..opq/", Mode: 0o700}, ""))),
		refused("opaque marker on a file of the same layer", "a file is no directory", base, Layer(File("d", "f"), Opaque("d"))),
	}
}
