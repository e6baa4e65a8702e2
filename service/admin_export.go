// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	containerdlabels "github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/onelayer"
	"github.com/squash-snapshotter/squash/snapshotter"
)

// Exporter is what a Backend may be as well: one that can write what it shows as one layer.
type Exporter interface {
	ExportLayer(ctx context.Context, name string, w io.Writer, progress func(done, total uint64)) (layer.TarStats, error)
}

var _ Exporter = (*snapshotter.Snapshotter)(nil)

// blobSink takes blobs one after the other.
type blobSink interface {
	// put takes what write writes as a blob. labels are for content stores.
	put(ctx context.Context, mediaType string, labels func() map[string]string, write func(io.Writer) error) (ocispec.Descriptor, error)
}

// Export makes an image of one layer, for the client or for containerd's content store.
func (a *adminServer) Export(req *adminapi.ExportRequest, stream grpc.ServerStreamingServer[adminapi.ExportResponse]) error {
	exporter, ok := a.backend.(Exporter)
	if !ok {
		return errgrpc.ToGRPC(fmt.Errorf("this snapshotter cannot export images: %w", errdefs.ErrNotImplemented))
	}
	form, ok := exportForms[req.Compression]
	if !ok {
		return errgrpc.ToGRPC(fmt.Errorf("compression %q: must be gzip, zstd or none: %w", req.Compression, errdefs.ErrInvalidArgument))
	}
	ctx, cancel := a.whileServing(stream.Context())
	defer cancel()
	ref := req.Image
	all, err := a.images.platforms(ctx, ref.GetNamespace(), ref.GetName(), ref.GetPlatform())
	if err != nil {
		return errgrpc.ToGRPC(err)
	}
	if ctx, err = withNamespace(ctx, ref.GetNamespace()); err != nil {
		return errgrpc.ToGRPC(err)
	}
	start := time.Now()
	e := &export{a: a, exporter: exporter, form: form, steps: throttle(func(p *adminapi.Progress) error {
		return stream.Send(&adminapi.ExportResponse{Message: &adminapi.ExportResponse_Progress{Progress: p}})
	})}
	var result *adminapi.ExportResult
	if req.StoreAs == "" {
		e.sink = streamSink{stream, e.steps}
		result, err = e.run(ctx, all, ref.GetPlatform() != "")
	} else {
		result, err = a.images.keepAs(ctx, req.StoreAs, func(ctx context.Context, sink blobSink) (*adminapi.ExportResult, error) {
			e.sink = sink
			return e.run(ctx, all, ref.GetPlatform() != "")
		})
	}
	e.steps.stop()
	if err != nil {
		return errgrpc.ToGRPC(fmt.Errorf("export image %s: %w", ref.GetName(), whyEnded(ctx, err)))
	}
	log.G(ctx).WithFields(log.Fields{"image": ref.GetName(), "as": req.StoreAs, "digest": result.Digest, "took": time.Since(start).Round(time.Millisecond)}).Info("image exported as one layer")
	return stream.Send(&adminapi.ExportResponse{Message: &adminapi.ExportResponse_Result{Result: result}})
}

// export is one export under way.
type export struct {
	a        *adminServer
	exporter Exporter
	form     exportForm
	sink     blobSink
	steps    *steps
}

// run exports an image for each of the platforms, and an index of them if the image has one and no platform was named.
func (e *export) run(ctx context.Context, all []*nodeImage, onePlatform bool) (*adminapi.ExportResult, error) {
	result := &adminapi.ExportResult{}
	var manifests []ocispec.Descriptor
	if onePlatform || !images.IsIndexType(all[0].Target.MediaType) {
		all = all[:1]
	}
	// As the image has them, whatever fits this machine best: all machines give the same index.
	slices.SortFunc(all, func(a, b *nodeImage) int { return cmp.Compare(a.Place, b.Place) })
	for _, image := range all {
		manifest, err := e.platform(ctx, image, result)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", image.Platform, err)
		}
		manifests = append(manifests, manifest)
	}
	target := manifests[0]
	if original := all[0].Target; !onePlatform && images.IsIndexType(original.MediaType) {
		var index ocispec.Index
		if err := e.a.images.readJSON(ctx, original, &index); err != nil {
			return nil, fmt.Errorf("index %s: %w", original.Digest, err)
		}
		result.LeftOut = leftOut(index, all)
		data, err := onelayer.Index(manifests, index.Annotations)
		if err != nil {
			return nil, err
		}
		if target, err = e.sink.put(ctx, ocispec.MediaTypeImageIndex, nil, writeAll(data)); err != nil {
			return nil, err
		}
	}
	result.MediaType, result.Digest, result.Size = target.MediaType, target.Digest.String(), uint64(target.Size)
	return result, nil
}

// leftOut lists what an index has beside the manifests of images.
func leftOut(index ocispec.Index, all []*nodeImage) (names []string) {
	for _, m := range index.Manifests {
		if slices.ContainsFunc(all, func(i *nodeImage) bool { return i.Manifest.Digest == m.Digest }) {
			continue
		}
		name := "manifest " + m.Digest.String()
		if m.Platform != nil {
			if name = platforms.Format(*m.Platform); m.Platform.OS == "unknown" {
				name = "attestation"
			}
		}
		if !slices.Contains(names, name) {
			names = append(names, valid(name))
		}
	}
	return names
}

func writeAll(data []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}
}

// platform exports one platform, and returns its manifest.
func (e *export) platform(ctx context.Context, image *nodeImage, result *adminapi.ExportResult) (ocispec.Descriptor, error) {
	original, err := content.ReadBlob(ctx, e.a.images.store, image.Body.Config)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("config %s: %w", image.Body.Config.Digest, err)
	}
	var stats layer.TarStats
	plain := counted{sum: digest.SHA256.Digester()}
	labels := func() map[string]string {
		return map[string]string{containerdlabels.LabelUncompressed: plain.sum.Digest().String()}
	}
	blob, err := e.sink.put(ctx, e.form.mediaType, labels, func(w io.Writer) error {
		packed, err := e.form.compress(w)
		if err != nil {
			return err
		}
		if stats, err = e.exporter.ExportLayer(ctx, image.top(), io.MultiWriter(packed, &plain), func(done, total uint64) {
			e.steps.report("files", done, total)
		}); err != nil {
			return err
		}
		return packed.Close()
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	data, err := onelayer.Config(original, image.Manifest.Digest, plain.sum.Digest())
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	config, err := e.sink.put(ctx, ocispec.MediaTypeImageConfig, nil, writeAll(data))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if data, err = onelayer.Manifest(config, blob, image.Body.Annotations); err != nil {
		return ocispec.Descriptor{}, err
	}
	manifest, err := e.sink.put(ctx, ocispec.MediaTypeImageManifest, nil, writeAll(data))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	manifest.Platform, manifest.Annotations = image.Manifest.Platform, image.Manifest.Annotations
	result.Platforms = append(result.Platforms, &adminapi.ExportedPlatform{
		Platform: image.Platform, Manifest: manifest.Digest.String(), DiffId: plain.sum.Digest().String(), Layers: uint32(len(image.Layers)),
		Entries: uint64(stats.Entries), Bytes: plain.n, BlobBytes: uint64(blob.Size), EntriesLeftOut: uint64(stats.LeftOut),
	})
	return manifest, nil
}

// counted counts and hashes what is written.
type counted struct {
	sum digest.Digester
	n   uint64
}

// Write implements io.Writer.
func (c *counted) Write(p []byte) (int, error) {
	c.n += uint64(len(p))
	return c.sum.Hash().Write(p)
}
