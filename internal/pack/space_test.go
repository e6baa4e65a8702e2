// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
)

// choices takes decisions from fuzz input; after its end every choice is 0.
type choices struct{ b []byte }

func (c *choices) n(limit int) int {
	v := 0
	for l := limit - 1; l > 0 && len(c.b) > 0; l >>= 8 {
		v, c.b = v<<8|int(c.b[0]), c.b[1:]
	}
	return v % limit
}

func (c *choices) more() bool { return len(c.b) > 0 }

func seeds(f *testing.F) {
	for seed := range byte(6) {
		b := make([]byte, 400)
		rand.NewChaCha8([32]byte{seed}).Read(b)
		f.Add(b)
	}
}

func FuzzBlockSet(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, input []byte) {
		const limit = 260
		c := &choices{input}
		var s blockSet
		var model [3 * limit]bool
		for c.more() {
			first, n := uint64(c.n(limit)), uint64(c.n(limit))
			add := c.n(2) == 0
			if add {
				s.setRange(first, n)
			} else {
				s.clearRange(first, n)
			}
			for b := first; b < first+n; b++ {
				model[b] = add
			}
		}
		end := uint64(0)
		for b, member := range model {
			if member {
				end = uint64(b) + 1
			}
		}
		if got := s.end(); got != end {
			t.Errorf("end %d, want %d", got, end)
		}
		for b := range uint64(2 * limit) {
			if s.has(b) != model[b] {
				t.Fatalf("has %d: %t", b, s.has(b))
			}
			for _, want := range []bool{true, false} {
				next := b
				for next < uint64(len(model)) && model[next] != want {
					next++
				}
				got, ok := s.next(b, want)
				if ok != (next < uint64(len(model))) || ok && got != next {
					t.Fatalf("next %d, %t: %d, %t; want %d", b, want, got, ok, next)
				}
			}
		}
		for _, limit := range []uint64{0, 1, 64, 65, end, end + 100} {
			covered := make([]bool, limit)
			last := uint64(0)
			for first, n := range s.gaps(limit) {
				if n == 0 || first < last || last > 0 && first == last {
					t.Fatalf("gap %d+%d behind %d", first, n, last)
				}
				for b := first; b < first+n; b++ {
					covered[b] = true
				}
				last = first + n
			}
			for b := range limit {
				if covered[b] == model[b] {
					t.Fatalf("block %d below %d: in a gap %t, member %t", b, limit, covered[b], model[b])
				}
			}
			if last > limit {
				t.Fatalf("gap ends at %d, limit %d", last, limit)
			}
		}
	})
}

// Reservations never overlap, are the lowest that are large enough, and all
// that is released can be had again.
func FuzzSpace(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, input []byte) {
		c := &choices{input}
		var s space
		held := map[uint64]uint64{} // first ─▶ blocks
		for c.more() {
			if len(held) > 0 && c.n(3) == 0 {
				// Release a range, or its tail as a segment's end does.
				all := slices.Sorted(maps.Keys(held))
				first := all[c.n(len(all))]
				n := held[first]
				keep := min(n, uint64(c.n(3)*c.n(200)))
				if delete(held, first); keep > 0 {
					held[first] = keep
				}
				s.release(first+keep, n-keep)
				continue
			}
			need := uint64(1 + c.n(300))
			if c.n(10) == 0 {
				need = segmentMax + uint64(c.n(1000))
			}
			first, n, err := s.reserve(need)
			if err != nil {
				t.Fatal(err)
			}
			if n < need || n > max(need, segmentMax) {
				t.Fatalf("asked for %d blocks, got %d", need, n)
			}
			// The lowest gap of the model that has room.
			at := uint64(0)
			for _, h := range slices.Sorted(maps.Keys(held)) {
				if h-at >= max(need, segmentMin) {
					break
				}
				at = h + held[h]
			}
			if first != at {
				t.Fatalf("asked for %d blocks, got %d+%d; lowest gap begins at %d", need, first, n, at)
			}
			for h, l := range held {
				if first < h+l && h < first+n {
					t.Fatalf("%d+%d overlaps %d+%d", first, n, h, l)
				}
			}
			held[first] = n
		}
	})
}

func TestAddressesAreUsedUp(t *testing.T) {
	var s space
	if _, _, err := s.reserve(maxBlocks + 1); !errdefs.IsResourceExhausted(err) {
		t.Errorf("more than all: %v", err)
	}
	if _, _, err := s.reserve(1 << 63); !errdefs.IsResourceExhausted(err) {
		t.Errorf("2^63 blocks: %v", err)
	}
	if testing.Short() {
		t.Skip("a bitmap of 16 TiB takes 512 MiB of memory")
	}
	first, n, err := s.reserve(maxBlocks - 100)
	if err != nil || first != 0 || n != maxBlocks-100 {
		t.Fatalf("%d+%d, %v", first, n, err)
	}
	if first, n, err := s.reserve(1); err != nil || first != maxBlocks-100 || n != 100 {
		t.Errorf("the last blocks: %d+%d, %v", first, n, err)
	}
	if _, _, err := s.reserve(1); !errdefs.IsResourceExhausted(err) {
		t.Errorf("one more: %v", err)
	}
	s.release(1000, segmentMin)
	if first, n, err := s.reserve(1); err != nil || first != 1000 || n != segmentMin {
		t.Errorf("released range: %d+%d, %v", first, n, err)
	}
}

func FuzzParseIndex(f *testing.F) {
	f.Add(encodeIndex(f, span{}, nil))
	f.Add(encodeIndex(f, span{1, 2, 3}, sampleRecords(20)))
	f.Add(encodeIndex(f, span{1, 2, 3}, encodedRecords()))
	for _, odd := range oddIndexes(f) {
		f.Add(odd.file)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// Half of the inputs get past the checksums.
		for _, sealed := range []bool{false, true} {
			if sealed {
				if len(b) < headerSize {
					return
				}
				b = reseal(slices.Clone(b))
			}
			g, body, aux, err := parseIndex(b)
			if err != nil {
				continue
			}
			x := &indexFile{records: body, aux: aux}
			again := encodeIndex(t, g, slices.Collect(x.all()))
			if !slices.Equal(again, b) {
				t.Errorf("accepted, but encoded again it is\n%x\nnot\n%x", again, b)
			}
			for r := range x.all() {
				if p, ok := x.find(&r.digest); !ok || p != r.place {
					t.Errorf("record %x is not found", r.digest[:4])
				}
			}
		}
	})
}
