// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"context"
	"crypto/sha256"
	"fmt"

	"github.com/containerd/errdefs"
)

// Shared clusters are worth rewriting if less than half of each is needed, and
// if together they waste at least repackShare of all shared clusters.
const (
	repackNeeded = 2  // at most 1/2
	repackShare  = 16 // 1/16
)

// Wasted returns the first blocks of the shared clusters that are worth
// rewriting, if there are enough of them. used says how many bytes of each are
// needed, at most. Clusters of which gone, unless it is nil, says that a sweep is
// going to free them as they are, are passed over.
func (s *Store) Wasted(used map[uint32]uint64, gone func(block uint32) bool) map[uint32]bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var seen blockSet
	var all, wasted uint64
	worst := map[uint32]bool{}
	for _, x := range s.files {
		for r := range x.all() {
			p := &r.place
			if p.Encoding != EncodingShared || seen.has(uint64(p.Block)) || gone != nil && gone(p.Block) {
				continue
			}
			seen.setRange(uint64(p.Block), 1)
			all += uint64(p.Decoded())
			if u := used[p.Block]; u <= uint64(p.Decoded())/repackNeeded {
				worst[p.Block] = true
				wasted += uint64(p.Decoded()) - u
			}
		}
	}
	if wasted < all/repackShare || wasted < ClusterSize {
		return nil
	}
	return worst
}

// Move stores a content of the index once more, together with others that are
// moved. From Publish on, Lookup finds it there; the blocks where it was are
// free for the next sweep that finds nobody who refers to them.
//
// ErrNotFound: the pack does not have it. ErrDataLoss: its bytes are others.
func (w *Writer) Move(ctx context.Context, v *Verifier, d Digest) error {
	if w.err != nil {
		return w.err
	}
	if w.added[d] {
		return nil
	}
	p, ok := w.pin(d)
	if !ok {
		return notFound(d)
	}
	var b []byte
	if err := v.read(ctx, p, func(piece []byte) { b = append(b, piece...) }); err != nil {
		return fmt.Errorf("pack: move content sha256:%x: %w: %w", d[:], err, errdefs.ErrDataLoss)
	}
	if sha256.Sum256(b) != d {
		return fmt.Errorf("pack: move content sha256:%x: it has other bytes: %w", d[:], errdefs.ErrDataLoss)
	}
	if w.moved == nil {
		w.moved = map[Digest]bool{}
	}
	w.added[d], w.moved[d] = true, true
	w.buffers()
	if w.s.codec == nil {
		w.err = w.putPlain(d, b)
	} else {
		w.err = w.putCompressed(d, b)
	}
	return w.err
}
