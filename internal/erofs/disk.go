// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"encoding/binary"
	"hash/crc32"
)

// The disk format, as far as this package writes it. All integers are little-endian.

const (
	blockBits = 12

	superOffset = 1024
	superSize   = 128
	superMagic  = 0xE0F5E1E2

	// The device table is addressed in units of one slot and follows the superblock.
	deviceSlotSize    = 128
	deviceTableOffset = superOffset + superSize

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
)

// Feature bits. The incompatible ones are version gates for kernels that would
// misread the image, so each is set exactly when the image needs it.
const (
	compatChecksum = 0x1
	compatMtime    = 0x2 // timestamps are mtimes

	incompatChunked     = 0x4
	incompatDeviceTable = 0x8
)

// layout is how the data of an inode is stored; the values are those of i_format.
type layout uint8

const (
	layoutPlain   layout = 0 // whole blocks in the image
	layoutInline  layout = 2 // whole blocks, the tail behind the inode
	layoutChunked layout = 4 // chunk indexes behind the inode, data on devices
)

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
	devices    uint16
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
	if s.devices > 0 {
		le.PutUint16(b[86:], s.devices)
		le.PutUint16(b[88:], deviceTableOffset/deviceSlotSize)
	}
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
	le.PutUint16(b[0:], uint16(n.layout)<<1)
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
	le.PutUint16(b[0:], 1|uint16(n.layout)<<1)
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

// alignUp rounds n up to a multiple of unit, a power of two.
func alignUp(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }
