// SPDX-License-Identifier: Apache-2.0

package treetest

// replacementCases change the type of a name, between layers and within one.
func replacementCases() []Case {
	base := Layer(
		Dir("d", Mode(0o750), Mtime(100, 1), Xattr("user.lower", "1")),
		File("d/a", "a"),
		Dir("d/sub"),
		File("d/sub/x", "x"),
		Dir("e", Mode(0o701)),
		File("e/in", "e"),
		File("f", "f", Xattr("user.lower", "f")),
		Symlink("s", "d"),
	)
	return []Case{
		valid("file over directory", base, Layer(File("d", "file"))),
		valid("file over directory and back", base, Layer(File("d", "file")), Layer(Dir("d"), File("d/new", "n"))),
		valid("file over directory and back by implication", base, Layer(File("d", "file")), Layer(File("d/new", "n"))),
		valid("directory over file and back", base, Layer(Dir("f"), File("f/in", "x")), Layer(File("f", "file again"))),
		valid("directory over symlink", base, Layer(Dir("s"), File("s/in", "x"))),
		valid("symlink over directory", base, Layer(Symlink("d", "e"))),
		valid("symlink over directory and back", base, Layer(Symlink("d", "e")), Layer(Dir("d"), File("d/new", "n"))),
		valid("symlink over symlink", base, Layer(Symlink("s", "e", Owner(3, 4), Mtime(50, 5)))),
		valid("fifo over directory", base, Layer(Fifo("d", Mode(0o622)))),
		valid("device over file", base, Layer(Char("f", 1, 3, Mode(0o666)))),
		valid("file over file loses the lower attributes", base, Layer(File("f", "g"))),
		valid("directory over directory loses the lower attributes", base, Layer(Dir("d", Mode(0o500), Xattr("user.upper", "2")))),
		valid("empty file over file", base, Layer(File("f", ""))),

		valid("twice a file in one layer", Layer(File("f", "one", Xattr("user.a", "1")), File("f", "two two", Mode(0o600)))),
		valid("directory, then file in one layer", base, Layer(Dir("d"), File("d/a", "x"), File("d", "file"))),
		valid("file, then directory in one layer", base, Layer(File("d", "file", Xattr("user.f", "1")), Dir("d"), File("d/in", "x"))),
		valid("twice a directory in one layer", base, Layer(
			Dir("d", Mode(0o700), Owner(1, 1), Mtime(1, 1), Xattr("user.a", "1"), Xattr("user.b", "1")),
			File("d/new", "n"),
			Dir("d", Mode(0o1777), Owner(2, 2), Mtime(2, 2), Xattr("user.b", "2")))),
		valid("symlink, then directory in one layer", base, Layer(Symlink("n", "e"), Dir("n"), File("n/x", "x"))),
		valid("directory, then symlink in one layer", base, Layer(Dir("e"), Dir("n"), File("n/x", "x"), Symlink("n", "e"))),
		refused("file, then an entry below it in one layer", "a file is no directory", base, Layer(File("n", ""), File("n/x", "x"))),
		refused("directory with a stated child replaced by a file", "the time of the child is set at the end, below a file",
			Layer(Dir("d"), Dir("d/sub"), File("d", "file"))),

		// The time of a stated directory is set at the end of the layer by
		// name, whatever has this name then.
		valid("time of a replaced directory on the file", Layer(Dir("d", Mtime(7, 7)), File("d", "file", Mtime(8, 8)))),
		valid("time of a replaced directory on the target of a symlink", Layer(
			File("t", "t", Mtime(5, 5)), Dir("d", Mtime(7, 7)), Symlink("d", "t", Mtime(8, 8)))),
		refused("time of a replaced directory on a dangling symlink", "the target of the symlink is missing",
			Layer(Dir("d"), Symlink("d", "nowhere"))),
		refused("time of a replaced directory on a symlink into a lower layer", "the target of the symlink is not in this layer",
			base, Layer(Dir("d"), Symlink("d", "e"))),

		valid("entry below a symlinked parent of the same layer", base, Layer(
			Dir("real", Mtime(9, 9)), Symlink("link", "real"), File("link/x", "x"), Dir("link/sub", Mtime(10, 1)), File("real/sub/y", "y"))),
		valid("entry below a symlink to a lower directory", base, Layer(Symlink("link", "d"), File("link/a", "new a"), File("link/sub/y", "y"))),
		valid("entry below an absolute symlink", base, Layer(Symlink("link", "/d/sub"), File("link/y", "y"))),
		valid("entry below a symlink that leaves the root", base, Layer(Symlink("link", "../../../d"), File("link/y", "y"))),
		valid("entry below a symlink to the root", base, Layer(Symlink("link", "/"), File("link/y", "y"), File("link/d/z", "z"))),
		valid("entry below a dangling symlink", base, Layer(Symlink("link", "new/place"), File("link/y", "y"))),
		valid("entry below a chain of symlinks", base, Layer(
			Symlink("l1", "l2"), Symlink("l2", "/l3"), Symlink("l3", "d/sub"), File("l1/y", "y"))),
		valid("entry below a symlink in the middle", base, Layer(Dir("q"), Symlink("q/up", "../d"), File("q/up/sub/y", "y"))),
		valid("entry with dot dot behind a symlink", base, Layer(Dir("q"), Symlink("q/up", "../d/sub"), File("q/up/../z", "lexical"))),
		refused("entry below a symlink to itself", "too many links", base, Layer(Symlink("loop", "loop"), File("loop/x", ""))),
		artefact("entry below a chain of symlinks with dot dot", "relative targets are joined to a partly resolved path",
			Layer(Dir("d"), Dir("d/e"), Symlink("t2", "d/e"), Symlink("t1", "t2"), Symlink("d/e/s", "../x"), File("t1/s/f", "f"))),
		// The symlink of a lower layer is not seen: a directory takes its place.
		valid("entry below a symlinked parent of a lower layer", base, Layer(File("s/new", "n"))),
		valid("directory entry on a symlink of the same layer", base, Layer(Symlink("link", "d"), Dir("link", Mode(0o700)))),
		valid("symlink replaced after use", base, Layer(Symlink("link", "d"), File("link/one", "1"), Symlink("link", "e"), File("link/two", "2"))),
	}
}

// impliedCases are about parents that a layer needs but does not state.
func impliedCases() []Case {
	base := Layer(
		Dir("d", Mode(0o700), Owner(1000, 1000), Mtime(100, 100), Xattr("user.lower", "d"), Xattr("security.lower", "d")),
		Dir("d/sub", Mode(0o3775), Owner(1000, 50), Mtime(101, 0)),
		File("d/sub/x", "x"),
		File("f", "f"),
		Symlink("s", "d"),
		Symlink("out", "elsewhere"),
	)
	return []Case{
		valid("implied above nothing", Layer(File("a/b/c/f", "f"))),
		valid("implied above lower directories with metadata", base, Layer(File("d/sub/new", "n"))),
		valid("implied above lower directories, whiteout only", base, Layer(Whiteout("d/sub/x"))),
		valid("implied twice", base, Layer(File("d/sub/one", "1")), Layer(File("d/sub/two", "2"))),
		valid("implied above a lower file", base, Layer(File("f/x", "x"))),
		// Mode and owner come from the target of the lower symlink.
		valid("implied above a lower symlink to a directory", base, Layer(File("s/x", "x"))),
		valid("implied above a lower dangling symlink", base, Layer(File("out/x", "x"))),
		valid("implied above a lower symlink whose target is in another layer",
			Layer(Dir("t", Mode(0o711))), Layer(Symlink("s", "t")), Layer(File("s/x", "x"))),
		valid("implied below a directory that replaced a symlink",
			Layer(Dir("z"), Dir("z/b", Mode(0o700)), Symlink("a", "z")), Layer(Dir("a")), Layer(File("a/b/x", "x"))),
		valid("implied above a whiteout", base, Layer(Whiteout("d")), Layer(File("d/x", "x"))),
		refused("implied two levels above a whiteout", "the lookup in the layer with the whiteout goes through a non-directory",
			base, Layer(Whiteout("d")), Layer(File("d/sub/x", "x"))),
		refused("implied two levels above a lower file", "the lookup in the layer with the file goes through a non-directory",
			base, Layer(File("f/g/x", "x"))),
		valid("stated two levels above a whiteout", base, Layer(Whiteout("d")), Layer(Dir("d"), Dir("d/sub"), File("d/sub/x", "x"))),
		// What was copied from below stays when the directory is stated late.
		valid("implied, then stated", base, Layer(File("d/new", "n"), Dir("d", Mode(0o711), Owner(5, 6), Mtime(7, 8), Xattr("user.upper", "u")))),
		valid("stated, then used", base, Layer(Dir("d", Mode(0o711), Mtime(7, 8)), File("d/new", "n"))),
		valid("stated outer, implied inner", base, Layer(Dir("d", Mtime(7, 8)), File("d/sub/new", "n"), File("d/other/new", "n"))),
		valid("implied in a middle layer", base, Layer(File("d/sub/new", "n")), Layer(Dir("d/sub", Mode(0o700), Mtime(9, 9)))),
		// A new directory inherits the group of a setgid parent.
		valid("implied below a setgid directory", Layer(Dir("g", Mode(0o2775), Owner(3, 44)), File("g/new/f", "f"), File("g/new/er/f", "f"))),
		valid("implied below an implied setgid directory", base, Layer(File("d/sub/new/f", "f"))),
		valid("implied for a directory entry", base, Layer(Dir("d/sub/p/q", Mode(0o700), Mtime(3, 3)))),
		valid("implied for a hardlink", base, Layer(File("n", "n"), Hardlink("d/h", "n"))),
	}
}
