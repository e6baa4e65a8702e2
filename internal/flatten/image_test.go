// SPDX-License-Identifier: Apache-2.0

package flatten

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/pack"
)

// places gives each content a place of its own, by the order of asking.
type places struct {
	next  uint32
	sizes map[layer.Digest]int64
	at    map[layer.Digest]pack.Placement
}

func (p *places) place(d layer.Digest) (pack.Placement, error) {
	if at, ok := p.at[d]; ok {
		return at, nil
	}
	size, ok := p.sizes[d]
	if !ok {
		return pack.Placement{}, fmt.Errorf("content %x: no such content", d[:4])
	}
	blocks := uint32((size + pack.BlockSize - 1) / pack.BlockSize)
	p.at[d] = pack.Placement{Block: p.next, Blocks: blocks, Stored: blocks, Size: uint64(size)}
	p.next += blocks
	return p.at[d], nil
}

// image writes the flat image of a tree, all contents being there.
func image(t testing.TB, tree *Tree) ([]byte, Stats, error) {
	t.Helper()
	p := &places{sizes: map[layer.Digest]int64{}, at: map[layer.Digest]pack.Placement{}}
	tree.Contents(func(d layer.Digest, size int64) { p.sizes[d] = min(size, 1<<40) })
	var b bytes.Buffer
	st, err := tree.WriteImage(context.Background(), &b, p.place)
	return b.Bytes(), st, err
}

const sampleBottom = `
	d etc
	f etc/passwd =root at=1000000000
	f etc/large size=100000 mode=600 own=1:2
	h etc/alias ->etc/large mode=600 own=1:2
	d usr
	d usr/bin mode=2755 own=0:5
	f usr/bin/tool size=5000000 mode=4755 security.capability=\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00
	l bin ->usr/bin
	d dev
	c dev/null 1:3 mode=666
	p dev/fifo
	d var
	f var/gone size=70000`

const sampleTop = `
	d etc user.note=stated
	f etc/passwd =new at=1500000000
	w etc/alias
	f usr/bin/extra size=5000000
	d var
	o var
	f var/empty =`

func sampleTree(t testing.TB) *Tree {
	t.Helper()
	tree, err := merge(t, sampleBottom, sampleTop)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// The same layers give the same image (invariant 5). The digest may change
// with the image's layout, which existing nodes notice in nothing.
func TestImageDigest(t *testing.T) {
	const want = "b8652399bd583cf35e52e2ea9036ae4c136556422a78dd906ecd8671b3315b45"
	for range 5 {
		b, _, err := image(t, sampleTree(t))
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		if got := hex.EncodeToString(sum[:]); got != want {
			t.Fatalf("digest %s, want %s", got, want)
		}
	}
}

func TestImageStats(t *testing.T) {
	b, st, err := image(t, sampleTree(t))
	if err != nil {
		t.Fatal(err)
	}
	// 6 directories with the root; passwd, large, tool, extra, empty; bin, null, fifo.
	want := Stats{Inodes: 6 + 5 + 3, Files: 5, Bytes: 3 + 100_000 + 2*5_000_000, Contents: 3, Image: int64(len(b))}
	if st != want {
		t.Errorf("%+v, want %+v", st, want)
	}
}

func TestContentsAreThoseShown(t *testing.T) {
	var got []int64
	sampleTree(t).Contents(func(d layer.Digest, size int64) { got = append(got, size) })
	if want := "[100000 5000000 5000000]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
	tree, err := merge(t, "f a size=5000\nh b ->a\nf c size=5000")
	if err != nil {
		t.Fatal(err)
	}
	got = nil
	tree.Contents(func(d layer.Digest, size int64) { got = append(got, size) })
	if len(got) != 2 {
		t.Errorf("%d contents of a hardlink group and a file, want 2", len(got))
	}
}

// One tree can be written any number of times.
func TestTreeIsWrittenAgain(t *testing.T) {
	tree := sampleTree(t)
	first, st1, err := image(t, tree)
	if err != nil {
		t.Fatal(err)
	}
	var skeleton bytes.Buffer
	if err := tree.WriteSkeleton(t.Context(), &skeleton); err != nil {
		t.Fatal(err)
	}
	second, st2, err := image(t, tree)
	if err != nil || !bytes.Equal(first, second) || st1 != st2 {
		t.Errorf("second image equals the first: %t, %+v, %+v, %v", bytes.Equal(first, second), st1, st2, err)
	}
	var again bytes.Buffer
	if err := sampleTree(t).WriteSkeleton(t.Context(), &again); err != nil || !bytes.Equal(skeleton.Bytes(), again.Bytes()) {
		t.Errorf("skeleton equals that of a new tree: %t, %v", bytes.Equal(skeleton.Bytes(), again.Bytes()), err)
	}
}

func TestErrorsOfPlacingPassThrough(t *testing.T) {
	tree := sampleTree(t)
	gone := errors.New("gone")
	var b bytes.Buffer
	n := 0
	_, err := tree.WriteImage(t.Context(), &b, func(layer.Digest) (pack.Placement, error) { n++; return pack.Placement{}, gone })
	if !errors.Is(err, gone) || b.Len() > 0 || n != 1 {
		t.Errorf("missing content: %v, %d bytes written, asked %d times", err, b.Len(), n)
	}
	_, err = tree.WriteImage(t.Context(), &b, func(layer.Digest) (pack.Placement, error) { return pack.Placement{Blocks: 1, Size: 7}, nil })
	if !errors.Is(err, layer.ErrDamaged) || b.Len() > 0 {
		t.Errorf("content of another size: %v, %d bytes written", err, b.Len())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p := &places{sizes: map[layer.Digest]int64{}, at: map[layer.Digest]pack.Placement{}}
	tree.Contents(func(d layer.Digest, size int64) { p.sizes[d] = size })
	if _, err = tree.WriteImage(ctx, &b, p.place); !errors.Is(err, context.Canceled) || b.Len() > 0 {
		t.Errorf("cancelled: %v, %d bytes written", err, b.Len())
	}
}

// growLayers makes layers of entries that may make no sense together. choose
// returns a number below its argument.
func growLayers(choose func(int) int, layers, entries int) [][]layer.Entry {
	names := []string{"a", "b", "c", "d", ".wh.x", "long name \xff"}
	name := func() string {
		p := names[choose(len(names))]
		for range choose(4) {
			p += "/" + names[choose(len(names))]
		}
		return p
	}
	var all [][]layer.Entry
	for range layers {
		var l []layer.Entry
		for range choose(entries) {
			e := layer.Entry{Type: 1 + layer.Type(choose(10)), Path: name()}
			if e.Type == layer.TypeDir && choose(20) == 0 {
				e.Path = ""
			}
			if e.Type == layer.TypeOpaque || e.Type == layer.TypeWhiteout {
				l = append(l, e)
				continue
			}
			e.Mode, e.Mtime, e.MtimeNsec = uint32(choose(0o10000)), int64(choose(1<<16))-1000, uint32(choose(3)*499_999_999)
			e.UID, e.GID = []uint32{0, 1000, 1<<32 - 1}[choose(3)], []uint32{0, 1000, 1<<32 - 1}[choose(3)]
			for _, x := range []string{"user.a", "user.b", "security.capability", "trusted.x", "system.posix_acl_access", "system.posix_acl_default", "other"} {
				if choose(8) == 0 {
					e.Xattrs = append(e.Xattrs, layer.Xattr{Name: x, Value: bytes.Repeat([]byte{byte(choose(4)), 0}, choose(30))})
				}
			}
			switch e.Type {
			case layer.TypeReg:
				if e.Size = []int64{0, 1, 1024, 1025, 1 << 20, 1 << 33}[choose(6)]; e.Size <= layer.InlineMax {
					e.Inline = bytes.Repeat([]byte{'i'}, int(e.Size))
				} else {
					e.Digest = sha256.Sum256(fmt.Append(nil, choose(5), e.Size))
				}
			case layer.TypeSymlink:
				e.Target = []string{"a", "/b", "../c", ".", "..", "a/../b", "/", "x/y", strings.Repeat("a/", 200)}[choose(9)]
			case layer.TypeHardlink:
				e.Target = name()
			case layer.TypeChar, layer.TypeBlock:
				e.Major, e.Minor = uint32(choose(5)), uint32(choose(5))
			}
			l = append(l, e)
		}
		all = append(all, l)
	}
	return all
}

// mergeEntries replays entries, leaving out what leads nowhere.
func mergeEntries(t testing.TB, all [][]layer.Entry) *Tree {
	t.Helper()
	tree := &Tree{}
	for _, l := range all {
		u := newUpper(tree.layers)
		for i := range l {
			err := u.add(&l[i])
			if err != nil && l[i].Type != layer.TypeHardlink && !errdefs.IsInvalidArgument(err) {
				t.Fatal(err)
			}
		}
		u.finish()
		tree.layers = append([]*node{u.root}, tree.layers...)
	}
	return tree
}

func TestRandomLayersMakeSoundImages(t *testing.T) {
	fsck, err := exec.LookPath("fsck.erofs")
	if err != nil {
		t.Skipf("no judge: %v", err)
	}
	for seed := range uint64(30) {
		choose := rand.New(rand.NewPCG(seed, 3)).IntN
		all := growLayers(choose, 1+choose(5), 100)
		b, _, err := image(t, mergeEntries(t, all))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		again, _, err := image(t, mergeEntries(t, all))
		if err != nil || !bytes.Equal(b, again) {
			t.Fatalf("seed %d: the same layers give another image: %v", seed, err)
		}
		file := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(fsck, "--device="+os.DevNull, file).CombinedOutput(); err != nil {
			t.Errorf("seed %d: %v\n%s", seed, err, out)
		}
	}
}

func FuzzMerge(f *testing.F) {
	for seed := range byte(8) {
		b := make([]byte, 500)
		rand.NewChaCha8([32]byte{seed}).Read(b)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		choose := func(n int) int {
			v := 0
			for limit := n - 1; limit > 0 && len(input) > 0; limit >>= 8 {
				v, input = v<<8|int(input[0]), input[1:]
			}
			return v % n
		}
		tree := mergeEntries(t, growLayers(choose, 4, 40))
		show(tree)
		if _, _, err := image(t, tree); err != nil {
			t.Error(err)
		}
		if err := tree.WriteSkeleton(context.Background(), &bytes.Buffer{}); err != nil {
			t.Error(err)
		}
	})
}
