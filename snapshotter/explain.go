// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"fmt"

	"github.com/squash-snapshotter/squash/internal/flatten"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/pack"
	"github.com/squash-snapshotter/squash/internal/report"
)

// Tree returns what the layers of a committed snapshot say, each with all that
// is hidden. It is not to be changed. ErrNotFound, ErrInvalidArgument: there is
// no committed snapshot of the name.
func (s *Snapshotter) Tree(ctx context.Context, name string) (*flatten.Tree, error) {
	ids, err := s.readChain(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("tree of %s: %w", name, err)
	}
	tree, err := s.merge(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("tree of %s: %w", name, err)
	}
	return tree, nil
}

// ImagePlaces knows where the contents of a flat image lie, and who else shows
// them. The image stays until Close: collections neither remove it nor move what
// it shows.
type ImagePlaces interface {
	report.Places
	Close()
}

type places struct {
	done   func()
	s      *Snapshotter
	shares *shares
	own    map[uint32]bool // blocks that the image shows
	image  uint64
}

// Places makes sure that a committed snapshot has its flat image, and tells
// about it. What changes of other images may be told or not.
func (s *Snapshotter) Places(ctx context.Context, name string) (_ ImagePlaces, err error) {
	ids, err := s.readChain(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("places of %s: %w", name, err)
	}
	tocs, err := s.summaries(ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("places of %s: %w", name, err)
	}
	c := chainOf(tocs)
	done := s.useImage(flatImage(c))
	defer func() {
		if err != nil {
			done()
		}
	}()
	if err := s.Flatten(ctx, name); err != nil {
		return nil, err
	}
	shares, err := s.countShares()
	if err != nil {
		return nil, fmt.Errorf("places of %s: %w", name, err)
	}
	p := &places{done: done, s: s, shares: shares, own: map[uint32]bool{}, image: s.imageBytes(c)}
	for _, b := range shares.images[c].Blocks {
		p.own[b] = true
	}
	return p, nil
}

// Close lets collections have the image again.
func (p *places) Close() { p.done() }

// ImageBytes are those of the flat image on the disk.
func (p *places) ImageBytes() uint64 { return p.image }

// Place says where a content is: the first block of what it is stored in, which
// it may share with others, the bytes on the disk of that, and whether images
// of other chains show something of it as well.
//
// ErrNotFound: the pack does not have it.
func (p *places) Place(d layer.Digest) (block uint32, bytes uint64, shared bool, err error) {
	place, err := p.s.pack.Lookup(pack.Digest(d))
	if err != nil {
		return 0, 0, false, err
	}
	others := p.shares.shown[place.Block]
	if p.own[place.Block] {
		others--
	}
	return place.Block, uint64(place.Stored) * pack.BlockSize, others > 0, nil
}
