// SPDX-License-Identifier: Apache-2.0

// Package pack owns the node's content: one sparse file of 4 KiB blocks (the
// pack) and the index that says where in it each content lies.
//
//	bytes ──Writer.Put──▶ SHA-256 ── in the index? ── yes ─▶ only referenced
//	                                      └ no ─▶ the writer's segment of the pack
//	      ──Writer.Publish──▶ index file: digest ─▶ placement
//	      ──Mark, Sweep─────▶ what nobody refers to is cut from the index, then punched out
//
// A block of the pack is covered by one placement, by the open segment of one
// writer, or it is free; free blocks below the end of the file are holes. Only
// free blocks are ever handed to a writer, so published bytes never change.
//
// Kept here of the design's invariants: no digest in the index names bytes
// that do not hash to it (2), bounded memory for file data (8), and any number
// of writers, a sweep and lookups at once give the same result as one after
// the other (9). After a crash Open takes back every block that no placement
// covers (4).
package pack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/failpoint"
	"golang.org/x/sys/unix"
)

// Store is an open pack with its index. Its methods may be called from
// several goroutines.
type Store struct {
	dir  string
	file *os.File

	codec       *codec // nil: contents are stored as they are
	share       bool   // small contents share clusters
	compressors *compressors
	large       sizeSet // of the contents above smallContent that there are or were

	// changing is held while the list of index files is being replaced:
	// publications, merges and sweeps happen one after the other.
	changing sync.Mutex
	next     uint64 // next generation; guarded by changing
	synced   uint64 // contents of generations below it are on the disk; guarded by changing

	mu      sync.RWMutex
	files   []*indexFile // oldest first; the slice is replaced, never changed
	space   space
	size    uint64           // blocks of the pack file
	writers map[*Writer]bool // open ones: what they use is not swept
	mark    *Mark            // the open mark, nil if none
	// condemned are the first blocks of contents that a sweep is about to free:
	// no writer may come to rely on them any more.
	condemned blockSet
	whole     bool // every index file could be read
}

// Open opens the pack and the index below dir, making them if they are not
// there, and gives back the space of whatever was not published. Nothing else
// may have them open.
//
// A damaged index file does not keep the store from opening: its contents are
// missing (ErrNotFound on Lookup), and from then on no block of the existing
// pack is reused, for it is not known which of them are in use; unless a
// Referrers option knows.
func Open(ctx context.Context, dir string, opts ...Option) (_ *Store, err error) {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	s := &Store{dir: dir, share: o.share, writers: map[*Writer]bool{}, compressors: newCompressors()}
	if s.codec, err = newCodec(o.algorithm, o.level); err != nil {
		return nil, fmt.Errorf("pack: compression: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(s.indexDir(), 0o700); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	if s.file, err = os.OpenFile(s.Path(), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.files, s.whole, err = loadIndex(ctx, s.indexDir()); err != nil {
		return nil, err
	}
	st, err := s.file.Stat()
	if err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	s.size = uint64(st.Size()+BlockSize-1) / BlockSize
	var begins blockSet
	var lost []Digest // behind the end of the file
	for _, x := range s.files {
		for r := range x.all() {
			s.space.used.setRange(uint64(r.place.Block), uint64(r.place.Blocks))
			if r.place.End() > s.size {
				lost = append(lost, r.digest)
				continue
			}
			begins.setRange(uint64(r.place.Block), 1)
			if r.place.Size > smallContent {
				s.large.add(r.place.Size)
			}
		}
		s.next = max(s.next, x.last+1)
	}
	if end := s.space.used.end(); end > s.size {
		log.G(ctx).WithFields(log.Fields{"path": s.Path(), "blocks": s.size, "expected": end}).Error("pack: the pack file is shorter than its index says: contents at its end are lost")
		s.size = end
	}
	if o.referrers != nil {
		sound, err := o.referrers(func(block uint32) bool { return begins.has(uint64(block)) })
		if err != nil {
			return nil, err
		}
		if sound && !s.whole {
			if err := s.discardDamaged(ctx); err != nil {
				return nil, err
			}
		}
		s.whole = sound
	}
	if !s.whole {
		// Which blocks the damaged file spoke for is unknown: none is free.
		s.space.used.setRange(0, s.size)
		names, err := os.ReadDir(s.indexDir())
		if err != nil {
			return nil, fmt.Errorf("pack: %w", err)
		}
		for _, e := range names {
			if g, ok := parseIndexName(e.Name()); ok {
				s.next = max(s.next, g.last+1)
			}
		}
	}
	if s.synced, err = readSynced(s.indexDir()); err != nil {
		return nil, err
	}
	s.next = max(s.next, s.synced) // if index files were lost, their numbers are not given again
	if err := s.reclaim(); err != nil {
		return nil, err
	}
	if o.referrers != nil && len(lost) > 0 {
		return s, s.Drop(lost)
	}
	return s, nil
}

// Option changes how a store is opened.
type Option func(*options)

type options struct {
	algorithm Algorithm
	level     int
	share     bool
	referrers func(begins func(block uint32) bool) (sound bool, err error)
}

// Referrers names whoever refers to the pack by block addresses. It is asked,
// before any block is taken back, whether every content that is referred to is
// in the index and not lost with the end of the file; begins tells whether one
// begins at a block. If so (sound), damaged index files can be given up. If not, no block is ever taken back.
func Referrers(ask func(begins func(block uint32) bool) (sound bool, err error)) Option {
	return func(o *options) { o.referrers = ask }
}

// Compress has contents compressed that are stored from now on, small ones
// together if share is set. Level 0 is the algorithm's default; a level that the
// algorithm does not have is an ErrInvalidArgument of Open. What is in the pack
// may be compressed in any way.
func Compress(a Algorithm, level int, share bool) Option {
	return func(o *options) { o.algorithm, o.level, o.share = a, level, share }
}

// sizeSet is a set of sizes in bytes.
type sizeSet struct {
	mu  sync.Mutex
	set map[uint64]bool
}

func (s *sizeSet) add(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.set == nil {
		s.set = map[uint64]bool{}
	}
	s.set[n] = true
}

func (s *sizeSet) has(n uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.set[n]
}

// discardDamaged removes the index files that could not be read.
func (s *Store) discardDamaged(ctx context.Context) error {
	names, err := os.ReadDir(s.indexDir())
	if err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	for _, e := range names {
		g, ok := parseIndexName(e.Name())
		if !ok || slices.ContainsFunc(s.files, func(x *indexFile) bool { return x.span == g }) {
			continue
		}
		s.next = max(s.next, g.last+1)
		if err := os.Remove(filepath.Join(s.indexDir(), e.Name())); err != nil {
			return fmt.Errorf("pack: remove damaged index file: %w", err)
		}
		failpoint.Hit("index.remove")
		log.G(ctx).WithField("path", e.Name()).Warn("pack: damaged index file removed; nothing shows its contents, and they are stored again when they are needed")
	}
	return nil
}

// reclaim punches out every free block: what a crash left in segments that
// were never published.
func (s *Store) reclaim() error {
	for first, n := range s.space.used.gaps(s.space.used.end()) {
		if err := s.punch(first, n); err != nil {
			return err
		}
	}
	return s.fit()
}

// fit makes the pack file end behind the last used block, which may make it
// longer: contents can end in a hole. Writers at work are not in the way, for
// they write below that block. s.mu is held.
func (s *Store) fit() error {
	end := s.space.used.end()
	if err := s.file.Truncate(int64(end) * BlockSize); err != nil {
		return fmt.Errorf("pack: cut the pack to %d blocks: %w", end, err)
	}
	if end != s.size {
		s.size = end
		failpoint.Hit("pack.truncate")
	}
	return nil
}

// punch makes a range of the pack a hole.
func (s *Store) punch(first, n uint64) error {
	err := unix.Fallocate(int(s.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(first)*BlockSize, int64(n)*BlockSize)
	if err != nil {
		return fmt.Errorf("pack: punch out blocks %d+%d: %w", first, n, err)
	}
	failpoint.Hit("pack.punch")
	return nil
}

// Close closes the files. Writers that are still open fail from then on.
func (s *Store) Close() error {
	s.changing.Lock()
	defer s.changing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.files {
		x.close()
	}
	s.files = nil
	return s.file.Close()
}

// Path is the path of the pack file.
func (s *Store) Path() string { return filepath.Join(s.dir, "pack") }

func (s *Store) indexDir() string { return filepath.Join(s.dir, "index") }

// Lookup says where a content is. ErrNotFound: the pack does not have it.
func (s *Store) Lookup(d Digest) (Placement, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if p, ok := s.find(&d); ok {
		return p, nil
	}
	return Placement{}, notFound(d)
}

func notFound(d Digest) error {
	return fmt.Errorf("content sha256:%x: %w", d[:], errdefs.ErrNotFound)
}

// find looks through the index files, newest first. s.mu is held.
func (s *Store) find(d *Digest) (Placement, bool) {
	for i := len(s.files) - 1; i >= 0; i-- {
		if p, ok := s.files[i].find(d); ok {
			return p, true
		}
	}
	return Placement{}, false
}

// Sync makes everything durable that was published before it was called.
func (s *Store) Sync() error {
	s.changing.Lock()
	published := s.next
	s.changing.Unlock()
	if err := s.file.Sync(); err != nil {
		return fmt.Errorf("pack: sync: %w", err)
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	if err := s.syncIndex(); err != nil {
		return err
	}
	return s.noteSynced(published)
}

// syncIndex makes the index files durable that are not yet. s.changing is held.
func (s *Store) syncIndex() error {
	done := true
	for _, x := range s.files {
		if x.durable {
			continue
		}
		done = false
		f, err := os.Open(x.path)
		if err != nil {
			return fmt.Errorf("pack: sync index: %w", err)
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return fmt.Errorf("pack: sync index: %w", err)
		}
	}
	if done {
		return nil
	}
	if err := syncDir(s.indexDir()); err != nil {
		return err
	}
	for _, x := range s.files {
		x.durable = true
	}
	return nil
}

// Stats counts what the pack holds.
type Stats struct {
	Contents uint64 // distinct contents
	Bytes    uint64 // their bytes, decoded
	Stored   uint64 // bytes of the pack that they take up
	Size     uint64 // bytes of the pack file, holes included
}

// Stats adds up the index.
func (s *Store) Stats() Stats {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st := Stats{Size: s.size * BlockSize}
	var counted blockSet
	for _, x := range s.files {
		for r := range x.all() {
			st.Contents++
			st.Bytes += r.place.Size
			if r.place.Encoding == EncodingShared {
				if counted.has(uint64(r.place.Block)) {
					continue
				}
				counted.setRange(uint64(r.place.Block), 1)
			}
			st.Stored += uint64(r.place.Stored) * BlockSize
		}
	}
	return st
}

// replaceFiles swaps the list of index files; those not in the new list are
// closed and removed. s.changing is held, s.mu is not.
func (s *Store) replaceFiles(files []*indexFile) error {
	kept := map[*indexFile]bool{}
	for _, x := range files {
		kept[x] = true
	}
	s.mu.Lock()
	old := s.files
	s.files = files
	var gone []string
	for _, x := range old {
		if !kept[x] {
			gone = append(gone, x.path)
			x.close()
		}
	}
	s.mu.Unlock()
	var errs error
	for _, path := range gone {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = errors.Join(errs, fmt.Errorf("pack: remove replaced index file: %w", err))
		}
		failpoint.Hit("index.remove")
	}
	return errs
}
