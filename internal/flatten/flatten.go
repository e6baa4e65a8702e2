// SPDX-License-Identifier: Apache-2.0

// Package flatten owns the step from layers to one tree: it reads the TOCs of
// a chain, settles what overlayfs over those layers would show, and writes it
// as an EROFS metadata image whose file data is in the pack.
//
//	TOC 1 … TOC N ──Merge──▶ tree ──WriteImage──▶ flat image   (digest ─▶ placement by a callback)
//	                           │└───WriteSkeleton─▶ directories and symlinks alone
//	                          Top
//	                           ▼
//	TOC K … TOC N ──Alone──▶ tree ──WriteImage──▶ layer image: a lower directory for overlayfs
//
// Kept here of the design's invariants: a container sees exactly what
// overlayfs over the same layers would show (1), the same layers and
// placements give the same image, byte for byte (5), and names are never
// paths on the host (6).
package flatten

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/squash-snapshotter/squash/internal/layer"
)

// Layer opens a TOC for reading.
type Layer func() (io.ReadCloser, error)

// Tree is what overlayfs over a chain of layers would show. Memory: some 250
// bytes per entry of all layers together.
type Tree struct {
	layers []*node // roots of the layers' uppers, topmost first
	// lower: there is one, to be written in the form in which overlayfs takes
	// it as a lower directory.
	lower bool
}

// Merge reads the layers' TOCs, the bottom one first.
//
// Damaged TOCs are reported as layer.ErrDamaged; a hardlink to a file that no
// layer has as ErrFailedPrecondition.
func Merge(ctx context.Context, layers []Layer) (*Tree, error) {
	if len(layers) == 0 {
		return &Tree{layers: []*node{newDir()}}, nil
	}
	return (&Tree{}).Extend(ctx, layers)
}

// Extend is Merge for layers on top of those of a tree that was merged, which
// stays as it is.
func (t *Tree) Extend(ctx context.Context, layers []Layer) (*Tree, error) {
	roots := t.layers
	for _, open := range layers {
		root, err := replay(ctx, open, newUpper(roots))
		if err != nil {
			return nil, fmt.Errorf("layer %d of %d: %w", len(roots)+1, len(t.layers)+len(layers), err)
		}
		roots = append([]*node{root}, roots...)
	}
	return &Tree{layers: roots}, nil
}

// ErrBelow marks a layer that cannot be replayed alone: it implies a directory
// or links to a file that only the layers below have.
var ErrBelow = errors.New("the layer cannot be told without those below it")

// Alone reads the TOCs of the topmost layers of a chain, the bottom one first,
// and makes one lower directory for overlayfs of them. Layers that were upper
// directories state all that is in them; where another one does not, the answer
// is ErrBelow.
func Alone(ctx context.Context, layers []Layer, below *Below) (*Tree, error) {
	r := &below.Root
	root := &node{mode: r.Mode, uid: r.UID, gid: r.GID, mtime: r.Mtime, mtimeNsec: r.MtimeNsec, xattrs: r.Xattrs}
	var roots []*node
	for _, open := range layers {
		u := newUpper(nil)
		u.alone = true
		u.root.takeAfter(root)
		var err error
		if root, err = replay(ctx, open, u); err != nil {
			return nil, err
		}
		roots = slices.Insert(roots, 0, root)
	}
	return lower(roots, below)
}

// Top makes the n topmost layers of a chain into one lower directory for
// overlayfs: what Alone makes of them, and of any others.
func (t *Tree) Top(n int) (*Tree, error) { return lower(t.layers[:n], below(t.layers[n:])) }

func lower(roots []*node, below *Below) (*Tree, error) {
	root, err := fold(roots, nil, false, below)
	if err != nil {
		return nil, fmt.Errorf("look up what lies below: %w", err)
	}
	return &Tree{layers: []*node{root}, lower: true}, nil
}

func replay(ctx context.Context, open Layer, u *upper) (*node, error) {
	f, err := open()
	if err != nil {
		return nil, fmt.Errorf("open TOC: %w", err)
	}
	defer f.Close()
	r, err := layer.NewReader(f)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var e layer.Entry
	for i := 0; ; i++ {
		if i%4096 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		switch err := r.Next(&e); {
		case errors.Is(err, io.EOF):
			u.finish()
			return u.root, nil
		case err != nil:
			return nil, err
		}
		if err := u.add(&e); err != nil {
			return nil, err
		}
	}
}

// entry is a name of a merged directory: the node on top, and for a directory
// all that are merged, the top one first.
type entry struct {
	name  string
	nodes []*node
}

// list returns what a merged directory shows, in byte order. dirs end at the
// first opaque one.
func list(dirs []*node) []entry {
	if len(dirs) == 1 {
		return listOne(dirs[0])
	}
	names := map[string]bool{}
	for _, d := range dirs {
		for name := range d.children {
			names[name] = true
		}
	}
	entries := make([]entry, 0, len(names))
	for name := range names {
		if nodes := stack(dirs, name); len(nodes) > 0 {
			entries = append(entries, entry{name, nodes})
		}
	}
	return sorted(entries)
}

// listOne is list for a directory that only one layer has, as most are.
func listOne(d *node) []entry {
	entries := make([]entry, 0, len(d.children))
	nodes := make([]*node, 0, len(d.children))
	for name, n := range d.children {
		if n.typ != layer.TypeWhiteout {
			nodes = append(nodes, n)
			entries = append(entries, entry{name, nodes[len(nodes)-1 : len(nodes) : len(nodes)]})
		}
	}
	return sorted(entries)
}

func sorted(entries []entry) []entry {
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return entries
}

// Files counts the names of regular files that the tree shows.
func (t *Tree) Files() uint64 {
	return count(t.layers, func(n *node) bool { return n.typ == layer.TypeReg })
}

// Names counts all names that the tree shows, the root included.
func (t *Tree) Names() uint64 { return 1 + count(t.layers, func(*node) bool { return true }) }

func count(dirs []*node, counts func(*node) bool) (n uint64) {
	for _, e := range list(dirs) {
		if counts(e.nodes[0]) {
			n++
		}
		if e.nodes[0].isDir() {
			n += count(e.nodes, counts)
		}
	}
	return n
}

// Contents calls f for every content that the tree shows, once per file.
func (t *Tree) Contents(f func(d layer.Digest, size int64)) {
	seen := map[*node]bool{} // those with several names
	var visit func(dirs []*node)
	visit = func(dirs []*node) {
		for _, e := range list(dirs) {
			switch n := e.nodes[0]; {
			case n.isDir():
				visit(e.nodes)
			case n.typ == layer.TypeReg && n.size > layer.InlineMax && !seen[n]:
				if n.shared {
					seen[n] = true
				}
				f(n.digest, n.size)
			}
		}
	}
	visit(t.layers)
}
