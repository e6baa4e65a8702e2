// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	goerofs "github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"

	"github.com/squash-snapshotter/squash/internal/erofs"
)

// BenchmarkEROFSWriters writes the same metadata-only image with the writer of
// this project and with that of go-erofs: 8,000 directories and 100,000 files
// with unique names, of which one in twenty is a symlink and the others are one
// extent on a device; times differ. Each starts from the tree in the form that
// its API takes, and writes to a file.
func BenchmarkEROFSWriters(b *testing.B) {
	tree := newBenchTree(8_000, 100_000)
	for _, w := range []struct {
		name  string
		write func(*benchTree, *os.File) error
	}{
		{"squash", (*benchTree).writeSquash},
		{"go-erofs", (*benchTree).writeGoEROFS},
	} {
		b.Run(w.name, func(b *testing.B) {
			file := filepath.Join(b.TempDir(), "image")
			var size int64
			var peak uint64
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				out, err := os.Create(file)
				if err != nil {
					b.Fatal(err)
				}
				stop := watchHeap()
				b.StartTimer()
				err = w.write(tree, out)
				b.StopTimer()
				peak = max(peak, stop())
				if err != nil {
					b.Fatal(err)
				}
				size = tree.check(b, out)
				out.Close()
				b.StartTimer()
			}
			b.ReportMetric(float64(len(tree.inodes))*float64(b.N)/b.Elapsed().Seconds(), "inodes/s")
			b.ReportMetric(float64(size)/(1<<20), "image-MiB")
			b.ReportMetric(float64(peak)/(1<<20), "peak-MiB")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// watchHeap returns a function that ends the watch and tells by how much the
// heap, garbage included, grew at most.
func watchHeap() func() uint64 {
	runtime.GC()
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	read := func() uint64 {
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	before := read()
	var peak atomic.Uint64
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			peak.Store(max(peak.Load(), read()))
			select {
			case <-done:
				return
			case <-tick.C:
			}
		}
	}()
	return func() uint64 {
		close(done)
		<-ended
		return max(peak.Load(), read()) - before
	}
}

// benchTree holds the tree in both forms.
type benchTree struct {
	inodes []erofs.Inode
	parent []erofs.Ino
	names  []string
	dirs   map[string][]fs.DirEntry // sorted, by path
	root   *benchInfo
}

const benchDevice = 1 << 30 // blocks

func newBenchTree(dirs, files int) *benchTree {
	rnd := rand.New(rand.NewPCG(1, 2))
	t := &benchTree{dirs: map[string][]fs.DirEntry{}}
	var paths []string
	add := func(parent int, name string, in erofs.Inode) {
		t.inodes = append(t.inodes, in)
		t.parent = append(t.parent, erofs.Ino(parent))
		t.names = append(t.names, name)
		p := "."
		if name != "" {
			p = path.Join(paths[parent], name)
		}
		info := &benchInfo{in: &in, name: path.Base(p), nlink: 1}
		if in.Mode&unix.S_IFMT == unix.S_IFDIR {
			paths = append(paths, p)
			t.dirs[p] = nil
		}
		if name == "" {
			t.root = info
			return
		}
		t.dirs[paths[parent]] = append(t.dirs[paths[parent]], fs.FileInfoToDirEntry(info))
	}
	const epoch = 1_700_000_000
	add(0, "", erofs.Inode{Mode: unix.S_IFDIR | 0o755, Mtime: epoch})
	for i := range dirs {
		parent := len(paths)*3/4 + rnd.IntN(len(paths)-len(paths)*3/4)
		add(parent, fmt.Sprintf("directory-%d", i), erofs.Inode{Mode: unix.S_IFDIR | 0o755, Mtime: epoch + rnd.Int64N(1e6)})
	}
	block := uint32(0)
	for i := range files {
		in := erofs.Inode{Mode: unix.S_IFREG | 0o644, Mtime: epoch + rnd.Int64N(1e6), MtimeNsec: rnd.Uint32N(1e9)}
		if i%20 == 0 {
			in.Mode, in.Target = unix.S_IFLNK|0o777, fmt.Sprintf("../lib/target-%d.so", i)
		} else {
			in.Size = 1 + rnd.Int64N(1<<15)
			in.Extents = []erofs.Extent{{Device: 1, Block: block, Length: in.Size}}
			block += uint32(in.Size/erofs.BlockSize) + 1
		}
		add(rnd.IntN(len(paths)), fmt.Sprintf("%0*d.txt", 4+rnd.IntN(17), i), in)
	}
	for _, d := range t.dirs {
		slices.SortFunc(d, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	}
	return t
}

// check compares what the superblock says with the tree, and returns the size of the image.
func (t *benchTree) check(b *testing.B, image *os.File) int64 {
	super := make([]byte, 128)
	if _, err := image.ReadAt(super, 1024); err != nil {
		b.Fatal(err)
	}
	if n := binary.LittleEndian.Uint64(super[16:]); n != uint64(len(t.inodes)) {
		b.Fatalf("image has %d inodes, want %d", n, len(t.inodes))
	}
	size, err := image.Seek(0, io.SeekEnd)
	if err != nil {
		b.Fatal(err)
	}
	return size
}

func (t *benchTree) writeSquash(out *os.File) error {
	w, err := erofs.NewWriter(erofs.Options{Epoch: 1_700_000_000, Devices: []erofs.Device{{Blocks: benchDevice}}}, t.inodes[0])
	if err != nil {
		return err
	}
	for i := 1; i < len(t.inodes); i++ {
		ino, err := w.Add(t.inodes[i])
		if err != nil {
			return err
		}
		if err := w.Link(t.parent[i], t.names[i], ino); err != nil {
			return err
		}
	}
	_, err = w.WriteTo(out)
	return err
}

func (t *benchTree) writeGoEROFS(out *os.File) error {
	w := goerofs.Create(out, goerofs.WithBuildTime(1_700_000_000, 0))
	if err := w.CopyFrom(benchFS{t}, goerofs.MetadataOnly()); err != nil {
		return err
	}
	return w.Close()
}

// benchFS is the tree as go-erofs reads it.
type benchFS struct{ t *benchTree }

func (f benchFS) DeviceBlocks() uint64 { return benchDevice }

func (f benchFS) Stat(name string) (fs.FileInfo, error) {
	if name == "." {
		return f.t.root, nil
	}
	return nil, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
}

func (f benchFS) ReadDir(name string) ([]fs.DirEntry, error) { return f.t.dirs[name], nil }

func (f benchFS) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
}

func (f benchFS) Lstat(name string) (fs.FileInfo, error) { return f.Stat(name) }

func (f benchFS) ReadLink(name string) (string, error) {
	entries := f.t.dirs[path.Dir(name)]
	i, ok := slices.BinarySearchFunc(entries, path.Base(name), func(e fs.DirEntry, name string) int {
		return strings.Compare(e.Name(), name)
	})
	if !ok {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrNotExist}
	}
	info, err := entries[i].Info()
	if err != nil {
		return "", err
	}
	return info.(*benchInfo).in.Target, nil
}

// benchInfo is one inode as go-erofs reads it.
type benchInfo struct {
	in    *erofs.Inode
	name  string
	nlink uint64
}

func (i *benchInfo) Name() string       { return i.name }
func (i *benchInfo) Size() int64        { return i.in.Size }
func (i *benchInfo) ModTime() time.Time { return time.Unix(i.in.Mtime, int64(i.in.MtimeNsec)) }
func (i *benchInfo) IsDir() bool        { return i.Mode().IsDir() }

func (i *benchInfo) Mode() fs.FileMode {
	mode := fs.FileMode(i.in.Mode & 0o777)
	switch i.in.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	}
	return mode
}

func (i *benchInfo) Sys() any {
	return &syscall.Stat_t{
		Mode: i.in.Mode, Nlink: i.nlink, Size: i.in.Size,
		Mtim: syscall.Timespec{Sec: i.in.Mtime, Nsec: int64(i.in.MtimeNsec)},
	}
}

func (i *benchInfo) DataRange() []goerofs.DataRange {
	if len(i.in.Extents) == 0 {
		return nil
	}
	return []goerofs.DataRange{{Offset: int64(i.in.Extents[0].Block) * erofs.BlockSize, Size: i.in.Size}}
}
