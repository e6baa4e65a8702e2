// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/squash-snapshotter/squash/internal/mounts"
)

// open makes a snapshotter on a disk, which is closed when the test ends; its
// mounts are taken away, and it must not have left any other.
func open(t *testing.T, blobs *blobs) *Snapshotter {
	t.Helper()
	return openConfig(t, Config{Content: blobs})
}

// openConfig is open with more to say.
func openConfig(t *testing.T, cfg Config) *Snapshotter {
	t.Helper()
	dir := t.TempDir()
	cfg.Root, cfg.State = filepath.Join(dir, "root"), filepath.Join(dir, "state")
	s, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := closeAndUnmount(s); err != nil {
			t.Error(err)
		}
	})
	return s
}

// closeAndUnmount ends a snapshotter and takes its mounts away, as a test must
// and a daemon must not.
func closeAndUnmount(s *Snapshotter) error {
	err := s.Close()
	mounted, lerr := mounts.Mounted(s.state)
	err = errors.Join(err, lerr)
	for target := range mounted {
		err = errors.Join(err, s.mounter.Unmount(target))
	}
	return err
}

// blobs is a content store in memory, both for our differ and for containerd's.
type blobs struct {
	mu       sync.Mutex
	byDigest map[digest.Digest][]byte
	opened   []digest.Digest
	images   []string // what ImagesOf answers
	noImages error
}

func newBlobs() *blobs { return &blobs{byDigest: map[digest.Digest][]byte{}} }

// add stores an uncompressed layer.
func (b *blobs) add(data []byte) ocispec.Descriptor {
	d := digest.FromBytes(data)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.byDigest[d] = data
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(data))}
}

// remove forgets a blob, as containerd's garbage collection does.
func (b *blobs) remove(data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.byDigest, digest.FromBytes(data))
}

// replace puts other bytes in a blob's place.
func (b *blobs) replace(data, other []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.byDigest[digest.FromBytes(data)] = other
}

// timesOpened counts the readings of a blob.
func (b *blobs) timesOpened(data []byte) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range b.opened {
		if d == digest.FromBytes(data) {
			n++
		}
	}
	return n
}

func (b *blobs) get(desc ocispec.Descriptor) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	data, ok := b.byDigest[desc.Digest]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, errdefs.ErrNotFound)
	}
	return data, nil
}

// Open implements ContentSource.
func (b *blobs) Open(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	data, err := b.get(desc)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opened = append(b.opened, desc.Digest)
	return io.NopCloser(bytes.NewReader(data)), err
}

// Kept implements ContentSource: a blob that is there stays.
func (b *blobs) Kept(context.Context) (map[digest.Digest]bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	kept := map[digest.Digest]bool{}
	for d := range b.byDigest {
		kept[d] = true
	}
	return kept, nil
}

// ImagesOf implements ContentSource.
func (b *blobs) ImagesOf(context.Context, digest.Digest) ([]string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.images, b.noImages
}

// name says which images there are; each has every blob.
func (b *blobs) name(err error, images ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.images, b.noImages = images, err
}

// ReaderAt implements content.Provider.
func (b *blobs) ReaderAt(_ context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	data, err := b.get(desc)
	return blobReader{bytes.NewReader(data)}, err
}

type blobReader struct{ *bytes.Reader }

func (blobReader) Close() error { return nil }
