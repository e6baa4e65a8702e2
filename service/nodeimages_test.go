// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// namedSnapshots are committed snapshots of which only names are ever asked.
type namedSnapshots struct {
	snapshots.Snapshotter
	names []string
}

func (n namedSnapshots) Walk(ctx context.Context, f snapshots.WalkFunc, _ ...string) error {
	for _, name := range n.names {
		if err := f(ctx, snapshots.Info{Name: name, Kind: snapshots.KindCommitted}); err != nil {
			return err
		}
	}
	return nil
}

// imageOf stores an image of so many layers, for a platform, and returns its manifest and the chain IDs of its layers.
func (f *fakeContainerd) imageOf(t *testing.T, name string, layers int, platform ocispec.Platform) (ocispec.Descriptor, []digest.Digest) {
	t.Helper()
	var config ocispec.Image
	config.Platform = platform
	var blobs []ocispec.Descriptor
	for i := range layers {
		d := digest.FromString(fmt.Sprint(name, platform, i))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d)
		blobs = append(blobs, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: d, Size: 1})
	}
	chains := identity.ChainIDs(append([]digest.Digest(nil), config.RootFS.DiffIDs...))
	desc := f.writeJSON(t, "default", ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Config: f.writeJSON(t, "default", ocispec.MediaTypeImageConfig, config), Layers: blobs,
	})
	desc.Platform = &platform
	return desc, chains
}

func TestImagesAreFoundByName(t *testing.T) {
	fake := newFakeContainerd(t)
	amd, arm := ocispec.Platform{OS: "linux", Architecture: "amd64"}, ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	one, oneChains := fake.imageOf(t, "one", 2, amd)
	partly, partlyChains := fake.imageOf(t, "partly", 3, amd)
	none, _ := fake.imageOf(t, "none", 1, amd)
	multiAmd, _ := fake.imageOf(t, "multi", 1, amd)
	multiArm, armChains := fake.imageOf(t, "multi", 1, arm)
	attestation, _ := fake.imageOf(t, "multi", 1, ocispec.Platform{OS: "unknown", Architecture: "unknown"})
	elsewhere := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("not fetched"), Size: 1, Platform: &ocispec.Platform{OS: "linux", Architecture: "s390x"}}
	broken := fake.write(t, "default", []byte("no manifest"), nil)
	broken.MediaType = ocispec.MediaTypeImageManifest
	for name, target := range map[string]ocispec.Descriptor{
		"registry.example/one:1": one, "registry.example/partly:1": partly, "registry.example/none:latest": none, "registry.example/broken:1": broken,
		"registry.example/multi:1":          fake.writeJSON(t, "default", ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: []ocispec.Descriptor{elsewhere, multiAmd, multiArm, attestation}}),
		digest.FromString("an ID").String(): one,
	} {
		fake.createImage(t, "default", name, target)
	}
	backend := namedSnapshots{names: []string{
		"default/1/" + oneChains[0].String(), "default/2/" + oneChains[1].String(), "other/3/" + oneChains[1].String(),
		"default/4/" + partlyChains[0].String(), "default/5/" + armChains[0].String(), "default/6/a container",
	}}
	images := newNodeImages(fake.dial(t), backend)

	found, err := images.one(t.Context(), "default", "registry.example/one:1", "")
	if err != nil || strings.Join(found.Snapshots, " ") != strings.Join(backend.names[:2], " ") || found.Chain != oneChains[1] || found.Platform != "linux/amd64" {
		t.Errorf("got %+v, %v", found, err)
	}
	if found, err = images.one(t.Context(), "default", one.Digest.String(), "linux/amd64"); err != nil || found.Chain != oneChains[1] {
		t.Errorf("by digest: got %+v, %v", found, err)
	}
	// The platform that is unpacked, although another one would fit better.
	if found, err = images.one(t.Context(), "default", "registry.example/multi:1", ""); err != nil || found.Platform != "linux/arm64" && found.Platform != "linux/arm64/v8" {
		t.Errorf("of several platforms: got %+v, %v", found, err)
	}
	list, err := images.list(t.Context(), "default")
	var names []string
	for _, i := range list {
		names = append(names, fmt.Sprint(i.Name, " ", len(i.Snapshots), "/", len(i.Layers)))
	}
	if want := "registry.example/multi:1 1/1, registry.example/one:1 2/2, registry.example/partly:1 1/3"; err != nil || strings.Join(names, ", ") != want {
		t.Errorf("got %q, %v, want %q", names, err, want)
	}
	for _, c := range []struct {
		name, platform string
		is             func(error) bool
		want           string
	}{
		{"registry.example/partly:1", "", errdefs.IsFailedPrecondition, "is not unpacked with squash"},
		{"registry.example/none:latest", "", errdefs.IsFailedPrecondition, "ctr -n default image pull --snapshotter squash registry.example/none:latest"},
		{"registry.example/multi:1", "linux/amd64", errdefs.IsFailedPrecondition, "for linux/amd64 is not unpacked"},
		{"registry.example/multi:1", "linux/s390x", errdefs.IsFailedPrecondition, "for linux/s390x is not on this node (linux/a"},
		{"registry.example/multi:1", "a/b/c/d", errdefs.IsInvalidArgument, `platform "a/b/c/d"`},
		{"none", "", errdefs.IsNotFound, "do you mean registry.example/none:latest?"},
		{"nothing", "", errdefs.IsNotFound, "namespace default has no image nothing"},
		{"", "", errdefs.IsInvalidArgument, "no image is named"},
		{"registry.example/broken:1", "", func(err error) bool { return err != nil }, "image registry.example/broken:1"},
	} {
		if found, err := images.one(t.Context(), "default", c.name, c.platform); err == nil || !c.is(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s for %q: got %+v, %v, want %q", c.name, c.platform, found, err, c.want)
		}
	}
	if _, err := images.one(t.Context(), "no namespace", "x", ""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
}

// A history that does not say which command made which layer says nothing, rather than something wrong.
func TestCommandsOfLayers(t *testing.T) {
	image := &nodeImage{Layers: make([]ocispec.Descriptor, 2)}
	image.Config.RootFS.DiffIDs = make([]digest.Digest, 2)
	image.Config.History = []ocispec.History{{CreatedBy: "ADD"}, {CreatedBy: "ENV", EmptyLayer: true}, {CreatedBy: "RUN \xff"}}
	if l := layersOf(image); l[0].CreatedBy != "ADD" || l[1].CreatedBy != "RUN \uFFFD" {
		t.Errorf("got %v", l)
	}
	image.Config.History = image.Config.History[:2]
	if l := layersOf(image); l[0].CreatedBy != "" || l[1].CreatedBy != "" {
		t.Errorf("with a history of one layer: got %v", l)
	}
}
