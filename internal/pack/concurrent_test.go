// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
)

// The file is made longer for a content that ends in a hole. Others may be
// writing farther up at that moment: it must not end below their segments.
func TestFileNeverEndsBelowAnOpenSegment(t *testing.T) {
	s := open(t, t.TempDir())
	a, b := s.Begin(), s.Begin()
	put(t, a, make([]byte, 2*smallContent))
	put(t, b, noise(1, 100))
	if err := a.endSegment(); err != nil {
		t.Fatal(err)
	}
	st, err := s.file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := uint64(st.Size()), b.seg.end*BlockSize; got < want {
		t.Errorf("file was made to end at %d, a segment ends at %d", got, want)
	}
	publish(t, a)
	closeWriter(t, a)
	publish(t, b)
	closeWriter(t, b)
}

// Invariant 9: writers with overlapping contents, sweeps and lookups at once
// leave what they would leave one after the other.
func TestAllAtOnceIsLikeOneAfterTheOther(t *testing.T) {
	eachKind(t, testAllAtOnce)
}

func testAllAtOnce(t *testing.T, fill func(uint64, int) []byte, opts ...Option) {
	s := open(t, t.TempDir(), opts...)
	pool := make([][]byte, 120)
	for i := range pool {
		n := 1 + i*37
		if i%20 == 0 {
			n = smallContent + i*1000
		}
		pool[i] = fill(uint64(i), n)
	}
	var mu sync.Mutex
	layers := map[int][]Digest{} // what a node's TOCs are: written after Publish, before Close
	list := func() [][]Digest {
		mu.Lock()
		defer mu.Unlock()
		return slices.Collect(maps.Values(layers))
	}
	done := make(chan struct{})
	var writers, others sync.WaitGroup
	for g := range 4 {
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			for i := range 25 {
				w := s.Begin()
				var ds []Digest
				for range 1 + rng.IntN(12) {
					ds = append(ds, put(t, w, pool[rng.IntN(len(pool))]))
				}
				if rng.IntN(4) > 0 {
					publish(t, w)
					mu.Lock()
					layers[g*100+i] = ds
					if old := g*100 + rng.IntN(i+1); rng.IntN(3) == 0 {
						delete(layers, old)
					}
					mu.Unlock()
				}
				closeWriter(t, w)
			}
		})
	}
	others.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			m, err := s.BeginMark()
			if err != nil {
				t.Error(err)
				return
			}
			for _, ds := range list() {
				for _, d := range ds {
					m.Keep(d)
				}
			}
			if len(list())%5 == 0 {
				m.Cancel()
			} else if _, err := m.Sweep(); err != nil {
				t.Error(err)
				return
			}
			runtime.Gosched()
		}
	})
	others.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			// A layer that is there before and after the lookups was there all
			// the time.
			mu.Lock()
			for id, ds := range layers {
				for _, d := range ds {
					if _, err := s.Lookup(d); err != nil {
						t.Errorf("content %x of layer %d: %v", d[:4], id, err)
					}
				}
			}
			mu.Unlock()
			s.Stats()
			runtime.Gosched()
		}
	})
	writers.Wait()
	close(done)
	others.Wait()

	live := map[Digest]bool{}
	for _, ds := range layers {
		for _, d := range ds {
			live[d] = true
		}
	}
	want := slices.Collect(maps.Keys(live))
	sweepAllBut(t, s, want...)
	if wantLive(t, s, want...); len(opts) > 0 {
		check(t, s)
		sweepAllBut(t, s)
		if got := s.Stats(); got != (Stats{}) {
			t.Errorf("everything is swept, and Stats say %+v", got)
		}
		return // who shares a cluster with whom depends on the order
	}

	serial := open(t, t.TempDir())
	var all [][]byte
	all = append(all, pool...)
	for i, d := range store(t, serial, all...) {
		if !live[d] {
			all[i] = nil
		}
	}
	sweepAllBut(t, serial, want...)
	got, ref := s.Stats(), serial.Stats()
	if got.Size, ref.Size = 0, 0; got != ref {
		t.Errorf("all at once %+v, one after the other %+v", got, ref)
	}
}
