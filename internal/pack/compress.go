// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"bytes"
	"io"
	"runtime"
	"sync"
)

// On its way through compression a content is in a unit: what goes into the
// pack in one piece.
//
//	content ─┬─ small ─▶ the open shared cluster, which is a unit when it is full
//	         └─ larger ─▶ a unit of its own, a cluster per ClusterSize bytes
//	unit ──queue──▶ compressed by several goroutines ──in order──▶ placed
//
// What is in the pack, and where, depends on the order of the contents alone.

// sharedMax is the size in bytes up to which contents share clusters.
const sharedMax = 8 << 10

// queueJobs is how many clusters a writer has in compression, at most, when it
// goes on reading.
const queueJobs = 16

// queue holds the units of a writer that have no place yet, the oldest first.
type queue struct {
	units  []*unit
	jobs   int
	shared *job     // the cluster that is being filled
	member []record // contents in it
}

// unit is one content with its clusters, or one cluster with its contents.
type unit struct {
	jobs   []*job
	member []record // of a shared cluster; a content of its own is the only one
	shared bool
}

// job is a cluster on its way through compression.
type job struct {
	in   []byte // at most ClusterSize
	zero bool   // a whole input of zeros
	out  []byte // whole blocks; nil: it does not shrink
	buf  []byte
	done chan struct{}
}

// compressors runs the jobs of all writers.
type compressors struct {
	slots chan struct{}
	idle  sync.Pool // of *job
}

func newCompressors() *compressors {
	c := &compressors{slots: make(chan struct{}, runtime.GOMAXPROCS(0))}
	c.idle.New = func() any {
		return &job{in: make([]byte, 0, ClusterSize), buf: make([]byte, encodeBuffer)}
	}
	return c
}

// get returns a job with an empty input.
func (c *compressors) get() *job {
	j := c.idle.Get().(*job)
	j.in, j.out, j.zero, j.done = j.in[:0], nil, false, nil
	return j
}

// start compresses the input of a job in the background.
func (c *compressors) start(j *job, codec *codec) {
	j.done = make(chan struct{})
	if len(j.in) == ClusterSize && isZero(j.in) {
		j.zero = true
		close(j.done)
		return
	}
	go func() {
		c.slots <- struct{}{}
		j.out = codec.encode(j.in, j.buf)
		<-c.slots
		close(j.done)
	}()
}

func isZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeros))
		if !bytes.Equal(b[:n], zeros[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

// plain is how many blocks the input takes up as it is.
func (j *job) plain() uint64 { return blocksOf(uint64(len(j.in))) }

// blocks is how many blocks the cluster takes up. The job is done.
func (j *job) blocks() uint64 {
	switch {
	case j.zero:
		return 0
	case j.out == nil:
		return j.plain()
	}
	return uint64(len(j.out)) / BlockSize
}

// piece returns what goes into the pack for the input of a job that is done,
// and the byte that says so in a placement.
func (j *job) piece(useful bool) ([]byte, byte) {
	switch {
	case useful && j.zero:
		return nil, inputZeros
	case useful && j.out != nil:
		return j.out, byte(j.blocks())
	}
	n := len(j.in)
	padded := j.in[:n+-n&(BlockSize-1)]
	clear(padded[n:])
	return padded, byte(inputStored | j.plain())
}

// compress starts jobs for the bytes, which it copies.
func (w *Writer) compress(b []byte) (jobs []*job) {
	for len(b) > 0 {
		j := w.s.compressors.get()
		n := min(len(b), ClusterSize)
		j.in = append(j.in, b[:n]...)
		w.s.compressors.start(j, w.s.codec)
		jobs, b = append(jobs, j), b[n:]
	}
	return jobs
}

func (w *Writer) recycle(jobs []*job) {
	for _, j := range jobs {
		<-j.done
		w.s.compressors.idle.Put(j)
	}
}

// worthwhile tells whether a content should be compressed that begins with
// these inputs: reading what is stored as it is costs less.
func worthwhile(jobs []*job) bool {
	plain, blocks := uint64(0), uint64(0)
	for _, j := range jobs {
		<-j.done
		plain, blocks = plain+j.plain(), blocks+j.blocks()
	}
	return plain-blocks > plain/16
}

// putCompressed queues a small content that is new.
func (w *Writer) putCompressed(d Digest, b []byte) error {
	if w.s.share && len(b) <= sharedMax {
		return w.putShared(d, b)
	}
	w.enqueue(&unit{jobs: w.compress(b), member: []record{{d, Placement{Size: uint64(len(b))}}}})
	return w.drain(queueJobs)
}

// putShared adds a content to the cluster that is being filled.
func (w *Writer) putShared(d Digest, b []byte) error {
	q := &w.queue
	if q.shared != nil && len(q.shared.in)+len(b) > ClusterSize {
		w.endShared()
		if err := w.drain(queueJobs); err != nil {
			return err
		}
	}
	if q.shared == nil {
		q.shared = w.s.compressors.get()
	}
	q.member = append(q.member, record{d, Placement{Size: uint64(len(b)), Offset: uint32(len(q.shared.in))}})
	q.shared.in = append(q.shared.in, b...)
	return nil
}

// endShared queues the shared cluster. It is filled up to a block, so that
// clusters follow each other in the packed inode at block borders.
func (w *Writer) endShared() {
	q := &w.queue
	if q.shared == nil {
		return
	}
	j := q.shared
	j.in = append(j.in, zeros[:-len(j.in)&(BlockSize-1)]...)
	w.s.compressors.start(j, w.s.codec)
	u := &unit{jobs: []*job{j}, member: q.member, shared: true}
	q.shared, q.member = nil, nil
	w.enqueue(u)
}

func (w *Writer) enqueue(u *unit) {
	w.queue.units = append(w.queue.units, u)
	w.queue.jobs += len(u.jobs)
}

// drain places the oldest units until at most so many jobs are left.
func (w *Writer) drain(left int) error {
	q := &w.queue
	for q.jobs > left {
		u := q.units[0]
		if err := w.place(u); err != nil {
			return err
		}
		q.units, q.jobs = q.units[1:], q.jobs-len(u.jobs)
		w.recycle(u.jobs)
	}
	return nil
}

// drainAll places everything that was Put.
func (w *Writer) drainAll() error {
	w.endShared()
	return w.drain(0)
}

// place writes a unit and notes where its contents are.
func (w *Writer) place(u *unit) error {
	useful := worthwhile(u.jobs)
	p := w.s.codec.placement()
	blocks := uint64(0)
	var pieces [][]byte
	var inputs []byte
	for _, j := range u.jobs {
		piece, in := j.piece(useful)
		pieces, inputs = append(pieces, piece), append(inputs, in)
		blocks += uint64(in &^ inputStored)
	}
	if bytes.IndexByte(inputs, inputZeros) >= 0 {
		pieces, blocks = append(pieces, w.s.codec.zeros), blocks+1
	}
	first, err := w.append(blocks, pieces...)
	if err != nil {
		return err
	}
	if !useful {
		p.Algorithm, p.level = Stored, 0
	}
	p.Block, p.Blocks, p.Stored = first, uint32(blocks), uint32(blocks)
	if u.shared {
		p.Encoding, p.bits = EncodingShared, 0
		p.decoded, p.members = uint16(u.jobs[0].plain()), uint16(len(u.member))
	} else if useful {
		p.Encoding = EncodingClusters
		if len(inputs) > 1 {
			p.inputs = string(inputs)
		}
	} else {
		p.bits = 0
	}
	for _, r := range u.member {
		p.Size, p.Offset = r.place.Size, r.place.Offset
		w.add(r.digest, p)
	}
	return nil
}

// placement returns what all clusters that the codec makes have in common.
func (c *codec) placement() Placement {
	return Placement{Algorithm: c.algorithm, level: uint8(c.level), bits: clusterBits}
}

// streamClusters writes a content of many clusters while it is being read: jobs
// are the first ones, r yields the rest.
func (w *Writer) streamClusters(jobs []*job, r io.Reader, size uint64) (Placement, error) {
	// No cluster takes up more than its input, and that of the zeros is a block.
	if err := w.room(blocksOf(size) + 1); err != nil {
		return Placement{}, err
	}
	p := w.s.codec.placement()
	p.Encoding, p.Size, p.Block = EncodingClusters, size, uint32(w.seg.at)
	var inputs []byte
	left := size
	for _, j := range jobs {
		left -= uint64(len(j.in))
	}
	for len(jobs) > 0 {
		for left > 0 && len(jobs) < queueJobs {
			j := w.s.compressors.get()
			j.in = j.in[:min(left, ClusterSize)]
			if _, err := io.ReadFull(r, j.in); err != nil {
				return p, unexpected(err)
			}
			w.s.compressors.start(j, w.s.codec)
			jobs, left = append(jobs, j), left-uint64(len(j.in))
		}
		j := jobs[0]
		<-j.done
		piece, in := j.piece(true)
		if _, err := w.append(uint64(in&^inputStored), piece); err != nil {
			return p, err
		}
		inputs = append(inputs, in)
		w.recycle(jobs[:1])
		jobs = jobs[1:]
	}
	if bytes.IndexByte(inputs, inputZeros) >= 0 {
		if _, err := w.append(1, w.s.codec.zeros); err != nil {
			return p, err
		}
	}
	p.Blocks = uint32(w.seg.at) - p.Block
	p.Stored, p.inputs = p.Blocks, string(inputs)
	return p, nil
}
