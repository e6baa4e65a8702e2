// SPDX-License-Identifier: Apache-2.0

// Package verify owns the comparison of a merged tree with what the kernel
// shows: every name, in both directions, with type, metadata, attributes, links
// and content.
//
//	tree ──Walk──▶ name by name ─┐
//	                             ├─▶ first Difference, or none
//	mounted directory ──read─────┘
//
// Names are data: each is looked up in the descriptor of its directory, and
// symlinks are not followed. Memory: the names of the directories on the way to
// the current one, and a little per file with several names.
package verify

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/squash-snapshotter/squash/internal/flatten"
	"github.com/squash-snapshotter/squash/internal/layer"
	"golang.org/x/sys/unix"
)

// Counts says what was found to be equal.
type Counts struct {
	Names uint64
	Files uint64 // regular ones
	Bytes uint64 // of them, each inode once
}

// Difference is what is not as the tree has it.
type Difference struct {
	Path      string // relative to the root
	Layer     int    // that gives the path; the bottom one is 0. -1: none does
	What      string // "missing", "unexpected", "type", "mode", "owner", "mtime", "size", "target", "device", "hardlink", "content", or "xattr " and a name
	Want, Got string
}

// Compare compares what a tree shows with a directory, until the first
// difference. named is called with the number of names that were compared.
//
// impliedTimes: the times of directories that no layer states are compared, too.
// They are those of the merge only if nobody else made these directories.
func Compare(ctx context.Context, tree *flatten.Tree, root *os.File, impliedTimes bool, named func(uint64)) (Counts, *Difference, error) {
	c := comparison{named: named, impliedTimes: impliedTimes, first: map[uint64]string{}, buf: make([]byte, 1<<20)}
	defer c.close()
	if err := c.push("", root); err != nil {
		return c.Counts, nil, err
	}
	err := tree.Walk(ctx, func(h *flatten.PathHistory) error {
		v := h.Visible()
		if v == nil {
			return nil
		}
		if err := c.name(ctx, h.Path, v); err != nil {
			return err
		}
		c.Names++
		c.named(c.Names)
		return nil
	})
	for err == nil && len(c.dirs) > 0 {
		err = c.pop()
	}
	if d, ok := errors.AsType[*difference](err); ok {
		return c.Counts, &d.Difference, nil
	}
	return c.Counts, nil, err
}

// difference ends a comparison.
type difference struct{ Difference }

func (d *difference) Error() string { return d.Path + ": " + d.What }

type comparison struct {
	Counts
	named func(uint64)

	impliedTimes bool

	dirs  []directory       // on the way to the current name
	first map[uint64]string // of inodes with several names: the path met first
	buf   []byte
}

// directory is one that the kernel shows.
type directory struct {
	path  string
	file  *os.File
	names map[string]bool // that were not compared yet
	given bool            // somebody else closes it
}

func (c *comparison) push(path string, f *os.File) error {
	names, err := f.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list %q: %w", path, err)
	}
	d := directory{path: path, file: f, names: make(map[string]bool, len(names)), given: len(c.dirs) == 0}
	for _, name := range names {
		d.names[name] = true
	}
	c.dirs = append(c.dirs, d)
	return nil
}

// pop leaves a directory, of which every name must have been compared.
func (c *comparison) pop() error {
	d := c.dirs[len(c.dirs)-1]
	c.dirs = c.dirs[:len(c.dirs)-1]
	d.close()
	if len(d.names) == 0 {
		return nil
	}
	var names []string
	for name := range d.names {
		names = append(names, name)
	}
	return &difference{Difference{Path: path.Join(d.path, slices.Min(names)), Layer: -1, What: "unexpected", Want: "nothing", Got: "a name that no layer gives"}}
}

func (d *directory) close() {
	if !d.given {
		d.file.Close()
	}
}

func (c *comparison) close() {
	for _, d := range c.dirs {
		d.close()
	}
}

// name compares what is under one path.
func (c *comparison) name(ctx context.Context, p string, v *flatten.Version) error {
	if p == "" {
		return c.metadata(p, v, c.dirs[0].file, ".")
	}
	dir, base := path.Split(p)
	dir = strings.TrimSuffix(dir, "/")
	for c.dirs[len(c.dirs)-1].path != dir {
		if err := c.pop(); err != nil {
			return err
		}
	}
	in := &c.dirs[len(c.dirs)-1]
	if !in.names[base] {
		return c.differs(p, v, "missing", typeName(v.Entry.Type), "nothing")
	}
	delete(in.names, base)
	if err := c.metadata(p, v, in.file, base); err != nil {
		return err
	}
	switch v.Entry.Type {
	case layer.TypeDir:
		f, err := openAt(in.file, base, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return fmt.Errorf("open %q: %w", p, err)
		}
		if err := c.push(p, f); err != nil {
			f.Close()
			return err
		}
	case layer.TypeReg:
		c.Files++
		if v.SameAs == "" {
			return c.content(ctx, p, v, in.file, base)
		}
	}
	return nil
}

func openAt(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "openat", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (c *comparison) differs(p string, v *flatten.Version, what string, want, got any) error {
	return &difference{Difference{Path: p, Layer: v.Layer, What: what, Want: fmt.Sprint(want), Got: fmt.Sprint(got)}}
}

// typeName is that of a TOC's type.
func typeName(t layer.Type) string { return modeName(t.Format()) }

func modeName(format uint32) string {
	switch format {
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFREG:
		return "file"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFCHR:
		return "char device"
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	}
	return fmt.Sprintf("type %o", format)
}

func digestText(d []byte) string { return "sha256:" + hex.EncodeToString(d) }
