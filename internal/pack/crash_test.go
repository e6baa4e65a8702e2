// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// image is a store's directory as a crash would leave it.
type image struct {
	pack  []byte
	index map[string][]byte
}

// capture copies the directory of a store that nobody is writing to.
func capture(t testing.TB, s *Store) image {
	t.Helper()
	im := image{index: map[string][]byte{}}
	var err error
	if im.pack, err = os.ReadFile(s.Path()); err != nil {
		t.Fatal(err)
	}
	for _, name := range indexNames(t, s) {
		if im.index[name], err = os.ReadFile(filepath.Join(s.indexDir(), name)); err != nil {
			t.Fatal(err)
		}
	}
	return im
}

// restore opens a store on the image, and has it checked.
func (im image) restore(t testing.TB, opts ...Option) *Store {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "index"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, b := range im.index {
		if err := os.WriteFile(filepath.Join(dir, "index", name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Create(filepath.Join(dir, "pack"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at := int64(0)
	for b := range slices.Chunk(im.pack, BlockSize) {
		if !bytes.Equal(b, zeros[:len(b)]) {
			if _, err := f.WriteAt(b, at); err != nil {
				t.Fatal(err)
			}
		}
		at += int64(len(b))
	}
	if err := f.Truncate(at); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), dir, opts...)
	if err != nil {
		t.Fatalf("open after a crash: %v", err)
	}
	return s
}

// between lists the states in which a crash could find the directory while it
// published something: a new index file is written under a temporary name and
// renamed, then those that were merged go one by one. early and late are
// the states of the pack file that can be met before and after the renaming.
func between(from, to image, early, late [][]byte) map[string]image {
	states := map[string]image{}
	now := maps.Clone(from.index)
	for name, b := range to.index {
		if _, ok := from.index[name]; ok {
			continue
		}
		for _, part := range []int{0, len(b) / 2, len(b)} {
			tmp := maps.Clone(now)
			tmp[name+tmpSuffix] = b[:part]
			for i, pack := range early {
				states[fmt.Sprintf("%d bytes of %s%s, pack %d", part, name, tmpSuffix, i)] = image{pack, tmp}
			}
		}
		now[name] = b
	}
	for i, pack := range late {
		index := maps.Clone(now)
		states[fmt.Sprintf("all index files, pack %d", i)] = image{pack, maps.Clone(index)}
		for _, name := range slices.Sorted(maps.Keys(from.index)) {
			if _, ok := to.index[name]; !ok {
				delete(index, name)
				states[fmt.Sprintf("without %s, pack %d", name, i)] = image{pack, maps.Clone(index)}
			}
		}
	}
	return states
}

// duringSweep is between for a sweep: file by file, the next revision is written
// and renamed, the old one goes, and what is dead in it is punched out. dead are
// the records by the names of the files that had them.
func duringSweep(t testing.TB, from, to image, dead map[string][]record) map[string]image {
	type step struct{ old, new string }
	var steps []step
	for name := range from.index {
		if _, ok := to.index[name]; ok {
			continue
		}
		g, _ := parseIndexName(name)
		g.revision++
		steps = append(steps, step{name, indexName(g)})
	}
	slices.SortFunc(steps, func(a, b step) int { return len(to.index[a.new]) - len(to.index[b.new]) })
	states := map[string]image{}
	now := maps.Clone(from.index)
	pack := slices.Clone(from.pack)
	state := func(format string, args ...any) {
		states[fmt.Sprintf(format, args...)] = image{slices.Clone(pack), maps.Clone(now)}
	}
	for _, st := range steps {
		if b, ok := to.index[st.new]; ok {
			for _, part := range []int{0, len(b) / 2, len(b)} {
				now[st.new+tmpSuffix] = b[:part]
				state("%d bytes of %s%s", part, st.new, tmpSuffix)
			}
			delete(now, st.new+tmpSuffix)
			now[st.new] = b
			state("%s beside %s", st.new, st.old)
		}
		delete(now, st.old)
		state("without %s", st.old)
		for i, r := range dead[st.old] {
			clear(pack[uint64(r.place.Block)*BlockSize : r.place.End()*BlockSize])
			state("without %d contents of %s", i+1, st.old)
		}
	}
	if !maps.EqualFunc(now, to.index, bytes.Equal) || !bytes.HasPrefix(pack, to.pack) {
		t.Errorf("the sweep ended otherwise than it was thought to")
	}
	return states
}

// Invariant 4, for the pack: wherever a crash interrupts a publication, a merge
// or a sweep, what was published before is whole, and nothing stays of the rest.
func TestCrashAnywhereLeavesAWholeStore(t *testing.T) {
	eachKind(t, testCrashAnywhere)
}

func testCrashAnywhere(t *testing.T, fill func(uint64, int) []byte, opts ...Option) {
	s := open(t, t.TempDir(), opts...)
	states := 0
	check1 := func(t *testing.T, im image, must []Digest, may ...Digest) {
		states++
		s := im.restore(t, opts...)
		defer s.Close()
		check(t, s)
		for _, d := range must {
			if !has(s, d) {
				t.Errorf("content %x is gone", d[:4])
			}
		}
		if got := len(contents(t, s)); got > len(must)+len(may) {
			t.Errorf("%d contents, want at most %d", got, len(must)+len(may))
		}
		for name := range im.index {
			if filepath.Ext(name) == tmpSuffix && slices.Contains(indexNames(t, s), name) {
				t.Errorf("%s is still there", name)
			}
		}
		// The store goes on as if nothing had happened.
		d := store(t, s, fill(1000, 5000))
		if st := sweepAllBut(t, s, append(d, must...)...); int(st.Contents) > len(may) {
			t.Errorf("sweep after the crash freed %d contents", st.Contents)
		}
		check(t, s)
	}
	var live []Digest
	idle := s.Begin() // another writer's segment is open all the time
	defer closeWriter(t, idle)
	put(t, idle, fill(999, smallContent+1))
	steps := 14
	if len(opts) > 0 {
		steps = 8 // one sweep
	}
	for step := range steps {
		before := capture(t, s)
		if step == 6 || step == 9 || step == 10 {
			// One content of several files stays, of another file none.
			keep, dead := live[:len(live)/2], live[len(live)/2:]
			keep = withMates(t, s, append(slices.Clone(keep), dead[len(dead)-1]))
			dead = slices.DeleteFunc(slices.Clone(dead), func(d Digest) bool { return slices.Contains(keep, d) })
			records := map[string][]record{}
			for _, x := range s.files {
				for r := range x.all() {
					if slices.Contains(dead, r.digest) {
						records[filepath.Base(x.path)] = append(records[filepath.Base(x.path)], r)
					}
				}
			}
			sweepAllBut(t, s, keep...)
			live = keep
			for name, im := range duringSweep(t, before, capture(t, s), records) {
				t.Run(fmt.Sprintf("step %d, sweep, %s", step, name), func(t *testing.T) { check1(t, im, live, dead...) })
			}
			continue
		}
		w := s.Begin()
		added := []Digest{put(t, w, fill(uint64(step), 3000)), put(t, w, fill(uint64(100+step), smallContent+5000)), put(t, w, fill(uint64(200+step), 9))}
		t.Run(fmt.Sprintf("step %d, unpublished", step), func(t *testing.T) { check1(t, capture(t, s), live) })
		publish(t, w)
		closeWriter(t, w)
		after := capture(t, s)
		for name, im := range between(before, after, [][]byte{before.pack, after.pack}, [][]byte{after.pack}) {
			t.Run(fmt.Sprintf("step %d, publish, %s", step, name), func(t *testing.T) { check1(t, im, live, added...) })
		}
		live = append(live, added...)
	}
	if states < 50 {
		t.Errorf("only %d states were met: the test lost its teeth", states)
	}
}

// A crash finds the bytes of an unpublished segment in the middle of the pack.
func TestUnpublishedBytesAreTakenBack(t *testing.T) {
	eachKind(t, testUnpublishedBytes)
}

func testUnpublishedBytes(t *testing.T, fill func(uint64, int) []byte, opts ...Option) {
	s := open(t, t.TempDir(), opts...)
	low := s.Begin()
	put(t, low, fill(1, 3*smallContent))
	kept := store(t, s, fill(2, smallContent+1)) // above the segment of low
	s2 := capture(t, s).restore(t, opts...)
	defer s2.Close()
	check(t, s2)
	wantOnly(t, s2, kept...)
	again := s2.Begin()
	put(t, again, make([]byte, 4*smallContent)) // zeros where the crash left bytes
	publish(t, again)
	closeWriter(t, again)
	check(t, s2)
}

// Random work, with a crash now and then: the store after the crash holds what
// was published, and goes on.
func TestRandomWorkWithCrashes(t *testing.T) {
	eachKind(t, testRandomWork)
}

func testRandomWork(t *testing.T, fill func(uint64, int) []byte, opts ...Option) {
	rng := rand.New(rand.NewPCG(7, 7))
	s := open(t, t.TempDir(), opts...)
	layers := map[int][]Digest{}
	for step := range 120 {
		switch rng.IntN(8) {
		case 0:
			delete(layers, rng.IntN(step+1))
			keep := slices.Concat(slices.Collect(maps.Values(layers))...)
			sweepAllBut(t, s, keep...)
			if wantLive(t, s, keep...); t.Failed() {
				t.Fatalf("after the sweep of step %d", step)
			}
		case 1:
			w := s.Begin()
			put(t, w, fill(uint64(rng.IntN(40)), 1+rng.IntN(100_000)))
			old := s
			s = capture(t, s).restore(t, opts...)
			check(t, s)
			closeWriter(t, w)
			if step > 0 {
				old.Close()
			}
			defer func() { s.Close() }()
		default:
			w := s.Begin()
			var ds []Digest
			for range rng.IntN(6) {
				seed := uint64(rng.IntN(40))
				n := int(seed) * 5000
				if seed%13 == 0 {
					n += smallContent
				}
				ds = append(ds, put(t, w, fill(seed, n)))
			}
			if rng.IntN(5) > 0 {
				publish(t, w)
				layers[step] = ds
			}
			closeWriter(t, w)
		}
		for id, ds := range layers {
			for _, d := range ds {
				if !has(s, d) {
					t.Fatalf("step %d: content %x of layer %d is missing", step, d[:4], id)
				}
			}
		}
	}
	check(t, s)
}
