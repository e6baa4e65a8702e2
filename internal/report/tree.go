// SPDX-License-Identifier: Apache-2.0

package report

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"github.com/squash-snapshotter/squash/internal/flatten"
	"github.com/squash-snapshotter/squash/internal/layer"
)

// Directory is a node of the tree of what containers see. Its numbers include
// those of all below it, also of what is left out of Directories.
type Directory struct {
	Name      string
	Bytes     uint64 // of regular files, each inode once
	Files     uint64
	Duplicate uint64 // of Bytes: contents that came before, elsewhere
	Shadowed  uint64 // that layers had here and that were overwritten or deleted

	Directories []*Directory // largest first

	parent *Directory
}

// mostDirectories are kept of a tree; the smallest go first.
const mostDirectories = 2000

func (d *Directory) see(size uint64, again bool) {
	for ; d != nil; d = d.parent {
		d.Bytes, d.Files = d.Bytes+size, d.Files+1
		if again {
			d.Duplicate += size
		}
	}
}

func (d *Directory) shadow(size uint64) {
	for ; d != nil; d = d.parent {
		d.Shadowed += size
	}
}

// enter returns the directory to which what is told of a path belongs: itself,
// or that in which it is. A walk tells a directory before what is in it.
func (b *builder) enter(h *flatten.PathHistory) *Directory {
	if b.Tree == nil { // the root is told first
		b.Tree = &Directory{}
		b.dirs = []*Directory{b.Tree}
		return b.Tree
	}
	depth := strings.Count(h.Path, "/") + 1
	b.dirs = b.dirs[:min(depth, len(b.dirs))]
	in := b.dirs[len(b.dirs)-1]
	isDir := func(v flatten.Version) bool { return v.Entry.Type == layer.TypeDir }
	if slices.ContainsFunc(h.Versions, isDir) {
		d := &Directory{Name: path.Base(h.Path), parent: in}
		in.Directories = append(in.Directories, d)
		b.dirs = append(b.dirs, d)
	}
	return in
}

func (d *Directory) weight() uint64 { return d.Bytes + d.Shadowed }

// prune leaves the largest directories, of equal ones those that come first. None is larger than the one that it is in,
// and comes before it.
func (d *Directory) prune() {
	var all []*Directory
	d.each(func(d *Directory) { all = append(all, d) })
	slices.SortStableFunc(all, func(x, y *Directory) int { return cmp.Compare(y.weight(), x.weight()) })
	keep := map[*Directory]bool{}
	for _, d := range all[:min(len(all), mostDirectories)] {
		keep[d] = d.weight() > 0
	}
	d.each(func(d *Directory) {
		d.Directories = slices.DeleteFunc(d.Directories, func(d *Directory) bool { return !keep[d] })
		slices.SortFunc(d.Directories, func(x, y *Directory) int {
			return cmp.Or(cmp.Compare(y.weight(), x.weight()), cmp.Compare(x.Name, y.Name))
		})
	})
}

func (d *Directory) each(f func(*Directory)) {
	f(d)
	for _, c := range d.Directories {
		c.each(f)
	}
}

// caches are where programs put what only a build needs.
var caches = []string{"var/lib/apt/lists/", "var/cache/apt/", "var/cache/yum/", "var/cache/dnf/", "var/cache/apk/", "root/.cache/", "root/.npm/", "tmp/", "var/tmp/"}

func cache(p string) bool {
	return slices.ContainsFunc(caches, func(dir string) bool { return strings.HasPrefix(p, dir) })
}
