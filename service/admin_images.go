// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"fmt"
	"slices"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"google.golang.org/grpc"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
	"github.com/squash-snapshotter/squash/internal/flatten"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/report"
	"github.com/squash-snapshotter/squash/snapshotter"
)

// Explainer is what a Backend may be as well: one that can tell what its images are made of. Names are backend names of
// images' top snapshots.
type Explainer interface {
	Sizes(ctx context.Context, names []string) ([]snapshotter.ImageSizes, error)
	Tree(ctx context.Context, name string) (*flatten.Tree, error)
	Places(ctx context.Context, name string) (snapshotter.ImagePlaces, error)
}

var _ Explainer = (*snapshotter.Snapshotter)(nil)

// Rows of a report's tables. Its answer is one message, and names may be long.
const (
	usualRows = 20
	mostRows  = 1000
)

func (a *adminServer) explainer() (Explainer, error) {
	e, ok := a.backend.(Explainer)
	if !ok {
		return nil, fmt.Errorf("this snapshotter cannot explain its images: %w", errdefs.ErrNotImplemented)
	}
	return e, nil
}

// ListImages tells about all images of a namespace.
func (a *adminServer) ListImages(ctx context.Context, req *adminapi.ListImagesRequest) (*adminapi.ListImagesResponse, error) {
	explainer, err := a.explainer()
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	found, err := a.images.list(ctx, req.Namespace)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	images, err := a.describe(ctx, explainer, req.Namespace, found)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &adminapi.ListImagesResponse{Images: images}, nil
}

// describe tells about images of one namespace. Those that were removed meanwhile are left out.
func (a *adminServer) describe(ctx context.Context, explainer Explainer, namespace string, found []*nodeImage) ([]*adminapi.Image, error) {
	used, err := a.containers(ctx, namespace)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(found))
	for n, i := range found {
		names[n] = i.top()
	}
	sizes, err := explainer.Sizes(ctx, names)
	if err != nil {
		return nil, err
	}
	var images []*adminapi.Image
	for n, i := range found {
		image := &adminapi.Image{
			Name:     valid(i.Name),
			Digest:   i.Target.Digest.String(),
			Platform: valid(i.Platform),
			Manifest: i.Manifest.Digest.String(),
			ChainId:  i.Chain.String(),
			Layers:   uint32(len(i.Layers)),
			Unpacked: uint32(len(i.Snapshots)),
		}
		if i.unpacked() {
			image.Containers = used[i.Name]
		}
		switch z := sizes[n]; {
		case errdefs.IsNotFound(z.Err):
			continue
		case z.Err != nil:
			log.G(ctx).WithError(z.Err).WithField("image", i.Name).Warn("it is not known what an image takes up")
			image.Error = valid(z.Err.Error())
		case i.unpacked():
			image.Flat, image.Files, image.OwnBytes, image.SharedBytes = z.Flat, z.Files, z.Own, z.Shared
			fallthrough
		default:
			image.LayerBytes = z.LayerBytes
		}
		images = append(images, image)
	}
	return images, nil
}

// describeOne is describe for an image whose numbers are needed.
func (a *adminServer) describeOne(ctx context.Context, explainer Explainer, image *nodeImage) (*adminapi.Image, error) {
	images, err := a.describe(ctx, explainer, image.Namespace, []*nodeImage{image})
	switch {
	case err != nil:
		return nil, err
	case len(images) == 0:
		return nil, fmt.Errorf("image %s was removed just now: %w", image.Name, errdefs.ErrNotFound)
	case images[0].Error != "":
		return nil, fmt.Errorf("image %s: %s; `squashctl fsck` tells what is damaged: %w", image.Name, images[0].Error, errdefs.ErrFailedPrecondition)
	}
	return images[0], nil
}

// containers counts a namespace's containers that are on snapshots of this daemon, by the image they were made from.
func (a *adminServer) containers(ctx context.Context, namespace string) (map[string]uint32, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	ctx, err := withNamespace(ctx, namespace)
	if err != nil {
		return nil, err
	}
	ours, err := a.plugins.names(ctx)
	if err != nil {
		return nil, err
	}
	reply, err := a.images.containers.List(ctx, &containersapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", errgrpc.ToNative(err))
	}
	used := map[string]uint32{}
	for _, c := range reply.Containers {
		if slices.Contains(ours, c.Snapshotter) {
			used[c.Image]++
		}
	}
	return used, nil
}

// theImage finds the image of a request, and describes it.
func (a *adminServer) theImage(ctx context.Context, ref *adminapi.ImageRef) (*nodeImage, *adminapi.Image, Explainer, error) {
	explainer, err := a.explainer()
	if err != nil {
		return nil, nil, nil, err
	}
	image, err := a.images.one(ctx, ref.GetNamespace(), ref.GetName(), ref.GetPlatform())
	if err != nil {
		return nil, nil, nil, err
	}
	described, err := a.describeOne(ctx, explainer, image)
	if err != nil {
		return nil, nil, nil, err
	}
	return image, described, explainer, nil
}

// Report explains an image.
func (a *adminServer) Report(ctx context.Context, req *adminapi.ReportRequest) (*adminapi.ReportResponse, error) {
	rows := int(req.Rows)
	switch {
	case rows == 0:
		rows = usualRows
	case rows > mostRows:
		return nil, errgrpc.ToGRPC(fmt.Errorf("rows = %d: must be at most %d: %w", rows, mostRows, errdefs.ErrInvalidArgument))
	}
	explainer, err := a.explainer()
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	image, err := a.images.one(ctx, req.Image.GetNamespace(), req.Image.GetName(), req.Image.GetPlatform())
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	start := time.Now()
	places, err := explainer.Places(ctx, image.top()) // builds the flat image if need be
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	defer places.Close()
	tree, err := explainer.Tree(ctx, image.top())
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	layers := layersOf(image)
	commands := make([]string, len(layers))
	for i, l := range layers {
		commands[i] = l.CreatedBy
	}
	explained, err := report.Build(ctx, tree, commands, places, rows)
	if err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("image %s: %w", image.Name, err))
	}
	described, err := a.describeOne(ctx, explainer, image)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	log.G(ctx).WithFields(log.Fields{"image": image.Name, "took": time.Since(start).Round(time.Millisecond)}).Debug("image explained")
	return reportMessage(explained, described, layers), nil
}

// Blame tells where paths of an image came from.
func (a *adminServer) Blame(req *adminapi.BlameRequest, stream grpc.ServerStreamingServer[adminapi.BlameResponse]) error {
	ctx, cancel := a.whileServing(stream.Context())
	defer cancel()
	if req.All == (len(req.Paths) > 0) {
		return errgrpc.ToGRPC(fmt.Errorf("either paths or all of them: %w", errdefs.ErrInvalidArgument))
	}
	image, described, explainer, err := a.theImage(ctx, req.Image)
	if err != nil {
		return errgrpc.ToGRPC(err)
	}
	tree, err := explainer.Tree(ctx, image.top())
	if err != nil {
		return errgrpc.ToGRPC(err)
	}
	if err := stream.Send(&adminapi.BlameResponse{Message: &adminapi.BlameResponse_Layers{
		Layers: &adminapi.BlameLayers{Image: described, Layers: layersOf(image)},
	}}); err != nil {
		return err
	}
	send := func(p *adminapi.PathOrigin) error {
		return stream.Send(&adminapi.BlameResponse{Message: &adminapi.BlameResponse_Path{Path: p}})
	}
	if req.All {
		err = tree.Walk(ctx, func(h *flatten.PathHistory) error { return send(originMessage(h)) })
	} else {
		err = blamePaths(ctx, tree, req.Paths, send)
	}
	if err != nil {
		return errgrpc.ToGRPC(whyEnded(ctx, err))
	}
	return nil
}

// blamePaths answers for each path, in the order in which they were asked for.
func blamePaths(ctx context.Context, tree *flatten.Tree, paths [][]byte, send func(*adminapi.PathOrigin) error) error {
	asked := map[string]*adminapi.PathOrigin{}
	for _, p := range paths {
		asked[tree.Resolve(string(p))] = nil
	}
	err := tree.Walk(ctx, func(h *flatten.PathHistory) error {
		if _, ok := asked[h.Path]; ok {
			asked[h.Path] = originMessage(h)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, p := range paths {
		at := tree.Resolve(string(p))
		answer := &adminapi.PathOrigin{Path: []byte("/" + at)}
		if known := asked[at]; known != nil {
			answer.Versions = known.Versions
		}
		answer.Asked = p
		if err := send(answer); err != nil {
			return err
		}
	}
	return nil
}

// layersOf are an image's layers, with what its history says of them.
func layersOf(image *nodeImage) []*adminapi.Layer {
	layers := make([]*adminapi.Layer, len(image.Layers))
	for i, blob := range image.Layers {
		layers[i] = &adminapi.Layer{
			DiffId:    image.Config.RootFS.DiffIDs[i].String(),
			Blob:      blob.Digest.String(),
			BlobBytes: uint64(max(blob.Size, 0)),
		}
	}
	n := 0
	for _, h := range image.Config.History {
		if !h.EmptyLayer {
			n++
		}
	}
	if n != len(layers) {
		return layers // it is not known which command made which layer
	}
	n = 0
	for _, h := range image.Config.History {
		if h.EmptyLayer {
			continue
		}
		layers[n].CreatedBy, layers[n].Comment = valid(h.CreatedBy), valid(h.Comment)
		if h.Created != nil {
			layers[n].Created = h.Created.UTC().Format(time.RFC3339)
		}
		n++
	}
	return layers
}

// fateNames are those of the API.
var fateNames = map[flatten.Fate]string{
	flatten.Visible: "visible", flatten.Merged: "merged", flatten.Overwritten: "overwritten", flatten.Deleted: "deleted",
}

var typeNames = map[layer.Type]string{
	layer.TypeDir: "directory", layer.TypeReg: "file", layer.TypeSymlink: "symlink", layer.TypeChar: "char",
	layer.TypeBlock: "block", layer.TypeFifo: "fifo", layer.TypeSocket: "socket",
}
