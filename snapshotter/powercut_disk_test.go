// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// disks are the disk of a machine whose power is cut, and its copies: files of
// an XFS in memory, so that a copy is a reflink. The kernel takes it between
// two write requests of the loop device, while the file system on the disk goes
// on: it holds what that file system had handed to the disk by then, in the
// order in which it did, and nothing of what was still to be written back. The
// disk has no cache of its own that could lose a write or turn two around.
type disks struct {
	dir   string // where the files are
	point string // where one of them is mounted
	n     int
}

// inner are file systems that can be on the disk, with options of mount(8). The
// last bit of a seed chooses the kind, the next one the options.
var inner = []struct{ kind, options string }{
	{"ext4", ""},
	{"xfs", ",nouuid"},
	{"ext4", ",commit=1"},
	{"xfs", ",nouuid"},
}

// newDisks skips the test where a tool is missing. Everything goes when the
// test ends.
func newDisks(t testing.TB, base string) *disks {
	t.Helper()
	for tool, pkg := range map[string]string{"mkfs.xfs": "xfsprogs", "mkfs.ext4": "e2fsprogs", "mount": "util-linux"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s (package %s): %v", tool, pkg, err)
		}
	}
	d := &disks{dir: filepath.Join(base, "xfs"), point: filepath.Join(base, "disk")}
	memory := filepath.Join(base, "memory")
	for _, dir := range []string{d.dir, d.point, memory} {
		must(t, os.Mkdir(dir, 0o700))
	}
	must(t, unix.Mount("tmpfs", memory, "tmpfs", 0, "size=3g"))
	t.Cleanup(func() { unmountSoon(t, memory) })
	outer := filepath.Join(memory, "xfs")
	d.make(t, "xfs", outer, 4<<30)
	d.command(t, "mount", "-t", "xfs", "-o", "loop,discard", outer, d.dir)
	t.Cleanup(func() { unmountSoon(t, d.dir) })
	for _, kind := range []string{"ext4", "xfs"} {
		d.make(t, kind, d.fresh(kind), 320<<20)
	}
	return d
}

// fresh is an empty file system, to be copied.
func (d *disks) fresh(kind string) string { return filepath.Join(d.dir, "fresh."+kind) }

func (d *disks) make(t testing.TB, kind, path string, size int64) {
	t.Helper()
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, size))
	options := map[string][]string{
		"ext4": {"-q", "-F", "-J", "size=16"},
		"xfs":  {"-q", "-m", "reflink=1", "-l", "size=64m"}, // the smallest that it takes
	}
	d.command(t, "mkfs."+kind, append(options[kind], path)...)
}

func (d *disks) command(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// copy is a disk as it is at this moment.
func (d *disks) copy(t testing.TB, of string) string {
	t.Helper()
	path := d.next()
	must(t, reflink(path, of))
	return path
}

// next is a path for a copy.
func (d *disks) next() string {
	d.n++
	return filepath.Join(d.dir, fmt.Sprint(d.n))
}

func reflink(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return nil
}

func (d *disks) remove(t testing.TB, path string) {
	t.Helper()
	must(t, os.Remove(path))
}

// mount mounts a disk, which replays its journal; it must not be left mounted.
func (d *disks) mount(t testing.TB, kind, options, path string) {
	t.Helper()
	d.command(t, "mount", "-t", kind, "-o", "loop"+options, path, d.point)
	t.Cleanup(func() { _ = unix.Unmount(d.point, unix.MNT_DETACH) }) // still there only if the test has failed
}

func (d *disks) unmount(t testing.TB) {
	t.Helper()
	unmountSoon(t, d.point)
}

// unmountSoon waits for the kernel to let go of the files of those that ended.
func unmountSoon(t testing.TB, point string) {
	t.Helper()
	waitFor(t, point+" to be free", func() error { return unmount(point) })
}

// writeBack has data of the store below root written to the disk before its
// time, as memory pressure may: any part of any file, in any order. Some seeds
// favour the files that speak of contents, some the contents.
func writeBack(root string, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 99))
	patterns, pause := []string{"pack", "index/*", "layers/*/*", "images/*", "snapshots/*/fs/*"}, 20_000
	switch seed % 3 {
	case 0:
		patterns, pause = []string{"index/*", "layers/*/*"}, 500
	case 1:
		patterns, pause = []string{"pack"}, 2000
	}
	for {
		time.Sleep(time.Duration(r.IntN(pause)) * time.Microsecond) // the moment is what is drawn
		for _, pattern := range patterns {
			paths, err := filepath.Glob(filepath.Join(root, pattern))
			if err != nil {
				panic(err)
			}
			for _, path := range paths {
				if r.IntN(2) == 0 {
					writeBackFile(path, r)
				}
			}
		}
	}
}

// writeBackFile does it for a part of a file, every other time for all of it.
func writeBackFile(path string, r *rand.Rand) {
	f, err := os.Open(path)
	if err != nil {
		return // gone by now
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return
	}
	from := max(0, r.Int64N(2*st.Size())-st.Size())
	_ = unix.SyncFileRange(int(f.Fd()), from, st.Size(), unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
}
