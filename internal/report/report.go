// SPDX-License-Identifier: Apache-2.0

// Package report owns the explanation of an image: where the bytes of its
// layers go on their way to the disk, and which of them its author could spare.
//
//	tree of all layers ──Walk──▶ bytes by fate, by layer, by path, by content, by directory
//	places of contents ────────▶ bytes on the disk
//	                               └─▶ Report, with advice
//
// The numbers add up, to the byte:
//
//	LayerBytes − overwritten − deleted = VisibleBytes
//	VisibleBytes − duplicate = DistinctBytes
//	DistinctBytes − shared − compression = OwnBytes
package report

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/flatten"
	"github.com/squash-snapshotter/squash/internal/layer"
)

// Places tells where contents lie on the disk.
type Places interface {
	// Place returns the first block of what a content is stored in, which it may
	// share with others, the bytes that this takes up, and whether other images
	// show something of it as well. ErrNotFound: it is not there.
	Place(d layer.Digest) (block uint32, bytes uint64, shared bool, err error)
	// ImageBytes are those of the image's own metadata.
	ImageBytes() uint64
}

// Report is the explanation. Bytes are those of regular files; one with several
// names counts once in its layer.
type Report struct {
	LayerBytes    uint64 // in all layers
	VisibleBytes  uint64 // that containers see
	DistinctBytes uint64 // of them, each content once
	// OwnBytes are on the disk for this image alone: what its contents are stored
	// in, and its metadata.
	OwnBytes uint64

	Overwritten, Deleted, Duplicate, Shared Waste
	// Compression is what it saves of the contents that are the image's own;
	// negative if these take up more than their bytes.
	Compression int64

	Layers   []Layer // the bottom one first
	Paths    []DuplicatePath
	Contents []DuplicateContent
	Advice   []Advice
	Tree     *Directory
}

// Waste is what a cause costs.
type Waste struct{ Bytes, Files uint64 }

func (w *Waste) add(size uint64) { w.Bytes, w.Files = w.Bytes+size, w.Files+1 }

// Efficiency is the share of the layers' bytes that containers see and that
// they see nowhere else, 0 to 1.
func (r *Report) Efficiency() float64 {
	if r.LayerBytes == 0 {
		return 1
	}
	return float64(r.DistinctBytes) / float64(r.LayerBytes)
}

// Layer is what one layer adds.
type Layer struct {
	Files, Bytes uint64
	// Of Bytes: overwritten or deleted by later layers; contents that a layer
	// below has as well, under whatever path.
	Shadowed, Duplicate uint64

	// Of Bytes: files whose path had the same content just below.
	rewritten Waste
	// What later layers did to it, by layer; overwritten with other content.
	deletedBy, overwrittenBy map[int]*Waste
	// Visible files in places for what only a build needs, and contents that the
	// same or another layer has under another path that is visible.
	caches, copies Waste
}

// DuplicatePath is a path under which several layers have a regular file.
type DuplicatePath struct {
	Path  string
	Count int    // of layers
	Bytes uint64 // of all
}

// DuplicateContent is a content that the layers have several times.
type DuplicateContent struct {
	Digest [sha256.Size]byte
	Size   uint64
	Count  int
	Paths  []string // some
}

// Bytes are those of all copies.
func (d *DuplicateContent) Bytes() uint64 { return d.Size * uint64(d.Count) }

// mostPaths of a duplicate content are told.
const mostPaths = 5

// content is what is known of one content.
type content struct {
	size    uint64
	count   uint32 // versions
	lowest  int32  // layer
	visible bool
	// The lowest layer that has it where containers see it; the first file of
	// that in the second pass is the original, and all others are copies.
	original int32
	met      bool
}

type builder struct {
	Report
	contents map[[sha256.Size]byte]content
	rows     int
	dirs     []*Directory // on the way to the path that is looked at
}

// Build explains a tree of layers, whose commands are those of the image's
// history, "" where it does not say. Tables have at most so many rows.
//
// Memory: some 100 bytes per distinct content.
func Build(ctx context.Context, tree *flatten.Tree, commands []string, places Places, rows int) (*Report, error) {
	b := &builder{contents: map[[sha256.Size]byte]content{}, rows: rows}
	b.Layers = make([]Layer, len(commands))
	for i := range b.Layers {
		b.Layers[i].deletedBy, b.Layers[i].overwrittenBy = map[int]*Waste{}, map[int]*Waste{}
	}
	if err := tree.Walk(ctx, b.count); err != nil {
		return nil, err
	}
	if err := b.store(places); err != nil {
		return nil, err
	}
	if err := b.listContents(ctx, tree); err != nil {
		return nil, err
	}
	b.Paths = costliest(b.Paths, rows)
	b.Tree.prune()
	b.advise(commands)
	return &b.Report, nil
}

// file tells whether a version is a regular file that counts: its first name.
func file(v *flatten.Version) bool { return v.Entry.Type == layer.TypeReg && v.SameAs == "" }

// count is the first pass.
func (b *builder) count(h *flatten.PathHistory) error {
	files := DuplicatePath{Path: h.Path}
	for i := range h.Versions {
		v := &h.Versions[i]
		if v.Entry.Type != layer.TypeReg {
			continue
		}
		files.Count++
		files.Bytes += uint64(v.Entry.Size)
		if !file(v) {
			continue
		}
		if v.Layer >= len(b.Layers) {
			return fmt.Errorf("layer %d of %d", v.Layer+1, len(b.Layers))
		}
		b.countFile(h, i)
	}
	if files.Count > 1 && files.Bytes > 0 {
		b.Paths = append(b.Paths, files)
		if len(b.Paths) > 1000+4*b.rows {
			b.Paths = costliest(b.Paths, b.rows)
		}
	}
	return nil
}

// same tells whether the i-th version is a file with the same content as the
// one next below.
func same(h *flatten.PathHistory, i int) bool {
	if i < 0 || i+1 >= len(h.Versions) {
		return false
	}
	v, below := &h.Versions[i].Entry, &h.Versions[i+1].Entry
	return v.Type == layer.TypeReg && below.Type == layer.TypeReg && v.Size == below.Size && v.ContentDigest() == below.ContentDigest()
}

func (b *builder) countFile(h *flatten.PathHistory, i int) {
	v := &h.Versions[i]
	l, size, digest := &b.Layers[v.Layer], uint64(v.Entry.Size), v.Entry.ContentDigest()
	l.Files, l.Bytes = l.Files+1, l.Bytes+size
	b.LayerBytes += size
	if same(h, i) {
		l.rewritten.add(size)
	}
	c, met := b.contents[digest]
	if !met {
		c = content{size: size, lowest: int32(v.Layer)}
	}
	c.count, c.lowest = c.count+1, min(c.lowest, int32(v.Layer))
	switch v.Fate {
	case flatten.Overwritten:
		b.Overwritten.add(size)
		l.Shadowed += size
		if !same(h, i-1) {
			wasteOf(l.overwrittenBy, v.By).add(size)
		}
	case flatten.Deleted:
		b.Deleted.add(size)
		l.Shadowed += size
		wasteOf(l.deletedBy, v.By).add(size)
	default:
		b.VisibleBytes += size
		if c.visible && size > 0 {
			b.Duplicate.add(size)
		} else {
			b.DistinctBytes += size
			c.original = int32(v.Layer)
		}
		c.original = min(c.original, int32(v.Layer))
		if cache(v.Entry.Path) {
			l.caches.add(size)
		}
		c.visible = true
	}
	b.contents[digest] = c
}

func wasteOf(by map[int]*Waste, layer int) *Waste {
	if by[layer] == nil {
		by[layer] = &Waste{}
	}
	return by[layer]
}

// store follows the distinct contents to the disk.
func (b *builder) store(places Places) error {
	b.OwnBytes = places.ImageBytes()
	met := map[uint32]bool{} // clusters that are the image's own
	for digest, c := range b.contents {
		if !c.visible || c.size <= layer.InlineMax {
			continue // what is tiny is in the image itself
		}
		block, bytes, shared, err := places.Place(digest)
		switch {
		case errdefs.IsNotFound(err):
			return fmt.Errorf("content sha256:%x, which containers see, is not stored: %w", digest, errors.Join(err, errdefs.ErrDataLoss))
		case err != nil:
			return err
		case shared:
			b.Shared.add(c.size)
		case !met[block]:
			met[block] = true
			b.OwnBytes += bytes
		}
	}
	b.Compression = int64(b.DistinctBytes-b.Shared.Bytes) - int64(b.OwnBytes)
	return nil
}

// listContents is the second pass, with all contents known: which ones a layer
// has after one below, which files are copies, where the costliest contents are,
// and what is in which directory.
func (b *builder) listContents(ctx context.Context, tree *flatten.Tree) error {
	var all []DuplicateContent
	for digest, c := range b.contents {
		if c.count > 1 && c.size > 0 {
			all = append(all, DuplicateContent{Digest: digest, Size: c.size, Count: int(c.count)})
		}
	}
	slices.SortFunc(all, func(x, y DuplicateContent) int {
		return cmp.Or(cmp.Compare(y.Bytes(), x.Bytes()), slices.Compare(x.Digest[:], y.Digest[:]))
	})
	b.Contents = all[:min(len(all), b.rows)]
	listed := map[[sha256.Size]byte]*DuplicateContent{}
	for i := range b.Contents {
		listed[b.Contents[i].Digest] = &b.Contents[i]
	}
	return tree.Walk(ctx, func(h *flatten.PathHistory) error {
		dir := b.enter(h)
		for i := range h.Versions {
			v := &h.Versions[i]
			if !file(v) {
				continue
			}
			digest, size := v.Entry.ContentDigest(), uint64(v.Entry.Size)
			if int(b.contents[digest].lowest) < v.Layer {
				b.Layers[v.Layer].Duplicate += size
			}
			if v.Fate == flatten.Overwritten || v.Fate == flatten.Deleted {
				dir.shadow(size)
			} else {
				dir.see(size, b.copied(digest, v))
			}
			if d := listed[digest]; d != nil && len(d.Paths) < mostPaths && !slices.Contains(d.Paths, h.Path) {
				d.Paths = append(d.Paths, h.Path)
			}
		}
		return nil
	})
}

// copied tells whether a visible file is a copy, and counts it in its layer.
func (b *builder) copied(digest [sha256.Size]byte, v *flatten.Version) bool {
	c := b.contents[digest]
	if c.size == 0 {
		return false
	}
	if !c.met && int(c.original) == v.Layer {
		c.met = true
		b.contents[digest] = c
		return false
	}
	b.Layers[v.Layer].copies.add(c.size)
	return true
}

// costliest keeps so many of the paths, the costliest first.
func costliest(paths []DuplicatePath, rows int) []DuplicatePath {
	slices.SortFunc(paths, func(x, y DuplicatePath) int {
		return cmp.Or(cmp.Compare(y.Bytes, x.Bytes), cmp.Compare(x.Path, y.Path))
	})
	return paths[:min(len(paths), rows)]
}
