// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Writer collects a tree and writes it as an image.
//
// Use: NewWriter, then any number of Add and Link in any order that names what
// was added before, then WriteTo. The first error that the input causes stays:
// every later call returns it.
type Writer struct {
	opts Options
	err  error

	nodes    slab[node]
	dirs     slab[dir]
	entries  slab[entry]
	extents  slab[extent]
	clusters slab[cluster]
	bytes    arena // names, symlink targets, inline content
	xattrs   xattrTable

	needs  compression // of the inodes added so far
	packed packedInode

	plan *plan // nil until WriteTo
}

// node is an inode in memory.
type node struct {
	size  int64
	mtime int64
	// data is, by type: the ref of the content (symlink, inline file), the first
	// extent (chunked file) or cluster (compressed file), the offset in the packed
	// inode, the index into dirs (directory), or the encoded device number.
	data   uint64
	nid    uint32 // 0 until planned
	nsec   uint32
	uid    uint32
	gid    uint32
	nlink  uint32
	xattrs uint32 // number of the xattr set, 0 for none
	block  uint32 // first of its data blocks, counted from the first data block of the image
	mode   uint16
	layout layout
	chunk  uint8 // log2 of blocks per chunk
}

func (n *node) isDir() bool { return n.mode&unix.S_IFMT == unix.S_IFDIR }

// invalid is an error about input that the format cannot hold or that contradicts itself.
func invalid(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

// fail makes err the Writer's lasting error.
func (w *Writer) fail(err error) error {
	w.err = fmt.Errorf("erofs: %w", err)
	return w.err
}

// open tells whether input is still accepted.
func (w *Writer) open() error {
	if w.err == nil && w.plan != nil {
		return fmt.Errorf("erofs: the tree is closed by WriteTo: %w", errdefs.ErrFailedPrecondition)
	}
	return w.err
}

// NewWriter starts an image whose root directory is root. Bad options or a root
// that is no directory give an error of kind errdefs.ErrInvalidArgument.
func NewWriter(opts Options, root Inode) (*Writer, error) {
	if err := opts.check(); err != nil {
		return nil, fmt.Errorf("erofs: %w", err)
	}
	if root.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, fmt.Errorf("erofs: %w", invalid("root has mode %#o, not that of a directory", root.Mode))
	}
	opts.Devices = append([]Device(nil), opts.Devices...)
	w := &Writer{opts: opts}
	w.xattrs.init()
	_, err := w.Add(root)
	if err != nil {
		return nil, err
	}
	return w, nil
}

func (o *Options) check() error {
	if o.EpochNsec > 999_999_999 {
		return invalid("epoch has %d nanoseconds", o.EpochNsec)
	}
	if len(o.Label) > maxLabelLen || strings.ContainsRune(o.Label, 0) {
		return invalid("label %q is longer than %d bytes or holds a NUL", o.Label, maxLabelLen)
	}
	if end := configOffset + int64(len(o.Devices))*deviceSlotSize; end > maxRootNid*inodeAlign {
		return invalid("%d devices: their table pushes the root inode out of its 16-bit reach", len(o.Devices))
	}
	var mapped []int // devices with a place in the unified address space
	for i, d := range o.Devices {
		if len(d.Tag) > maxTagLen || strings.ContainsRune(d.Tag, 0) {
			return invalid("device %d: tag %q is longer than %d bytes or holds a NUL", i+1, d.Tag, maxTagLen)
		}
		if uint64(d.UnifiedAddr)+uint64(d.Blocks) > math.MaxUint32 {
			return invalid("device %d: %d blocks at unified address %d leave the 32-bit block space", i+1, d.Blocks, d.UnifiedAddr)
		}
		if d.UnifiedAddr != 0 && d.Blocks != 0 {
			mapped = append(mapped, i)
		}
	}
	slices.SortFunc(mapped, func(a, b int) int { return cmp.Compare(o.Devices[a].UnifiedAddr, o.Devices[b].UnifiedAddr) })
	for k := 1; k < len(mapped); k++ {
		if d := &o.Devices[mapped[k-1]]; d.UnifiedAddr+d.Blocks > o.Devices[mapped[k]].UnifiedAddr {
			return invalid("devices %d and %d overlap in the unified address space", mapped[k-1]+1, mapped[k]+1)
		}
	}
	return nil
}

// Add stores an inode, which becomes part of the tree with its first Link. What
// the format cannot hold gives an error of kind errdefs.ErrInvalidArgument.
func (w *Writer) Add(in Inode) (Ino, error) {
	if err := w.open(); err != nil {
		return 0, err
	}
	i := Ino(w.nodes.n)
	n, err := w.newNode(&in)
	if err != nil {
		return 0, w.fail(fmt.Errorf("add inode %d: %w", i, err))
	}
	if n.isDir() {
		n.nlink = 2
		n.data = uint64(w.addDir(i))
	}
	w.nodes.add(n)
	return i, nil
}

func (w *Writer) newNode(in *Inode) (node, error) {
	n := node{
		mtime: in.Mtime,
		nsec:  in.MtimeNsec,
		uid:   in.UID,
		gid:   in.GID,
		mode:  uint16(in.Mode),
		block: noBlock,
	}
	if in.Mode&^(unix.S_IFMT|0o7777) != 0 {
		return n, invalid("mode %#o has unknown bits", in.Mode)
	}
	if in.MtimeNsec > 999_999_999 {
		return n, invalid("mtime has %d nanoseconds", in.MtimeNsec)
	}
	kind := in.Mode & unix.S_IFMT
	if kind != unix.S_IFREG && (in.Packed || len(in.Inline)+len(in.Extents)+len(in.Clusters) > 0) {
		return n, invalid("mode %#o: only regular files have content", in.Mode)
	}
	if kind != unix.S_IFLNK && in.Target != "" {
		return n, invalid("mode %#o: only symlinks have a target", in.Mode)
	}

	var err error
	switch kind {
	case unix.S_IFREG:
		err = w.setContent(&n, in)
	case unix.S_IFLNK:
		if len(in.Target) == 0 || len(in.Target) > maxTargetLen || strings.IndexByte(in.Target, 0) >= 0 {
			return n, invalid("symlink target of %d bytes: must be 1..%d bytes without NUL", len(in.Target), maxTargetLen)
		}
		n.size = int64(len(in.Target))
		n.data = uint64(put(&w.bytes, in.Target))
	case unix.S_IFCHR, unix.S_IFBLK:
		n.data, err = encodeRdev(in.Rdev)
	case unix.S_IFDIR, unix.S_IFIFO, unix.S_IFSOCK:
	default:
		return n, invalid("mode %#o names no file type", in.Mode)
	}
	if err != nil {
		return n, err
	}
	n.xattrs, err = w.xattrs.intern(in.Xattrs)
	return n, err
}

func (w *Writer) setContent(n *node, in *Inode) error {
	n.size = in.Size
	forms := 0
	for _, given := range []bool{len(in.Inline) > 0, len(in.Extents) > 0, len(in.Clusters) > 0, in.Packed} {
		if given {
			forms++
		}
	}
	switch {
	case in.Size < 0:
		return invalid("size %d is negative", in.Size)
	case forms > 1:
		return invalid("content is given in more than one form")
	case len(in.Extents) > 0:
		return w.setExtents(n, in.Extents)
	case len(in.Clusters) > 0:
		return w.setClusters(n, in.Device, in.Clusters, &w.needs)
	case in.Packed:
		return w.setPacked(n, in.PackedAt)
	case in.Size != int64(len(in.Inline)):
		return invalid("size is %d, but content has %d bytes", in.Size, len(in.Inline))
	case len(in.Inline) > 0:
		n.data = uint64(put(&w.bytes, in.Inline))
	}
	return nil
}

// encodeRdev turns the form of unix.Mkdev into the 32 bits that the kernel stores.
func encodeRdev(rdev uint64) (uint64, error) {
	major, minor := uint64(unix.Major(rdev)), uint64(unix.Minor(rdev))
	if major > 1<<12-1 || minor > 1<<20-1 {
		return 0, invalid("device number %d:%d exceeds 12:20 bits", major, minor)
	}
	return minor&0xff | major<<8 | (minor&^0xff)<<12, nil
}

// Link enters child into the directory dir under name: 1..255 bytes without '/'
// and NUL, not "." or "..". A directory is linked once and the root never; each
// further Link of another inode makes a hard link. Errors are of kind
// errdefs.ErrInvalidArgument. That a name occurs twice in a directory is found
// by WriteTo.
func (w *Writer) Link(dir Ino, name string, child Ino) error {
	if err := w.open(); err != nil {
		return err
	}
	if err := w.link(dir, name, child); err != nil {
		return w.fail(fmt.Errorf("link inode %d as %q in directory %d: %w", child, name, dir, err))
	}
	return nil
}

func (w *Writer) link(parent Ino, name string, child Ino) error {
	if uint32(parent) >= w.nodes.n || uint32(child) >= w.nodes.n {
		return invalid("no such inode")
	}
	if name == "." || name == ".." || len(name) == 0 || len(name) > maxNameLen ||
		strings.IndexByte(name, '/') >= 0 || strings.IndexByte(name, 0) >= 0 {
		return invalid("not a file name")
	}
	p, c := w.nodes.at(uint32(parent)), w.nodes.at(uint32(child))
	if !p.isDir() {
		return invalid("the parent is no directory")
	}
	if c.isDir() {
		return w.linkDir(p, parent, name, c, child)
	}
	w.enter(w.dirs.at(uint32(p.data)), name, child)
	c.nlink++
	return nil
}

// path is where a linked directory lies, for messages.
func (w *Writer) path(i Ino) string {
	if i == RootIno {
		return "/"
	}
	d := w.dirs.at(uint32(w.nodes.at(uint32(i)).data))
	parent := w.entries.at(d.dotdot()).child
	return strings.TrimSuffix(w.path(parent), "/") + "/" + string(w.name(d.link))
}
