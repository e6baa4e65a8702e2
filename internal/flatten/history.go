// SPDX-License-Identifier: Apache-2.0

package flatten

import (
	"context"
	"slices"
	"strings"

	"github.com/squash-snapshotter/squash/internal/layer"
	"golang.org/x/sys/unix"
)

// Fate says what became of what a layer has under a path.
type Fate uint8

const (
	// Visible is what a container sees.
	Visible Fate = iota
	// Merged is a directory below another one: its names may be seen, its
	// metadata is not.
	Merged
	// Overwritten has had its path taken by a later layer.
	Overwritten
	// Deleted has been removed by a later layer, itself or a directory that it
	// is in.
	Deleted
)

// Version is what one layer has under a path.
type Version struct {
	Layer int // of the chain; the bottom one is 0
	// Entry tells type, metadata and content. Its Path is that of the history;
	// a hardlink has the type of what it links to.
	Entry layer.Entry
	// Implied: the layer does not state it. A directory that something in it
	// needs has the metadata of the one below; a file that the layer gives
	// another name has the content of the one below.
	Implied bool
	// SameAs is another path of the same inode in the same layer; "": there is
	// none, or this is the path that the others name. For what is visible it is
	// visible, too.
	SameAs string
	Fate   Fate
	By     int // Overwritten, Deleted: the layer that did it
}

// PathHistory is a path, relative to the root and "" for that, with what the
// layers have under it, the topmost one first. There is at least one.
type PathHistory struct {
	Path     string
	Versions []Version
}

// Visible returns what a container sees under the path; nil: nothing.
func (h *PathHistory) Visible() *Version {
	for i := range h.Versions {
		if h.Versions[i].Fate == Visible {
			return &h.Versions[i]
		}
	}
	return nil
}

// Walk calls f for every path that any layer has, visible or not: a directory
// before what is in it, names in byte order. The history is only good until f
// returns. A layer that states a path twice counts with what it says last.
func (t *Tree) Walk(ctx context.Context, f func(*PathHistory) error) error {
	w := walker{ctx: ctx, f: f, layers: len(t.layers), first: map[*node]string{}}
	root := make([]column, len(t.layers))
	for i, n := range t.layers {
		root[i] = column{depth: i, n: n, hiddenBy: none}
	}
	w.nameShared("", t.layers)
	return w.visit("", root)
}

// column is what a layer has under a path.
type column struct {
	depth int // of the layer; the topmost one is 0
	n     *node
	// hiddenBy is the depth of the layer nearest above that hides it or a directory
	// that it is in; none: it is not hidden.
	hiddenBy int
	deleted  bool // hiddenBy deleted it, or overwrote it
}

const none = -1

type walker struct {
	ctx    context.Context
	f      func(*PathHistory) error
	layers int
	first  map[*node]string // of inodes with several names: the path that the others name
	seen   int
	h      PathHistory // scratch
}

// nameShared names inodes with several names by the first visible one.
func (w *walker) nameShared(path string, dirs []*node) {
	for _, e := range list(dirs) {
		n := e.nodes[0]
		switch p := join(path, e.name); {
		case n.isDir():
			w.nameShared(p, e.nodes)
		case n.shared:
			if _, ok := w.first[n]; !ok {
				w.first[n] = p
			}
		}
	}
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// visit tells of a path, and of what is in its directories.
func (w *walker) visit(path string, columns []column) error {
	if w.seen++; w.seen%4096 == 0 && w.ctx.Err() != nil {
		return w.ctx.Err()
	}
	if err := w.tell(path, columns); err != nil {
		return err
	}
	columns = slices.DeleteFunc(columns, func(c column) bool { return !c.n.isDir() })
	var names []string
	for _, c := range columns {
		for name := range c.n.children {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if inside := under(columns, name); len(inside) > 0 {
			if err := w.visit(join(path, name), inside); err != nil {
				return err
			}
		}
	}
	return nil
}

// under returns what is under a name of directories.
func under(dirs []column, name string) []column {
	var found []column
	for i, dir := range dirs {
		n := dir.n.children[name]
		if n == nil || n.typ == layer.TypeWhiteout {
			continue
		}
		c := column{depth: dir.depth, n: n, hiddenBy: dir.hiddenBy, deleted: true}
		// What is nearest above decides.
		for j := i - 1; j >= 0 && dirs[j].depth > dir.hiddenBy; j-- {
			above := dirs[j].n.children[name]
			if above == nil || above.isDir() && n.isDir() && !above.opaque {
				continue
			}
			c.hiddenBy, c.deleted = dirs[j].depth, above.typ == layer.TypeWhiteout || above.isDir() && n.isDir()
			break
		}
		// The layer that hides the directory may itself have put something there.
		if c.hiddenBy == dir.hiddenBy && dir.hiddenBy != none {
			for _, above := range dirs[:i] {
				if above.depth != dir.hiddenBy {
					continue
				}
				if m := above.n.children[name]; m != nil && m.typ != layer.TypeWhiteout && !(m.isDir() && n.isDir()) {
					c.deleted = false
				}
			}
		}
		found = append(found, c)
	}
	return found
}

func (w *walker) tell(path string, columns []column) error {
	w.h.Path = path
	w.h.Versions = w.h.Versions[:0]
	seen := false
	for _, c := range columns {
		v := Version{Layer: w.layers - 1 - c.depth, Entry: c.n.entry(path), Implied: c.n.implied}
		switch {
		case c.hiddenBy == none && !seen:
			seen = true
		case c.hiddenBy == none:
			v.Fate = Merged
		default:
			v.Fate, v.By = Overwritten, w.layers-1-c.hiddenBy
			if c.deleted {
				v.Fate = Deleted
			}
		}
		if c.n.shared {
			first, ok := w.first[c.n]
			switch {
			case !ok:
				w.first[c.n] = path
			case first != path:
				v.SameAs = first
			}
		}
		w.h.Versions = append(w.h.Versions, v)
	}
	return w.f(&w.h)
}

// entry is what a TOC would say of a node.
func (n *node) entry(path string) layer.Entry {
	return layer.Entry{
		Type: n.typ, Path: path, Mode: n.mode, UID: n.uid, GID: n.gid, Mtime: n.mtime, MtimeNsec: n.mtimeNsec, Xattrs: n.xattrs,
		Size: n.size, Digest: n.digest, Inline: n.inline, Target: n.target, Major: unix.Major(n.rdev), Minor: unix.Minor(n.rdev),
	}
}

// Resolve returns the path to which p leads in what a container sees, symlinks
// on the way followed and the last name not. What cannot be found stays as it is.
func (t *Tree) Resolve(p string) string {
	p = strings.Trim(p, "/")
	var trail []string
	dirs, stacks := t.layers, [][]*node{}
	for links := 0; p != ""; {
		var name string
		name, p, _ = strings.Cut(p, "/")
		switch name {
		case "", ".":
			continue
		case "..":
			if len(trail) > 0 {
				dirs, trail, stacks = stacks[len(stacks)-1], trail[:len(trail)-1], stacks[:len(stacks)-1]
			}
			continue
		}
		nodes := stack(dirs, name)
		if len(nodes) > 0 && nodes[0].typ == layer.TypeSymlink && p != "" && links < maxLinks {
			links++
			if strings.HasPrefix(nodes[0].target, "/") {
				dirs, trail, stacks = t.layers, nil, nil
			}
			p = nodes[0].target + "/" + p
			continue
		}
		trail, stacks, dirs = append(trail, name), append(stacks, dirs), nodes
	}
	return strings.Join(trail, "/")
}
