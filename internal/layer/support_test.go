// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"testing"
)

// memoryStore keeps contents in memory.
type memoryStore struct {
	contents map[Digest][]byte
	limit    int64 // larger ones are refused
}

func (s *memoryStore) Put(r io.Reader, size int64) (Digest, error) {
	if s.limit > 0 && size > s.limit {
		return Digest{}, errors.New("too large for a test")
	}
	var b bytes.Buffer
	if _, err := io.CopyN(&b, r, size); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return Digest{}, err
	}
	if s.contents == nil {
		s.contents = map[Digest][]byte{}
	}
	d := Digest(sha256.Sum256(b.Bytes()))
	s.contents[d] = b.Bytes()
	return d, nil
}

// encode writes a TOC.
func encode(t testing.TB, entries ...Entry) ([]byte, Summary) {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		if err := w.Add(&entries[i]); err != nil {
			t.Fatalf("add entry %d: %v", i, err)
		}
	}
	s, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), s
}

// decode reads a TOC to its end.
func decode(toc []byte) ([]Entry, error) {
	r, err := NewReader(bytes.NewReader(toc))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var all []Entry
	for {
		var e Entry
		switch err := r.Next(&e); {
		case err == io.EOF:
			return all, nil
		case err != nil:
			return all, err
		}
		all = append(all, e)
	}
}

// equal compares entries; empty lists and none are the same.
func equal(a, b []Entry) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !reflect.DeepEqual(normal(a[i]), normal(b[i])) {
			return false
		}
	}
	return true
}

func normal(e Entry) Entry {
	if len(e.Inline) == 0 {
		e.Inline = nil
	}
	if len(e.Xattrs) == 0 {
		e.Xattrs = nil
	}
	for i := range e.Xattrs {
		if len(e.Xattrs[i].Value) == 0 {
			e.Xattrs[i].Value = nil
		}
	}
	return e
}

// brief is an entry in a line.
func brief(e Entry) string {
	s := fmt.Sprintf("%s %q", [...]string{"?", "dir", "reg", "symlink", "hardlink", "char", "block", "fifo", "socket", "whiteout", "opaque"}[e.Type], e.Path)
	switch e.Type {
	case TypeWhiteout, TypeOpaque:
		return s
	case TypeReg:
		s += fmt.Sprintf(" size %d", e.Size)
	case TypeSymlink, TypeHardlink:
		s += fmt.Sprintf(" to %q", e.Target)
	case TypeChar, TypeBlock:
		s += fmt.Sprintf(" %d:%d", e.Major, e.Minor)
	}
	s += fmt.Sprintf(" %o %d:%d %d.%d", e.Mode, e.UID, e.GID, e.Mtime, e.MtimeNsec)
	for _, x := range e.Xattrs {
		s += fmt.Sprintf(" %s=%q", x.Name, x.Value)
	}
	return s
}

// randomEntry returns an entry that a TOC can hold.
func randomEntry(rng *rand.Rand) Entry {
	name := func(limit int) string {
		b := make([]byte, 1+rng.IntN(limit))
		for i := range b {
			if b[i] = byte(1 + rng.IntN(255)); b[i] == '/' || b[i] == '.' {
				b[i] = 'x'
			}
		}
		return string(b)
	}
	path := func() string {
		p := name(20)
		for range rng.IntN(5) {
			p += "/" + name(1+rng.IntN(maxName))
		}
		return p
	}
	e := Entry{Type: 1 + Type(rng.IntN(int(typeEnd)-1)), Path: path()}
	if e.Type == TypeWhiteout || e.Type == TypeOpaque {
		return e
	}
	e.Mode, e.UID, e.GID = rng.Uint32()&0o7777, rng.Uint32(), rng.Uint32()
	e.Mtime, e.MtimeNsec = rng.Int64()-rng.Int64(), uint32(rng.IntN(1e9))
	for range rng.IntN(4) - 1 {
		value := make([]byte, rng.IntN(1000))
		for i := range value {
			value[i] = byte(rng.Uint32())
		}
		e.Xattrs = append(e.Xattrs, Xattr{name(maxXattrName), value})
	}
	switch e.Type {
	case TypeReg:
		if rng.IntN(2) == 0 {
			e.Inline = []byte(name(InlineMax))
			e.Size = int64(len(e.Inline))
		} else {
			e.Size = InlineMax + 1 + rng.Int64N(1<<62)
			for i := range e.Digest {
				e.Digest[i] = byte(rng.Uint32())
			}
		}
	case TypeSymlink:
		e.Target = name(maxSymlink)
	case TypeHardlink:
		e.Target = path()
	case TypeChar, TypeBlock:
		e.Major, e.Minor = rng.Uint32(), rng.Uint32()
	}
	return e
}
