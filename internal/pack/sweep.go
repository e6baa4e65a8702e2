// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"cmp"
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
	records, ok := mergeRecords(old)
	if !ok {
		return nil // the next sweep makes it so
	}
	// Durable before the old ones go, for some of them may be.
	x, err := publishIndex(s.indexDir(), g, records, true)
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

// Keep tells the mark that a content is referred to, and says where it is.
// Contents that the pack does not have are passed over.
func (m *Mark) Keep(d Digest) (Placement, bool) {
	p, err := m.s.Lookup(d)
	if err == nil {
		m.keepBlock(uint64(p.Block))
	}
	return p, err == nil
}

// KeepBlock is Keep for the content whose placement begins at a block.
func (m *Mark) KeepBlock(block uint32) { m.keepBlock(uint64(block)) }

func (m *Mark) keepBlock(block uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.live.setRange(block, 1)
}

// Met tells whether something that begins at a block was kept.
func (m *Mark) Met(block uint32) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.live.has(uint64(block))
}

// Cancel ends the mark without freeing anything.
func (m *Mark) Cancel() {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	if m.s.mark == m {
		m.s.mark, m.s.condemned = nil, blockSet{}
	}
}

// Sweep frees what the mark did not meet.
//
// ErrFailedPrecondition: an index file is damaged, so that it is not known
// which blocks are in use; or the mark has ended already.
func (m *Mark) Sweep() (SweepStats, error) {
	s := m.s
	s.changing.Lock()
	defer s.changing.Unlock()
	defer m.Cancel()
	files, err := m.judged()
	if err != nil {
		return SweepStats{}, err
	}
	return s.free(files, m.condemn(files))
}

// Unmet counts what Sweep would free if it were called now; gone tells whether
// what begins at a block is of it. The mark stays open, and nothing is decided
// about any content.
func (m *Mark) Unmet() (sum SweepStats, gone func(block uint32) bool, err error) {
	s := m.s
	s.changing.Lock()
	defer s.changing.Unlock()
	files, err := m.judged()
	if err != nil {
		return sum, nil, err
	}
	begins := beginnings(files)
	s.mu.Lock()
	dead := m.unmet(begins)
	s.mu.Unlock()
	for _, x := range files {
		st, _, _ := x.lose(dead)
		sum.Contents, sum.Bytes = sum.Contents+st.Contents, sum.Bytes+st.Bytes
	}
	return sum, func(block uint32) bool { return dead.has(uint64(block)) }, nil
}

// judged returns the index files that the mark is about. s.changing is held.
func (m *Mark) judged() ([]*indexFile, error) {
	s := m.s
	if !m.open() {
		return nil, fmt.Errorf("pack: this mark has ended: %w", errdefs.ErrFailedPrecondition)
	}
	if !s.whole {
		return nil, fmt.Errorf("pack: an index file is damaged or missing, so it is not known which blocks are in use, and nothing is freed: %w", errdefs.ErrFailedPrecondition)
	}
	n := 0
	for n < len(s.files) && s.files[n].last < m.last {
		n++
	}
	return s.files[:n], nil
}

func (m *Mark) open() bool {
	m.s.mu.RLock()
	defer m.s.mu.RUnlock()
	return m.s.mark == m
}

// condemn decides which contents of the files are dead, those that neither the
// mark has met nor an open writer relies on, and closes them to writers in the
// same step.
func (m *Mark) condemn(files []*indexFile) (dead blockSet) {
	begins := beginnings(files)
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	dead = m.unmet(begins)
	m.s.condemned = dead
	return dead
}

// unmet takes from a set of first blocks what the mark has met or an open writer
// relies on. s.mu is held.
func (m *Mark) unmet(begins blockSet) blockSet {
	for w := range m.s.writers {
		w.pins(m.keepBlock)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	begins.remove(m.live)
	return begins
}

// beginnings are the first blocks of all that files tell about.
func beginnings(files []*indexFile) (begins blockSet) {
	for _, x := range files {
		for r := range x.all() {
			begins.setRange(uint64(r.place.Block), 1)
		}
	}
	return begins
}

// lose tells what goes with the dead blocks of a file: how much, which blocks,
// and how many contents stay.
func (x *indexFile) lose(dead blockSet) (st SweepStats, freed blockSet, kept int) {
	for r := range x.all() {
		block := uint64(r.place.Block)
		if !dead.has(block) {
			kept++
			continue
		}
		st.Contents++
		if !freed.has(block) { // several contents can lie in the same blocks
			st.Bytes += uint64(r.place.Stored) * BlockSize
			freed.setRange(block, uint64(r.place.Blocks))
		}
	}
	return st, freed, kept
}

// free takes the contents that begin at dead blocks out of the files and gives
// their blocks back, one file after the other: a crash or a full disk in
// between has freed some contents and not others. The files of which the least
// stays come first, for they need the least room and may make some for the
// next. s.changing is held.
func (s *Store) free(files []*indexFile, dead blockSet) (SweepStats, error) {
	keeps := map[*indexFile]int{}
	for _, x := range files {
		for r := range x.all() {
			if !dead.has(uint64(r.place.Block)) {
				keeps[x]++
			}
		}
	}
	var sum SweepStats
	touched := slices.DeleteFunc(slices.Clone(files), func(x *indexFile) bool { return keeps[x] == x.len() })
	slices.SortFunc(touched, func(a, b *indexFile) int { return cmp.Compare(keeps[a], keeps[b]) })
	for _, x := range touched {
		st, err := s.cut(x, dead)
		if err != nil {
			return sum, err
		}
		sum.Contents, sum.Bytes = sum.Contents+st.Contents, sum.Bytes+st.Bytes
	}
	if len(touched) == 0 {
		return sum, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return sum, s.fit()
}

// cut frees what is dead in one index file. First the index forgets it, by the
// file's next revision or, if nothing stays, by its removal; then the blocks
// are punched out. A crash in between leaves blocks that no placement covers,
// which Open takes back.
func (s *Store) cut(x *indexFile, dead blockSet) (SweepStats, error) {
	stays := func(r record) bool { return !dead.has(uint64(r.place.Block)) }
	st, freed, kept := x.lose(dead)
	at := slices.Index(s.files, x)
	files := slices.Concat(s.files[:at], s.files[at+1:])
	if kept > 0 {
		g := x.span
		g.revision++
		y, err := publishIndex(s.indexDir(), g, func(yield func(record) bool) {
			for r := range x.all() {
				if stays(r) && !yield(r) {
					return
				}
			}
		}, true)
		if err != nil {
			return SweepStats{}, err
		}
		files = slices.Insert(files, at, y)
	} else if err := removeReplaced(s.indexDir(), x.span); err != nil {
		return SweepStats{}, err
	}
	if err := s.replaceFiles(files); err != nil {
		return SweepStats{}, err
	}
	if kept == 0 {
		// No later revision says so: the file must not come back with blocks
		// that have become others'.
		if err := syncDir(s.indexDir()); err != nil {
			return SweepStats{}, err
		}
	}
	if !s.whole {
		return st, nil // a file that cannot be read may speak for these blocks, too
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for from, n := range freed.runs() {
		if err := s.giveBack(from, from+n, from+n); err != nil {
			return SweepStats{}, err
		}
	}
	return st, nil
}
