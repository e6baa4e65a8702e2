// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"encoding/binary"
	"slices"
	"strings"
)

const (
	maxXattrName  = 255
	maxXattrValue = 1<<16 - 1

	xattrHeaderSize = 12
	xattrEntrySize  = 4
	xattrAlign      = 4
	sharedIDSize    = 4
	maxSharedIDs    = 255                           // the count has 8 bits
	maxXattrBody    = xattrHeaderSize + 4*(1<<16-2) // the inode counts in words, 16 bits
)

// xattrPrefixes are the beginnings of names that the format stores as a number.
// The ACL names are stored as the number alone.
var xattrPrefixes = []struct {
	prefix string
	index  uint8
	whole  bool
}{
	{"user.", 1, false},
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"trusted.", 4, false},
	{"security.", 6, false},
}

// StoresXattr tells whether the format can store an xattr of this full name. Add
// refuses others.
func StoresXattr(name string) bool {
	_, _, ok := splitXattr(name)
	return ok && len(name) <= maxXattrName && strings.IndexByte(name, 0) < 0
}

// splitXattr cuts a full name into number and rest.
func splitXattr(name string) (index uint8, rest string, ok bool) {
	for _, p := range xattrPrefixes {
		if rest, ok := strings.CutPrefix(name, p.prefix); ok && p.whole == (rest == "") {
			return p.index, rest, true
		}
	}
	return 0, "", false
}

// xattrTable keeps each (name, value) and each set of them once. Sets are
// numbered from 1, since 0 means none.
type xattrTable struct {
	pairNumber map[string]uint32
	pairs      []xattrPair
	setNumber  map[string]uint32
	sets       []xattrSet

	order   []uint32 // scratch
	scratch []byte
}

// xattrPair is a name with its value.
type xattrPair struct {
	key     string // name index, rest of the name, NUL, value
	nameLen int
	uses    uint32 // inodes that have it; known when planning
	shared  uint32 // place in the shared area in words, plus 1; 0 for none
}

func (p *xattrPair) index() uint8  { return p.key[0] }
func (p *xattrPair) name() string  { return p.key[1 : 1+p.nameLen] }
func (p *xattrPair) value() string { return p.key[2+p.nameLen:] }

// size is what the pair takes where it is stored, in bytes.
func (p *xattrPair) size() int64 {
	return alignUp(int64(xattrEntrySize+len(p.key)-2), xattrAlign)
}

// xattrSet is all xattrs of an inode.
type xattrSet struct {
	pairs string // pair numbers, 4 bytes each, in the order of the names
	uses  uint32 // inodes that have it
	size  int64  // bytes behind the inode; known when planned, as is
	ids   uint8  // the number of its pairs that lie in the shared area
}

func (s *xattrSet) len() int { return len(s.pairs) / 4 }
func (s *xattrSet) pair(i int) uint32 {
	return binary.NativeEndian.Uint32([]byte(s.pairs[4*i : 4*i+4]))
}

func (t *xattrTable) init() {
	t.pairNumber = make(map[string]uint32)
	t.setNumber = make(map[string]uint32)
	t.sets = make([]xattrSet, 1)
}

// intern returns the number of the set of these xattrs.
func (t *xattrTable) intern(xattrs []Xattr) (uint32, error) {
	if len(xattrs) == 0 {
		return 0, nil
	}
	t.order = t.order[:0]
	body := int64(xattrHeaderSize)
	for _, x := range xattrs {
		id, err := t.internPair(x)
		if err != nil {
			return 0, err
		}
		t.order = append(t.order, id)
		body += t.pairs[id].size()
	}
	if body > maxXattrBody {
		return 0, invalid("%d xattrs take %d bytes, more than %d", len(xattrs), body, maxXattrBody)
	}
	slices.SortFunc(t.order, func(a, b uint32) int { return comparePairs(&t.pairs[a], &t.pairs[b]) })
	t.scratch = t.scratch[:0]
	for i, id := range t.order {
		if i > 0 && comparePairs(&t.pairs[id], &t.pairs[t.order[i-1]]) == 0 {
			return 0, invalid("xattr %d:%q is given twice", t.pairs[id].index(), t.pairs[id].name())
		}
		t.scratch = binary.NativeEndian.AppendUint32(t.scratch, id)
	}
	set, ok := t.setNumber[string(t.scratch)]
	if !ok {
		set = uint32(len(t.sets))
		key := string(t.scratch)
		t.sets = append(t.sets, xattrSet{pairs: key})
		t.setNumber[key] = set
	}
	t.sets[set].uses++
	return set, nil
}

func (t *xattrTable) internPair(x Xattr) (uint32, error) {
	index, rest, _ := splitXattr(x.Name)
	if !StoresXattr(x.Name) {
		return 0, invalid("xattr %q: the format cannot store such a name", x.Name)
	}
	if len(x.Value) > maxXattrValue {
		return 0, invalid("xattr %q has %d bytes, more than %d", x.Name, len(x.Value), maxXattrValue)
	}
	t.scratch = append(t.scratch[:0], index)
	t.scratch = append(t.scratch, rest...)
	t.scratch = append(t.scratch, 0)
	t.scratch = append(t.scratch, x.Value...)
	if id, ok := t.pairNumber[string(t.scratch)]; ok {
		return id, nil
	}
	id := uint32(len(t.pairs))
	key := string(t.scratch)
	t.pairs = append(t.pairs, xattrPair{key: key, nameLen: len(rest)})
	t.pairNumber[key] = id
	return id, nil
}

// comparePairs orders by name; values do not count.
func comparePairs(a, b *xattrPair) int {
	if a.index() != b.index() {
		return int(a.index()) - int(b.index())
	}
	return strings.Compare(a.name(), b.name())
}

// count learns which pairs several inodes have. Those are stored once, in the
// shared area, and named by a word in each inode.
func (t *xattrTable) count() {
	for i := range t.sets {
		s := &t.sets[i]
		for k := range s.len() {
			t.pairs[s.pair(k)].uses += s.uses
		}
	}
}

// split calls inline or shared for each pair of a set, in order.
func (t *xattrTable) split(s *xattrSet, shared, inline func(*xattrPair)) {
	ids := 0
	for k := range s.len() {
		p := &t.pairs[s.pair(k)]
		if p.uses > 1 && ids < maxSharedIDs {
			ids++
			shared(p)
		} else {
			inline(p)
		}
	}
}

// planXattrs fixes the size of a set behind its inodes when the first of them is
// placed, and a place in the shared area for those of its pairs that belong there.
func (p *plan) planXattrs(set uint32) int64 {
	t := &p.w.xattrs
	s := &t.sets[set]
	if s.size != 0 || set == 0 {
		return s.size
	}
	s.size = xattrHeaderSize
	t.split(s, func(x *xattrPair) {
		s.size += sharedIDSize
		s.ids++
		if x.shared == 0 {
			x.shared = uint32(p.sharedSize/xattrAlign) + 1
			p.shared = append(p.shared, x)
			p.sharedSize += x.size()
		}
	}, func(x *xattrPair) {
		s.size += x.size()
	})
	return s.size
}

// writeXattrs writes what lies between an inode and its data. base is the place
// of the shared area in words, from the block that the superblock names.
func (t *xattrTable) writeXattrs(o *output, set, base uint32) {
	s := &t.sets[set]
	o.next(xattrHeaderSize)[4] = s.ids
	t.split(s, func(x *xattrPair) {
		binary.LittleEndian.PutUint32(o.next(sharedIDSize), base+x.shared-1)
	}, func(*xattrPair) {})
	t.split(s, func(*xattrPair) {}, func(x *xattrPair) { writeXattr(o, x) })
}

func writeXattr(o *output, x *xattrPair) {
	end := o.pos() + x.size()
	b := o.next(xattrEntrySize)
	b[0] = uint8(len(x.name()))
	b[1] = x.index()
	binary.LittleEndian.PutUint16(b[2:], uint16(len(x.value())))
	o.writeString(x.name())
	o.writeString(x.value())
	o.zeroTo(end)
}
