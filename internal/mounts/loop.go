// SPDX-License-Identifier: Apache-2.0

package mounts

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

const (
	loopControl = "/dev/loop-control"

	// maxLoopAttempts bounds the races for a free device that one attachment may lose. Each lost race
	// is somebody else's success, so it takes this many rivals in a row.
	maxLoopAttempts = 256
)

// createLoop is the createFunc of ModeLoop. Every mount gets loop devices of its own: a loop device keeps
// the size that its file had when it was bound, and the pack grows. A flat image refers only to blocks
// that existed when it was built, hence before its mount binds the pack.
func createLoop(ctx context.Context, image, pack *backing) (*os.File, error) {
	primary, err := attachLoop(ctx, image.file)
	if err != nil {
		return nil, err
	}
	// The mount opens the devices itself. After that, or after a failure, closing these descriptors
	// leaves autoclear to the mount alone.
	defer primary.Close()
	var devices []string
	if pack != nil {
		device, err := attachLoop(ctx, pack.file)
		if err != nil {
			return nil, err
		}
		defer device.Close()
		devices = append(devices, device.Name())
	}
	return create(primary.Name(), devices)
}

// attachLoop binds f read-only to a free loop device and returns the device, open. The kernel frees the
// device when the last descriptor and the last mount of it are gone.
func attachLoop(ctx context.Context, f *os.File) (*os.File, error) {
	control, err := os.OpenFile(loopControl, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, loopControlRemedy(err))
	}
	defer control.Close()
	for range maxLoopAttempts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("get a free loop device: %w", err)
		}
		device, err := os.Open(fmt.Sprintf("/dev/loop%d", n))
		if err != nil {
			if errors.Is(err, unix.ENXIO) { // removed by somebody between the two calls
				continue
			}
			return nil, fmt.Errorf("%w: %s", err, loopNodeRemedy(err))
		}
		err = configureLoop(device, f)
		if err == nil {
			return device, nil
		}
		device.Close()
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENXIO) {
			return nil, fmt.Errorf("bind %s to %s: %w", f.Name(), device.Name(), err)
		}
	}
	return nil, fmt.Errorf("bind %s to a loop device: every free one was taken by others, %d times: %w",
		f.Name(), maxLoopAttempts, unix.EBUSY)
}

// configureLoop binds f to the free loop device. Direct I/O keeps the file's pages from being cached a
// second time under the device; a file system that cannot do it makes the kernel either ignore the flag
// or refuse it. The block size is left to the kernel: 512 bytes, or with direct I/O what the disk needs,
// and both suit the 4096-byte blocks of the images.
func configureLoop(device, f *os.File) error {
	config := unix.LoopConfig{Fd: uint32(f.Fd())}
	config.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	// For losetup and the like, cut to the field with its final NUL; the kernel knows the real path.
	copy(config.Info.File_name[:len(config.Info.File_name)-1], f.Name())
	err := unix.IoctlLoopConfigure(int(device.Fd()), &config)
	if errors.Is(err, unix.EINVAL) {
		config.Info.Flags &^= unix.LO_FLAGS_DIRECT_IO
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
	}
	return err
}

func loopControlRemedy(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return "loop devices need the loop module (modprobe loop) and its control node in the daemon's /dev"
	}
	return loopPermission
}

func loopNodeRemedy(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return "the kernel has this loop device, but its node is missing: give the daemon the host's /dev (devtmpfs)"
	}
	return loopPermission
}

const loopPermission = "loop devices need root and, in a container, leave to use the host's devices"
