// SPDX-License-Identifier: Apache-2.0

package pack

import "slices"

// Drop cuts contents from the index and frees their blocks, whoever refers to
// them, and with them what else lies in the same blocks. Contents that the
// pack does not have are passed over.
func (s *Store) Drop(ds []Digest) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	var dead blockSet
	for _, d := range ds {
		if p, err := s.Lookup(d); err == nil {
			dead.setRange(uint64(p.Block), 1)
		}
	}
	_, err := s.free(s.files, dead)
	return err
}

// CheckIndex reads the index files again and returns what is wrong with each,
// by path.
func (s *Store) CheckIndex() map[string]error {
	s.changing.Lock() // or they might be merged meanwhile
	defer s.changing.Unlock()
	bad := map[string]error{}
	for _, x := range s.files {
		if _, _, _, err := parseIndex(x.mapped); err != nil {
			bad[x.path] = err
		}
	}
	return bad
}

// Whole tells whether it is known which blocks are in use. If not, nothing is
// freed.
func (s *Store) Whole() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.whole
}

// Begins tells whether a content of the index begins at each of the blocks,
// and returns those where none does.
func (s *Store) Begins(blocks []uint32) (none []uint32) {
	var begins blockSet
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, x := range s.files {
		for r := range x.all() {
			begins.setRange(uint64(r.place.Block), 1)
		}
	}
	for _, b := range blocks {
		if !begins.has(uint64(b)) {
			none = append(none, b)
		}
	}
	return none
}

// Each calls f for every content of the index, in the order in which they lie
// in the pack, until it returns false.
func (s *Store) Each(f func(Digest, Placement) bool) {
	s.mu.RLock()
	var all []record
	for _, x := range s.files {
		all = slices.AppendSeq(all, x.all())
	}
	s.mu.RUnlock()
	slices.SortFunc(all, comparePlaces)
	for _, r := range all {
		if !f(r.digest, r.place) {
			return
		}
	}
}

// Counter counts the disk space of contents, each once.
type Counter struct {
	s       *Store
	counted blockSet // first blocks
}

// Counter returns a counter that has counted nothing. Not safe for concurrent
// use.
func (s *Store) Counter() *Counter { return &Counter{s: s} }

// Count returns the bytes that a content takes up, its line in the index
// included; 0 if it was counted before or is not there. A cluster that several
// contents share counts as a whole with the first of them.
func (c *Counter) Count(d Digest) int64 {
	p, err := c.s.Lookup(d)
	if err != nil || c.counted.has(uint64(p.Block)) {
		return 0
	}
	c.counted.setRange(uint64(p.Block), 1)
	return p.cost()
}
