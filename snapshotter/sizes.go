// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/squash-snapshotter/squash/internal/flatten"
)

// ImageSizes says what the layers of an image have, and what it takes up.
type ImageSizes struct {
	// LayerBytes are those of the regular files of all layers, what is
	// overwritten or deleted later included.
	LayerBytes uint64
	// Flat: its flat image is built. The numbers below are 0 without it.
	Flat bool
	// Files are the names of regular files that a container sees.
	Files uint64
	// Own and Shared are bytes on the disk, contents and flat image: what this
	// image alone needs, and what images of other chains show as well.
	Own, Shared uint64
	// Err says why nothing is known of this image. ErrNotFound,
	// ErrInvalidArgument: the name is no committed snapshot's.
	Err error
}

// Sizes tells about images by the names of their top snapshots, in that order.
// One that is damaged, or removed meanwhile, does not hide the others.
func (s *Snapshotter) Sizes(ctx context.Context, names []string) ([]ImageSizes, error) {
	shares, err := s.countShares()
	if err != nil {
		return nil, err
	}
	sizes := make([]ImageSizes, len(names))
	for n, name := range names {
		if sizes[n], err = s.sizesOf(ctx, name, shares); ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			sizes[n] = ImageSizes{Err: fmt.Errorf("sizes of %s: %w", name, err)}
		}
	}
	return sizes, nil
}

func (s *Snapshotter) sizesOf(ctx context.Context, name string, shares *shares) (z ImageSizes, err error) {
	ids, err := s.readChain(ctx, name)
	if err != nil {
		return z, err
	}
	tocs, err := s.summaries(ctx, ids)
	if err != nil {
		return z, err
	}
	for _, t := range tocs {
		z.LayerBytes += t.Bytes
	}
	c := chainOf(tocs)
	refs, ok := shares.images[c]
	if !ok {
		return z, nil
	}
	z.Flat = true
	z.Own = s.imageBytes(c)
	for _, b := range refs.Blocks {
		if shares.alone(b) {
			z.Own += uint64(shares.stored[b])
		} else {
			z.Shared += uint64(shares.stored[b])
		}
	}
	if z.Files = uint64(refs.Files); z.Files == 0 { // there are none, or an older version built the image
		tree, err := s.merge(ctx, ids)
		if err != nil {
			return z, err
		}
		z.Files = tree.Files()
	}
	return z, nil
}

// imageBytes is what a chain's flat image takes up.
func (s *Snapshotter) imageBytes(c chain) uint64 {
	u := fileCounter{}.count(s.image(flatImage(c)), s.refs(flatImage(c)))
	return uint64(u.Size)
}

// shares says which images show what of the pack.
type shares struct {
	images map[chain]flatten.Refs // flat ones
	shown  map[uint32]uint32      // chains that show what begins at a block
	stored map[uint32]int64       // bytes of what begins at a block; those that are shown
}

// alone tells whether at most one image shows what begins at a block.
func (h *shares) alone(block uint32) bool { return h.shown[block] <= 1 }

// countShares reads the refs of all flat images. One whose refs cannot be read
// counts as if it were not there: it is built again when it is used.
func (s *Snapshotter) countShares() (*shares, error) {
	images, err := s.imageFiles()
	if err != nil {
		return nil, err
	}
	h := &shares{images: map[chain]flatten.Refs{}, shown: map[uint32]uint32{}, stored: map[uint32]int64{}}
	for _, i := range images {
		if i.layers > 0 {
			continue
		}
		refs, err := s.readRefs(i)
		switch {
		case errors.Is(err, os.ErrNotExist), errors.Is(err, flatten.ErrRefsDamaged):
			continue
		case err != nil:
			return nil, fmt.Errorf("%s: %w", i.what(), err)
		}
		h.images[i.chain] = refs
		for _, b := range refs.Blocks {
			h.shown[b]++
		}
	}
	s.pack.Stored(func(block uint32, bytes int64) {
		if h.shown[block] > 0 {
			h.stored[block] = bytes
		}
	})
	return h, nil
}
