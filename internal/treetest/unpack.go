// SPDX-License-Identifier: Apache-2.0

package treetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	rootfs "github.com/containerd/continuity/fs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// impliedXattr marks directories that a layer implies but does not state.
// Overlayfs shows the mark of the topmost layer that has the directory.
const impliedXattr = "trusted.treetest.implied"

// manner is a variation of how layers are applied.
type manner int

const (
	// plain is what containerd's walking differ does on an overlay mount with
	// a lower directory for each layer.
	plain manner = iota
	// takeLower also takes hardlinks to files that only a lower layer has. The
	// walking differ refuses these; the layer is then applied through a real
	// overlay mount, where the kernel copies the file up.
	takeLower
	// merged is plain on a mount whose only lower directory shows all the
	// layers below as overlayfs merges them.
	merged
)

// unpack applies a layer to a new directory below dir, as containerd's walking
// differ does for an overlay mount with that upperdir: directly, without a
// mount, lowers (top first) only giving the metadata of implied directories.
func unpack(dir string, layer []byte, lowers []string, how manner) (_ string, err error) {
	if how == merged && len(lowers) > 0 {
		shown, err := os.MkdirTemp(dir, "")
		if err != nil {
			return "", err
		}
		empty, err := os.MkdirTemp(dir, "")
		if err != nil {
			return "", err
		}
		if err := mountOverlay(shown, append(slices.Clone(lowers), empty), "", ""); err != nil {
			return "", err
		}
		defer func() { err = errors.Join(err, unix.Unmount(shown, 0)) }()
		lowers = []string{shown}
	}
	upper, since, err := newUpper(dir)
	if err != nil {
		return "", err
	}
	opts := []archive.ApplyOpt{archive.WithConvertWhiteout(archive.OverlayConvertWhiteout)}
	if len(lowers) > 0 {
		opts = append(opts, archive.WithParents(lowers))
	}
	_, err = archive.Apply(quiet(), upper, bytes.NewReader(layer), opts...)
	var link *os.LinkError
	if how == takeLower && len(lowers) > 0 && errors.As(err, &link) && link.Op == "link" && errors.Is(err, unix.ENOENT) {
		upper, since, err = unpackThroughMount(dir, layer, lowers)
	}
	if err != nil {
		return "", err
	}
	if err := markImplied(upper, lowers, since); err != nil {
		return "", err
	}
	return upper, nil
}

// newUpper makes a directory as containerd's overlay snapshotter makes its
// upper directories, and returns the file system's clock at that moment.
func newUpper(dir string) (string, time.Time, error) {
	upper, err := os.MkdirTemp(dir, "")
	if err != nil {
		return "", time.Time{}, err
	}
	if err := os.Chmod(upper, 0o755); err != nil {
		return "", time.Time{}, err
	}
	fi, err := os.Lstat(upper)
	if err != nil {
		return "", time.Time{}, err
	}
	return upper, fi.ModTime(), nil
}

func unpackThroughMount(dir string, layer []byte, lowers []string) (upper string, since time.Time, err error) {
	upper, since, err = newUpper(dir)
	if err != nil {
		return "", since, err
	}
	work, err := os.MkdirTemp(dir, "")
	if err != nil {
		return "", since, err
	}
	target, err := os.MkdirTemp(dir, "")
	if err != nil {
		return "", since, err
	}
	if err := mountOverlay(target, lowers, upper, work); err != nil {
		return "", since, err
	}
	_, err = archive.Apply(quiet(), target, bytes.NewReader(layer))
	return upper, since, errors.Join(err, unix.Unmount(target, 0))
}

// markImplied finds the directories of upper whose mtime the reference left at
// the time of unpacking. These are the implied directories in which something
// was created; every stated directory has the time of its header, which no
// layer of a test sets to the present. They get impliedXattr, and as mtime
// that of the lower directory which gave them mode and owner, or 1970.
func markImplied(upper string, lowers []string, since time.Time) error {
	until := time.Now()
	return filepath.WalkDir(upper, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() || path == upper {
			return err
		}
		// Left by a copy-up from a marked directory.
		if err := unix.Lremovexattr(path, impliedXattr); err != nil && err != unix.ENODATA {
			return fmt.Errorf("remove %s of %s: %w", impliedXattr, path, err)
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		if fi.ModTime().Before(since) || fi.ModTime().After(until) {
			return nil
		}
		mtime, err := lowerMtime(path[len(upper):], lowers)
		if err != nil {
			return err
		}
		ts := []unix.Timespec{mtime, mtime}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set mtime of %s: %w", path, err)
		}
		if err := unix.Lsetxattr(path, impliedXattr, []byte("y"), 0); err != nil {
			return fmt.Errorf("set %s of %s: %w", impliedXattr, path, err)
		}
		return nil
	})
}

// lowerMtime is the mtime of the lower directory from which the reference
// copies the metadata of the implied directory name.
func lowerMtime(name string, lowers []string) (unix.Timespec, error) {
	for _, lower := range lowers {
		path, err := rootfs.RootPath(lower, name)
		if err != nil {
			break // a non-directory on the way: only reached through a mount
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err == unix.ENOENT {
			continue
		} else if err != nil {
			return unix.Timespec{}, fmt.Errorf("stat %s: %w", path, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			break
		}
		return st.Mtim, nil
	}
	return unix.Timespec{}, nil
}

// mountOverlay mounts an overlayfs with the lowers, top first; read-only when
// upper is empty. Each lower is handed over by itself, so their number is not
// limited by the size of an option string.
func mountOverlay(target string, lowers []string, upper, work string) error {
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fsfd)
	set := func(key, value string) error {
		if err := unix.FsconfigSetString(fsfd, key, value); err != nil {
			return fmt.Errorf("overlay option %s=%s: %w", key, value, err)
		}
		return nil
	}
	options := [][2]string{{"source", "treetest"}, {"index", "off"}, {"metacopy", "off"}}
	for _, lower := range lowers {
		options = append(options, [2]string{"lowerdir+", lower})
	}
	attr := unix.MOUNT_ATTR_RDONLY
	if upper != "" {
		options = append(options, [2]string{"upperdir", upper}, [2]string{"workdir", work})
		attr = 0
	}
	for _, o := range options {
		if err := set(o[0], o[1]); err != nil {
			return err
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return fmt.Errorf("create overlay of %d lower directories: %w", len(lowers), err)
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return fmt.Errorf("fsmount overlay: %w", err)
	}
	defer unix.Close(mfd)
	if err := unix.MoveMount(mfd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount overlay on %s: %w", target, err)
	}
	return nil
}

// quiet is a context in which the applier's warnings about attributes that it
// ignores go nowhere: cases provoke them on purpose. A logger made by new has
// the level panic.
func quiet() context.Context {
	return log.WithLogger(context.Background(), &log.Entry{Logger: newOf(log.L.Logger)})
}

// newOf makes another value of a type that has no name in this module's
// direct requirements.
func newOf[T any](*T) *T { return new(T) }

// layerName names layer i of n in errors.
func layerName(i, n int) string { return "layer " + strconv.Itoa(i+1) + " of " + strconv.Itoa(n) }
