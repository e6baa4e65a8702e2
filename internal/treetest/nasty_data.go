// SPDX-License-Identifier: Apache-2.0

package treetest

import (
	"archive/tar"
	"fmt"
	"strings"
)

// text returns n bytes that compress well but hold no short period.
func text(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "line %d of a text\n", i)
	}
	return b.String()[:n]
}

// noise returns n bytes that do not compress; another seed, other bytes.
func noise(n int, seed uint64) string {
	b := make([]byte, n)
	x := seed*0x9e3779b97f4a7c15 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x >> 32)
	}
	return string(b)
}

func zeros(n int) string { return strings.Repeat("\x00", n) }

// dataCases are about the content of regular files.
func dataCases() []Case {
	var sizes []Step
	for i, n := range []int{
		0, 1, 2, 63, 64, 511, 512, 513, 1023, 1024, 1025, 2048, 4095, 4096, 4097, 8191, 8192, 8193,
		65535, 65536, 65537, 131071, 131072, 131073, 1<<20 - 1, 1 << 20, 1<<20 + 1,
	} {
		sizes = append(sizes, File(fmt.Sprintf("text%d", n), text(n)), File(fmt.Sprintf("noise%d", n), noise(n, uint64(i))))
	}
	var same []Step
	for i := range 40 {
		same = append(same, File(fmt.Sprintf("d%d/same", i), text(5000), Mode(int64(0o600+i))), File(fmt.Sprintf("tiny%d", i), "tiny"))
	}
	return []Case{
		valid("sizes", Layer(sizes...)),
		valid("one content under many names", Layer(same...), Layer(File("upper", text(5000)), File("d7/same", "tiny"), File("tiny1", text(5000)))),
		valid("contents with a common prefix", Layer(
			File("a", text(70000)), File("b", text(70001)), File("c", text(65536)), File("d", text(4096)), File("e", text(4097)))),
		valid("zeros", Layer(
			File("z1", zeros(1)), File("z4096", zeros(4096)), File("z4097", zeros(4097)), File("z8M", zeros(8<<20)),
			File("head", "x"+zeros(3<<20)), File("tail", zeros(3<<20)+"x"), File("middle", "head"+zeros(5<<20)+"tail"),
			File("blocks", strings.Repeat(text(4096)+zeros(4096), 20)))),
		valid("content shadowed by every upper layer", Layer(File("f", text(100_000))), Layer(File("f", noise(100_000, 1))), Layer(File("f", text(99_999)))),
		valid("content shadowed in one place and visible in another", Layer(File("f", text(30_000)), File("g", text(30_000))), Layer(Whiteout("f"))),
	}
}

// formatCases are about what else a tar stream may hold.
func formatCases() []Case {
	global := func(name string) Step {
		return Raw(rawEntry(rawHeader{name: name, typeflag: tar.TypeXGlobalHeader, mode: 0o644},
			paxRecords("comment", "0123456789abcdef", "mtime", "77")))
	}
	tmp := Layer(Dir("tmp", Mode(0o1777), Mtime(9, 9)), File("tmp/f", "f"))
	segments := []sparseSegment{{4096, "data"}, {70_000, strings.Repeat("more", 1000)}}
	return []Case{
		valid("PAX sparse 1.0", Layer(
			sparsePAX10("sparse", 100_000, segments...), sparsePAX10("hole", 1<<20), sparsePAX10("dir/dense", 4, sparseSegment{0, "full"}), File("after", "x"))),
		valid("PAX sparse 0.1", Layer(sparsePAX01("sparse", 100_000, segments...), File("after", "x"))),
		valid("PAX sparse 0.0", Layer(sparsePAX00("sparse", 100_000, segments...), File("after", "x"))),
		refused("GNU sparse", "type flag S", Layer(sparseGNU("sparse", 10_000, sparseSegment{512, strings.Repeat("d", 512)}))),
		refused("contiguous file", "type flag 7", Layer(Raw(rawEntry(rawHeader{name: "f", typeflag: tar.TypeCont, mode: 0o644}, "x")))),
		refused("volume label", "type flag V", Layer(Raw(rawEntry(rawHeader{name: "label", typeflag: 'V', gnu: true}, "")))),
		valid("global header", Layer(global("pax_global_header"), File("f", "f"))),
		// Nothing is created, but the parent is.
		valid("global header below a directory", tmp, Layer(global("tmp/GlobalHead.1.1"), File("f", "f"))),
		artefact("global header below a new directory", "a header that describes no file implies directories for its name", Layer(global("/tmp/GlobalHead.1.1"), File("f", "f"))),
		artefact("global header with the name of a file", "a header that describes no file removes the file of its name", tmp, Layer(File("f", "f"), global("f"), global("tmp/f"))),
		valid("hardlink with a size", Layer(File("a", "x"), Raw(rawHeader{name: "b", typeflag: tar.TypeLink, linkname: "a", mode: 0o600, size: 0}.encode()))),
		valid("size of a symlink is not followed by data", Layer(
			Raw(rawHeader{name: "s", typeflag: tar.TypeSymlink, linkname: "t", mode: 0o777, size: 600}.encode()), File("f", "x"))),
		refused("truncated content", "unexpected end", Layer(File("f", text(10_000)))[:4096]),
		valid("stream without end marker", Layer(File("f", "x"))[:1024]),
		valid("data behind the end marker", append(Layer(File("f", "x")), Layer(File("never", "seen"))...)),
		refused("damaged checksum", "invalid header", func() []byte {
			b := Layer(File("f", "x"))
			b[0] ^= 1
			return b
		}()),
	}
}

// stackCases are about the number of layers and about empty ones.
func stackCases() []Case {
	var deep [][]byte
	for i := range 128 {
		steps := []Step{
			File(fmt.Sprintf("f%d", i), fmt.Sprint(i)), File("same", fmt.Sprint(i), Mtime(int64(i), 0)),
			Dir(fmt.Sprintf("d%d", i%7), Mode(int64(0o700+i%8)), Mtime(int64(i), 5)), File(fmt.Sprintf("d%d/f%d", i%7, i), "x"),
		}
		if i >= 10 && i%3 == 0 {
			steps = append(steps, Whiteout(fmt.Sprintf("f%d", i-10)))
		}
		if i%20 == 19 {
			steps = append(steps, Opaque(fmt.Sprintf("d%d", i%7)))
		}
		deep = append(deep, Layer(steps...))
	}
	return []Case{
		valid("one empty layer", Layer()),
		valid("stream of no bytes", []byte{}),
		valid("empty layers between", Layer(), Layer(File("f", "x")), Layer(), Layer(Dir("./")), Layer(File("g", "y")), []byte{}),
		valid("layer with the root only", Layer(Dir("./", Mode(0o700), Owner(5, 5), Mtime(1, 1), Xattr("user.a", "1")))),
		valid("the same layer twice", Layer(Dir("d"), File("d/f", "x"), Hardlink("h", "d/f")), Layer(Dir("d"), File("d/f", "x"), Hardlink("h", "d/f"))),
		valid("everything deleted", Layer(Dir("d"), File("d/f", "x"), File("g", "y")), Layer(Whiteout("d"), Whiteout("g"))),
		valid("128 layers", deep...),
	}
}
