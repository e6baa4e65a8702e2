// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"
)

// quietTime is how long a stack is left alone, after it was last asked for,
// before its chain is flattened.
const quietTime = 5 * time.Second

// settling is what is known about stacks that are to become flat.
type settling struct {
	// served says when a stack was handed out last, by the chain; guarded by
	// Snapshotter.mu. Each has a goroutine that waits.
	served map[chain]time.Time
	// slot is taken by who flattens: one at a time.
	slot chan struct{}
}

func newSettling() settling {
	return settling{served: map[chain]time.Time{}, slot: make(chan struct{}, 1)}
}

// stacked notes that a stack of the layers ids was handed out. The chain is
// flattened once nobody builds on it for a while, and at once if it is tall: more
// than half of what a stack may hold is used up. Then, most likely, no step of a
// build ever waits for it.
func (s *Snapshotter) stacked(c chain, ids []string, tall bool) {
	s.mu.Lock()
	_, waiting := s.settling.served[c]
	s.settling.served[c] = time.Now()
	s.mu.Unlock()
	if !waiting {
		s.background(func(ctx context.Context) { s.settleStack(ctx, c, ids, tall) })
	}
}

// settleStack flattens a chain in its time. tall: now, unless another one is
// being flattened, for most likely the build goes on and its next step asks.
func (s *Snapshotter) settleStack(ctx context.Context, c chain, ids []string, tall bool) {
	if tall {
		select {
		case s.settling.slot <- struct{}{}:
		default:
			tall = false
		}
	}
	var last time.Time
	if !tall {
		last = s.awaitQuiet(ctx, c)
		select {
		case s.settling.slot <- struct{}{}:
		case <-ctx.Done():
			return
		}
	}
	defer func() { <-s.settling.slot }()
	s.mu.Lock()
	delete(s.settling.served, c)
	s.mu.Unlock()
	if !tall && s.wentOn(ctx, ids[len(ids)-1], last) {
		return
	}
	if _, err := s.flat(ctx, ids); err != nil && ctx.Err() == nil {
		log.G(ctx).WithError(err).WithField("chain", c.String()).Warn("a chain that was built could not be flattened; it stays a stack of images")
	}
}

// awaitQuiet returns when a stack was not asked for during quietTime, and since
// when.
func (s *Snapshotter) awaitQuiet(ctx context.Context, c chain) (last time.Time) {
	for {
		s.mu.Lock()
		last = s.settling.served[c]
		s.mu.Unlock()
		wait := time.Until(last.Add(s.cfg.quiet))
		if wait <= 0 {
			return last
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return last
		}
	}
}

// awaitSettling waits while a chain is being flattened, and tells whether one
// was.
func (s *Snapshotter) awaitSettling(ctx context.Context) bool {
	select {
	case s.settling.slot <- struct{}{}:
		<-s.settling.slot
		return false
	default:
	}
	select {
	case s.settling.slot <- struct{}{}:
		<-s.settling.slot
		return true
	case <-ctx.Done():
		return false
	}
}

// wentOn tells whether a snapshot got a child since some time, which is flattened
// in its place, or was removed.
func (s *Snapshotter) wentOn(ctx context.Context, id string, since time.Time) bool {
	ids, err := s.readKnown(ctx)
	if _, ok := ids[id]; err != nil || !ok {
		return err == nil
	}
	for _, info := range ids {
		if info.Kind == snapshots.KindCommitted && info.Parent == ids[id].Name && info.Created.After(since) {
			return true
		}
	}
	return false
}

// resumeStacks lets the stacks settle that a predecessor left: those on which
// nothing was built.
func (s *Snapshotter) resumeStacks(ids known) error {
	images, err := s.imageFiles()
	if err != nil {
		return err
	}
	parents := ids.committedParents()
	tops, byName := s.tops(ids), ids.byName()
	for _, i := range images {
		for _, id := range tops[i.chain] {
			if i.layers > 0 && !parents[ids[id].Name] && !exists(s.image(flatImage(i.chain))) {
				s.stacked(i.chain, ids.lineage(id, byName), false)
			}
		}
	}
	return nil
}
