// SPDX-License-Identifier: Apache-2.0

package flatten

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/layer"
	"golang.org/x/sys/unix"
)

// node is an inode of one layer: what overlayfs would find in that layer's
// upper directory. Several names may lead to one node that is no directory.
type node struct {
	typ       layer.Type
	opaque    bool // TypeDir: hides what lower layers have in it
	mode      uint32
	uid, gid  uint32
	mtime     int64
	mtimeNsec uint32
	xattrs    []layer.Xattr

	size   int64
	digest layer.Digest
	inline []byte
	target string
	rdev   uint64

	shared   bool             // has, or had, several names
	implied  bool             // the layer does not state it, and has it after what lies below
	children map[string]*node // TypeDir
}

func newDir() *node {
	return &node{typ: layer.TypeDir, mode: 0o755, children: map[string]*node{}}
}

func (n *node) isDir() bool { return n != nil && n.typ == layer.TypeDir }

// upper replays one layer's entries as containerd's applier would carry them
// out in an overlay upper directory. Where that applier refuses a layer, and
// the layer's intention is plain, the intention is followed.
type upper struct {
	root *node
	// lower are the roots of the layers below, topmost first: implied
	// directories take after them, hardlinks may name their files.
	lower []*node
	alone bool // lower is not known
	// dirTimes are the directories as stated, in order: their times are set
	// again when all is done, on whatever then has the name.
	dirTimes []dirTime

	// The parent found last; entries of one directory stand together. Emptied
	// whenever a name stops leading where it led.
	lastDir  string
	lastNode *node
}

type dirTime struct {
	path string
	sec  int64
	nsec uint32
}

func newUpper(lower []*node) *upper {
	root := newDir()
	root.implied = true
	if len(lower) > 0 {
		root.takeAfter(lower[0])
	}
	return &upper{root: root, lower: lower}
}

// takeAfter copies the metadata that an implied directory has from the one
// below. The host's own attributes stay behind.
func (n *node) takeAfter(o *node) {
	n.mode, n.uid, n.gid, n.mtime, n.mtimeNsec = o.mode, o.uid, o.gid, o.mtime, o.mtimeNsec
	n.xattrs = slices.DeleteFunc(slices.Clone(o.xattrs), func(x layer.Xattr) bool { return strings.HasPrefix(x.Name, "trusted.") })
}

// add carries out one entry.
func (u *upper) add(e *layer.Entry) error {
	if e.Path == "" {
		if e.Type == layer.TypeDir {
			u.root.apply(e)
		}
		return nil // an opaque root hides nothing
	}
	if e.Type == layer.TypeOpaque {
		dir, err := u.parent(e.Path)
		if err == nil {
			dir.opaque = true
		}
		return err
	}
	dir, name := path.Split(e.Path)
	name = strings.Clone(name) // not the whole path, for as long as the tree lives
	parent, err := u.parent(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return err
	}
	old := parent.children[name]
	switch e.Type {
	case layer.TypeWhiteout:
		// It speaks of lower layers: what this one has stays.
		if old.isDir() {
			old.opaque = true
		} else if old == nil {
			parent.children[name] = &node{typ: layer.TypeWhiteout}
		}
		return nil
	case layer.TypeDir:
		u.dirTimes = append(u.dirTimes, dirTime{e.Path, e.Mtime, e.MtimeNsec})
		if old.isDir() {
			old.apply(e)
			return nil
		}
	case layer.TypeHardlink:
		return u.link(parent, name, e)
	}
	if old != nil {
		u.lastNode = nil
	}
	n := &node{typ: e.Type, size: e.Size, digest: e.Digest, inline: e.Inline, target: e.Target}
	switch e.Type {
	case layer.TypeDir:
		n.children = map[string]*node{}
	case layer.TypeChar, layer.TypeBlock:
		n.rdev = unix.Mkdev(e.Major, e.Minor)
		if e.Type == layer.TypeChar && n.rdev == 0 {
			n.typ = layer.TypeWhiteout // what overlayfs takes it for
		}
	}
	n.inherit(parent)
	n.apply(e)
	parent.children[name] = n
	return nil
}

// link gives the target's node a second name and the entry's metadata.
func (u *upper) link(parent *node, name string, e *layer.Entry) error {
	dir, base := path.Split(e.Target)
	targetDir := u.find(u.root, strings.TrimSuffix(dir, "/"))
	var target *node
	copied := false
	if targetDir.isDir() {
		target = targetDir.children[base]
	}
	if target == nil {
		// Only a lower layer has the file. A real overlay would copy it up
		// first, and so both names belong to this layer.
		if u.alone {
			return fmt.Errorf("hardlink %q to %q: %w", e.Path, e.Target, ErrBelow)
		}
		below := u.findLower(e.Target)
		if below == nil || below.isDir() {
			return fmt.Errorf("hardlink %q: its target %q is in none of the layers: %w", e.Path, e.Target, errdefs.ErrFailedPrecondition)
		}
		targetDir, err := u.parent(strings.TrimSuffix(dir, "/"))
		if err != nil {
			return err
		}
		up := *below
		target, copied = &up, true
		targetDir.children[strings.Clone(base)] = target
	}
	if target.isDir() {
		return fmt.Errorf("hardlink %q: its target %q is a directory: %w", e.Path, e.Target, errdefs.ErrFailedPrecondition)
	}
	if target.typ != layer.TypeWhiteout {
		// Changing the owner drops capabilities.
		target.dropXattr(capability)
		target.apply(e)
	}
	target.implied = target.implied || copied
	if parent.children[name] != nil {
		u.lastNode = nil
	}
	parent.children[name] = target
	target.shared = true
	return nil
}

// finish does what comes after the last entry.
func (u *upper) finish() {
	for _, d := range u.dirTimes {
		if n := u.find(u.root, d.path); n != nil && n.typ != layer.TypeWhiteout {
			n.mtime, n.mtimeNsec = d.sec, d.nsec
		}
	}
	u.dirTimes, u.lastNode = nil, nil
}

// parent returns the directory that p leads to within this layer, and makes
// what is missing of it. ErrInvalidArgument: its symlinks lead round and round.
func (u *upper) parent(p string) (*node, error) {
	if u.lastNode != nil && u.lastDir == p {
		return u.lastNode, nil
	}
	w := walk{root: u.root, rest: p}
	for w.next() {
		n := w.at.children[w.name]
		if !n.isDir() {
			var err error
			if n, err = u.imply(w.at, w.path(), n); err != nil {
				return nil, err
			}
			w.at.children[strings.Clone(w.name)] = n
		}
		w.enter(n)
	}
	if w.lost {
		return nil, fmt.Errorf("directory %q: too many symlinks on the way: %w", p, errdefs.ErrInvalidArgument)
	}
	u.lastDir, u.lastNode = strings.Clone(p), w.at
	return w.at, nil
}

// imply makes a directory that the layer needs and does not state: like the
// topmost one below, else root's with mode 0755. old is what has the name now.
func (u *upper) imply(parent *node, p string, old *node) (*node, error) {
	n := newDir()
	n.implied = true
	if parent.mode&0o2000 != 0 {
		n.gid = parent.gid
	}
	if old != nil {
		// Something else, and the layer puts a file below it all the same.
		n.opaque = true
		u.lastNode = nil
		return n, nil
	}
	if u.alone {
		return nil, fmt.Errorf("directory %q: %w", p, ErrBelow)
	}
	for _, root := range u.lower {
		if below := u.find(root, p); below != nil {
			if below.isDir() {
				n.takeAfter(below)
			}
			break
		}
	}
	return n, nil
}

// inherit gives a new node what mkdir and open give it before the entry's own
// metadata comes: the group of a directory with the setgid bit.
func (n *node) inherit(parent *node) {
	if parent.mode&0o2000 != 0 {
		n.gid = parent.gid
	}
}

// keepOwner is the owner -1 of chown(2): it stays as it is.
const keepOwner = 1<<32 - 1

// apply sets an entry's metadata in the order of the applier: owner, extended
// attributes, mode, time.
func (n *node) apply(e *layer.Entry) {
	n.implied = false
	if e.UID != keepOwner {
		n.uid = e.UID
	}
	if e.GID != keepOwner {
		n.gid = e.GID
	}
	n.mtime, n.mtimeNsec = e.Mtime, e.MtimeNsec
	n.mode = e.Mode
	if n.typ == layer.TypeSymlink {
		n.mode = 0o777
	}
	for _, x := range e.Xattrs {
		if n.takes(x.Name) {
			n.setXattr(x)
		}
	}
	n.settleACL()
}
