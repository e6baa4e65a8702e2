// SPDX-License-Identifier: Apache-2.0

package treetest

import (
	"archive/tar"
	"strings"
)

// nameCases are about the spelling of names.
func nameCases() []Case {
	long := strings.Repeat("n", 255)
	deep := strings.Repeat("directory-with-a-name/", 40) // 880 bytes
	odd := []Step{Dir("odd")}
	for _, name := range []string{
		" ", "  lead", "trail ", "-rf", "--", "new\nline", "tab\t", "back\\slash", "\\040", "quote'\"", "*?[]", "$HOME", "#", "~",
		"\x01\x7f", "\xff\xfe", "caf\xc3\xa9", "caf\xe9", "e\u0301", "\u00e9", "\U0001f5dc", "...", "..x", "x..", ". ", "lower=a:b,c", "%2f",
		".wh", ".whx", "a.wh.", "wh.a", "A", "a", "LPT1", "=",
	} {
		odd = append(odd, File("odd/"+name, name), File("f"+name, ""))
	}
	return []Case{
		valid("long PAX name", Layer(File(deep+"file", "x"), Symlink("short", deep+"file"), Hardlink("link", deep+"file"))),
		valid("long GNU name", Layer(
			File(deep+"file", "x", GNU()), Symlink("short", deep+"file", GNU()), Hardlink(deep+"link", deep+"file", GNU()))),
		valid("name of 101 bytes in each format", Layer(
			File("ustar/"+strings.Repeat("u", 95), "u"),
			File("gnu/"+strings.Repeat("g", 97), "g", GNU()),
			File("pax/"+strings.Repeat("p", 97), "p", PAX("SCHILY.xattr.user.p", "p")))),
		valid("component of 255 bytes", Layer(
			Dir(long), File(long+"/"+long, "x"), Whiteout("other/"+long[:251]), File("gnu/"+long, "g", GNU()))),
		refused("component of 256 bytes", "name too long", Layer(File(long+"n", "x"))),
		valid("symlink target of 4095 bytes", Layer(Symlink("s", strings.Repeat("t", 4095)))),
		refused("symlink target of 4096 bytes", "name too long", Layer(Symlink("s", strings.Repeat("t", 4096)))),
		refused("empty symlink target", "no such file", Layer(Symlink("s", ""))),
		valid("symlink targets of many lengths", Layer(
			Symlink("s1", "t"), Symlink("s59", strings.Repeat("t", 59)), Symlink("s60", strings.Repeat("t", 60)),
			Symlink("s100", strings.Repeat("t", 100)), Symlink("s1000", strings.Repeat("/t", 500)),
			Symlink("odd", "//../\xff\n ."))),
		valid("odd names", Layer(odd...)),
		valid("spellings of one name", Layer(
			Dir("./a/"), File("/a/b", "b"), File("a//c", "c"), File("a/x/../d", "d"), File("./a/./e", "e"), File("../../../a/g", "g"),
			File("/../h", "h"), Hardlink("./i", "/a//b"), Symlink("a/../j", "./a/"))),
		valid("deleting by another spelling", Layer(Dir("a"), File("a/b", "b"), File("a/c", "c"), File("d", "d")),
			Layer(File("./a//.wh.b", ""), File("/a/x/../.wh.c", ""), File("../.wh.d", ""))),
		valid("names of the root", Layer(
			Dir("./", Mode(0o1777), Owner(3, 3), Mtime(1, 1), Xattr("user.root", "1")),
			Dir("/", Mode(0o700)), Dir("..", Mode(0o700)), Dir("a/..", Mode(0o700)), File(".", "x"), File("f", "f"))),
		valid("file whose name ends in a slash", Layer(
			Raw(rawEntry(rawHeader{name: "g/", typeflag: tar.TypeReg, mode: 0o600}, "content")),
			Raw(rawEntry(rawHeader{name: "old/", typeflag: 0, mode: 0o711}, "")),
			Raw(rawEntry(rawHeader{name: "older", typeflag: 0, mode: 0o611}, "content")))),
		valid("many names in one directory", Layer(manyNames(3000)...)),
	}
}

// manyNames fill a directory of several blocks in every file system.
func manyNames(n int) []Step {
	steps := []Step{Dir("many")}
	for i := range n {
		name := "many/" + strings.Repeat("x", i%50) + "-" + string(rune('a'+i%26)) + "-" + strings.Repeat("y", i/50)
		steps = append(steps, File(name, ""))
	}
	return steps
}
