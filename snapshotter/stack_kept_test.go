// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// Whoever was told the directories of a stack can mount them as long as the
// snapshot exists, whatever became of the chain.
func TestAStackThatWasHandedOutStays(t *testing.T) {
	t.Parallel()
	n := stackNode(t, mounts.ModeAuto, never)
	ctx := context.Background()
	names, trees := n.built(3)
	top := names[3]
	m, err := n.Prepare(ctx, "ns/5/container", top)
	must(t, err)
	v, err := n.View(ctx, "ns/6/view", top)
	must(t, err)
	must(t, n.Flatten(ctx, top))
	must(t, n.Cleanup(ctx))
	for key, m := range map[string][]mount.Mount{"ns/5/container": m, "ns/6/view": v} {
		if len(lowersOf(m)) != 3 {
			t.Fatalf("not a stack: %v", m)
		}
		root, undo := n.mounted(key, m)
		got, err := treetest.Read(root)
		must(t, err)
		sameTree(t, trees[3], got)
		undo()
	}
	must(t, n.Cleanup(ctx))
	if c := n.layerImages(); c > 0 {
		t.Errorf("%d layer images, and nobody needs them", c)
	}
}

// A container on a stack outlives the daemon, gets mounts again after a reboot,
// and keeps what it shows when all is removed below it.
func TestAStackInUseIsKept(t *testing.T) {
	for _, mode := range []mounts.Mode{mounts.ModeFile, mounts.ModeLoop} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			n := stackNode(t, mode, never)
			n.t = t
			stackIsKept(t, n)
		})
	}
}

func stackIsKept(t *testing.T, n *node) {
	ctx := context.Background()
	names, trees := n.built(3)
	top := names[3]
	key := n.key("container")
	m, err := n.Prepare(ctx, key, top)
	must(t, err)
	before := len(mountsBelow(t, n.dir))
	n.close()
	n.open()
	if after := len(mountsBelow(t, n.dir)); after != before {
		t.Errorf("%d mounts before a restart, %d after it", before, after)
	}
	again, err := n.Mounts(ctx, key)
	must(t, err)
	if !slices.Equal(lowersOf(m), lowersOf(again)) || len(lowersOf(m)) != 3 {
		t.Errorf("after a restart: %v, before: %v", again, m)
	}
	n.close()
	for _, m := range mountsBelow(t, n.dir) {
		must(t, unmount(m.Mountpoint))
	}
	must(t, os.WriteFile(n.newLayout(t).boot(), []byte("another boot\n"), 0o600))
	n.open()
	m, err = n.Mounts(ctx, key)
	must(t, err)
	root, undo := n.mounted(key, m)
	got, err := treetest.Read(root)
	must(t, err)
	sameTree(t, trees[3], got)

	n.removeAll()
	for range 2 {
		must(t, n.Cleanup(ctx))
	}
	if n.layerImages() != 2 {
		t.Errorf("%d layer images of a running container, want 2", n.layerImages())
	}
	// New content would come where the old was, had it been freed.
	n.pull("ns/2", sample(2))
	for i := 1; i <= 3; i++ {
		file := fmt.Sprintf("%s/opt/step%d", root, i)
		dropCaches(t, file)
		if b, err := os.ReadFile(file); err != nil || string(b) != stepContent(i) {
			t.Errorf("a running container does not read what step %d wrote: %v", i, err)
		}
	}
	undo()
	n.removeAll()
	must(t, n.Cleanup(ctx))
	n.expectNothingLeft()
}

func TestUsageCountsLayerImages(t *testing.T) {
	t.Parallel()
	n := stackNode(t, mounts.ModeAuto, never)
	names, _ := n.built(1)
	n.pull("ns/8", image{treetest.Layer(treetest.File("large", noise(4<<20, 9)))}) // directories are nobody's usage
	n.step(names[1], "ns/4/small files", func(root string) {
		for i := range minStackEntries / 3 {
			must(t, os.WriteFile(fmt.Sprintf("%s/opt/small%d", root, i), []byte(noise(1000, uint64(i))), 0o600))
		}
	})
	if h := n.height("ns/4/small files"); h != 2 {
		t.Fatalf("%d lower directories", h)
	}
	waitFor(t, "the upper directories to be gone", func() error {
		if left, err := os.ReadDir(n.snapshotsDir()); err != nil || len(left) > 0 {
			return fmt.Errorf("%v, %v", left, err)
		}
		return nil
	})
	n.usagesAddUp("with a stack")
}

// A check finds damage of a layer image and writes it again where it is.
func TestALayerImageIsMendedInItsPlace(t *testing.T) {
	t.Parallel()
	n := stackNode(t, mounts.ModeAuto, never)
	names, trees := n.built(2)
	root, undo := n.view(names[2])
	defer undo()
	i := layerImage(n.flatImage(names[2]).chain, 2)
	before, err := os.ReadFile(n.image(i))
	must(t, err)
	for what, damage := range map[string]func(){
		"image": func() { overwrite(t, n.image(i), 1200, []byte("damage")) },
		"refs":  func() { overwrite(t, n.refs(i), 33, []byte{0xff}) },
	} {
		damage()
		if f, _ := n.checked(CheckOptions{}); len(f) != 1 || f[0].Kind != FindingImage || f[0].Object != n.image(i) {
			t.Fatalf("%s: %+v", what, f)
		}
		if f, _ := n.checked(CheckOptions{Repair: true}); len(f) != 1 || !f[0].Repaired {
			t.Fatalf("%s: %+v", what, f)
		}
		if after, err := os.ReadFile(n.image(i)); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s: the image has other bytes than before: %v", what, err)
		}
		got, err := treetest.Read(root)
		must(t, err)
		sameTree(t, trees[2], got)
	}
}

// What only a layer image shows is not freed when the chain above is flat, and
// is moved together with the rest when its cluster is mostly unused.
func TestContentOfALayerImageIsKeptAndMoved(t *testing.T) {
	t.Parallel()
	n := stackNode(t, mounts.ModeAuto, never)
	ctx := context.Background()
	base := n.pull("ns/1", sample(1))
	must(t, n.Flatten(ctx, base))
	file := func(root string, i int) string { return fmt.Sprintf("%s/opt/small%d", root, i) }
	want := n.step(base, "ns/2/first", func(root string) {
		for i := range 200 {
			must(t, os.WriteFile(file(root, i), []byte(noise(7500, uint64(i))), 0o600))
		}
	})
	n.shows("ns/2/first", want)
	_, err := n.View(ctx, "ns/9/view", "ns/2/first") // who knows when it will be mounted
	must(t, err)
	n.step("ns/2/first", "ns/3/second", func(root string) {
		for i := range 200 {
			must(t, os.WriteFile(file(root, i), []byte("short"), 0o600))
		}
	})
	must(t, n.Flatten(ctx, "ns/3/second"))
	must(t, n.collect(ctx, true, nil))
	i := layerImage(n.flatImage("ns/2/first").chain, 1)
	refs, err := n.readRefs(i)
	must(t, err)
	if none := n.pack.Begins(refs.Blocks); len(refs.Blocks) == 0 || len(none) > 0 {
		t.Fatalf("%d of %d contents were freed", len(none), len(refs.Blocks))
	}
	n.shows("ns/2/first", want)

	// As if little of every cluster were needed: what was handed out stays.
	n.repackAll()
	if now, err := n.readRefs(i); err != nil || !slices.Equal(now.Blocks, refs.Blocks) {
		t.Errorf("an image that may be mounted at any time shows other blocks: %v", err)
	}
	must(t, n.Remove(ctx, "ns/9/view"))
	must(t, n.Remove(ctx, "ns/3/second"))
	must(t, n.collect(ctx, true, nil))
	n.repackAll()
	waitFor(t, "the image to be built again", func() error {
		now, err := n.readRefs(i)
		if err == nil && slices.Equal(now.Blocks, refs.Blocks) {
			err = errors.New("it shows what it showed")
		}
		return err
	})
	n.shows("ns/2/first", want)
}

// repackAll has all shared clusters taken for mostly unused.
func (n *node) repackAll() {
	n.t.Helper()
	n.collecting.Lock()
	defer n.collecting.Unlock()
	clear(n.Snapshotter.repacked) // what could not be moved before may be moved now
	must(n.t, n.repack(context.Background(), needed{}))
}
