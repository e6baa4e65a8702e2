// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"fmt"
	"iter"
	"math/bits"

	"github.com/containerd/errdefs"
)

// maxBlocks bounds the pack: block addresses are 32 bit and the highest one
// means "hole" in EROFS. 16 TiB less two blocks.
const maxBlocks = 1<<32 - 2

// blockSet is a set of block addresses: a bit per block, as long as the
// highest member needs. The zero value is the empty set.
type blockSet struct{ words []uint64 }

// setRange adds n blocks from first on.
func (s *blockSet) setRange(first, n uint64) {
	if n == 0 {
		return
	}
	last := first + n - 1
	if need := int(last/64) + 1; need > len(s.words) {
		s.words = append(s.words, make([]uint64, need-len(s.words))...)
	}
	s.eachWord(first, last, func(w *uint64, mask uint64) { *w |= mask })
}

// clearRange removes n blocks from first on.
func (s *blockSet) clearRange(first, n uint64) {
	end := min(first+n, uint64(len(s.words))*64)
	if end <= first {
		return
	}
	s.eachWord(first, end-1, func(w *uint64, mask uint64) { *w &^= mask })
}

// remove removes the members of another set.
func (s *blockSet) remove(o blockSet) {
	for i := range min(len(s.words), len(o.words)) {
		s.words[i] &^= o.words[i]
	}
}

// eachWord calls f for the words that hold first..last, with the bits meant.
func (s *blockSet) eachWord(first, last uint64, f func(w *uint64, mask uint64)) {
	for i := first / 64; i <= last/64; i++ {
		mask := ^uint64(0)
		if i == first/64 {
			mask &= ^uint64(0) << (first % 64)
		}
		if i == last/64 {
			mask &= ^uint64(0) >> (63 - last%64)
		}
		f(&s.words[i], mask)
	}
}

// has tells whether the block is a member.
func (s *blockSet) has(block uint64) bool {
	return block/64 < uint64(len(s.words)) && s.words[block/64]>>(block%64)&1 == 1
}

// next returns the first block at or behind from that is a member (want true)
// or none (want false). Behind the last word nothing is a member: the answer
// for members is then "no such block".
func (s *blockSet) next(from uint64, want bool) (uint64, bool) {
	for i := from / 64; i < uint64(len(s.words)); i++ {
		w := s.words[i]
		if !want {
			w = ^w
		}
		if i == from/64 {
			w &= ^uint64(0) << (from % 64)
		}
		if w != 0 {
			return i*64 + uint64(bits.TrailingZeros64(w)), true
		}
	}
	if want {
		return 0, false
	}
	return max(from, uint64(len(s.words))*64), true
}

// end is the block behind the highest member, 0 for the empty set.
func (s *blockSet) end() uint64 {
	for i := len(s.words) - 1; i >= 0; i-- {
		if w := s.words[i]; w != 0 {
			return uint64(i)*64 + 64 - uint64(bits.LeadingZeros64(w))
		}
	}
	return 0
}

// gaps yields the ranges below limit that hold no member, lowest first.
func (s *blockSet) gaps(limit uint64) iter.Seq2[uint64, uint64] {
	return func(yield func(first, n uint64) bool) {
		for at := uint64(0); at < limit; {
			first, _ := s.next(at, false)
			if first >= limit {
				return
			}
			end, ok := s.next(first, true)
			if !ok || end > limit {
				end = limit
			}
			if !yield(first, end-first) {
				return
			}
			at = end
		}
	}
}

// runs yields the ranges of members, lowest first.
func (s *blockSet) runs() iter.Seq2[uint64, uint64] {
	return func(yield func(first, n uint64) bool) {
		for first, ok := s.next(0, true); ok; {
			end, _ := s.next(first, false)
			if !yield(first, end-first) {
				return
			}
			first, ok = s.next(end, true)
		}
	}
}

// space hands out ranges of the pack: a block belongs to a placement, to an
// open segment, or is free. Not safe for concurrent use; the store guards it.
type space struct {
	used blockSet
	// low is a block below which no range of segmentMin free blocks begins.
	low uint64
}

const (
	// segmentMax is what a writer reserves ahead: 64 MiB.
	segmentMax = 64 << 20 / BlockSize
	// segmentMin keeps a writer from scattering a layer over tiny gaps; smaller
	// gaps cost addresses, not disk.
	segmentMin = 256 << 10 / BlockSize
)

// reserve takes the lowest free range of at least need blocks, up to
// segmentMax blocks of it or need, whichever is more.
//
// ErrResourceExhausted: the pack's addresses are used up.
func (s *space) reserve(need uint64) (first, n uint64, err error) {
	need = max(need, segmentMin)
	for at := s.low; ; {
		first, _ := s.used.next(at, false)
		if first+need > maxBlocks {
			return 0, 0, fmt.Errorf("pack: no room for %d blocks below 16 TiB: %w", need, errdefs.ErrResourceExhausted)
		}
		want := max(need, segmentMax)
		end, ok := s.used.next(first, true)
		if !ok {
			end = maxBlocks
		}
		if free := end - first; free >= need {
			n = min(free, want)
			s.used.setRange(first, n)
			if need == segmentMin {
				s.low = first + n
			}
			return first, n, nil
		}
		at = end
	}
}

// release gives a range back.
func (s *space) release(first, n uint64) {
	s.used.clearRange(first, n)
	s.low = min(s.low, first)
	// The released range may complete a gap that begins below it.
	for s.low > 0 && !s.used.has(s.low-1) && first-s.low < segmentMin {
		s.low--
	}
}
