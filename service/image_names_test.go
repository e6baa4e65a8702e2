// SPDX-License-Identifier: Apache-2.0

package service

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// writeJSON stores a manifest or an index.
func (f *fakeContainerd) writeJSON(t *testing.T, namespace, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	desc := f.write(t, namespace, data, nil)
	desc.MediaType = mediaType
	return desc
}

func (f *fakeContainerd) createImage(t *testing.T, namespace, name string, target ocispec.Descriptor) {
	t.Helper()
	if _, err := f.images.Create(namespaces.WithNamespace(t.Context(), namespace), images.Image{Name: name, Target: target}); err != nil {
		t.Fatal(err)
	}
}

func TestImagesOfABlobThatIsGone(t *testing.T) {
	fake := newFakeContainerd(t)
	blob := func(of string) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString(of), Size: int64(len(of))}
	}
	// None of the layers is in the content store.
	manifest := func(namespace string, layers ...ocispec.Descriptor) ocispec.Descriptor {
		config := blob("config")
		config.MediaType = ocispec.MediaTypeImageConfig
		return fake.writeJSON(t, namespace, ocispec.MediaTypeImageManifest, ocispec.Manifest{Config: config, Layers: layers})
	}
	shared, own, foreign := blob("shared"), blob("own"), blob("foreign")
	first := manifest("default", shared, own)
	elsewhere := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("manifest of another platform"), Size: 28}
	index := fake.writeJSON(t, "default", ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: []ocispec.Descriptor{elsewhere, manifest("default", shared)}})
	broken := fake.write(t, "default", []byte("no manifest"), nil)
	broken.MediaType = ocispec.MediaTypeImageManifest
	fake.createImage(t, "default", "registry.example/a-broken:1", broken)
	fake.createImage(t, "default", "registry.example/first:1", first)
	fake.createImage(t, "default", digest.FromString("config").String(), first)
	fake.createImage(t, "default", "registry.example/indexed:1", index)
	fake.createImage(t, "other", "registry.example/foreign:1", manifest("other", foreign))

	source := NewContentSource(fake.dial(t))
	ctx := namespaces.WithNamespace(t.Context(), "default")
	for name, c := range map[string]struct {
		blob ocispec.Descriptor
		want []string
	}{
		"two images": {shared, []string{"registry.example/first:1", "registry.example/indexed:1"}},
		"one image":  {own, []string{"registry.example/first:1"}},
	} {
		if got, err := source.ImagesOf(ctx, c.blob.Digest); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, %v, want %v", name, got, err, c.want)
		}
	}
	// That nobody has it cannot be said while a manifest cannot be read.
	if got, err := source.ImagesOf(ctx, foreign.Digest); err == nil || len(got) > 0 {
		t.Errorf("another namespace's blob: got %v, %v, want an error for the broken manifest", got, err)
	}
	if err := fake.images.Delete(ctx, "registry.example/a-broken:1"); err != nil {
		t.Fatal(err)
	}
	if got, err := source.ImagesOf(ctx, foreign.Digest); err != nil || len(got) > 0 {
		t.Errorf("another namespace's blob: got %v, %v, want nothing", got, err)
	}
	fake.stop()
	if _, err := NewContentSource(fake.dial(t)).ImagesOf(ctx, own.Digest); err == nil {
		t.Error("no error from a containerd that is down")
	}
}
