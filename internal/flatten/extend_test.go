// SPDX-License-Identifier: Apache-2.0

package flatten

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/squash-snapshotter/squash/internal/layer"
)

// Layers that are merged one after the other, on a tree that others read at the
// same time, give what they give all at once.
func TestExtendingIsMerging(t *testing.T) {
	merged := 0
	for seed := range uint64(300) {
		choose := rand.New(rand.NewPCG(seed, 9)).IntN
		var layers []Layer
		for _, l := range acceptable(growLayers(choose, 2+choose(5), 40)) {
			layers = append(layers, layerOf(t, l))
		}
		whole, err := Merge(t.Context(), layers)
		if err != nil {
			continue // what was left out made something else unacceptable
		}
		merged++
		n := 1 + choose(len(layers)-1)
		below, err := Merge(t.Context(), layers[:n])
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		before := show(below)
		read := make(chan string)
		go func() { read <- show(below) }()
		above, err := below.Extend(t.Context(), layers[n:])
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if got := <-read; got != before || show(below) != before {
			t.Fatalf("seed %d: the tree below became\n%sand was\n%s", seed, show(below), before)
		}
		a, _, errA := image(t, above)
		b, _, errB := image(t, whole)
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Fatalf("seed %d: %v, %v; extended\n%sat once\n%s", seed, errA, errB, show(above), show(whole))
		}
	}
	if merged < 250 {
		t.Errorf("%d of 300 random images could be merged: this test proves little", merged)
	}
}

// acceptable leaves out entries that no image could have, such as hardlinks to
// nothing.
func acceptable(all [][]layer.Entry) [][]layer.Entry {
	var roots []*node
	for i, l := range all {
		u := newUpper(roots)
		all[i] = slices.DeleteFunc(l, func(e layer.Entry) bool { return u.add(&e) != nil })
		u.finish()
		roots = append([]*node{u.root}, roots...)
	}
	return all
}
