// SPDX-License-Identifier: Apache-2.0

package flatten

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"

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

// packAt is the block of an image's address space at which the pack begins;
// compressed data has no other address. What lies below is the image itself:
// 4 GiB.
const packAt = 1 << 20

// Stats counts what went into a flat image.
type Stats struct {
	Inodes   uint64
	Files    uint64 // names of regular files
	Bytes    uint64 // sizes of regular files, each inode once
	Contents uint64 // references to contents in the pack
	Image    int64  // bytes of the image
}

// WriteImage writes the image, flat or of a layer. place says where a content is
// in the pack; its error ends the writing.
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
	m.ctx, m.shared, m.lower = ctx, map[*node]erofs.Ino{}, t.lower
	// The writer wants to know the pack's size at once, and images do not
	// depend on how long the pack happens to be: placements are collected
	// first, and the highest one counts.
	end, err := m.locate(t)
	if err != nil {
		return Stats{}, err
	}
	var opts erofs.Options
	if m.place != nil {
		device := erofs.Device{Tag: "pack", Blocks: end}
		if m.compressed {
			device.UnifiedAddr = packAt
		}
		opts.Devices = []erofs.Device{device}
	}
	if m.w, err = erofs.NewWriter(opts, erofs.Inode{Mode: unix.S_IFDIR | 0o755}); err != nil {
		return Stats{}, fmt.Errorf("flat image: %w", err)
	}
	err = m.setPacked()
	var root erofs.Ino
	if err == nil {
		root, err = m.add(t.layers[0])
	}
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
	shared map[*node]erofs.Ino // inodes that may have more names
	stats  Stats
	lower  bool // as in Tree

	compressed bool // some content is
	// packed are the clusters of the packed inode, those that several contents
	// share, as they lie in the pack; packedAt says where each begins in it.
	packed   []erofs.Cluster
	packedAt map[uint32]uint64 // by first block

	clusters []erofs.Cluster // scratch
}

// locate looks every content up and returns the end of the last one.
func (m *imager) locate(t *Tree) (end uint32, err error) {
	m.packedAt = map[uint32]uint64{}
	if m.place == nil {
		return 0, nil
	}
	t.Contents(func(d layer.Digest, size int64) {
		m.stats.Contents++
		if err != nil {
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
		m.compressed = m.compressed || p.Encoding != pack.EncodingPlain
		if _, ok := m.packedAt[p.Block]; p.Encoding == pack.EncodingShared && !ok {
			m.packedAt[p.Block] = 0
			m.packed = append(m.packed, cluster(p.SharedCluster()))
		}
		end = max(end, uint32(p.End()))
	})
	slices.SortFunc(m.packed, func(a, b erofs.Cluster) int { return cmp.Compare(a.Block, b.Block) })
	at := uint64(0)
	for _, c := range m.packed {
		m.packedAt[c.Block] = at
		at += uint64(c.Length)
	}
	return end, err
}

func (m *imager) setPacked() error {
	if len(m.packed) == 0 {
		return nil
	}
	return m.w.SetPacked(packDevice, m.packed)
}

func cluster(c pack.Cluster) erofs.Cluster {
	algorithm := erofs.Stored
	switch c.Algorithm {
	case pack.LZ4:
		algorithm = erofs.LZ4
	case pack.Zstd:
		algorithm = erofs.Zstd
	}
	return erofs.Cluster{Algorithm: algorithm, Block: c.Block, Blocks: c.Blocks, Length: c.Length}
}

// content refers to the bytes of a regular file where the pack has them.
func (m *imager) content(in *erofs.Inode, d layer.Digest) error {
	p, err := m.place(d)
	if err != nil {
		return err
	}
	switch p.Encoding {
	case pack.EncodingShared:
		in.Packed, in.PackedAt = true, m.packedAt[p.Block]+uint64(p.Offset)
	case pack.EncodingClusters:
		in.Device, in.Clusters = packDevice, m.clusters[:0]
		for c := range p.Clusters() {
			in.Clusters = append(in.Clusters, cluster(c))
		}
		m.clusters = in.Clusters
	default:
		in.Extents = []erofs.Extent{{Device: packDevice, Block: p.Block, Length: in.Size}}
	}
	return nil
}

func (m *imager) directory(dir erofs.Ino, nodes []*node) error {
	if err := m.ctx.Err(); err != nil {
		return err
	}
	for _, e := range m.list(nodes) {
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

// list returns the names to be written of a merged directory.
func (m *imager) list(dirs []*node) []entry {
	if !m.lower {
		return list(dirs)
	}
	var entries []entry
	for name, n := range dirs[0].children {
		entries = append(entries, entry{name, []*node{n}})
	}
	return sorted(entries)
}

// opaque is how a lower directory of overlayfs says that it hides what lies
// below. TOCs hold no attributes of overlayfs's own.
var opaque = erofs.Xattr{Name: "trusted.overlay.opaque", Value: []byte("y")}

// add writes a node's inode, once however many names it has.
func (m *imager) add(n *node) (erofs.Ino, error) {
	if ino, ok := m.shared[n]; ok {
		return ino, nil
	}
	in := erofs.Inode{Mode: n.mode | n.typ.Format(), UID: n.uid, GID: n.gid,
		Mtime: n.mtime, MtimeNsec: n.mtimeNsec, Rdev: n.rdev, Target: n.target}
	for _, x := range n.xattrs {
		if !erofs.StoresXattr(x.Name) {
			continue // of some host file system; no image could bring it
		}
		in.Xattrs = append(in.Xattrs, erofs.Xattr(x))
	}
	if m.lower && n.opaque {
		in.Xattrs = append(in.Xattrs, opaque)
	}
	if n.typ == layer.TypeReg {
		in.Size = n.size
		m.stats.Bytes += uint64(n.size)
		if n.size <= layer.InlineMax {
			in.Inline = n.inline
		} else {
			if err := m.content(&in, n.digest); err != nil {
				return 0, err
			}
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
