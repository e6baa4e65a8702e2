// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// Epoch is the mtime of every entry that asks for no other.
var Epoch = time.Date(2026, time.January, 2, 3, 4, 5, 0, time.UTC)

// Attr changes one property of the entry that is being written.
type Attr func(*tar.Header)

// Owner sets uid and gid.
func Owner(uid, gid int) Attr { return func(h *tar.Header) { h.Uid, h.Gid = uid, gid } }

// Mtime sets the modification time, to the nanosecond.
func Mtime(t time.Time) Attr { return func(h *tar.Header) { h.ModTime = t } }

// Xattr adds one extended attribute under its full name.
func Xattr(name, value string) Attr {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
}

// LayerWriter writes the entries of one layer in the order of the calls. Names are relative to the root and
// have no leading slash. Everything is written as PAX, since only PAX carries nanoseconds and xattrs.
type LayerWriter struct {
	tar *tar.Writer
}

func (w *LayerWriter) entry(h *tar.Header, content []byte, attrs []Attr) error {
	h.ModTime, h.Size = Epoch, int64(len(content))
	for _, a := range attrs {
		a(h)
	}
	return w.Entry(h, bytes.NewReader(content))
}

// Entry writes an entry with all that its header says, and as many bytes of content as its size says.
func (w *LayerWriter) Entry(h *tar.Header, content io.Reader) error {
	h.Format = tar.FormatPAX
	if err := w.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("tar entry %q: %w", h.Name, err)
	}
	if n, err := io.Copy(w.tar, content); err != nil || n != h.Size {
		return fmt.Errorf("tar entry %q: %d of %d bytes: %w", h.Name, n, h.Size, cmp.Or(err, io.ErrUnexpectedEOF))
	}
	return nil
}

// Dir writes a directory.
func (w *LayerWriter) Dir(name string, mode int64, attrs ...Attr) error {
	return w.entry(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}, nil, attrs)
}

// File writes a regular file.
func (w *LayerWriter) File(name string, mode int64, content []byte, attrs ...Attr) error {
	return w.entry(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, content, attrs)
}

// Symlink writes a symbolic link.
func (w *LayerWriter) Symlink(name, target string, attrs ...Attr) error {
	return w.entry(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil, attrs)
}

// Hardlink writes another name of the file that this layer wrote as target.
func (w *LayerWriter) Hardlink(name, target string, attrs ...Attr) error {
	return w.entry(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}, nil, attrs)
}

// Device writes a device or, with type tar.TypeFifo, a fifo.
func (w *LayerWriter) Device(name string, typeflag byte, mode, major, minor int64, attrs ...Attr) error {
	h := &tar.Header{Typeflag: typeflag, Name: name, Mode: mode, Devmajor: major, Devminor: minor}
	return w.entry(h, nil, attrs)
}

// Whiteout hides name and what is below it in lower layers.
func (w *LayerWriter) Whiteout(name string) error {
	return w.File(path.Join(path.Dir(name), ".wh."+path.Base(name)), 0, nil)
}

// Opaque hides what lower layers have in the directory name.
func (w *LayerWriter) Opaque(name string) error {
	return w.File(path.Join(name, ".wh..wh..opq"), 0, nil)
}

// Copy describes what CopyTree takes and what it makes of it.
type Copy struct {
	Keep  func(rel string, dir bool) bool         // nil: everything; a directory that is not kept is not entered
	Edit  func(rel string, content []byte) []byte // nil: contents stay
	Attrs []Attr
}

// CopyTree writes the host directory from and everything kept below it as name. Modes are taken over, owners
// and times are not. Other things than directories, regular files and symlinks are an error.
func (w *LayerWriter) CopyTree(name, from string, c Copy) error {
	return filepath.WalkDir(from, func(host string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, host)
		if err != nil {
			return err
		}
		if rel != "." && c.Keep != nil && !c.Keep(rel, d.IsDir()) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		to, mode := path.Join(name, filepath.ToSlash(rel)), int64(info.Mode().Perm())
		switch info.Mode().Type() {
		case fs.ModeDir:
			return w.Dir(to, mode, c.Attrs...)
		case fs.ModeSymlink:
			target, err := os.Readlink(host)
			if err != nil {
				return err
			}
			return w.Symlink(to, target, c.Attrs...)
		case 0:
			content, err := os.ReadFile(host)
			if err != nil {
				return err
			}
			if c.Edit != nil {
				content = c.Edit(rel, content)
			}
			return w.File(to, mode, content, c.Attrs...)
		}
		return fmt.Errorf("copy %s: type %v is not supported", host, info.Mode().Type())
	})
}

// below tells whether name is dir or lies in it.
func below(name, dir string) bool {
	return name == dir || strings.HasPrefix(name, dir+"/")
}
