// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// smallDisk is a file system for one store alone, in memory, that a test may
// fill to the last block, make read-only or take away.
type smallDisk struct {
	t      testing.TB
	image  string // its blocks
	kind   string
	point  string // where it is mounted
	device string // "loop3"

	ballasts int // files that fill it up, less one
	inodes   int // empty ones
}

const diskBlock = 4096

// newSmallDisk makes an ext4 or xfs and mounts it until the test ends.
func newSmallDisk(t testing.TB, kind string) *smallDisk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts file systems")
	}
	if _, err := exec.LookPath("mkfs." + kind); err != nil {
		t.Skipf("needs mkfs.%s: %v", kind, err)
	}
	d := &smallDisk{t: t, kind: kind, point: filepath.Join(t.TempDir(), "disk")}
	memory := t.TempDir()
	must(t, unix.Mount("tmpfs", memory, "tmpfs", 0, "size=400m"))
	t.Cleanup(func() { unmountSoon(t, memory) })
	d.image = filepath.Join(memory, kind)
	size, options := int64(32<<20), []string{"-q", "-F", "-b", "4096", "-m", "0", "-N", "256", "-J", "size=4"}
	if kind == "xfs" {
		size, options = 320<<20, []string{"-q", "-l", "size=64m"} // the smallest that it takes
	}
	must(t, os.WriteFile(d.image, nil, 0o600))
	must(t, os.Truncate(d.image, size))
	d.command("mkfs."+kind, append(options, d.image)...)
	must(t, os.Mkdir(d.point, 0o700))
	d.mount()
	t.Cleanup(d.unmount)
	return d
}

func (d *smallDisk) command(name string, args ...string) {
	d.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func (d *smallDisk) mount() {
	d.t.Helper()
	options := "loop"
	if d.kind == "ext4" {
		options += ",errors=remount-ro"
	}
	d.command("mount", "-t", d.kind, "-o", options, d.image, d.point)
	for _, m := range mountsBelow(d.t, d.point) {
		if m.Mountpoint == d.point {
			d.device = filepath.Base(m.Source)
		}
	}
}

func (d *smallDisk) unmount() {
	d.t.Helper()
	unmountSoon(d.t, d.point)
}

// node is a node whose store is on the disk; its mounts are not.
func (d *smallDisk) node(t *testing.T) *node {
	n := closedNode(t, t.TempDir())
	n.cfg.Root = filepath.Join(d.point, "root")
	return n
}

// space returns how many blocks are in use and how many are free.
func (d *smallDisk) space() (used, free int64) {
	d.t.Helper()
	f, err := os.Open(d.point)
	must(d.t, err)
	defer f.Close()
	must(d.t, unix.Syncfs(int(f.Fd()))) // what waits to be written has no blocks yet
	var st unix.Statfs_t
	must(d.t, unix.Fstatfs(int(f.Fd()), &st))
	unit := st.Bsize / diskBlock
	return int64(st.Blocks-st.Bfree) * unit, int64(st.Bavail) * unit
}

// leave fills the disk until just so many blocks are free.
func (d *smallDisk) leave(free int64) {
	d.t.Helper()
	for range 200 {
		_, now := d.space()
		f, err := os.OpenFile(d.ballast(), os.O_RDWR|os.O_CREATE, 0o600)
		must(d.t, err)
		st, err := f.Stat()
		must(d.t, err)
		switch {
		case now == free:
			must(d.t, f.Close())
			return
		case now > free:
			if unix.Fallocate(int(f.Fd()), 0, st.Size(), (now-free)*diskBlock) != nil {
				d.ballasts++ // the list of the file's extents would need a block, too
			}
		case st.Size() == 0 && d.ballasts > 0:
			err = os.Remove(f.Name())
			d.ballasts--
		default:
			err = f.Truncate(max(0, st.Size()-(free-now)*diskBlock))
		}
		must(d.t, errors.Join(err, f.Close()))
	}
	_, now := d.space()
	d.t.Fatalf("%d blocks are free, not %d", now, free)
}

// ballast is what takes up space beside the store.
func (d *smallDisk) ballast() string {
	return filepath.Join(d.point, fmt.Sprint("ballast", d.ballasts))
}

// leaveInodes is leave for inodes.
func (d *smallDisk) leaveInodes(free int64) {
	d.t.Helper()
	dir := filepath.Join(d.point, "inodes")
	must(d.t, os.MkdirAll(dir, 0o700))
	for {
		d.space()
		var st unix.Statfs_t
		must(d.t, unix.Statfs(d.point, &st))
		name := func() string { return filepath.Join(dir, fmt.Sprint(d.inodes)) }
		switch now := int64(st.Ffree); {
		case now == free:
			return
		case now > free:
			for ; now > free; now-- {
				d.inodes++
				must(d.t, os.WriteFile(name(), nil, 0o600))
			}
		default:
			for ; now < free && d.inodes > 0; now++ {
				must(d.t, os.Remove(name()))
				d.inodes--
			}
		}
	}
}

// makeRoom takes away what leave and leaveInodes have filled the disk with.
func (d *smallDisk) makeRoom() {
	d.t.Helper()
	must(d.t, os.RemoveAll(filepath.Join(d.point, "inodes")))
	d.inodes = 0
	for ; d.ballasts >= 0; d.ballasts-- {
		must(d.t, removeIfThere(d.ballast()))
	}
	d.ballasts = 0
}

// footprint is what each file and directory of the store takes up, in blocks.
func (d *smallDisk) footprint() map[string]int64 {
	d.t.Helper()
	d.space()
	all := map[string]int64{}
	root := filepath.Join(d.point, "root")
	must(d.t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if err == nil || os.IsNotExist(err) {
			name := strings.TrimPrefix(path, root)
			if strings.HasPrefix(name, "/index/0") {
				name = "/index/*" // what is in one file today is in another tomorrow
			}
			all[name] += st.Blocks * 512 / diskBlock
			return nil
		}
		return err
	}))
	return all
}

// grown compares two footprints. The metastore keeps the pages that it once
// had, and the pack may need a block for the list of its extents.
func grown(before, after map[string]int64) error {
	slack := map[string]int64{"/metadata.db": 64, "/pack": 1}
	var errs []string
	for path, blocks := range after {
		if had, ok := before[path]; !ok {
			errs = append(errs, fmt.Sprintf("%s is new", path))
		} else if blocks > had+slack[path] {
			errs = append(errs, fmt.Sprintf("%s grew from %d to %d blocks", path, had, blocks))
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("space was not given back: %s", strings.Join(errs, ", "))
	}
	return nil
}

// ballastSize is what leave and leaveInodes have filled the disk with, in blocks.
func (d *smallDisk) ballastSize() (blocks int64) {
	var st unix.Stat_t
	if unix.Lstat(filepath.Join(d.point, "inodes"), &st) == nil {
		blocks += st.Blocks * 512 / diskBlock
	}
	for i := range d.ballasts + 1 {
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(d.point, fmt.Sprint("ballast", i)), &st) == nil {
			blocks += st.Blocks * 512 / diskBlock
		}
	}
	return blocks
}
