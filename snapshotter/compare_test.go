// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/testutil"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/squash-snapshotter/squash/internal/treetest"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// comparing is a snapshotter with a content store of containerd's to write to.
type comparing struct {
	*Snapshotter
	blobs *blobs
	store content.Store
}

// blobContext has the namespace that containerd's content store wants.
func blobContext() context.Context { return namespaces.WithNamespace(context.Background(), "test") }

func newComparing(t testing.TB) comparing {
	t.Helper()
	dir := t.TempDir()
	files, err := local.NewStore(filepath.Join(dir, "content"))
	must(t, err)
	db, err := bbolt.Open(filepath.Join(dir, "meta.db"), 0o600, &bbolt.Options{NoSync: true})
	must(t, err)
	t.Cleanup(func() { db.Close() })
	meta := metadata.NewDB(db, files, nil)
	must(t, meta.Init(context.Background()))
	c := comparing{blobs: newBlobs(), store: meta.ContentStore()}
	c.Snapshotter, err = New(context.Background(), Config{Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Content: c.blobs, Store: c.store})
	must(t, err)
	t.Cleanup(func() {
		if err := closeAndUnmount(c.Snapshotter); err != nil {
			t.Error(err)
		}
	})
	return c
}

// snapshot makes an active snapshot or view until the test ends.
func (c comparing) snapshot(t testing.TB, make func(ctx context.Context, key string) ([]mount.Mount, error)) []mount.Mount {
	t.Helper()
	ctx, key := context.Background(), "snapshot "+randomName()
	m, err := make(ctx, key)
	must(t, err)
	t.Cleanup(func() {
		if err := c.Remove(ctx, key); err != nil {
			t.Errorf("remove %s: %v", key, err)
		}
	})
	return m
}

func randomName() string { return fmt.Sprintf("%x", noise(8, uint64(time.Now().UnixNano()))) }

func (c comparing) viewOf(t testing.TB, name string) []mount.Mount {
	t.Helper()
	return c.snapshot(t, func(ctx context.Context, key string) ([]mount.Mount, error) { return c.View(ctx, key, name) })
}

func (c comparing) activeOn(t testing.TB, name string) []mount.Mount {
	t.Helper()
	return c.snapshot(t, func(ctx context.Context, key string) ([]mount.Mount, error) { return c.Prepare(ctx, key, name) })
}

// changes returns the tar stream that a differ makes of the difference.
func (c comparing) changes(d diff.Comparer, lower, upper []mount.Mount, opts ...diff.Opt) ([]byte, error) {
	ctx := blobContext()
	desc, err := d.Compare(ctx, lower, upper, append([]diff.Opt{diff.WithMediaType(plainType)}, opts...)...)
	if err != nil {
		return nil, err
	}
	return content.ReadBlob(ctx, c.store, desc)
}

// mountFor mounts until the test ends or undo is called.
func mountFor(t testing.TB, m []mount.Mount) (root string, undo func()) {
	t.Helper()
	root = t.TempDir()
	must(t, mount.All(m, root))
	done := false
	undo = func() {
		if !done {
			done = true
			if err := mount.UnmountAll(root, 0); err != nil {
				t.Errorf("unmount: %v", err)
			}
		}
	}
	t.Cleanup(undo)
	return root, undo
}

func treeOf(t testing.TB, m []mount.Mount) treetest.Tree {
	t.Helper()
	root, undo := mountFor(t, m)
	defer undo()
	tree, err := treetest.Read(root)
	must(t, err)
	return tree
}

func TestCompareOfAChangeGivesWhatTheContainerSaw(t *testing.T) {
	testutil.RequiresRoot(t)
	c := newComparing(t)
	parent := unpack(t, c.Snapshotter, c.blobs, changeable(), c.Snapshotter)
	for name, change := range changesByHand() {
		t.Run(name, func(t *testing.T) { c.checkChange(t, parent, change) })
	}
}

func TestCompareOfRandomChangesGivesWhatTheContainerSaw(t *testing.T) {
	testutil.RequiresRoot(t)
	c := newComparing(t)
	for seed := range max(1, *randomImages/5) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			layers := changeable()
			if seed%2 == 1 {
				layers = treetest.Random(t, int64(seed)).Layers
			}
			parent := unpack(t, c.Snapshotter, c.blobs, layers, c.Snapshotter)
			c.checkChange(t, parent, func(t *testing.T, root string) { changeAtRandom(t, root, uint64(seed)) })
		})
	}
}

// Without a parent the snapshot is a directory, and its layer all of it.
func TestCompareWithoutParent(t *testing.T) {
	testutil.RequiresRoot(t)
	c := newComparing(t)
	active := c.activeOn(t, "")
	root, undo := mountFor(t, active)
	changeAtRandom(t, root, 1)
	want, err := treetest.Read(root)
	must(t, err)
	undo()
	for what, lower := range map[string][]mount.Mount{"no mounts": nil, "view": c.viewOf(t, "")} {
		layer, err := c.changes(c, lower, active)
		must(t, err)
		t.Run(what, func(t *testing.T) { sameTree(t, want, c.appliedBySquash(t, "", layer)) })
	}
}

// Each committed layer, compared with the one below, gives a layer that means
// the same: for containerd and overlayfs, and for squash.
func TestCompareOfCommittedLayers(t *testing.T) {
	testutil.RequiresRoot(t)
	c := newComparing(t)
	cases := slices.DeleteFunc(treetest.Cases(), func(c treetest.Case) bool {
		labels := c.Name == "other security attributes" // those of a host's security modules are left out
		return c.Refused != "" || c.Artefact != "" || labels
	})
	for seed := range *randomImages / 5 {
		cases = append(cases, treetest.Random(t, int64(seed)))
	}
	compared, left := 0, 0
	for _, image := range cases {
		t.Run(image.Name, func(t *testing.T) {
			top := unpack(t, c.Snapshotter, c.blobs, image.Layers, c.Snapshotter)
			layers, n := c.layersOf(t, top, image.Layers)
			compared, left = compared+n, left+len(layers)-n
			t.Run("by overlayfs", func(t *testing.T) {
				treetest.Check(t, layers, view(t, c.Snapshotter, top), treetest.Options{ImpliedMtime: true})
			})
			t.Run("by squash", func(t *testing.T) {
				again := unpack(t, c.Snapshotter, c.blobs, layers, c.Snapshotter)
				treetest.Check(t, image.Layers, view(t, c.Snapshotter, again), treetest.Options{ImpliedMtime: true})
			})
		})
	}
	t.Logf("%d layers compared, %d left to another differ", compared, left)
	// Random images are full of hardlinks through symlinks, and of contents that
	// their own layer hides and that a sweep has freed by now.
	if left*3 > compared {
		t.Errorf("%d of %d layers were left to another differ", left, compared+left)
	}
}

// layersOf compares each snapshot of a chain with its parent. What is left to
// another differ comes from original; n are the others.
func (c comparing) layersOf(t *testing.T, top string, original [][]byte) (layers [][]byte, n int) {
	t.Helper()
	for i := len(original) - 1; i >= 0; i-- {
		info, err := c.Stat(context.Background(), top)
		must(t, err)
		layer, err := c.changes(c, c.viewOf(t, info.Parent), c.viewOf(t, top))
		switch {
		case errdefs.IsNotImplemented(err):
			layer = original[i]
			t.Logf("layer %d: %v", i, err)
		case err != nil:
			t.Fatalf("layer %d: %v", i, err)
		default:
			n++
		}
		layers = slices.Insert(layers, 0, layer)
		top = info.Parent
	}
	return layers, n
}

// What was committed from a mount gives the same layer as before the commit.
func TestCompareBeforeAndAfterCommit(t *testing.T) {
	testutil.RequiresRoot(t)
	c := newComparing(t)
	ctx := context.Background()
	parent := unpack(t, c.Snapshotter, c.blobs, changeable(), c.Snapshotter)
	m, err := c.Prepare(ctx, "active", parent)
	must(t, err)
	root, undo := mountFor(t, m)
	changeAtRandom(t, root, 3)
	undo()
	below := c.viewOf(t, parent)
	before, err := c.changes(c, below, m)
	must(t, err)
	must(t, c.Commit(ctx, "committed", "active"))
	t.Cleanup(func() { must(t, c.Remove(ctx, "committed")) })
	after, err := c.changes(c, below, c.viewOf(t, "committed"))
	must(t, err)
	sameTree(t, appliedByContainerd(t, below, before), appliedByContainerd(t, below, after))
	if _, err := c.changes(c, below, m); !errdefs.IsNotImplemented(err) {
		t.Errorf("mounts of a snapshot that was committed meanwhile: got %v, want ErrNotImplemented", err)
	}
}

// Contents are taken by digest, so one that a later entry of the layer replaces
// is still found under its other name.
func TestCompareKeepsContentsOfReplacedNames(t *testing.T) {
	testutil.RequiresRoot(t)
	c := newComparing(t)
	first, second := noise(5000, 1), noise(6000, 2)
	image := [][]byte{treetest.Layer(treetest.File("a", first), treetest.Hardlink("b", "a"), treetest.File("a", second))}
	top := unpack(t, c.Snapshotter, c.blobs, image, c.Snapshotter)
	layers, n := c.layersOf(t, top, image)
	if n != 1 {
		t.Fatal("the layer was left to another differ")
	}
	treetest.Check(t, layers, view(t, c.Snapshotter, top), treetest.Options{})
}

// readTar returns the headers of a layer by name.
func readTar(t testing.TB, layer []byte) map[string]*tar.Header {
	t.Helper()
	headers := map[string]*tar.Header{}
	r := tar.NewReader(bytes.NewReader(layer))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return headers
		}
		must(t, err)
		headers[h.Name] = h
	}
}

func TestCompareWritesNoMoreThanTheChange(t *testing.T) {
	testutil.RequiresRoot(t)
	c := newComparing(t)
	parent := unpack(t, c.Snapshotter, c.blobs, changeable(), c.Snapshotter)
	active := c.activeOn(t, parent)
	root, undo := mountFor(t, active)
	at := func(p string) string { return filepath.Join(root, p) }
	must(t, errors.Join(
		os.Mkdir(at("new"), 0o755), os.WriteFile(at("new/file"), nil, 0o600),
		os.RemoveAll(at("dir/sub")), os.Mkdir(at("dir/sub"), 0o755),
		os.WriteFile(at(".wh.pretender"), nil, 0o600), os.Link(at(".wh.pretender"), at("twin")),
		unix.Mknod(at("socket"), unix.S_IFSOCK|0o600, 0),
		unix.Setxattr(at("new/file"), "trusted.host", []byte("x"), 0), unix.Setxattr(at("new/file"), "user.a=b", []byte("x"), 0),
		os.Remove(at("file"))))
	undo()
	epoch := time.Unix(1_500_000_000, 0)
	layer, err := c.changes(c, c.viewOf(t, parent), active, diff.WithSourceDateEpoch(&epoch))
	must(t, err)
	headers := readTar(t, layer)
	want := []string{".wh.file", "dir/", "dir/sub/", "dir/sub/.wh..wh..opq", "new/", "new/file"}
	if got := slices.Sorted(maps.Keys(headers)); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for name, h := range headers {
		if h.ModTime.After(epoch) {
			t.Errorf("%s is of %v, after the epoch %v", name, h.ModTime, epoch)
		}
	}
	if h := headers[".wh.file"]; h != nil && !h.ModTime.Equal(time.Unix(0, 0)) {
		t.Errorf("a whiteout is of %v, want 1970", h.ModTime)
	}
	if h := headers["new/file"]; h != nil && len(h.PAXRecords) > 0 {
		t.Errorf("attributes that belong to the host: %q", h.PAXRecords)
	}
}

// What is not a snapshot of ours over its parent is left to another differ, and
// nothing is written.
func TestCompareLeavesTheRestToOthers(t *testing.T) {
	testutil.RequiresRoot(t)
	c := newComparing(t)
	ctx := context.Background()
	image := changeable()
	top := unpack(t, c.Snapshotter, c.blobs, image, c.Snapshotter)
	info, err := c.Stat(ctx, top)
	must(t, err)
	views := [][]mount.Mount{c.viewOf(t, top), c.viewOf(t, info.Parent), c.viewOf(t, "")}
	active, other := c.activeOn(t, top), c.activeOn(t, info.Parent)
	extract, err := c.Prepare(ctx, "test/1/extract-x", top)
	must(t, err)
	t.Cleanup(func() { must(t, c.Remove(ctx, "test/1/extract-x")) })
	option := func(o string) []mount.Mount {
		m := slices.Clone(active)
		m[0].Options = append(slices.Clone(m[0].Options), o)
		return m
	}
	// containerd's applier looks for a hardlink's target in the layer alone.
	linked := unpackOn(t, c.Snapshotter, c.blobs, top, [][]byte{treetest.Layer(treetest.Hardlink("dir/link", "file"))}, c.Snapshotter)
	dir := t.TempDir()
	for name, pair := range map[string][2][]mount.Mount{
		"another parent":           {views[1], active},
		"nothing below an overlay": {nil, active},
		"writable lower":           {other, active},
		"same view":                {views[0], views[0]},
		"turned round":             {views[0], views[1]},
		"two layers":               {views[2], views[0]},
		"unpack":                   {views[0], extract},
		"hardlink to lower layer":  {views[0], c.viewOf(t, linked)},
		"foreign":                  {{{Type: "bind", Source: dir, Options: []string{"ro"}}}, {{Type: "bind", Source: dir, Options: []string{"rw"}}}},
		"below flat mounts":        {nil, {{Type: "bind", Source: filepath.Join(c.imageMounts(), "none", "fs"), Options: []string{"ro"}}}},
		"two mounts":               {views[0], append(slices.Clone(active), active...)},
		"ID-mapped":                {views[0], option("uidmap=0:1000:1")},
		"redirects":                {views[0], option("redirect_dir=on")},
	} {
		if _, err := c.changes(c, pair[0], pair[1]); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: got %v, want ErrNotImplemented", name, err)
		}
	}
	for _, mediaType := range []string{"application/x-other", ocispec.MediaTypeImageManifest} {
		if _, err := c.changes(c, views[0], active, diff.WithMediaType(mediaType)); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: got %v, want ErrNotImplemented", mediaType, err)
		}
	}
	if _, err := c.changes(c, views[0], active); err != nil {
		t.Errorf("the mounts that the others were made from: %v", err)
	}
	n := 0
	must(t, c.store.Walk(blobContext(), func(content.Info) error { n++; return nil }))
	if n != 1 {
		t.Errorf("%d blobs were written, want that of the last comparison", n)
	}
}
