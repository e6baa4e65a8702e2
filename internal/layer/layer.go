// SPDX-License-Identifier: Apache-2.0

// Package layer owns the TOC, the table of contents of one image layer, the
// two ways in which a layer comes in, and the one in which it goes out.
//
//	tar stream ──────FromTar──┬─▶ every entry ─▶ TOC (a file)
//	upper directory ─FromUpper┘
//	                          └─▶ every regular file's bytes ─▶ ContentStore
//
//	TOC + contents ──Reader────┬─▶ TarWriter ─▶ tar stream
//	upper directory ─WalkUpper─┘
//
// A TOC says what the layer says, in the order in which the layer says it, and
// settles nothing: duplicates, whiteouts and links to names that only a lower
// layer has are written down as they come. What they mean together with the
// layers below is decided by package flatten.
//
// Kept here of the design's invariants: names are data and never become paths
// on the host (6; the upper directory is walked by descriptors), and one
// buffer per stage whatever the size of the layer (8).
package layer

import (
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// InlineMax is the size in bytes up to which a file's content is kept in the
// TOC and in flat images themselves. A block of the pack costs 4 KiB whatever
// it holds, so up to here a copy in the TOC and one in each of a few images
// are cheaper.
const InlineMax = 1024

// Digest is the SHA-256 of a content.
type Digest [32]byte

// ContentStore takes the contents of regular files.
type ContentStore interface {
	// Put reads exactly size bytes, keeps them once per node, and returns
	// their digest.
	Put(r io.Reader, size int64) (Digest, error)
}

// Type is the kind of an entry.
type Type uint8

// The numbers are part of the TOC format.
const (
	TypeDir      Type = 1
	TypeReg      Type = 2
	TypeSymlink  Type = 3
	TypeHardlink Type = 4 // another name for Target; metadata applies to both
	TypeChar     Type = 5
	TypeBlock    Type = 6
	TypeFifo     Type = 7
	TypeSocket   Type = 8
	TypeWhiteout Type = 9  // the lower layers' Path is hidden
	TypeOpaque   Type = 10 // the lower layers' content of directory Path is hidden
	typeEnd      Type = 11
)

// Xattr is an extended attribute with its full name, such as "user.mime".
type Xattr struct {
	Name  string
	Value []byte
}

// Entry is one line of a TOC.
type Entry struct {
	Type Type
	// Path is relative to the image's root, without "." and ".." and double
	// slashes; the root itself is "". Any bytes but NUL.
	Path string

	Mode      uint32 // permission, setuid, setgid and sticky bits: 07777
	UID, GID  uint32 // 1<<32-1: what chown(2) means by -1, no change
	Mtime     int64  // seconds
	MtimeNsec uint32
	Xattrs    []Xattr

	Size   int64  // TypeReg: bytes
	Digest Digest // TypeReg with Size > InlineMax
	Inline []byte // TypeReg with Size <= InlineMax: the content

	Target       string // TypeSymlink: as it is; TypeHardlink: like Path
	Major, Minor uint32 // TypeChar, TypeBlock
}

// ContentDigest is that of a regular file's content, which may stand in the
// entry itself.
func (e *Entry) ContentDigest() Digest {
	if e.Size <= InlineMax {
		return sha256.Sum256(e.Inline)
	}
	return e.Digest
}

// Format is the type as st_mode has it. A whiteout is the device 0:0, as for
// overlayfs.
func (t Type) Format() uint32 {
	switch t {
	case TypeDir:
		return unix.S_IFDIR
	case TypeSymlink:
		return unix.S_IFLNK
	case TypeChar, TypeWhiteout:
		return unix.S_IFCHR
	case TypeBlock:
		return unix.S_IFBLK
	case TypeFifo:
		return unix.S_IFIFO
	case TypeSocket:
		return unix.S_IFSOCK
	}
	return unix.S_IFREG
}

// Limits that image and kernel formats share.
const (
	maxName       = 255
	maxSymlink    = 4095
	maxPath       = 64 << 10
	maxXattrName  = 255
	maxXattrValue = 65535
	maxXattrs     = 64 << 10 // bytes of names and values of one entry, in total
)

// check refuses what no file system could show. ErrInvalidArgument.
func (e *Entry) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("entry %q: %s: %w", e.Path, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
	}
	if e.Type == 0 || e.Type >= typeEnd {
		return bad("type %d is not known", e.Type)
	}
	if err := checkPath(e.Path); err != nil {
		return bad("%v", err)
	}
	if e.Path == "" && e.Type != TypeDir && e.Type != TypeOpaque {
		return bad("only a directory can be the root")
	}
	if e.Mode&^07777 != 0 || e.MtimeNsec > 999_999_999 {
		return bad("mode %o or nanoseconds %d out of range", e.Mode, e.MtimeNsec)
	}
	total := 0
	for _, x := range e.Xattrs {
		total += len(x.Name) + len(x.Value)
		if x.Name == "" || len(x.Name) > maxXattrName || len(x.Value) > maxXattrValue || total > maxXattrs {
			return bad("extended attribute %q is too large: %d bytes, %d with those before it", x.Name, len(x.Value), total)
		}
	}
	switch e.Type {
	case TypeReg:
		if e.Size < 0 || (e.Size <= InlineMax) != (int64(len(e.Inline)) == e.Size) {
			return bad("%d bytes inline of a size of %d", len(e.Inline), e.Size)
		}
	case TypeSymlink:
		if e.Target == "" || len(e.Target) > maxSymlink {
			return bad("symlink target of %d bytes", len(e.Target))
		}
	case TypeHardlink:
		if err := checkPath(e.Target); err != nil || e.Target == "" {
			return bad("hardlink target %q", e.Target)
		}
	}
	return nil
}

func checkPath(p string) error {
	if p == "" {
		return nil
	}
	if len(p) > maxPath {
		return fmt.Errorf("path of %d bytes", len(p))
	}
	start := 0
	for i := 0; i <= len(p); i++ {
		if i < len(p) && p[i] == 0 {
			return fmt.Errorf("NUL in the name")
		}
		if i < len(p) && p[i] != '/' {
			continue
		}
		switch name := p[start:i]; {
		case name == "" || name == "." || name == "..":
			return fmt.Errorf("path is not clean")
		case len(name) > maxName:
			return fmt.Errorf("a name of %d bytes is longer than %d", len(name), maxName)
		}
		start = i + 1
	}
	return nil
}
