// SPDX-License-Identifier: Apache-2.0

package treetest

import (
	"fmt"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

// Random images are valid, the same seed gives the same image, and together
// they have what they are for.
func TestRandomImages(t *testing.T) {
	const seeds = 40
	var layers, entries, implied, linked, xattrs, symlinks int
	for seed := range int64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			c := Random(t, seed)
			if seed%10 == 0 && !reflect.DeepEqual(c, Random(t, seed)) {
				t.Fatal("the same seed gives two images")
			}
			tree, err := Read(Overlay(t, c.Layers))
			if err != nil {
				t.Fatal(err)
			}
			layers += len(c.Layers)
			entries += len(tree.Entries)
			for _, e := range tree.Entries {
				implied += count(e.Implied)
				linked += count(e.Links != nil)
				xattrs += count(e.Xattrs != nil)
				symlinks += count(e.Mode&unix.S_IFMT == unix.S_IFLNK)
			}
		})
	}
	t.Logf("%d images: %d layers, %d entries, of these implied directories %d, hardlinks %d, with xattrs %d, symlinks %d",
		seeds, layers, entries, implied, linked, xattrs, symlinks)
	for name, n := range map[string]int{"implied directories": implied, "hardlinks": linked, "xattrs": xattrs, "symlinks": symlinks} {
		if n < seeds/2 {
			t.Errorf("only %d %s in %d images", n, name, seeds)
		}
	}
}

func count(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

func BenchmarkRandom(b *testing.B) {
	for i := range b.N {
		Random(b, int64(i))
	}
}

func BenchmarkOverlayAndRead(b *testing.B) {
	c := Random(b, 1)
	for b.Loop() {
		if _, err := Read(Overlay(b, c.Layers)); err != nil {
			b.Fatal(err)
		}
	}
}
