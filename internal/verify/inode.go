// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/squash-snapshotter/squash/internal/erofs"
	"github.com/squash-snapshotter/squash/internal/flatten"
	"github.com/squash-snapshotter/squash/internal/layer"
	"golang.org/x/sys/unix"
)

// metadata compares all but names and contents.
func (c *comparison) metadata(p string, v *flatten.Version, dir *os.File, base string) error {
	e := &v.Entry
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("stat %q: %w", p, err)
	}
	if want, got := e.Type.Format(), st.Mode&unix.S_IFMT; want != got {
		return c.differs(p, v, "type", modeName(want), modeName(got))
	}
	if want, got := e.Mode, st.Mode&07777; want != got {
		return c.differs(p, v, "mode", fmt.Sprintf("%04o", want), fmt.Sprintf("%04o", got))
	}
	if e.UID != st.Uid || e.GID != st.Gid {
		return c.differs(p, v, "owner", fmt.Sprintf("%d:%d", e.UID, e.GID), fmt.Sprintf("%d:%d", st.Uid, st.Gid))
	}
	timed := c.impliedTimes || !v.Implied || e.Type != layer.TypeDir
	if timed && (e.Mtime != st.Mtim.Sec || int64(e.MtimeNsec) != st.Mtim.Nsec) {
		return c.differs(p, v, "mtime", fmt.Sprintf("%d.%09d", e.Mtime, e.MtimeNsec), fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec))
	}
	switch e.Type {
	case layer.TypeReg:
		if e.Size != st.Size {
			return c.differs(p, v, "size", e.Size, st.Size)
		}
	case layer.TypeChar, layer.TypeBlock:
		if want := unix.Mkdev(e.Major, e.Minor); want != st.Rdev {
			return c.differs(p, v, "device", fmt.Sprintf("%d:%d", e.Major, e.Minor), fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
		}
	case layer.TypeSymlink:
		n, err := unix.Readlinkat(int(dir.Fd()), base, c.buf)
		if err != nil {
			return fmt.Errorf("read link %q: %w", p, err)
		}
		if got := string(c.buf[:n]); e.Target != got {
			return c.differs(p, v, "target", e.Target, got)
		}
	}
	if err := c.links(p, v, &st); err != nil {
		return err
	}
	return c.xattrs(p, v, dir, base)
}

// links compares which names are the same inode.
func (c *comparison) links(p string, v *flatten.Version, st *unix.Stat_t) error {
	if v.Entry.Type == layer.TypeDir {
		return nil
	}
	want, got := p, p
	if v.SameAs != "" {
		want = v.SameAs
	}
	if st.Nlink > 1 {
		if first, ok := c.first[st.Ino]; ok {
			got = first
		} else {
			c.first[st.Ino] = p
		}
	}
	if want != got {
		return c.differs(p, v, "hardlink", "the same file as /"+want, "the same file as /"+got)
	}
	return nil
}

// xattrs compares extended attributes. Of those that a layer states, a flat
// image holds the ones of the namespaces that EROFS knows.
func (c *comparison) xattrs(p string, v *flatten.Version, dir *os.File, base string) error {
	// The directory's descriptor leads to the name itself, whatever it is.
	at := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), base)
	want := map[string]string{}
	for _, x := range v.Entry.Xattrs {
		if erofs.StoresXattr(x.Name) {
			want[x.Name] = string(x.Value)
		}
	}
	n, err := unix.Llistxattr(at, c.buf)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("list attributes of %q: %w", p, err)
	}
	var names []string
	if n > 0 {
		names = strings.Split(strings.TrimSuffix(string(c.buf[:n]), "\x00"), "\x00")
	}
	for _, name := range names {
		n, err := unix.Lgetxattr(at, name, c.buf)
		if err != nil {
			return fmt.Errorf("attribute %s of %q: %w", name, p, err)
		}
		value, ok := want[name]
		if got := string(c.buf[:n]); !ok {
			return c.differs(p, v, "xattr "+name, "none", fmt.Sprintf("%q", got))
		} else if value != got {
			return c.differs(p, v, "xattr "+name, fmt.Sprintf("%q", value), fmt.Sprintf("%q", got))
		}
		delete(want, name)
	}
	if len(want) > 0 {
		name := slices.Min(slices.Collect(maps.Keys(want)))
		return c.differs(p, v, "xattr "+name, fmt.Sprintf("%q", want[name]), "none")
	}
	return nil
}

// content compares the bytes of a regular file by their digest.
func (c *comparison) content(ctx context.Context, p string, v *flatten.Version, dir *os.File, base string) error {
	f, err := openAt(dir, base, unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("open %q: %w", p, err)
	}
	defer f.Close()
	h := sha256.New()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.Read(c.buf)
		h.Write(c.buf[:n])
		c.Bytes += uint64(n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			// The kernel refuses data that it cannot decode: what containers get.
			return c.differs(p, v, "content", wantDigest(v), err.Error())
		}
	}
	if got := digestText(h.Sum(nil)); got != wantDigest(v) {
		return c.differs(p, v, "content", wantDigest(v), got)
	}
	return nil
}

func wantDigest(v *flatten.Version) string {
	d := v.Entry.ContentDigest()
	return digestText(d[:])
}
