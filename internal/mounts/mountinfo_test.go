// SPDX-License-Identifier: Apache-2.0

package mounts

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// checkMounted compares the targets and images that Mounted finds.
func checkMounted(t *testing.T, under string, want map[string]string) {
	t.Helper()
	found, err := Mounted(under)
	must(t, err)
	got := map[string]string{}
	for target, mount := range found {
		got[target] = mount.Image
	}
	if !maps.Equal(got, want) {
		t.Errorf("mounted under %s: got %q, want %q", under, got, want)
	}
}

func TestMountedFindsWhatIsAtOrBelow(t *testing.T) {
	forEachMode(t, func(t *testing.T, m *Mounter) {
		root := newRoot(t)
		f := newFixture(t, root, "a.erofs", "pack")
		one := mkdir(t, root, "state", "one")
		deep := mkdir(t, root, "state", "two", "deep")
		sibling := mkdir(t, root, "state2") // shares the characters, not the directory
		for _, target := range []string{one, deep, sibling} {
			mount(t, m, f.image, f.pack, target)
		}
		mountNew(t, "tmpfs", mkdir(t, root, "state", "other"), "")

		checkMounted(t, root+"/state", map[string]string{one: f.image, deep: f.image})
		checkMounted(t, root+"/state/", map[string]string{one: f.image, deep: f.image})
		checkMounted(t, one, map[string]string{one: f.image})
		checkMounted(t, root+"/state/other", map[string]string{})
		checkMounted(t, root+"/none", map[string]string{})

		all, err := Mounted("/")
		must(t, err)
		if mount, ok := all[sibling]; !ok || mount.Image != f.image {
			t.Errorf("under /: %s is %+v", sibling, mount)
		} else if (mount.Loop != "") != (m.Mode() == ModeLoop) {
			t.Errorf("%s mode: loop device is %q", m.Mode(), mount.Loop)
		}

		must(t, m.Unmount(one))
		checkMounted(t, root+"/state", map[string]string{deep: f.image})
	})
}

func TestMountedThroughSymlink(t *testing.T) {
	forEachMode(t, func(t *testing.T, m *Mounter) {
		root := newRoot(t)
		f := newFixture(t, mkdir(t, root, "images"), "a.erofs", "pack")
		mkdir(t, root, "run", "target")
		must(t, os.Symlink("run", filepath.Join(root, "var-run")))
		must(t, os.Symlink("images", filepath.Join(root, "link")))
		link := filepath.Join(root, "link", "a.erofs")
		mount(t, m, link, f.pack, filepath.Join(root, "var-run", "target"))

		found, err := Mounted(filepath.Join(root, "var-run"))
		must(t, err)
		got, ok := found[filepath.Join(root, "var-run", "target")]
		if len(found) != 1 || !ok {
			t.Fatalf("got %+v, want the target as the caller names it", found)
		}
		for path, want := range map[string]bool{f.image: true, link: true, f.pack: false, root + "/none": false} {
			if got.Shows(path) != want {
				t.Errorf("%+v: Shows(%q) = %t", got, path, !want)
			}
		}
	})
}

func TestMountedLeavesBindsOfPartsOut(t *testing.T) {
	root := newRoot(t)
	m := newMounter(t, ModeAuto)
	f := newFixture(t, root, "a.erofs", "pack")
	target := mkdir(t, root, "target")
	mount(t, m, f.image, f.pack, target)
	part := filepath.Join(root, "part")
	must(t, os.WriteFile(part, nil, 0o600))
	must(t, unix.Mount(filepath.Join(target, "packed"), part, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(part, 0)) })

	checkMounted(t, root, map[string]string{target: f.image})
}

func TestMountedShowsUpperOfStackedMounts(t *testing.T) {
	root := newRoot(t)
	m := newMounter(t, ModeAuto)
	lower := newFixture(t, root, "lower.erofs", "")
	upper := newFixture(t, root, "upper.erofs", "")
	target, aside := mkdir(t, root, "target"), mkdir(t, root, "aside")
	mount(t, m, lower.image, "", target)
	mount(t, m, upper.image, "", aside)
	must(t, unix.Mount(aside, target, "", unix.MS_BIND, ""))

	checkMounted(t, target, map[string]string{target: upper.image})
	must(t, m.Unmount(target))
	checkMounted(t, target, map[string]string{target: lower.image})
}

func TestMountedNamesDeletedImage(t *testing.T) {
	forEachMode(t, func(t *testing.T, m *Mounter) {
		root := newRoot(t)
		f := newFixture(t, root, "a.erofs", "pack")
		target := mkdir(t, root, "target")
		mount(t, m, f.image, f.pack, target)
		must(t, os.Remove(f.image))
		must(t, os.Remove(f.pack))

		f.check(t, target)
		checkMounted(t, root, map[string]string{target: f.image})
	})
}
