// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A small reader of compressed inodes, which knows the format and shares no code
// with the Writer. It is stricter than the kernel, and judges what the fuzzer
// finds without a mount.

// checkIndexes compares the clusters of all inodes.
func checkIndexes(t testing.TB, m *model, image []byte) {
	t.Helper()
	if !m.hasClusters() {
		return
	}
	w, err := m.writer() // to learn where its inodes are
	if err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if _, err := w.WriteTo(&again); err != nil || !bytes.Equal(again.Bytes(), image) {
		t.Fatalf("written again: %v, differs", err)
	}
	le := binary.LittleEndian
	check := func(what string, nid uint64, size int64, device uint16, clusters []Cluster) {
		t.Helper()
		got, _, err := readIndex(image, int64(nid)*32, size)
		if err == nil && !slices.Equal(got, expandStored(clusters, m.opts.Devices[device-1].UnifiedAddr)) {
			err = fmt.Errorf("clusters %v, want %v of device %d", got, clusters, device)
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	fragments := false
	for i, in := range m.inodes {
		nid := uint64(w.nodes.at(uint32(i)).nid)
		switch what := fmt.Sprint("inode ", i); {
		case in.Mode&unix.S_IFMT != unix.S_IFREG:
		case in.Clusters != nil:
			check(what, nid, in.Size, in.Device, in.Clusters)
		case in.Packed:
			fragments = true
			if _, at, err := readIndex(image, int64(nid)*32, in.Size); err != nil || at != in.PackedAt {
				t.Errorf("%s: lies at %d of the packed inode, %v, want %d", what, at, err, in.PackedAt)
			}
		}
	}
	super := image[1024:]
	packedNid := le.Uint64(super[96:])
	if bit := le.Uint32(super[80:])&0x20 != 0; bit != fragments || (packedNid != 0) != fragments {
		t.Errorf("feature bit %v and nid %d of the packed inode, want fragments: %v", bit, packedNid, fragments)
	}
	if fragments {
		check("packed inode", packedNid, length(m.packed), m.packedDevice, m.packed)
		if mode := le.Uint16(image[packedNid*32+4:]); mode != 0o100644 {
			t.Errorf("packed inode has mode %o", mode)
		}
	}
}

// expandStored is how the index shows clusters: by unified address, and those
// that are stored block by block.
func expandStored(clusters []Cluster, base uint32) (out []Cluster) {
	for _, c := range clusters {
		c.Block += base
		for c.Algorithm == Stored && c.Length > BlockSize {
			out = append(out, Cluster{Stored, 1, c.Block, BlockSize})
			c.Block, c.Blocks, c.Length = c.Block+1, c.Blocks-1, c.Length-BlockSize
		}
		out = append(out, c)
	}
	return out
}

// readIndex reads the clusters of the inode at an offset, or, if it has none, its
// offset in the packed inode.
func readIndex(image []byte, at, size int64) (clusters []Cluster, fragment uint64, err error) {
	le := binary.LittleEndian
	inode := image[at:]
	head, gotSize, blocks := int64(32), int64(le.Uint32(inode[8:])), le.Uint32(inode[16:])
	if inode[0]&1 != 0 {
		head, gotSize = 64, int64(le.Uint64(inode[8:]))
	}
	if layout := le.Uint16(inode) >> 1; layout != 1 || gotSize != size {
		return nil, 0, fmt.Errorf("layout %d, size %d", layout, gotSize)
	}
	if n := int64(le.Uint16(inode[2:])); n > 0 {
		head += 12 + 4*(n-1)
	}
	header := image[(at+head+7)&^7:]
	if h := le.Uint64(header); h>>63 != 0 {
		if blocks != 0 {
			err = fmt.Errorf("%d blocks", blocks)
		}
		return nil, h &^ (1 << 63), err
	}
	if le.Uint32(header) != 0 || header[5] != 0 || header[7] != 0 || le.Uint64(header[8:]) != 0 {
		return nil, 0, fmt.Errorf("map header %x", header[:16])
	}
	advise := header[4]
	algorithms := map[byte]Algorithm{0: LZ4, 3: Zstd}

	entries := int((size + BlockSize - 1) / BlockSize)
	entry := func(k int) (kind, offset uint16, union []byte) {
		e := header[16+8*k:][:8]
		return le.Uint16(e), le.Uint16(e[2:]), e[4:]
	}
	sum := uint32(0)
	for k := 0; k < entries; {
		kind, offset, union := entry(k)
		c := Cluster{Blocks: 1, Block: le.Uint32(union), Length: BlockSize}
		switch kind {
		case 0:
		case 1:
			c.Algorithm = algorithms[header[6]&15]
		case 3:
			c.Algorithm = algorithms[header[6]>>4]
		default:
			return nil, 0, fmt.Errorf("entry %d has type %#x, want a head", k, kind)
		}
		if offset != 0 {
			return nil, 0, fmt.Errorf("entry %d of %d begins inside its block, at %d", k, entries, offset)
		}
		first := k
		end := entries // of the cluster, in entries
		for k++; kind != 0 && k < entries; k++ {
			next, offset, union := entry(k)
			if next != 2 {
				if offset == 0 {
					end = k
					break
				}
				if next != 0 || k != entries-1 || int64(offset) != size%BlockSize || le.Uint32(union) != 0 {
					return nil, 0, fmt.Errorf("entry %d of %d: type %d at offset %d", k, entries, next, offset)
				}
				end = k + 1
				continue
			}
			back, on := le.Uint16(union), int(le.Uint16(union[2:]))
			if k == first+1 {
				if back>>11 != 1 || advise&(map[uint16]byte{1: 2, 3: 4}[kind]) == 0 {
					return nil, 0, fmt.Errorf("entry %d: block count %#x, advise %#x", k, back, advise)
				}
				c.Blocks = uint32(back & 0x7ff)
			} else if int(back) != k-first {
				return nil, 0, fmt.Errorf("entry %d: head is %d back, says %d", k, k-first, back)
			}
			if kind, _, _ := entry(min(k+on, entries-1)); on < 1 || k+on > entries || k+on < entries && kind == 2 {
				return nil, 0, fmt.Errorf("entry %d: next head is %d on, where the type is %d", k, on, kind)
			}
		}
		if kind == 0 {
			end = k
		}
		c.Length = uint32(min(int64(end-first)*BlockSize, size-int64(first)*BlockSize))
		sum += c.Blocks
		clusters = append(clusters, c)
	}
	if sum != blocks {
		return nil, 0, fmt.Errorf("%d blocks in the inode, %d in the index", blocks, sum)
	}
	return clusters, 0, nil
}
