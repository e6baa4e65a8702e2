// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/flatten"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/pack"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// hasher takes contents and keeps none.
type hasher struct{}

func (hasher) Put(r io.Reader, _ int64) (layer.Digest, error) {
	h := sha256.New()
	_, err := io.Copy(h, r)
	return layer.Digest(h.Sum(nil)), err
}

// treeOf merges layers that are tar streams.
func treeOf(t *testing.T, layers [][]byte) (*flatten.Tree, error) {
	t.Helper()
	var open []flatten.Layer
	for _, l := range layers {
		var b bytes.Buffer
		toc, err := layer.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		if err := layer.FromTar(t.Context(), bytes.NewReader(l), toc, hasher{}); err != nil {
			return nil, err
		}
		if _, err := toc.Finish(); err != nil {
			t.Fatal(err)
		}
		open = append(open, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	}
	return flatten.Merge(t.Context(), open)
}

// fakePlaces stores each content in clusters of its own of 1000 bytes; other images show those of an even first byte.
type fakePlaces struct{ lost bool }

func (f fakePlaces) Place(d layer.Digest) (uint32, uint64, bool, error) {
	if f.lost {
		return 0, 0, false, errdefs.ErrNotFound
	}
	return binary.LittleEndian.Uint32(d[4:]), 1000, d[0]%2 == 0, nil
}

func (fakePlaces) ImageBytes() uint64 { return 4096 }

// The numbers add up, and what containers see is what the flat image would hold.
func TestNumbersAddUp(t *testing.T) {
	images := treetest.Cases()
	for seed := range int64(60) {
		images = append(images, treetest.Random(t, seed))
	}
	reported := 0
	for _, c := range images {
		tree, err := treeOf(t, c.Layers)
		if err != nil {
			continue // refused
		}
		reported++
		r, err := Build(t.Context(), tree, make([]string, len(c.Layers)), fakePlaces{}, 5)
		if err != nil {
			t.Fatalf("%s: %v", c.Name, err)
		}
		if got := r.LayerBytes - r.Overwritten.Bytes - r.Deleted.Bytes; got != r.VisibleBytes {
			t.Errorf("%s: %d bytes of layers, %d overwritten, %d deleted, %d visible", c.Name, r.LayerBytes, r.Overwritten.Bytes, r.Deleted.Bytes, r.VisibleBytes)
		}
		if got := r.VisibleBytes - r.Duplicate.Bytes; got != r.DistinctBytes {
			t.Errorf("%s: %d bytes are visible, %d again, %d distinct", c.Name, r.VisibleBytes, r.Duplicate.Bytes, r.DistinctBytes)
		}
		if got := int64(r.DistinctBytes) - int64(r.Shared.Bytes) - r.Compression; got != int64(r.OwnBytes) {
			t.Errorf("%s: %d distinct bytes, %d shared, %d compressed away, %d on disk", c.Name, r.DistinctBytes, r.Shared.Bytes, r.Compression, r.OwnBytes)
		}
		stats, distinct := judge(t, tree)
		if uint64(stats.Bytes) != r.VisibleBytes || r.DistinctBytes != distinct || r.Tree.Bytes != r.VisibleBytes {
			t.Errorf("%s: %d visible bytes, %d in the tree, %d distinct; the image has %d and %d", c.Name, r.VisibleBytes, r.Tree.Bytes, r.DistinctBytes, stats.Bytes, distinct)
		}
		var added, shadowed uint64
		for _, l := range r.Layers {
			added, shadowed = added+l.Bytes, shadowed+l.Shadowed
		}
		if added != r.LayerBytes || shadowed != r.Overwritten.Bytes+r.Deleted.Bytes || shadowed != r.Tree.Shadowed {
			t.Errorf("%s: layers add %d bytes, of which %d (in the tree %d) are shadowed", c.Name, added, shadowed, r.Tree.Shadowed)
		}
	}
	if reported < 200 {
		t.Errorf("%d of %d images were reported: this test proves little", reported, len(images))
	}
}

// judge counts with what writes flat images.
func judge(t *testing.T, tree *flatten.Tree) (stats flatten.Stats, distinct uint64) {
	t.Helper()
	sizes := map[layer.Digest]int64{}
	tree.Contents(func(d layer.Digest, size int64) { sizes[d] = size })
	stats, err := tree.WriteImage(context.Background(), io.Discard, func(d layer.Digest) (pack.Placement, error) {
		return pack.Placement{Size: uint64(sizes[d]), Blocks: uint32(sizes[d]/pack.BlockSize) + 1}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range sizes {
		distinct += uint64(size)
	}
	tiny := map[string]bool{}
	if err := tree.Walk(t.Context(), func(h *flatten.PathHistory) error {
		if v := h.Visible(); v != nil && v.Entry.Type == layer.TypeReg && v.Entry.Size <= layer.InlineMax {
			tiny[string(v.Entry.Inline)] = true
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for content := range tiny {
		distinct += uint64(len(content))
	}
	return stats, distinct
}

func build(t *testing.T, commands []string, layers ...[]treetest.Step) *Report {
	t.Helper()
	var tars [][]byte
	for _, l := range layers {
		tars = append(tars, treetest.Layer(l...))
	}
	tree, err := treeOf(t, tars)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Build(t.Context(), tree, commands, fakePlaces{}, 2)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAdviceNamesTheLayerAndTheCause(t *testing.T) {
	mega := func(c string) string { return strings.Repeat(c, 2<<20) }
	r := build(t, []string{"ADD base", "RUN chown -R me /a", "RUN upgrade", "RUN rm", ""},
		[]treetest.Step{treetest.File("a", mega("a")), treetest.File("b", mega("b")), treetest.File("c", mega("c")+"c"), treetest.File("small", "1")},
		[]treetest.Step{treetest.File("a", mega("a"), treetest.Owner(1, 1))},
		[]treetest.Step{treetest.File("b", mega("B")+"BB"), treetest.File("small", "2")},
		[]treetest.Step{treetest.Whiteout("c"), treetest.File("tmp/cache", mega("t")+"ttt")},
		[]treetest.Step{treetest.File("copy", mega("a"))})
	want := []struct {
		layer int
		bytes int
		text  string
	}{
		{3, 2<<20 + 3, "caches"}, {0, 2<<20 + 1, "Layer 4 deletes 1 file"}, {0, 2<<20 + 1, "Layer 3 replaces 2 files"},
		{1, 2 << 20, "--chown"}, {4, 2 << 20, "1 file with the same content"},
	}
	if len(r.Advice) != len(want) {
		t.Fatalf("got %+v", r.Advice)
	}
	for i, w := range want {
		if a := r.Advice[i]; a.Layer != w.layer || a.Bytes != uint64(w.bytes) || !strings.Contains(a.Text, w.text) {
			t.Errorf("advice %d: got %+v, want %+v", i, a, w)
		}
	}
	if got := fmt.Sprint(r.Paths); got != fmt.Sprintf("[{b 2 %d} {a 2 %d}]", 4<<20+2, 4<<20) {
		t.Errorf("paths: got %s", got)
	}
	if len(r.Contents) != 1 || r.Contents[0].Count != 3 || fmt.Sprint(r.Contents[0].Paths) != "[a copy]" {
		t.Errorf("contents: got %+v", r.Contents)
	}
	if r.Layers[1].Duplicate != 2<<20 || r.Layers[4].Duplicate != 2<<20 || r.Layers[0].Duplicate != 0 {
		t.Errorf("layers: got %+v", r.Layers)
	}
}

func TestNothingIsWasted(t *testing.T) {
	r := build(t, []string{"ADD"}, []treetest.Step{treetest.File("a", strings.Repeat("a", 3<<20))})
	if len(r.Advice)+len(r.Paths)+len(r.Contents) != 0 || r.Efficiency() != 1 {
		t.Errorf("got %+v", r)
	}
	if r := build(t, nil); r.Efficiency() != 1 || r.Tree == nil {
		t.Errorf("without layers: got %+v", r)
	}
}

func TestContentThatIsNotStored(t *testing.T) {
	tree, err := treeOf(t, [][]byte{treetest.Layer(treetest.File("a", strings.Repeat("a", 3<<20)))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), tree, []string{""}, fakePlaces{lost: true}, 1); !errdefs.IsDataLoss(err) {
		t.Errorf("got %v, want data loss", err)
	}
}

// Small directories are left out, and their parents' numbers stay.
func TestTreeIsPruned(t *testing.T) {
	var steps []treetest.Step
	for i := range 3000 {
		steps = append(steps, treetest.File(fmt.Sprintf("d%04d/f", i), strings.Repeat("x", 1+i)))
	}
	r := build(t, []string{""}, steps)
	n := 0
	r.Tree.each(func(*Directory) { n++ })
	if n != mostDirectories || r.Tree.Files != 3000 || r.Tree.Directories[0].Name != "d2999" {
		t.Errorf("%d directories, %d files, the largest is %q", n, r.Tree.Files, r.Tree.Directories[0].Name)
	}
}

// Directories that are all alike are no reason to show none.
func TestTreeOfEqualsIsPruned(t *testing.T) {
	var wide, deep []treetest.Step
	for i := range 3000 {
		wide = append(wide, treetest.File(fmt.Sprintf("d%04d/f", i), "same"))
	}
	deep = append(deep, treetest.File(strings.Repeat("d/", 2040)+"f", "bottom"))
	for name, steps := range map[string][]treetest.Step{"wide": wide, "deep": deep} {
		r := build(t, []string{""}, steps)
		n := 0
		r.Tree.each(func(*Directory) { n++ })
		if n != mostDirectories {
			t.Errorf("%s: %d directories are left, want %d", name, n, mostDirectories)
		}
		if d := r.Tree.Directories[0]; name == "wide" && d.Name != "d0000" || name == "deep" && d.Files != 1 {
			t.Errorf("%s: the first is %q of %d files", name, d.Name, d.Files)
		}
	}
}

// The layer that copied is to blame, and the directory that it copied to, whatever their names.
func TestCopiesAreThoseOfTheLaterLayer(t *testing.T) {
	mega := strings.Repeat("x", 2<<20)
	r := build(t, []string{"ADD", "COPY"},
		[]treetest.Step{treetest.File("usr/original", mega)},
		[]treetest.Step{treetest.File("app/copy", mega), treetest.File("app/another", mega)})
	if len(r.Advice) != 1 || r.Advice[0].Layer != 1 || r.Advice[0].Bytes != 4<<20 {
		t.Errorf("got %+v, want that layer 2 has two copies", r.Advice)
	}
	for _, d := range r.Tree.Directories {
		if want := map[string]uint64{"app": 4 << 20, "usr": 0}[d.Name]; d.Duplicate != want {
			t.Errorf("%s: %d duplicate bytes, want %d", d.Name, d.Duplicate, want)
		}
	}
	if r.Tree.Duplicate != r.Duplicate.Bytes || r.Duplicate.Files != 2 {
		t.Errorf("got %+v, and %d in the tree", r.Duplicate, r.Tree.Duplicate)
	}
}
