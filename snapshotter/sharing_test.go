// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

func TestContentIsStoredOncePerNode(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	n.close()
	n.cfg.Shadowed = ShadowedKeep // what is shadowed counts as before
	n.open()
	img := sample(1)
	top := n.pull("ns/1", img)
	before := n.pack.Stats()
	if before.Contents == 0 || before.Stored == 0 {
		t.Fatalf("the image brought nothing to the pack: %+v", before)
	}
	unchanged := func(after string) {
		t.Helper()
		if st := n.pack.Stats(); st != before {
			t.Errorf("after %s the pack holds %+v, before it %+v", after, st, before)
		}
	}
	n.pull("other/2", img)
	unchanged("the same image in another containerd namespace")
	n.pull("ns/3", image{img[2], img[0]})
	unchanged("another image of the same layers")
	n.pull("ns/4", image{treetest.Layer(
		treetest.File("elsewhere/name", noise(70_000, 10), treetest.Mode(0o600), treetest.Owner(7, 7)),
		treetest.File("twice", noise(1<<20+300_000, 13)), treetest.File("thrice", noise(1<<20+300_000, 13)))})
	unchanged("another layer with the same contents under other names")

	// What a container wrote and somebody committed.
	ctx := context.Background()
	key, root, undo := n.run(top)
	must(t, os.WriteFile(root+"/written", []byte(noise(70_000, 10)), 0o600))
	must(t, n.Commit(ctx, "ns/5/committed", key))
	undo()
	must(t, n.Flatten(ctx, "ns/5/committed"))
	unchanged("a commit of a container that wrote the same content")

	other := sample(2)
	n.pull("ns/6", other)
	if st := n.pack.Stats(); st.Contents <= before.Contents {
		t.Errorf("new contents are not counted: %+v", st)
	}
}

func TestTheSameLayersInTwoNamespacesShareOneFlatImageAndMount(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	img := sample(1)
	a, b := n.pull("ns/1", img), n.pull("other/2", img)
	must(t, n.Flatten(ctx, a))
	must(t, n.Flatten(ctx, b))
	images, err := filepath.Glob(n.imagesDir() + "/*" + imageSuffix)
	must(t, err)
	if len(images) != 1 {
		t.Errorf("%d flat images, want 1", len(images))
	}
	mounted, err := mounts.Mounted(n.imageMounts())
	must(t, err)
	if len(mounted) != 1 {
		t.Errorf("%d flat mounts, want 1: %v", len(mounted), mounted)
	}
	va, err := n.View(ctx, "ns/11/view", a)
	must(t, err)
	vb, err := n.View(ctx, "other/12/view", b)
	must(t, err)
	if va[0].Source != vb[0].Source {
		t.Errorf("views are of %s and %s", va[0].Source, vb[0].Source)
	}

	// One of them goes, the other stays whole.
	want := n.tree(b)
	must(t, n.Remove(ctx, "ns/11/view"))
	names := img.names("ns/1")
	for i := len(names) - 1; i >= 0; i-- {
		must(t, n.Remove(ctx, names[i]))
	}
	must(t, n.Cleanup(ctx))
	n.shows(b, want)
}

// usagesAddUp compares the sum of all usages with what the root occupies.
func (n *node) usagesAddUp(when string) {
	n.t.Helper()
	var total, onDisk int64
	for _, info := range n.all() {
		u, err := n.Usage(context.Background(), info.Name)
		must(n.t, err)
		total += u.Size
	}
	for _, dir := range []string{n.root + "/index", n.layersDir(), n.imagesDir(), n.snapshotsDir()} {
		must(n.t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err == nil {
				onDisk += blocks(n.t, path) * 512
			}
			return err
		}))
	}
	onDisk += blocks(n.t, n.pack.Path()) * 512
	if d := onDisk - total; d > onDisk/100 || d < -onDisk/100 {
		n.t.Errorf("%s: usages make %d bytes, the disk has %d", when, total, onDisk)
	}
}

// Invariant 7. CRI's image file system numbers, and by them the kubelet's
// garbage collection, are sums of usages.
func TestUsagesAddUpToWhatIsOnDisk(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	const size = 9_000_000
	usage := func(key string) int64 {
		t.Helper()
		u, err := n.Usage(ctx, key)
		must(t, err)
		return u.Size
	}
	layers := image{
		treetest.Layer(treetest.File("a", noise(size, 1)), treetest.File("gone", noise(size, 3))),
		treetest.Layer(treetest.File("b", noise(size, 1)), treetest.Whiteout("gone")),
	}
	top := n.pull("ns/1", layers)
	names := layers.names("ns/1")
	n.usagesAddUp("after a pull")
	must(t, n.Flatten(ctx, top))
	must(t, n.Cleanup(ctx))
	n.usagesAddUp("after shadowed content was freed")
	if u := usage(names[0]); u < size || u > size+size/50 {
		t.Errorf("usage of a layer with one visible file of %d bytes: %d", size, u)
	}
	if u := usage(names[1]); u > size/50 {
		t.Errorf("usage of a layer without content of its own: %d", u)
	}
	n.pull("other/2", layers)
	n.usagesAddUp("with the same image in another namespace")

	key, root, undo := n.run(names[1])
	defer undo()
	small := usage(key)
	must(t, os.WriteFile(root+"/written", []byte(noise(size, 2)), 0o600))
	if u := usage(key); u < small+size {
		t.Errorf("usage of an active snapshot grew from %d to %d by a file of %d bytes", small, u, size)
	}
	// Before and after it is taken in, and under its new name.
	must(t, n.Commit(ctx, "ns/2/committed", key))
	waitFor(t, "the upper directory to be taken in", func() error { return gone(n.snapshot(n.id("ns/2/committed"))) })
	if u := usage("ns/2/committed"); u < size || u > size+size/50 {
		t.Errorf("usage after the commit: %d", u)
	}
	n.usagesAddUp("after the commit of a container")
}
