// SPDX-License-Identifier: Apache-2.0

package treetest

import (
	"bytes"
	"testing"
)

// Every valid case can be shown and read; every refused one is refused, and
// at its top layer only.
func TestReferenceTakesWhatTheCasesSay(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range Cases() {
		if seen[c.Name] {
			t.Errorf("two cases have the name %q", c.Name)
		}
		seen[c.Name] = true
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			if c.Refused != "" {
				if err := Refusal(t, c.Layers); err == nil {
					t.Fatalf("the reference takes the image, want a refusal: %s", c.Refused)
				} else {
					t.Log(err)
				}
				if below := c.Layers[:len(c.Layers)-1]; len(below) > 0 {
					if err := Refusal(t, below); err != nil {
						t.Errorf("the reference refuses a layer below the top one: %v", err)
					}
				}
				return
			}
			tree, err := Read(Overlay(t, c.Layers))
			if err != nil {
				t.Fatal(err)
			}
			if len(tree.Ghosts) > 0 {
				t.Logf("ghosts: %q", tree.Ghosts)
			}
		})
	}
}

func TestCasesAreDeterministic(t *testing.T) {
	first, second := Cases(), Cases()
	for i := range first {
		for j := range first[i].Layers {
			if !bytes.Equal(first[i].Layers[j], second[i].Layers[j]) {
				t.Errorf("case %q: %s differs between two calls", first[i].Name, layerName(j, len(first[i].Layers)))
			}
		}
	}
}
