// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "record the digests of the images in testdata instead of comparing them")

const digestFile = "testdata/digests.txt"

// TestImagesHaveTheRecordedDigests makes every change of the bytes an explicit
// one: flat images of different versions of this package would no longer be equal.
func TestImagesHaveTheRecordedDigests(t *testing.T) {
	got := map[string]string{}
	for _, tc := range trees {
		got[tc.name] = fmt.Sprintf("%x", sha256.Sum256(tc.build().image(t)))
	}
	if *rewrite {
		var b strings.Builder
		for _, name := range slices.Sorted(maps.Keys(got)) {
			fmt.Fprintf(&b, "%s  %s\n", got[name], name)
		}
		if err := os.WriteFile(digestFile, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	file, err := os.ReadFile(digestFile)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for line := range strings.Lines(string(file)) {
		digest, name, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		want[name] = digest
	}
	for _, tc := range trees {
		if got[tc.name] != want[tc.name] {
			t.Errorf("%s: image has sha256 %s, recorded is %q; run the test with -rewrite if the change is wanted", tc.name, got[tc.name], want[tc.name])
		}
	}
	if len(want) != len(got) {
		t.Errorf("%d digests are recorded, want %d", len(want), len(got))
	}
}

// TestImageDependsOnTheTreeAlone adds the inodes and links of a tree in other
// orders and expects the same bytes.
func TestImageDependsOnTheTreeAlone(t *testing.T) {
	for _, tc := range trees {
		want := tc.build().image(t)
		if !bytes.Equal(tc.build().image(t), want) {
			t.Errorf("%s: built twice, the images differ", tc.name)
		}
		if got := shuffled(tc.build()).image(t); !bytes.Equal(got, want) {
			t.Errorf("%s: built in another order, the image differs: %s", tc.name, firstDifference(got, want))
		}
	}
}

// shuffled is the same tree, added and linked in another order.
func shuffled(m *model) *model {
	rnd := rand.New(rand.NewPCG(3, 4))
	number := make([]Ino, len(m.inodes))
	inodes := slices.Clone(m.inodes)
	for k, i := range rnd.Perm(len(m.inodes) - 1) {
		number[i+1] = Ino(k + 1)
	}
	for i, in := range m.inodes {
		in.Xattrs = slices.Clone(in.Xattrs)
		rnd.Shuffle(len(in.Xattrs), func(a, b int) { in.Xattrs[a], in.Xattrs[b] = in.Xattrs[b], in.Xattrs[a] })
		inodes[number[i]] = in
	}
	links := slices.Clone(m.links)
	for k := range links {
		links[k].dir, links[k].child = number[links[k].dir], number[links[k].child]
	}
	rnd.Shuffle(len(links), func(a, b int) { links[a], links[b] = links[b], links[a] })
	return &model{opts: m.opts, inodes: inodes, links: links, packed: m.packed, packedDevice: m.packedDevice}
}
