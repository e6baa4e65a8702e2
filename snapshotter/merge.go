// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/flatten"
)

// An image comes layer by layer, and what was merged for one is the beginning of
// what is merged for the next, and in the end of the flat image. So trees are kept
// for a moment: each TOC is read once.
const (
	keepTree = 10 * time.Second // after it was last used
	// Some 250 bytes of memory each. Larger trees are merged anew every time.
	keepEntries = 200_000
	keepTrees   = 2
)

// merged are the trees that were asked for last, the latest at the end.
type merged struct {
	mu    sync.Mutex
	trees []mergedTree
	// next is the snapshot whose chain is to be merged ahead; "": none, and
	// nobody is at it.
	next string
}

type mergedTree struct {
	chain  chain
	layers int
	tree   *flatten.Tree
	used   time.Time
}

// merge returns the tree of the layers ids, whose TOCs are there.
func (s *Snapshotter) merge(ctx context.Context, ids []string) (*flatten.Tree, error) {
	tocs, err := s.summaries(ctx, ids)
	if err != nil {
		return nil, err
	}
	chains, entries := chainsOf(tocs), uint64(0)
	for _, t := range tocs {
		entries += t.Entries
	}
	below := s.merged.take(chains)
	tree := below.tree
	switch {
	case tree == nil:
		tree, err = flatten.Merge(ctx, s.tocReaders(ids))
	case below.layers < len(ids):
		tree, err = tree.Extend(ctx, s.tocReaders(ids[below.layers:]))
	}
	if err != nil {
		return nil, err
	}
	if entries <= keepEntries && len(ids) > 0 {
		s.merged.keep(mergedTree{chain: chains[len(chains)-1], layers: len(ids), tree: tree, used: time.Now()})
	}
	return tree, nil
}

// take returns the tallest tree that is there of these chains, or none.
func (m *merged) take(chains []chain) (best mergedTree) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.trees {
		if t.layers > best.layers && t.layers <= len(chains) && chains[t.layers-1] == t.chain {
			best = t
		}
	}
	return best
}

// keep adds a tree, and forgets it when nobody has asked for it for a while.
func (m *merged) keep(t mergedTree) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.trees = slices.DeleteFunc(m.trees, func(o mergedTree) bool { return o.chain == t.chain })
	m.trees = append(m.trees, t)
	m.trees = slices.Delete(m.trees, 0, max(0, len(m.trees)-keepTrees))
	time.AfterFunc(keepTree, m.forget)
}

func (m *merged) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.trees = slices.DeleteFunc(m.trees, func(t mergedTree) bool { return time.Since(t.used) >= keepTree })
}

// mergeAhead merges what will be needed for the next layer, or for the flat
// image: layers that are unpacked side by side are committed without having asked
// for what lies below them.
func (s *Snapshotter) mergeAhead(name string) {
	s.merged.mu.Lock()
	busy := s.merged.next != ""
	s.merged.next = name
	s.merged.mu.Unlock()
	if busy {
		return // whoever is at it takes this one next
	}
	s.background(func(ctx context.Context) {
		for {
			s.merged.mu.Lock()
			name := s.merged.next
			s.merged.mu.Unlock()
			if err := s.mergeChain(ctx, name); err != nil && ctx.Err() == nil {
				log.G(ctx).WithError(err).WithField("snapshot", name).Debug("could not merge layers ahead")
			}
			s.merged.mu.Lock()
			done := s.merged.next == name || ctx.Err() != nil
			if done {
				s.merged.next = ""
			}
			s.merged.mu.Unlock()
			if done {
				return
			}
		}
	})
}

func (s *Snapshotter) mergeChain(ctx context.Context, name string) error {
	ids, err := s.readChain(ctx, name)
	if err == nil {
		_, err = s.merge(ctx, ids)
	}
	return err
}
