// SPDX-License-Identifier: Apache-2.0

package flatten

import (
	"strings"

	"github.com/squash-snapshotter/squash/internal/layer"
)

// A path may lead through symlinks to another one, within the kernel's limits
// and those of containerd: symlinks met, bytes still ahead, names from the root.
const (
	maxLinks = 255
	maxAhead = 16 * pathMax
	maxTrail = pathMax / 2
	pathMax  = 4096
)

// walk leads along a path through one layer's tree. Symlinks are followed
// within the tree: their targets never lead above its root.
type walk struct {
	root  *node
	at    *node    // directory reached; nil before the first step
	trail []string // names that lead from the root to at
	nodes []*node  // directories along the trail, the root not included
	rest  string   // what is still ahead
	name  string   // component that next has found ahead
	links int
	lost  bool // the limits were reached
}

// next finds the next component that is a name; false at the end of the path,
// or when the walk is lost.
// The caller either enters a directory under that name or stops.
func (w *walk) next() bool {
	if w.at == nil {
		w.at = w.root
	}
	for w.rest != "" {
		w.name, w.rest, _ = strings.Cut(w.rest, "/")
		switch w.name {
		case "", ".":
			continue
		case "..":
			w.up()
			continue
		}
		n := w.at.children[w.name]
		if n == nil || n.typ != layer.TypeSymlink {
			w.lost = w.links > 0 && len(w.trail) >= maxTrail
			return !w.lost
		}
		w.links++
		if w.links > maxLinks || len(n.target)+len(w.rest) > maxAhead {
			w.lost = true
			return false
		}
		if strings.HasPrefix(n.target, "/") {
			w.at, w.trail, w.nodes = w.root, w.trail[:0], w.nodes[:0]
		}
		if w.rest == "" {
			w.rest = n.target
		} else {
			w.rest = n.target + "/" + w.rest
		}
	}
	return false
}

func (w *walk) up() {
	if len(w.trail) == 0 {
		return
	}
	w.trail, w.nodes = w.trail[:len(w.trail)-1], w.nodes[:len(w.nodes)-1]
	w.at = w.root
	if len(w.nodes) > 0 {
		w.at = w.nodes[len(w.nodes)-1]
	}
}

// enter goes into the directory n that stands under the current name.
func (w *walk) enter(n *node) {
	w.trail, w.nodes, w.at = append(w.trail, w.name), append(w.nodes, n), n
}

// path is the path of the current name, symlinks resolved.
func (w *walk) path() string {
	return strings.Join(append(w.trail[:len(w.trail):len(w.trail)], w.name), "/")
}

// find returns what p leads to in one layer's tree, the last symlink followed
// too; nil if there is no such name, or none that could be reached.
func (u *upper) find(root *node, p string) *node {
	if root == u.root && u.lastNode != nil && u.lastDir == p {
		return u.lastNode
	}
	w := walk{root: root, rest: p}
	for w.next() {
		n := w.at.children[w.name]
		if !n.isDir() {
			// Something that is no directory ends the path; it is what the
			// path leads to only if nothing is left of it.
			if strings.Trim(w.rest, "/.") != "" {
				return blocked(n)
			}
			return n
		}
		w.enter(n)
	}
	if w.lost {
		return nil
	}
	return w.at
}

// blocked is what a path leads to that goes on below a name which is there
// and is no directory: nothing that could be taken after, yet not absent.
func blocked(n *node) *node {
	if n == nil {
		return nil
	}
	return &node{typ: layer.TypeWhiteout}
}

// findLower returns what overlayfs over the lower layers shows under p,
// symlinks not followed; nil if nothing.
func (u *upper) findLower(p string) *node {
	dirs := u.lower
	for p != "" {
		var name string
		name, p, _ = strings.Cut(p, "/")
		dirs = stack(dirs, name)
		if len(dirs) == 0 {
			return nil
		}
		if !dirs[0].isDir() {
			if p != "" {
				return nil
			}
			return dirs[0]
		}
	}
	return dirs[0]
}

// stack returns the nodes that overlayfs merges under a name of a merged
// directory, topmost first: one node that is no directory, or directories down
// to the first opaque one. None if the name is hidden or absent.
func stack(dirs []*node, name string) []*node {
	var found []*node
	for _, d := range dirs {
		n := d.children[name]
		switch {
		case n == nil:
		case n.typ == layer.TypeWhiteout:
			return found
		case !n.isDir():
			if len(found) == 0 {
				return []*node{n}
			}
			return found
		default:
			found = append(found, n)
			if n.opaque {
				return found
			}
		}
	}
	return found
}
