// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	paxXattr       = "SCHILY.xattr."

	// maxTarPath is what a system call takes: no unpacker could make longer
	// ones, and deep trees are not cheap.
	maxTarPath = 4095
)

// FromTar reads an OCI layer's tar stream up to the end of the archive: its
// entries go to the TOC, contents above InlineMax to the store. What follows
// the archive's end marker is left in r.
//
// The entries mean what they mean to containerd's own applier on overlayfs:
// times before 1970 or after 2262 become 1970, extended attributes that a file
// system would not take from it are left out, names are cleaned as absolute
// paths. ErrInvalidArgument: a name or a header that no file system could show.
func FromTar(ctx context.Context, r io.Reader, toc *Writer, store ContentStore) error {
	tr := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read tar: %w", err)
		}
		e, skip, err := fromHeader(h)
		if err != nil {
			return fmt.Errorf("tar entry %q: %w", h.Name, err)
		}
		if skip {
			continue
		}
		if e.Type == TypeReg {
			if err := readContent(ctxReader{ctx, tr}, &e, store); err != nil {
				return fmt.Errorf("tar entry %q: %w", h.Name, err)
			}
		}
		if err := toc.Add(&e); err != nil {
			return err
		}
	}
}

// readContent takes an entry's bytes: small ones into the entry, others into
// the store.
func readContent(r io.Reader, e *Entry, store ContentStore) (err error) {
	if e.Size > InlineMax {
		e.Digest, err = store.Put(r, e.Size)
		return err
	}
	e.Inline = make([]byte, e.Size)
	if _, err = io.ReadFull(r, e.Inline); err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// ctxReader ends with its context: the zeros of a sparse file come from nowhere
// and can go on for days.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r ctxReader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}

// fromHeader turns a tar header into an entry, without its content. skip is
// set for what says nothing about the tree.
func fromHeader(h *tar.Header) (e Entry, skip bool, err error) {
	e = Entry{Path: clean(h.Name)}
	if n := max(len(h.Name), len(h.Linkname)); n > maxTarPath {
		return e, false, fmt.Errorf("path of %d bytes: %w", n, errdefs.ErrInvalidArgument)
	}
	if dir, base := path.Split(e.Path); strings.HasPrefix(base, whiteoutPrefix) {
		dir = strings.TrimSuffix(dir, "/")
		if base == opaqueMarker {
			return Entry{Type: TypeOpaque, Path: dir}, false, nil
		}
		hidden := base[len(whiteoutPrefix):]
		if hidden == "" || hidden == "." || hidden == ".." {
			return e, false, fmt.Errorf("whiteout names no file: %w", errdefs.ErrInvalidArgument)
		}
		return Entry{Type: TypeWhiteout, Path: path.Join(dir, hidden)}, false, nil
	}
	if e.Path == "" {
		return e, true, nil // the root is not an image's to describe
	}
	switch h.Typeflag {
	case tar.TypeReg, 0, tar.TypeCont, tar.TypeGNUSparse:
		e.Type, e.Size = TypeReg, h.Size
	case tar.TypeDir:
		e.Type = TypeDir
	case tar.TypeSymlink:
		e.Type, e.Target = TypeSymlink, h.Linkname
	case tar.TypeLink:
		e.Type, e.Target = TypeHardlink, clean(h.Linkname)
	case tar.TypeChar, tar.TypeBlock:
		e.Type = TypeChar
		if h.Typeflag == tar.TypeBlock {
			e.Type = TypeBlock
		}
		if h.Devmajor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor < 0 || h.Devminor > math.MaxUint32 {
			return e, false, fmt.Errorf("device number %d:%d is out of range: %w", h.Devmajor, h.Devminor, errdefs.ErrInvalidArgument)
		}
		e.Major, e.Minor = uint32(h.Devmajor)&0xfff, uint32(h.Devminor)&0xfffff // all that mknod takes
	case tar.TypeFifo:
		e.Type = TypeFifo
	case tar.TypeXGlobalHeader:
		return e, true, nil
	default:
		return e, false, fmt.Errorf("tar entry type %q is not known: %w", h.Typeflag, errdefs.ErrInvalidArgument)
	}
	e.Mode, e.UID, e.GID = uint32(h.Mode)&07777, uint32(h.Uid), uint32(h.Gid)
	e.Mtime, e.MtimeNsec = bound(h.ModTime)
	e.Xattrs, err = xattrsFromPAX(h.PAXRecords)
	return e, false, err
}

// clean makes a name from a tar a path below the root.
func clean(name string) string { return path.Clean("/" + name)[1:] }

// bound gives times that os.Chtimes, and so containerd's applier, cannot set
// the value that it gives them: the epoch.
func bound(t time.Time) (sec int64, nsec uint32) {
	if t.Before(time.Unix(0, 0)) || t.After(time.Unix(0, math.MaxInt64)) {
		return 0, 0
	}
	return t.Unix(), uint32(t.Nanosecond())
}

// xattrsFromPAX picks the attributes that may come from an image, sorted by
// name. Those of the "trusted." class belong to the host, overlayfs's own
// included, and unknown classes have no meaning to the kernel.
func xattrsFromPAX(records map[string]string) ([]Xattr, error) {
	var xs []Xattr
	for key, value := range records {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		x := Xattr{name, []byte(value)}
		switch {
		case name == ACLAccess || name == ACLDefault:
			if len(value) == aclHeader {
				continue // an ACL without entries is none
			}
			if err := checkACL(x.Value); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		case name == "security.capability":
			if err := checkCapability(x.Value); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		case strings.HasPrefix(name, "user.") && len(name) > len("user."):
		case strings.HasPrefix(name, "security.") && len(name) > len("security."):
		default:
			continue
		}
		xs = append(xs, x)
	}
	sortXattrs(xs)
	return xs, nil
}
