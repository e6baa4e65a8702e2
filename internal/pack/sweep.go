// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"fmt"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
)

// mergeWidth is how many index files of similar size are kept before they
// become one: a lookup asks few files, and a record is rewritten a number of
// times that grows with the logarithm of the index.
const mergeWidth = 4

// merge joins the newest index files when there are many. s.changing is held.
func (s *Store) merge() error {
	s.mu.RLock()
	marking := s.mark != nil
	s.mu.RUnlock()
	if marking {
		return nil // the mark speaks of the files as they were
	}
	n, sum := 0, 0
	for i := len(s.files) - 1; i >= 0; i-- {
		if c := s.files[i].len(); n >= mergeWidth && c > 2*sum {
			break
		}
		n, sum = n+1, sum+s.files[i].len()
	}
	// Blocks of a damaged file between two whole ones must not be covered by
	// the range of a merged one: it would be removed, and with it the chance
	// to repair it.
	if n <= mergeWidth || !s.whole {
		return nil
	}
	from := len(s.files) - n
	old := s.files[from:]
	g := span{first: old[0].first, last: old[len(old)-1].last}
	// Durable before the old ones go, for some of them may be.
	x, err := publishIndex(s.indexDir(), g, mergeRecords(old, nil), true)
	if err != nil {
		return err
	}
	return s.replaceFiles(append(slices.Clone(s.files[:from]), x))
}

// Mark collects what is still referred to; Sweep then frees all the rest. One
// mark is open at a time. Contents that writers use or publish while the mark
// is open count as referred to, so writers need not wait for it.
type Mark struct {
	s    *Store
	last uint64 // generations below this one are judged

	mu   sync.Mutex
	live blockSet // first blocks
}

// SweepStats counts what a sweep freed.
type SweepStats struct {
	Contents uint64
	Bytes    uint64 // of the pack
}

// BeginMark opens a mark; it ends by Sweep or Cancel. ErrUnavailable: another
// one is open.
func (s *Store) BeginMark() (*Mark, error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mark != nil {
		return nil, fmt.Errorf("pack: a sweep is under way: %w", errdefs.ErrUnavailable)
	}
	s.mark = &Mark{s: s, last: s.next}
	return s.mark, nil
}

// Keep tells the mark that a content is referred to. Contents that the pack
// does not have are passed over.
func (m *Mark) Keep(d Digest) {
	if p, err := m.s.Lookup(d); err == nil {
		m.keepBlock(uint64(p.Block))
	}
}

// KeepBlock is Keep for the content whose placement begins at a block.
func (m *Mark) KeepBlock(block uint32) { m.keepBlock(uint64(block)) }

func (m *Mark) keepBlock(block uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.live.setRange(block, 1)
}

func (m *Mark) isLive(r record) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.live.has(uint64(r.place.Block))
}

// Cancel ends the mark without freeing anything.
func (m *Mark) Cancel() {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	if m.s.mark == m {
		m.s.mark, m.s.condemned = nil, blockSet{}
	}
}

// Sweep frees what the mark did not meet: first it is cut from the index,
// then its blocks are punched out. A crash in between leaves blocks that no
// placement covers, which Open takes back.
//
// ErrFailedPrecondition: an index file is damaged, so that it is not known
// which blocks are in use; or the mark has ended already.
func (m *Mark) Sweep() (SweepStats, error) {
	s := m.s
	s.changing.Lock()
	defer s.changing.Unlock()
	defer m.Cancel()
	if !m.open() {
		return SweepStats{}, fmt.Errorf("pack: this mark has ended: %w", errdefs.ErrFailedPrecondition)
	}
	if !s.whole {
		return SweepStats{}, fmt.Errorf("pack: an index file is damaged or missing, so it is not known which blocks are in use, and nothing is freed: %w", errdefs.ErrFailedPrecondition)
	}
	files, dead, err := m.cut()
	if err != nil || len(dead) == 0 {
		return SweepStats{}, err
	}
	if err := s.replaceFiles(files); err != nil {
		return SweepStats{}, err
	}
	var st SweepStats
	for _, r := range dead {
		st.Contents++
		st.Bytes += uint64(r.place.Stored) * BlockSize
	}
	for from, end := range runs(dead) {
		s.mu.Lock()
		err := s.giveBack(from, end, end)
		s.mu.Unlock()
		if err != nil {
			return SweepStats{}, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return st, s.fit()
}

func (m *Mark) open() bool {
	m.s.mu.RLock()
	defer m.s.mu.RUnlock()
	return m.s.mark == m
}

// cut writes the judged index files again as one, without the dead records. It
// returns the new list of files and what is dead. s.changing is held.
func (m *Mark) cut() (files []*indexFile, dead []record, err error) {
	s := m.s
	judged := 0
	for judged < len(s.files) && s.files[judged].last < m.last {
		judged++
	}
	old := s.files[:judged]
	for _, x := range old {
		for r := range x.all() {
			if !m.isLive(r) {
				dead = append(dead, r)
			}
		}
	}
	if dead = m.condemn(dead); len(dead) == 0 {
		return nil, nil, nil
	}
	keep := mergeRecords(old, func(r record) bool { return s.condemned.has(uint64(r.place.Block)) })
	g := span{first: old[0].first, last: old[judged-1].last}
	if judged == 1 {
		g.revision = old[0].revision + 1
	}
	x, err := publishIndex(s.indexDir(), g, keep, true)
	if err != nil {
		return nil, nil, err
	}
	return append([]*indexFile{x}, s.files[judged:]...), dead, nil
}

// condemn takes what open writers rely on out of the list of the dead and
// closes the rest to them, in one step.
func (m *Mark) condemn(dead []record) []record {
	s := m.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.writers {
		w.pins(m.keepBlock)
	}
	dead = slices.DeleteFunc(dead, m.isLive)
	for _, r := range dead {
		s.condemned.setRange(uint64(r.place.Block), 1)
	}
	return dead
}
