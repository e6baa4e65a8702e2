// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"crypto/sha256"
	"hash"
	"io"
	"sync"
)

const (
	aheadBuffers = 8
	aheadSize    = 512 << 10
)

// readAhead reads a stream and hashes it in a goroutine of its own, a few
// buffers ahead of the reader: 4 MiB, whatever the length of the stream.
//
// size and hash speak of all that was read from the source; they are the
// reader's to see once it has met the end of the stream.
type readAhead struct {
	full, free chan chunk
	stop       chan struct{}
	stopped    sync.WaitGroup
	once       sync.Once

	cur chunk
	at  int

	size int64
	hash hash.Hash
}

type chunk struct {
	b   []byte
	err error // behind b
}

func newReadAhead(r io.Reader) *readAhead {
	a := &readAhead{full: make(chan chunk, aheadBuffers), free: make(chan chunk, aheadBuffers), stop: make(chan struct{}), hash: sha256.New()}
	for range aheadBuffers {
		a.free <- chunk{b: make([]byte, aheadSize)}
	}
	a.stopped.Go(func() { a.fill(r) })
	return a
}

func (a *readAhead) fill(r io.Reader) {
	for {
		select {
		case c := <-a.free:
			n, err := fillBuffer(r, c.b[:cap(c.b)])
			c.b, c.err = c.b[:n], err
			a.hash.Write(c.b)
			a.size += int64(n)
			a.full <- c
			if err != nil {
				return
			}
		case <-a.stop:
			return
		}
	}
}

// fillBuffer is io.ReadFull that returns the source's own error: an
// io.ErrUnexpectedEOF of a decompressor must not pass for a good end.
func fillBuffer(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err
}

// Read implements io.Reader.
func (a *readAhead) Read(p []byte) (int, error) {
	for a.at == len(a.cur.b) {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.b != nil {
			a.free <- a.cur
		}
		a.cur, a.at = <-a.full, 0
	}
	n := copy(p, a.cur.b[a.at:])
	a.at += n
	return n, nil
}

// Close ends the reading and waits for it: the source is the caller's again.
func (a *readAhead) Close() error {
	a.once.Do(func() { close(a.stop) })
	a.stopped.Wait()
	return nil
}
