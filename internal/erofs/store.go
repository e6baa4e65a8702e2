// SPDX-License-Identifier: Apache-2.0

package erofs

// A tree of millions of inodes lives in a few flat arrays. They grow by pages,
// so growing neither copies nor leaves the old half behind, and records are
// named by 32-bit numbers instead of pointers, which keeps them small and lets
// the garbage collector skip them.

const slabPage = 1024 // records

// slab is a growing array of T whose records never move.
type slab[T any] struct {
	pages [][]T
	n     uint32
}

func (s *slab[T]) add(v T) uint32 {
	if s.n%slabPage == 0 {
		s.pages = append(s.pages, make([]T, slabPage))
	}
	i := s.n
	s.pages[i/slabPage][i%slabPage] = v
	s.n++
	return i
}

func (s *slab[T]) at(i uint32) *T { return &s.pages[i/slabPage][i%slabPage] }

const arenaPage = 1 << 16 // bytes

// arena keeps byte strings back to back. A string longer than a quarter of a
// page gets a page of its own, so that little space is lost at the end of pages.
type arena struct {
	pages [][]byte
	free  []byte // rest of the current page
	cur   int    // index of the current page
}

// ref is the place of a string in an arena: page number above 16 bits of offset.
type ref uint64

func put[S string | []byte](a *arena, s S) ref {
	switch {
	case len(s) > arenaPage/4:
		a.pages = append(a.pages, []byte(s))
		return ref(len(a.pages)-1) << 16
	case len(s) > len(a.free):
		a.cur = len(a.pages)
		a.free = make([]byte, arenaPage)
		a.pages = append(a.pages, a.free)
	}
	off := arenaPage - len(a.free)
	copy(a.free, s)
	a.free = a.free[len(s):]
	return ref(a.cur)<<16 | ref(off)
}

func (a *arena) get(r ref, n int) []byte {
	off := int(r & (arenaPage - 1))
	return a.pages[r>>16][off : off+n : off+n]
}
