// SPDX-License-Identifier: Apache-2.0

package containerdconfig

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"
)

// release is a version of containerd.
type release struct{ major, minor, patch int }

// Distributions append to versions what they like.
var releaseText = regexp.MustCompile(`^v?(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?(?:$|[^0-9.])`)

func parseRelease(text string) (release, error) {
	m := releaseText.FindStringSubmatch(text)
	if m == nil {
		return release{}, fmt.Errorf("containerd's version %q: is none that squashctl understands", text)
	}
	number := func(s string) int { n, _ := strconv.Atoi(s); return n }
	return release{number(m[1]), number(m[2]), number(m[3])}, nil
}

func (r release) atLeast(major, minor, patch int) bool {
	return cmp.Or(cmp.Compare(r.major, major), cmp.Compare(r.minor, minor), cmp.Compare(r.patch, patch)) >= 0
}

// Abilities are what a version of containerd can do for squash.
type Abilities struct {
	Differ bool // squash's differ, from 1.7.6
	Rebase bool // unpack layers side by side, from 2.2
	Reuse  bool // leave out layers that the node has, without downloading them, from 2.4
}

// AbilitiesOf tells what a version of containerd can do.
func AbilitiesOf(version string) (Abilities, error) {
	r, err := parseRelease(version)
	if err != nil {
		return Abilities{}, err
	}
	return Abilities{Differ: r.atLeast(1, 7, 6), Rebase: r.atLeast(2, 2, 0), Reuse: r.atLeast(2, 4, 0)}, nil
}
