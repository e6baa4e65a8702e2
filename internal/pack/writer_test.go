// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

var sizes = []int{0, 1, 1024, 4095, 4096, 4097, 3*4096 - 1, smallContent - 1, smallContent, smallContent + 1, smallContent + zeroUnit,
	2*smallContent - 1, 2 * smallContent, 5*smallContent + 4097}

func TestContentsOfEverySizeComeBack(t *testing.T) {
	s := open(t, t.TempDir())
	w := s.Begin()
	var all []Digest
	var bytes, stored uint64
	for i, n := range sizes {
		all = append(all, put(t, w, noise(uint64(i), n)))
		bytes, stored = bytes+uint64(n), stored+blocksOf(uint64(n))*BlockSize
		wantMissing(t, s, all[i])
	}
	n := uint64(len(sizes))
	if got, want := w.Stats(), (WriterStats{n, bytes, n, bytes, stored}); got != want {
		t.Errorf("writer counts %+v, want %+v", got, want)
	}
	publish(t, w)
	for i, d := range all {
		p, err := s.Lookup(d)
		if err != nil || p.Size != uint64(sizes[i]) || uint64(p.Blocks) != blocksOf(p.Size) || p.Stored != p.Blocks {
			t.Errorf("content of %d bytes: %+v, %v", sizes[i], p, err)
		}
	}
	wantOnly(t, s, all...)
	closeWriter(t, w)
}

func TestKnownContentsAreOnlyReferenced(t *testing.T) {
	s := open(t, t.TempDir())
	var all [][]byte
	for i, n := range sizes {
		all = append(all, noise(uint64(i), n))
	}
	ds := store(t, s, all...)
	before := s.Stats()
	w := s.Begin()
	for _, b := range all {
		put(t, w, b)
		put(t, w, b)
	}
	if st := w.Stats(); st.Contents != uint64(2*len(all)) || st.NewContents != 0 || st.NewBytes != 0 || st.StoredBytes != 0 {
		t.Errorf("writer counts %+v", st)
	}
	publish(t, w)
	closeWriter(t, w)
	if got := s.Stats(); got != before {
		t.Errorf("store grew from %+v to %+v", before, got)
	}
	wantOnly(t, s, ds...)
}

func TestDuplicatesOfOneWriterAreStoredOnce(t *testing.T) {
	s := open(t, t.TempDir())
	small, large := noise(1, 5000), noise(2, 2*smallContent+5)
	store(t, s, small, large, small, large, small)
	if got, want := s.Stats().Stored, blocksOf(5000)*BlockSize+blocksOf(2*smallContent+5)*BlockSize; got != want {
		t.Errorf("%d bytes stored, want %d", got, want)
	}
}

// zeroReader yields zeros without end.
type zeroReader struct{}

func (zeroReader) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestZerosOfALargeContentAreHoles(t *testing.T) {
	s := open(t, t.TempDir())
	w := s.Begin()
	defer closeWriter(t, w)
	const size = 300 << 20
	d, err := w.Put(zeroReader{}, size)
	if err != nil {
		t.Fatal(err)
	}
	publish(t, w)
	p, err := s.Lookup(d)
	if err != nil || p.Stored != 0 || p.Blocks != size/BlockSize || p.Size != size {
		t.Errorf("300 MiB of zeros: %+v, %v", p, err)
	}
}

func TestHolesBetweenData(t *testing.T) {
	s := open(t, t.TempDir())
	b := make([]byte, 4*smallContent+100)
	copy(b[zeroUnit:], noise(1, 10))                 // zeros, data, zeros
	copy(b[2*smallContent-5:], noise(2, 10))         // across two buffers
	copy(b[4*smallContent:], noise(3, 100))          // the tail
	ends := make([]byte, 2*smallContent+3*BlockSize) // ends in a hole
	copy(ends, noise(4, 20))
	ds := store(t, s, b, ends)
	for i, want := range []uint32{3*zeroUnit/BlockSize + 1 + zeroUnit/BlockSize - zeroUnit/BlockSize, zeroUnit / BlockSize} {
		if p, err := s.Lookup(ds[i]); err != nil || p.Stored != want {
			t.Errorf("content %d: %+v, %v; want %d blocks stored", i, p, err, want)
		}
	}
}

// The blocks of a large content that turned out to be known are used again by
// the next one, whose zeros must not become holes there.
func TestNoStaleBytesBehindAKnownContent(t *testing.T) {
	for _, next := range []int{smallContent + 1, 3 * smallContent, 6 * smallContent, 2*smallContent + zeroUnit/2} {
		t.Run(fmt.Sprint(next), func(t *testing.T) {
			s := open(t, t.TempDir())
			known := noise(1, 4*smallContent)
			store(t, s, known)
			w := s.Begin()
			put(t, w, noise(2, 5000))
			put(t, w, known)
			sparse := make([]byte, next)
			sparse[next-1] = 1
			put(t, w, sparse)
			put(t, w, noise(3, 100))
			put(t, w, known)
			put(t, w, make([]byte, smallContent/2)) // small zeros on dirty blocks
			put(t, w, make([]byte, 2*smallContent))
			check(t, s)
			publish(t, w)
			closeWriter(t, w)
		})
	}
}

func TestSegmentEndsBetweenContents(t *testing.T) {
	s := open(t, t.TempDir())
	w := s.Begin()
	var all []Digest
	all = append(all, put(t, w, noise(1, 100)))
	d, err := w.Put(io.LimitReader(zeroReader{}, segmentMax*BlockSize), segmentMax*BlockSize) // does not fit behind the first
	if err != nil {
		t.Fatal(err)
	}
	all = append(all, d, put(t, w, noise(2, 3*smallContent)), put(t, w, noise(3, 10)))
	publish(t, w)
	all = append(all, put(t, w, noise(4, 10)))
	check(t, s)
	publish(t, w)
	closeWriter(t, w)
	wantOnly(t, s, all...)
}

func TestSameContentInTwoOpenWriters(t *testing.T) {
	s := open(t, t.TempDir())
	both, large := noise(1, 10_000), noise(2, 2*smallContent)
	a, b := s.Begin(), s.Begin()
	ds := []Digest{put(t, a, both), put(t, a, noise(3, 10)), put(t, a, large)}
	put(t, b, noise(4, 20))
	put(t, b, large)
	put(t, b, both)
	ds = append(ds, put(t, b, noise(4, 20)))
	check(t, s)
	publish(t, a)
	publish(t, b)
	check(t, s)
	if st := b.Stats(); st.NewContents != 1 || st.NewBytes != 20 || st.StoredBytes != BlockSize || st.Contents != 4 {
		t.Errorf("second writer counts %+v", st)
	}
	put(t, b, both) // known by now
	publish(t, b)
	closeWriter(t, a)
	closeWriter(t, b)
	wantOnly(t, s, ds...)
}

func TestWriterWhoseContentsOthersPublishedPublishesNothing(t *testing.T) {
	s := open(t, t.TempDir())
	a, b := s.Begin(), s.Begin()
	d := put(t, a, noise(1, 100))
	put(t, b, noise(1, 100))
	publish(t, a)
	publish(t, b)
	closeWriter(t, a)
	closeWriter(t, b)
	if len(s.files) != 1 {
		t.Errorf("%d index files, want 1", len(s.files))
	}
	wantOnly(t, s, d)
}

func TestShortStreamFailsAndTheErrorSticks(t *testing.T) {
	for _, size := range []int64{1, 4096, smallContent, smallContent + 1, 3 * smallContent} {
		for _, have := range []int64{0, size - 1} {
			t.Run(fmt.Sprintf("%d of %d", have, size), func(t *testing.T) {
				s := open(t, t.TempDir())
				w := s.Begin()
				put(t, w, noise(1, 10_000))
				_, err := w.Put(bytes.NewReader(noise(2, int(have))), size)
				if !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("error %v, want io.ErrUnexpectedEOF", err)
				}
				if _, again := w.Put(strings.NewReader("x"), 1); again != err {
					t.Errorf("next Put: %v, want %v", again, err)
				}
				if again := w.Publish(false); again != err {
					t.Errorf("Publish: %v, want %v", again, err)
				}
				closeWriter(t, w)
				wantOnly(t, s)
			})
		}
	}
}

func TestNegativeSizeIsRefused(t *testing.T) {
	w := open(t, t.TempDir()).Begin()
	if _, err := w.Put(zeroReader{}, -1); err == nil {
		t.Error("no error")
	}
	closeWriter(t, w)
}

func TestContentThatNoPackCanHoldIsRefused(t *testing.T) {
	for _, size := range []int64{maxBlocks*BlockSize + 1, 1<<63 - 1} {
		w := open(t, t.TempDir()).Begin()
		if _, err := w.Put(zeroReader{}, size); err == nil {
			t.Errorf("%d bytes: no error", size)
		}
		closeWriter(t, w)
	}
}

func TestCloseWithoutPublishGivesAllBack(t *testing.T) {
	s := open(t, t.TempDir())
	kept := store(t, s, noise(1, 10_000))
	w := s.Begin()
	for i, n := range sizes {
		put(t, w, noise(uint64(100+i), n))
	}
	put(t, w, make([]byte, 2*smallContent))
	check(t, s)
	closeWriter(t, w)
	check(t, s)
	wantOnly(t, s, kept...)
	if got := s.space.used.end(); got != blocksOf(10_000) {
		t.Errorf("pack ends at block %d, want %d", got, blocksOf(10_000))
	}
	if err := w.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := w.Put(strings.NewReader(""), 0); err == nil {
		t.Error("Put on a closed writer: no error")
	}
	if err := w.Publish(false); err == nil {
		t.Error("Publish of a closed writer: no error")
	}
}

func TestPublishTwiceAndGoOn(t *testing.T) {
	for _, sync := range []bool{false, true} {
		t.Run(fmt.Sprintf("sync %t", sync), func(t *testing.T) {
			s := open(t, t.TempDir())
			w := s.Begin()
			var ds []Digest
			for i := range 3 {
				ds = append(ds, put(t, w, noise(uint64(i), 3000)), put(t, w, noise(uint64(i), 2*smallContent)))
				for range 2 {
					if err := w.Publish(sync); err != nil {
						t.Fatal(err)
					}
				}
				wantOnly(t, s, ds...)
			}
			closeWriter(t, w)
			if err := s.Sync(); err != nil {
				t.Fatal(err)
			}
			wantOnly(t, s, ds...)
		})
	}
}

func TestManyPublicationsAreMergedIntoFewFiles(t *testing.T) {
	s := open(t, t.TempDir())
	var ds []Digest
	for i := range 200 {
		ds = append(ds, store(t, s, noise(uint64(i), 50+i), noise(uint64(i), 3000+i))...)
		if len(s.files) > 20 {
			t.Fatalf("%d index files after %d publications", len(s.files), i+1)
		}
	}
	wantOnly(t, s, ds...)
	if got, want := len(indexNames(t, s)), len(s.files); got != want {
		t.Errorf("%d index files in the directory, %d in use", got, want)
	}
}

func TestStoreClosedUnderAWriter(t *testing.T) {
	s := open(t, t.TempDir())
	w := s.Begin()
	put(t, w, noise(1, 100))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Publish(false); err == nil {
		t.Error("Publish: no error")
	}
	if _, err := s.Lookup(sha256.Sum256(nil)); err == nil {
		t.Error("Lookup: no error")
	}
	w.Close() // may fail, must not panic
	if names := indexNames(t, s); len(names) != 0 {
		t.Errorf("index files %q appeared in a closed store", names)
	}
	s.writers = nil
	again := open(t, s.dir)
	wantOnly(t, again)
}
