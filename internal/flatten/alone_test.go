// SPDX-License-Identifier: Apache-2.0

package flatten

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/squash-snapshotter/squash/internal/layer"
)

const upperLayer = `
	d . mode=700 own=3:4 at=77 user.top=1
	d etc at=5
	o etc
	w etc/gone
	f etc/new size=5000
	h etc/same ->etc/new
	d usr
	w usr/tool
	f usr/small =small`

// aloneOn replays a layer by itself on others, of which it sees the root.
func aloneOn(t *testing.T, l string, chain ...string) (*Tree, error) {
	t.Helper()
	tree, err := merge(t, chain...)
	if err != nil {
		t.Fatal(err)
	}
	r := tree.layers[0]
	return Alone(context.Background(), []Layer{layerOf(t, entries(t, l))}, &Below{
		Root:      layer.Entry{Mode: r.mode, UID: r.uid, GID: r.gid, Mtime: r.mtime, MtimeNsec: r.mtimeNsec, Xattrs: r.xattrs},
		Directory: below(tree.layers).Directory,
	})
}

// An image that is built of one layer's TOC, and one that a check builds of all
// of them in its place, have the same bytes.
func TestALayerAloneIsTheTopOfItsChain(t *testing.T) {
	for _, bottom := range []string{"", "d . mode=750 at=3 user.a=1 trusted.b=2\nd usr\nf usr/tool =x"} {
		for _, top := range []string{upperLayer, "f file =rootless"} {
			alone, err := aloneOn(t, top, bottom)
			if err != nil {
				t.Fatal(err)
			}
			whole, err := merge(t, bottom, top)
			if err != nil {
				t.Fatal(err)
			}
			of, err := whole.Top(1)
			if err != nil {
				t.Fatal(err)
			}
			a, st, err := image(t, alone)
			b, st1, err1 := image(t, of)
			if err != nil || err1 != nil || !bytes.Equal(a, b) || st != st1 {
				t.Errorf("%q on %q: %v, %v; %+v by itself, %+v as the top of its chain", top, bottom, err, err1, st, st1)
			}
			flat, _, err := image(t, whole)
			if err != nil || bytes.Equal(flat, b) && strings.Contains(top, "w ") {
				t.Errorf("%q: the chain's image is that of its top: %v", top, err)
			}
		}
	}
}

// What only the layers below can tell is not guessed.
func TestALayerThatNeedsThoseBelowIsNotToldAlone(t *testing.T) {
	for what, l := range map[string]string{
		"implied directory":                "f usr/bin/new =",
		"implied directory of an opaque":   "o usr",
		"hardlink to a lower file":         "d usr\nh usr/link ->usr/tool",
		"implied directory of a hard link": "f new =\nh usr/link ->new",
	} {
		if _, err := aloneOn(t, l, "d usr\nd usr/bin\nf usr/tool =x"); !errors.Is(err, ErrBelow) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Layers that were folded into one show on others what they showed by
// themselves, whatever is in them.
func TestFoldedLayersShowWhatTheyShowed(t *testing.T) {
	for seed := range uint64(300) {
		choose := rand.New(rand.NewPCG(seed, 4)).IntN
		tree := mergeEntries(t, growLayers(choose, 2+choose(6), 60))
		n := 1 + choose(len(tree.layers))
		top, err := tree.Top(n)
		if err != nil {
			t.Fatal(err)
		}
		folded := &Tree{layers: append(top.layers[:1:1], tree.layers[n:]...)}
		if want, got := show(tree), show(folded); got != want {
			t.Fatalf("seed %d: %d of %d layers folded show\n%swant\n%s", seed, n, len(tree.layers), got, want)
		}
	}
}

// A whiteout in a directory that is merged with nothing would be listed.
func TestWhiteoutsStayWhereSomethingIsBelow(t *testing.T) {
	tree, err := merge(t, "d old\nf old/gone =\nf other =", "d new\nf new/gone =\nd hidden\nf hidden/gone =", "d new\nw new/gone\nd old\nw old/gone\no hidden\nw hidden/gone\nw other")
	if err != nil {
		t.Fatal(err)
	}
	top, err := tree.Top(2)
	if err != nil {
		t.Fatal(err)
	}
	root := top.layers[0].children
	if len(root["new"].children) > 0 || len(root["hidden"].children) > 0 {
		t.Error("a whiteout hides a name that nothing below has")
	}
	if root["other"] == nil || len(root["old"].children) != 1 || !root["hidden"].opaque || root["new"].opaque {
		t.Errorf("folded to %v, old %+v", root, root["old"])
	}
}
