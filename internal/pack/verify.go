// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/errdefs"
)

// Verify reads a content and compares it with its digest. The reading goes
// through throttle, which may be nil.
//
// ErrNotFound: the pack does not have it. ErrDataLoss: its bytes are others.
func (s *Store) Verify(ctx context.Context, d Digest, throttle func(io.Reader) io.Reader) error {
	p, err := s.Lookup(d)
	if err != nil {
		return err
	}
	var r io.Reader = io.NewSectionReader(s.file, int64(p.Block)*BlockSize, int64(p.Size))
	if throttle != nil {
		r = throttle(r)
	}
	h := sha256.New()
	if n, err := io.Copy(h, contextReader{ctx, r}); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("content sha256:%x at block %d: read: %w: %w", d[:], p.Block, err, errdefs.ErrDataLoss)
	} else if n != int64(p.Size) || Digest(h.Sum(nil)) != d {
		return fmt.Errorf("content sha256:%x at block %d has other bytes: %w", d[:], p.Block, errdefs.ErrDataLoss)
	}
	return nil
}

// contextReader ends with the context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// Mend writes a content again, from r, into the blocks that it has: whoever
// refers to them need not know. The bytes must be those of the digest, or they
// are not what was meant to be there either: ErrDataLoss.
func (s *Store) Mend(d Digest, r io.Reader) error {
	p, err := s.Lookup(d)
	if err != nil {
		return err
	}
	h, buf := sha256.New(), make([]byte, smallContent)
	for done := uint64(0); done < p.Size; {
		b := buf[:min(p.Size-done, uint64(len(buf)))]
		if _, err := io.ReadFull(r, b); err != nil {
			return fmt.Errorf("mend content sha256:%x: %w", d[:], unexpected(err))
		}
		h.Write(b)
		if _, err := s.file.WriteAt(b, int64(p.Block)*BlockSize+int64(done)); err != nil {
			return fmt.Errorf("mend content sha256:%x: %w", d[:], err)
		}
		done += uint64(len(b))
	}
	if Digest(h.Sum(nil)) != d {
		return fmt.Errorf("mend content sha256:%x: what was given has other bytes: %w", d[:], errdefs.ErrDataLoss)
	}
	return nil
}

// Drop cuts contents from the index and frees their blocks, whoever refers to
// them. Contents that the pack does not have are passed over.
func (s *Store) Drop(ds []Digest) error {
	drop := map[Digest]bool{}
	for _, d := range ds {
		drop[d] = true
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	files := slices.Clone(s.files)
	var dead []record
	for i, x := range files {
		n := len(dead)
		keep := mergeRecords([]*indexFile{x}, func(r record) bool {
			if drop[r.digest] {
				dead = append(dead, r)
			}
			return drop[r.digest]
		})
		if len(dead) == n {
			continue
		}
		g := x.span
		g.revision++
		cut, err := publishIndex(s.indexDir(), g, keep, true)
		if err != nil {
			return err
		}
		// One file at a time: a crash in between has dropped some, not others.
		files[i] = cut
		if err := s.replaceFiles(slices.Clone(files)); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range dead {
		if s.whole {
			if err := s.giveBack(uint64(r.place.Block), r.place.End(), r.place.End()); err != nil {
				return err
			}
		}
	}
	return nil
}

// CheckIndex reads the index files again and returns what is wrong with each,
// by path.
func (s *Store) CheckIndex() map[string]error {
	s.changing.Lock() // or they might be merged meanwhile
	defer s.changing.Unlock()
	bad := map[string]error{}
	for _, x := range s.files {
		if _, _, err := parseIndex(x.mapped); err != nil {
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

// Each calls f for every content of the index until it returns false.
func (s *Store) Each(f func(Digest, Placement) bool) {
	s.mu.RLock()
	var all []record
	for _, x := range s.files {
		all = slices.AppendSeq(all, x.all())
	}
	s.mu.RUnlock()
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
// included; 0 if it was counted before or is not there.
func (c *Counter) Count(d Digest) int64 {
	p, err := c.s.Lookup(d)
	if err != nil || c.counted.has(uint64(p.Block)) {
		return 0
	}
	c.counted.setRange(uint64(p.Block), 1)
	return int64(p.Stored)*BlockSize + recordSize
}
