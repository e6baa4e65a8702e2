// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
)

// nodeImages finds images by the names that containerd gives them, and the snapshots of this daemon that are their
// layers.
type nodeImages struct {
	images     imagesapi.ImagesClient
	namespaces namespacesapi.NamespacesClient
	containers containersapi.ContainersClient
	store      content.Store
	leases     leases.Manager
	backend    snapshots.Snapshotter
}

func newNodeImages(conn grpc.ClientConnInterface, backend snapshots.Snapshotter) *nodeImages {
	store := newBlobStore(conn)
	return &nodeImages{
		images:     imagesapi.NewImagesClient(conn),
		namespaces: namespacesapi.NewNamespacesClient(conn),
		containers: containersapi.NewContainersClient(conn),
		store:      store,
		leases:     store.leases,
		backend:    backend,
	}
}

// nodeImage is an image for one platform.
type nodeImage struct {
	Namespace string
	Name      string
	Target    ocispec.Descriptor // what the name refers to: an index or a manifest
	Manifest  ocispec.Descriptor
	Place     int // among the image's manifests that are here, as its index has them
	Body      ocispec.Manifest
	Layers    []ocispec.Descriptor // blobs, the bottom one first
	Config    ocispec.Image
	Platform  string
	Chain     digest.Digest // chain ID of all layers
	// Snapshots are the backend names of the layers that are unpacked with squash, the bottom one first: all of them,
	// some, or none.
	Snapshots []string
}

// unpacked tells whether all layers are.
func (i *nodeImage) unpacked() bool { return len(i.Snapshots) == len(i.Layers) && len(i.Layers) > 0 }

// top is the backend name of the topmost layer's snapshot of an image that is unpacked.
func (i *nodeImage) top() string { return i.Snapshots[len(i.Snapshots)-1] }

// withNamespace is ctx for calls about a namespace. ErrInvalidArgument: it is no name for one.
func withNamespace(ctx context.Context, namespace string) (context.Context, error) {
	if namespace == "" {
		return nil, fmt.Errorf("no namespace is named: %w", errdefs.ErrInvalidArgument)
	}
	ctx = namespaces.WithNamespace(ctx, namespace)
	if _, err := namespaces.NamespaceRequired(ctx); err != nil {
		return nil, fmt.Errorf("namespace %q: %w", namespace, err)
	}
	return ctx, nil
}

// one returns an image all of whose layers are unpacked with squash: of the platform, if one is named, else of the one
// that fits this machine best.
//
// ErrNotFound: the namespace has no such image. ErrFailedPrecondition, saying what helps: it is not unpacked with squash.
func (n *nodeImages) one(ctx context.Context, namespace, name, platform string) (*nodeImage, error) {
	all, err := n.platforms(ctx, namespace, name, platform)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// platforms is one for all platforms that are unpacked, the one that fits this machine best first; at least one.
func (n *nodeImages) platforms(ctx context.Context, namespace, name, platform string) ([]*nodeImage, error) {
	ctx, err := withNamespace(ctx, namespace)
	if err != nil {
		return nil, err
	}
	match := platforms.All
	if platform != "" {
		p, err := platforms.Parse(platform)
		if err != nil {
			return nil, fmt.Errorf("platform %q: %w: %w", platform, err, errdefs.ErrInvalidArgument)
		}
		match = platforms.OnlyStrict(p)
	}
	image, err := n.find(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	chains, err := n.chains(ctx, namespace)
	if err != nil {
		return nil, err
	}
	all, err := n.manifests(ctx, namespace, image, chains)
	if err != nil {
		return nil, err
	}
	var found []*nodeImage
	var seen []string
	for _, i := range all {
		seen = append(seen, i.Platform)
		if p, err := platforms.Parse(i.Platform); err == nil && match.Match(p) && i.unpacked() {
			found = append(found, i)
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	which := ""
	if platform != "" {
		which = " for " + platform
		if !slices.Contains(seen, platforms.Format(platforms.Normalize(platforms.MustParse(platform)))) {
			return nil, fmt.Errorf("image %s%s is not on this node (%s is): pull it with `ctr -n %s image pull --platform %s --snapshotter squash %s`: %w",
				name, which, strings.Join(seen, ", "), namespace, platform, name, errdefs.ErrFailedPrecondition)
		}
	}
	return nil, fmt.Errorf("image %s%s is not unpacked with squash: unpack it with `ctr -n %s image pull --snapshotter squash %s` (what is there already is not downloaded again): %w",
		name, which, namespace, name, errdefs.ErrFailedPrecondition)
}

// list returns all images of a namespace of which squash has any layer, by name.
func (n *nodeImages) list(ctx context.Context, namespace string) ([]*nodeImage, error) {
	ctx, err := withNamespace(ctx, namespace)
	if err != nil {
		return nil, err
	}
	reply, err := n.images.List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", errgrpc.ToNative(err))
	}
	chains, err := n.chains(ctx, namespace)
	if err != nil {
		return nil, err
	}
	var found []*nodeImage
	for _, image := range reply.Images {
		if _, err := digest.Parse(image.Name); err == nil {
			continue // an ID, which CRI gives each image beside its references
		}
		all, err := n.manifests(ctx, namespace, image, chains)
		switch {
		case errdefs.IsNotFound(err):
			continue // nothing of it is here but its name
		case ctx.Err() != nil || errdefs.IsUnavailable(err): // it is no fault of this image
			return nil, err
		case err != nil:
			log.G(ctx).WithError(err).WithField("image", image.Name).Warn("an image is not listed, for it cannot be read")
			continue
		}
		for _, i := range all {
			if len(i.Snapshots) > 0 {
				found = append(found, i)
			}
		}
	}
	slices.SortStableFunc(found, func(a, b *nodeImage) int { return strings.Compare(a.Name, b.Name) })
	return found, nil
}

// find returns what containerd knows under a name, or of whose target that is the digest.
func (n *nodeImages) find(ctx context.Context, namespace, name string) (*imagesapi.Image, error) {
	if name == "" {
		return nil, fmt.Errorf("no image is named: %w", errdefs.ErrInvalidArgument)
	}
	reply, err := n.images.List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", errgrpc.ToNative(err))
	}
	for _, is := range []func(*imagesapi.Image) bool{
		func(i *imagesapi.Image) bool { return i.Name == name },
		func(i *imagesapi.Image) bool { return i.Target.GetDigest() == name },
	} {
		if at := slices.IndexFunc(reply.Images, is); at >= 0 {
			return reply.Images[at], nil
		}
	}
	err = fmt.Errorf("namespace %s has no image %s", namespace, name)
	if others := n.elsewhere(ctx, name); len(others) > 0 {
		return nil, fmt.Errorf("%w; it is in namespace %s: choose it with --namespace: %w", err, strings.Join(others, ", "), errdefs.ErrNotFound)
	}
	for _, image := range reply.Images {
		if strings.HasSuffix(image.Name, "/"+name) || strings.HasSuffix(image.Name, "/"+name+":latest") {
			return nil, fmt.Errorf("%w; do you mean %s?: %w", err, image.Name, errdefs.ErrNotFound)
		}
	}
	return nil, fmt.Errorf("%w; `squashctl ls` and `ctr -n %s image ls` list those that there are: %w", err, namespace, errdefs.ErrNotFound)
}

// named returns what containerd knows under a name; nil: nothing, or it does not tell.
func (n *nodeImages) named(ctx context.Context, name string) *imagesapi.Image {
	reply, err := n.images.Get(ctx, &imagesapi.GetImageRequest{Name: name})
	if err != nil {
		return nil
	}
	return reply.Image
}

// elsewhere returns the other namespaces that have an image of the name.
func (n *nodeImages) elsewhere(ctx context.Context, name string) (others []string) {
	reply, err := n.namespaces.List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return nil
	}
	for _, other := range reply.Namespaces {
		if n.named(namespaces.WithNamespace(ctx, other.Name), name) != nil {
			others = append(others, other.Name)
		}
	}
	return others
}

// chains returns the backend names of a namespace's committed snapshots by chain ID.
func (n *nodeImages) chains(ctx context.Context, namespace string) (map[digest.Digest]string, error) {
	chains := map[digest.Digest]string{}
	err := n.backend.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		parts := strings.SplitN(info.Name, "/", 3)
		if len(parts) == 3 && parts[0] == namespace && info.Kind == snapshots.KindCommitted {
			chains[digest.Digest(parts[2])] = info.Name
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	return chains, nil
}

// manifests returns an image's platforms whose manifest and config are here, the one that fits this machine best first.
// Those that make no sense are left out if there is another. ErrNotFound: there is none; ErrFailedPrecondition: none makes
// sense.
func (n *nodeImages) manifests(ctx context.Context, namespace string, image *imagesapi.Image, chains map[digest.Digest]string) ([]*nodeImage, error) {
	if image.Target == nil {
		return nil, fmt.Errorf("image %s refers to nothing: %w", image.Name, errdefs.ErrNotFound)
	}
	target := ocispec.Descriptor{MediaType: image.Target.MediaType, Digest: digest.Digest(image.Target.Digest), Size: image.Target.Size}
	var found []*nodeImage
	var broken error
	err := images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if images.IsIndexType(desc.MediaType) {
			children, err := images.Children(ctx, n.store, desc)
			if errdefs.IsNotFound(err) && desc.Digest != target.Digest {
				return nil, nil
			}
			return children, err
		}
		if !images.IsManifestType(desc.MediaType) {
			return nil, nil
		}
		i, err := n.manifest(ctx, desc, chains)
		switch {
		case errdefs.IsNotFound(err):
			return nil, nil // of another platform
		case errdefs.IsFailedPrecondition(err):
			broken = err
			return nil, nil
		case err != nil || i == nil:
			return nil, err
		}
		i.Namespace, i.Name, i.Target, i.Place = namespace, image.Name, target, len(found)
		found = append(found, i)
		return nil, nil
	}), target)
	if err == nil && len(found) == 0 {
		err = broken
	}
	if errdefs.IsNotFound(err) || err == nil && len(found) == 0 {
		return nil, fmt.Errorf("image %s: its manifest %s is not in containerd's content store: fetch it with `ctr -n %s content fetch %s`: %w", image.Name, target.Digest, namespace, image.Name, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", image.Name, err)
	}
	best := platforms.Default()
	slices.SortStableFunc(found, func(a, b *nodeImage) int {
		pa, _ := platforms.Parse(a.Platform)
		pb, _ := platforms.Parse(b.Platform)
		switch {
		case best.Less(pa, pb):
			return -1
		case best.Less(pb, pa):
			return 1
		}
		return 0
	})
	return found, nil
}

// manifest reads one manifest and its config; nil if it is no image that could be run, but an attestation of one.
// ErrFailedPrecondition: they make no sense.
func (n *nodeImages) manifest(ctx context.Context, desc ocispec.Descriptor, chains map[digest.Digest]string) (*nodeImage, error) {
	i := &nodeImage{Manifest: desc}
	if err := n.readJSON(ctx, desc, &i.Body); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	manifest := i.Body
	if !images.IsConfigType(manifest.Config.MediaType) {
		return nil, nil
	}
	if err := n.readJSON(ctx, manifest.Config, &i.Config); err != nil {
		return nil, fmt.Errorf("config %s: %w", manifest.Config.Digest, err)
	}
	platform := i.Config.Platform
	if desc.Platform != nil {
		platform = *desc.Platform
	}
	if platform.OS == "unknown" || platform.Architecture == "unknown" {
		return nil, nil
	}
	i.Platform = platforms.Format(platforms.Normalize(platform))
	i.Layers = manifest.Layers
	diffIDs := i.Config.RootFS.DiffIDs
	if len(diffIDs) != len(manifest.Layers) {
		return nil, fmt.Errorf("manifest %s has %d layers, and its config %d: %w", desc.Digest, len(manifest.Layers), len(diffIDs), errdefs.ErrFailedPrecondition)
	}
	for _, chain := range identity.ChainIDs(slices.Clone(diffIDs)) {
		i.Chain = chain
		if name, ok := chains[chain]; ok {
			i.Snapshots = append(i.Snapshots, name)
		}
	}
	return i, nil
}

func (n *nodeImages) readJSON(ctx context.Context, desc ocispec.Descriptor, to any) error {
	data, err := content.ReadBlob(ctx, n.store, desc)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, to); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return nil
}
