// SPDX-License-Identifier: Apache-2.0

package flatten

import (
	"context"
	"fmt"
	"io"

	"github.com/squash-snapshotter/squash/internal/erofs"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/pack"
	"golang.org/x/sys/unix"
)

// RootName is the directory of a flat image that holds the image's root. The
// image root's parent must be the mount itself: see docs/design.md.
const RootName = "fs"

// packDevice is the pack's device number in flat images.
const packDevice = 1

// Stats counts what went into a flat image.
type Stats struct {
	Inodes   uint64
	Files    uint64 // names of regular files
	Bytes    uint64 // sizes of regular files, each inode once
	Contents uint64 // references to contents in the pack
	Image    int64  // bytes of the image
}

// WriteImage writes the flat image. place says where a content is in the pack;
// its error ends the writing.
func (t *Tree) WriteImage(ctx context.Context, w io.Writer, place func(layer.Digest) (pack.Placement, error)) (Stats, error) {
	return t.write(ctx, w, &imager{place: place})
}

// WriteSkeleton writes an image of the directories, and of the symlinks that
// may lead to them, as a lower directory for whoever unpacks a layer through a
// mount.
func (t *Tree) WriteSkeleton(ctx context.Context, w io.Writer) error {
	_, err := t.write(ctx, w, &imager{})
	return err
}

func (t *Tree) write(ctx context.Context, w io.Writer, m *imager) (Stats, error) {
	m.ctx, m.shared = ctx, map[*node]erofs.Ino{}
	// The writer wants to know the pack's size at once, and images do not
	// depend on how long the pack happens to be: placements are collected
	// first, and the highest one counts.
	end, err := m.locate(t)
	if err != nil {
		return Stats{}, err
	}
	var opts erofs.Options
	if m.place != nil {
		opts.Devices = []erofs.Device{{Tag: "pack", Blocks: end}}
	}
	if m.w, err = erofs.NewWriter(opts, erofs.Inode{Mode: unix.S_IFDIR | 0o755}); err != nil {
		return Stats{}, fmt.Errorf("flat image: %w", err)
	}
	root, err := m.add(t.layers[0])
	if err == nil {
		err = m.w.Link(erofs.RootIno, RootName, root)
	}
	if err == nil {
		err = m.directory(root, t.layers)
	}
	if err != nil {
		return Stats{}, fmt.Errorf("flat image: %w", err)
	}
	if m.stats.Image, err = m.w.WriteTo(w); err != nil {
		return Stats{}, fmt.Errorf("flat image: %w", err)
	}
	return m.stats, nil
}

// imager turns merged nodes into inodes. Without place it leaves out all that
// is neither directory nor symlink.
type imager struct {
	ctx    context.Context
	w      *erofs.Writer
	place  func(layer.Digest) (pack.Placement, error)
	blocks map[layer.Digest]uint32 // first block of each content
	shared map[*node]erofs.Ino     // inodes that may have more names
	stats  Stats
}

func (m *imager) locate(t *Tree) (end uint32, err error) {
	if m.place == nil {
		return 0, nil
	}
	m.blocks = map[layer.Digest]uint32{}
	t.Contents(func(d layer.Digest, size int64) {
		m.stats.Contents++
		if _, ok := m.blocks[d]; ok || err != nil {
			return
		}
		var p pack.Placement
		if p, err = m.place(d); err != nil {
			err = fmt.Errorf("flat image: %w", err)
			return
		}
		if p.Size != uint64(size) {
			err = fmt.Errorf("flat image: content sha256:%x has %d bytes in the pack and %d in the TOC: %w", d[:], p.Size, size, layer.ErrDamaged)
			return
		}
		m.blocks[d] = p.Block
		end = max(end, uint32(p.End()))
	})
	return end, err
}

func (m *imager) directory(dir erofs.Ino, nodes []*node) error {
	if err := m.ctx.Err(); err != nil {
		return err
	}
	for _, e := range list(nodes) {
		n := e.nodes[0]
		if m.place == nil && !n.isDir() && n.typ != layer.TypeSymlink {
			continue
		}
		ino, err := m.add(n)
		if err == nil {
			err = m.w.Link(dir, e.name, ino)
		}
		if err == nil && n.isDir() {
			err = m.directory(ino, e.nodes)
		}
		if err != nil {
			return fmt.Errorf("%q: %w", e.name, err)
		}
		if n.typ == layer.TypeReg {
			m.stats.Files++
		}
	}
	return nil
}

// add writes a node's inode, once however many names it has.
func (m *imager) add(n *node) (erofs.Ino, error) {
	if ino, ok := m.shared[n]; ok {
		return ino, nil
	}
	in := erofs.Inode{Mode: n.mode | formatOf(n.typ), UID: n.uid, GID: n.gid,
		Mtime: n.mtime, MtimeNsec: n.mtimeNsec, Rdev: n.rdev, Target: n.target}
	for _, x := range n.xattrs {
		if !erofs.StoresXattr(x.Name) {
			continue // of some host file system; no image could bring it
		}
		in.Xattrs = append(in.Xattrs, erofs.Xattr(x))
	}
	if n.typ == layer.TypeReg {
		in.Size = n.size
		m.stats.Bytes += uint64(n.size)
		if n.size <= layer.InlineMax {
			in.Inline = n.inline
		} else {
			in.Extents = []erofs.Extent{{Device: packDevice, Block: m.blocks[n.digest], Length: n.size}}
		}
	}
	ino, err := m.w.Add(in)
	if err != nil {
		return 0, err
	}
	m.stats.Inodes++
	if n.shared {
		m.shared[n] = ino
	}
	return ino, nil
}

func formatOf(t layer.Type) uint32 {
	switch t {
	case layer.TypeDir:
		return unix.S_IFDIR
	case layer.TypeSymlink:
		return unix.S_IFLNK
	case layer.TypeChar:
		return unix.S_IFCHR
	case layer.TypeBlock:
		return unix.S_IFBLK
	case layer.TypeFifo:
		return unix.S_IFIFO
	case layer.TypeSocket:
		return unix.S_IFSOCK
	}
	return unix.S_IFREG
}
