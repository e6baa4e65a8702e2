// SPDX-License-Identifier: Apache-2.0

package service

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// lockRoot makes root, mode 0700, and takes it for this process alone. The lock ends with the returned file, and so
// with the process, however that ends; the file itself stays. Two daemons on one root would both think that they own
// the pack.
func lockRoot(root string) (*os.File, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(root, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, unix.EROFS) {
		return nil, fmt.Errorf("open lock of root: %w: find out why the file system of %s is read-only (the kernel's log may tell), mend it and mount it writable", err, root)
	}
	if err != nil {
		return nil, fmt.Errorf("open lock of root: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("root %s is in use by another containerd-squash-grpc (pid %s)", root, holder(f))
		}
		return nil, fmt.Errorf("lock root %s: %w", root, err)
	}
	if err := writePid(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("write pid into %s: %w", f.Name(), err)
	}
	return f, nil
}

// writePid leaves the file its block: on a full disk there may be no other.
func writePid(f *os.File) error {
	pid := fmt.Appendf(nil, "%d\n", os.Getpid())
	if _, err := f.WriteAt(pid, 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(pid)))
}

// holder returns what the process that holds the lock wrote into it, for a message.
func holder(f *os.File) string {
	pid, err := io.ReadAll(io.LimitReader(f, 32))
	if text := strings.TrimSpace(string(pid)); err == nil && text != "" {
		return text
	}
	return "unknown"
}
