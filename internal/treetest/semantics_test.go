// SPDX-License-Identifier: Apache-2.0

package treetest

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The reference does what the decisive cases are there for. A claim that fails
// here, on another kernel or containerd, is news for the merge code.
func TestReferenceBehavesAsTheCasesClaim(t *testing.T) {
	cases := map[string]Case{}
	for _, c := range Cases() {
		cases[c.Name] = c
	}
	for name, claim := range map[string]func(*shown){
		"whiteout of a file": func(s *shown) {
			s.absent("/f", "/d/a")
			s.present("/d/b", "/d/sub/x")
		},
		"whiteout, then a directory in the next layer": func(s *shown) {
			s.absent("/d/a", "/d/sub")
			s.present("/d/new")
		},
		"whiteout and directory of one name in one layer": func(s *shown) {
			s.present("/d/a", "/d/sub/deep/y", "/d/new")
			s.mode("/d", 0o700)
		},
		"entry below a .wh. directory": func(s *shown) { s.present("/d/.wh.sub/x", "/d/sub/x") },
		"whiteout written as a directory entry": func(s *shown) {
			s.absent("/d/sub", "/d/.wh.sub")
		},
		"opaque marker last": func(s *shown) {
			s.present("/d/a", "/d/sub/z")
			s.absent("/d/b", "/d/sub/x")
		},
		"opaque marker alone on an implied directory": func(s *shown) {
			s.absent("/d/a", "/d/b", "/d/sub")
			s.mode("/d", 0o750)
			s.owner("/d", 1, 2)
			s.mtime("/d", 100, 1) // nothing was created in it
		},
		"opaque marker on the root": func(s *shown) { s.present("/f", "/d/a", "/new") },
		"opaque directory replaced by a file and a directory": func(s *shown) {
			s.present("/d/a")
		},
		"implied directory hidden by an opaque one": func(s *shown) {
			s.absent("/d/sub/x")
			s.present("/d/sub/t")
			s.mode("/d/sub", 0o711)
			s.implied("/d/sub", true)
			s.mtime("/d/sub", 101, 0)
		},
		"file over directory and back": func(s *shown) { s.absent("/d/a"); s.present("/d/new") },
		"file over directory and back by implication": func(s *shown) {
			s.absent("/d/a")
			s.mode("/d", 0o755)
			s.owner("/d", 0, 0)
			s.mtime("/d", 0, 0)
		},
		"directory over directory loses the lower attributes": func(s *shown) {
			s.xattr("/d", "user.lower", "", false)
			s.xattr("/d", "user.upper", "2", true)
			s.present("/d/a")
		},
		"twice a directory in one layer": func(s *shown) {
			s.mode("/d", 0o1777)
			s.xattr("/d", "user.a", "1", true)
			s.xattr("/d", "user.b", "2", true)
			s.mtime("/d", 2, 2)
			s.implied("/d", false)
		},
		"time of a replaced directory on the file": func(s *shown) { s.mtime("/d", 7, 7) },
		"time of a replaced directory on the target of a symlink": func(s *shown) {
			s.mtime("/d", 8, 8)
			s.mtime("/t", 7, 7)
		},
		"entry below a symlinked parent of the same layer": func(s *shown) {
			s.present("/real/x", "/real/sub/y")
			s.kind("/link", unix.S_IFLNK)
		},
		"entry below a symlinked parent of a lower layer": func(s *shown) {
			s.kind("/s", unix.S_IFDIR)
			s.mode("/s", 0o750)
			s.absent("/s/a", "/d/new")
		},
		"entry below a dangling symlink":      func(s *shown) { s.present("/new/place/y") },
		"entry with dot dot behind a symlink": func(s *shown) { s.present("/q/z") },
		"implied above a lower symlink to a directory": func(s *shown) {
			s.mode("/s", 0o700)
			s.owner("/s", 1000, 1000)
			s.xattr("/s", "user.lower", "d", true)
		},
		"implied below a directory that replaced a symlink": func(s *shown) { s.mode("/a/b", 0o700) },
		"implied above lower directories with metadata": func(s *shown) {
			s.mode("/d", 0o700)
			s.owner("/d", 1000, 1000)
			s.xattr("/d", "security.lower", "d", true)
			s.implied("/d", true)
			s.mtime("/d", 100, 100)
			s.mode("/d/sub", 0o3775)
		},
		"implied, then stated": func(s *shown) {
			s.mode("/d", 0o711)
			s.xattr("/d", "user.lower", "d", true)
			s.xattr("/d", "user.upper", "u", true)
			s.mtime("/d", 7, 8)
			s.implied("/d", false)
		},
		"implied below a setgid directory": func(s *shown) {
			s.mode("/g/new", 0o755)
			s.owner("/g/new", 0, 44)
			s.owner("/g/new/er", 0, 0) // the mode of /g/new has lost setgid
		},
		"implied in a middle layer": func(s *shown) {
			s.implied("/d", true)
			s.implied("/d/sub", false)
			s.mtime("/d/sub", 9, 9)
		},
		"hardlink with other metadata than its target": func(s *shown) {
			for _, name := range []string{"/a", "/b"} {
				s.mode(name, 0o4755)
				s.owner(name, 2, 3)
				s.mtime(name, 2, 2)
				s.xattr(name, "user.a", "1", true)
				s.xattr(name, "user.b", "2", true)
				s.xattr(name, "user.c", "2", true)
				s.links(name, "/a", "/b")
			}
		},
		"hardlink drops the capability of its target": func(s *shown) { s.xattr("/a", "security.capability", "", false) },
		"hardlink repeats the capability of its target": func(s *shown) {
			s.xattr("/a", "security.capability", capability(), true)
		},
		"hardlink with owner minus one drops the capability": func(s *shown) {
			s.xattr("/a", "security.capability", "", false)
			s.owner("/a", 5, 6)
		},
		"hardlink keeps owner by minus one": func(s *shown) { s.owner("/a", 5, 6) },
		"hardlink to a symlink":             func(s *shown) { s.kind("/t", unix.S_IFLNK); s.links("/t", "/s", "/t"); s.mtime("/s", 2, 2) },
		"hardlink, then the target replaced": func(s *shown) {
			s.links("/b")
			s.content("/b", "old")
			s.content("/a", "new")
		},
		"partly replaced group": func(s *shown) {
			s.links("/d/a", "/d/a", "/d/c")
			s.links("/b")
		},
		"group down to one name": func(s *shown) { s.links("/b") },
		"hardlink to a file of a lower layer": func(s *shown) {
			s.links("/a", "/a", "/b")
			s.mode("/a", 0o600)
			s.mtime("/a", 2, 2)
		},
		"hardlink to a file of a lower group": func(s *shown) {
			s.links("/n", "/d/a", "/n")
			s.links("/b", "/b", "/d/c")
			s.xattr("/n", "user.a", "1", true)
			s.mtime("/d", 90, 9)
		},
		"spellings of one name": func(s *shown) {
			s.present("/a/b", "/a/c", "/a/d", "/a/e", "/a/g", "/h", "/i", "/j")
			s.links("/i", "/a/b", "/i")
		},
		"names of the root": func(s *shown) {
			s.mode("/", 0o755)
			s.owner("/", 0, 0)
			s.xattr("/", "user.root", "", false)
		},
		"owner minus one": func(s *shown) {
			s.owner("/g/f", 0, 7)
			s.owner("/f", 0, 5)
			s.owner("/g", 7, 8)
		},
		"times": func(s *shown) {
			s.mtime("/f1", 0, 1)
			s.mtime("/f4", 0, 0)
			s.mtime("/d7", 1_600_000_000, 123_456_789)
			s.mtime("/f11", 7_258_118_400, 1)
			s.mtime("/s12", 9_223_372_036, 854_775_807)
			s.mtime("/f13", 0, 0)
			s.mtime("/f14", 0, 0)
		},
		"numbers beyond the kernel's":               func(s *shown) { s.rdev("/c", 1, 5); s.rdev("/b", 0, 0) },
		"character device 0:0":                      func(s *shown) { s.absent("/d/f", "/g") },
		"character device that becomes 0:0":         func(s *shown) { s.absent("/g") },
		"character device 0:0 in the bottom layer":  func(s *shown) { s.absent("/d/c", "/c") },
		"character device 0:0 and a hardlink to it": func(s *shown) { s.absent("/g", "/h") },
		"block device 0:0 over a file":              func(s *shown) { s.kind("/g", unix.S_IFBLK) },
		"trusted opaque in a tar hides nothing":     func(s *shown) { s.present("/d/a") },
		"user overlay attributes are plain ones":    func(s *shown) { s.present("/d/a"); s.xattr("/d", "user.overlay.opaque", "y", true) },
		"user attributes where the kernel has none": func(s *shown) { s.xattr("/s", "user.a", "", false); s.xattr("/f", "user.a", "1", true) },
		"security attributes on all types":          func(s *shown) { s.xattr("/s", "security.a", "1", true) },
		"attributes":                                func(s *shown) { s.xattr("/f", "user.empty", "", true); s.xattr("/f", "user.nul", "a\x00b\x00", true) },
		"minimal access ACL":                        func(s *shown) { s.xattr("/same", "system.posix_acl_access", "", false); s.mode("/other", 0o600) },
		"access ACL without entries":                func(s *shown) { s.xattr("/f", "system.posix_acl_access", "", false) },
		"directory with an ACL implied, then stated": func(s *shown) {
			s.mode("/d", 0o705)
			s.xattr("/d", "system.posix_acl_access", acl(aclUserObj, 7, 0, aclUser, 5, 1000, aclUser, 6, 1001,
				aclGroupObj, 4, 0, aclGroup, 7, 50, aclMask, 0, 0, aclOther, 5, 0), true)
		},
		"access ACL changed by the mode": func(s *shown) {
			s.xattr("/f", "system.posix_acl_access", acl(aclUserObj, 6, 0, aclUser, 5, 1000, aclUser, 6, 1001,
				aclGroupObj, 4, 0, aclGroup, 7, 50, aclMask, 4, 0, aclOther, 0, 0), true)
			s.mode("/bits", 0o6755)
		},
		"default ACL": func(s *shown) { s.mode("/both", 0o2770); s.xattr("/d", "system.posix_acl_access", "", false) },
		"children of a directory with a default ACL": func(s *shown) {
			s.xattr("/d/f", "system.posix_acl_access", acl(aclUserObj, 6, 0, aclUser, 5, 1000, aclUser, 6, 1001,
				aclGroupObj, 4, 0, aclGroup, 7, 50, aclMask, 4, 0, aclOther, 0, 0), true)
		},
		"entry below a chain of symlinks with dot dot": func(s *shown) { s.present("/x/f"); s.absent("/d/x") },
		"PAX sparse 1.0": func(s *shown) {
			s.content("/sparse", sparseContent())
			s.content("/hole", zeros(1<<20))
			s.content("/dir/dense", "full")
		},
		"PAX sparse 0.0": func(s *shown) { s.content("/sparse", sparseContent()) },
		"PAX sparse 0.1": func(s *shown) { s.content("/sparse", sparseContent()) },
		"global header":  func(s *shown) { s.absent("/pax_global_header"); s.mtime("/f", defaultMtime, 0) },
		"global header below a directory": func(s *shown) {
			s.mode("/tmp", 0o1777)
			s.mtime("/tmp", 9, 9)
			s.present("/tmp/f")
		},
		"global header below a new directory":   func(s *shown) { s.mode("/tmp", 0o755); s.implied("/tmp", true) },
		"global header with the name of a file": func(s *shown) { s.absent("/f"); s.present("/tmp/f") },
		"data behind the end marker":            func(s *shown) { s.absent("/never") },
		"128 layers": func(s *shown) {
			s.content("/same", "127")
			s.present("/f127", "/f0")
			s.absent("/f2", "/f5")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, ok := cases[name]
			if !ok {
				t.Fatal("there is no such case")
			}
			tree, err := Read(Overlay(t, c.Layers))
			if err != nil {
				t.Fatal(err)
			}
			claim(&shown{t, tree})
		})
	}
}

// sparseContent is what the sparse files of formatCases hold.
func sparseContent() string {
	b := []byte(zeros(100_000))
	copy(b[4096:], "data")
	copy(b[70_000:], strings.Repeat("more", 1000))
	return string(b)
}

// A hardlink to a lower file is as if its layer had the file, too.
func TestHardlinkToLowerFileIsLikeCopy(t *testing.T) {
	lower := Layer(Dir("d", Mode(0o711)), File("d/a", "content", Owner(1, 2), Xattr("user.a", "1")))
	linked, err := Read(Overlay(t, [][]byte{lower, Layer(Hardlink("b", "d/a", Mode(0o600)))}))
	if err != nil {
		t.Fatal(err)
	}
	copied, err := Read(Overlay(t, [][]byte{lower, Layer(
		File("d/a", "content", Owner(1, 2), Xattr("user.a", "1")), Hardlink("b", "d/a", Mode(0o600)))}))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range Diff(copied, linked, Options{ImpliedMtime: true}) {
		t.Error(line)
	}
}

// shown is a tree to make claims about.
type shown struct {
	t    *testing.T
	tree Tree
}

func (s *shown) present(names ...string) {
	for _, name := range names {
		if s.tree.Entries[name] == nil {
			s.t.Errorf("%q is missing", name)
		}
	}
}

func (s *shown) absent(names ...string) {
	for _, name := range names {
		if s.tree.Entries[name] != nil {
			s.t.Errorf("%q is there", name)
		}
	}
}

func (s *shown) entry(name string) Entry {
	e := s.tree.Entries[name]
	if e == nil {
		s.t.Errorf("%q is missing", name)
		return Entry{}
	}
	return *e
}

func (s *shown) mode(name string, want uint32) {
	if got := s.entry(name).Mode & 0o7777; got != want {
		s.t.Errorf("mode of %q: got %#o, want %#o", name, got, want)
	}
}

func (s *shown) kind(name string, want uint32) {
	if got := s.entry(name).Mode; got&unix.S_IFMT != want {
		s.t.Errorf("type of %q: got %s, want %s", name, kind(got), kind(want))
	}
}

func (s *shown) owner(name string, uid, gid uint32) {
	if e := s.entry(name); e.UID != uid || e.GID != gid {
		s.t.Errorf("owner of %q: got %d:%d, want %d:%d", name, e.UID, e.GID, uid, gid)
	}
}

func (s *shown) mtime(name string, sec, nsec int64) {
	if got, want := s.entry(name).Mtime, (unix.Timespec{Sec: sec, Nsec: nsec}); got != want {
		s.t.Errorf("mtime of %q: got %s, want %s", name, clock(got), clock(want))
	}
}

func (s *shown) rdev(name string, major, minor uint32) {
	if got, want := s.entry(name).Rdev, unix.Mkdev(major, minor); got != want {
		s.t.Errorf("device of %q: got %s, want %s", name, number(got), number(want))
	}
}

func (s *shown) implied(name string, want bool) {
	if got := s.entry(name).Implied; got != want {
		s.t.Errorf("%q implied: got %v, want %v", name, got, want)
	}
}

func (s *shown) xattr(name, key, want string, present bool) {
	if got, ok := s.entry(name).Xattrs[key]; got != want || ok != present {
		s.t.Errorf("%s of %q: got %s, want %s", key, name, value(got, ok), value(want, present))
	}
}

func (s *shown) links(name string, want ...string) {
	if got := s.entry(name).Links; !slices.Equal(got, want) {
		s.t.Errorf("names of the inode of %q: got %q, want %q", name, got, want)
	}
}

func (s *shown) content(name, want string) {
	if got := s.entry(name); got.SHA256 != sum(want) || got.Size != int64(len(want)) {
		s.t.Errorf("content of %q: got %d bytes, %s, want %d bytes, %s", name, got.Size, got.SHA256, len(want), sum(want))
	}
}
