// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/failpoint"
	"golang.org/x/sys/unix"
)

const (
	// smallContent is what is read whole before anything is written: such a
	// content that the node already has costs its digest and nothing more.
	smallContent = 1 << 20
	// zeroUnit is the granularity at which zeros of larger contents become
	// holes.
	zeroUnit = 64 << 10
)

var errWriterClosed = errors.New("pack: writer is closed")

// Writer adds the contents of one layer to the pack. Contents go, in the order
// of the calls, into a segment that belongs to the writer alone; nothing is
// visible before Publish. Every content that was Put is safe from sweeps until
// Close, so that the caller can write down its references meanwhile.
//
// A writer ends by Close, with or without a Publish before; `defer w.Close()`
// is always right. After the first failure every Put and Publish returns that
// failure. Not safe for concurrent use. Memory: 2 MiB of buffers, 8 MiB more if
// contents are compressed, and some 100 bytes per distinct content.
type Writer struct {
	s   *Store
	err error

	seg     segment
	in, out []byte // read and write buffers, smallContent each
	hash    hash.Hash
	queue   queue // what is being compressed and has no place yet

	added   map[Digest]bool // stored by this writer
	moved   map[Digest]bool // those that the index has elsewhere, see Move
	pending []record        // added, not yet published
	pinned  []uint32        // first blocks of its contents in the index; changed under s.mu
	stats   WriterStats
}

// WriterStats counts what one writer did.
type WriterStats struct {
	Contents, Bytes       uint64 // every content that was Put
	NewContents, NewBytes uint64 // those that the node did not have
	StoredBytes           uint64 // bytes of the pack that the new ones take up
}

// segment is the range that the writer fills: used up to at, and its last
// buffered bytes are in Writer.out, to be written at flushed.
type segment struct {
	first, end  uint64 // blocks
	at, flushed uint64
	// dirty is the block up to which the segment was written: below it, blocks
	// may hold bytes of a content that turned out to be known.
	dirty uint64
}

// Begin opens a writer.
func (s *Store) Begin() *Writer {
	w := &Writer{s: s, hash: sha256.New(), added: map[Digest]bool{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writers[w] = true
	return w
}

// Put stores the size bytes that r yields, unless the node has them already,
// and returns their digest. A stream that ends early fails with
// io.ErrUnexpectedEOF; the writer is of no more use then.
func (w *Writer) Put(r io.Reader, size int64) (Digest, error) {
	if w.err != nil {
		return Digest{}, w.err
	}
	w.buffers()
	var d Digest
	var err error
	if size < 0 {
		err = errdefs.ErrInvalidArgument
	} else {
		d, err = w.put(r, uint64(size))
	}
	if err != nil {
		w.err = fmt.Errorf("pack: store content of %d bytes: %w", size, err)
		return Digest{}, w.err
	}
	w.stats.Contents++
	w.stats.Bytes += uint64(size)
	return d, nil
}

func (w *Writer) buffers() {
	if w.in == nil {
		w.in, w.out = make([]byte, smallContent), make([]byte, 0, smallContent)
	}
}

// Stats tells what the writer has done so far.
func (w *Writer) Stats() WriterStats { return w.stats }

func (w *Writer) put(r io.Reader, size uint64) (d Digest, err error) {
	head := w.in[:min(size, smallContent)]
	if _, err := io.ReadFull(r, head); err != nil {
		return d, unexpected(err)
	}
	switch {
	case size > smallContent:
		return w.putLarge(head, r, size)
	case w.known(sha256.Sum256(head)):
		return sha256.Sum256(head), nil
	}
	d = sha256.Sum256(head)
	if w.s.codec != nil && size > 0 {
		w.added[d] = true
		return d, w.putCompressed(d, head)
	}
	return d, w.putPlain(d, head)
}

// putPlain stores a small content as it is.
func (w *Writer) putPlain(d Digest, b []byte) error {
	blocks := blocksOf(uint64(len(b)))
	first, err := w.append(blocks, b)
	if err == nil {
		w.add(d, Placement{Block: first, Blocks: uint32(blocks), Stored: uint32(blocks), Size: uint64(len(b))})
	}
	return err
}

// append puts pieces into so many blocks of the segment, padded with zeros, and
// returns the first one.
func (w *Writer) append(blocks uint64, pieces ...[]byte) (uint32, error) {
	if err := w.room(blocks); err != nil {
		return 0, err
	}
	first := w.seg.at
	if len(w.out)+int(blocks)*BlockSize > cap(w.out) {
		if err := w.flush(); err != nil {
			return 0, err
		}
	}
	end := len(w.out) + int(blocks)*BlockSize
	for _, b := range pieces {
		w.out = append(w.out, b...)
	}
	w.out = append(w.out, zeros[:end-len(w.out)]...)
	w.seg.at += blocks
	return uint32(first), nil
}

// putLarge stores a content that begins with head and goes on with r. It
// writes while it hashes; when the content turns out to be known, the segment
// goes back to where it was and those blocks are used by the next one.
func (w *Writer) putLarge(head []byte, r io.Reader, size uint64) (d Digest, err error) {
	if w.s.codec != nil && w.s.large.has(size) {
		// Likely it is known: find out before it is compressed for nothing.
		spool, d, err := w.spool(head, r, size)
		if err != nil {
			return d, err
		}
		defer spool.Close()
		if w.known(d) {
			return d, nil
		}
		if _, err := spool.Seek(int64(len(head)), io.SeekStart); err != nil {
			return d, err
		}
		r = spool
	}
	if err := w.drain(0); err != nil {
		return d, err
	}
	if err := w.flush(); err != nil {
		return d, err
	}
	w.hash.Reset()
	w.hash.Write(head)
	p, err := w.stream(head, io.TeeReader(r, w.hash), size)
	if err != nil {
		return d, err
	}
	w.hash.Sum(d[:0])
	if w.known(d) {
		w.seg.at, w.seg.flushed, w.out = uint64(p.Block), uint64(p.Block), w.out[:0]
		return d, nil
	}
	w.add(d, p)
	return d, nil
}

// stream writes a large content, compressed if that is of use.
func (w *Writer) stream(head []byte, r io.Reader, size uint64) (Placement, error) {
	if w.s.codec != nil {
		jobs := w.compress(head)
		if worthwhile(jobs) {
			return w.streamClusters(jobs, r, size)
		}
		w.recycle(jobs)
	}
	return w.streamPlain(head, r, size)
}

func (w *Writer) streamPlain(b []byte, r io.Reader, size uint64) (Placement, error) {
	blocks := blocksOf(size)
	if err := w.room(blocks); err != nil {
		return Placement{}, err
	}
	first, stored := w.seg.at, uint64(0)
	for done := uint64(0); ; {
		n, err := w.writeChunk(b, first+done/BlockSize)
		if err != nil {
			return Placement{}, err
		}
		done, stored = done+uint64(len(b)), stored+n
		if done == size {
			break
		}
		b = w.in[:min(size-done, uint64(len(w.in)))]
		if _, err := io.ReadFull(r, b); err != nil {
			return Placement{}, unexpected(err)
		}
	}
	w.seg.dirty = max(w.seg.dirty, first+blocks)
	w.seg.at, w.seg.flushed = first+blocks, first+blocks
	return Placement{Block: uint32(first), Blocks: uint32(blocks), Stored: uint32(stored), Size: size}, nil
}

// spool hashes a content while it puts it into a file that is gone when it is
// closed.
func (w *Writer) spool(head []byte, r io.Reader, size uint64) (_ *os.File, d Digest, err error) {
	f, err := os.OpenFile(w.s.dir, unix.O_TMPFILE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, d, fmt.Errorf("temporary file: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	h := sha256.New()
	rest := io.LimitReader(r, int64(size)-int64(len(head)))
	n, err := io.Copy(io.MultiWriter(f, h), io.MultiReader(bytes.NewReader(head), rest))
	if err == nil && uint64(n) < size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, d, err
	}
	return f, Digest(h.Sum(nil)), nil
}

// writeChunk writes b, which starts at a block, padded to whole blocks; runs
// of zeros stay holes where nothing was written before. It returns the blocks
// written.
func (w *Writer) writeChunk(b []byte, block uint64) (stored uint64, err error) {
	if pad := -len(b) & (BlockSize - 1); pad > 0 {
		n := len(b)
		b = b[:n+pad] // the buffer is a multiple of the block size
		clear(b[n:])
	}
	write := func(from, to int) error {
		if from == to {
			return nil
		}
		stored += uint64(to-from) / BlockSize
		_, err := w.s.file.WriteAt(b[from:to], int64(block)*BlockSize+int64(from))
		failpoint.Hit("pack.write")
		return err
	}
	start := 0
	for at := 0; at < len(b); at += zeroUnit {
		end := min(at+zeroUnit, len(b))
		if block+uint64(at)/BlockSize >= w.seg.dirty && bytes.Equal(b[at:end], zeros[:end-at]) {
			if err := write(start, at); err != nil {
				return 0, err
			}
			start = end
		}
	}
	return stored, write(start, len(b))
}

var zeros [zeroUnit]byte

// Lookup says where a published content is, and keeps it safe from sweeps
// until Close. ErrNotFound: the pack does not have it, or is about to free it.
func (w *Writer) Lookup(d Digest) (Placement, error) {
	p, ok := w.pin(d)
	if !ok {
		return p, notFound(d)
	}
	return p, nil
}

// known tells whether the content needs no storing.
func (w *Writer) known(d Digest) bool {
	if w.added[d] {
		return true
	}
	_, ok := w.pin(d)
	return ok
}

// pin finds a content in the index and pins it in the same breath: a sweep
// cannot come in between.
func (w *Writer) pin(d Digest) (Placement, bool) {
	w.s.mu.RLock()
	defer w.s.mu.RUnlock()
	p, ok := w.s.find(&d)
	if !ok || w.s.condemned.has(uint64(p.Block)) {
		return Placement{}, false
	}
	w.pinned = append(w.pinned, p.Block)
	return p, true
}

// add notes a content that has its place.
func (w *Writer) add(d Digest, p Placement) {
	w.added[d] = true
	w.pending = append(w.pending, record{d, p})
	w.stats.NewContents++
	w.stats.NewBytes += p.Size
	if p.Encoding != EncodingShared || p.Offset == 0 {
		w.stats.StoredBytes += uint64(p.Stored) * BlockSize
	}
	if p.Size > smallContent {
		w.s.large.add(p.Size)
	}
}

// room makes sure that the segment has n more blocks, in one piece.
func (w *Writer) room(n uint64) error {
	if w.seg.end-w.seg.at >= n {
		return nil
	}
	if err := w.endSegment(); err != nil {
		return err
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	first, got, err := w.s.space.reserve(n)
	if err != nil {
		return err
	}
	w.seg = segment{first: first, end: first + got, at: first, flushed: first, dirty: first}
	return nil
}

// flush writes the buffered contents to the segment.
func (w *Writer) flush() error {
	if len(w.out) > 0 {
		if _, err := w.s.file.WriteAt(w.out, int64(w.seg.flushed)*BlockSize); err != nil {
			return err
		}
		failpoint.Hit("pack.write")
		w.seg.flushed += uint64(len(w.out)) / BlockSize
		w.seg.dirty = max(w.seg.dirty, w.seg.flushed)
		w.out = w.out[:0]
	}
	return nil
}

// endSegment writes what is buffered and gives back what the segment did not
// use.
func (w *Writer) endSegment() error {
	if err := w.flush(); err != nil {
		return err
	}
	seg := w.seg
	w.seg = segment{}
	if seg.end == 0 {
		return nil
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	return errors.Join(w.s.giveBack(seg.at, seg.end, seg.dirty), w.s.fit())
}

// giveBack frees the blocks from..end, which were written below dirty: free
// blocks are holes. s.mu is held.
func (s *Store) giveBack(from, end, dirty uint64) error {
	if dirty > from {
		if err := s.punch(from, dirty-from); err != nil {
			return err // the blocks stay reserved until the store is opened again
		}
	}
	s.space.release(from, end-from)
	return nil
}

// runs yields the ranges from..end that the contents cover, neighbours as one:
// what was stored together can go together. The records change their order.
func runs(records []record) iter.Seq2[uint64, uint64] {
	slices.SortFunc(records, comparePlaces)
	return func(yield func(from, end uint64) bool) {
		for i := 0; i < len(records); {
			from, end := uint64(records[i].place.Block), records[i].place.End()
			for i++; i < len(records) && uint64(records[i].place.Block) <= end; i++ { // below: in the same blocks
				end = max(end, records[i].place.End())
			}
			if !yield(from, end) {
				return
			}
		}
	}
}

// Publish makes every content that was Put visible to all, durably so if sync
// is set. The writer can go on after it.
func (w *Writer) Publish(sync bool) error {
	if w.err == nil {
		w.err = w.publish(sync)
	}
	return w.err
}

func (w *Writer) publish(sync bool) error {
	if err := w.drainAll(); err != nil {
		return fmt.Errorf("pack: compress: %w", err)
	}
	if err := w.endSegment(); err != nil {
		return fmt.Errorf("pack: end segment: %w", err)
	}
	var published uint64 // generations whose contents the sync has met
	if sync {
		w.s.changing.Lock()
		published = w.s.next
		w.s.changing.Unlock()
		if err := w.s.file.Sync(); err != nil {
			return fmt.Errorf("pack: sync: %w", err)
		}
	}
	w.s.changing.Lock()
	defer w.s.changing.Unlock()
	alone := published == w.s.next // and then this one's, too
	w.yieldToOthers()
	if len(w.pending) > 0 {
		if err := w.publishPending(sync); err != nil {
			return err
		}
	}
	if sync {
		// Contents that were known may be younger than the last sync.
		if err := w.s.syncIndex(); err != nil {
			return err
		}
		if alone {
			published = w.s.next
		}
		return w.s.noteSynced(published)
	}
	return nil
}

// publishPending adds an index file. s.changing is held.
func (w *Writer) publishPending(sync bool) error {
	slices.SortFunc(w.pending, compareRecords)
	x, err := publishIndex(w.s.indexDir(), span{first: w.s.next, last: w.s.next}, slices.Values(w.pending), sync)
	if err != nil {
		return err
	}
	w.s.next++
	w.s.mu.Lock()
	for _, r := range w.pending {
		w.pinned = append(w.pinned, r.place.Block)
	}
	w.s.mu.Unlock()
	w.pending = nil
	if err := w.s.replaceFiles(append(slices.Clone(w.s.files), x)); err != nil {
		return err
	}
	return w.s.merge()
}

// yieldToOthers drops the contents that another writer has published since
// they were Put here, and pins the other's copy. s.changing is held.
func (w *Writer) yieldToOthers() {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	var dropped []record
	w.pending = slices.DeleteFunc(w.pending, func(r record) bool {
		p, ok := w.s.find(&r.digest)
		if !ok || w.moved[r.digest] {
			return false
		}
		w.pinned = append(w.pinned, p.Block)
		w.stats.NewContents--
		w.stats.NewBytes -= r.place.Size
		dropped = append(dropped, r)
		return true
	})
	var needed blockSet // by others that share a cluster
	for _, r := range w.pending {
		needed.setRange(uint64(r.place.Block), 1)
	}
	dropped = slices.DeleteFunc(dropped, func(r record) bool { return needed.has(uint64(r.place.Block)) })
	for from, end := range runs(dropped) {
		w.stats.StoredBytes -= (end - from) * BlockSize
		_ = w.s.giveBack(from, end, end) // if it cannot be punched now, the next Open does it
	}
	_ = w.s.fit()
}

// Close ends the writer. What was not published is given back.
func (w *Writer) Close() error {
	if w.err == errWriterClosed {
		return nil
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if m := w.s.mark; m != nil {
		// References that were written down while the mark is open may have
		// been missed by whoever marks.
		w.pins(m.keepBlock)
	}
	delete(w.s.writers, w)
	var errs error
	for from, end := range runs(w.pending) {
		errs = errors.Join(errs, w.s.giveBack(from, end, end))
	}
	if w.seg.end > 0 {
		errs = errors.Join(errs, w.s.giveBack(w.seg.at, w.seg.end, w.seg.end))
	}
	errs = errors.Join(errs, w.s.fit())
	w.err, w.pending, w.in, w.out, w.queue = errWriterClosed, nil, nil, nil, queue{}
	if errs != nil {
		return fmt.Errorf("pack: give back unpublished blocks: %w", errs)
	}
	return nil
}

// pins calls f for the first block of every content in the index that the
// writer relies on. w.s.mu is held, or the writer's goroutine calls.
func (w *Writer) pins(f func(block uint64)) {
	for _, b := range w.pinned {
		f(uint64(b))
	}
}

func blocksOf(size uint64) uint64 { return (size + BlockSize - 1) / BlockSize }
