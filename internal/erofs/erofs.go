// SPDX-License-Identifier: Apache-2.0

// Package erofs owns the EROFS disk format: it turns a tree of inodes, given
// one by one, into a metadata image that the Linux kernel mounts.
//
//	Add, Link ─▶ tree in memory ─▶ plan (every offset) ─▶ WriteTo: one sequential pass
//
// Bytes in: metadata, names, xattrs, the content of tiny files, and for all
// other files the place of their content on extra devices (packs). Bytes out:
// an image of 4 KiB blocks:
//
//	0     1024         1152                                        block aligned
//	│ zero │ superblock │ algorithms │ device slots │ inodes │ shared xattrs │ data blocks │
//
// "algorithms" is there when some content is compressed. "inodes" is the dense
// part: each inode with its xattrs and, right behind them, the tail of its data,
// its chunk table or the index of its clusters; the root comes first. "data
// blocks" holds whole blocks of directories, and content that was given inline
// but is too long to sit behind its inode.
//
// Content on a device has three forms. Extents are stored as they are, and read
// without a copy. Clusters are compressed one by one, and their blocks are
// named by unified address: an inode with clusters lies on one device, for
// kernels confuse neighbours on two. Small contents lie back to back in the
// content of one hidden file, the packed inode, which has clusters itself; each
// of them costs the image eight bytes (the format calls it a fragment).
//
// The package compresses nothing and never sees a device: that the blocks of a
// cluster hold what Cluster demands is up to the caller.
//
// The package knows nothing of containers. It keeps invariant 5 of the design
// (same tree, same bytes: what is written depends on the tree alone, there is
// no clock, no map order and no randomness in it), and its share of invariant
// 1 (every attribute that the format can hold is stored exactly; what it cannot
// hold is an error, never a silent change).
//
// A Writer is used by one goroutine at a time. Different Writers are independent.
package erofs

// BlockSize is the unit of block addresses and of the image's length, in bytes.
const BlockSize = 4096

// Options describes the image as a whole.
type Options struct {
	// Epoch and EpochNsec are the time of the file system. An inode whose mtime
	// equals it can be stored in half the space, so it should be the most common
	// mtime of the tree.
	Epoch     int64  // seconds since 1970, may be negative
	EpochNsec uint32 // 0..999999999

	UUID  [16]byte
	Label string // volume name, at most 16 bytes, no NUL

	// Devices are the extra devices that extents refer to; device id n is
	// Devices[n-1]. A mount must name exactly these, in this order.
	Devices []Device
}

// Device is one extra device of the image: a file or block device that holds data.
type Device struct {
	// Tag is free text of at most 64 bytes without NUL. The kernel never verifies it.
	Tag string
	// Blocks is the size of the device. Extents may not reach beyond it.
	Blocks uint32
	// UnifiedAddr is the block at which the device appears in the unified address
	// space, or 0 if it has no place there, and no cluster then. It must lie above
	// the image's own blocks, since a device hides what it overlaps.
	UnifiedAddr uint32
}

// Xattr is one extended attribute.
//
// The format can store names that start with "user.", "trusted." or
// "security.", and the two ACL names "system.posix_acl_access" and
// "system.posix_acl_default" (with values in the kernel's xattr form); see
// StoresXattr.
type Xattr struct {
	Name  string // full name, at most 255 bytes
	Value []byte // at most 65535 bytes
}

// Extent is a run of file content.
type Extent struct {
	Device uint16 // 1-based number of a Device; 0 is a hole (zeros), Block is then ignored
	Block  uint32 // first block, relative to the device
	// Length is in bytes and above 0. It is a multiple of BlockSize in all
	// extents but the last of a file.
	Length int64
}

// Algorithm is how a cluster is compressed.
type Algorithm uint8

const (
	Stored Algorithm = iota // not at all
	LZ4
	Zstd
)

// MaxCluster is the largest input of a cluster, in bytes.
const MaxCluster = 128 << 10

// Cluster is a run of file content that was compressed as one ("physical
// cluster"), into whole blocks.
//
// A compressed cluster is zeros and then one LZ4 block (without a frame), or one
// zstd frame (without a dictionary, with its content size, its window at most
// MaxCluster), which ends with the last block; the zeros are shorter than a
// block. A stored one is the content itself.
//
// Any number of clusters, of one file or of many, may name the same blocks.
type Cluster struct {
	Algorithm Algorithm
	// Blocks is what the cluster takes on the device. If it is compressed and
	// decodes to more than one block, it must save at least one.
	Blocks uint32
	Block  uint32 // first block, relative to the device
	// Length is in decoded bytes, 1..MaxCluster. It is a multiple of BlockSize in
	// all clusters but the last of a file.
	Length uint32
}

// Inode is what Add stores. The Writer keeps no reference to its slices.
type Inode struct {
	Mode      uint32 // S_IFMT type and the 12 permission bits, as in stat(2)
	UID, GID  uint32
	Mtime     int64  // seconds since 1970, may be negative
	MtimeNsec uint32 // 0..999999999

	Rdev uint64 // char and block devices: number in the form of unix.Mkdev

	// Regular files: Size bytes, which are either all in Inline, or the sum of
	// Extents, or the sum of Clusters, or in the packed inode, or 0. Size is
	// ignored for other types.
	Size    int64
	Inline  []byte
	Extents []Extent

	Clusters []Cluster
	Device   uint16 // 1-based number of the Device of all Clusters

	Packed   bool   // the content is that of the packed inode (see SetPacked)
	PackedAt uint64 // from this offset on

	Target string // symlinks: 1..4095 bytes, no NUL

	Xattrs []Xattr // in any order, each name once
}

// Ino names an inode inside one Writer. It is not the inode number that the
// mounted file system shows.
type Ino uint32

// RootIno is the root directory, which NewWriter adds.
const RootIno Ino = 0
