// SPDX-License-Identifier: Apache-2.0

package mounts

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// leak binds file to a loop device that stays without users, as losetup does, and returns the device.
func leak(t *testing.T, file string) string {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	device, err := attachLoop(t.Context(), f)
	must(t, err)
	defer device.Close()
	stay(t, device)
	return device.Name()
}

// stay takes a device's autoclear away.
func stay(t *testing.T, device *os.File) {
	t.Helper()
	status, err := unix.IoctlLoopGetStatus64(int(device.Fd()))
	must(t, err)
	status.Flags &^= unix.LO_FLAGS_AUTOCLEAR
	must(t, unix.IoctlLoopSetStatus64(int(device.Fd()), status))
}

func TestLeakedLoopsAreThoseWithoutUsers(t *testing.T) {
	root := newRoot(t)
	below := func(file string) bool { return strings.HasPrefix(file, root+"/") }
	m := newMounter(t, ModeLoop)
	f := newFixture(t, root, "a.erofs", "pack")
	target := mkdir(t, root, "target")
	mount(t, m, f.image, f.pack, target)
	// Both devices of the mount look like leaked ones, but for their user.
	used := loopDevices(t, root)
	for device := range used {
		d, err := os.Open("/dev/" + device)
		must(t, err)
		stay(t, d)
		must(t, d.Close())
	}
	leaked := func() map[string]string {
		t.Helper()
		found, err := LeakedLoops(below)
		must(t, err)
		return found
	}
	if found := leaked(); len(found) > 0 {
		t.Fatalf("devices of a mount are called leaked: %v", found)
	}
	pack, err := os.Open(f.pack)
	must(t, err)
	defer pack.Close()
	unmounted, err := attachLoop(t.Context(), pack)
	must(t, err)
	if found := leaked(); len(found) > 0 {
		t.Errorf("a device that is about to be mounted is called leaked: %v", found)
	}
	must(t, unmounted.Close())

	gone := filepath.Join(root, "gone.erofs")
	must(t, os.WriteFile(gone, make([]byte, 4096), 0o600))
	want := map[string]string{leak(t, f.image): f.image, leak(t, f.pack): f.pack, leak(t, gone): gone}
	must(t, os.Remove(gone))
	if found := leaked(); !maps.Equal(found, want) {
		t.Fatalf("leaked: %v, want %v", found, want)
	}
	if found, err := LeakedLoops(func(string) bool { return false }); err != nil || len(found) > 0 {
		t.Errorf("devices of others: %v, %v", found, err)
	}
	for device, file := range want {
		if err := DetachLoop(device, file+"x"); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("detached from a file that it is not bound to: %v", err)
		}
		must(t, DetachLoop(device, file))
	}
	// A user who comes between the two calls keeps the device to the end.
	for device, file := range used {
		must(t, DetachLoop("/dev/"+device, file))
	}
	waitFor(t, "the leaked devices to be free", func() error {
		if left := loopDevices(t, root); !maps.Equal(left, used) {
			return fmt.Errorf("bound: %v, want the mount's %v", left, used)
		}
		return nil
	})
	f.check(t, target)
}
