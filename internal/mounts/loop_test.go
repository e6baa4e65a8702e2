// SPDX-License-Identifier: Apache-2.0

package mounts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLoopDevicesAreReadOnlyDirectAndAutoclear(t *testing.T) {
	root := newRoot(t)
	m := newMounter(t, ModeLoop)
	f := newFixture(t, root, "a.erofs", "pack")
	target := mkdir(t, root, "target")
	mount(t, m, f.image, f.pack, target)

	devices := loopDevices(t, root)
	if len(devices) != 2 {
		t.Fatalf("got loop devices %q, want one for the image and one for the pack", devices)
	}
	for device := range devices {
		for attribute, want := range map[string]string{
			"ro": "1", "loop/autoclear": "1", "loop/dio": "1", "loop/offset": "0",
		} {
			got, err := os.ReadFile(filepath.Join("/sys/block", device, attribute))
			must(t, err)
			if strings.TrimSpace(string(got)) != want {
				t.Errorf("%s of %s: got %q, want %q", attribute, device, got, want)
			}
		}
	}
}

// ramfs has no direct I/O.
func TestLoopWithoutDirectIO(t *testing.T) {
	root := newRoot(t)
	m := newMounter(t, ModeLoop)
	dir := mkdir(t, root, "ramfs")
	mountNew(t, "ramfs", dir, "")
	f := newFixture(t, dir, "a.erofs", "pack")
	target := mkdir(t, root, "target")
	mount(t, m, f.image, f.pack, target)
	f.check(t, target)
	for device := range loopDevices(t, root) {
		dio, err := os.ReadFile(filepath.Join("/sys/block", device, "loop/dio"))
		must(t, err)
		if strings.TrimSpace(string(dio)) != "0" {
			t.Errorf("%s claims direct I/O on ramfs", device)
		}
	}
	must(t, m.Unmount(target))
	waitFor(t, "loop devices to be freed", func() error {
		if left := loopDevices(t, root); len(left) > 0 {
			return fmt.Errorf("left bound: %q", left)
		}
		return nil
	})
}

// In a container, /dev is often a folder of few nodes instead of the kernel's devtmpfs.
func TestLoopWithoutNodesNamesWhatIsMissing(t *testing.T) {
	root := newRoot(t)
	file := filepath.Join(root, "file")
	must(t, os.WriteFile(file, make([]byte, 4096), 0o600))
	var control unix.Stat_t
	must(t, unix.Stat(loopControl, &control))

	for _, c := range []struct {
		name    string
		control bool
		says    string
	}{
		{"no control node", false, "modprobe loop"},
		{"no device nodes", true, "devtmpfs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var attachErr error
			err := inPrivateNamespace(func() error {
				if err := unix.Mount("tmpfs", "/dev", "tmpfs", 0, ""); err != nil {
					return fmt.Errorf("mount on /dev: %w", err)
				}
				if c.control {
					if err := unix.Mknod(loopControl, unix.S_IFCHR|0o600, int(control.Rdev)); err != nil {
						return fmt.Errorf("mknod: %w", err)
					}
				}
				f, err := os.Open(file)
				if err != nil {
					return err
				}
				defer f.Close()
				device, err := attachLoop(t.Context(), f)
				if err == nil {
					device.Close()
				}
				attachErr = err
				return nil
			})
			must(t, err)
			if !errors.Is(attachErr, fs.ErrNotExist) || !strings.Contains(attachErr.Error(), c.says) {
				t.Errorf("got %v, want a missing file and %q", attachErr, c.says)
			}
		})
	}
}

// inPrivateNamespace runs f in a mount namespace of its own, which ends with the call.
func inPrivateNamespace(f func() error) error {
	return onLostThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		return f()
	})
}

// onLostThread runs f on an operating system thread that ends with it, so that f may spoil its state.
func onLostThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread goes with the goroutine
		result <- f()
	}()
	return <-result
}
