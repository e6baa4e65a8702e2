// SPDX-License-Identifier: Apache-2.0

package mounts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// LeakedLoops returns the loop devices that nobody uses and that stay all the same, with the files that they are bound
// to, of those files that ours accepts. A Mounter binds devices with autoclear, in the same call, and these go by
// themselves; one without was bound, or robbed of the flag, by somebody else, and is leaked unless it is in use.
//
// mountinfo cannot tell who holds a device: it lists neither the second device of an EROFS nor mounts that were detached
// below an overlay. The kernel can: a mounted device is held exclusively.
func LeakedLoops(ours func(file string) bool) (map[string]string, error) {
	states, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, err
	}
	leaked := map[string]string{}
	for _, state := range states {
		device := "/dev/" + filepath.Base(filepath.Dir(state))
		file, stays, err := bound(device)
		if err != nil {
			return nil, err
		}
		if !stays || !ours(file) {
			continue
		}
		// Those with autoclear are never tried: one that is about to be mounted would be refused its mount.
		f, err := os.OpenFile(device, os.O_RDONLY|unix.O_EXCL|unix.O_NONBLOCK, 0)
		switch {
		case errors.Is(err, unix.EBUSY), errors.Is(err, unix.ENXIO): // mounted; detached meanwhile
			continue
		case err != nil:
			return nil, fmt.Errorf("look for users of %s: %w", device, err)
		}
		f.Close()
		leaked[device] = file
	}
	return leaked, nil
}

// bound tells to which file a loop device is bound, and whether it stays so without users. file is "" for a free device.
func bound(device string) (file string, stays bool, err error) {
	dir := filepath.Join("/sys/block", filepath.Base(device), "loop")
	name, err := os.ReadFile(filepath.Join(dir, "backing_file"))
	var auto []byte
	if err == nil {
		auto, err = os.ReadFile(filepath.Join(dir, "autoclear"))
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) { // free, or freed between the two
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("state of %s: %w", device, err)
	}
	return withoutDeleted(strings.TrimSuffix(string(name), "\n")), strings.TrimSpace(string(auto)) == "0", nil
}

// DetachLoop frees a device that LeakedLoops returned. Who has come to use it meanwhile keeps it: the kernel then frees
// it after its last user. errdefs.ErrFailedPrecondition: it is bound to another file by now.
func DetachLoop(device, file string) error {
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("detach %s: %w", device, err)
	}
	defer f.Close()
	now, stays, err := bound(device)
	if err != nil {
		return fmt.Errorf("detach %s: %w", device, err)
	}
	if now != file || !stays {
		return fmt.Errorf("detach %s: it is no longer bound to %s: %w", device, file, errdefs.ErrFailedPrecondition)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
		return fmt.Errorf("detach %s from %s: %w", device, file, err)
	}
	return nil
}
