// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// answerTimeout bounds one short question to containerd, the time to connect included.
const answerTimeout = 10 * time.Second

// ContentSource reads blobs of containerd's content store, and has a Store to write them. It may be used by many goroutines at once.
//
// containerd decides who may read what: it is asked about the blob in the caller's namespace before a byte is read.
// After that the blob's file is opened where this process can see it, which is more than ten times as fast as the
// content API, and one stream of the API serves otherwise.
type ContentSource struct {
	contents contentapi.ContentClient
	images   imagesapi.ImagesClient
	plugins  introspectionapi.IntrospectionClient
	store    blobStore

	mu   sync.Mutex
	root string // the content store's directory as last heard of; "" while unknown
}

// NewContentSource returns a ContentSource that asks the containerd at the other end of conn.
func NewContentSource(conn grpc.ClientConnInterface) *ContentSource {
	return &ContentSource{
		contents: contentapi.NewContentClient(conn),
		images:   imagesapi.NewImagesClient(conn),
		plugins:  introspectionapi.NewIntrospectionClient(conn),
		store:    newBlobStore(conn),
	}
}

// Store is the content store to write blobs into; ctx carries namespace and lease.
func (s *ContentSource) Store() content.Store { return s.store }

// Open returns the blob of desc from its first byte. Only desc.Digest is used; ctx carries the containerd namespace
// and must live as long as the stream is read. A blob that the namespace does not have is errdefs.ErrNotFound, a
// containerd that does not answer errdefs.ErrUnavailable or context.DeadlineExceeded.
func (s *ContentSource) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	blob, err := s.open(ctx, desc.Digest)
	if err != nil {
		return nil, fmt.Errorf("content %s: %w", desc.Digest, err)
	}
	return blob, nil
}

func (s *ContentSource) open(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	// The digest becomes part of a path below.
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	ctx = namespaces.WithNamespace(ctx, namespace)
	size, err := s.size(ctx, d)
	if err != nil {
		return nil, err
	}
	if file := s.openFile(ctx, d, size); file != nil {
		return file, nil
	}
	log.G(ctx).WithField("digest", d).Debug("blob is not readable as a file, using the content API")
	return s.stream(ctx, d, size)
}

func (s *ContentSource) size(ctx context.Context, d digest.Digest) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	// A containerd that was restarted a moment ago is worth waiting for.
	reply, err := s.contents.Info(ctx, &contentapi.InfoRequest{Digest: d.String()}, grpc.WaitForReady(true))
	if err != nil {
		return 0, fmt.Errorf("ask containerd: %w", errgrpc.ToNative(err))
	}
	return reply.Info.Size, nil
}

// openFile returns the file of the blob, or nil if there is none that this process can read.
func (s *ContentSource) openFile(ctx context.Context, d digest.Digest, size int64) *os.File {
	s.mu.Lock()
	known := s.root
	s.mu.Unlock()
	if file := openBlob(known, d, size); file != nil {
		return file
	}
	root, err := s.askRoot(ctx)
	if err != nil {
		log.G(ctx).WithError(err).Debug("containerd does not tell where its content store is")
		return nil
	}
	s.mu.Lock()
	s.root = root
	s.mu.Unlock()
	if root == known {
		return nil
	}
	return openBlob(root, d, size)
}

// askRoot returns the directory of containerd's content store, or "" if it is not a local one.
func (s *ContentSource) askRoot(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	reply, err := s.plugins.Plugins(ctx, &introspectionapi.PluginsRequest{
		Filters: []string{"type==io.containerd.content.v1"},
	})
	if err != nil {
		return "", errgrpc.ToNative(err)
	}
	for _, p := range reply.Plugins {
		if p.ID == "content" {
			return p.Exports["root"], nil
		}
	}
	return "", nil
}

// openBlob returns the file of a blob below root, or nil unless it is there with the expected size.
func openBlob(root string, d digest.Digest, size int64) *os.File {
	if root == "" {
		return nil
	}
	path := filepath.Join(root, "blobs", d.Algorithm().String(), d.Encoded())
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() != size {
		file.Close()
		return nil
	}
	return file
}

func (s *ContentSource) stream(ctx context.Context, d digest.Digest, size int64) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := s.contents.Read(ctx, &contentapi.ReadContentRequest{Digest: d.String()})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("read: %w", errgrpc.ToNative(err))
	}
	return &blobStream{digest: d, messages: stream, cancel: cancel, left: size}, nil
}

// blobStream reads one blob through one call of the content API. It holds at most one message, and gRPC's flow
// control bounds what is on its way. Errors stick.
type blobStream struct {
	digest   digest.Digest
	messages contentapi.Content_ReadClient
	cancel   context.CancelFunc
	message  []byte // what is left of the last message
	left     int64  // bytes of the blob that are still to be received
	err      error
}

// Read fills p; a stream that ends before the blob does is io.ErrUnexpectedEOF.
func (b *blobStream) Read(p []byte) (int, error) {
	for len(b.message) == 0 && b.err == nil && len(p) > 0 {
		b.message, b.err = b.receive()
	}
	n := copy(p, b.message)
	b.message = b.message[n:]
	if n > 0 || len(p) == 0 {
		return n, nil
	}
	return 0, b.err
}

func (b *blobStream) receive() ([]byte, error) {
	reply, err := b.messages.Recv()
	switch {
	case errors.Is(err, io.EOF) && b.left == 0:
		return nil, io.EOF
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("content %s: %d bytes are missing: %w", b.digest, b.left, io.ErrUnexpectedEOF)
	case err != nil:
		return nil, fmt.Errorf("content %s: read: %w", b.digest, errgrpc.ToNative(err))
	}
	if b.left -= int64(len(reply.Data)); b.left < 0 {
		return nil, fmt.Errorf("content %s: longer than containerd said: %w", b.digest, errdefs.ErrOutOfRange)
	}
	return reply.Data, nil
}

// Close ends the call; reading on is an error.
func (b *blobStream) Close() error {
	b.cancel()
	b.message, b.err = nil, os.ErrClosed
	return nil
}
