// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"math/bits"
)

// The disk format, as far as this package writes it. All integers are little-endian.

const (
	blockBits = 12

	superOffset = 1024
	superSize   = 128
	superMagic  = 0xE0F5E1E2

	// What follows the superblock: the compression configs, if the image has
	// clusters, and the device table, which is addressed in units of one slot.
	configOffset   = superOffset + superSize
	deviceSlotSize = 128

	// An inode begins at a multiple of inodeAlign; that multiple is its number (nid).
	inodeAlign      = 32
	compactSize     = 32
	extendedSize    = 64
	maxRootNid      = 1<<16 - 1 // the superblock has 16 bits for the root
	maxNid          = 1<<32 - 1 // own limit: 128 GiB of inodes
	maxImageBlocks  = 1<<32 - 2 // block addresses have 32 bits, all ones means none
	noBlock         = 1<<32 - 1
	direntSize      = 12
	maxNameLen      = 255
	maxTargetLen    = 4095
	maxLabelLen     = 16
	maxTagLen       = 64
	chunkIndexSize  = 8
	chunkIndexForm  = 0x20 // chunk format: 8-byte indexes with a device id
	maxChunkBits    = 31   // log2 of blocks per chunk
	maxChunkIndexes = 1 << 27

	mapHeaderSize  = 16 // eight of them used, and all that a packed content has
	packedMapSize  = 8
	packedMapFlag  = 1 << 63 // the rest of the header is an offset
	indexEntrySize = 8
)

// The algorithms by their number on disk.
const (
	diskLZ4  = 0
	diskZstd = 3
)

// Bits of a map header that allow clusters of several blocks.
const (
	adviseBigHead1 = 0x2
	adviseBigHead2 = 0x4
)

// What an index entry says about the block of decoded content that it stands for.
const (
	entryPlain      = 0 // it is stored, the entry names where
	entryHead1      = 1 // a cluster of the header's first algorithm begins
	entryNonHead    = 2 // it belongs to the cluster that began some blocks back
	entryHead2      = 3 // a cluster of the header's second algorithm begins
	entryBlockCount = 0x800
)

// Feature bits. The incompatible ones are version gates for kernels that would
// misread the image, so each is set exactly when the image needs it.
const (
	compatChecksum = 0x1
	compatMtime    = 0x2 // timestamps are mtimes

	incompatZeroPadding = 0x1 // compressed bytes lie at the end of their blocks
	incompatConfigs     = 0x2 // configs follow the superblock; clusters of several blocks
	incompatChunked     = 0x4
	incompatDeviceTable = 0x8 // also: files of two algorithms, which lie on devices here
	incompatFragments   = 0x20
)

// layout is how the data of an inode is stored; the low bits are those of i_format.
type layout uint8

const (
	layoutPlain      layout = 0 // whole blocks in the image
	layoutCompressed layout = 1 // index of clusters behind the inode, data on a device
	layoutInline     layout = 2 // whole blocks, the tail behind the inode
	layoutChunked    layout = 4 // chunk indexes behind the inode, data on devices

	layoutBits = 7
	// On disk layoutPacked is layoutCompressed; its map header makes the difference.
	layoutPacked = layoutCompressed | (layoutBits + 1)
)

// format is the i_format of an inode of this layout in its small form.
func (l layout) format() uint16 { return uint16(l&layoutBits) << 1 }

// superblock holds the variable fields; see encode for the constant ones.
type superblock struct {
	incompat   uint32
	rootNid    uint16
	inodes     uint64
	epoch      int64
	epochNsec  uint32
	blocks     uint32
	xattrBlock uint32 // base of shared xattrs
	uuid       [16]byte
	label      string
	algorithms uint16
	devices    uint16
	devicesAt  int64 // their table, in bytes
	packedNid  uint32
}

// encode fills b, which is zero, except for the checksum.
func (s *superblock) encode(b []byte) {
	le := binary.LittleEndian
	le.PutUint32(b[0:], superMagic)
	le.PutUint32(b[8:], compatChecksum|compatMtime)
	b[12] = blockBits
	le.PutUint16(b[14:], s.rootNid)
	le.PutUint64(b[16:], s.inodes)
	le.PutUint64(b[24:], uint64(s.epoch))
	le.PutUint32(b[32:], s.epochNsec)
	le.PutUint32(b[36:], s.blocks)
	// b[40:44], meta_blkaddr: nids count from the start of the image.
	le.PutUint32(b[44:], s.xattrBlock)
	copy(b[48:64], s.uuid[:])
	copy(b[64:80], s.label)
	le.PutUint32(b[80:], s.incompat)
	le.PutUint16(b[84:], s.algorithms)
	if s.devices > 0 {
		le.PutUint16(b[86:], s.devices)
		le.PutUint16(b[88:], uint16(s.devicesAt/deviceSlotSize))
	}
	le.PutUint64(b[96:], uint64(s.packedNid))
}

// configs are the records behind the superblock, one per algorithm: its length
// without these two bytes, and its limits. The kernel sizes buffers by them.
func (c *compression) configs() []byte {
	le := binary.LittleEndian
	var b []byte
	if c.algorithms&(1<<diskLZ4) != 0 {
		b = le.AppendUint16(b, 14)
		b = le.AppendUint16(b, math.MaxUint16) // distance
		b = le.AppendUint16(b, max(1, c.lz4Blocks))
		b = append(b, make([]byte, 10)...)
	}
	if c.algorithms&(1<<diskZstd) != 0 {
		b = le.AppendUint16(b, 6)
		// The format, and log2 of the window in KiB.
		b = append(b, 0, byte(bits.Len(MaxCluster>>10)-1), 0, 0, 0, 0)
	}
	return b
}

// devicesAt is where the device table begins.
func (c *compression) devicesAt() int64 {
	return alignUp(configOffset+int64(len(c.configs())), deviceSlotSize)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sealFirstBlock puts the checksum into the superblock. It covers everything
// else from the superblock to the end of the first block, inodes included. The
// kernel's CRC lacks the final inversion that crc32 does.
func sealFirstBlock(block []byte) {
	b := block[superOffset:BlockSize]
	binary.LittleEndian.PutUint32(b[4:], ^crc32.Checksum(b, castagnoli))
}

func (d *Device) encode(b []byte) {
	copy(b[:maxTagLen], d.Tag)
	binary.LittleEndian.PutUint32(b[64:], d.Blocks)
	binary.LittleEndian.PutUint32(b[68:], d.UnifiedAddr)
}

// encodeCompact fills the 32 bytes of b, which are zero. The mtime of a compact
// inode is the epoch of the superblock.
func (n *node) encodeCompact(b []byte, xattrCount uint16, union, ino uint32) {
	le := binary.LittleEndian
	le.PutUint16(b[0:], n.layout.format())
	le.PutUint16(b[2:], xattrCount)
	le.PutUint16(b[4:], n.mode)
	le.PutUint16(b[6:], uint16(n.nlink))
	le.PutUint32(b[8:], uint32(n.size))
	le.PutUint32(b[16:], union)
	le.PutUint32(b[20:], ino)
	le.PutUint16(b[24:], uint16(n.uid))
	le.PutUint16(b[26:], uint16(n.gid))
}

// encodeExtended fills the 64 bytes of b, which are zero.
func (n *node) encodeExtended(b []byte, xattrCount uint16, union, ino uint32) {
	le := binary.LittleEndian
	le.PutUint16(b[0:], 1|n.layout.format())
	le.PutUint16(b[2:], xattrCount)
	le.PutUint16(b[4:], n.mode)
	// b[6:8] are bits 32-47 of block addresses on new kernels and must stay 0.
	le.PutUint64(b[8:], uint64(n.size))
	le.PutUint32(b[16:], union)
	le.PutUint32(b[20:], ino)
	le.PutUint32(b[24:], n.uid)
	le.PutUint32(b[28:], n.gid)
	le.PutUint64(b[32:], uint64(n.mtime))
	le.PutUint32(b[40:], n.nsec)
	le.PutUint32(b[44:], n.nlink)
}

func putDirent(b []byte, nid uint64, nameOff int, fileType uint8) {
	binary.LittleEndian.PutUint64(b[0:], nid)
	binary.LittleEndian.PutUint16(b[8:], uint16(nameOff))
	b[10] = fileType
	b[11] = 0
}

func putChunkIndex(b []byte, device uint16, block uint32) {
	binary.LittleEndian.PutUint16(b[0:], 0) // high bits of the block address
	binary.LittleEndian.PutUint16(b[2:], device)
	binary.LittleEndian.PutUint32(b[4:], block)
}

// putMapHeader fills the header of an index whose entries name these algorithms;
// all are those of the image.
func putMapHeader(b []byte, heads [2]Algorithm, all uint16) {
	if heads[0] == Stored { // a number has to be there, and should be one that the kernel can expect
		b[6] = byte(bits.TrailingZeros16(all))
		return
	}
	b[4], b[6] = adviseBigHead1, heads[0].disk()
	if heads[1] != Stored {
		b[4] |= adviseBigHead2
		b[6] |= heads[1].disk() << 4
	}
}

func (a Algorithm) disk() byte {
	if a == LZ4 {
		return diskLZ4
	}
	return diskZstd
}

// putHead fills the entry of a block at which a cluster begins.
func putHead(b []byte, kind uint16, block uint32) {
	binary.LittleEndian.PutUint16(b[0:], kind)
	binary.LittleEndian.PutUint32(b[4:], block)
}

// putNonHead fills the entry of a further block of a cluster: the distance to
// its first one, or the cluster's size, and the distance to the next head.
func putNonHead(b []byte, back, on uint16) {
	binary.LittleEndian.PutUint16(b[0:], entryNonHead)
	binary.LittleEndian.PutUint16(b[4:], back)
	binary.LittleEndian.PutUint16(b[6:], on)
}

// putEnd fills the entry of the block in which the file ends, cut bytes into it.
func putEnd(b []byte, cut uint16) {
	binary.LittleEndian.PutUint16(b[0:], entryPlain)
	binary.LittleEndian.PutUint16(b[2:], cut)
}

// alignUp rounds n up to a multiple of unit, a power of two.
func alignUp(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }
