// SPDX-License-Identifier: Apache-2.0

package mounts

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/squash-snapshotter/squash/internal/erofs"
)

// newRoot returns an empty directory and checks, when the test and its clean-ups are over, that no mount
// and no loop device of it is left.
func newRoot(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts file systems")
	}
	root, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	t.Cleanup(func() { checkNothingLeft(t, root) })
	return root
}

func checkNothingLeft(t *testing.T, root string) {
	t.Helper()
	infos, err := mountinfo.GetMounts(nil)
	must(t, err)
	for i := len(infos) - 1; i >= 0; i-- {
		if target := infos[i].Mountpoint; strings.HasPrefix(target+"/", root+"/") {
			t.Errorf("left mounted: %s on %s", infos[i].FSType, target)
			if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
				t.Errorf("detach %s: %v", target, err)
			}
		}
	}
	waitFor(t, "loop devices to be freed", func() error {
		if left := loopDevices(t, root); len(left) > 0 {
			return fmt.Errorf("left bound: %q", left)
		}
		return nil
	})
	for name := range loopDevices(t, root) {
		device, err := os.Open("/dev/" + name)
		must(t, err)
		if err := unix.IoctlSetInt(int(device.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
			t.Errorf("free %s: %v", name, err)
		}
		must(t, device.Close())
	}
}

// loopDevices returns the files at or below root that loop devices are bound to, by device name.
func loopDevices(t *testing.T, root string) map[string]string {
	t.Helper()
	states, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must(t, err)
	devices := map[string]string{}
	for _, state := range states {
		file, err := os.ReadFile(state)
		if err != nil {
			continue // freed since the listing
		}
		if strings.HasPrefix(string(file), root+"/") {
			devices[strings.Split(state, "/")[3]] = strings.TrimSuffix(string(file), "\n")
		}
	}
	return devices
}

// waitFor returns when check finds nothing wrong any more, and fails the test if that takes too long.
func waitFor(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("waiting for %s: %v", what, err)
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mkdir makes a directory with its parents and returns its path.
func mkdir(t *testing.T, elem ...string) string {
	t.Helper()
	dir := filepath.Join(elem...)
	must(t, os.MkdirAll(dir, 0o755))
	return dir
}

// mountNew mounts a new file system of the given type on dir for the time of the test.
func mountNew(t *testing.T, fstype, dir, data string) {
	t.Helper()
	if err := unix.Mount(fstype, dir, fstype, 0, data); err != nil {
		t.Fatalf("mount %s on %s: %v", fstype, dir, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

// forEachMode runs body with a Mounter of each mode.
func forEachMode(t *testing.T, body func(t *testing.T, m *Mounter)) {
	for _, mode := range []Mode{ModeFile, ModeLoop} {
		t.Run(string(mode), func(t *testing.T) { body(t, newMounter(t, mode)) })
	}
}

func newMounter(t *testing.T, mode Mode) *Mounter {
	t.Helper()
	caps, err := Probe(t.Context(), newRoot(t))
	must(t, err)
	m, err := New(caps, mode)
	must(t, err)
	return m
}

// mount mounts and leaves the unmounting to the end of the test.
func mount(t *testing.T, m *Mounter, image, pack, target string) {
	t.Helper()
	must(t, m.Mount(t.Context(), image, pack, target))
	t.Cleanup(func() {
		// Not the test's context, which is over by now.
		if err := m.Unmount(target); err != nil {
			t.Error(err)
		}
	})
}

// fixture is an image with a pack, or without if packPath is "", and what its mount has to show.
type fixture struct {
	image, pack string
	files       map[string][]byte
}

// newFixture writes an image, and unless pack is "" its pack, into dir.
func newFixture(t *testing.T, dir, image, pack string) fixture {
	t.Helper()
	f := fixture{image: filepath.Join(dir, image), files: map[string][]byte{
		"inline": []byte("in the image\n"),
		"setuid": []byte("#!/bin/sh\n"),
	}}
	inodes := map[string]erofs.Inode{
		"inline": {Mode: unix.S_IFREG | 0o644},
		"setuid": {Mode: unix.S_IFREG | 0o4755},
		"null":   {Mode: unix.S_IFCHR | 0o666, Rdev: unix.Mkdev(1, 3)},
	}
	opts := erofs.Options{}
	if pack != "" {
		const blocks = 8
		opts.Devices = []erofs.Device{{Tag: "pack", Blocks: blocks, UnifiedAddr: 1 << 20}}
		data := noise(blocks * erofs.BlockSize)
		f.pack = filepath.Join(dir, pack)
		must(t, os.WriteFile(f.pack, data, 0o600))
		f.files["packed"] = slicesOf(data, 5, 2*erofs.BlockSize, 1, erofs.BlockSize+100)
		inodes["packed"] = erofs.Inode{Mode: unix.S_IFREG | 0o600, Extents: []erofs.Extent{
			{Device: 1, Block: 5, Length: 2 * erofs.BlockSize},
			{Device: 1, Block: 1, Length: erofs.BlockSize + 100},
		}}
	}
	writeImage(t, f.image, opts, f.files, inodes)
	return f
}

// noise returns n bytes that are the same in every run and differ from block to block.
func noise(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	return data
}

// slicesOf joins pieces of a pack, given as pairs of a block and a length in bytes.
func slicesOf(pack []byte, pairs ...int) []byte {
	var out []byte
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, pack[pairs[i]*erofs.BlockSize:][:pairs[i+1]]...)
	}
	return out
}

// writeImage writes inodes to the root of a new image; a file's size, and its content if it has no
// extents, come from files.
func writeImage(t *testing.T, path string, opts erofs.Options, files map[string][]byte, inodes map[string]erofs.Inode) {
	t.Helper()
	w, err := erofs.NewWriter(opts, erofs.Inode{Mode: unix.S_IFDIR | 0o755})
	must(t, err)
	for _, name := range slices.Sorted(maps.Keys(inodes)) {
		inode := inodes[name]
		inode.Size = int64(len(files[name]))
		if inode.Extents == nil {
			inode.Inline = files[name]
		}
		ino, err := w.Add(inode)
		must(t, err)
		must(t, w.Link(erofs.RootIno, name, ino))
	}
	var image bytes.Buffer
	_, err = w.WriteTo(&image)
	must(t, err)
	must(t, os.WriteFile(path, image.Bytes(), 0o600))
}

// check compares the files of a mounted fixture.
func (f fixture) check(t *testing.T, target string) {
	t.Helper()
	for name, want := range f.files {
		got, err := os.ReadFile(filepath.Join(target, name))
		if err != nil {
			t.Error(err)
		} else if !bytes.Equal(got, want) {
			t.Errorf("%s: got %d bytes, want %d others", name, len(got), len(want))
		}
	}
}

// cancelAfter is a context that is cancelled once Err was asked n times.
type cancelAfter struct {
	context.Context
	n *int
}

func (c cancelAfter) Err() error {
	if *c.n <= 0 {
		return context.Canceled
	}
	*c.n--
	return nil
}
