// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// source says where a layer came from: contents of it that were freed can be
// read from there again. Layers that were upper directories have none.
type source struct {
	Namespace string             `json:"namespace"` // containerd's
	Blob      ocispec.Descriptor `json:"blob"`
	// What Apply computed of the decompressed stream; "" and 0 if the layer was
	// taken in by a version that did not note it.
	DiffID   digest.Digest `json:"diffID,omitempty"`
	DiffSize int64         `json:"diffSize,omitempty"`
}

func (s *Snapshotter) writeSource(id string, src source) error {
	// Synced at once: after a power cut it says where to find what was not.
	if err := writeFile(s.source(id), true, func(w io.Writer) error { return json.NewEncoder(w).Encode(src) }); err != nil {
		return err
	}
	return errors.Join(syncDir(s.layer(id)), syncDir(s.layersDir()))
}

// sourceStream is the tar of a layer that is read again.
type sourceStream struct {
	*layerStream
	blob io.Closer
}

// Close ends the reading.
func (s *sourceStream) Close() error { return errors.Join(s.layerStream.Close(), s.blob.Close()) }

// openSource opens the blob of a layer that needs it again.
// ErrFailedPrecondition, saying how to mend it: containerd has it no more.
func (s *Snapshotter) openSource(ctx context.Context, id string, src source) (*sourceStream, error) {
	blob, err := s.openBlob(ctx, src)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("contents of layer %s are needed again, and namespace %s no longer has its blob %s, %s: %w",
			id, src.Namespace, src.Blob.Digest, s.howToFetch(ctx, src), errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	stream, err := newLayerStream(ctx, blob, nil)
	if err != nil {
		return nil, errors.Join(err, blob.Close())
	}
	return &sourceStream{stream, blob}, nil
}

// openBlob opens the blob of a source, or one from which the same layer came to
// another snapshot.
func (s *Snapshotter) openBlob(ctx context.Context, src source) (io.ReadCloser, error) {
	blob, err := s.cfg.Content.Open(src.context(ctx), src.Blob)
	if !errdefs.IsNotFound(err) {
		return blob, err
	}
	s.mu.Lock()
	others := slices.Collect(maps.Keys(s.donors[src.DiffID]))
	s.mu.Unlock()
	for _, id := range others {
		if other, rerr := s.readSource(id); rerr == nil {
			if blob, oerr := s.cfg.Content.Open(other.context(ctx), other.Blob); oerr == nil {
				return blob, nil
			}
		}
	}
	return nil, err
}

// howToFetch says which images have the blob of a layer, and how to get it again.
func (s *Snapshotter) howToFetch(ctx context.Context, src source) string {
	names, err := s.cfg.Content.ImagesOf(src.context(ctx), src.Blob.Digest)
	switch {
	case err != nil:
		return fmt.Sprintf("of an image whose name is not known (%v): fetch it with `ctr -n %s content fetch <reference of the image>`", err, src.Namespace)
	case len(names) == 0:
		return "which no image there names any more: pull an image that has it, or remove the images on this layer and pull them again"
	}
	return fmt.Sprintf("of image %s: fetch it with `ctr -n %s content fetch %s`", strings.Join(names, ", "), src.Namespace, names[0])
}

// readSource returns a layer's source; os.ErrNotExist if it has none.
func (s *Snapshotter) readSource(id string) (src source, err error) {
	b, err := os.ReadFile(s.source(id))
	if err != nil {
		return src, err
	}
	if err := json.Unmarshal(b, &src); err != nil {
		return src, fmt.Errorf("%s: %w", s.source(id), err)
	}
	return src, nil
}

// context is ctx for asking containerd about the source.
func (src source) context(ctx context.Context) context.Context {
	if src.Namespace == "" {
		return ctx
	}
	return namespaces.WithNamespace(ctx, src.Namespace)
}

// restorable judges layers by whether their blobs are going to stay in
// containerd's content store. Each namespace is asked about once.
type restorable struct {
	s    *Snapshotter
	kept map[string]keptBlobs // by namespace
}

type keptBlobs struct {
	blobs map[digest.Digest]bool
	err   error
}

func (r *restorable) layer(ctx context.Context, id string) bool { return r.judge(ctx, id) == nil }

// judge returns why a layer's contents could not be brought back; nil: they could.
func (r *restorable) judge(ctx context.Context, id string) error {
	src, err := r.s.readSource(id)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return errors.New("it was an upper directory and came from no blob")
	case err != nil:
		return err
	case r.s.cfg.Content == nil:
		return errors.New("there is no content store to read its blob from")
	}
	kept, ok := r.kept[src.Namespace]
	if !ok {
		if kept.blobs, kept.err = r.s.cfg.Content.Kept(src.context(ctx)); kept.err != nil {
			log.G(ctx).WithError(kept.err).WithField("namespace", src.Namespace).Warn("containerd does not tell which blobs it keeps: their layers' contents stay")
		}
		if r.kept == nil {
			r.kept = map[string]keptBlobs{}
		}
		r.kept[src.Namespace] = kept
	}
	switch {
	case kept.err != nil:
		return fmt.Errorf("containerd does not tell which blobs of namespace %s it keeps: %w", src.Namespace, kept.err)
	case !kept.blobs[src.Blob.Digest]:
		return fmt.Errorf("namespace %s does not keep its blob %s", src.Namespace, src.Blob.Digest)
	}
	return nil
}
