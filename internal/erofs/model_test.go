// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// model is a tree as it was given to a Writer: what an image of it has to show.
type model struct {
	opts   Options
	inodes []Inode
	links  []modelLink

	packed       []Cluster // content of the packed inode
	packedDevice uint16
	store        clusterStore

	byDir  map[Ino][]modelLink // filled by index
	counts map[Ino]int
}

type modelLink struct {
	dir   Ino
	name  string
	child Ino
}

// testEpoch is the epoch of most test images.
const testEpoch = 1_700_000_000

func newModel(opts Options) *model {
	if opts.Epoch == 0 {
		opts.Epoch = testEpoch
	}
	return &model{opts: opts, inodes: []Inode{{Mode: unix.S_IFDIR | 0o755, Mtime: opts.Epoch}}, store: clusterStore{}}
}

func (m *model) add(in Inode) Ino {
	m.inodes = append(m.inodes, in)
	return Ino(len(m.inodes) - 1)
}

func (m *model) link(dir Ino, name string, child Ino) {
	m.links = append(m.links, modelLink{dir, name, child})
}

// put adds an inode and links it.
func (m *model) put(dir Ino, name string, in Inode) Ino {
	i := m.add(in)
	m.link(dir, name, i)
	return i
}

func (m *model) mkdir(dir Ino, name string) Ino {
	return m.put(dir, name, Inode{Mode: unix.S_IFDIR | 0o755, Mtime: m.opts.Epoch})
}

// inline puts a file with content in the image.
func (m *model) inline(dir Ino, name string, content []byte) Ino {
	return m.put(dir, name, Inode{Mode: unix.S_IFREG | 0o644, Mtime: m.opts.Epoch, Size: int64(len(content)), Inline: content})
}

// file puts a file with content on devices.
func (m *model) file(dir Ino, name string, extents ...Extent) Ino {
	in := Inode{Mode: unix.S_IFREG | 0o644, Mtime: m.opts.Epoch, Extents: extents}
	for _, e := range extents {
		in.Size += e.Length
	}
	return m.put(dir, name, in)
}

// writer feeds the model to a Writer.
func (m *model) writer() (*Writer, error) {
	w, err := NewWriter(m.opts, m.inodes[0])
	if err != nil {
		return nil, err
	}
	for _, in := range m.inodes[1:] {
		if _, err := w.Add(in); err != nil {
			return nil, err
		}
	}
	for _, l := range m.links {
		if err := w.Link(l.dir, l.name, l.child); err != nil {
			return nil, err
		}
	}
	if m.packed != nil {
		if err := w.SetPacked(m.packedDevice, m.packed); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// image builds the image in memory.
func (m *model) image(t testing.TB) []byte {
	t.Helper()
	w, err := m.writer()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	n, err := w.WriteTo(&out)
	if err != nil {
		t.Fatal(err)
	}
	if n != int64(out.Len()) || n == 0 || n%BlockSize != 0 {
		t.Fatalf("WriteTo says %d bytes, wrote %d", n, out.Len())
	}
	return out.Bytes()
}

// index is called when the model is complete.
func (m *model) index() {
	if m.byDir != nil {
		return
	}
	m.byDir, m.counts = map[Ino][]modelLink{}, map[Ino]int{}
	for i := range m.inodes {
		if m.isDir(Ino(i)) {
			m.counts[Ino(i)] = 2
		}
	}
	for _, l := range m.links {
		m.byDir[l.dir] = append(m.byDir[l.dir], l)
		if m.isDir(l.child) {
			m.counts[l.dir]++
		} else {
			m.counts[l.child]++
		}
	}
}

func (m *model) isDir(i Ino) bool { return m.inodes[i].Mode&unix.S_IFMT == unix.S_IFDIR }

// children are the entries of a directory.
func (m *model) children(dir Ino) []modelLink {
	m.index()
	return m.byDir[dir]
}

// nlink is what stat has to say.
func (m *model) nlink(i Ino) int {
	m.index()
	return m.counts[i]
}

// packBytes is the content of test devices: a pattern that differs between any
// two blocks of any two devices.
func packBytes(b []byte, device uint16, block uint32) {
	var word [8]byte
	for i := 0; i < len(b); i += 8 {
		binary.BigEndian.PutUint16(word[:], device)
		binary.BigEndian.PutUint32(word[2:], block+uint32(i/BlockSize))
		binary.BigEndian.PutUint16(word[6:], uint16(i%BlockSize)+1)
		copy(b[i:], word[:])
	}
}

// content is the bytes [off, off+size) of a regular file.
func (m *model) content(i Ino, off, size int64) []byte {
	in := &m.inodes[i]
	size = min(size, in.Size-off)
	switch {
	case in.Clusters != nil:
		return m.store.content(in.Device, in.Clusters, off, size)
	case in.Packed:
		return m.store.content(m.packedDevice, m.packed, int64(in.PackedAt)+off, size)
	case in.Extents == nil:
		return in.Inline[off : off+size]
	}
	out := make([]byte, 0, size)
	start := int64(0)
	for _, e := range in.Extents {
		from, to := max(off, start), min(off+size, start+e.Length)
		if from < to {
			if e.Device == 0 {
				out = append(out, make([]byte, to-from)...)
			} else {
				first := (from - start) / BlockSize
				last := (to - start + BlockSize - 1) / BlockSize
				b := make([]byte, (last-first)*BlockSize)
				packBytes(b, e.Device, e.Block+uint32(first))
				skip := from - start - first*BlockSize
				out = append(out, b[skip:skip+to-from]...)
			}
		}
		start += e.Length
	}
	return out
}

// spots are the offsets at which a file is compared: everything in small files,
// both sides of all borders in large ones, of clusters those that are not the
// same as the one before.
func (m *model) spots(i Ino) (offsets []int64, size int64) {
	in := &m.inodes[i]
	if in.Size <= 1<<20 {
		return []int64{0}, in.Size
	}
	at := int64(0)
	for k, c := range in.Clusters {
		if k == 0 || c != in.Clusters[k-1] {
			offsets = append(offsets, max(0, at-5000), at, at+int64(c.Length/2))
		}
		at += int64(c.Length)
	}
	for _, e := range in.Extents {
		for _, d := range []int64{-5000, 0, e.Length / 2} {
			if off := at + d; off >= 0 {
				offsets = append(offsets, off)
			}
		}
		at += e.Length
	}
	return append(offsets, max(0, in.Size-9000)), 10000
}

// writePack makes the file of a device: pattern in the blocks that extents name,
// and the clusters.
func (m *model) writePack(t testing.TB, dir string, device uint16) string {
	t.Helper()
	d := m.opts.Devices[device-1]
	f, err := os.Create(filepath.Join(dir, "pack"+string(rune('0'+device))))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(d.Blocks) * BlockSize); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, BlockSize)
	for _, in := range m.inodes {
		for _, e := range in.Extents {
			if e.Device != device {
				continue
			}
			for k := range (e.Length + BlockSize - 1) / BlockSize {
				block := e.Block + uint32(k)
				packBytes(b, device, block)
				if _, err := f.WriteAt(b, int64(block)*BlockSize); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for p, c := range m.store {
		if p.device == device {
			if _, err := f.WriteAt(c.encoded, int64(p.block)*BlockSize); err != nil {
				t.Fatal(err)
			}
		}
	}
	return f.Name()
}
