// SPDX-License-Identifier: Apache-2.0

package treetest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Options chooses what Diff tolerates. The zero value is for a reference made
// by Overlay.
type Options struct {
	// ImpliedMtime also compares the mtime of directories which want says
	// are implied: with the mtime of the lower directory from which the
	// reference copies mode and owner, 1970 where there is none. Without it
	// their mtime is not compared, since the reference shows the moment of
	// unpacking, which no other store can repeat.
	ImpliedMtime bool

	// RootMtime also compares the mtime of the root directory. No layer can
	// set it (the applier skips the entry "./"), so the reference shows the
	// moment of unpacking there, too.
	RootMtime bool
}

// Diff compares what is shown with what should be, entry by entry in order of
// path. It returns one line for each difference and nil when there is none.
func Diff(want, got Tree, opts Options) []string {
	var lines []string
	report := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }

	paths := append(want.Paths(), got.Paths()...)
	slices.Sort(paths)
	for _, p := range slices.Compact(paths) {
		w, g := want.Entries[p], got.Entries[p]
		switch {
		case g == nil:
			report("%q: missing, want %s", p, kind(w.Mode))
		case w == nil:
			report("%q: is there as %s, want nothing", p, kind(g.Mode))
		case w.Mode&unix.S_IFMT != g.Mode&unix.S_IFMT:
			report("%q: type: got %s, want %s", p, kind(g.Mode), kind(w.Mode))
		default:
			compare(w, g, mtimeCounts(p, w, opts), func(field string, got, want any) {
				report("%q: %s: got %v, want %v", p, field, got, want)
			})
		}
	}
	for _, p := range got.Ghosts {
		if !slices.Contains(want.Ghosts, p) {
			report("%q: readdir lists it, lookup does not find it", p)
		}
	}
	return lines
}

func mtimeCounts(path string, want *Entry, opts Options) bool {
	switch {
	case path == "/":
		return opts.RootMtime
	case want.Implied:
		return opts.ImpliedMtime
	}
	return true
}

func compare(w, g *Entry, mtime bool, report func(field string, got, want any)) {
	if w.Mode != g.Mode {
		report("mode", fmt.Sprintf("%04o", g.Mode&0o7777), fmt.Sprintf("%04o", w.Mode&0o7777))
	}
	if w.UID != g.UID {
		report("uid", g.UID, w.UID)
	}
	if w.GID != g.GID {
		report("gid", g.GID, w.GID)
	}
	if mtime && w.Mtime != g.Mtime {
		report("mtime", clock(g.Mtime), clock(w.Mtime))
	}
	if w.Size != g.Size {
		report("size", g.Size, w.Size)
	}
	if w.Rdev != g.Rdev {
		report("device", number(g.Rdev), number(w.Rdev))
	}
	if w.Target != g.Target {
		report("target", fmt.Sprintf("%q", g.Target), fmt.Sprintf("%q", w.Target))
	}
	if w.SHA256 != g.SHA256 {
		report("content", "sha256 "+g.SHA256, "sha256 "+w.SHA256)
	}
	names := slices.Concat(slices.Collect(maps.Keys(w.Xattrs)), slices.Collect(maps.Keys(g.Xattrs)))
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		wv, wok := w.Xattrs[name]
		gv, gok := g.Xattrs[name]
		if wv != gv || wok != gok {
			report("xattr "+name, value(gv, gok), value(wv, wok))
		}
	}
	if !slices.Equal(w.Links, g.Links) {
		report("names of the inode", group(g.Links), group(w.Links))
	}
}

func kind(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFREG:
		return "file"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	}
	return fmt.Sprintf("type %#o", mode&unix.S_IFMT)
}

func clock(ts unix.Timespec) string { return fmt.Sprintf("%d.%09d", ts.Sec, ts.Nsec) }

func number(rdev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev)) }

func value(v string, ok bool) string {
	const shown = 80 // bytes; an ACL or a capability fits
	switch {
	case !ok:
		return "none"
	case len(v) > shown:
		return fmt.Sprintf("%q... (%d bytes)", v[:shown], len(v))
	}
	return fmt.Sprintf("%q", v)
}

func group(names []string) string {
	if names == nil {
		return "this one only"
	}
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = fmt.Sprintf("%q", n)
	}
	return strings.Join(quoted, " ")
}
