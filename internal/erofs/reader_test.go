// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"io"
	"io/fs"
	"path"
	"strings"
	"testing"
	"unicode/utf8"

	goerofs "github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"
)

// A reader written by others is the second judge. It needs no mount, so it also
// judges what the fuzzer finds. What it does not show is left to the kernel:
// names that are no UTF-8, set-id bits, times before 1970. It takes no image with
// clusters: of those it judges one that has holes in their place.

// patternDevice is a device in memory, see packBytes.
type patternDevice struct {
	number uint16
	blocks uint32
}

func (d patternDevice) ReadAt(b []byte, off int64) (int, error) {
	n := min(int64(len(b)), int64(d.blocks)*BlockSize-off)
	if n <= 0 {
		return 0, io.EOF
	}
	first := off / BlockSize
	whole := make([]byte, alignUp(off+n, BlockSize)-first*BlockSize)
	packBytes(whole, d.number, uint32(first))
	copy(b[:n], whole[off-first*BlockSize:])
	if n < int64(len(b)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

func checkReader(t testing.TB, m *model, image []byte) {
	t.Helper()
	if m.hasClusters() {
		m = m.withHoles()
		image = m.image(t)
	}
	var devices []io.ReaderAt
	for i, d := range m.opts.Devices {
		devices = append(devices, patternDevice{uint16(i + 1), d.Blocks})
	}
	// It reads a whole block from the start of a shared xattr, even at the image's end.
	image = append(image[:len(image):len(image)], make([]byte, BlockSize)...)
	fsys, err := goerofs.Open(bytes.NewReader(image), goerofs.WithExtraDevices(devices...))
	if err != nil {
		t.Fatalf("second reader: %v", err)
	}
	r := &readerCheck{t: t, m: m, fs: fsys, nids: map[Ino]int64{}}
	info, err := fs.Stat(fsys, ".")
	if err != nil {
		t.Fatalf("second reader: stat root: %v", err)
	}
	r.inode(".", info, RootIno)
	r.dir(".", RootIno)
}

type readerCheck struct {
	t    testing.TB
	m    *model
	fs   fs.FS
	nids map[Ino]int64
}

func (r *readerCheck) dir(name string, i Ino) {
	r.t.Helper()
	got, err := fs.ReadDir(r.fs, name)
	if err != nil {
		r.t.Errorf("second reader: readdir %q: %v", name, err)
		return
	}
	entries := map[string]fs.DirEntry{}
	for _, e := range got {
		entries[e.Name()] = e
	}
	want := r.m.children(i)
	if len(got) != len(want) || len(entries) != len(want) {
		r.t.Errorf("second reader: %q has %d entries, want %d", name, len(got), len(want))
	}
	for _, l := range want {
		e := entries[l.name]
		sub := path.Join(name, l.name)
		if e == nil {
			r.t.Errorf("second reader: %q is missing", sub)
			continue
		}
		info, err := e.Info()
		if err != nil {
			r.t.Errorf("second reader: stat %q: %v", sub, err)
			continue
		}
		r.inode(sub, info, l.child)
		if r.m.isDir(l.child) && utf8.ValidString(sub) {
			r.dir(sub, l.child)
		}
	}
}

var fileModes = map[uint32]fs.FileMode{
	unix.S_IFREG: 0, unix.S_IFDIR: fs.ModeDir, unix.S_IFLNK: fs.ModeSymlink, unix.S_IFIFO: fs.ModeNamedPipe,
	unix.S_IFSOCK: fs.ModeSocket, unix.S_IFBLK: fs.ModeDevice, unix.S_IFCHR: fs.ModeDevice | fs.ModeCharDevice,
}

func (r *readerCheck) inode(name string, info fs.FileInfo, i Ino) {
	r.t.Helper()
	in := &r.m.inodes[i]
	st := info.Sys().(*goerofs.Stat)
	if nid, ok := r.nids[i]; ok && nid != st.Ino {
		r.t.Errorf("second reader: %q has nid %d, its other links %d", name, st.Ino, nid)
	}
	r.nids[i] = st.Ino
	kind := in.Mode & unix.S_IFMT
	if got, want := info.Mode()&(fs.ModeType|0o777), fileModes[kind]|fs.FileMode(in.Mode&0o777); got != want {
		r.t.Errorf("second reader: %q has mode %v, want %v", name, got, want)
	}
	if st.UID != in.UID || st.GID != in.GID || int64(st.Mtime) != in.Mtime || st.MtimeNs != in.MtimeNsec || st.Nlink != r.m.nlink(i) {
		r.t.Errorf("second reader: %q is %+v, want %+v with nlink %d", name, st, in, r.m.nlink(i))
	}
	want := map[string]string{}
	for _, x := range in.Xattrs {
		want[x.Name] = string(x.Value)
	}
	for x, value := range st.Xattrs {
		x = strings.TrimSuffix(x, ".") // it shows a dot behind the ACL names
		if v, ok := want[x]; !ok || v != value {
			r.t.Errorf("second reader: %q: xattr %q is %d bytes, want %d", name, x, len(value), len(v))
		}
		delete(want, x)
	}
	for x := range want {
		r.t.Errorf("second reader: %q: xattr %q is missing", name, x)
	}

	switch kind {
	case unix.S_IFCHR, unix.S_IFBLK:
		if disk, _ := encodeRdev(in.Rdev); uint64(st.Rdev) != disk {
			r.t.Errorf("second reader: %q is device %#x, want %#x", name, st.Rdev, disk)
		}
	case unix.S_IFREG:
		if info.Size() != in.Size {
			r.t.Errorf("second reader: %q has size %d, want %d", name, info.Size(), in.Size)
		} else if in.Size <= 1<<20 && utf8.ValidString(name) {
			b, err := fs.ReadFile(r.fs, name)
			if want := r.m.content(i, 0, in.Size); err != nil || !bytes.Equal(b, want) {
				r.t.Errorf("second reader: %q: %v, content differs: %s", name, err, firstDifference(b, want))
			}
		}
	case unix.S_IFLNK:
		if utf8.ValidString(name) {
			target, err := r.fs.(interface{ ReadLink(string) (string, error) }).ReadLink(name)
			if err != nil || target != in.Target {
				r.t.Errorf("second reader: readlink %q: %v, %q, want %q", name, err, target, in.Target)
			}
		}
	}
}

func TestSecondReaderShowsTheTree(t *testing.T) {
	for _, tc := range trees {
		t.Run(tc.name, func(t *testing.T) {
			if tc.kernelOnly != "" {
				t.Skip(tc.kernelOnly)
			}
			m := tc.build()
			checkReader(t, m, m.image(t))
		})
	}
}
