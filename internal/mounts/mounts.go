// SPDX-License-Identifier: Apache-2.0

// Package mounts owns the read-only EROFS mounts of flat images.
//
//	image file ─┐                       ┌─ file-backed: the kernel reads the files itself
//	            ├─▶ EROFS mount on target
//	pack file ──┘ (device 1, optional)  └─ loop: one read-only loop device per file and mount
//
// It reads and writes no image bytes, except for the tiny images of [Probe]. Everything goes through
// fsopen, fsconfig, fsmount and move_mount: a mount is complete before it appears under its target, so
// that a process killed at any point leaves either the whole mount or nothing (invariant 4 of the
// design). Loop devices are bound with autoclear and live exactly as long as the mounts that read them.
//
// A mount is a property of the kernel, not of the process: it goes on without the daemon, and [Mounted]
// finds it again. A [Mounter] therefore keeps no state, and all of its methods may run in parallel as
// long as no two of them work on the same target.
package mounts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Mode says how the files of a flat image are given to the kernel.
type Mode string

const (
	// ModeAuto takes ModeFile where it works, else ModeLoop. The empty Mode means the same.
	ModeAuto Mode = "auto"
	// ModeFile lets EROFS read the files directly (Linux 6.12 and newer).
	ModeFile Mode = "file"
	// ModeLoop puts a loop device under every file (Linux 5.16 and newer).
	ModeLoop Mode = "loop"
)

// Mounter mounts and unmounts flat images in one mode.
type Mounter struct {
	mode   Mode
	create createFunc
}

// createFunc makes an EROFS mount of image, with pack as its device 1 unless pack is nil. The mount is
// attached nowhere yet; closing it unmounts it.
type createFunc func(ctx context.Context, image, pack *backing) (*os.File, error)

// New returns a Mounter for mode, given what [Probe] found. A mode that the probe found absent, or auto
// when it found neither, is an errdefs.ErrFailedPrecondition with the reason and the remedy in its text;
// an unknown mode is an errdefs.ErrInvalidArgument.
func New(caps Capabilities, mode Mode) (*Mounter, error) {
	file := &Mounter{mode: ModeFile, create: createFileBacked}
	loop := &Mounter{mode: ModeLoop, create: createLoop}
	switch mode {
	case ModeAuto, "":
		if caps.FileBacked {
			return file, nil
		}
		if caps.Loop {
			return loop, nil
		}
		return nil, fmt.Errorf("no way to mount EROFS images: file-backed: %s; loop: %s: %w",
			caps.FileBackedReason, caps.LoopReason, errdefs.ErrFailedPrecondition)
	case ModeFile:
		if caps.FileBacked {
			return file, nil
		}
		return nil, fmt.Errorf("mount mode %q is not available: %s (or use mode %q or %q): %w",
			mode, caps.FileBackedReason, ModeLoop, ModeAuto, errdefs.ErrFailedPrecondition)
	case ModeLoop:
		if caps.Loop {
			return loop, nil
		}
		return nil, fmt.Errorf("mount mode %q is not available: %s (or use mode %q or %q): %w",
			mode, caps.LoopReason, ModeFile, ModeAuto, errdefs.ErrFailedPrecondition)
	default:
		return nil, fmt.Errorf("mount mode %q is unknown, use one of %q, %q, %q: %w",
			mode, ModeAuto, ModeFile, ModeLoop, errdefs.ErrInvalidArgument)
	}
}

// Mode returns ModeFile or ModeLoop, also when the Mounter was made with ModeAuto.
func (m *Mounter) Mode() Mode { return m.mode }

// Mount mounts the EROFS image read-only on target, with pack as its device 1; pack is "" for an image
// without devices. The target must be a directory and nothing may be mounted on it
// (errdefs.ErrAlreadyExists). The mount honours device nodes and set-uid bits, as the lower directory of a
// container must.
//
// The kernel refuses a pack for an image without devices. It may not refuse an image with one that comes
// without its pack, whose content then reads as EIO, nor a pack that belongs to another image.
//
// A path of any length that the kernel opens is taken; see [Mount.Image] for what [Mounted] tells about
// long ones. On failure nothing is left behind, and the error carries what the kernel said.
func (m *Mounter) Mount(ctx context.Context, image, pack, target string) error {
	if err := m.mount(ctx, image, pack, target); err != nil {
		return fmt.Errorf("mount %s on %s (%s mode): %w", image, target, m.mode, err)
	}
	return nil
}

func (m *Mounter) mount(ctx context.Context, image, pack, target string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	primary, err := openBacking("image", image)
	if err != nil {
		return err
	}
	defer primary.Close()
	var device *backing
	if pack != "" {
		if device, err = openBacking("pack", pack); err != nil {
			return err
		}
		defer device.Close()
	}
	mnt, err := m.create(ctx, primary, device)
	if err != nil {
		return err
	}
	// Once attached, the mount no longer depends on this descriptor.
	defer mnt.Close()
	return attach(mnt, target)
}

// Unmount takes the mount off target and, in loop mode, thereby frees its loop devices. A target that
// does not exist or is no mount point is fine. A mount in use is an errdefs.ErrFailedPrecondition.
//
// An overlay that has the mount as its lower directory does not count as use: the kernel keeps the
// image, and its loop devices, alive underneath until that overlay is gone too.
func (m *Mounter) Unmount(target string) error {
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EINVAL):
		// What the kernel says for a path that is no mount point, but not for that alone.
		if st, statErr := statTarget(target); statErr == nil && !isMountPoint(st) {
			return nil
		}
		return fmt.Errorf("unmount %s: %w", target, err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("unmount %s: %w: %w", target, err, errdefs.ErrFailedPrecondition)
	default:
		return fmt.Errorf("unmount %s: %w", target, err)
	}
}

// maxParam is the longest string value that fsconfig takes, in bytes.
const maxParam = 255

// backing is an open regular file that a mount is to read from.
type backing struct {
	file *os.File
	// dir is open when param goes through it.
	dir *os.File
	// param is the name by which the kernel finds the file, at most maxParam bytes, valid while the
	// backing is open. The kernel shows the image's name in mountinfo for the life of the mount.
	param string
}

// openBacking opens the regular file at path; what names its role in errors.
func openBacking(what, path string) (*backing, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s %s is not a regular file: %w", what, path, errdefs.ErrInvalidArgument)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	file, err := os.Open(abs)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if len(abs) <= maxParam {
		return &backing{file: file, param: abs}, nil
	}
	// Too long for fsconfig. The detour by way of the directory keeps the file's own name in mountinfo.
	dir, err := os.OpenFile(filepath.Dir(abs), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	b := &backing{file: file, dir: dir, param: filepath.Join(descriptorPath(dir), filepath.Base(abs))}
	if len(b.param) > maxParam {
		b.param = descriptorPath(file)
	}
	return b, nil
}

func (b *backing) Close() {
	b.file.Close()
	if b.dir != nil {
		b.dir.Close()
	}
}

// descriptorPath names an open file by its descriptor; only this process, and the kernel while it acts
// for it, can use the name.
func descriptorPath(f *os.File) string {
	return fmt.Sprintf("%s%d", descriptorPrefix, f.Fd())
}

const descriptorPrefix = "/proc/self/fd/"
