// SPDX-License-Identifier: Apache-2.0

package mounts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// createFileBacked is the createFunc of ModeFile.
func createFileBacked(ctx context.Context, image, pack *backing) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var devices []string
	if pack != nil {
		devices = append(devices, pack.param)
	}
	return create(image.param, devices)
}

// create makes a read-only EROFS mount of source that is attached nowhere; closing it unmounts it.
// The devices go to the slots of the image in the order given.
func create(source string, devices []string) (*os.File, error) {
	fsctx, err := openContext()
	if err != nil {
		return nil, err
	}
	defer fsctx.Close()
	fd := int(fsctx.Fd())

	if err := unix.FsconfigSetString(fd, "source", source); err != nil {
		return nil, fmt.Errorf("set EROFS source %s: %w", source, withMessages(err, fsctx, nil))
	}
	for _, device := range devices {
		if err := unix.FsconfigSetString(fd, "device", device); err != nil {
			return nil, fmt.Errorf("set EROFS device %s: %w", device, withMessages(err, fsctx, nil))
		}
	}
	if err := unix.FsconfigSetFlag(fd, "ro"); err != nil {
		return nil, fmt.Errorf("set EROFS read-only: %w", withMessages(err, fsctx, nil))
	}

	klog := openKernelLog()
	defer klog.Close()
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, fmt.Errorf("open EROFS image: %w", withMessages(err, fsctx, klog))
	}
	mnt, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOATIME)
	if err != nil {
		return nil, fmt.Errorf("fsmount EROFS: %w", withMessages(err, fsctx, klog))
	}
	return os.NewFile(uintptr(mnt), "erofs mount of "+source), nil
}

// openContext starts the configuration of one EROFS mount. It fails where the kernel has no EROFS or
// does not let the process mount, and says so (errdefs.ErrFailedPrecondition).
func openContext() (*os.File, error) {
	fd, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, contextError(err)
	}
	return os.NewFile(uintptr(fd), "erofs context"), nil
}

// contextError adds to an error of fsopen what is missing and what helps.
func contextError(err error) error {
	var remedy string
	switch {
	case errors.Is(err, unix.EPERM):
		remedy = needsRoot
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOSYS):
		remedy = "the kernel has no EROFS: Linux 5.16 or newer with CONFIG_EROFS_FS is needed (if it is a module: modprobe erofs)"
	default:
		return fmt.Errorf("fsopen erofs: %w", err)
	}
	return fmt.Errorf("fsopen erofs: %w: %s: %w", err, remedy, errdefs.ErrFailedPrecondition)
}

const needsRoot = "mounting needs root (CAP_SYS_ADMIN in the initial user namespace, and no seccomp filter on mount calls)"

// withMessages adds the kernel's own explanation of err: what it wrote to the context, or else to the
// kernel log, which is where EROFS puts nearly everything.
func withMessages(err error, fsctx *os.File, klog *kernelLog) error {
	messages := contextMessages(fsctx)
	if len(messages) == 0 {
		messages = klog.erofsMessages()
	}
	if len(messages) == 0 {
		return err
	}
	return fmt.Errorf("%w: kernel: %s", err, strings.Join(messages, "; "))
}

// contextMessages takes the messages out of an fs context. Each read returns one, "e message\n" for an
// error; w and i are warnings and information.
func contextMessages(fsctx *os.File) []string {
	var messages []string
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(int(fsctx.Fd()), buf)
		if err != nil || n <= 0 {
			return messages
		}
		text := string(buf[:n])
		if len(text) > 2 && text[1] == ' ' {
			text = text[2:]
		}
		messages = append(messages, strings.TrimSpace(text))
	}
}

// attach makes mnt appear on target, an existing directory that is no mount point.
func attach(mnt *os.File, target string) error {
	st, err := statTarget(target)
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("target %s is not a directory: %w", target, errdefs.ErrInvalidArgument)
	}
	if isMountPoint(st) {
		return fmt.Errorf("target %s is a mount point already: %w", target, errdefs.ErrAlreadyExists)
	}
	if err := unix.MoveMount(int(mnt.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach to %s: %w", target, err)
	}
	return nil
}

// statTarget describes target itself, not what a symbolic link there points to: neither move_mount nor
// the unmounting follows one.
func statTarget(target string) (unix.Statx_t, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, target, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	if err != nil {
		return st, &os.PathError{Op: "statx", Path: target, Err: err}
	}
	return st, nil
}

func isMountPoint(st unix.Statx_t) bool {
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}
