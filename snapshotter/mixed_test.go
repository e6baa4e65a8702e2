// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/pack"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// mixture are contents that are stored in every way that compression has.
func mixture(seed uint64) (files []fileContent) {
	for _, kind := range []string{"text", "noise"} {
		for i := range uint64(80) {
			files = append(files, fileContent{kind, seed + i, 3000})
		}
	}
	return append(files, fileContent{"text", seed, 50_000}, fileContent{"patches", seed, 700_000}, fileContent{"textnoise", seed, 3 << 20}, fileContent{"noise", seed, 400_000})
}

// form says how a content is stored.
func (n *node) form(c fileContent) (pack.Placement, string) {
	n.t.Helper()
	b, err := io.ReadAll(c.reader())
	must(n.t, err)
	p, err := n.pack.Lookup(pack.Digest(sha256.Sum256(b)))
	if err != nil {
		return p, "gone"
	}
	return p, fmt.Sprintf("%d %s", p.Encoding, p.Algorithm)
}

func (n *node) reopen(algorithm string) {
	n.t.Helper()
	n.close()
	n.cfg.Compression = Compression{Algorithm: algorithm}
	n.open()
}

func (n *node) reads(root string, files ...fileContent) {
	n.t.Helper()
	for _, c := range files {
		if err := readWhole(filepath.Join(root, "d", c.String()), c, nil); err != nil {
			n.t.Error(err)
		}
	}
}

// The setting changes over time: one image has contents of every kind, is
// looked after as any other, and can be mended while it is mounted.
func TestAStoreOfSeveralAlgorithms(t *testing.T) {
	t.Parallel()
	for _, mode := range []mounts.Mode{mounts.ModeFile, mounts.ModeLoop} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			testSeveralAlgorithms(t, mode)
		})
	}
}

func testSeveralAlgorithms(t *testing.T, mode mounts.Mode) {
	ctx := context.Background()
	first, second, third := mixture(100), mixture(200), mixture(300)
	img := image{layerOf(first...), layerOf(second...), layerOf(append(third, first[0], second[0])...)}
	all := append(append(append([]fileContent{}, first...), second...), third...)

	n := nodeOf(t, mode, Compression{Algorithm: "zstd"})
	n.pull("ns/1", img[:1])
	n.reopen("lz4")
	n.pull("ns/1", img[:2])
	n.reopen("none")
	top := n.pull("ns/1", img)
	must(t, n.Flatten(ctx, top))
	must(t, n.Cleanup(ctx))
	_, root, undo := n.run(top)
	n.reads(root, all...)

	byForm := map[string]fileContent{}
	for _, c := range all {
		_, form := n.form(c)
		byForm[form] = c
	}
	for _, form := range []string{"0 none", "1 zstd", "1 lz4", "2 zstd", "2 lz4", "2 none"} {
		if _, ok := byForm[form]; !ok {
			t.Errorf("no content is stored as %q: %v", form, byForm)
		}
	}

	// Every form is damaged and mended where it is.
	want, err := os.ReadFile(n.pack.Path())
	must(t, err)
	for form, c := range byForm {
		t.Run(form, func(t *testing.T) {
			n := &node{Snapshotter: n.Snapshotter, t: t}
			p, _ := n.form(c)
			overwrite(t, n.pack.Path(), int64(p.Block)*pack.BlockSize+1000, []byte(noise(int(p.Blocks)*pack.BlockSize-1000, 7)))
			must(t, forgetCachedPages())
			_ = readWhole(filepath.Join(root, "d", c.String()), c, nil) // so that the kernel keeps what is wrong
			findings, _ := n.checked(CheckOptions{})
			if len(findings) == 0 {
				t.Error("nothing was found")
			}
			found := len(findings)
			findings, sum := n.checked(CheckOptions{Repair: true})
			if len(findings) != found || sum.Repaired != uint64(found) {
				t.Errorf("repair: %+v", findings)
			}
			n.reads(root, c)
			if got, err := os.ReadFile(n.pack.Path()); err != nil || string(got) != string(want) {
				t.Errorf("the mended pack has other bytes: %v", err)
			}
		})
	}
	n.reads(root, all...)

	// An image of the lower layers alone shows what only the whole one hides.
	other := image{img[0], layerOf(fileContent{"text", 999, 90_000})}
	otherTop := n.pull("ns/2", other)
	n.removed("ns/1", img, undo)
	must(t, n.Cleanup(ctx))
	view, undoView := n.view(otherTop)
	n.reads(view, first...)
	n.reads(view, fileContent{"text", 999, 90_000})
	for _, c := range append(second[1:], third...) {
		if _, form := n.form(c); form != "gone" && c != first[0] && c != second[0] {
			t.Errorf("%s is still stored as %s", c, form)
		}
	}
	// Everything again, now with another algorithm beside what is left.
	undoView()
	n.reopen("zstd")
	top = n.pull("ns/3", img)
	root, undo = n.view(top)
	n.reads(root, all...)
	undo()
	if findings, _ := n.checked(CheckOptions{}); len(findings) > 0 {
		t.Errorf("%+v", findings)
	}
	n.removeAll()
	must(t, n.Cleanup(ctx))
	n.expectNothingLeft()
}

// removed ends a container and removes its image.
func (n *node) removed(prefix string, img image, undo func()) {
	n.t.Helper()
	undo()
	names := img.names(prefix)
	for i := len(names) - 1; i >= 0; i-- {
		must(n.t, n.Remove(context.Background(), names[i]))
	}
}

// Contents that an image hides are freed, also those that are compressed, and come
// back from the blob in whatever form the setting has by then.
func TestFreedContentComesBackInAnotherForm(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	hidden := mixture(400)
	img := image{layerOf(hidden...), treetest.Layer(treetest.Opaque("d"), treetest.File("d/shown", "shown"))}
	n := nodeOf(t, mounts.ModeAuto, Compression{Algorithm: "zstd"})
	top := n.pull("ns/1", img)
	must(t, n.Flatten(ctx, top))
	must(t, n.Cleanup(ctx))
	for _, c := range hidden {
		if _, form := n.form(c); form != "gone" {
			t.Errorf("%s is hidden and stored as %s", c, form)
		}
	}
	for _, algorithm := range []string{"lz4", "none"} {
		n.reopen(algorithm)
		lower := n.pull("ns/2", image{img[0], layerOf(fileContent{"text", 998, 2000})})
		root, undo := n.view(lower)
		n.reads(root, hidden...)
		for _, c := range hidden {
			if _, form := n.form(c); c.kind == "text" && c.size == 3000 && form != map[string]string{"lz4": "2 lz4", "none": "0 none"}[algorithm] {
				t.Errorf("%s is stored as %s, the setting is %s", c, form, algorithm)
			}
		}
		undo()
		must(t, n.Remove(ctx, lower))
		must(t, n.Remove(ctx, img.names("ns/2")[0]))
		must(t, n.Cleanup(ctx))
	}
	n.removeAll()
	must(t, n.Cleanup(ctx))
	n.expectNothingLeft()
}
