// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/squash-snapshotter/squash/internal/treetest"
)

// written is a file that a layer has.
type written struct {
	layer   int
	content string
}

// recount is a naive count of what Build tells: layers are applied one after the other to a map of paths.
type recount struct {
	Overwritten, Deleted, Duplicate Waste
	LayerBytes, Visible, Distinct   uint64
	Layers                          []Layer // without what advice is made from
}

// grow draws an image of few names, so that they meet, and counts it.
func grow(rnd *rand.Rand) (layers [][]treetest.Step, r recount) {
	seen := map[string]written{}
	below := map[string]bool{} // contents
	for n := range 2 + rnd.IntN(5) {
		var steps []treetest.Step
		hidden, writes := map[string]bool{}, map[string]string{} // paths and directories; paths
		var opaque []string
		for range 1 + rnd.IntN(12) {
			dir := fmt.Sprint("d", rnd.IntN(3))
			p := fmt.Sprint(dir, "/f", rnd.IntN(4))
			switch k := rnd.IntN(10); {
			case hidden[dir] || hidden[p] || writes[p] != "":
			case k < 7:
				content := strings.Repeat(string(rune('a'+rnd.IntN(4))), []int{1, 100, 1024, 1025, 5000}[rnd.IntN(5)])
				writes[p] = content
				steps = append(steps, treetest.File(p, content))
			case k == 7:
				hidden[p] = true
				steps = append(steps, treetest.Whiteout(p))
			case k == 8:
				opaque = append(opaque, dir)
				steps = append(steps, treetest.Dir(dir), treetest.Opaque(dir))
			case !strings.Contains(fmt.Sprint(writes, opaque), dir):
				hidden[dir] = true
				steps = append(steps, treetest.Whiteout(dir))
			}
		}
		for _, dir := range opaque {
			hidden[dir] = true
		}
		r.Layers = append(r.Layers, Layer{})
		for p, old := range seen {
			dir, _, _ := strings.Cut(p, "/")
			size := uint64(len(old.content))
			switch {
			case writes[p] != "":
				r.Overwritten.add(size)
			case hidden[p] || hidden[dir]:
				r.Deleted.add(size)
			default:
				continue
			}
			r.Layers[old.layer].Shadowed += size
			delete(seen, p)
		}
		for p, content := range writes {
			l, size := &r.Layers[n], uint64(len(content))
			l.Files, l.Bytes = l.Files+1, l.Bytes+size
			r.LayerBytes += size
			if below[content] {
				l.Duplicate += size
			}
			seen[p] = written{n, content}
		}
		for _, content := range writes {
			below[content] = true
		}
		layers = append(layers, steps)
	}
	met := map[string]bool{}
	for _, f := range seen {
		size := uint64(len(f.content))
		r.Visible += size
		if met[f.content] {
			r.Duplicate.add(size)
		} else {
			met[f.content] = true
			r.Distinct += size
		}
	}
	return layers, r
}

func TestNumbersAreThoseOfARecount(t *testing.T) {
	var all recount
	for seed := range uint64(300) {
		layers, want := grow(rand.New(rand.NewPCG(seed, 9)))
		r := build(t, make([]string, len(layers)), layers...)
		got := recount{Overwritten: r.Overwritten, Deleted: r.Deleted, Duplicate: r.Duplicate, LayerBytes: r.LayerBytes, Visible: r.VisibleBytes, Distinct: r.DistinctBytes}
		for _, l := range r.Layers {
			got.Layers = append(got.Layers, Layer{Files: l.Files, Bytes: l.Bytes, Shadowed: l.Shadowed, Duplicate: l.Duplicate})
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("image %d: got\n%+v, want\n%+v", seed, got, want)
		}
		all.Overwritten.Files += want.Overwritten.Files
		all.Deleted.Files += want.Deleted.Files
		all.Duplicate.Files += want.Duplicate.Files
	}
	if all.Overwritten.Files < 300 || all.Deleted.Files < 300 || all.Duplicate.Files < 150 {
		t.Errorf("this test proves little: %+v", all)
	}
}
