// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/squash-snapshotter/squash/internal/layer"
)

// Apply takes a layer into a snapshot that was prepared for it. The digest
// that it returns is that of the whole decompressed stream, the diffID.
//
// ErrNotImplemented, before anything is read: the mounts are not those of an
// active snapshot of ours; another differ may take them. A snapshot of ours
// that the layer cannot go into as a TOC (it was prepared for use and not for
// an unpack, or was written to before) gets the files themselves.
func (s *Snapshotter) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (_ ocispec.Descriptor, err error) {
	defer s.blameDisk(&err)
	if applied, ok := s.staged(ctx, mounts); ok {
		return applied, nil
	}
	t, ok := s.target(mounts)
	if !ok || s.cfg.Content == nil {
		return ocispec.Descriptor{}, fmt.Errorf("mounts are not of an active snapshot below %s: %w", s.root, errdefs.ErrNotImplemented)
	}
	if _, err := images.DiffCompression(ctx, desc.MediaType); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("apply %s: %w", desc.Digest, err)
	}
	var cfg diff.ApplyConfig
	for _, opt := range opts {
		if err := opt(ctx, desc, &cfg); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("apply %s: %w", desc.Digest, err)
		}
	}
	applied, err := s.apply(ctx, desc, t, cfg.Progress)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("apply %s to snapshot %s: %w", desc.Digest, t.id, err)
	}
	return applied, nil
}

// target is where a layer goes.
type target struct {
	id     string
	upper  string   // its upper directory, or the one that a bind shows
	bind   bool     // a bind: nothing lies below
	lowers []string // directories below, for those that the layer implies
}

// target takes the mounts apart that Prepare returned.
func (s *Snapshotter) target(mounts []mount.Mount) (t target, ok bool) {
	if len(mounts) != 1 {
		return t, false
	}
	switch m := mounts[0]; m.Type {
	case "bind":
		t.upper, t.bind = m.Source, true
		for _, o := range m.Options {
			if o == "ro" {
				return t, false
			}
		}
	case "overlay":
		for _, o := range m.Options {
			if v, ok := strings.CutPrefix(o, "upperdir="); ok {
				t.upper = v
			} else if v, ok := strings.CutPrefix(o, "lowerdir="); ok {
				t.lowers = strings.Split(v, ":")
			}
		}
	default:
		return t, false
	}
	t.id, ok = s.upperID(t.upper)
	return t, ok
}

func (s *Snapshotter) apply(ctx context.Context, desc ocispec.Descriptor, t target, progress func(int64)) (ocispec.Descriptor, error) {
	if err := s.checkActive(ctx, t.id); err != nil {
		return ocispec.Descriptor{}, err
	}
	if done, ok := s.claim(t.id); ok {
		defer done()
	} else {
		return ocispec.Descriptor{}, fmt.Errorf("another layer is going into it at this moment: %w", errdefs.ErrFailedPrecondition)
	}
	if exists(s.toc(t.id)) {
		return ocispec.Descriptor{}, fmt.Errorf("it holds a layer already: prepare another snapshot: %w", errdefs.ErrFailedPrecondition)
	}
	// Decided while the snapshot is there for certain: a removal must not look
	// like a snapshot that was prepared for use.
	asTOC := exists(s.extractMark(t.id)) && s.checkUntouched(t.id) == nil
	blob, err := s.cfg.Content.Open(ctx, desc)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("open blob: %w", err)
	}
	defer blob.Close()
	stream, err := newLayerStream(ctx, blob, progress)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer stream.Close()
	if asTOC {
		err = s.applyStream(ctx, desc, t.id, stream)
	} else {
		err = applyFiles(ctx, t, stream)
	}
	if err != nil {
		// What is in the snapshot from now on did not come from this blob.
		if asTOC && !exists(s.toc(t.id)) {
			err = errors.Join(err, removeIfThere(s.source(t.id)))
		}
		s.askSweep() // the snapshot may have been removed and collected before all of this was made
		return ocispec.Descriptor{}, err
	}
	size, id := stream.sum()
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Size: size, Digest: id}, nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// claim lets one Apply at a time have a snapshot.
func (s *Snapshotter) claim(id string) (done func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.applying[id] {
		return nil, false
	}
	s.applying[id] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.applying, id)
	}, true
}

// checkActive makes sure that the snapshot is there and open for changes.
func (s *Snapshotter) checkActive(ctx context.Context, id string) error {
	return s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		names, err := storage.IDMap(ctx)
		if err != nil {
			return err
		}
		key, ok := names[id]
		if !ok {
			return fmt.Errorf("the snapshot was removed: %w", errdefs.ErrNotFound)
		}
		_, info, _, err := storage.GetInfo(ctx, key)
		if err == nil && info.Kind != snapshots.KindActive {
			return fmt.Errorf("the snapshot is committed: %w", errdefs.ErrFailedPrecondition)
		}
		return err
	})
}

// applyStream takes the layer in as TOC and contents.
func (s *Snapshotter) applyStream(ctx context.Context, desc ocispec.Descriptor, id string, stream *layerStream) error {
	start := time.Now()
	in, err := s.intake(id)
	if err != nil {
		return err
	}
	defer in.close()
	err = in.take(func(toc *layer.Writer, store layer.ContentStore) error {
		if err := layer.FromTar(ctx, stream, toc, store); err != nil {
			return err
		}
		return stream.drain()
	})
	if err != nil {
		return err
	}
	// The snapshot may have been removed meanwhile, and may still be after
	// this: then the collection that follows the removal finds the TOC.
	if err := s.checkActive(ctx, id); err != nil {
		return err
	}
	ns, _ := namespaces.Namespace(ctx)
	size, diffID := stream.sum()
	blob := ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
	if err := s.writeSource(id, source{Namespace: ns, Blob: blob, DiffID: diffID, DiffSize: size}); err != nil {
		return err
	}
	if err := in.publish(ctx); err != nil {
		return err
	}
	s.noteDonor(id, diffID)
	if err := s.checkActive(ctx, id); err != nil {
		s.askSweep()
		return err
	}
	log.G(ctx).WithFields(in.fields()).WithFields(log.Fields{
		"diffID": diffID.String(), "duration": time.Since(start).Round(time.Millisecond),
	}).Info("layer taken in")
	return nil
}

// applyFiles writes the layer's files where the mounts would show them, with
// containerd's own applier.
func applyFiles(ctx context.Context, t target, stream *layerStream) error {
	var opts []archive.ApplyOpt
	if !t.bind {
		opts = append(opts, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(t.lowers))
	}
	if _, err := archive.Apply(ctx, t.upper, stream, opts...); err != nil {
		return err
	}
	return stream.drain()
}

// layerStream is a layer's tar, decompressed ahead of the reader and hashed.
type layerStream struct {
	*readAhead
	plain compression.DecompressReadCloser
}

func newLayerStream(ctx context.Context, blob io.Reader, progress func(int64)) (*layerStream, error) {
	if progress != nil {
		blob = &counter{r: blob, report: progress}
	}
	plain, err := compression.DecompressStream(blob)
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	return &layerStream{newReadAhead(plain), plain}, nil
}

// drain reads what follows the archive: padding belongs to the diffID.
func (l *layerStream) drain() error {
	if _, err := io.Copy(io.Discard, l); err != nil {
		return fmt.Errorf("read to the end of the layer: %w", err)
	}
	return nil
}

// sum tells the size and digest of the stream, which was read to its end.
func (l *layerStream) sum() (int64, digest.Digest) {
	return l.size, digest.NewDigest(digest.SHA256, l.hash)
}

func (l *layerStream) Close() error {
	return errors.Join(l.readAhead.Close(), l.plain.Close())
}

// counter reports how much of a blob was read.
type counter struct {
	r      io.Reader
	n      int64
	report func(int64)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	c.report(c.n)
	return n, err
}
