// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/flatten"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/pack"
)

// sweep frees the content that nobody needs. A content is needed if
//
//   - an image shows it, flat or of a layer, or
//   - a layer refers to it that belongs to no flattened chain: who can say
//     what its image will show, or
//   - a layer refers to it that could not be brought back from its blob.
//
// s.collecting is held: no flat image goes meanwhile. Those that come keep
// their contents by the writer with which they were built.
//
// needed is what was met, as far as contents share clusters.
func (s *Snapshotter) sweep(ctx context.Context, ids known, tell *Collection) (needed, error) {
	mark, err := s.pack.BeginMark()
	if err != nil {
		return needed{}, err
	}
	defer mark.Cancel()
	need, err := s.markNeeded(ctx, mark, ids, collectPlan{})
	if err != nil {
		return need, err
	}
	st, err := mark.Sweep()
	if err == nil && st.Contents > 0 {
		log.G(ctx).WithFields(log.Fields{"contents": st.Contents, "bytes": st.Bytes}).Info("content freed")
	}
	tell.contents(st, need)
	return need, err
}

// markNeeded keeps what is needed once the plan is done; of what it removes,
// nothing may be left out that is not gone when the contents are.
func (s *Snapshotter) markNeeded(ctx context.Context, mark *pack.Mark, ids known, p collectPlan) (needed, error) {
	need := needed{used: map[uint32]uint64{}, layers: map[string]bool{}}
	flattened, err := s.markImages(mark, ids, p, &need)
	if err != nil {
		return need, err
	}
	// Listed after the mark began: a TOC that comes later has had its contents
	// kept by its writer.
	layers, err := os.ReadDir(s.layersDir())
	if err != nil {
		return need, err
	}
	blobs := restorable{s: s}
	for _, l := range layers {
		id := l.Name()
		if ctx.Err() != nil {
			return need, ctx.Err()
		}
		if slices.Contains(p.layers, id) {
			continue
		}
		whole := wholeLayer{id: id, name: ids[id].Name}
		switch {
		case !flattened[id]:
			whole.reason, whole.why = notFlat, "no flat image was built on it yet"
		case s.cfg.Shadowed != ShadowedFree:
			whole.reason, whole.why = configured, "the configuration says shadowed = keep"
		default:
			err := blobs.judge(ctx, id)
			if err == nil {
				continue
			}
			whole.reason, whole.why = notRestorable, err.Error()
		}
		need.layers[id] = true
		err := s.eachContent(id, func(d layer.Digest) error {
			p, err := s.pack.Lookup(pack.Digest(d))
			if err != nil {
				return nil // freed
			}
			if p.Encoding == pack.EncodingShared {
				need.used[p.Block] += p.Size
			}
			if !mark.Met(p.Block) {
				whole.contents += p.Members()
				whole.bytes += uint64(p.Stored) * pack.BlockSize
				mark.KeepBlock(p.Block)
			}
			return nil
		})
		switch {
		case err == nil, os.IsNotExist(err):
		case errors.Is(err, layer.ErrDamaged) && blobs.layer(ctx, id): // all of it can come back
		default:
			return need, fmt.Errorf("nothing is freed, for it is not known what layer %s (snapshot %s) refers to; remove its image: %w", id, ids[id].Name, err)
		}
		if whole.contents > 0 {
			need.whole = append(need.whole, whole)
		}
	}
	return need, nil
}

// needed says what a sweep has met.
type needed struct {
	used   map[uint32]uint64 // bytes of shared clusters, by first block; those that several need count several times
	layers map[string]bool   // layers that need all their contents
	whole  []wholeLayer      // of them, those that keep contents which no image shows
}

// wholeLayer is a layer whose contents stay though no image shows them. What
// several have counts with the first.
type wholeLayer struct {
	id, name        string
	reason          reason
	why             string
	contents, bytes uint64
}

// reason is why a layer keeps contents that no image shows.
type reason int

const (
	notFlat reason = iota
	notRestorable
	configured
)

// markImages keeps what images show, those without a snapshot included:
// somebody may still have them mounted. It returns the layers whose chains have
// a flat image and need not keep more than that shows.
func (s *Snapshotter) markImages(mark *pack.Mark, ids known, p collectPlan, need *needed) (flattened map[string]bool, err error) {
	tops, byName := s.tops(ids), ids.byName()
	images, err := s.imageFiles()
	if err != nil {
		return nil, err
	}
	flattened = map[string]bool{}
	for _, i := range images {
		if slices.Contains(p.images, i) {
			continue
		}
		refs, err := s.readRefs(i)
		if (errors.Is(err, os.ErrNotExist) || errors.Is(err, flatten.ErrRefsDamaged)) && len(tops[i.chain]) > 0 {
			continue // all that its layers refer to is kept: what it shows, and more
		}
		if err != nil {
			return nil, fmt.Errorf("nothing is freed, for it is not known what %s shows: %w", i.what(), err)
		}
		for k, b := range refs.Blocks {
			mark.KeepBlock(b)
			if refs.Used[k] > 0 {
				need.used[b] += uint64(refs.Used[k])
			}
		}
		if i.layers > 0 {
			continue // what it hides, a flat image of another chain may show
		}
		for _, id := range tops[i.chain] {
			for _, below := range ids.lineage(id, byName) {
				flattened[below] = true
			}
		}
	}
	return flattened, nil
}

func (s *Snapshotter) readRefs(i imageName) (flatten.Refs, error) {
	f, err := os.Open(s.refs(i))
	if err != nil {
		return flatten.Refs{}, err
	}
	defer f.Close()
	return flatten.ReadRefs(f)
}
