// SPDX-License-Identifier: Apache-2.0

// Package boltfile reads a bbolt file that may be damaged. bbolt itself maps
// its file into memory and trusts what stands there: other bytes than it has
// written make it panic, or end the process by a fault, or come back as data.
package boltfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
)

// ErrDamaged: these are not the bytes of a whole bbolt file.
var ErrDamaged = errors.New("damaged")

// Bucket is what a bucket holds.
type Bucket struct {
	Sequence uint64
	Values   map[string][]byte
	Buckets  map[string]*Bucket
}

// Read returns the root bucket of a file that nobody has open for writing, of
// which it checks every page: that it is there, has one owner, and says nothing
// impossible. ErrDamaged: it is not so.
func Read(b []byte) (root *Bucket, err error) {
	defer func() {
		if p := recover(); p != nil { // an offset that leads out of a page
			root, err = nil, fmt.Errorf("%v: %w", p, ErrDamaged)
		}
	}()
	m, err := readMeta(b)
	if err != nil {
		return nil, err
	}
	f := &file{b: b, meta: m, owned: map[uint64]bool{0: true, 1: true}}
	if m.pages*m.pageSize > uint64(len(b)) {
		return nil, fmt.Errorf("%d bytes of %d pages are not there: %w", m.pages*m.pageSize-uint64(len(b)), m.pages, ErrDamaged)
	}
	root = newBucket(m.rootSequence)
	if err := f.pages(m.root, root, nil); err != nil {
		return nil, err
	}
	return root, f.free()
}

const (
	magic      = 0xED0CDAED
	version    = 2
	noFreelist = ^uint64(0)

	pageHeader = 16 // id 8, flags 2, count 2, overflow 4
	element    = 16

	branchPage, leafPage, metaPage, freelistPage = 1, 2, 4, 16
	bucketElement                                = 1
)

var native = binary.NativeEndian

type meta struct {
	pageSize, root, rootSequence, freelist, pages, tx uint64
}

// readMeta returns the younger of the two meta pages that are whole.
func readMeta(b []byte) (best meta, err error) {
	err = fmt.Errorf("no whole meta page: %w", ErrDamaged)
	for _, at := range metaPlaces(len(b)) {
		p := b[at+pageHeader:][:64]
		h := fnv.New64a()
		h.Write(p[:56])
		if native.Uint32(p) != magic || native.Uint32(p[4:]) != version || native.Uint64(p[56:]) != h.Sum64() {
			continue
		}
		m := meta{uint64(native.Uint32(p[8:])), native.Uint64(p[16:]), native.Uint64(p[24:]), native.Uint64(p[32:]), native.Uint64(p[40:]), native.Uint64(p[48:])}
		if (at == 0 || uint64(at) == m.pageSize) && m.pages < 1<<40 && (err != nil || m.tx > best.tx) {
			best, err = m, nil
		}
	}
	return best, err
}

// metaPlaces are where a meta page may be: the second one is on page 1, and
// the size of pages stands in the first.
func metaPlaces(size int) (at []int) {
	at = append(at, 0)
	for page := 1 << 10; page <= 1<<24; page <<= 1 {
		at = append(at, page)
	}
	for len(at) > 0 && at[len(at)-1]+pageHeader+64 > size {
		at = at[:len(at)-1]
	}
	return at
}

type file struct {
	b     []byte
	meta  meta
	owned map[uint64]bool // pages that are in use
}

// page returns a page of which nobody has been the owner so far.
func (f *file) page(id uint64) (flags uint16, count int, body []byte, err error) {
	if id < 2 || id >= f.meta.pages {
		return 0, 0, nil, fmt.Errorf("page %d of %d: %w", id, f.meta.pages, ErrDamaged)
	}
	head := f.b[id*f.meta.pageSize:][:pageHeader]
	n := uint64(native.Uint32(head[12:])) + 1
	if native.Uint64(head) != id || n > f.meta.pages-id {
		return 0, 0, nil, fmt.Errorf("page %d: it is another one: %w", id, ErrDamaged)
	}
	for i := range n {
		if f.owned[id+i] {
			return 0, 0, nil, fmt.Errorf("page %d has two owners: %w", id+i, ErrDamaged)
		}
		f.owned[id+i] = true
	}
	return native.Uint16(head[8:]), int(native.Uint16(head[10:])), f.b[id*f.meta.pageSize:][:n*f.meta.pageSize], nil
}

// pages reads the tree of pages below one into a bucket. Its first key is not
// less than low.
func (f *file) pages(id uint64, to *Bucket, low []byte) error {
	flags, count, b, err := f.page(id)
	if err != nil {
		return err
	}
	switch flags {
	case leafPage:
		return f.leaf(b, count, to, low)
	case branchPage:
		for i := range count {
			at := pageHeader + i*element
			e := b[at:]
			key := e[native.Uint32(e):][:native.Uint32(e[4:])]
			if i > 0 && bytes.Compare(key, low) <= 0 {
				return fmt.Errorf("page %d: keys are out of order: %w", id, ErrDamaged)
			}
			if err := f.pages(native.Uint64(e[8:]), to, key); err != nil {
				return err
			}
			low = key
		}
		return nil
	}
	return fmt.Errorf("page %d: type %#x: %w", id, flags, ErrDamaged)
}

func (f *file) leaf(b []byte, count int, to *Bucket, low []byte) error {
	for i := range count {
		e := b[pageHeader+i*element:]
		pos, size := native.Uint32(e[4:]), native.Uint32(e[8:])
		key := e[pos:][:size]
		value := e[pos+size:][:native.Uint32(e[12:])]
		if c := bytes.Compare(key, low); c < 0 || c == 0 && i > 0 {
			return fmt.Errorf("keys are out of order: %w", ErrDamaged)
		}
		low = key
		switch native.Uint32(e) {
		case 0:
			to.Values[string(key)] = value
		case bucketElement:
			inner := newBucket(native.Uint64(value[8:]))
			to.Buckets[string(key)] = inner
			var err error
			if root := native.Uint64(value); root != 0 {
				err = f.pages(root, inner, nil)
			} else if page := value[16:]; native.Uint16(page[8:]) != leafPage { // a small one stands where it is used
				err = fmt.Errorf("bucket %q: type %#x: %w", key, native.Uint16(page[8:]), ErrDamaged)
			} else {
				err = f.leaf(page, int(native.Uint16(page[10:])), inner, nil)
			}
			if err != nil {
				return err
			}
		default:
			return fmt.Errorf("key %q: type %#x: %w", key, native.Uint32(e), ErrDamaged)
		}
	}
	return nil
}

// free checks that what is not in use is free, and the other way round.
func (f *file) free() error {
	if f.meta.freelist == noFreelist {
		return nil
	}
	flags, count, b, err := f.page(f.meta.freelist)
	if err != nil {
		return err
	}
	if flags != freelistPage {
		return fmt.Errorf("list of free pages: type %#x: %w", flags, ErrDamaged)
	}
	b, n := b[pageHeader:], uint64(count)
	if count == 0xffff {
		b, n = b[8:], native.Uint64(b)
	}
	if n > uint64(len(b))/8 {
		return fmt.Errorf("list of %d free pages: %w", n, ErrDamaged)
	}
	for i := range n {
		id := native.Uint64(b[i*8:])
		if id >= f.meta.pages || f.owned[id] {
			return fmt.Errorf("page %d is in use and free: %w", id, ErrDamaged)
		}
		f.owned[id] = true
	}
	if uint64(len(f.owned)) != f.meta.pages {
		return fmt.Errorf("%d pages are neither in use nor free: %w", f.meta.pages-uint64(len(f.owned)), ErrDamaged)
	}
	return nil
}

func newBucket(sequence uint64) *Bucket {
	return &Bucket{sequence, map[string][]byte{}, map[string]*Bucket{}}
}
