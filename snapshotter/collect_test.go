// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

var bothModes = []mounts.Mode{mounts.ModeFile, mounts.ModeLoop}

// fill makes one of everything that a store can hold.
func fill(n *node) {
	n.t.Helper()
	ctx := context.Background()
	top := n.pull("ns/1", sample(1))
	n.pull("ns/2", sample(2))
	n.pull("other/3", sample(1))
	key, root, undo := n.run(top)
	must(n.t, os.WriteFile(root+"/written", []byte(noise(100_000, 99)), 0o600))
	must(n.t, os.RemoveAll(root+"/etc"))
	must(n.t, n.Commit(ctx, "ns/4/committed", key))
	undo()
	_, err := n.View(ctx, "ns/5/view", "ns/4/committed")
	must(n.t, err)
	_, err = n.Prepare(ctx, "ns/6/container", top)
	must(n.t, err)
	_, err = n.Prepare(ctx, "ns/7/extract-unfinished", top)
	must(n.t, err)
	_, err = n.Prepare(ctx, "ns/8/scratch", "")
	must(n.t, err)
}

func TestRemovalAndCleanupGiveEverythingBack(t *testing.T) {
	t.Parallel()
	for _, mode := range bothModes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, mode)
			fill(n)
			n.removeAll()
			must(t, n.Cleanup(context.Background()))
			n.expectNothingLeft()
		})
	}
}

func TestRemovalAloneGivesEverythingBackInTheBackground(t *testing.T) {
	t.Parallel()
	for _, mode := range bothModes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, mode)
			fill(n)
			n.removeAll()
			n.expectNothingLeft()
		})
	}
}

func TestRemovalOfOneImageKeepsWhatOthersNeed(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	n.close()
	n.cfg.Shadowed = ShadowedKeep
	n.open()
	ctx := context.Background()
	one, two := sample(1), sample(2)
	n.pull("ns/1", one)
	alone := n.pack.Stats()
	want := n.tree(one.names("ns/1")[2])
	n.pull("ns/2", two)
	must(t, n.Flatten(ctx, two.names("ns/2")[2]))
	for _, i := range []int{2, 1, 0} {
		must(t, n.Remove(ctx, two.names("ns/2")[i]))
	}
	must(t, n.Cleanup(ctx))
	if st := n.pack.Stats(); st.Contents != alone.Contents || st.Stored != alone.Stored {
		t.Errorf("the pack holds %+v, with the first image alone it held %+v", st, alone)
	}
	n.shows(one.names("ns/1")[2], want)
}

// A container goes on running while its image, and even its own snapshot, are
// removed: what it reads stays until its overlay is gone.
func TestARemovedImageKeepsItsContentWhileAnOverlayUsesIt(t *testing.T) {
	t.Parallel()
	for _, mode := range bothModes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, mode)
			keepsContentWhileUsed(n)
		})
	}
}

func keepsContentWhileUsed(n *node) {
	t, ctx := n.t, context.Background()
	t.Helper()
	top := n.pull("ns/1", sample(1))
	_, root, undo := n.run(top)
	n.removeAll()
	for range 2 {
		_ = n.Cleanup(ctx) // it may say that something is in use
	}
	// New content would come where the old was, had it been freed.
	n.pull("ns/2", sample(2))
	dropCaches(t, filepath.Join(root, "big"))
	got, err := os.ReadFile(filepath.Join(root, "big"))
	must(t, err)
	if string(got) != noise(1<<20+300_000, 13) {
		t.Error("a running container reads something else than its image's content")
	}
	if !exists(n.imageMount(n.onlyOtherImage("ns/2", sample(2)))) {
		t.Error("the flat image of a running container was unmounted")
	}
	undo()
	n.removeAll()
	must(t, n.Cleanup(ctx))
	n.expectNothingLeft()
}

// onlyOtherImage is the image that is there and is not that of img.
func (n *node) onlyOtherImage(prefix string, img image) imageName {
	n.t.Helper()
	mine := n.flatImage(img.names(prefix)[len(img)-1])
	entries, err := os.ReadDir(n.imagesDir())
	must(n.t, err)
	for _, e := range entries {
		if c, err := parseImageName(e.Name()[:len(e.Name())-len(imageSuffix)]); err == nil && c != mine {
			return c
		}
	}
	n.t.Fatal("no other flat image")
	return imageName{}
}

// The same with views, whose mounts are binds of the flat image.
func TestARemovedImageKeepsItsContentWhileAViewUsesIt(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	top := n.pull("ns/1", sample(1))
	root, undo := n.view(top)
	n.removeAll()
	_ = n.Cleanup(context.Background())
	n.pull("ns/2", sample(2))
	dropCaches(t, filepath.Join(root, "big"))
	got, err := os.ReadFile(filepath.Join(root, "big"))
	must(t, err)
	if string(got) != noise(1<<20+300_000, 13) {
		t.Error("a view reads something else than its image's content")
	}
	undo()
	n.removeAll()
	must(t, n.Cleanup(context.Background()))
	n.expectNothingLeft()
}

// Users of flat images are found when the state directory is a symlink, and
// names in the root's path mean nothing.
func TestUsersOfAFlatImageAreFoundWhateverTheDirectoriesAreCalled(t *testing.T) {
	t.Parallel()
	t.Run("a symlink", func(t *testing.T) {
		t.Parallel()
		n := oddNode(t, func(n *node) {
			must(t, os.MkdirAll(filepath.Join(n.dir, "state"), 0o700))
			n.cfg.State = filepath.Join(n.dir, "link")
			must(t, os.Symlink("state", n.cfg.State))
		})
		top := n.pull("ns/1", sample(1))
		root, undo := n.view(top)
		n.removeAll()
		_ = n.Cleanup(context.Background())
		n.pull("ns/2", sample(2))
		dropCaches(t, filepath.Join(root, "big"))
		got, err := os.ReadFile(filepath.Join(root, "big"))
		must(t, err)
		if string(got) != noise(1<<20+300_000, 13) {
			t.Error("a view reads something else than its image's content")
		}
		undo()
		n.removeAll()
		must(t, n.Cleanup(context.Background()))
		n.expectNothingLeft()
	})
	t.Run("a pattern", func(t *testing.T) {
		t.Parallel()
		n := oddNode(t, func(n *node) { n.cfg.Root = filepath.Join(n.dir, "root[") })
		keepsContentWhileUsed(n)
	})
}

func oddNode(t *testing.T, change func(n *node)) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts file systems")
	}
	n := closedNode(t, t.TempDir())
	change(n)
	n.open()
	return n
}

// A mount of an unpack that its snapshot's removal overtook is found.
func TestASkeletonMountWithoutASnapshotIsCollected(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	top := n.pull("ns/1", sample(1))
	_, err := n.Prepare(ctx, "ns/2/extract-x", top)
	must(t, err)
	// As if the snapshot had gone between the mount and its directory.
	id := n.id("ns/2/extract-x")
	must(t, os.Mkdir(n.skeletonMount("4711"), 0o700))
	must(t, n.mounter.Mount(ctx, n.skeleton(id), "", n.skeletonMount("4711")))
	n.removeAll()
	must(t, n.Cleanup(ctx))
	n.expectNothingLeft()
}

// A commit whose upper directory is still being taken in when the snapshot is
// removed leaves nothing behind, and no second removal is needed for it.
func TestRemovalWhileAnUpperDirectoryIsTakenInLeavesNothing(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	for i := range 25 {
		key := n.key("container")
		m, err := n.Prepare(ctx, key, "")
		must(t, err)
		for j := range 300 {
			dir := fmt.Sprintf("%s/d%d", m[0].Source, j%10)
			must(t, os.MkdirAll(dir, 0o755))
			must(t, os.WriteFile(fmt.Sprintf("%s/f%d", dir, j), []byte(noise(2000, uint64(i*1000+j))), 0o600))
		}
		name := fmt.Sprintf("ns/9/committed-%d", i)
		must(t, n.Commit(ctx, name, key))
		id := n.id(name)
		if i%2 == 1 { // half of them when some of it was done
			waitFor(t, "the upper directory to be taken in", func() error {
				if !exists(n.layer(id)) {
					return errors.New("not begun")
				}
				return nil
			})
		}
		must(t, n.Remove(ctx, name))
		n.expectNothingLeft()
	}
}

// gone is an error as long as there is something at path.
func gone(path string) error {
	if exists(path) {
		return fmt.Errorf("%s is there", path)
	}
	return nil
}

// dropCaches makes the next reading of a file come from its disk.
func dropCaches(t testing.TB, path string) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	must(t, fadviseDontNeed(f))
}

func TestAnEmptyImageIsShownAndRemoved(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	top := n.pull("ns/1", image{treetest.Layer()})
	if tree := n.tree(top); len(tree.Entries) != 1 {
		t.Errorf("an image without files shows %q", tree.Paths())
	}
	n.removeAll()
	must(t, n.Cleanup(context.Background()))
	n.expectNothingLeft()
}
