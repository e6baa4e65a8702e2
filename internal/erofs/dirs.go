// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// dir is what a directory has beyond its node.
//
// Its entries are a list while the tree grows, and a range of plan.entries, in
// disk order, from then on.
type dir struct {
	last  uint32 // the entry entered last
	count uint32 // entries, "." and ".." included
	dot   uint32 // the entry "."; ".." is the next one
	link  uint32 // the entry that names this directory, 0 for none

	first uint32 // plan.entries[first:first+count] are its entries, sorted
	tail  uint32 // index into plan.entries of the first one in the last block
}

func (d *dir) dotdot() uint32 { return d.dot + 1 }

// entry is a name in a directory. Entry 0 is the "." of the root, so 0 ends lists.
type entry struct {
	name  uint64 // ref<<8 | length
	child Ino
	next  uint32 // the entry entered before it in the same directory
}

func (w *Writer) name(e uint32) []byte {
	name := w.entries.at(e).name
	return w.bytes.get(ref(name>>8), int(name&0xff))
}

// addDir gives directory i its "." and "..". Until it is linked, its parent is itself.
func (w *Writer) addDir(i Ino) uint32 {
	d := dir{dot: w.entries.n}
	w.enter(&d, ".", i)
	w.enter(&d, "..", i)
	return w.dirs.add(d)
}

func (w *Writer) enter(d *dir, name string, child Ino) uint32 {
	e := w.entries.add(entry{
		name:  uint64(put(&w.bytes, name))<<8 | uint64(len(name)),
		child: child,
		next:  d.last,
	})
	d.last = e
	d.count++
	return e
}

func (w *Writer) linkDir(p *node, parent Ino, name string, c *node, child Ino) error {
	d := w.dirs.at(uint32(c.data))
	if child == RootIno || d.link != 0 {
		return invalid("a directory can be linked only once")
	}
	d.link = w.enter(w.dirs.at(uint32(p.data)), name, child)
	w.entries.at(d.dotdot()).child = parent
	p.nlink++
	return nil
}

// sortKey lets most comparisons end at the first eight bytes of the names. Names
// hold no NUL, so padding with zeros keeps the order.
type sortKey struct {
	prefix uint64
	entry  uint32
}

func prefix(name []byte) uint64 {
	if len(name) >= 8 {
		return binary.BigEndian.Uint64(name)
	}
	var b [8]byte
	copy(b[:], name)
	return binary.BigEndian.Uint64(b[:])
}

// sortDir appends the entries of directory i to p.entries in the order of their
// unsigned bytes, in which "." and ".." have no special place, and computes the
// size of the directory.
func (p *plan) sortDir(i Ino) error {
	n := p.w.nodes.at(uint32(i))
	d := p.w.dirs.at(uint32(n.data))

	// The list runs backwards; filling from the end restores the caller's order,
	// which is often sorted already.
	keys := slices.Grow(p.keys[:0], int(d.count))[:d.count]
	p.keys = keys
	for k, e := len(keys)-1, d.last; k >= 0; k, e = k-1, p.w.entries.at(e).next {
		keys[k] = sortKey{prefix(p.w.name(e)), e}
	}
	slices.SortFunc(keys, func(a, b sortKey) int {
		if c := cmp.Compare(a.prefix, b.prefix); c != 0 {
			return c
		}
		return bytes.Compare(p.w.name(a.entry), p.w.name(b.entry))
	})
	d.first = uint32(len(p.entries))
	for k, key := range keys {
		if k > 0 && key.prefix == keys[k-1].prefix && bytes.Equal(p.w.name(key.entry), p.w.name(keys[k-1].entry)) {
			return invalid("directory %s: name %q occurs twice", p.w.path(i), p.w.name(key.entry))
		}
		p.entries = append(p.entries, key.entry)
	}

	end := d.first + d.count
	for at := d.first; at < end; {
		next, used := p.dirBlock(at, end)
		if d.tail = at; next < end {
			used = BlockSize
		}
		n.size += int64(used)
		at = next
	}
	return nil
}

// dirBlock tells which of the sorted entries [first, end) share a block with the
// first: those before next. They take used bytes.
func (p *plan) dirBlock(first, end uint32) (next uint32, used int) {
	for next = first; next < end; next++ {
		need := direntSize + int(p.w.entries.at(p.entries[next]).name&0xff)
		if used+need > BlockSize {
			break
		}
		used += need
	}
	return next, used
}

// putDirBlock encodes the sorted entries [first, next) into b: the fixed-size
// records, then the names. What remains of b is zero and ends the last name.
func (p *plan) putDirBlock(b []byte, first, next uint32) {
	nameOff := direntSize * int(next-first)
	for k, e := range p.entries[first:next] {
		child := p.w.nodes.at(uint32(p.w.entries.at(e).child))
		putDirent(b[k*direntSize:], uint64(child.nid), nameOff, fileType(child.mode))
		nameOff += copy(b[nameOff:], p.w.name(e))
	}
}

// fileType is the d_type that readdir shows without looking at the inode.
func fileType(mode uint16) uint8 {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 1
	case unix.S_IFDIR:
		return 2
	case unix.S_IFCHR:
		return 3
	case unix.S_IFBLK:
		return 4
	case unix.S_IFIFO:
		return 5
	case unix.S_IFSOCK:
		return 6
	case unix.S_IFLNK:
		return 7
	}
	return 0
}
