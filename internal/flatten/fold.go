// SPDX-License-Identifier: Apache-2.0

package flatten

import "github.com/squash-snapshotter/squash/internal/layer"

// Below is what has to be known of that on which layers are stacked.
type Below struct {
	Root layer.Entry // metadata of its root directory
	// Directory tells whether it shows a directory under names that lead from
	// the root to it, symlinks not followed.
	Directory func(names []string) (bool, error)
}

// fold makes one directory of those of several layers, topmost first: on top of
// what lies below, overlayfs shows the same with it as with them. Unlike a flat
// directory it still says what it hides. names lead to it, and hides says that
// nothing shines through.
//
// A whiteout stays only where there is a directory to be merged with: in any
// other, overlayfs would list it as a name that cannot be found.
func fold(dirs []*node, names []string, hides bool, b *Below) (*node, error) {
	folded := *dirs[0]
	folded.opaque = hides
	folded.children = make(map[string]*node, len(dirs[0].children))
	merged, known := true, len(names) == 0 // every image has a root
	for _, d := range dirs {
		for name := range d.children {
			if folded.children[name] != nil {
				continue
			}
			nodes, ends := foldName(dirs, name)
			n := nodes[0]
			var err error
			switch {
			case n.isDir():
				n, err = fold(nodes, append(names[:len(names):len(names)], name), ends, b)
			case n.typ == layer.TypeWhiteout && hides:
				continue
			case n.typ == layer.TypeWhiteout && !known:
				merged, err = b.Directory(names)
				known = true
			}
			if err != nil {
				return nil, err
			}
			if merged || n.typ != layer.TypeWhiteout {
				folded.children[name] = n
			}
		}
	}
	return &folded, nil
}

// foldName returns what several layers have under a name that some of them has:
// one node that is no directory, or directories, topmost first; and whether these
// hide what lies below.
func foldName(dirs []*node, name string) (nodes []*node, ends bool) {
	for _, d := range dirs {
		n := d.children[name]
		switch {
		case n == nil:
		case !n.isDir():
			if len(nodes) == 0 {
				nodes = append(nodes, n)
			}
			return nodes, true
		default:
			nodes = append(nodes, n)
			if n.opaque {
				return nodes, true
			}
		}
	}
	return nodes, false
}

// below makes of the layers at the bottom of a chain what Directory is to tell
// of them.
func below(layers []*node) *Below {
	return &Below{Directory: func(names []string) (bool, error) {
		dirs := layers
		for _, name := range names {
			if dirs = stack(dirs, name); len(dirs) == 0 || !dirs[0].isDir() {
				return false, nil
			}
		}
		return len(dirs) > 0, nil
	}}
}
