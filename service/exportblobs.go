// SPDX-License-Identifier: Apache-2.0

package service

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

// exportForm is how a layer is compressed: the same bytes at every time.
type exportForm struct {
	mediaType string
	compress  func(io.Writer) (io.WriteCloser, error)
}

var exportForms = map[string]exportForm{
	"gzip": {ocispec.MediaTypeImageLayerGzip, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, gzip.DefaultCompression) }},
	"zstd": {ocispec.MediaTypeImageLayerZstd, func(w io.Writer) (io.WriteCloser, error) {
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	}},
	"none": {ocispec.MediaTypeImageLayer, func(w io.Writer) (io.WriteCloser, error) { return uncompressed{w}, nil }},
}

type uncompressed struct{ io.Writer }

func (uncompressed) Close() error { return nil }

// exportPiece is how much of a blob goes into a message.
const exportPiece = 1 << 20

// streamSink sends blobs to the client, between reports of progress.
type streamSink struct {
	stream grpc.ServerStreamingServer[adminapi.ExportResponse]
	steps  *steps
}

func (s streamSink) send(m *adminapi.ExportResponse) error {
	s.steps.mu.Lock() // one message at a time
	defer s.steps.mu.Unlock()
	if err := s.stream.Send(m); err != nil {
		return fmt.Errorf("tell the client: %w", err)
	}
	return nil
}

// Write implements io.Writer.
func (s streamSink) Write(p []byte) (int, error) {
	if err := s.send(&adminapi.ExportResponse{Message: &adminapi.ExportResponse_Data{Data: p}}); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (s streamSink) put(_ context.Context, mediaType string, _ func() map[string]string, write func(io.Writer) error) (ocispec.Descriptor, error) {
	if err := s.send(&adminapi.ExportResponse{Message: &adminapi.ExportResponse_Blob{Blob: mediaType}}); err != nil {
		return ocispec.Descriptor{}, err
	}
	sum := counted{sum: digest.SHA256.Digester()}
	pieces := bufio.NewWriterSize(s, exportPiece)
	err := write(io.MultiWriter(pieces, &sum))
	if err == nil {
		err = pieces.Flush()
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: sum.sum.Digest(), Size: int64(sum.n)}
	return desc, s.send(&adminapi.ExportResponse{Message: &adminapi.ExportResponse_End{
		End: &adminapi.BlobEnd{Digest: desc.Digest.String(), Size: sum.n},
	}})
}

// storeSink writes blobs into containerd's content store. A lease of the caller holds them.
type storeSink struct{ store content.Store }

func (s storeSink) put(ctx context.Context, mediaType string, labels func() map[string]string, write func(io.Writer) error) (_ ocispec.Descriptor, err error) {
	ref := "squash-export-" + rand.Text()
	blob, err := s.store.Writer(ctx, content.WithRef(ref), content.WithDescriptor(ocispec.Descriptor{MediaType: mediaType}))
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("begin blob: %w", err)
	}
	defer func() {
		blob.Close()
		if err != nil {
			// Also when the caller has gone.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
			defer cancel()
			if aerr := s.store.Abort(ctx, ref); aerr != nil && !errdefs.IsNotFound(aerr) {
				log.G(ctx).WithError(aerr).WithField("ref", ref).Warn("could not give up an unfinished blob; containerd does in a day")
			}
		}
	}()
	sum := counted{sum: digest.SHA256.Digester()}
	pieces := bufio.NewWriterSize(blob, exportPiece) // each is a question and an answer
	if err = write(io.MultiWriter(pieces, &sum)); err == nil {
		err = pieces.Flush()
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var opts []content.Opt
	if labels != nil {
		opts = append(opts, content.WithLabels(labels()))
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: sum.sum.Digest(), Size: int64(sum.n)}
	if cerr := blob.Commit(ctx, desc.Size, desc.Digest, opts...); cerr != nil && !errdefs.IsAlreadyExists(cerr) {
		return ocispec.Descriptor{}, fmt.Errorf("commit blob %s: %w", desc.Digest, cerr)
	}
	return desc, nil
}

// keepAs has make put blobs into containerd's content store, and gives what it made a name. ErrAlreadyExists: the name is
// another image's.
func (n *nodeImages) keepAs(ctx context.Context, name string, make func(context.Context, blobSink) (*adminapi.ExportResult, error)) (*adminapi.ExportResult, error) {
	// Known before the work is done, and asked again after it.
	before := n.named(ctx, name)
	lease, err := n.leases.Create(ctx, leases.WithExpiration(leaseTime), func(l *leases.Lease) error {
		l.ID = "squash-export-" + rand.Text()
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("lease for the new image: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
		defer cancel()
		if err := n.leases.Delete(ctx, lease); err != nil {
			log.G(ctx).WithError(err).WithField("lease", lease.ID).Warn("could not end a lease; it ends by itself within the hour")
		}
	}()
	ctx = leases.WithLease(ctx, lease.ID)
	result, err := make(ctx, storeSink{n.store})
	if err != nil {
		return nil, err
	}
	target := ocispec.Descriptor{MediaType: result.MediaType, Digest: digest.Digest(result.Digest), Size: int64(result.Size)}
	if before != nil && before.Target.GetDigest() == result.Digest {
		return result, nil
	}
	if before != nil {
		return nil, takenName(name, before)
	}
	// Its blobs are kept from here on by what refers to them.
	label := images.SetChildrenMappedLabels(n.store, images.ChildrenHandler(n.store), nil)
	if err := images.Walk(ctx, label, target); err != nil {
		return nil, fmt.Errorf("label the new image's blobs: %w", err)
	}
	_, err = n.images.Create(ctx, &imagesapi.CreateImageRequest{Image: &imagesapi.Image{
		Name:   name,
		Target: &types.Descriptor{MediaType: target.MediaType, Digest: target.Digest.String(), Size: target.Size},
	}})
	if err = errgrpc.ToNative(err); errdefs.IsAlreadyExists(err) {
		if now := n.named(ctx, name); now == nil || now.Target.GetDigest() != result.Digest {
			return nil, takenName(name, now)
		}
		return result, nil
	}
	if err != nil {
		return nil, fmt.Errorf("create image %s: %w", name, err)
	}
	return result, nil
}

func takenName(name string, image *imagesapi.Image) error {
	return fmt.Errorf("there is an image %s already, of %s: choose another name, or remove it first: %w", name, image.GetTarget().GetDigest(), errdefs.ErrAlreadyExists)
}
