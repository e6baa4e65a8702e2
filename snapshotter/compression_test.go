// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/pack"
	"golang.org/x/sys/unix"
)

// fileContent is the content of a file whose bytes are known at every offset
// without the ones before: whoever reads a part of the file can judge it. Its
// String is the file's name.
type fileContent struct {
	kind string
	seed uint64
	size int64
}

var contentKinds = []string{"text", "noise", "zeros", "textnoise", "noisetext", "patches"}

func (c fileContent) String() string { return fmt.Sprintf("%s-%d-%d", c.kind, c.seed, c.size) }

func parseContent(name string) (c fileContent, err error) {
	_, err = fmt.Sscanf(strings.ReplaceAll(name, "-", " "), "%s %d %d", &c.kind, &c.seed, &c.size)
	return c, err
}

// word returns the eight bytes from 8*i on.
func (c fileContent) word(i uint64) uint64 {
	x := (c.seed+1)*0x9e3779b97f4a7c15 + i*0xd1342543de82ef95
	x ^= x >> 32
	x *= 0xd6e8feb86659fd93
	x ^= x >> 29
	half := i*8 >= uint64(c.size)/2/8*8
	switch c.kind {
	case "noise":
		return x
	case "textnoise":
		if half {
			return x
		}
	case "noisetext":
		if !half {
			return x
		}
	case "patches": // of several kinds in turn, some of them whole clusters of zeros
		switch i / 12345 % 4 {
		case 0:
			return x
		case 2:
			return 0
		}
	}
	return binary.LittleEndian.Uint64([]byte(words[x>>58]))
}

// words are what text is made of.
var words = func() (w [64]string) {
	for i := range w {
		w[i] = fmt.Sprintf("%07o\n", i*i*i*7)
	}
	return w
}()

// An island is text around each whole GiB, and at the end, in a sea of zeros.
const (
	islandEvery = 1 << 30
	islandSize  = 100_000
)

// sea is how many bytes from off on are known to be zeros.
func (c fileContent) sea(off int64) int64 {
	switch c.kind {
	case "zeros":
		return c.size - off
	case "islands":
		if from := (off + islandSize/2) % islandEvery; from >= islandSize {
			return min(off+islandEvery-from, c.size-islandSize) - off
		}
	}
	return 0
}

// fill sets b to the bytes from off on.
func (c fileContent) fill(b []byte, off int64) {
	var w [8]byte
	for n := 0; n < len(b); {
		at := uint64(off) + uint64(n)
		if z := c.sea(int64(at)); z > 0 {
			end := n + int(min(z, int64(len(b)-n)))
			clear(b[n:end])
			n = end
			continue
		}
		v := c.word(at / 8)
		if at%8 == 0 && len(b)-n >= 8 {
			binary.LittleEndian.PutUint64(b[n:], v)
			n += 8
			continue
		}
		binary.LittleEndian.PutUint64(w[:], v)
		n += copy(b[n:], w[at%8:])
	}
}

// differs tells where b, which was read at off, is not what it should be.
func (c fileContent) differs(b []byte, off int64) error {
	want := make([]byte, len(b))
	if c.fill(want, off); bytes.Equal(b, want) {
		return nil
	}
	for i := range b {
		if b[i] != want[i] {
			return fmt.Errorf("%s: byte %d, read in %d bytes at %d: %#x, want %#x", c, off+int64(i), len(b), off, b[i], want[i])
		}
	}
	return nil
}

// reader yields the content.
func (c fileContent) reader() io.Reader { return io.NewSectionReader(contentAt{c}, 0, c.size) }

type contentAt struct{ fileContent }

func (c contentAt) ReadAt(b []byte, off int64) (int, error) {
	c.fill(b, off)
	return len(b), nil
}

// prose is noise that compresses.
func prose(n int, seed uint64) string {
	b := make([]byte, n)
	fileContent{"text", seed, int64(n)}.fill(b, 0)
	return string(b)
}

// writeLayer writes a layer of files in the directory d.
func writeLayer(w io.Writer, files []fileContent) error {
	tw := tar.NewWriter(w)
	buf := make([]byte, 1<<20)
	for _, c := range files {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "d/" + c.String(), Mode: 0o644, Size: c.size}); err != nil {
			return err
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{tw}, c.reader(), buf); err != nil {
			return err
		}
	}
	return tw.Close()
}

func layerOf(files ...fileContent) []byte {
	var b bytes.Buffer
	if err := writeLayer(&b, files); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// contentOfEverySize has files of all kinds at the sizes where something begins
// to be treated otherwise, and beside them; many small ones, and some of many
// clusters.
func contentOfEverySize() (files []fileContent) {
	const block, inline, shared, cluster, small = pack.BlockSize, 1024, 8 << 10, pack.ClusterSize, 1 << 20
	for i, at := range []int64{1, inline, block, 2 * block, shared, 2 * shared, cluster - block, cluster, cluster + block, 2 * cluster, small} {
		for _, size := range []int64{at - 1, at, at + 1} {
			for _, kind := range contentKinds {
				files = append(files, fileContent{kind, uint64(i), size})
			}
		}
	}
	for _, kind := range contentKinds[3:] {
		files = append(files, fileContent{kind, 100, small - block}, fileContent{kind, 101, small + block}, fileContent{kind, 102, 25*cluster + block + 1})
	}
	for i := range uint64(300) {
		files = append(files, fileContent{"text", 1000 + i, int64(500 + i*100)}, fileContent{"noise", 1000 + i, int64(1025 + i%7)})
	}
	return files
}

// Invariant 1 for file data: whatever the algorithm, the mount and the content,
// the kernel shows the bytes that the layers had, in whichever way it is asked.
func TestEveryContentIsReadAsItWas(t *testing.T) {
	t.Parallel()
	files := contentOfEverySize()
	img := image{layerOf(files[:len(files)/2]...), layerOf(files[len(files)/3:]...)} // a sixth comes twice
	for _, algorithm := range []string{"zstd", "lz4", "none"} {
		for _, mode := range []mounts.Mode{mounts.ModeFile, mounts.ModeLoop} {
			t.Run(algorithm+" "+string(mode), func(t *testing.T) {
				t.Parallel()
				n := nodeOf(t, mode, Compression{Algorithm: algorithm})
				top := n.pull("ns/1", img)
				_, root, _ := n.run(top)
				rng := rand.New(rand.NewPCG(1, 1))
				for what, read := range map[string]func(string, fileContent, *rand.Rand) error{"whole": readWhole, "here and there": readHereAndThere, "mapped": readMapped} {
					must(t, forgetCachedPages())
					for _, i := range rng.Perm(len(files)) {
						if err := read(filepath.Join(root, "d", files[i].String()), files[i], rng); err != nil {
							t.Errorf("%s: %v", what, err)
						}
					}
				}
			})
		}
	}
}

// nodeOf is newNode with compression.
func nodeOf(t *testing.T, mode mounts.Mode, c Compression) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts file systems")
	}
	n := closedNode(t, t.TempDir())
	n.cfg.Mount, n.cfg.Compression = mode, c
	n.open()
	return n
}

func readWhole(path string, c fileContent, _ *rand.Rand) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 256<<10)
	for off := int64(0); ; {
		n, err := io.ReadFull(f, b)
		if derr := c.differs(b[:n], off); derr != nil {
			return derr
		}
		off += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			if off != c.size {
				err = fmt.Errorf("%s ends after %d bytes", c, off)
				return err
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s at %d: %w", c, off, err)
		}
	}
}

// readHereAndThere reads some bytes at offsets that nothing is aligned to, behind the end
// of the file too.
func readHereAndThere(path string, c fileContent, rng *rand.Rand) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for range 8 {
		b := make([]byte, 1+rng.IntN(9000))
		off := rng.Int64N(c.size + 100)
		n, err := f.ReadAt(b, off)
		if want := min(int64(len(b)), max(c.size-off, 0)); int64(n) != want || err != nil && err != io.EOF {
			return fmt.Errorf("%s: %d bytes at %d, want %d: %w", c, n, off, want, err)
		}
		if err := c.differs(b[:n], off); err != nil {
			return err
		}
	}
	return nil
}

// readMapped looks at the pages of a mapping in any order. The last page has
// zeros behind the end of the file.
func readMapped(path string, c fileContent, rng *rand.Rand) error {
	if c.size == 0 {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	const page = 4096
	pages := (c.size + page - 1) / page
	m, err := unix.Mmap(int(f.Fd()), 0, int(pages)*page, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("map %s: %w", c, err)
	}
	defer unix.Munmap(m)
	for _, i := range rng.Perm(int(pages)) {
		b := m[i*page:][:page]
		in := min(page, c.size-int64(i)*page)
		if err := c.differs(b[:in], int64(i)*page); err != nil {
			return fmt.Errorf("mapped %w", err)
		}
		if n := len(bytes.TrimRight(b[in:], "\x00")); n > 0 {
			return fmt.Errorf("%s: mapped, a page holds %d bytes behind the end", c, n)
		}
	}
	return nil
}

// streamed is a content source that makes one blob when it is read.
type streamed struct {
	*blobs
	desc  ocispec.Descriptor
	files []fileContent
}

func (s streamed) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if desc.Digest != s.desc.Digest {
		return s.blobs.Open(ctx, desc)
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(writeLayer(w, s.files)) }()
	return r, nil
}

// A file that is larger than whatever has 32 bits somewhere, most of it zeros.
func TestAFileOfFiveGigabytes(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it has 5 GiB")
	}
	big := fileContent{"islands", 5, 5<<30 + 12345}
	n := closedNode(t, t.TempDir())
	source := streamed{n.blobs, ocispec.Descriptor{MediaType: plainType, Digest: digest.FromString("a large layer")}, []fileContent{big, {"text", 1, 2000}}}
	n.cfg.Content = source
	n.open()
	ctx := context.Background()
	m, err := n.Prepare(ctx, "ns/1/extract-1 big", "")
	must(t, err)
	_, err = n.Apply(ctx, source.desc, m)
	must(t, err)
	must(t, n.Commit(ctx, "ns/1/big", "ns/1/extract-1 big"))
	if st := n.pack.Stats(); st.Bytes < 5<<30 || st.Stored > 2<<20 {
		t.Errorf("the pack has %+v", st)
	}
	root, _ := n.view("ns/1/big")
	path := filepath.Join(root, "d", big.String())
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() != big.size {
		t.Fatalf("%v, %v", st, err)
	}
	read := func(off int64, size int) {
		t.Helper()
		b := make([]byte, min(int64(size), big.size-off))
		if _, err := f.ReadAt(b, off); err != nil {
			t.Fatal(err)
		}
		must(t, big.differs(b, off))
	}
	for gib := int64(1); gib <= 5; gib++ {
		read(gib<<30-300_000, 600_000)
	}
	read(0, 300_000)
	read(big.size-700_000, 700_000)
	rng := rand.New(rand.NewPCG(5, 5))
	for range 500 {
		read(rng.Int64N(big.size), 1+rng.IntN(200_000))
	}
	n.showsOnly(path, fileContent{"text", 1, 2000})
}

// showsOnly reads a file in the directory of path.
func (n *node) showsOnly(path string, c fileContent) {
	n.t.Helper()
	must(n.t, readWhole(filepath.Join(filepath.Dir(path), c.String()), c, nil))
}
