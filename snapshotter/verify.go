// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/squash-snapshotter/squash/internal/flatten"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/verify"
)

// BlobLayer is a layer as an image's manifest and config name it.
type BlobLayer struct {
	Blob   ocispec.Descriptor
	DiffID digest.Digest
}

// Verdict says how far what containers see is what an image's layers say.
type Verdict struct {
	Layers  uint64 // read
	Entries uint64 // of them
	verify.Counts
	Difference *verify.Difference // the first one; nil: there is none
}

// Verify reads the blobs of an image anew, ctx carries their namespace, and
// compares what they say with what the mounted flat image of a committed
// snapshot shows. Nothing that is kept of the layers is believed: not their
// TOCs, not the index, not the pack. What is shared with the way in which the
// image was made is the code that reads tar streams and merges layers.
//
// progress is told steps "layers", in bytes of blobs, and "image", in names.
//
// ErrFailedPrecondition, saying what helps: a blob is gone. ErrDataLoss: a blob
// has other bytes than its digest says.
func (s *Snapshotter) Verify(ctx context.Context, name string, layers []BlobLayer, progress func(step string, done, total uint64)) (v Verdict, err error) {
	if s.cfg.Content == nil {
		return v, fmt.Errorf("verify %s: there is no content store to read blobs from: %w", name, errdefs.ErrNotImplemented)
	}
	ids, err := s.readChain(ctx, name)
	if err != nil {
		return v, fmt.Errorf("verify %s: %w", name, err)
	}
	if len(ids) != len(layers) {
		return v, fmt.Errorf("verify %s: it has %d layers, and the image %d: %w", name, len(ids), len(layers), errdefs.ErrInvalidArgument)
	}
	var total, done uint64
	for _, l := range layers {
		total += uint64(max(l.Blob.Size, 0))
	}
	var tocs []flatten.Layer
	for n, l := range layers {
		toc, entries, err := s.readAnew(ctx, l, func(read int64) { progress("layers", done+uint64(read), total) })
		if err != nil {
			return v, fmt.Errorf("verify %s: layer %d: %w", name, n+1, err)
		}
		defer toc.Close()
		done += uint64(max(l.Blob.Size, 0))
		tocs = append(tocs, func() (io.ReadCloser, error) {
			_, err := toc.Seek(0, io.SeekStart)
			return io.NopCloser(bufio.NewReaderSize(toc, 256<<10)), err
		})
		v.Layers, v.Entries = v.Layers+1, v.Entries+entries
	}
	tree, err := flatten.Merge(ctx, tocs)
	if err != nil {
		return v, fmt.Errorf("verify %s: %w", name, err)
	}
	kept, err := s.summaries(ctx, ids)
	if err != nil {
		return v, fmt.Errorf("verify %s: %w", name, err)
	}
	c := chainOf(kept)
	defer s.useImage(flatImage(c))()
	dir, err := s.flatRoot(ctx, c, ids)
	if err != nil {
		return v, fmt.Errorf("verify %s: %w", name, err)
	}
	root, err := os.Open(dir)
	if err != nil {
		return v, fmt.Errorf("verify %s: %w", name, err)
	}
	defer root.Close()
	names := tree.Names()
	if v.Counts, v.Difference, err = verify.Compare(ctx, tree, root, s.fromBlobs(ids), func(n uint64) { progress("image", n, names) }); err != nil {
		return v, fmt.Errorf("verify %s: %w", name, err)
	}
	return v, nil
}

// fromBlobs tells whether all layers were taken in from blobs, and none from an
// upper directory into which another differ wrote: that one's directories have the
// moment of the unpack where a layer implies them.
func (s *Snapshotter) fromBlobs(ids []string) bool {
	for _, id := range ids {
		if _, err := s.readSource(id); err != nil {
			return false
		}
	}
	return true
}

// hashing is a store that keeps nothing.
type hashing struct{}

// Put implements layer.ContentStore.
func (hashing) Put(r io.Reader, size int64) (layer.Digest, error) {
	h := sha256.New()
	if n, err := io.Copy(h, r); err != nil || n != size {
		return layer.Digest{}, errors.Join(err, fmt.Errorf("%d of %d bytes: %w", n, size, io.ErrUnexpectedEOF))
	}
	return layer.Digest(h.Sum(nil)), nil
}

// readAnew makes a TOC of a blob, in a file that has no name, and checks both
// its digests.
func (s *Snapshotter) readAnew(ctx context.Context, l BlobLayer, read func(int64)) (_ *os.File, entries uint64, err error) {
	blob, err := s.cfg.Content.Open(ctx, l.Blob)
	if errdefs.IsNotFound(err) {
		ns, _ := namespaces.Namespace(ctx)
		src := source{Namespace: ns, Blob: l.Blob, DiffID: l.DiffID}
		return nil, 0, fmt.Errorf("namespace %s no longer has its blob %s, %s: %w", ns, l.Blob.Digest, s.howToFetch(ctx, src), errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open blob: %w", err)
	}
	defer blob.Close()
	toc, err := os.CreateTemp("", "squash-verify-")
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			toc.Close()
		}
	}()
	if err := os.Remove(toc.Name()); err != nil {
		return nil, 0, err
	}
	if err := l.Blob.Digest.Validate(); err != nil {
		return nil, 0, fmt.Errorf("blob %q: %w: %w", l.Blob.Digest, err, errdefs.ErrInvalidArgument)
	}
	whole := l.Blob.Digest.Verifier()
	raw := &hashedBlob{r: blob, sum: whole}
	sum, diffID, err := hashLayer(ctx, raw, toc, read)
	// A blob with other bytes explains every error.
	if _, rest := io.Copy(io.Discard, raw); rest != nil && err == nil {
		err = rest
	}
	switch {
	case ctx.Err() != nil:
		return nil, 0, ctx.Err()
	case !whole.Verified():
		return nil, 0, fmt.Errorf("blob %s in the content store has other bytes than its digest says: %w", l.Blob.Digest, errors.Join(err, errdefs.ErrDataLoss))
	case err != nil:
		return nil, 0, fmt.Errorf("blob %s: %w", l.Blob.Digest, err)
	case diffID != l.DiffID:
		return nil, 0, fmt.Errorf("blob %s holds layer %s, and the image's config says %s: %w", l.Blob.Digest, diffID, l.DiffID, errdefs.ErrDataLoss)
	}
	return toc, sum.Entries, nil
}

// hashedBlob hashes what is read. A program that decompresses may still have
// its input read when it has failed already.
type hashedBlob struct {
	mu  sync.Mutex
	r   io.Reader
	sum io.Writer
}

// Read implements io.Reader.
func (h *hashedBlob) Read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err := h.r.Read(p)
	h.sum.Write(p[:n])
	return n, err
}

// hashLayer reads a blob to its end into a TOC.
func hashLayer(ctx context.Context, blob io.Reader, to io.Writer, read func(int64)) (sum layer.Summary, diffID digest.Digest, err error) {
	stream, err := newLayerStream(ctx, blob, read)
	if err != nil {
		return sum, "", err
	}
	defer func() { err = errors.Join(err, stream.Close()) }()
	toc, err := layer.NewWriter(to)
	if err != nil {
		return sum, "", err
	}
	if err := layer.FromTar(ctx, stream, toc, hashing{}); err != nil {
		return sum, "", err
	}
	if err := stream.drain(); err != nil {
		return sum, "", err
	}
	if sum, err = toc.Finish(); err != nil {
		return sum, "", err
	}
	_, diffID = stream.sum()
	return sum, diffID, nil
}
