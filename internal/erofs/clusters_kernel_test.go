// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"testing"

	"github.com/squash-snapshotter/squash/internal/kmsgtest"
	"golang.org/x/sys/unix"
)

// The kernel reads compressed content in many ways: from files and from block
// devices, whole clusters and parts of them, with and without the pages around.

// mounted is an image with its pack on disk.
type mounted struct {
	m           *model
	image, flat string
	packs       []string
}

func writeFiles(t *testing.T, m *model) *mounted {
	t.Helper()
	dir := t.TempDir()
	f := &mounted{m: m, image: filepath.Join(dir, "image"), flat: filepath.Join(dir, "flat")}
	image := m.image(t)
	if err := os.WriteFile(f.image, image, 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range m.opts.Devices {
		f.packs = append(f.packs, m.writePack(t, dir, uint16(i+1)))
	}
	m.writeFlat(t, f.flat, image)
	return f
}

// writeFlat makes one file of the image and its devices, each at its unified address.
func (m *model) writeFlat(t *testing.T, path string, image []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = f.WriteAt(image, 0)
	for p, c := range m.store {
		_, werr := f.WriteAt(c.encoded, int64(m.opts.Devices[p.device-1].UnifiedAddr+p.block)*BlockSize)
		err = errors.Join(err, werr)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// mount mounts in one of the ways, and returns how the kernel calls the mount in its log.
func (f *mounted) mount(t *testing.T, way string) (target, logName string) {
	t.Helper()
	switch way {
	case "file":
		return mountImage(t, f.image, f.packs...), "erofs"
	case "flat":
		return mountImage(t, f.flat), "erofs"
	}
	var devices []string
	for _, p := range append([]string{f.image}, f.packs...) {
		devices = append(devices, loopDevice(t, p))
	}
	return mountImage(t, devices[0], devices[1:]...), filepath.Base(devices[0])
}

// loopDevice binds a file to a loop device until the end of the test.
func loopDevice(t *testing.T, path string) string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Fatalf("get a loop device: %v", err)
		}
		device, err := os.Open(fmt.Sprint("/dev/loop", n))
		if err != nil {
			t.Fatal(err)
		}
		config := unix.LoopConfig{Fd: uint32(file.Fd())}
		config.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			t.Cleanup(func() { device.Close() })
			return device.Name()
		}
		device.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody else was faster
			t.Fatalf("bind %s: %v", device.Name(), err)
		}
	}
}

// forgetPages makes the kernel read everything from the disk again.
func (f *mounted) forgetPages(t *testing.T) {
	t.Helper()
	for _, name := range append([]string{f.image, f.flat}, f.packs...) {
		file, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		err = errors.Join(file.Sync(), unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED), file.Close())
		if err != nil {
			t.Fatal(err)
		}
	}
}

// checkEveryWay compares the image of m with m: mounted in three ways, each
// of them read in three ways, every time from a new mount.
func checkEveryWay(t *testing.T, m *model) {
	t.Helper()
	f := writeFiles(t, m)
	for _, way := range []string{"file", "loop", "flat"} {
		for name, read := range map[string]func(*testing.T, *model, string){
			"whole": readWhole, "random": readRandom, "mapped": readMapped,
		} {
			t.Run(way+" "+name, func(t *testing.T) {
				kmsgtest.Quiet(t, func() string {
					f.forgetPages(t)
					target, logName := f.mount(t, way)
					read(t, m, target)
					return logName
				})
			})
		}
	}
}

func readWhole(t *testing.T, m *model, target string) {
	c := &comparison{t: t, m: m, inodes: map[Ino]uint64{}, seen: map[uint64]Ino{}}
	c.dir(target, RootIno)
}

// regularFiles are the files in the root directory.
func (m *model) regularFiles() (files []modelLink) {
	for _, l := range m.children(RootIno) {
		if in := m.inodes[l.child]; in.Mode&unix.S_IFMT == unix.S_IFREG && in.Size > 0 {
			files = append(files, l)
		}
	}
	return files
}

// readRandom reads pieces at random places of all files by turns, and now and
// then forgets the pages of a file, so that parts of clusters are decoded for
// themselves, next to pages that are there already.
func readRandom(t *testing.T, m *model, target string) {
	rnd := rand.New(rand.NewPCG(5, 6))
	files := m.regularFiles()
	open := make([]*os.File, len(files))
	for k, l := range files {
		f, err := os.Open(filepath.Join(target, l.name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		// Without read-ahead, a read decodes what it asks for.
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil && k%2 == 0 {
			t.Fatal(err)
		}
		open[k] = f
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	for range 12 * len(files) {
		k := rnd.IntN(len(files))
		i, size := files[k].child, m.inodes[files[k].child].Size
		off := rnd.Int64N(size)
		want := m.content(i, off, min(1+rnd.Int64N(1<<(1+rnd.IntN(18))), size-off))
		got := make([]byte, len(want))
		if n, err := open[k].ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes at %d: %v, content differs: %s", files[k].name, n, off, err, firstDifference(got[:n], want))
			return
		}
		if rnd.IntN(4) == 0 {
			if err := unix.Fadvise(int(open[k].Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// readMapped touches the pages of mapped files in random order.
func readMapped(t *testing.T, m *model, target string) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if fault := recover(); fault != nil { // SIGBUS, what the kernel answers if it cannot read
			t.Errorf("a mapped page cannot be read: %v", fault)
		}
	}()
	rnd := rand.New(rand.NewPCG(7, 8))
	for _, l := range m.regularFiles() {
		size := m.inodes[l.child].Size
		from := int64(0)
		if window := int64(1 << 20); size > window {
			from = rnd.Int64N(size-window) / BlockSize * BlockSize
			size = window
		}
		f, err := os.Open(filepath.Join(target, l.name))
		if err != nil {
			t.Fatal(err)
		}
		got, err := unix.Mmap(int(f.Fd()), from, int(size), unix.PROT_READ, unix.MAP_SHARED)
		f.Close()
		if err != nil {
			t.Fatalf("map %s: %v", l.name, err)
		}
		want := m.content(l.child, from, size)
		for _, page := range rnd.Perm(int((size-1)/BlockSize + 1)) {
			lo, hi := page*BlockSize, min((page+1)*BlockSize, int(size))
			if !bytes.Equal(got[lo:hi], want[lo:hi]) {
				t.Errorf("%s: page at %d differs: %s", l.name, from+int64(lo), firstDifference(got[lo:hi], want[lo:hi]))
				break
			}
		}
		if err := unix.Munmap(got); err != nil {
			t.Fatal(err)
		}
	}
}

// packOptions has one device, at a unified address that a flat copy can reach.
func packOptions() Options {
	return Options{Devices: []Device{{Tag: "pack", Blocks: 5, UnifiedAddr: 1 << 14}}}
}

// sizesAround are file sizes at every boundary.
func sizesAround(cluster int) []int {
	const b = BlockSize
	return []int{
		1, b - 1, b, b + 1, 2*b - 1, 2 * b, 2*b + 1, 3*b - 1, 3 * b, 3*b + 1,
		cluster - b - 1, cluster - b, cluster - b + 1, cluster - 1, cluster, cluster + 1,
		cluster + b - 1, cluster + b, cluster + b + 1, cluster + 2*b - 1, cluster + 2*b, cluster + 2*b + 1,
		2*cluster - 1, 2 * cluster, 2*cluster + 1, 7*cluster + 3*b + 777,
	}
}

// clustersOfSizes has files of all boundary sizes and kinds of data.
func clustersOfSizes(a Algorithm, size int) *model {
	m := newModel(packOptions())
	for _, kind := range []string{dataText, dataTight, dataNoise, dataZero, dataMixed} {
		for k, n := range sizesAround(size) {
			m.compressed(RootIno, fmt.Sprint(kind, " ", n), 1, m.clusters(1, a, size, testData(kind, uint64(k), n))...)
		}
	}
	return m
}

// clustersShared has files that name the same blocks over and over, in any order.
func clustersShared(a Algorithm, size int) *model {
	m := newModel(packOptions())
	zeros := m.cluster(1, a, make([]byte, size))
	parts := m.clusters(1, a, size, testData(dataMixed, 9, 6*size))
	end := m.cluster(1, a, testData(dataText, 3, size/2+99))
	block := m.cluster(1, a, testData(dataText, 4, BlockSize))
	m.compressed(RootIno, "zeros", 1, zeros, zeros, zeros, zeros)
	m.compressed(RootIno, "same twice", 1, parts[0], parts[0], parts[0], end)
	reversed := slices.Clone(parts)
	slices.Reverse(reversed)
	m.compressed(RootIno, "reversed", 1, append(reversed, end)...)
	m.compressed(RootIno, "by turns", 1, parts[1], zeros, parts[1], zeros, block, parts[2], block, block, end)
	m.compressed(RootIno, "blocks", 1, slices.Repeat([]Cluster{block}, 50)...)
	m.compressed(RootIno, "zeros around", 1, slices.Concat(slices.Repeat([]Cluster{zeros}, 20), parts, slices.Repeat([]Cluster{zeros}, 20), []Cluster{end})...)
	// Extended and compact inodes, with and without xattrs, put the index at any offset.
	for k := range 5 {
		i := m.compressed(RootIno, fmt.Sprint("with xattr ", k), 1, parts[0], end)
		m.inodes[i].Mtime += int64(k % 2)
		m.inodes[i].Xattrs = []Xattr{{"user.x", bytes.Repeat([]byte{'x'}, 4*k)}}
	}
	return m
}

// clustersHuge has a file that is above 4 GiB, and nearly all one block.
func clustersHuge(a Algorithm, size int) *model {
	m := newModel(packOptions())
	many := slices.Repeat([]Cluster{m.cluster(1, a, make([]byte, size))}, 5<<30/size)
	parts := m.clusters(1, a, size, testData(dataMixed, 9, 6*size))
	copy(many[7:], parts)
	copy(many[len(many)/2:], parts)
	m.compressed(RootIno, "5 GiB", 1, append(many, m.cluster(1, a, testData(dataText, 3, size/2+99)))...)
	return m
}

// clustersPacked has a packed inode of these algorithms by turns and small files
// anywhere in it. An extra inode of clusters mixes algorithms too.
func clustersPacked(size int, algorithms ...Algorithm) *model {
	m := newModel(packOptions())
	data := testData(dataMixed, 12, 5*size+size/2+333)
	m.packedDevice = 1
	for k, rest := 0, data; len(rest) > 0; k++ {
		n := min(size, len(rest))
		m.packed = append(m.packed, m.cluster(1, algorithms[k%len(algorithms)], rest[:n]))
		rest = rest[n:]
	}
	n := 0
	fragment := func(at, size int) {
		m.fragment(RootIno, fmt.Sprint(n, ": ", at, "+", size), uint64(at), int64(size))
		n++
	}
	at := 0
	for n := 1; at+n <= len(data); n += 1 + n/9 {
		fragment(at, n)
		at += n
	}
	for _, border := range []int{size, 2 * size, 3 * size, BlockSize, size + BlockSize} {
		for _, n := range []int{2, 100, BlockSize, 2*BlockSize + 1, 30000} {
			if border >= n {
				fragment(border-n/2, n)
				fragment(border-n, n)
			}
			fragment(border, n)
		}
	}
	fragment(len(data)-1, 1)
	fragment(0, len(data))
	m.compressed(RootIno, "mixed", 1, m.packed...)
	m.inline(RootIno, "inline", []byte("beside"))
	return m
}

func TestKernelReadsClusters(t *testing.T) {
	for _, a := range []Algorithm{Stored, LZ4, Zstd} {
		for _, size := range []int{64 << 10, 128 << 10} {
			name := fmt.Sprint(algorithmNames[a], " ", size>>10)
			t.Run(name+" sizes", func(t *testing.T) { checkEveryWay(t, clustersOfSizes(a, size)) })
			t.Run(name+" shared", func(t *testing.T) { checkEveryWay(t, clustersShared(a, size)) })
			t.Run(name+" huge", func(t *testing.T) { checkEveryWay(t, clustersHuge(a, size)) })
			t.Run(name+" packed", func(t *testing.T) { checkEveryWay(t, clustersPacked(size, a)) })
		}
	}
}

func TestKernelReadsMixedAlgorithms(t *testing.T) {
	for name, algorithms := range map[string][]Algorithm{
		"zstd first": {Zstd, LZ4}, "lz4 first": {LZ4, Stored, Zstd, Zstd}, "stored first": {Stored, Zstd, LZ4},
	} {
		t.Run(name, func(t *testing.T) { checkEveryWay(t, clustersPacked(128<<10, algorithms...)) })
	}
}

// TestKernelReadsExtentsBesideClusters has both forms on several devices.
func TestKernelReadsExtentsBesideClusters(t *testing.T) {
	m := newModel(Options{Devices: []Device{
		{Blocks: 40, UnifiedAddr: 1 << 14}, {Blocks: 30}, {Blocks: 20, UnifiedAddr: 1 << 20}, {Blocks: 9, UnifiedAddr: 1 << 13},
	}})
	for k, device := range []uint16{1, 3, 4} {
		for _, a := range []Algorithm{Stored, LZ4, Zstd} {
			name := fmt.Sprint(device, algorithmNames[a])
			m.compressed(RootIno, name, device, m.clusters(device, a, MaxCluster, testData(dataMixed, uint64(k), 300000+k))...)
		}
	}
	m.file(RootIno, "extents", Extent{1, 3, 9 * BlockSize}, Extent{2, 3, 9 * BlockSize}, Extent{3, 1, 777})
	m.packedDevice, m.packed = 3, m.clusters(3, Zstd, MaxCluster, testData(dataText, 77, 200000))
	m.fragment(RootIno, "fragment", 131000, 1000)
	checkKernel(t, m)
}
