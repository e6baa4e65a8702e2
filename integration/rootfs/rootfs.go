// SPDX-License-Identifier: Apache-2.0

// Package rootfs owns a file tree in memory that is changed the way the steps of an image build change one, and
// writes what a step changed as a layer.
//
//	Tree ──Install, Copy, Chown, Remove, …──▶ Tree ──WriteLayer(before, after)──▶ entries and whiteouts
//
// An inode never changes: who changes a file puts a new inode in its place. So a clone of the tree is cheap, and what
// a step rewrote is in its layer even if it wrote the same bytes, as it would be in an overlay's upper directory.
package rootfs

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Tree is a file tree. Paths are relative to its root and have no leading slash.
type Tree struct {
	// Now is the time of the changes: that of what is written new, and of directories whose names change.
	Now time.Time

	spool *Spool
	root  *node
}

// node is a name. Names of one file share its inode.
type node struct {
	ino      *inode
	children map[string]*node // directories only
}

// inode is what a header says, without name, and where the bytes of a regular file are.
type inode struct {
	header  tar.Header
	content span
}

// New makes an empty tree whose contents are kept in a spool.
func New(spool *Spool, now time.Time) *Tree {
	t := &Tree{Now: now, spool: spool}
	t.root = t.newDir()
	return t
}

// Clone makes a tree that changes on its own from here on.
func (t *Tree) Clone() *Tree {
	c := *t
	c.root = t.root.clone()
	return &c
}

func (n *node) clone() *node {
	c := &node{ino: n.ino}
	if n.children != nil {
		c.children = make(map[string]*node, len(n.children))
		for name, child := range n.children {
			c.children[name] = child.clone()
		}
	}
	return c
}

func (t *Tree) newDir() *node {
	return &node{
		ino:      &inode{header: tar.Header{Typeflag: tar.TypeDir, Mode: 0o755, ModTime: t.Now}},
		children: make(map[string]*node),
	}
}

// find gives the node at name, or nil. Symlinks are not followed.
func (t *Tree) find(name string) *node {
	at := t.root
	if name == "." || name == "" {
		return at
	}
	for part := range strings.SplitSeq(name, "/") {
		if at = at.children[part]; at == nil {
			return nil
		}
	}
	return at
}

// dir gives the directory at name, made with those above it where it is missing. A symlink on the way to it is
// followed if it leads to a name beside it, like bin to usr/bin.
func (t *Tree) dir(name string) (*node, error) {
	at := t.root
	if name == "." {
		return at, nil
	}
	for part := range strings.SplitSeq(name, "/") {
		next := at.children[part]
		if next == nil {
			next = t.newDir()
			t.enter(at, part, next)
		}
		if h := next.ino.header; h.Typeflag == tar.TypeSymlink {
			if next = at; !path.IsAbs(h.Linkname) {
				for step := range strings.SplitSeq(path.Clean(h.Linkname), "/") {
					if next = next.children[step]; next == nil {
						break
					}
				}
			}
		}
		if next == nil || next.children == nil {
			return nil, fmt.Errorf("%s: %s is no directory", name, part)
		}
		at = next
	}
	return at, nil
}

// enter puts a node into a directory, which changes the directory's time.
func (t *Tree) enter(dir *node, name string, n *node) {
	dir.children[name] = n
	t.change(dir, func(h *tar.Header) { h.ModTime = t.Now })
}

// change gives a node an inode of its own with another header.
func (t *Tree) change(n *node, edit func(*tar.Header)) {
	fresh := *n.ino
	edit(&fresh.header)
	n.ino = &fresh
}

// put makes or replaces the name that a header names. A directory that is there stays.
func (t *Tree) put(h *tar.Header, content io.Reader) error {
	name := path.Clean("/" + h.Name)[1:]
	ino := &inode{header: tar.Header{
		Typeflag: h.Typeflag, Mode: h.Mode & 0o7777, Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime, Linkname: h.Linkname,
		Devmajor: h.Devmajor, Devminor: h.Devminor, Size: h.Size,
	}}
	for key, value := range h.PAXRecords {
		if strings.HasPrefix(key, "SCHILY.xattr.") {
			if ino.header.PAXRecords == nil {
				ino.header.PAXRecords = make(map[string]string)
			}
			ino.header.PAXRecords[key] = value
		}
	}
	if name == "" {
		return nil // the root directory is the same in all images
	}
	dir, err := t.dir(path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	switch h.Typeflag {
	case tar.TypeLink:
		linked := path.Clean("/" + h.Linkname)[1:]
		beside, err := t.dir(path.Dir(linked))
		if err != nil {
			return err
		}
		target := beside.children[path.Base(linked)]
		if target == nil {
			return fmt.Errorf("%s: hard link to %s, which is not there", name, h.Linkname)
		}
		t.enter(dir, base, &node{ino: target.ino})
		return nil
	case tar.TypeDir:
		if old := dir.children[base]; old != nil {
			if old.children != nil {
				return nil // as dpkg does: it stays as it is
			}
			if old.ino.header.Typeflag == tar.TypeSymlink {
				return nil // as dpkg does: the directory is where the link leads
			}
		}
		t.enter(dir, base, &node{ino: ino, children: make(map[string]*node)})
		return nil
	case tar.TypeReg:
		if ino.content, err = t.spool.add(content, h.Size); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	t.enter(dir, base, &node{ino: ino})
	return nil
}

// Unpack lays a tar stream over the tree.
func (t *Tree) Unpack(stream io.Reader) error {
	for in := tar.NewReader(stream); ; {
		h, err := in.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = t.put(h, in)
		}
		if err != nil {
			return fmt.Errorf("unpack: %w", err)
		}
	}
}

// Dir makes a directory.
func (t *Tree) Dir(name string, mode int64) error {
	return t.put(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, ModTime: t.Now}, nil)
}

// File writes a file anew.
func (t *Tree) File(name string, mode int64, content string) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, ModTime: t.Now, Size: int64(len(content))}
	return t.put(h, strings.NewReader(content))
}

// Symlink makes a symbolic link.
func (t *Tree) Symlink(name, target string) error {
	return t.put(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: t.Now}, nil)
}

// Append writes a file once more with text at its end, as logs and databases of package managers are.
func (t *Tree) Append(name, text string) error {
	var old []byte
	if n := t.find(name); n != nil {
		var err error
		if old, err = io.ReadAll(t.spool.open(n.ino.content)); err != nil {
			return fmt.Errorf("append to %s: %w", name, err)
		}
	}
	return t.File(name, 0o644, string(old)+text)
}

// Copy writes what is below the host's directory from, as far as keep says so (nil: all; a directory that is not kept
// is not entered), as name and below. All belongs to root and is as old as Now; a file is executable for all or for
// nobody.
func (t *Tree) Copy(name, from string, keep func(rel string) bool, executable func(rel string, mode fs.FileMode) bool) error {
	return filepath.WalkDir(from, func(host string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, host)
		if err != nil {
			return err
		}
		if rel != "." && keep != nil && !keep(rel) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		h := &tar.Header{Name: path.Join(name, rel), Mode: 0o644, ModTime: t.Now}
		switch info.Mode().Type() {
		case fs.ModeDir:
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
			return t.put(h, nil)
		case fs.ModeSymlink:
			h.Typeflag, h.Mode = tar.TypeSymlink, 0o777
			if h.Linkname, err = os.Readlink(host); err != nil {
				return err
			}
			return t.put(h, nil)
		case 0:
			f, err := os.Open(host)
			if err != nil {
				return err
			}
			defer f.Close()
			h.Typeflag, h.Size = tar.TypeReg, info.Size()
			if executable(rel, info.Mode()) {
				h.Mode = 0o755
			}
			return t.put(h, f)
		}
		return fmt.Errorf("copy %s: type %v is not supported", host, info.Mode().Type())
	})
}

// Chown gives everything at and below name to an owner, as chown -R does. Names of one file that are all below name
// stay names of one file.
func (t *Tree) Chown(name string, uid, gid int) error {
	return t.each(name, func(h *tar.Header) { h.Uid, h.Gid = uid, gid })
}

// Chmod changes the mode of everything at and below name, as chmod -R does.
func (t *Tree) Chmod(name string, edit func(mode int64) int64) error {
	return t.each(name, func(h *tar.Header) { h.Mode = edit(h.Mode) })
}

// Touch makes everything at and below name as old as Now.
func (t *Tree) Touch(name string) error {
	return t.each(name, func(h *tar.Header) { h.ModTime = t.Now })
}

func (t *Tree) each(name string, edit func(*tar.Header)) error {
	top := t.find(name)
	if top == nil {
		return fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	fresh := make(map[*inode]*inode)
	var walk func(n *node)
	walk = func(n *node) {
		old := n.ino
		if fresh[old] == nil {
			t.change(n, edit)
			fresh[old] = n.ino
		}
		n.ino = fresh[old]
		for _, child := range n.children {
			walk(child)
		}
	}
	walk(top)
	return nil
}

// Remove deletes what a pattern of path.Match names, with what is below. It is an error if there is no such name.
func (t *Tree) Remove(pattern string) error {
	if !t.remove(t.root, strings.Split(pattern, "/")) {
		return fmt.Errorf("remove %s: %w", pattern, fs.ErrNotExist)
	}
	return nil
}

func (t *Tree) remove(dir *node, pattern []string) (some bool) {
	for name, child := range maps.Clone(dir.children) {
		if ok, err := path.Match(pattern[0], name); err != nil || !ok {
			continue
		}
		if len(pattern) > 1 {
			some = t.remove(child, pattern[1:]) || some
			continue
		}
		delete(dir.children, name)
		t.change(dir, func(h *tar.Header) { h.ModTime = t.Now })
		some = true
	}
	return some
}

// Sizes gives the number of regular files and their bytes.
func (t *Tree) Sizes() (files int, bytes int64) {
	var walk func(n *node)
	walk = func(n *node) {
		if n.ino.header.Typeflag == tar.TypeReg {
			files++
			bytes += n.ino.header.Size
		}
		for _, name := range slices.Sorted(maps.Keys(n.children)) {
			walk(n.children[name])
		}
	}
	walk(t.root)
	return files, bytes
}
