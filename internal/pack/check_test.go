// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// open opens a store that is checked at the end of the test.
func open(t testing.TB, dir string, opts ...Option) *Store {
	t.Helper()
	s, err := Open(t.Context(), dir, opts...)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() {
		if s.files != nil || len(s.writers) > 0 {
			check(t, s)
			checkReopened(t, s)
		}
		s.Close()
	})
	return s
}

// check compares the store with itself: index, bitmap, pack file and what
// Stats says about them. Writers may be open, but nothing may be running.
func check(t testing.TB, s *Store) {
	t.Helper()
	var covered blockSet
	cover := func(what any, first, n uint64) {
		t.Helper()
		for b := first; b < first+n; b++ {
			if covered.has(b) {
				t.Fatalf("check: block %d of %v is covered twice", b, what)
			}
		}
		covered.setRange(first, n)
	}
	var want Stats
	shared := map[uint32][]Placement{} // by first block
	v := s.Verifier(nil)
	defer v.Close()
	for d, p := range contents(t, s) {
		if err := p.check(); err != nil {
			t.Errorf("check: content %x: %v", d[:4], err)
		}
		if p.Encoding != EncodingShared || shared[p.Block] == nil {
			cover(p, uint64(p.Block), uint64(p.Blocks))
			want.Stored += uint64(p.Stored) * BlockSize
		}
		if p.Encoding == EncodingShared {
			shared[p.Block] = append(shared[p.Block], p)
		}
		want.Contents, want.Bytes = want.Contents+1, want.Bytes+p.Size
		if p.Encoding == EncodingPlain {
			checkBytes(t, s, d, p)
		} else if err := v.verify(context.Background(), d, p); err != nil { // at the end of a test, too
			t.Errorf("check: %v", err)
		}
	}
	for _, ps := range shared {
		checkShared(t, ps)
	}
	for w := range s.writers {
		pending := map[uint32]bool{} // shared clusters
		for _, r := range w.pending {
			if r.place.Encoding == EncodingShared && pending[r.place.Block] {
				continue
			}
			pending[r.place.Block] = true
			if w.seg.first <= uint64(r.place.Block) && r.place.End() <= w.seg.end {
				continue // part of the open segment
			}
			cover(r, uint64(r.place.Block), uint64(r.place.Blocks))
		}
		cover(w.seg, w.seg.first, w.seg.end-w.seg.first)
	}
	st, err := s.file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	length := uint64(st.Size()+BlockSize-1) / BlockSize
	for b := range max(length, s.space.used.end(), covered.end()) {
		if got, want := s.space.used.has(b), covered.has(b); got != want && (want || s.whole) {
			t.Fatalf("check: block %d used: %t, covered by something: %t", b, got, want)
		}
	}
	for first, n := range s.space.used.gaps(length) {
		data, err := unix.Seek(int(s.file.Fd()), int64(first)*BlockSize, unix.SEEK_DATA)
		if err == nil && uint64(data) < (first+n)*BlockSize {
			t.Errorf("check: free blocks %d+%d hold data at %d", first, n, data)
		} else if err != nil && !errors.Is(err, unix.ENXIO) {
			t.Fatal(err)
		}
	}
	got := s.Stats()
	if want.Size = got.Size; got != want {
		t.Errorf("check: Stats %+v, index adds up to %+v", got, want)
	}
	if len(s.writers) > 0 || !s.whole {
		return
	}
	if length != s.space.used.end() || got.Size != length*BlockSize {
		t.Errorf("check: file of %d blocks, Stats say %d, last used %d", length, got.Size/BlockSize, s.space.used.end())
	}
	// The file system's own blocks (extent trees) count as the file's, too.
	allocated := uint64(st.Sys().(*syscall.Stat_t).Blocks) * 512
	differs := func() bool { return allocated+BlockSize < got.Stored || allocated > got.Stored+64<<10+got.Stored/100 }
	if differs() {
		// What a busy file system has not allocated yet it only estimates.
		if err := s.file.Sync(); err != nil {
			t.Fatal(err)
		}
		var written unix.Stat_t
		if err := unix.Fstat(int(s.file.Fd()), &written); err != nil {
			t.Fatal(err)
		}
		allocated = uint64(written.Blocks) * 512
	}
	if differs() {
		t.Errorf("check: %d bytes stored, file has %d allocated", got.Stored, allocated)
	}
}

// checkShared compares the contents that share a cluster: they agree about it,
// and none reaches into another.
func checkShared(t testing.TB, ps []Placement) {
	t.Helper()
	slices.SortFunc(ps, func(a, b Placement) int { return cmp.Compare(a.Offset, b.Offset) })
	end := uint64(0)
	for _, p := range ps {
		if a, b := p.SharedCluster(), ps[0].SharedCluster(); a != b || p.members != ps[0].members || p.level != ps[0].level {
			t.Errorf("check: %+v and %+v share a cluster", ps[0], p)
		}
		if uint64(p.Offset) < end {
			t.Errorf("check: a content at %d in the cluster at block %d, the one before ends at %d", p.Offset, p.Block, end)
		}
		end = uint64(p.Offset) + p.Size
	}
	if len(ps) > int(ps[0].members) {
		t.Errorf("check: %d contents in a cluster of %d", len(ps), ps[0].members)
	}
}

// checkBytes hashes a content's bytes in the pack.
func checkBytes(t testing.TB, s *Store, d Digest, p Placement) {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(s.file, int64(p.Block)*BlockSize, int64(p.Size))); err != nil {
		t.Fatal(err)
	}
	if got := Digest(h.Sum(nil)); got != d {
		t.Errorf("check: blocks %d+%d (%d bytes) hash to %x, index says %x", p.Block, p.Blocks, p.Size, got[:4], d[:4])
	}
	tail := make([]byte, int(uint64(p.Blocks)*BlockSize-p.Size))
	if _, err := s.file.ReadAt(tail, int64(uint64(p.Block)*BlockSize+p.Size)); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	if !bytes.Equal(tail, make([]byte, len(tail))) {
		t.Errorf("check: content %x is not padded with zeros", d[:4])
	}
}

// contents returns the index; a digest with two placements fails the test.
func contents(t testing.TB, s *Store) map[Digest]Placement {
	t.Helper()
	all := map[Digest]Placement{}
	for _, x := range s.files {
		for r := range x.all() {
			if _, ok := all[r.digest]; ok {
				t.Errorf("check: content %x is in the index twice", r.digest[:4])
			}
			all[r.digest] = r.place
		}
	}
	return all
}

// checkReopened closes the writers and the store and opens it again: nothing
// but what was not published may differ.
func checkReopened(t testing.TB, s *Store) {
	t.Helper()
	for w := range maps.Clone(s.writers) {
		if err := w.Close(); err != nil {
			t.Errorf("close writer: %v", err)
		}
	}
	before, stats := contents(t, s), s.Stats()
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	again, err := Open(t.Context(), s.dir)
	if err != nil {
		t.Errorf("open again: %v", err)
		return
	}
	defer again.Close()
	if !maps.Equal(before, contents(t, again)) {
		t.Errorf("opened again, the index differs: %d contents, then %d", len(before), len(contents(t, again)))
	}
	if got := again.Stats(); got != stats {
		t.Errorf("opened again: Stats %+v, before %+v", got, stats)
	}
	check(t, again)
	entries, err := os.ReadDir(again.indexDir())
	if err != nil {
		t.Fatal(err)
	}
	entries = slices.DeleteFunc(entries, func(e os.DirEntry) bool { return e.Name() == syncedName })
	if again.whole && len(entries) != len(again.files) {
		t.Errorf("%d files in the index directory, %d in use", len(entries), len(again.files))
	}
}

// noise returns n bytes that depend on the seed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24), 1})
	rng.Read(b)
	return b
}

// put stores b and checks the digest that comes back.
func put(t testing.TB, w *Writer, b []byte) Digest {
	t.Helper()
	d, err := w.Put(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatalf("put %d bytes: %v", len(b), err)
	}
	if want := Digest(sha256.Sum256(b)); d != want {
		t.Fatalf("put %d bytes: digest %x, want %x", len(b), d[:4], want[:4])
	}
	return d
}

// store puts and publishes contents with a writer of their own.
func store(t testing.TB, s *Store, all ...[]byte) []Digest {
	t.Helper()
	w := s.Begin()
	defer closeWriter(t, w)
	var ds []Digest
	for _, b := range all {
		ds = append(ds, put(t, w, b))
	}
	publish(t, w)
	return ds
}

func publish(t testing.TB, w *Writer) {
	t.Helper()
	if err := w.Publish(false); err != nil {
		t.Fatalf("publish: %v", err)
	}
}

func closeWriter(t testing.TB, w *Writer) {
	t.Helper()
	if err := w.Close(); err != nil {
		t.Errorf("close writer: %v", err)
	}
}

func has(s *Store, d Digest) bool {
	_, err := s.Lookup(d)
	return err == nil
}

// wantOnly fails the test unless the index holds exactly these contents.
func wantOnly(t testing.TB, s *Store, want ...Digest) {
	t.Helper()
	got := contents(t, s)
	for _, d := range want {
		if _, err := s.Lookup(d); err != nil {
			t.Errorf("content %x is missing: %v", d[:4], err)
		}
		delete(got, d)
	}
	for d := range got {
		t.Errorf("content %x is there and should not be", d[:4])
	}
}

// wantLive is wantOnly where contents share clusters: others are there only in
// the clusters of these.
func wantLive(t testing.TB, s *Store, want ...Digest) {
	t.Helper()
	kept := map[uint32]bool{}
	got := contents(t, s)
	for _, d := range want {
		p, err := s.Lookup(d)
		if err != nil {
			t.Errorf("content %x is missing: %v", d[:4], err)
		} else if delete(got, d); p.Encoding == EncodingShared {
			kept[p.Block] = true
		}
	}
	for d, p := range got {
		if p.Encoding != EncodingShared || !kept[p.Block] {
			t.Errorf("content %x is there and should not be", d[:4])
		}
	}
}

// withMates adds to contents those that share a cluster with them.
func withMates(t testing.TB, s *Store, ds []Digest) []Digest {
	t.Helper()
	kept := map[uint32]bool{}
	for _, d := range ds {
		if p, err := s.Lookup(d); err == nil && p.Encoding == EncodingShared {
			kept[p.Block] = true
		}
	}
	all := slices.Clone(ds)
	for d, p := range contents(t, s) {
		if p.Encoding == EncodingShared && kept[p.Block] && !slices.Contains(ds, d) {
			all = append(all, d)
		}
	}
	return all
}

// eachKind runs a test once with contents that are stored as they are and once
// with contents that are compressed. fill yields n bytes of that kind.
func eachKind(t *testing.T, f func(t *testing.T, fill func(seed uint64, n int) []byte, opts ...Option)) {
	t.Run("plain", func(t *testing.T) { f(t, noise) })
	t.Run("compressed", func(t *testing.T) { f(t, text, Compress(Zstd, 0, true)) })
}

func wantMissing(t testing.TB, s *Store, ds ...Digest) {
	t.Helper()
	for _, d := range ds {
		if _, err := s.Lookup(d); !errdefs.IsNotFound(err) {
			t.Errorf("lookup of %x: %v, want ErrNotFound", d[:4], err)
		}
	}
}

// sweepAllBut frees what is not in keep.
func sweepAllBut(t testing.TB, s *Store, keep ...Digest) SweepStats {
	t.Helper()
	m, err := s.BeginMark()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range keep {
		m.Keep(d)
	}
	st, err := m.Sweep()
	if err != nil {
		t.Fatalf("sweep: %v", err)
	}
	return st
}

// indexNames lists the index directory.
func indexNames(t testing.TB, s *Store) []string {
	t.Helper()
	entries, err := os.ReadDir(s.indexDir())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names
}
