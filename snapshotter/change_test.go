// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"testing"
	"time"

	"github.com/squash-snapshotter/squash/internal/treetest"
	"golang.org/x/sys/unix"
)

// changeable is an image with something of everything that a container may
// change.
func changeable() [][]byte {
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	return [][]byte{
		treetest.Layer(
			treetest.File("file", "small"), treetest.File("large", noise(300_000, 1)), treetest.File("empty", ""),
			treetest.Dir("dir", treetest.Mode(0o750), treetest.Owner(7, 8)), treetest.File("dir/a", noise(3000, 2)), treetest.File("dir/b", "b"),
			treetest.Dir("dir/sub"), treetest.File("dir/sub/deep", "deep"), treetest.File("dir/sub/gone", "gone"),
			treetest.File("twin-1", noise(2000, 3)), treetest.Hardlink("twin-2", "twin-1"), treetest.Hardlink("dir/twin-3", "twin-1"),
			treetest.Symlink("link", "dir"), treetest.Symlink("dangling", "/nowhere"), treetest.Char("char", 1, 3), treetest.Fifo("fifo"),
			treetest.File("capable", "x", treetest.Mode(0o755), treetest.Xattr("security.capability", capability)),
			treetest.File("attributed", "x", treetest.Xattr("user.mime", "text"), treetest.Mtime(1_600_000_000, 123_456_789))),
		treetest.Layer(
			treetest.Whiteout("dir/sub/gone"), treetest.Dir("other"), treetest.Opaque("other"), treetest.File("other/file", noise(1200, 4)),
			treetest.File("upper-only", "u"), treetest.Hardlink("upper-twin", "upper-only")),
	}
}

// changesByHand are what containers do to their files, each in a snapshot of its
// own.
func changesByHand() map[string]func(t *testing.T, root string) {
	changes := map[string]func(at func(string) string) error{
		"nothing":                   func(at func(string) string) error { return nil },
		"delete file":               func(at func(string) string) error { return os.Remove(at("file")) },
		"delete directory":          func(at func(string) string) error { return os.RemoveAll(at("dir")) },
		"delete symlink and device": func(at func(string) string) error { return errors.Join(os.Remove(at("link")), os.Remove(at("char"))) },
		"file becomes directory": func(at func(string) string) error {
			return errors.Join(os.Remove(at("file")), os.Mkdir(at("file"), 0o700), os.WriteFile(at("file/in"), nil, 0o600))
		},
		"directory becomes file": func(at func(string) string) error {
			return errors.Join(os.RemoveAll(at("dir")), os.WriteFile(at("dir"), []byte("now a file"), 0o600))
		},
		"directory becomes symlink": func(at func(string) string) error {
			return errors.Join(os.RemoveAll(at("dir")), os.Symlink("other", at("dir")))
		},
		"symlink becomes directory": func(at func(string) string) error {
			return errors.Join(os.Remove(at("link")), os.Mkdir(at("link"), 0o711), os.WriteFile(at("link/in"), []byte("x"), 0o600))
		},
		"directory emptied and made again": func(at func(string) string) error {
			return errors.Join(os.RemoveAll(at("dir/sub")), os.Mkdir(at("dir/sub"), 0o755), os.WriteFile(at("dir/sub/deep"), []byte("new"), 0o600))
		},
		"directory made again twice": func(at func(string) string) error {
			return errors.Join(os.RemoveAll(at("dir")), os.MkdirAll(at("dir/sub"), 0o755), os.RemoveAll(at("dir")), os.Mkdir(at("dir"), 0o700))
		},
		"new directory": func(at func(string) string) error {
			return errors.Join(os.MkdirAll(at("new/deep/deeper"), 0o755), os.WriteFile(at("new/deep/deeper/f"), []byte("x"), 0o600))
		},
		"rename new directory": func(at func(string) string) error {
			return errors.Join(os.MkdirAll(at("new/deep"), 0o755), os.WriteFile(at("new/deep/f"), []byte("x"), 0o600), os.Rename(at("new"), at("dir/moved")))
		},
		"rename file":      func(at func(string) string) error { return os.Rename(at("large"), at("dir/large")) },
		"rename over file": func(at func(string) string) error { return os.Rename(at("large"), at("dir/a")) },
		"chmod": func(at func(string) string) error {
			return errors.Join(os.Chmod(at("file"), 0o4711|os.ModeSetuid), os.Chmod(at("dir"), 0o1777|os.ModeSticky))
		},
		"chown": func(at func(string) string) error {
			return errors.Join(os.Lchown(at("link"), 5, 6), os.Lchown(at("dir/sub"), 1<<31, 9))
		},
		"chown of capabilities": func(at func(string) string) error { return os.Lchown(at("capable"), 5, 6) },
		"touch of capabilities": func(at func(string) string) error {
			return os.Chtimes(at("capable"), time.Time{}, time.Unix(1, 999_999_999))
		},
		"touch": func(at func(string) string) error {
			return errors.Join(os.Chtimes(at("file"), time.Time{}, time.Unix(1_234_567_890, 987_654_321)), os.Chtimes(at("dir"), time.Time{}, time.Unix(1_000_000_000, 1)))
		},
		"attributes": func(at func(string) string) error {
			return errors.Join(unix.Setxattr(at("dir"), "user.x", []byte("\x00binary\n=\xff"), 0), unix.Removexattr(at("attributed"), "user.mime"),
				unix.Setxattr(at("file"), "user.empty", nil, 0))
		},
		"ACL": func(at func(string) string) error {
			acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x07\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x06\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
			// Overlayfs asks the inode whether it takes ACLs: only that of an upper directory does.
			return errors.Join(os.Chmod(at("file"), 0o600), os.Chmod(at("dir"), 0o700),
				unix.Setxattr(at("file"), "system.posix_acl_access", []byte(acl), 0), unix.Setxattr(at("dir"), "system.posix_acl_default", []byte(acl), 0))
		},
		"hardlink of new files": func(at func(string) string) error {
			return errors.Join(os.WriteFile(at("z"), []byte(noise(2000, 9)), 0o600), os.Link(at("z"), at("a")), os.Link(at("z"), at("dir/z")))
		},
		"hardlink to old file":         func(at func(string) string) error { return os.Link(at("file"), at("dir/file")) },
		"hardlink to one of old twins": func(at func(string) string) error { return os.Link(at("twin-2"), at("twin-4")) },
		"write to one of old twins":    func(at func(string) string) error { return appendTo(at("twin-2"), "more") },
		"chmod one of old twins":       func(at func(string) string) error { return os.Chmod(at("dir/twin-3"), 0o600) },
		"delete first of old twins":    func(at func(string) string) error { return os.Remove(at("twin-1")) },
		"hardlink of symlink and device": func(at func(string) string) error {
			return errors.Join(os.Symlink("x", at("s")), os.Link(at("s"), at("s2")), unix.Mknod(at("c"), unix.S_IFCHR|0o600, int(unix.Mkdev(9, 1))), os.Link(at("c"), at("c2")))
		},
		"devices": func(at func(string) string) error {
			return errors.Join(unix.Mknod(at("new-char"), unix.S_IFCHR|0o640, int(unix.Mkdev(4, 300_000))), unix.Mknod(at("new-block"), unix.S_IFBLK|0o600, int(unix.Mkdev(4095, 0))), unix.Mkfifo(at("new-fifo"), 0o622))
		},
		"empty and large files": func(at func(string) string) error {
			return errors.Join(os.WriteFile(at("void"), nil, 0o600), os.WriteFile(at("huge"), []byte(noise(9<<20+1, 5)), 0o600), os.Truncate(at("large"), 0), os.Truncate(at("empty"), 3<<20))
		},
		"names": func(at func(string) string) error {
			long := make([]byte, 255)
			for i := range long {
				long[i] = 'x'
			}
			return errors.Join(os.WriteFile(at("sp ace\n\xff\xfe"), []byte("x"), 0o600), os.MkdirAll(at(path.Join(string(long), string(long))), 0o755), os.Symlink(string(long)+"/"+string(long), at("länge")))
		},
	}
	byName := map[string]func(t *testing.T, root string){}
	for name, change := range changes {
		byName[name] = func(t *testing.T, root string) {
			t.Helper()
			must(t, change(func(p string) string { return filepath.Join(root, p) }))
		}
	}
	return byName
}

func appendTo(path, data string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(data)
	return errors.Join(err, f.Close())
}

// changeAtRandom does some dozens of things to a mounted snapshot. Symlinks,
// which may lead out of it, are never followed.
func changeAtRandom(t *testing.T, root string, seed uint64) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 2))
	dir, err := os.OpenRoot(root)
	must(t, err)
	defer dir.Close()
	done := 0
	for i := range 10 + r.IntN(60) {
		if err := changeOnce(r, root, dir, i); err == nil {
			done++
		}
	}
	if done == 0 {
		t.Fatal("nothing could be changed")
	}
}

// changeOnce may fail: a directory of the parent cannot be renamed, a symlink
// has no attributes.
func changeOnce(r *rand.Rand, root string, dir *os.Root, i int) error {
	var all, dirs, files []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, p)
		switch {
		case err != nil:
			return err
		case d.IsDir():
			dirs = append(dirs, rel)
		case d.Type().IsRegular():
			files = append(files, rel)
		}
		if rel != "." {
			all = append(all, rel)
		}
		return nil
	})
	if err != nil {
		return err
	}
	pick := func(names []string) string {
		if len(names) == 0 {
			return "none"
		}
		return names[r.IntN(len(names))]
	}
	fresh := path.Join(pick(dirs), fmt.Sprintf("%c%d", 'a'+rune(r.IntN(26)), i))
	if r.IntN(3) == 0 {
		fresh = pick(all) // what is there is replaced
	}
	size := []int{0, 5, 1024, 1025, 20_000, 300_000}[r.IntN(6)]
	body := []byte(noise(size, uint64(r.IntN(5))))
	real := filepath.Join(root, fresh)
	replace := func(make func() error) error { return errors.Join(dir.RemoveAll(fresh), make()) }
	switch r.IntN(16) {
	case 0:
		return dir.RemoveAll(pick(all))
	case 1, 2:
		return replace(func() error { return dir.WriteFile(fresh, body, fs.FileMode(r.IntN(0o1000))) })
	case 3:
		return appendTo(filepath.Join(root, pick(files)), "more")
	case 4:
		return replace(func() error { return dir.Mkdir(fresh, fs.FileMode(r.IntN(0o1000))) })
	case 5:
		return errors.Join(replace(func() error { return dir.Mkdir(fresh, 0o755) }), dir.WriteFile(path.Join(fresh, "in"), body, 0o600))
	case 6:
		again := pick(dirs)
		if again == "." {
			return nil
		}
		return errors.Join(dir.RemoveAll(again), dir.Mkdir(again, 0o700))
	case 7:
		return dir.Rename(pick(all), fresh)
	case 8:
		if p := pick(append(files, dirs...)); p != "." {
			return unix.Chmod(filepath.Join(root, p), uint32(r.IntN(0o10000)))
		}
	case 9:
		return dir.Lchown(pick(all), r.IntN(70_000), r.IntN(70_000))
	case 10:
		p := pick(append(files, dirs...))
		if p == "." {
			return nil // no layer can say it
		}
		return unix.Lsetxattr(filepath.Join(root, p), fmt.Sprintf("user.%d", r.IntN(3)), body[:min(len(body), 100)], 0)
	case 11, 12:
		from := pick(all)
		if from == fresh {
			return nil
		}
		return errors.Join(dir.RemoveAll(fresh), dir.Link(from, fresh))
	case 13:
		return replace(func() error { return dir.Symlink(pick(all), fresh) })
	case 14:
		kind := []uint32{unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO}[r.IntN(3)]
		return replace(func() error {
			return unix.Mknod(real, kind|0o644, int(unix.Mkdev(uint32(1+r.IntN(9)), uint32(r.IntN(9)))))
		})
	case 15:
		ts := []unix.Timespec{{}, {Sec: int64(r.IntN(2_000_000_000)), Nsec: int64(r.IntN(1_000_000_000))}}
		return unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(root, pick(all)), ts, unix.AT_SYMLINK_NOFOLLOW)
	}
	return nil
}
