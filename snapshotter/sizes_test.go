// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/pack"
	"github.com/squash-snapshotter/squash/internal/report"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// sizes is Sizes of images that are all there.
func (n *node) sizes(names ...string) []ImageSizes {
	n.t.Helper()
	all, err := n.Sizes(context.Background(), names)
	must(n.t, err)
	for i, z := range all {
		if z.Err != nil {
			n.t.Fatalf("%s: %v", names[i], z.Err)
		}
	}
	return all
}

// countedFiles are the names of regular files that the kernel shows.
func (n *node) countedFiles(name string) (files uint64) {
	n.t.Helper()
	root, undo := n.view(name)
	defer undo()
	must(n.t, filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files++
		}
		return err
	}))
	return files
}

// tarBytes adds up the files of an image's layers.
func tarBytes(t *testing.T, img image) (sum uint64) {
	t.Helper()
	for _, l := range img {
		for r := tar.NewReader(bytes.NewReader(l)); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			must(t, err)
			if h.Typeflag == tar.TypeReg {
				sum += uint64(h.Size)
			}
		}
	}
	return sum
}

// What images have to themselves and what they share is what the disk has: each block is counted once.
func TestSizesAddUpToWhatIsOnDisk(t *testing.T) {
	n := newNode(t, mounts.ModeFile)
	first, second := sample(1), sample(2)
	names := []string{n.pull("ns/1", first), n.pull("ns/2", second)}
	for _, z := range n.sizes(names...) {
		if z.Flat || z.Own|z.Shared|z.Files != 0 {
			t.Errorf("without a flat image: got %+v", z)
		}
	}
	for _, name := range names {
		must(t, n.Flatten(context.Background(), name))
	}
	must(t, n.Cleanup(context.Background()))
	sizes := n.sizes(names...)
	onDisk := uint64(0)
	for i, z := range sizes {
		if want := tarBytes(t, []image{first, second}[i]); !z.Flat || z.LayerBytes != want || z.Files != n.countedFiles(names[i]) {
			t.Errorf("image %d: got %+v, want %d bytes of layers and %d files", i, z, want, n.countedFiles(names[i]))
		}
		onDisk += z.Own
		for _, path := range []string{n.image(n.flatImage(names[i])), n.refs(n.flatImage(names[i]))} {
			onDisk -= uint64(blocks(t, path)) * 512
		}
	}
	if sizes[0].Shared != sizes[1].Shared || sizes[0].Shared < 150_000 {
		t.Errorf("got %d and %d shared bytes of two images, want the same", sizes[0].Shared, sizes[1].Shared)
	}
	onDisk += sizes[0].Shared
	if got := uint64(blocks(t, n.pack.Path())) * 512; got != onDisk {
		t.Errorf("the pack has %d bytes, and the images tell of %d", got, onDisk)
	}

	// The same layers under another name are the same image. One that is gone leaves all to the other.
	again := n.pull("other/1", first)
	must(t, n.Flatten(context.Background(), again))
	if got := n.sizes(names[0], again); got[0] != sizes[0] || got[1] != sizes[0] {
		t.Errorf("twice on the node: got %+v, want %+v", got, sizes[0])
	}
	for name := names[1]; name != ""; {
		info, err := n.Stat(context.Background(), name)
		must(t, err)
		must(t, n.Remove(context.Background(), name))
		name = info.Parent
	}
	must(t, n.Cleanup(context.Background()))
	if got := n.sizes(names[0])[0]; got.Shared != 0 || got.Own != sizes[0].Own+sizes[0].Shared {
		t.Errorf("alone on the node: got %+v, before %+v", got, sizes[0])
	}
}

// A report follows the bytes to where Sizes finds them.
func TestReportsAgreeWithSizes(t *testing.T) {
	n := newNode(t, mounts.ModeFile)
	for seed := range uint64(3) {
		own := noise(30_000, seed)
		name := n.pull(fmt.Sprintf("ns/%d", seed), image{
			treetest.Layer(treetest.File("own", own), treetest.File("common", noise(50_000, 1<<41)), treetest.File("small", noise(1500, seed)), treetest.File("tiny", "1")),
			treetest.Layer(treetest.File("own", own, treetest.Owner(1, 1)), treetest.File("copy", own), treetest.Whiteout("small"))})
		places, err := n.Places(t.Context(), name)
		must(t, err)
		tree, err := n.Tree(t.Context(), name)
		must(t, err)
		r, err := report.Build(t.Context(), tree, []string{"", ""}, places, 1)
		must(t, err)
		if z := n.sizes(name)[0]; z.Own != r.OwnBytes || z.LayerBytes != r.LayerBytes || (seed > 0) != (z.Shared > 0) || (seed > 0) != (r.Shared.Bytes == 50_000) {
			t.Errorf("image %d: sizes are %+v, and the report has %d of its own, %d in layers, %+v shared", seed, z, r.OwnBytes, r.LayerBytes, r.Shared)
		}
	}
}

// A list of images reads no TOCs: after a start, too, nothing but their trailers.
func TestSizesNeedNoTOCs(t *testing.T) {
	n := newNode(t, mounts.ModeFile)
	name := n.pull("ns/1", sample(1))
	must(t, n.Flatten(context.Background(), name))
	want := n.sizes(name)[0]
	n.close()
	n.open()
	ids, err := n.readChain(context.Background(), name)
	must(t, err)
	for _, id := range ids {
		f, err := os.OpenFile(n.toc(id), os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteAt([]byte("damage"), 40)
		must(t, errors.Join(err, f.Close()))
	}
	if _, err := n.Tree(context.Background(), name); err == nil {
		t.Fatal("the TOCs are not damaged: this test proves nothing")
	}
	if got := n.sizes(name)[0]; got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestSizesOfWhatCannotBeRead(t *testing.T) {
	n := newNode(t, mounts.ModeFile)
	good, bad := n.pull("ns/1", sample(1)), n.pull("ns/2", sample(2))
	must(t, os.Truncate(n.toc(n.id(bad)), 100))
	n.mu.Lock()
	clear(n.layers) // as if it had not been asked for
	n.mu.Unlock()
	all, err := n.Sizes(context.Background(), []string{bad, "ns/3/none", good})
	must(t, err)
	if !errdefs.IsDataLoss(all[0].Err) || !errdefs.IsNotFound(all[1].Err) || all[2].Err != nil || all[2].LayerBytes == 0 {
		t.Errorf("got %+v", all)
	}
	if _, err := n.Places(context.Background(), "ns/3/none"); !errdefs.IsNotFound(err) {
		t.Errorf("places of nothing: got %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := n.Sizes(ctx, []string{good}); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that was given up: got %v", err)
	}
}

// Whoever shows something of a shared cluster keeps all of it.
func TestPlacesOfSharedClusters(t *testing.T) {
	n := newNode(t, mounts.ModeFile)
	small := func(seed uint64) string { return noise(1500, seed) }
	all := n.pull("ns/1", image{treetest.Layer(treetest.File("a", small(1)), treetest.File("b", small(2)), treetest.File("large", noise(20_000, 3)))})
	part := n.pull("ns/2", image{treetest.Layer(treetest.File("b", small(2)))})
	must(t, n.Flatten(context.Background(), part))
	places, err := n.Places(context.Background(), all)
	must(t, err)
	tree, err := n.Tree(context.Background(), all)
	must(t, err)
	r, err := report.Build(t.Context(), tree, []string{""}, places, 1)
	must(t, err)
	if r.Shared.Files != 2 || r.Shared.Bytes != 3000 {
		t.Errorf("got %+v, want both contents of the cluster to be shared", r.Shared)
	}
	if rest := r.OwnBytes - places.ImageBytes(); rest != 5*pack.BlockSize {
		t.Errorf("got %d bytes of its own, want those of the large file", rest)
	}
}
