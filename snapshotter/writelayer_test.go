// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/testutil"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/squash-snapshotter/squash/internal/layer"
)

// smallChange returns the mounts of an active snapshot with one file.
func (c comparing) smallChange(t *testing.T, data string) (compare func(opts ...diff.Opt) (content.Info, []byte)) {
	t.Helper()
	active := c.activeOn(t, "")
	root, undo := mountFor(t, active)
	must(t, os.WriteFile(filepath.Join(root, "file"), []byte(data), 0o600))
	undo()
	return func(opts ...diff.Opt) (content.Info, []byte) {
		t.Helper()
		ctx := blobContext()
		desc, err := c.Compare(ctx, nil, active, opts...)
		must(t, err)
		info, err := c.store.Info(ctx, desc.Digest)
		must(t, err)
		blob, err := content.ReadBlob(ctx, c.store, desc)
		must(t, err)
		if desc.Size != int64(len(blob)) || info.Size != desc.Size || digest.FromBytes(blob) != desc.Digest {
			t.Errorf("descriptor %+v of a blob of %d bytes", desc, len(blob))
		}
		return info, blob
	}
}

func TestLayersAreWrittenAsTheirMediaTypesSay(t *testing.T) {
	testutil.RequiresRoot(t)
	c := newComparing(t)
	compare := c.smallChange(t, "x")
	_, plain := compare(diff.WithMediaType(plainType))
	for mediaType, want := range map[string]compression.Compression{"": compression.Gzip, gzipType: compression.Gzip, zstdType: compression.Zstd} {
		info, blob := compare(diff.WithMediaType(mediaType), diff.WithLabels(map[string]string{"mine": "too"}))
		if got := compression.DetectCompression(blob); got != want {
			t.Errorf("%q: compression %v, want %v", mediaType, got, want)
		}
		r, err := compression.DecompressStream(bytes.NewReader(blob))
		must(t, err)
		var b bytes.Buffer
		_, err = b.ReadFrom(r)
		must(t, errors.Join(err, r.Close()))
		if !bytes.Equal(b.Bytes(), plain) {
			t.Errorf("%q: another layer inside", mediaType)
		}
		if got := info.Labels[labels.LabelUncompressed]; got != digest.FromBytes(plain).String() {
			t.Errorf("%q: labelled as the compressed form of %q", mediaType, got)
		}
		if info.Labels["mine"] != "too" {
			t.Errorf("%q: labels %v", mediaType, info.Labels)
		}
	}
}

func TestABlobThatIsThereAlreadyIsLabelled(t *testing.T) {
	testutil.RequiresRoot(t)
	ctx := blobContext()
	c := newComparing(t)
	compare := c.smallChange(t, "x")
	info, blob := compare()
	must(t, c.store.Delete(ctx, info.Digest))
	must(t, content.WriteBlob(ctx, c.store, "by somebody else", bytes.NewReader(blob), ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}, content.WithLabels(map[string]string{"theirs": "stays"})))
	again, _ := compare(diff.WithLabels(map[string]string{"theirs": "is overwritten"}))
	if again.Labels[labels.LabelUncompressed] != info.Labels[labels.LabelUncompressed] || again.Labels["theirs"] != "stays" {
		t.Errorf("labels %v", again.Labels)
	}
}

// A reference that the caller gave may have something left in it.
func TestAReferenceIsBegunAnew(t *testing.T) {
	testutil.RequiresRoot(t)
	ctx := blobContext()
	c := newComparing(t)
	compare := c.smallChange(t, "x")
	_, want := compare(diff.WithMediaType(plainType))
	must(t, c.store.Delete(ctx, digest.FromBytes(want)))
	w, err := c.store.Writer(ctx, content.WithRef("reference"))
	must(t, err)
	_, err = w.Write(bytes.Repeat([]byte("left over"), 1000))
	must(t, errors.Join(err, w.Close()))
	_, got := compare(diff.WithMediaType(plainType), diff.WithReference("reference"))
	if !bytes.Equal(got, want) {
		t.Error("another layer")
	}
}

// brokenChange fails behind its first entry.
type brokenChange struct{ error }

func (b brokenChange) write(_ context.Context, to *layer.TarWriter) error {
	return errors.Join(to.Add(&layer.Entry{Type: layer.TypeDir, Path: "d"}, nil), b.error)
}
func (brokenChange) close()         {}
func (brokenChange) String() string { return "broken change" }

func TestAFailureLeavesNoUnfinishedBlob(t *testing.T) {
	testutil.RequiresRoot(t)
	ctx := blobContext()
	c := newComparing(t)
	broken := errors.New("broken")
	for _, ref := range []string{"", "kept"} {
		_, err := c.writeLayer(ctx, diff.Config{MediaType: gzipType, Reference: ref}, compression.Gzip, brokenChange{broken})
		if !errors.Is(err, broken) {
			t.Errorf("got %v, want the change's error", err)
		}
	}
	left, err := c.store.ListStatuses(ctx)
	must(t, err)
	if len(left) != 1 || left[0].Ref != "kept" {
		t.Errorf("left: %+v, want what the caller named alone", left)
	}
	must(t, c.store.Walk(ctx, func(i content.Info) error { t.Errorf("a blob: %s", i.Digest); return nil }))
}
