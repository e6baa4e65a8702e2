// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"errors"
	"fmt"
	"slices"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ImagesOf returns the references of those images of ctx's namespace that have a blob, which need not be there. Labels
// do not tell: containerd leaves them out for layers that it does not keep. So the manifests are read; it is meant for
// when something went wrong, and what cannot be read is passed over.
func (s *ContentSource) ImagesOf(ctx context.Context, blob digest.Digest) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	reply, err := s.images.List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", errgrpc.ToNative(err))
	}
	store := contentproxy.NewContentStore(s.contents)
	var names []string
	var trouble error
	for _, image := range reply.Images {
		if _, err := digest.Parse(image.Name); err == nil || image.Target == nil {
			continue // an ID, which CRI gives each image beside its references
		}
		has := false
		err := images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			if has = has || desc.Digest == blob; has || !images.IsManifestType(desc.MediaType) && !images.IsIndexType(desc.MediaType) {
				return nil, nil
			}
			children, err := images.Children(ctx, store, desc)
			if errdefs.IsNotFound(err) { // of another platform
				return nil, nil
			}
			return children, err
		}), ocispec.Descriptor{MediaType: image.Target.MediaType, Digest: digest.Digest(image.Target.Digest), Size: image.Target.Size})
		if has {
			names = append(names, image.Name)
		} else if err != nil {
			trouble = errors.Join(trouble, fmt.Errorf("image %s: %w", image.Name, err))
		}
	}
	if len(names) == 0 && trouble != nil {
		return nil, trouble
	}
	slices.Sort(names)
	return names, nil
}
