// SPDX-License-Identifier: Apache-2.0

// Package tree owns the answer to "what does this file tree look like?": it turns a directory into a sorted
// list of entries that holds everything a container can see, and into one digest of that list.
//
//	directory ──Walk──▶ []Entry ──Digest──▶ sha256 hex
//
// The same code runs inside containers (the guest program) and on the host, so that two mounts of one image
// can be compared entry by entry. It is the judge of DESIGN invariant 1 in the tests with real containers.
// It reads; it never writes.
package tree

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Entry is one name in a tree.
type Entry struct {
	Path    string // relative to the root of the walk, "." for the root itself
	Type    byte   // '-' regular, 'd' directory, 'l' symlink, 'c' and 'b' devices, 'p' fifo, 's' socket
	Mode    uint32 // permission bits with setuid, setgid and sticky: 07777
	UID     uint32
	GID     uint32
	Sec     int64 // mtime
	Nsec    int64
	Size    int64             // bytes, of regular files only
	Content string            // hex SHA-256, of regular files only
	Target  string            // of symlinks only
	Rdev    uint64            // of devices only
	Xattrs  map[string]string // name to value, as far as the reader may see them
	Twin    string            // path of the first name of the same inode; empty for that first name
}

// String gives the entry as one line; two entries are equal when their lines are.
func (e Entry) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%c %04o %d:%d %d.%09d %s", e.Type, e.Mode, e.UID, e.GID, e.Sec, e.Nsec, strconv.Quote(e.Path))
	switch e.Type {
	case '-':
		fmt.Fprintf(&b, " size=%d sha256=%s", e.Size, e.Content)
	case 'l':
		fmt.Fprintf(&b, " -> %s", strconv.Quote(e.Target))
	case 'c', 'b':
		fmt.Fprintf(&b, " rdev=%d:%d", unix.Major(e.Rdev), unix.Minor(e.Rdev))
	}
	if e.Twin != "" {
		fmt.Fprintf(&b, " twin=%s", strconv.Quote(e.Twin))
	}
	names := make([]string, 0, len(e.Xattrs))
	for name := range e.Xattrs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, " %s=%x", name, e.Xattrs[name])
	}
	return b.String()
}

// Walk lists everything below root and root itself, sorted by path. Directories that are mount points other
// than root are left out with all that is below them: /proc, /sys and /dev of a container say nothing about
// its image. Root's mtime is given as 0: for the root of a container it tells when the snapshot was made.
func Walk(root string) ([]Entry, error) {
	w := walker{first: make(map[inode]string)}
	err := Each(root, func(path, rel string, _ fs.DirEntry) error {
		e, err := w.entry(path, rel)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if rel == "." {
			e.Sec, e.Nsec = 0, 0
		}
		w.list = append(w.list, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(w.list, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	return w.list, nil
}

// Each calls visit for what Walk lists, directories before what is in them, with the absolute path and the one
// relative to root.
func Each(root string, visit func(path, rel string, d fs.DirEntry) error) error {
	mounts, err := mountPoints()
	if err != nil {
		return err
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return fmt.Errorf("walk %s: %w", root, err)
	}
	err = filepath.WalkDir(abs, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path != abs && mounts[path] {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		rel, err := filepath.Rel(abs, path)
		if err != nil {
			return err
		}
		return visit(path, rel, d)
	})
	if err != nil {
		return fmt.Errorf("walk %s: %w", root, err)
	}
	return nil
}

// Digest is the hex SHA-256 over the lines of the entries.
func Digest(list []Entry) string {
	h := sha256.New()
	for _, e := range list {
		io.WriteString(h, e.String())
		io.WriteString(h, "\n")
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Lines gives every entry as its line.
func Lines(list []Entry) []string {
	out := make([]string, len(list))
	for i, e := range list {
		out[i] = e.String()
	}
	return out
}

// Diff names the lines that only one of two lists has, at most limit of them, marked "-" (only in a) and
// "+" (only in b). It is empty when the lists hold the same lines.
func Diff(a, b []string, limit int) []string {
	var out []string
	only := func(mark string, list, other []string) {
		has := make(map[string]bool, len(other))
		for _, line := range other {
			has[line] = true
		}
		for _, line := range list {
			if !has[line] && len(out) < limit {
				out = append(out, mark+" "+line)
			}
		}
	}
	only("-", a, b)
	only("+", b, a)
	return out
}

type inode struct{ dev, ino uint64 }

type walker struct {
	first map[inode]string // first path seen of every inode with several names
	list  []Entry
}

func (w *walker) entry(path, rel string) (Entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return Entry{}, err
	}
	e := Entry{
		Path: rel, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
		Sec: int64(st.Mtim.Sec), Nsec: int64(st.Mtim.Nsec),
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Type, e.Size = '-', st.Size
		if e.Content, err = contentDigest(path, st.Size); err != nil {
			return Entry{}, err
		}
	case unix.S_IFDIR:
		e.Type = 'd'
	case unix.S_IFLNK:
		e.Type = 'l'
		if e.Target, err = os.Readlink(path); err != nil {
			return Entry{}, err
		}
	case unix.S_IFCHR:
		e.Type, e.Rdev = 'c', st.Rdev
	case unix.S_IFBLK:
		e.Type, e.Rdev = 'b', st.Rdev
	case unix.S_IFIFO:
		e.Type = 'p'
	case unix.S_IFSOCK:
		e.Type = 's'
	}
	if e.Type != 'd' && st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, ok := w.first[id]; ok {
			e.Twin = first
		} else {
			w.first[id] = rel
		}
	}
	e.Xattrs, err = xattrs(path)
	return e, err
}

// contentDigest reads a regular file to its end and insists on the size that stat gave.
func contentDigest(path string, size int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return "", err
	}
	if n != size {
		return "", fmt.Errorf("read %d bytes, stat says %d", n, size)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func xattrs(path string) (map[string]string, error) {
	size, err := unix.Llistxattr(path, nil)
	if err == unix.ENOTSUP || size == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list xattrs: %w", err)
	}
	names := make([]byte, size)
	if size, err = unix.Llistxattr(path, names); err != nil {
		return nil, fmt.Errorf("list xattrs: %w", err)
	}
	out := make(map[string]string)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:size]), "\x00"), "\x00") {
		// Where the host runs SELinux every file carries a label that no image has.
		if name == "" || name == "security.selinux" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, nil)
		if err != nil {
			return nil, fmt.Errorf("xattr %s: %w", name, err)
		}
		value := make([]byte, n)
		if n > 0 {
			if n, err = unix.Lgetxattr(path, name, value); err != nil {
				return nil, fmt.Errorf("xattr %s: %w", name, err)
			}
		}
		out[name] = string(value[:n])
	}
	return out, nil
}

// mountPoints gives every mount point that this process sees.
func mountPoints() (map[string]bool, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("mount points: %w", err)
	}
	out := make(map[string]bool)
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			out[unescape.Replace(fields[4])] = true
		}
	}
	return out, nil
}
