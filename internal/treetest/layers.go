// SPDX-License-Identifier: Apache-2.0

package treetest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"path"
	"time"
)

// Step is one piece of a layer's tar stream: usually one entry.
type Step struct {
	hdr  tar.Header
	body []byte
	raw  []byte // verbatim stream bytes instead of hdr and body
}

// Opt changes the metadata of a Step.
type Opt func(*tar.Header)

// Mode sets the permission bits, setuid, setgid and sticky included.
func Mode(mode int64) Opt { return func(h *tar.Header) { h.Mode = mode } }

// Owner sets the numeric owner and group.
func Owner(uid, gid int) Opt { return func(h *tar.Header) { h.Uid, h.Gid = uid, gid } }

// Mtime sets the modification time in seconds and nanoseconds since 1970.
func Mtime(sec, nsec int64) Opt {
	return func(h *tar.Header) { h.ModTime = time.Unix(sec, nsec) }
}

// Xattr adds an extended attribute under its full name, such as "user.a".
func Xattr(name, value string) Opt { return PAX("SCHILY.xattr."+name, value) }

// PAX adds an extended header record.
func PAX(key, value string) Opt {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[key] = value
	}
}

// GNU asks for the GNU format, whose long names and large numbers are encoded
// otherwise than in PAX.
func GNU() Opt { return func(h *tar.Header) { h.Format = tar.FormatGNU } }

// defaultMtime is the time of entries that ask for none, in seconds.
const defaultMtime = 1_600_000_000

func step(typ byte, name string, mode int64, opts []Opt) Step {
	s := Step{hdr: tar.Header{Typeflag: typ, Name: name, Mode: mode}}
	s.hdr.ModTime = time.Unix(defaultMtime, 0)
	for _, o := range opts {
		o(&s.hdr)
	}
	return s
}

// Dir states a directory, mode 0755 unless an Opt says otherwise.
func Dir(name string, opts ...Opt) Step { return step(tar.TypeDir, name, 0o755, opts) }

// File is a regular file, mode 0644 unless an Opt says otherwise.
func File(name, content string, opts ...Opt) Step {
	s := step(tar.TypeReg, name, 0o644, opts)
	s.body = []byte(content)
	s.hdr.Size = int64(len(content))
	return s
}

// Symlink is a symbolic link with the given target text.
func Symlink(name, target string, opts ...Opt) Step {
	s := step(tar.TypeSymlink, name, 0o777, opts)
	s.hdr.Linkname = target
	return s
}

// Hardlink is another name for the file target. Its header carries metadata
// of its own (mode 0644 unless an Opt says otherwise), which the reference
// applies to the shared inode.
func Hardlink(name, target string, opts ...Opt) Step {
	s := step(tar.TypeLink, name, 0o644, opts)
	s.hdr.Linkname = target
	return s
}

// Char is a character device.
func Char(name string, major, minor int64, opts ...Opt) Step {
	return device(tar.TypeChar, name, major, minor, opts)
}

// Block is a block device.
func Block(name string, major, minor int64, opts ...Opt) Step {
	return device(tar.TypeBlock, name, major, minor, opts)
}

func device(typ byte, name string, major, minor int64, opts []Opt) Step {
	s := step(typ, name, 0o600, opts)
	s.hdr.Devmajor, s.hdr.Devminor = major, minor
	return s
}

// Fifo is a named pipe.
func Fifo(name string, opts ...Opt) Step { return step(tar.TypeFifo, name, 0o600, opts) }

// Whiteout deletes name from the layers below, by an empty file with the
// prefix ".wh." in the same directory.
func Whiteout(name string, opts ...Opt) Step {
	dir, base := path.Split(name)
	return File(dir+".wh."+base, "", opts...)
}

// Opaque hides what the layers below have in dir.
func Opaque(dir string, opts ...Opt) Step {
	return File(path.Join(dir, ".wh..wh..opq"), "", opts...)
}

// Header is any entry that archive/tar's writer can encode.
func Header(hdr tar.Header, body string) Step {
	hdr.Size = int64(len(body))
	return Step{hdr: hdr, body: []byte(body)}
}

// Raw is put into the stream as it is. Its length must be a multiple of 512.
func Raw(b []byte) Step { return Step{raw: b} }

// Layer encodes steps as one tar stream. The same steps give the same bytes.
// A step that cannot be encoded is a mistake in the test's source: it panics.
func Layer(steps ...Step) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, s := range steps {
		if s.raw != nil {
			if err := w.Flush(); err != nil {
				panic(fmt.Sprintf("treetest: flush before raw bytes: %v", err))
			}
			out.Write(s.raw)
			continue
		}
		hdr := s.hdr
		if hdr.Format == tar.FormatUnknown && (hdr.ModTime.Nanosecond() != 0 || len(hdr.PAXRecords) > 0) {
			hdr.Format = tar.FormatPAX // otherwise the writer rounds times to seconds
		}
		if err := w.WriteHeader(&hdr); err != nil {
			panic(fmt.Sprintf("treetest: encode %q: %v", hdr.Name, err))
		}
		if _, err := w.Write(s.body); err != nil {
			panic(fmt.Sprintf("treetest: content of %q: %v", hdr.Name, err))
		}
	}
	if err := w.Close(); err != nil {
		panic(fmt.Sprintf("treetest: close layer: %v", err))
	}
	return out.Bytes()
}
