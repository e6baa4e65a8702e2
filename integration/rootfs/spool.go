// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
)

// Spool keeps the contents of trees in one nameless file, one after the other.
type Spool struct {
	file *os.File
	out  *bufio.Writer
	end  int64
}

// span is where a content lies in the spool.
type span struct{ offset, size int64 }

// NewSpool makes a spool in dir. It is gone when it is closed, or when the program ends.
func NewSpool(dir string) (*Spool, error) {
	f, err := os.CreateTemp(dir, "spool-*")
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("spool: %w", err), f.Close())
	}
	return &Spool{file: f, out: bufio.NewWriterSize(f, 1<<20)}, nil
}

// Close gives the disk space back.
func (s *Spool) Close() error { return s.file.Close() }

func (s *Spool) add(content io.Reader, size int64) (span, error) {
	at := span{s.end, size}
	n, err := io.Copy(s.out, io.LimitReader(content, size))
	s.end += n
	if err == nil && n != size {
		err = fmt.Errorf("%d of %d bytes: %w", n, size, io.ErrUnexpectedEOF)
	}
	return at, err
}

// open gives the bytes at a span.
func (s *Spool) open(at span) io.Reader {
	if err := s.out.Flush(); err != nil {
		return failing{err}
	}
	return io.NewSectionReader(s.file, at.offset, at.size)
}

// failing is a reader that gives an error.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
