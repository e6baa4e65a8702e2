// SPDX-License-Identifier: Apache-2.0

package mounts

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/squash-snapshotter/squash/internal/erofs"
	"golang.org/x/sys/unix"
)

func TestUsersAreBindsAndOverlaysInAnyNamespace(t *testing.T) {
	root := newRoot(t)
	m := newMounter(t, ModeFile)
	image := filepath.Join(root, "image.erofs")
	writeImage(t, image, erofs.Options{}, map[string][]byte{"file": []byte("x")}, nil)
	target := mkdir(t, root, "target")
	mount(t, m, image, "", target)
	users := func(want ...string) {
		t.Helper()
		got, err := Users(target)
		must(t, err)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("users: %q, want %q", got, want)
		}
	}
	users()

	bind := mkdir(t, root, "bind")
	must(t, unix.Mount(target, bind, "", unix.MS_BIND, ""))
	over := mkdir(t, root, "overlay")
	must(t, unix.Mount("overlay", over, "overlay", 0, "lowerdir="+target+",upperdir="+mkdir(t, root, "upper")+",workdir="+mkdir(t, root, "work")))
	users(bind, over)
	must(t, unix.Unmount(bind, 0))
	must(t, unix.Unmount(over, 0))
	users()
	// One of several lower directories, whichever it is.
	a, b := mkdir(t, root, "a"), mkdir(t, root, "b")
	for _, lowers := range []string{target + ":" + a + ":" + b, a + ":" + target + ":" + b, a + ":" + b + ":" + target} {
		must(t, unix.Mount("overlay", over, "overlay", unix.MS_RDONLY, "lowerdir="+lowers))
		users(over)
		must(t, unix.Unmount(over, 0))
	}

	// A process with mounts of its own, as a builder in a container has them.
	hidden := mkdir(t, root, "hidden")
	cmd := exec.Command("/bin/sh", "-c", `mount --bind "$0" "$1" && echo mounted && read line`, target, hidden)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "mounted\n" {
		t.Errorf("the other namespace says %q, %v", line, err)
	}
	users(hidden)
	must(t, in.Close())
	cmd.Wait() // its read ends without a line
	users()
	must(t, m.Unmount(target))
}
