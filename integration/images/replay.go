// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/squash-snapshotter/squash/integration/tree"
)

// Amount counts files, the bytes in them, and the bytes of the 4 KiB blocks that a plain file system gives them.
type Amount struct {
	Files  int
	Bytes  int64
	Blocks int64
}

func (a *Amount) add(size int64) {
	const block = 4096
	a.Files++
	a.Bytes += size
	a.Blocks += (size + block - 1) / block * block
}

// Savings puts every regular file that any layer of an image carries on exactly one heap:
// Total = Visible + Duplicate + Overwritten + Deleted.
type Savings struct {
	Total       Amount // every regular file of every layer; this is what a stack of layers stores
	Visible     Amount // contents that a container sees, each counted once
	Duplicate   Amount // files whose content is counted already, on whichever heap
	Overwritten Amount // contents that no container sees, because a later layer has other entries at their paths
	Deleted     Amount // contents that no container sees, because a later layer has whiteouts
}

// Replayed is an image after all its layers were laid over each other, computed from the tar streams alone.
type Replayed struct {
	Layers  int
	Savings Savings
	root    *node
}

// node is a name in the merged tree.
type node struct {
	ino      *inode
	children map[string]*node // directories only
}

// inode is what one or, with hardlinks, several names refer to.
type inode struct {
	entry tree.Entry
	layer int
	names int
	lost  *Amount // the heap it goes to because its last name was hidden; nil while it is visible
}

// Replay reads all layers of an image in order and applies the OCI layer rules.
func Replay(img v1.Image) (*Replayed, error) {
	layers, err := img.Layers()
	if err != nil {
		return nil, fmt.Errorf("replay: %w", err)
	}
	r := &Replayed{Layers: len(layers), root: newDir(-1)}
	var files []*inode
	for i, l := range layers {
		added, err := r.apply(i, l)
		if err != nil {
			return nil, fmt.Errorf("replay layer %d: %w", i+1, err)
		}
		files = append(files, added...)
	}
	seen := make(map[string]bool)
	for _, f := range files {
		r.Savings.Total.add(f.entry.Size)
		if f.lost == nil && !seen[f.entry.Content] {
			seen[f.entry.Content] = true
			r.Savings.Visible.add(f.entry.Size)
		} else if f.lost == nil {
			r.Savings.Duplicate.add(f.entry.Size)
		}
	}
	// Of the files with a content that is nowhere visible, the last one tells what became of it.
	for _, f := range slices.Backward(files) {
		if f.lost == nil {
			continue
		}
		if seen[f.entry.Content] {
			r.Savings.Duplicate.add(f.entry.Size)
			continue
		}
		seen[f.entry.Content] = true
		f.lost.add(f.entry.Size)
	}
	return r, nil
}

func newDir(layer int) *node {
	return &node{
		ino:      &inode{entry: tree.Entry{Type: 'd', Mode: 0o755}, layer: layer, names: 1},
		children: make(map[string]*node),
	}
}

// apply lays one layer over the tree and returns the regular files in it.
func (r *Replayed) apply(layer int, l v1.Layer) (files []*inode, err error) {
	stream, err := l.Uncompressed()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stream.Close()) }()
	for in := tar.NewReader(stream); ; {
		h, err := in.Next()
		if err == io.EOF {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		name := path.Clean("/" + h.Name)[1:]
		if name == "" {
			continue // the root directory belongs to the snapshotter
		}
		dir, err := r.dir(path.Dir(name), layer)
		if err != nil {
			return nil, err
		}
		base := path.Base(name)
		if base == ".wh..wh..opq" {
			for child := range dir.children {
				r.hide(dir, child, layer, &r.Savings.Deleted)
			}
			continue
		}
		if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
			r.hide(dir, hidden, layer, &r.Savings.Deleted)
			continue
		}
		old := dir.children[base]
		if h.Typeflag == tar.TypeLink {
			target, err := r.find(path.Clean("/" + h.Linkname)[1:])
			if err != nil {
				return nil, fmt.Errorf("hardlink %q: %w", name, err)
			}
			r.hide(dir, base, layer+1, &r.Savings.Overwritten)
			target.ino.names++
			stated := metadata(h)
			stated.Type, stated.Size, stated.Content = '-', target.ino.entry.Size, target.ino.entry.Content
			for name, value := range target.ino.entry.Xattrs {
				if _, ok := stated.Xattrs[name]; !ok {
					stated.Xattrs = put(stated.Xattrs, name, value)
				}
			}
			// containerd applies the owner, mode, time and xattrs of a hardlink's header to the inode.
			target.ino.entry = stated
			dir.children[base] = target
			continue
		}
		ino, err := r.inode(h, in, layer)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
		if h.Typeflag == tar.TypeDir && old != nil && old.children != nil {
			old.ino = ino
			continue
		}
		r.hide(dir, base, layer+1, &r.Savings.Overwritten)
		fresh := &node{ino: ino}
		if h.Typeflag == tar.TypeDir {
			fresh.children = make(map[string]*node)
		}
		dir.children[base] = fresh
		if ino.entry.Type == '-' {
			files = append(files, ino)
		}
	}
}

// metadata is what a header says besides type and content.
func metadata(h *tar.Header) tree.Entry {
	e := tree.Entry{
		Mode: uint32(h.Mode) & 0o7777, UID: uint32(h.Uid), GID: uint32(h.Gid),
		Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond()),
	}
	if e.Sec < 0 {
		e.Sec, e.Nsec = 0, 0 // containerd has no times before 1970
	}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			e.Xattrs = put(e.Xattrs, name, value)
		}
	}
	return e
}

func put(m map[string]string, key, value string) map[string]string {
	if m == nil {
		m = make(map[string]string)
	}
	m[key] = value
	return m
}

func (r *Replayed) inode(h *tar.Header, content io.Reader, layer int) (*inode, error) {
	e := metadata(h)
	switch h.Typeflag {
	case tar.TypeReg:
		sum := sha256.New()
		n, err := io.Copy(sum, content)
		if err != nil {
			return nil, err
		}
		e.Type, e.Size, e.Content = '-', n, hex.EncodeToString(sum.Sum(nil))
	case tar.TypeDir:
		e.Type = 'd'
	case tar.TypeSymlink:
		e.Type, e.Target = 'l', h.Linkname
	case tar.TypeChar:
		e.Type, e.Rdev = 'c', unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	case tar.TypeBlock:
		e.Type, e.Rdev = 'b', unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	case tar.TypeFifo:
		e.Type = 'p'
	default:
		return nil, fmt.Errorf("tar entry type %q", h.Typeflag)
	}
	if e.Type == 'l' {
		e.Mode = 0o777
	}
	return &inode{entry: e, layer: layer, names: 1}, nil
}

// dir gives the directory at name and makes what a layer implied but did not state.
func (r *Replayed) dir(name string, layer int) (*node, error) {
	at := r.root
	if name == "." {
		return at, nil
	}
	for part := range strings.SplitSeq(name, "/") {
		next := at.children[part]
		if next == nil {
			next = newDir(layer)
			at.children[part] = next
		}
		if next.children == nil {
			return nil, fmt.Errorf("%q: %q is not a directory", name, part)
		}
		at = next
	}
	return at, nil
}

func (r *Replayed) find(name string) (*node, error) {
	at := r.root
	for part := range strings.SplitSeq(name, "/") {
		next := at.children[part]
		if next == nil {
			return nil, fmt.Errorf("no %q", name)
		}
		at = next
	}
	return at, nil
}

// hide removes from dir the name and all below it that is older than layer, and books the files as lost.
func (r *Replayed) hide(dir *node, name string, layer int, why *Amount) {
	n := dir.children[name]
	if n == nil {
		return
	}
	for child := range n.children {
		r.hide(n, child, layer, why)
	}
	if n.ino.layer >= layer || len(n.children) > 0 {
		return
	}
	delete(dir.children, name)
	if n.ino.names--; n.ino.names == 0 {
		n.ino.lost = why
	}
}

// Visible lists what a container sees, in the order and form of tree.Walk, without the names in skip and what
// is below them. The mtime of directories that no layer states is not known here and given as 0.
func (r *Replayed) Visible(skip ...string) []tree.Entry {
	var out []tree.Entry
	first := make(map[*inode]string)
	var walk func(name string, n *node)
	walk = func(name string, n *node) {
		if slices.Contains(skip, name) {
			return
		}
		e := n.ino.entry
		e.Path = name
		if n.ino.names > 1 {
			if twin, ok := first[n.ino]; ok {
				e.Twin = twin
			} else {
				first[n.ino] = name
			}
		}
		out = append(out, e)
		for _, child := range slices.Sorted(maps.Keys(n.children)) {
			walk(path.Join(name, child), n.children[child])
		}
	}
	walk(".", r.root)
	slices.SortFunc(out, func(a, b tree.Entry) int { return strings.Compare(a.Path, b.Path) })
	return out
}
