// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel is the judge of these tests: an image is mounted from its file and
// compared with the model it was made of.

// mountImage mounts an image file with its packs and returns the mount point.
func mountImage(t testing.TB, image string, packs ...string) string {
	t.Helper()
	target := t.TempDir()
	fd, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Fatalf("fsopen erofs: %v", err)
	}
	defer unix.Close(fd)
	set := func(key, value string) {
		if err := unix.FsconfigSetString(fd, key, value); err != nil {
			t.Fatalf("fsconfig %s=%s: %v", key, value, err)
		}
	}
	set("source", image)
	for _, p := range packs {
		set("device", p)
	}
	if err := unix.FsconfigSetFlag(fd, "ro"); err != nil {
		t.Fatalf("fsconfig ro: %v", err)
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		log := make([]byte, 1024)
		n, _ := unix.Read(fd, log)
		t.Fatalf("mount %s: %v: %s", image, err, log[:max(n, 0)])
	}
	mnt, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		t.Fatalf("fsmount: %v", err)
	}
	defer unix.Close(mnt)
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatalf("move_mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Errorf("unmount %s: %v", target, err)
			unix.Unmount(target, unix.MNT_DETACH)
		}
	})
	return target
}

// checkKernel mounts the image of m and compares everything that user space sees.
func checkKernel(t *testing.T, m *model) {
	t.Helper()
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, m.image(t), 0o600); err != nil {
		t.Fatal(err)
	}
	var packs []string
	for i := range m.opts.Devices {
		packs = append(packs, m.writePack(t, dir, uint16(i+1)))
	}
	c := &comparison{t: t, m: m, inodes: map[Ino]uint64{}, seen: map[uint64]Ino{}}
	c.dir(mountImage(t, image, packs...), RootIno)
	if len(c.inodes) != len(m.inodes) {
		t.Errorf("mount shows %d inodes, want %d", len(c.inodes), len(m.inodes))
	}
}

// comparison is one walk over a mount. Paths are opened relative to the open
// directory, so depth is not bounded by PATH_MAX.
type comparison struct {
	t      *testing.T
	m      *model
	inodes map[Ino]uint64 // st_ino by Ino
	seen   map[uint64]Ino // and back
}

func (c *comparison) dir(path string, i Ino) {
	c.t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		c.t.Fatalf("open %q: %v", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		c.t.Fatalf("fstat %q: %v", path, err)
	}
	c.inode(fmt.Sprintf("/proc/self/fd/%d", fd), path, &st, i)
	c.entries(fd, path, i, i)
}

func (c *comparison) entries(fd int, path string, i, parent Ino) {
	c.t.Helper()
	dirents := readDirents(c.t, fd)
	want := c.m.children(i)
	if self, up := dirents["."].ino, dirents[".."].ino; self != c.inodes[i] || up != c.inodes[parent] {
		c.t.Errorf("%q: dirents . and .. name inodes %d and %d, want %d and %d", path, self, up, c.inodes[i], c.inodes[parent])
	}
	if len(dirents) != len(want)+2 {
		c.t.Errorf("%q: %d entries, want %d", path, len(dirents), len(want)+2)
	}
	for _, l := range want {
		name := filepath.Join(path, l.name)
		var st unix.Stat_t
		if err := unix.Fstatat(fd, l.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			c.t.Errorf("lstat %q: %v", name, err)
			continue
		}
		mode := c.m.inodes[l.child].Mode
		if d, ok := dirents[l.name]; !ok || d.ino != st.Ino || uint32(d.kind)<<12 != mode&unix.S_IFMT {
			c.t.Errorf("%q: dirent %v, stat inode %d, want mode %#o", name, d, st.Ino, mode)
		}
		if mode&unix.S_IFMT != unix.S_IFDIR {
			c.inode(fmt.Sprintf("/proc/self/fd/%d/%s", fd, l.name), name, &st, l.child)
			continue
		}
		c.subdir(fd, name, l, &st, i)
	}
	if _, err := os.Lstat(fmt.Sprintf("/proc/self/fd/%d/no such name", fd)); !errors.Is(err, os.ErrNotExist) {
		c.t.Errorf("%q: lookup of an absent name: %v", path, err)
	}
}

// subdir compares the directory that l names in the open directory parent.
func (c *comparison) subdir(parentFD int, name string, l modelLink, st *unix.Stat_t, parent Ino) {
	c.t.Helper()
	fd, err := unix.Openat(parentFD, l.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		c.t.Errorf("open %q: %v", name, err)
		return
	}
	defer unix.Close(fd)
	c.inode(fmt.Sprintf("/proc/self/fd/%d", fd), name, st, l.child)
	c.entries(fd, name, l.child, parent)
}

// inode compares one inode; open is a path that reaches it, name is for messages.
func (c *comparison) inode(open, name string, st *unix.Stat_t, i Ino) {
	c.t.Helper()
	in := &c.m.inodes[i]
	if known, ok := c.inodes[i]; ok {
		if known != st.Ino {
			c.t.Errorf("%q: inode %d, its other links have %d", name, st.Ino, known)
		}
		return
	}
	if other, ok := c.seen[st.Ino]; ok {
		c.t.Errorf("%q: shares inode %d with %d", name, st.Ino, other)
	}
	c.inodes[i], c.seen[st.Ino] = st.Ino, i

	kind := in.Mode & unix.S_IFMT
	got := fmt.Sprintf("mode=%o uid=%d gid=%d mtime=%d.%09d nlink=%d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, st.Nlink)
	want := fmt.Sprintf("mode=%o uid=%d gid=%d mtime=%d.%09d nlink=%d", in.Mode, in.UID, in.GID, in.Mtime, in.MtimeNsec, c.m.nlink(i))
	switch kind {
	case unix.S_IFCHR, unix.S_IFBLK:
		got += fmt.Sprintf(" rdev=%#x", st.Rdev)
		want += fmt.Sprintf(" rdev=%#x", in.Rdev)
	case unix.S_IFREG:
		got += fmt.Sprintf(" size=%d", st.Size)
		want += fmt.Sprintf(" size=%d", in.Size)
	case unix.S_IFLNK:
		target, err := os.Readlink(open)
		if err != nil {
			c.t.Errorf("readlink %q: %v", name, err)
		}
		got += fmt.Sprintf(" size=%d target=%q", st.Size, target)
		want += fmt.Sprintf(" size=%d target=%q", len(in.Target), in.Target)
	}
	if got != want {
		c.t.Errorf("%q:\n got %s\nwant %s", name, got, want)
	}
	c.xattrs(open, name, in, kind == unix.S_IFDIR)
	if kind == unix.S_IFREG {
		c.content(open, name, i)
	}
}

func (c *comparison) xattrs(open, name string, in *Inode, follow bool) {
	c.t.Helper()
	list, get := unix.Llistxattr, unix.Lgetxattr
	if follow { // the path is a magic link
		list, get = unix.Listxattr, unix.Getxattr
	}
	buf := make([]byte, 1<<16)
	n, err := list(open, buf)
	if err != nil {
		c.t.Errorf("listxattr %q: %v", name, err)
		return
	}
	var got, want []string
	for x := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if x != "" {
			got = append(got, x)
		}
	}
	value := make([]byte, 1<<17)
	for _, x := range in.Xattrs {
		kind := in.Mode & unix.S_IFMT
		if strings.HasPrefix(x.Name, "user.") && kind != unix.S_IFREG && kind != unix.S_IFDIR {
			if slices.Contains(got, x.Name) {
				want = append(want, x.Name)
			}
			continue // the kernel refuses user xattrs of special files
		}
		if strings.HasPrefix(x.Name, "system.") && kind == unix.S_IFLNK {
			continue // symlinks have no ACLs
		}
		want = append(want, x.Name)
		n, err := get(open, x.Name, value)
		if err != nil {
			c.t.Errorf("getxattr %q %q: %v", name, x.Name, err)
		} else if !bytes.Equal(value[:n], x.Value) {
			c.t.Errorf("%q: xattr %q is %.60q (%d bytes), want %.60q (%d bytes)", name, x.Name, value[:n], n, x.Value, len(x.Value))
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		c.t.Errorf("%q: xattrs %q, want %q", name, got, want)
	}
}

func (c *comparison) content(open, name string, i Ino) {
	c.t.Helper()
	f, err := os.Open(open)
	if err != nil {
		c.t.Errorf("open %q: %v", name, err)
		return
	}
	defer f.Close()
	offsets, size := c.m.spots(i)
	for _, off := range offsets {
		want := c.m.content(i, off, size)
		got := make([]byte, len(want))
		n, err := f.ReadAt(got, off)
		if err != nil || !bytes.Equal(got[:n], want) {
			c.t.Errorf("%q: %d bytes at %d: %v, content differs: %s", name, n, off, err, firstDifference(got[:n], want))
			return
		}
	}
}

func firstDifference(got, want []byte) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf("byte %d: got %.16x, want %.16x", i, got[i:], want[i:])
		}
	}
	return fmt.Sprintf("lengths %d and %d", len(got), len(want))
}

type dirent struct {
	ino  uint64
	kind uint8
}

// readDirents reads a directory as the kernel gives it, "." and ".." included.
func readDirents(t testing.TB, fd int) map[string]dirent {
	t.Helper()
	out := map[string]dirent{}
	buf := make([]byte, 1<<16)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			t.Fatalf("getdents: %v", err)
		}
		if n == 0 {
			return out
		}
		for b := buf[:n]; len(b) > 0; {
			size := int(b[16]) | int(b[17])<<8
			name, _, _ := bytes.Cut(b[19:size], []byte{0})
			ino := uint64(0)
			for k := range 8 {
				ino |= uint64(b[k]) << (8 * k)
			}
			if _, twice := out[string(name)]; twice {
				t.Errorf("name %q occurs twice in a directory", name)
			}
			out[string(name)] = dirent{ino, b[18]}
			b = b[size:]
		}
	}
}
