// SPDX-License-Identifier: Apache-2.0

package flatten

import (
	"bytes"
	"context"
	"errors"
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
func aloneOn(t *testing.T, l string, below ...string) (*Tree, error) {
	t.Helper()
	tree, err := merge(t, below...)
	if err != nil {
		t.Fatal(err)
	}
	r := tree.layers[0]
	return Alone(context.Background(), layerOf(t, entries(t, l)), &layer.Entry{
		Mode: r.mode, UID: r.uid, GID: r.gid, Mtime: r.mtime, MtimeNsec: r.mtimeNsec, Xattrs: r.xattrs})
}

// An image that is built of one layer's TOC, and one that a check builds of all
// of them in its place, have the same bytes.
func TestALayerAloneIsTheTopOfItsChain(t *testing.T) {
	for _, below := range []string{"", "d . mode=750 at=3 user.a=1 trusted.b=2\nd usr\nf usr/tool =x"} {
		for _, top := range []string{upperLayer, "f file =rootless"} {
			alone, err := aloneOn(t, top, below)
			if err != nil {
				t.Fatal(err)
			}
			whole, err := merge(t, below, top)
			if err != nil {
				t.Fatal(err)
			}
			a, st, err := image(t, alone)
			b, st1, err1 := image(t, whole.Top())
			if err != nil || err1 != nil || !bytes.Equal(a, b) || st != st1 {
				t.Errorf("%q on %q: %v, %v; %+v by itself, %+v as the top of its chain", top, below, err, err1, st, st1)
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
