// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	overlayPrefix   = "trusted.overlay."
	overlayOpaque   = "trusted.overlay.opaque"
	overlayWhiteout = "trusted.overlay.whiteout"
)

// FromUpper takes in a directory that was overlayfs's upper one: what it adds
// and hides goes to the TOC, contents above InlineMax to the store. With root
// set, the directory's own metadata is the image's root's.
//
// Nothing may write into the directory meanwhile. Names are met by descriptor,
// one component at a time, and no symlink is followed. Entries come in byte
// order, so the same directory gives the same TOC.
func FromUpper(ctx context.Context, dir string, root bool, toc *Writer, store ContentStore) error {
	err := WalkUpper(ctx, dir, root, func(e *Entry, content io.Reader) error {
		if e.Type == TypeReg {
			if err := readContent(content, e, store); err != nil {
				return fmt.Errorf("%q: %w", e.Path, err)
			}
		}
		return toc.Add(e)
	})
	if err != nil {
		return fmt.Errorf("take in upper directory %s: %w", dir, err)
	}
	return nil
}

// Directory returns the metadata of a directory as an entry without a path.
// overlayfs's own attributes are left out.
func Directory(dir string) (Entry, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return Entry{}, fmt.Errorf("stat %s: %w", dir, err)
	}
	xs, _, err := readXattrs(dir)
	if err != nil {
		return Entry{}, fmt.Errorf("%s: %w", dir, err)
	}
	return entryOf(TypeDir, "", &st, xs), nil
}

// WalkUpper calls each for every entry of a directory as FromUpper takes it in.
// Regular files come without Digest and Inline, and with their content, of which
// there may be less than their size if somebody writes into them.
func WalkUpper(ctx context.Context, dir string, root bool, each func(e *Entry, content io.Reader) error) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open upper directory %s: %w", dir, err)
	}
	w := &upperWalk{ctx: ctx, each: each, links: map[uint64]string{}}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	return w.directory(f, "", root)
}

type upperWalk struct {
	ctx   context.Context
	each  func(e *Entry, content io.Reader) error
	links map[uint64]string // inode with several names ─▶ the first one met
}

// directory adds the directory d, known as p, and all below it.
func (w *upperWalk) directory(d *os.File, p string, stated bool) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		return fmt.Errorf("%q: stat: %w", p, err)
	}
	xs, overlay, err := readXattrs(procPath(d, "."))
	if err != nil {
		return fmt.Errorf("%q: %w", p, err)
	}
	if stated {
		e := entryOf(TypeDir, p, &st, xs)
		if err := w.each(&e, nil); err != nil {
			return err
		}
	}
	if string(overlay[overlayOpaque]) == "y" {
		if err := w.each(&Entry{Type: TypeOpaque, Path: p}, nil); err != nil {
			return err
		}
	}
	names, err := d.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("%q: list: %w", p, err)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := w.name(d, name, path.Join(p, name)); err != nil {
			return err
		}
	}
	return nil
}

// name adds what stands under a name in directory d.
func (w *upperWalk) name(d *os.File, name, p string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%q: stat: %w", p, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		sub, err := openAt(d, name, unix.O_DIRECTORY)
		if err != nil {
			return fmt.Errorf("%q: open: %w", p, err)
		}
		defer sub.Close()
		return w.directory(sub, p, true)
	}
	xs, overlay, err := readXattrs(procPath(d, name))
	if err != nil {
		return fmt.Errorf("%q: %w", p, err)
	}
	if _, ok := overlay[overlayWhiteout]; ok || st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
		return w.each(&Entry{Type: TypeWhiteout, Path: p}, nil)
	}
	if first, ok := w.links[st.Ino]; ok {
		e := entryOf(TypeHardlink, p, &st, xs)
		e.Target = first
		return w.each(&e, nil)
	}
	if st.Nlink > 1 {
		w.links[st.Ino] = p
	}
	e := entryOf(typeOf(st.Mode), p, &st, xs)
	switch e.Type {
	case TypeReg:
		return w.file(d, name, &e)
	case TypeSymlink:
		e.Target, err = os.Readlink(procPath(d, name))
	case TypeChar, TypeBlock:
		e.Major, e.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	if err != nil {
		return fmt.Errorf("%q: %w", p, err)
	}
	return w.each(&e, nil)
}

// file adds a regular file. The name may have become another file's since it
// was looked at, and a device is not to be opened: what it names is pinned and
// looked at again first.
func (w *upperWalk) file(d *os.File, name string, e *Entry) error {
	pinned, err := openAt(d, name, unix.O_PATH)
	if err != nil {
		return fmt.Errorf("%q: open: %w", e.Path, err)
	}
	defer pinned.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(pinned.Fd()), &st); err != nil {
		return fmt.Errorf("%q: stat: %w", e.Path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%q: it is no regular file any more: %w", e.Path, errdefs.ErrFailedPrecondition)
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", pinned.Fd()))
	if err != nil {
		return fmt.Errorf("%q: open: %w", e.Path, err)
	}
	defer f.Close()
	return w.each(e, ctxReader{w.ctx, io.LimitReader(f, e.Size)})
}

func entryOf(t Type, p string, st *unix.Stat_t, xs []Xattr) Entry {
	return Entry{Type: t, Path: p, Mode: st.Mode & 07777, UID: st.Uid, GID: st.Gid,
		Mtime: st.Mtim.Sec, MtimeNsec: uint32(st.Mtim.Nsec), Xattrs: xs, Size: st.Size}
}

func typeOf(mode uint32) Type {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return TypeReg
	case unix.S_IFLNK:
		return TypeSymlink
	case unix.S_IFCHR:
		return TypeChar
	case unix.S_IFBLK:
		return TypeBlock
	case unix.S_IFIFO:
		return TypeFifo
	}
	return TypeSocket
}

func openAt(d *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(d.Fd()), name, flags|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// procPath names a directory's entry for calls that take a path: short
// whatever the depth, and nothing above the last component can be swapped.
func procPath(d *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name)
}

// readXattrs returns a file's attributes sorted by name, overlayfs's own apart.
func readXattrs(p string) (xs []Xattr, overlay map[string][]byte, err error) {
	list, err := sized(func(b []byte) (int, error) { return unix.Llistxattr(p, b) })
	if errors.Is(err, unix.ENOTSUP) || err == nil && len(list) == 0 {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list extended attributes: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		value, err := sized(func(b []byte) (int, error) { return unix.Lgetxattr(p, name, b) })
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read extended attribute %q: %w", name, err)
		}
		if strings.HasPrefix(name, overlayPrefix) {
			if overlay == nil {
				overlay = map[string][]byte{}
			}
			overlay[name] = value
			continue
		}
		xs = append(xs, Xattr{name, value})
	}
	sortXattrs(xs)
	return xs, overlay, nil
}

// sized calls a system call that fills a buffer or, given none, tells its size.
func sized(call func([]byte) (int, error)) ([]byte, error) {
	b := make([]byte, 256)
	for {
		n, err := call(b)
		if err == nil {
			return b[:n], nil
		}
		if !errors.Is(err, unix.ERANGE) {
			return nil, err
		}
		if n, err = call(nil); err != nil {
			return nil, err
		}
		b = make([]byte, n)
	}
}
