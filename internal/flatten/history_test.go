// SPDX-License-Identifier: Apache-2.0

package flatten

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/squash-snapshotter/squash/internal/layer"
)

// told writes what Walk tells of paths other than the root: a line each, versions topmost first.
func told(t *testing.T, tree *Tree) string {
	t.Helper()
	var b strings.Builder
	err := tree.Walk(t.Context(), func(h *PathHistory) error {
		if h.Path == "" {
			return nil
		}
		b.WriteString(h.Path)
		for _, v := range h.Versions {
			fmt.Fprintf(&b, " %d:", v.Layer)
			switch v.Fate {
			case Visible:
				b.WriteString("seen")
			case Merged:
				b.WriteString("merged")
			case Overwritten:
				fmt.Fprintf(&b, "overwritten@%d", v.By)
			case Deleted:
				fmt.Fprintf(&b, "deleted@%d", v.By)
			}
			if v.Implied {
				b.WriteString(",implied")
			}
			if v.SameAs != "" {
				fmt.Fprintf(&b, ",same=%s", v.SameAs)
			}
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func TestHistoryOfPaths(t *testing.T) {
	for _, c := range []struct {
		name   string
		layers []string
		want   string
	}{
		{"one layer", []string{"d a\nf a/x =1"}, "a 0:seen\na/x 0:seen"},
		{"overwritten twice", []string{"f x =1", "f x =2", "f x =3"}, "x 2:seen 1:overwritten@2 0:overwritten@1"},
		{"deleted", []string{"f x =1", "w x"}, "x 0:deleted@1"},
		{"deleted, and there again", []string{"f x =1", "w x", "f x =2"}, "x 2:seen 0:deleted@1"},
		{"a directory is deleted with what is in it", []string{"d a\nd a/b\nf a/b/x =1", "w a"}, "a 0:deleted@1\na/b 0:deleted@1\na/b/x 0:deleted@1"},
		{"a directory made anew", []string{"d a\nf a/x =1\nf a/y =1", "d a\no a\nf a/x =2"}, "a 1:seen 0:deleted@1\na/x 1:seen 0:overwritten@1\na/y 0:deleted@1"},
		{"what came after that", []string{"d a\nf a/x =1", "d a\no a", "f a/x =3"}, "a 2:seen,implied 1:merged 0:deleted@1\na/x 2:seen 0:deleted@1"},
		{"deleted before its directory was", []string{"d a\nf a/x =1", "w a/x", "w a"}, "a 1:deleted@2,implied 0:deleted@2\na/x 0:deleted@1"},
		{"a file in place of a directory", []string{"d a\nf a/x =1", "w a\nf a =2"}, "a 1:seen 0:overwritten@1\na/x 0:deleted@1"},
		{"a directory in place of a file", []string{"f a =1", "w a\nd a\nf a/x =2"}, "a 1:seen 0:overwritten@1\na/x 1:seen"},
		{"directories merge", []string{"d a\nf a/x =1", "f a/y =2", "d a mode=700"}, "a 2:seen 1:merged,implied 0:merged\na/x 0:seen\na/y 1:seen"},
		{"names of one inode", []string{"f x =1\nh y ->x"}, "x 0:seen\ny 0:seen,same=x"},
		{"the first name is gone", []string{"f x =1\nh y ->x", "w x"}, "x 0:deleted@1,same=y\ny 0:seen"},
		{"all names are gone", []string{"f x =1\nh y ->x", "w x\nw y"}, "x 0:deleted@1\ny 0:deleted@1,same=x"},
		{"a name for a file of a lower layer", []string{"f x =1", "h y ->x"}, "x 1:seen,implied 0:overwritten@1\ny 1:seen,implied,same=x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree, err := merge(t, c.layers...)
			if err != nil {
				t.Fatal(err)
			}
			if got := told(t, tree); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// What Walk calls visible, as one layer, shows what the layers show.
func TestVisibleVersionsAreTheTree(t *testing.T) {
	merged := 0
	for seed := range uint64(300) {
		choose := rand.New(rand.NewPCG(seed, 5)).IntN
		var layers []Layer
		for _, l := range acceptable(growLayers(choose, 2+choose(5), 40)) {
			layers = append(layers, layerOf(t, l))
		}
		tree, err := Merge(t.Context(), layers)
		if err != nil {
			continue // what was left out made something else unacceptable
		}
		merged++
		var all []layer.Entry
		err = tree.Walk(t.Context(), func(h *PathHistory) error {
			v := h.Visible()
			for i, other := range h.Versions {
				if i > 0 && other.Layer >= h.Versions[i-1].Layer {
					t.Errorf("seed %d: %s: versions are not in the order of layers", seed, h.Path)
				}
				if hidden := other.Fate == Overwritten || other.Fate == Deleted; hidden && (other.By <= other.Layer || other.By >= len(layers)) {
					t.Errorf("seed %d: %s: layer %d was hidden by %d", seed, h.Path, other.Layer, other.By)
				}
			}
			if v == nil {
				return nil
			}
			e := v.Entry
			if v.SameAs != "" {
				e.Type, e.Target = layer.TypeHardlink, v.SameAs
			}
			all = append(all, e)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		alone, err := Merge(t.Context(), []Layer{layerOf(t, all)})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if got, want := show(alone), show(tree); got != want {
			t.Fatalf("seed %d: got\n%s\nwant\n%s", seed, got, want)
		}
	}
	if merged < 250 {
		t.Errorf("%d of 300 random images could be merged: this test proves little", merged)
	}
}

func TestResolvedPaths(t *testing.T) {
	tree, err := merge(t, "l bin ->usr/bin\nd usr\nd usr/bin\nl usr/bin/sh ->dash\nf usr/bin/dash =1\nl abs ->/usr/./bin/\nl usr/deep ->/bin\nl up ->../../bin\nl loop ->loop\nf file =")
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]string{
		"": "", "/": "", "/bin/sh": "usr/bin/sh", "bin": "bin", "bin/": "bin", "abs/dash": "usr/bin/dash", "usr/deep/dash": "usr/bin/dash", "up/../bin/sh": "usr/bin/sh",
		"nothing/x": "nothing/x", "bin/nothing": "usr/bin/nothing", "file/x": "file/x", "/../../usr/bin": "usr/bin", "loop/x": "loop/x",
	} {
		if got := tree.Resolve(p); got != want {
			t.Errorf("%q: got %q, want %q", p, got, want)
		}
	}
}
