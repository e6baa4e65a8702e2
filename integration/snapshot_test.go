// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/node"
	"github.com/squash-snapshotter/squash/integration/tree"
)

// mountPoint is a directory that is unmounted when the test ends, however it ends.
func mountPoint(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		for _, m := range slices.Backward(mountsAnyway(dir)) {
			if err := unix.Unmount(m.Target, 0); err != nil {
				t.Errorf("unmount %s: %v", m.Target, err)
			}
		}
	})
	return dir
}

func mountsAnyway(dir string) []node.Mount {
	list, err := node.Mounts(dir)
	if err != nil {
		return nil
	}
	return list
}

func walk(t *testing.T, dir string) []string {
	t.Helper()
	list, err := tree.Walk(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tree.Lines(list)
}

// shell runs the mount command that ctr prints.
func shell(t *testing.T, command string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "sh", "-ec", command).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
}

// The verbs of ctr snapshot do with squash what they do with overlayfs.
func TestSnapshotCommands(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		n := startNode(t, m)
		img := smallImage(t, images.OCI, images.Gzip)
		ref := push(t, img)
		pull(t, n, m, ref)
		snapshot := func(args ...string) string {
			t.Helper()
			return ctr(t, n, append([]string{"snapshot", "--snapshotter", m.snapshotter}, args...)...)
		}
		replayed, err := images.Replay(img)
		if err != nil {
			t.Fatal(err)
		}
		want := tree.Lines(replayed.Visible())

		list := lines(snapshot("ls"))[1:]
		if len(list) != 3 {
			t.Fatalf("three layers, but:\n%s", strings.Join(list, "\n"))
		}
		for _, line := range list {
			if f := strings.Fields(line); f[len(f)-1] != "Committed" {
				t.Errorf("not committed: %s", line)
			}
		}
		top := topSnapshot(t, n, m)
		if out := snapshot("tree"); strings.Count(out, "sha256:") != 3 {
			t.Errorf("tree:\n%s", out)
		}
		if out := snapshot("info", top); !strings.Contains(out, top) || !strings.Contains(out, "Committed") {
			t.Errorf("info:\n%s", out)
		}
		if usage(t, n, m) < 300000 {
			t.Errorf("usage is smaller than a file that does not compress:\n%s", snapshot("usage"))
		}

		t.Run("view", func(t *testing.T) {
			target := mountPoint(t)
			view(t, n, m, "view", top, target)
			sameTree(t, "view", walk(t, target), want)
			if err := os.WriteFile(filepath.Join(target, "fresh"), nil, 0o600); err == nil {
				t.Error("a view takes writes")
			}
			// Asked again, after the view was made, the mounts are as good.
			again := mountPoint(t)
			shell(t, snapshot("mounts", again, "view"))
			sameTree(t, "mounts of a view", walk(t, again), want)
		})
		t.Run("prepare, change, diff, commit", func(t *testing.T) {
			target := mountPoint(t)
			shell(t, snapshot("prepare", "--target", target, "active", top))
			sameTree(t, "prepare", walk(t, target), want)
			change(t, target)
			changed := walk(t, target)

			tarball := filepath.Join(t.TempDir(), "diff.tar")
			shell(t, "umount "+target)
			if err := os.WriteFile(tarball, []byte(snapshot("diff", "--media-type", "application/vnd.oci.image.layer.v1.tar", "active")), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), "tar", "-tf", tarball).Output()
			if err != nil {
				t.Fatal(err)
			}
			names := strings.Fields(string(out))
			for _, name := range []string{"fresh", "change/.wh.chowned", "kinds/.wh.many", "change/overwritten"} {
				if !slices.Contains(names, name) {
					t.Errorf("the diff lacks %s: %q", name, names)
				}
			}
			if slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, "kinds/size/") && name != "kinds/size/" }) {
				t.Errorf("the diff repeats what was not changed: %q", names)
			}

			snapshot("commit", "kept", "active")
			at := mountPoint(t)
			view(t, n, m, "kept-view", "kept", at)
			sameTree(t, "view of the commit", walk(t, at), changed)
			shell(t, "umount "+at)
			snapshot("rm", "kept-view")

			// And once more on top of what was committed from a mount.
			second := mountPoint(t)
			shell(t, snapshot("prepare", "--target", second, "active-2", "kept"))
			if err := os.RemoveAll(filepath.Join(second, "change/new-dir")); err != nil {
				t.Fatal(err)
			}
			changed = walk(t, second)
			shell(t, "umount "+second)
			snapshot("commit", "kept-2", "active-2")
			view(t, n, m, "kept-2-view", "kept-2", at)
			sameTree(t, "view of the second commit", walk(t, at), changed)
			shell(t, "umount "+at)
			snapshot("rm", "kept-2-view")
			if _, err := n.Ctr(t.Context(), "snapshot", "--snapshotter", m.snapshotter, "rm", "kept"); err == nil {
				t.Error("a snapshot with a child was removed")
			}
			snapshot("rm", "kept-2")
			snapshot("rm", "kept")
		})
	})
}

// topSnapshot is the name that is nobody's parent, apart from those that are to be passed over.
func topSnapshot(t *testing.T, n *node.Node, m mode, others ...string) string {
	t.Helper()
	list := lines(ctr(t, n, "snapshot", "--snapshotter", m.snapshotter, "ls"))[1:]
	for _, line := range list {
		name := strings.Fields(line)[0]
		if !slices.Contains(others, name) && !slices.ContainsFunc(list, func(other string) bool {
			return other != line && strings.Contains(other, name)
		}) {
			return name
		}
	}
	t.Fatalf("no snapshot without children:\n%s", strings.Join(list, "\n"))
	return ""
}

// view makes a view, keeps it from containerd's garbage collector, and mounts it on target. A collection that
// is under way may take the view before it is marked; then it is made again.
func view(t *testing.T, n *node.Node, m mode, name, parent, target string) {
	t.Helper()
	await(t, "view "+name, func() error {
		command, err := n.Ctr(t.Context(), "snapshot", "--snapshotter", m.snapshotter, "view", "--target", target, name, parent)
		if err != nil {
			return err
		}
		if _, err := n.Ctr(t.Context(), "snapshot", "--snapshotter", m.snapshotter, "label", name, "containerd.io/gc.root=test"); err != nil {
			return err
		}
		shell(t, command)
		return nil
	})
}

// change does to a mounted snapshot what containers do to their file systems.
func change(t *testing.T, dir string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	for what, err := range map[string]error{
		"write":     os.WriteFile(at("fresh"), images.Prose(77, 100000), 0o640),
		"overwrite": os.WriteFile(at("change/overwritten"), []byte("changed"), 0o600),
		"remove":    os.Remove(at("change/chowned")),
		"empty":     os.RemoveAll(at("kinds/many")),
		"new dir":   os.MkdirAll(at("change/new-dir/sub"), 0o750),
		"link":      os.Symlink("fresh", at("link-to-fresh")),
		"twin":      os.Link(at("fresh"), at("twin-of-fresh")),
		"chmod":     os.Chmod(at("kinds/mode/setgid"), 0o700),
		"chown":     os.Lchown(at("kinds/link/absolute"), 17, 18),
		"device":    unix.Mknod(at("device"), unix.S_IFCHR|0o600, int(unix.Mkdev(5, 6))),
		"xattr":     unix.Setxattr(at("kinds/size"), "user.changed", []byte("yes"), 0),
		"replace":   replaceDir(at("kinds/xattr")),
	} {
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	if err := os.WriteFile(at("change/new-dir/sub/file"), images.Noise(78, 5000), 0o644); err != nil {
		t.Fatal(err)
	}
}

// replaceDir removes a directory and makes it again: overlayfs marks the new one opaque.
func replaceDir(path string) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(path, "user"), []byte("another"), 0o600)
}
