// SPDX-License-Identifier: Apache-2.0

package treetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Tree is what a file system shows.
type Tree struct {
	// Entries by path: "/" is the root, others are like "/etc/passwd".
	Entries map[string]*Entry

	// Ghosts are names which readdir gives but lookup does not find. Overlayfs
	// lists whiteouts so in a directory that only one layer has. They are no
	// part of the tree.
	Ghosts []string
}

// Entry is one name in a Tree.
//
// The link count is left out: for a group of hardlinks partly replaced by an
// upper layer, overlayfs reports the lower file's count, not the number of
// names one can see. So is the size of directories, which every file system
// counts in its own way.
type Entry struct {
	Mode   uint32 // type and permission bits, as in st_mode
	UID    uint32
	GID    uint32
	Mtime  unix.Timespec
	Size   int64             // bytes; regular files and symlinks only
	Rdev   uint64            // devices only
	Target string            // symlinks only
	SHA256 string            // hex; regular files only
	Xattrs map[string]string // full name to value, trusted.overlay.* left out
	Links  []string          // all names of the inode, sorted; nil for a single one

	// Implied: the topmost layer that has this directory only implies it. The
	// reference shows the time of unpacking as its mtime; Overlay has put
	// the lower directory's there, or 1970.
	Implied bool
}

// Read walks root without following symlinks and without leaving its mount.
func Read(root string) (Tree, error) {
	r := reader{
		root:   root,
		tree:   Tree{Entries: map[string]*Entry{}},
		inodes: map[inode][]string{},
		sums:   map[inode]string{},
		list:   make([]byte, 1<<16),
		value:  make([]byte, 1<<16),
		copy:   make([]byte, 1<<18),
	}
	if err := r.visit("/"); err != nil {
		return Tree{}, fmt.Errorf("read tree %s: %w", root, err)
	}
	for _, names := range r.inodes {
		if len(names) < 2 {
			continue
		}
		slices.Sort(names)
		for _, name := range names {
			r.tree.Entries[name].Links = names
		}
	}
	slices.Sort(r.tree.Ghosts)
	return r.tree, nil
}

// Paths are the names of all entries, sorted.
func (t Tree) Paths() []string {
	paths := make([]string, 0, len(t.Entries))
	for p := range t.Entries {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	return paths
}

type inode struct{ dev, ino uint64 }

type reader struct {
	root              string
	tree              Tree
	inodes            map[inode][]string // names of non-directories
	sums              map[inode]string   // content of files with several names
	list, value, copy []byte
}

func (r *reader) visit(name string) error {
	path := filepath.Join(r.root, name)
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		if err == unix.ENOENT && name != "/" {
			r.tree.Ghosts = append(r.tree.Ghosts, name)
			return nil
		}
		return fmt.Errorf("stat %q: %w", name, err)
	}
	e := &Entry{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: st.Mtim}
	id := inode{st.Dev, st.Ino}
	var err error
	if e.Xattrs, err = r.xattrs(path); err != nil {
		return fmt.Errorf("xattrs of %q: %w", name, err)
	}
	if _, e.Implied = e.Xattrs[impliedXattr]; e.Implied {
		delete(e.Xattrs, impliedXattr)
	}
	r.tree.Entries[name] = e

	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return r.readdir(name, path)
	case unix.S_IFREG:
		e.Size = st.Size
		sum, known := r.sums[id]
		if !known {
			if sum, err = r.hash(path, st.Size); err != nil {
				return err
			}
			if st.Nlink > 1 {
				r.sums[id] = sum
			}
		}
		e.SHA256 = sum
	case unix.S_IFLNK:
		e.Size = st.Size
		if e.Target, err = os.Readlink(path); err != nil {
			return err
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Rdev = st.Rdev
	}
	r.inodes[id] = append(r.inodes[id], name)
	return nil
}

func (r *reader) readdir(name, path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	children, err := d.Readdirnames(-1)
	if err := errors.Join(err, d.Close()); err != nil {
		return fmt.Errorf("list %q: %w", name, err)
	}
	slices.Sort(children)
	for i, c := range children {
		if i > 0 && c == children[i-1] {
			return fmt.Errorf("list %q: name %q is given twice", name, c)
		}
		if err := r.visit(filepath.Join(name, c)); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) hash(path string, size int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, r.copy)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	if n != size {
		return "", fmt.Errorf("read %s: got %d bytes, stat says %d", path, n, size)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (r *reader) xattrs(path string) (map[string]string, error) {
	n, err := unix.Llistxattr(path, r.list)
	if err == unix.ENOTSUP || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for raw := range bytes.SplitSeq(bytes.TrimSuffix(r.list[:n], []byte{0}), []byte{0}) {
		name := string(raw)
		if strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		n, err := unix.Lgetxattr(path, name, r.value)
		if err != nil {
			return nil, fmt.Errorf("value of %s: %w", name, err)
		}
		all[name] = string(r.value[:n])
	}
	if len(all) == 0 {
		return nil, nil
	}
	return all, nil
}
