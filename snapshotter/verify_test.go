// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/pkg/testutil"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/pack"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

func blobLayers(layers [][]byte) []BlobLayer {
	var all []BlobLayer
	for _, l := range layers {
		d := digest.FromBytes(l)
		all = append(all, BlobLayer{Blob: ocispec.Descriptor{Digest: d, Size: int64(len(l))}, DiffID: d})
	}
	return all
}

func noProgress(string, uint64, uint64) {}

// checkVerifies makes sure that an image which shows what overlayfs shows is said to be equal.
func checkVerifies(t *testing.T, s *Snapshotter, top string, layers [][]byte) {
	t.Helper()
	v, err := s.Verify(context.Background(), top, blobLayers(layers), noProgress)
	if err != nil {
		t.Errorf("verify: %v", err)
	} else if v.Difference != nil {
		t.Errorf("verify: %+v", *v.Difference)
	}
}

// verifiedImage has one of everything.
func verifiedImage() [][]byte {
	return [][]byte{
		treetest.Layer(treetest.Dir("d", treetest.Mode(0o750)), treetest.File("d/small", "small"), treetest.File("d/large", strings.Repeat("large ", 5000), treetest.Xattr("user.note", "a")),
			treetest.Symlink("link", "d/small"), treetest.Hardlink("d/second", "d/large"), treetest.Char("null", 1, 3), treetest.File("gone", "gone")),
		treetest.Layer(treetest.Whiteout("gone"), treetest.File("late", strings.Repeat("late ", 5000), treetest.Owner(7, 8), treetest.Mtime(1_700_000_000, 123))),
	}
}

// What differs from the blobs is said, with its path, whatever else on the node agrees with it.
func TestVerifyFindsWhatDiffers(t *testing.T) {
	testutil.RequiresRoot(t)
	type edit func(all []layer.Entry) []layer.Entry
	entry := func(path string, change func(*layer.Entry)) edit {
		return func(all []layer.Entry) []layer.Entry {
			for i := range all {
				if all[i].Path == path {
					change(&all[i])
				}
			}
			return all
		}
	}
	for _, c := range []struct {
		name       string
		layer      int
		edit       edit
		path, what string
		from       int // layer
	}{
		{"mode", 0, entry("d", func(e *layer.Entry) { e.Mode = 0o755 }), "d", "mode", 0},
		{"owner", 1, entry("late", func(e *layer.Entry) { e.GID = 7 }), "late", "owner", 1},
		{"time", 1, entry("late", func(e *layer.Entry) { e.MtimeNsec++ }), "late", "mtime", 1},
		{"target", 0, entry("link", func(e *layer.Entry) { e.Target = "d/large" }), "link", "target", 0},
		{"device", 0, entry("null", func(e *layer.Entry) { e.Minor = 5 }), "null", "device", 0},
		{"small content", 0, entry("d/small", func(e *layer.Entry) { e.Inline = []byte("SMALL") }), "d/small", "content", 0},
		{"size", 0, entry("d/small", func(e *layer.Entry) { e.Inline, e.Size = []byte("s"), 1 }), "d/small", "size", 0},
		{"other value", 0, entry("d/large", func(e *layer.Entry) { e.Xattrs[0].Value = []byte("b") }), "d/large", "xattr user.note", 0},
		{"attribute is gone", 0, entry("d/large", func(e *layer.Entry) { e.Xattrs = nil }), "d/large", "xattr user.note", 0},
		{"attribute too many", 0, entry("d/small", func(e *layer.Entry) { e.Xattrs = []layer.Xattr{{Name: "user.more", Value: []byte("1")}} }), "d/small", "xattr user.more", 0},
		{"type", 0, entry("null", func(e *layer.Entry) { e.Type = layer.TypeBlock }), "null", "type", 0},
		{"copy instead of a link", 0, entry("d/second", func(e *layer.Entry) {
			content := strings.Repeat("large ", 5000)
			e.Type, e.Target, e.Size, e.Digest = layer.TypeReg, "", int64(len(content)), sha256.Sum256([]byte(content))
			e.Xattrs = []layer.Xattr{{Name: "user.note", Value: []byte("a")}}
		}), "d/second", "hardlink", 0},
		{"missing", 0, func(all []layer.Entry) []layer.Entry {
			return slices.DeleteFunc(all, func(e layer.Entry) bool { return e.Path == "d/small" })
		}, "d/small", "missing", 0},
		{"unexpected", 1, func(all []layer.Entry) []layer.Entry {
			return append(all, layer.Entry{Type: layer.TypeFifo, Path: "d/extra", Mode: 0o600})
		}, "d/extra", "unexpected", -1},
		{"unexpected in the root", 1, func(all []layer.Entry) []layer.Entry {
			return append(all, layer.Entry{Type: layer.TypeFifo, Path: "zz", Mode: 0o600})
		}, "zz", "unexpected", -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			blobs := newBlobs()
			s := open(t, blobs)
			layers := verifiedImage()
			top := unpack(t, s, blobs, layers, s)
			id := layerIDs(t, s, top)[c.layer]
			changed := c.edit(readTOC(t, s.toc(id)))
			writeTOC(t, s.toc(id), changed)
			s.mu.Lock()
			delete(s.layers, id)
			s.mu.Unlock()
			s.merged.mu.Lock()
			s.merged.trees = nil
			s.merged.mu.Unlock()
			v, err := s.Verify(t.Context(), top, blobLayers(layers), noProgress)
			if err != nil {
				t.Fatal(err)
			}
			d := v.Difference
			if d == nil || d.What != c.what || d.Layer != c.from || d.Path != c.path {
				t.Errorf("got %+v, want %s of %s, from layer %d", d, c.what, c.path, c.from)
			}
		})
	}
}

func layerIDs(t *testing.T, s *Snapshotter, top string) []string {
	t.Helper()
	ids, err := s.readChain(t.Context(), top)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func readTOC(t *testing.T, path string) (all []layer.Entry) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := layer.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for {
		var e layer.Entry
		err := r.Next(&e)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		e.Inline = bytes.Clone(e.Inline)
		all = append(all, e)
	}
}

func writeTOC(t *testing.T, path string, all []layer.Entry) {
	t.Helper()
	var b bytes.Buffer
	w, err := layer.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	for i := range all {
		if err := w.Add(&all[i]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Bytes of the pack that are others are found through the kernel, as a container would.
func TestVerifyFindsOtherBytesInThePack(t *testing.T) {
	testutil.RequiresRoot(t)
	blobs := newBlobs()
	s := openConfig(t, Config{Content: blobs, Compression: Compression{Algorithm: "none"}})
	layers := verifiedImage()
	top := unpack(t, s, blobs, layers, s)
	content := strings.Repeat("late ", 5000)
	p, err := s.pack.Lookup(pack.Digest(sha256.Sum256([]byte(content))))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(s.pack.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("L"), int64(p.Block)*pack.BlockSize); err != nil {
		t.Fatal(err)
	}
	v, err := s.Verify(t.Context(), top, blobLayers(layers), noProgress)
	if err != nil {
		t.Fatal(err)
	}
	if d := v.Difference; d == nil || d.Path != "late" || d.What != "content" || d.Layer != 1 {
		t.Errorf("got %+v", d)
	}
	if v.Layers != 2 || v.Entries == 0 || v.Names == 0 || v.Files == 0 {
		t.Errorf("got %+v", v)
	}
}

func TestVerifyWithoutTheBlobs(t *testing.T) {
	testutil.RequiresRoot(t)
	blobs := newBlobs()
	s := open(t, blobs)
	layers := verifiedImage()
	top := unpack(t, s, blobs, layers, s)

	blobs.replace(layers[1], append(bytes.Clone(layers[1]), 0))
	if _, err := s.Verify(t.Context(), top, blobLayers(layers), noProgress); !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), "layer 2") {
		t.Errorf("a blob with other bytes: got %v", err)
	}
	blobs.replace(layers[1], layers[1])
	other := blobLayers(layers)
	other[0].DiffID = digest.FromString("other")
	if _, err := s.Verify(t.Context(), top, other, noProgress); !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), "config says") {
		t.Errorf("another diff ID: got %v", err)
	}
	blobs.images = []string{"registry.example/image:1"}
	blobs.remove(layers[0])
	if _, err := s.Verify(t.Context(), top, blobLayers(layers), noProgress); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "content fetch registry.example/image:1") {
		t.Errorf("a blob that is gone: got %v", err)
	}
	if _, err := s.Verify(t.Context(), top, blobLayers(layers[:1]), noProgress); !errdefs.IsInvalidArgument(err) {
		t.Errorf("another number of layers: got %v", err)
	}
}

// Directories that no layer states have the moment of their unpack if another differ made them. That is all that is not
// compared then.
func TestVerifyOfAnotherDiffersLayers(t *testing.T) {
	testutil.RequiresRoot(t)
	blobs := newBlobs()
	s := open(t, blobs)
	layers := [][]byte{treetest.Layer(treetest.File("implied/file", "content"), treetest.Dir("stated"))}
	other := [][]byte{treetest.Layer(treetest.File("implied/file", "content"), treetest.Dir("stated", treetest.Mtime(5, 5)))}
	blobs.add(other[0])
	for what, d := range map[string]diff.Applier{"ours": s, "walking": apply.NewFileSystemApplier(blobs)} {
		t.Run(what, func(t *testing.T) {
			top := unpack(t, s, blobs, layers, d)
			checkVerifies(t, s, top, layers)
			v, err := s.Verify(t.Context(), top, blobLayers(other), noProgress)
			if err != nil || v.Difference == nil || v.Difference.Path != "stated" || v.Difference.What != "mtime" {
				t.Errorf("got %+v, %v", v.Difference, err)
			}
		})
	}
}
