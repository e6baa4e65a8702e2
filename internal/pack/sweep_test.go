// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func beginMark(t testing.TB, s *Store) *Mark {
	t.Helper()
	m, err := s.BeginMark()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func sweep(t testing.TB, m *Mark) SweepStats {
	t.Helper()
	st, err := m.Sweep()
	if err != nil {
		t.Fatalf("sweep: %v", err)
	}
	return st
}

func TestSweepFreesExactlyTheRest(t *testing.T) {
	s := open(t, t.TempDir())
	var all []Digest
	for i := range 12 {
		all = append(all, store(t, s, noise(uint64(i), 10+i*1000), noise(uint64(i), i*smallContent/3))...)
	}
	slices.SortFunc(all, func(a, b Digest) int { return strings.Compare(string(a[:]), string(b[:])) })
	all = slices.Compact(all) // the empty content may be there twice
	keep := all[:len(all)/3]
	before := s.Stats()
	st := sweepAllBut(t, s, keep...)
	wantOnly(t, s, keep...)
	wantMissing(t, s, all[len(keep):]...)
	after := s.Stats()
	if got := (SweepStats{before.Contents - after.Contents, before.Stored - after.Stored}); got != st {
		t.Errorf("sweep says %+v, index shrank by %+v", st, got)
	}
	check(t, s)
}

func TestSweepOfAnIndexFileIsItsNextRevision(t *testing.T) {
	s := open(t, t.TempDir())
	ds := store(t, s, noise(1, 10), noise(2, 20), noise(3, 30))
	for i, want := range [][]string{{"00000000-00000000.1"}, {"00000000-00000000.2"}, nil} {
		sweepAllBut(t, s, ds[i+1:]...)
		if got := indexNames(t, s); !slices.Equal(got, want) {
			t.Errorf("index files %q, want %q", got, want)
		}
		check(t, s)
	}
	if got := s.Stats(); got != (Stats{}) {
		t.Errorf("everything is swept, and Stats say %+v", got)
	}
	wantOnly(t, s, store(t, s, noise(4, 40))...)
}

func TestSweepWritesOnlyWhatItTouches(t *testing.T) {
	s := open(t, t.TempDir())
	var all [][]Digest
	for i := range 4 {
		all = append(all, store(t, s, noise(uint64(i), 100), noise(uint64(10+i), 100)))
	}
	untouched := s.files[1]
	sweepAllBut(t, s, append(append(all[1], all[3]...), all[2][1])...)
	want := []string{"00000001-00000001.0", "00000002-00000002.1", "00000003-00000003.0"}
	if got := indexNames(t, s); !slices.Equal(got, want) || s.files[0] != untouched {
		t.Errorf("index files %q, want %q", got, want)
	}
}

// A file of which nothing stays is not the end of its generation: what was
// before it must not come back, and what comes after it counts as new.
func TestRemovedIndexFileStaysAway(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	var all []Digest
	for i := range mergeWidth {
		all = append(all, store(t, s, noise(uint64(i), 100))...)
	}
	stale := capture(t, s)
	all = append(all, store(t, s, noise(mergeWidth, 100))...)
	if got := indexNames(t, s); len(got) != 1 {
		t.Fatalf("index files %q were not merged", got)
	}
	// As if their removal had failed when they were merged.
	for name, b := range stale.index {
		if err := os.WriteFile(filepath.Join(s.indexDir(), name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	sweepAllBut(t, s)
	if got := indexNames(t, s); !slices.Equal(got, []string{syncedName}) {
		t.Errorf("nothing stays, and there are index files %q", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	wantMissing(t, s, all...)
	wantOnly(t, s, store(t, s, noise(9, 100))...)
	if n := unsynced(s); n != 1 {
		t.Errorf("%d contents are unsynced, want the new one", n)
	}
}

// Contents in the same blocks live and die together, and are one range.
func TestContentsInTheSameBlocks(t *testing.T) {
	s := open(t, t.TempDir())
	w := s.Begin()
	defer closeWriter(t, w)
	put(t, w, noise(1, 3*BlockSize))
	put(t, w, noise(2, 2*BlockSize))
	place := w.pending[0].place
	for i := range 5 { // as many names for the first one
		w.pending = append(w.pending, record{Digest{byte(i)}, place})
	}
	last := w.pending[1].place
	var got [][2]uint64
	for from, end := range runs(slices.Clone(w.pending)) {
		got = append(got, [2]uint64{from, end})
	}
	if want := [][2]uint64{{0, last.End()}}; !slices.Equal(got, want) {
		t.Errorf("runs %v, want %v", got, want)
	}
	publish(t, w)
	w.pinned = nil
	m := beginMark(t, s)
	m.Keep(Digest{3})
	if st, want := sweep(t, m), (SweepStats{1, 2 * BlockSize}); st != want {
		t.Errorf("swept %+v, want %+v", st, want)
	}
	if n := len(s.files[0].records) / recordSize; n != 6 {
		t.Errorf("%d contents are left, want 6", n)
	}
	if st, want := sweepAllBut(t, s), (SweepStats{6, 3 * BlockSize}); st != want {
		t.Errorf("swept %+v, want %+v", st, want)
	}
	again := store(t, s, noise(1, 3*BlockSize), noise(2, 2*BlockSize))
	if p, err := s.Lookup(again[0]); err != nil || p.Block != place.Block {
		t.Errorf("freed blocks are used again at %+v, %v", p, err)
	}
}

func TestSecondSweepFreesNothing(t *testing.T) {
	s := open(t, t.TempDir())
	ds := store(t, s, noise(1, 10), noise(2, 20))
	sweepAllBut(t, s, ds[0])
	names := indexNames(t, s)
	if st := sweepAllBut(t, s, ds[0]); st != (SweepStats{}) {
		t.Errorf("second sweep freed %+v", st)
	}
	if got := indexNames(t, s); !slices.Equal(got, names) {
		t.Errorf("second sweep rewrote the index: %q, then %q", names, got)
	}
	empty := open(t, t.TempDir())
	if st := sweepAllBut(t, empty); st != (SweepStats{}) {
		t.Errorf("sweep of an empty store freed %+v", st)
	}
}

func TestMarkEndsOnce(t *testing.T) {
	s := open(t, t.TempDir())
	ds := store(t, s, noise(1, 10))
	m := beginMark(t, s)
	if _, err := s.BeginMark(); !errdefs.IsUnavailable(err) {
		t.Errorf("second mark: %v, want ErrUnavailable", err)
	}
	m.Cancel()
	if _, err := m.Sweep(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Sweep after Cancel: %v, want ErrFailedPrecondition", err)
	}
	next := beginMark(t, s)
	m.Cancel() // ended long ago: next is not its business
	next.Keep(ds[0])
	sweep(t, next)
	if _, err := next.Sweep(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second Sweep: %v, want ErrFailedPrecondition", err)
	}
	wantOnly(t, s, ds...)
}

func TestKeepOfAnUnknownContentIsPassedOver(t *testing.T) {
	s := open(t, t.TempDir())
	store(t, s, noise(1, 10))
	sweepAllBut(t, s, Digest{1})
	wantOnly(t, s)
}

func TestPublishedWhileTheMarkIsOpenIsNotJudged(t *testing.T) {
	s := open(t, t.TempDir())
	store(t, s, noise(1, 10))
	m := beginMark(t, s)
	var later []Digest
	for i := range 10 { // enough to be merged, if it were not for the mark
		later = append(later, store(t, s, noise(uint64(10+i), 10))...)
	}
	sweep(t, m)
	wantOnly(t, s, later...)
	later = append(later, store(t, s, noise(30, 10))...) // merges
	if len(s.files) > mergeWidth+1 {
		t.Errorf("%d index files after the mark", len(s.files))
	}
	wantOnly(t, s, later...)
}

// A known content is safe while its writer is open, whenever that began.
func TestSweepSparesWhatOpenWritersRelyOn(t *testing.T) {
	small, large, own := noise(1, 100), noise(2, 2*smallContent), noise(3, 300)
	for _, c := range []struct {
		name string
		run  func(t *testing.T, s *Store, use func(*Writer)) *Writer
	}{
		{"put before the mark", func(t *testing.T, s *Store, use func(*Writer)) *Writer {
			w := s.Begin()
			use(w)
			sweep(t, beginMark(t, s))
			return w
		}},
		{"put during the mark", func(t *testing.T, s *Store, use func(*Writer)) *Writer {
			m := beginMark(t, s)
			w := s.Begin()
			use(w)
			sweep(t, m)
			return w
		}},
		{"put before, closed during the mark", func(t *testing.T, s *Store, use func(*Writer)) *Writer {
			w := s.Begin()
			use(w)
			m := beginMark(t, s)
			publish(t, w)
			closeWriter(t, w)
			sweep(t, m)
			return w
		}},
		{"put, published and closed during the mark", func(t *testing.T, s *Store, use func(*Writer)) *Writer {
			m := beginMark(t, s)
			w := s.Begin()
			use(w)
			publish(t, w)
			closeWriter(t, w)
			sweep(t, m)
			return w
		}},
		{"published before the mark, still open", func(t *testing.T, s *Store, use func(*Writer)) *Writer {
			w := s.Begin()
			use(w)
			publish(t, w)
			sweep(t, beginMark(t, s))
			return w
		}},
		{"published by another writer in between", func(t *testing.T, s *Store, use func(*Writer)) *Writer {
			w, other := s.Begin(), s.Begin()
			put(t, w, own)
			put(t, other, own)
			publish(t, other)
			closeWriter(t, other)
			use(w)
			publish(t, w) // drops its copy of own
			sweep(t, beginMark(t, s))
			return w
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t, t.TempDir())
			ds := store(t, s, small, large)
			gone := store(t, s, noise(4, 400))
			w := c.run(t, s, func(w *Writer) {
				put(t, w, small)
				put(t, w, large)
				ds = append(ds, put(t, w, own))
			})
			wantMissing(t, s, gone...)
			if w.err == nil {
				publish(t, w)
			}
			wantOnly(t, s, ds...)
			closeWriter(t, w)
			// Nobody refers to them any more.
			sweepAllBut(t, s)
			wantOnly(t, s)
		})
	}
}

// What a sweep has condemned is stored again by those who come meanwhile.
func TestCondemnedContentIsStoredAgain(t *testing.T) {
	s := open(t, t.TempDir())
	small, large := noise(1, 100), noise(2, 2*smallContent)
	ds := store(t, s, small, large)
	m := beginMark(t, s)
	s.changing.Lock()
	m.condemn(s.files)
	s.changing.Unlock()
	w := s.Begin()
	put(t, w, small)
	put(t, w, large)
	if st := w.Stats(); st.NewContents != 2 {
		t.Fatalf("writer relies on condemned contents: %+v", st)
	}
	sweep(t, m)
	wantMissing(t, s, ds...)
	publish(t, w)
	closeWriter(t, w)
	wantOnly(t, s, ds...)
}

func TestPackShrinksAndFreedRangesAreUsedLowestFirst(t *testing.T) {
	s := open(t, t.TempDir())
	var ds []Digest
	for i := range 5 {
		ds = append(ds, store(t, s, noise(uint64(i), smallContent+1))...)
	}
	size := s.Stats().Size
	sweepAllBut(t, s, ds[0], ds[2], ds[3])
	if got := s.Stats().Size; got >= size {
		t.Errorf("last content freed, pack had %d bytes and has %d", size, got)
	}
	again := store(t, s, noise(10, smallContent/2), noise(11, smallContent/2))
	for _, d := range again {
		p, err := s.Lookup(d)
		if err != nil || uint64(p.Block) < blocksOf(smallContent+1) || p.End() > 2*blocksOf(smallContent+1) {
			t.Errorf("placed at %+v (%v), want in the freed range", p, err)
		}
	}
	check(t, s)
	sweepAllBut(t, s)
	if got := s.Stats().Size; got != 0 {
		t.Errorf("everything freed, pack has %d bytes", got)
	}
}

// Contents without bytes share their first block with the next content.
func TestEmptyContentAndItsNeighbour(t *testing.T) {
	for _, first := range []bool{false, true} {
		s := open(t, t.TempDir())
		b, empty := noise(1, 100), []byte{}
		ds := store(t, s, empty, b)
		keep := ds[0]
		if !first {
			keep = ds[1]
		}
		sweepAllBut(t, s, keep)
		if !has(s, keep) {
			t.Errorf("content %x was kept and is gone", keep[:4])
		}
		check(t, s)
	}
}

func TestWriterLookupPins(t *testing.T) {
	s := open(t, t.TempDir())
	ds := store(t, s, noise(1, 100), noise(2, 200), noise(3, 300))
	w := s.Begin()
	want, err := s.Lookup(ds[0])
	if err != nil {
		t.Fatal(err)
	}
	if p, err := w.Lookup(ds[0]); err != nil || p != want {
		t.Errorf("%+v, %v; want %+v", p, err, want)
	}
	if _, err := w.Lookup(Digest{1}); !errdefs.IsNotFound(err) {
		t.Errorf("unknown content: %v", err)
	}
	m := beginMark(t, s)
	p, err := s.Lookup(ds[1])
	if err != nil {
		t.Fatal(err)
	}
	m.KeepBlock(p.Block)
	sweep(t, m)
	wantOnly(t, s, ds[:2]...)
	closeWriter(t, w)
	sweepAllBut(t, s)
	wantOnly(t, s)
}

func TestUnmetIsWhatASweepFrees(t *testing.T) {
	s := open(t, t.TempDir())
	ds := store(t, s, noise(1, 50_000), noise(2, 300_000))
	stays, goes := ds[0], ds[1]
	m := beginMark(t, s)
	m.Keep(stays)
	before, _, err := m.Unmet()
	if err != nil {
		t.Fatal(err)
	}
	wantOnly(t, s, stays, goes)
	if got := sweep(t, m); got != before || got.Contents != 1 {
		t.Errorf("freed %+v, foretold %+v, want 1 content", got, before)
	}
	wantOnly(t, s, stays)
	if _, _, err := m.Unmet(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a mark that has ended: got %v", err)
	}
}
