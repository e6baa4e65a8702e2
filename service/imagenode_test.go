// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// imageNode is a containerd with images, and a snapshotter that has some of their layers.
type imageNode struct {
	*nodeImages
	fake    *fakeContainerd
	history []ocispec.History // of new images
	count   int               // of snapshots
}

func newImageNode(t *testing.T) *imageNode {
	t.Helper()
	fake := newFakeContainerd(t)
	backend, err := native.NewSnapshotter(filepath.Join(t.TempDir(), "native"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { backend.Close() })
	return &imageNode{nodeImages: newNodeImages(fake.dial(t), backend), fake: fake}
}

// here is the platform of this machine, elsewhere another one.
var (
	here      = platforms.Normalize(platforms.DefaultSpec())
	elsewhere = ocispec.Platform{OS: "linux", Architecture: "riscv64"}
)

// manifest stores what a namespace has of an image; layers are texts that stand for diff IDs.
func (n *imageNode) manifest(t *testing.T, namespace string, platform ocispec.Platform, layers ...string) ocispec.Descriptor {
	t.Helper()
	config := ocispec.Image{Platform: platform, History: n.history}
	manifest := ocispec.Manifest{}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromString(l))
		manifest.Layers = append(manifest.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString("blob of " + l), Size: int64(len(l))})
	}
	manifest.Config = n.fake.writeJSON(t, namespace, ocispec.MediaTypeImageConfig, config)
	return n.fake.writeJSON(t, namespace, ocispec.MediaTypeImageManifest, manifest)
}

// unpack commits the snapshots of layers.
func (n *imageNode) unpack(t *testing.T, namespace string, layers ...string) {
	t.Helper()
	var diffIDs []digest.Digest
	parent := ""
	for _, l := range layers {
		diffIDs = append(diffIDs, digest.FromString(l))
		n.count++
		key := fmt.Sprintf("%s/%d/extract", namespace, n.count)
		if _, err := n.backend.Prepare(t.Context(), key, parent); err != nil {
			t.Fatal(err)
		}
		parent = fmt.Sprintf("%s/%d/%s", namespace, n.count, identity.ChainID(slices.Clone(diffIDs)))
		if err := n.backend.Commit(t.Context(), parent, key); err != nil {
			t.Fatal(err)
		}
	}
}

func TestImagesAreFoundInTheirNamespace(t *testing.T) {
	n := newImageNode(t)
	target := n.manifest(t, "default", here, "a", "b")
	n.fake.createImage(t, "default", "registry.example/app:1", target)
	n.fake.createImage(t, "default", "registry.example/app:latest", n.manifest(t, "default", here, "a"))
	n.fake.createImage(t, "default", "registry.example/bare:1", n.manifest(t, "default", here, "bare"))
	n.fake.createImage(t, "other", "registry.example/app:1", n.manifest(t, "other", here, "a", "c"))
	n.fake.createImage(t, "other", "registry.example/their:1", n.manifest(t, "other", here, "a", "c"))
	n.unpack(t, "default", "a", "b")
	n.unpack(t, "other", "a", "c")

	for _, c := range []struct{ namespace, name, top string }{
		{"default", "registry.example/app:1", "default/2/" + identity.ChainID([]digest.Digest{digest.FromString("a"), digest.FromString("b")}).String()},
		{"default", target.Digest.String(), "default/2/" + identity.ChainID([]digest.Digest{digest.FromString("a"), digest.FromString("b")}).String()},
		{"default", "registry.example/app:latest", "default/1/" + digest.FromString("a").String()},
		{"other", "registry.example/app:1", "other/4/" + identity.ChainID([]digest.Digest{digest.FromString("a"), digest.FromString("c")}).String()},
	} {
		image, err := n.one(t.Context(), c.namespace, c.name, "")
		if err != nil {
			t.Errorf("%s in %s: %v", c.name, c.namespace, err)
			continue
		}
		if image.top() != c.top || image.Namespace != c.namespace {
			t.Errorf("%s in %s: got %s of %s, want %s", c.name, c.namespace, image.top(), image.Namespace, c.top)
		}
	}
	for _, c := range []struct {
		namespace, name string
		kind            func(error) bool
		want            string
	}{
		{"default", "", errdefs.IsInvalidArgument, "no image is named"},
		{"", "registry.example/app:1", errdefs.IsInvalidArgument, "no namespace is named"},
		{"a b", "registry.example/app:1", errdefs.IsInvalidArgument, `namespace "a b"`},
		{"default", "registry.example/their:1", errdefs.IsNotFound, "it is in namespace other: choose it with --namespace"},
		{"default", "app:1", errdefs.IsNotFound, "do you mean registry.example/app:1?"},
		{"default", "app", errdefs.IsNotFound, "do you mean registry.example/app:latest?"},
		{"default", "nothing:1", errdefs.IsNotFound, "`squashctl ls` and `ctr -n default image ls`"},
		{"default", "registry.example/bare:1", errdefs.IsFailedPrecondition, "is not unpacked with squash: unpack it with `ctr -n default image pull --snapshotter squash registry.example/bare:1`"},
	} {
		if _, err := n.one(t.Context(), c.namespace, c.name, ""); !c.kind(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q in %q: got %v, want it to contain %q", c.name, c.namespace, err, c.want)
		}
	}
}

// An index has the image for several platforms, of which not all are on the node, and what is no image at all.
func TestPlatformsOfAnImage(t *testing.T) {
	n := newImageNode(t)
	with := func(desc ocispec.Descriptor, p ocispec.Platform) ocispec.Descriptor {
		desc.Platform = &p
		return desc
	}
	windows := ocispec.Platform{OS: "windows", Architecture: "amd64"}
	absent := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("absent"), Size: 6, Platform: &windows}
	attestation := with(n.manifest(t, "default", ocispec.Platform{OS: "unknown", Architecture: "unknown"}, "statement"), ocispec.Platform{OS: "unknown", Architecture: "unknown"})
	index := n.fake.writeJSON(t, "default", ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: []ocispec.Descriptor{
		attestation, absent, with(n.manifest(t, "default", elsewhere, "r"), elsewhere), with(n.manifest(t, "default", here, "h"), here),
	}})
	const name = "registry.example/index:1"
	n.fake.createImage(t, "default", name, index)
	n.unpack(t, "default", "statement") // unpacked or not, nobody runs it

	if _, err := n.one(t.Context(), "default", name, ""); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("nothing is unpacked: got %v", err)
	}
	n.unpack(t, "default", "r")
	there := platforms.Format(elsewhere)
	for platform, want := range map[string]string{"": there, there: there} {
		if image, err := n.one(t.Context(), "default", name, platform); err != nil || image.Platform != want || image.Target.Digest != index.Digest {
			t.Errorf("one is unpacked, for %q: got %+v, %v, want %s", platform, image, err, want)
		}
	}
	n.unpack(t, "default", "h")
	all, err := n.platforms(t.Context(), "default", name, "")
	if err != nil || len(all) != 2 || all[0].Platform != platforms.Format(here) || all[1].Platform != there {
		t.Errorf("got %+v, %v, want the platform of this machine before %s", all, err, there)
	}
	for platform, want := range map[string]string{
		"windows/amd64": "for windows/amd64 is not on this node",
		"linux/s390x":   "--platform linux/s390x",
	} {
		if _, err := n.one(t.Context(), "default", name, platform); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want it to contain %q", platform, err, want)
		}
	}
	if _, err := n.one(t.Context(), "default", name, "a/b/c/d"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `platform "a/b/c/d"`) {
		t.Errorf("a platform that is none: got %v", err)
	}
}

// Configs of old or strange builders do not say what the image is for, and containerd unpacks them all the same.
func TestImageOfNoPlatform(t *testing.T) {
	n := newImageNode(t)
	n.fake.createImage(t, "default", "registry.example/plain:1", n.manifest(t, "default", ocispec.Platform{}, "p"))
	n.unpack(t, "default", "p")
	if image, err := n.one(t.Context(), "default", "registry.example/plain:1", ""); err != nil || image.Platform != "linux" {
		t.Errorf("got %+v, %v", image, err)
	}
}

// listed are the images of a list, each with the number of layers that are there.
func listed(list []*nodeImage) (all []string) {
	for _, i := range list {
		all = append(all, fmt.Sprintf("%s %s %d/%d", i.Name, i.Platform, len(i.Snapshots), len(i.Layers)))
	}
	return all
}

func TestListOfImages(t *testing.T) {
	n := newImageNode(t)
	p := platforms.Format(here)
	shared := n.manifest(t, "default", here, "a", "b", "c")
	n.fake.createImage(t, "default", "registry.example/whole:1", n.manifest(t, "default", here, "a", "b"))
	n.fake.createImage(t, "default", "registry.example/partly:1", shared)
	n.fake.createImage(t, "default", digest.FromString("config").String(), shared)
	n.fake.createImage(t, "default", "registry.example/bare:1", n.manifest(t, "default", here, "bare"))
	n.fake.createImage(t, "default", "registry.example/scratch:1", n.manifest(t, "default", here))
	n.fake.createImage(t, "default", "registry.example/absent:1", ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("absent"), Size: 6})
	n.fake.createImage(t, "other", "registry.example/their:1", n.manifest(t, "other", here, "a", "b"))
	n.unpack(t, "default", "a", "b")
	n.unpack(t, "other", "a", "b")
	// A snapshot that is being written is none of an image.
	if _, err := n.backend.Prepare(t.Context(), "default/99/"+digest.FromString("bare").String(), ""); err != nil {
		t.Fatal(err)
	}
	want := []string{"registry.example/partly:1 " + p + " 2/3", "registry.example/whole:1 " + p + " 2/2"}
	list, err := n.list(t.Context(), "default")
	if got := listed(list); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if list, err := n.list(t.Context(), "third"); err != nil || len(list) > 0 {
		t.Errorf("a namespace without images: got %q, %v", listed(list), err)
	}
	if _, err := n.one(t.Context(), "default", "registry.example/partly:1", ""); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("an image of which two of three layers are unpacked: got %v", err)
	}
}

// What is broken is left out of a list and of an index, and said to whoever asks for it.
func TestBrokenImages(t *testing.T) {
	n := newImageNode(t)
	good := n.manifest(t, "default", here, "a")
	text := n.fake.write(t, "default", []byte("no manifest"), nil)
	text.MediaType, text.Platform = ocispec.MediaTypeImageManifest, &elsewhere
	short := n.fake.writeJSON(t, "default", ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Config: n.fake.writeJSON(t, "default", ocispec.MediaTypeImageConfig, ocispec.Image{Platform: here, RootFS: ocispec.RootFS{DiffIDs: []digest.Digest{digest.FromString("a")}}}),
	})
	n.fake.createImage(t, "default", "registry.example/good:1", good)
	n.fake.createImage(t, "default", "registry.example/half:1", n.fake.writeJSON(t, "default", ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: []ocispec.Descriptor{text, good}}))
	n.fake.createImage(t, "default", "registry.example/short:1", short)
	n.fake.createImage(t, "default", "registry.example/text:1", text)
	noIndex := n.fake.write(t, "default", []byte("no index"), nil)
	noIndex.MediaType = ocispec.MediaTypeImageIndex
	n.fake.createImage(t, "default", "registry.example/text-index:1", noIndex)
	n.unpack(t, "default", "a")
	p := platforms.Format(here)
	want := []string{"registry.example/good:1 " + p + " 1/1", "registry.example/half:1 " + p + " 1/1"}
	list, err := n.list(t.Context(), "default")
	if got := listed(list); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	for name, want := range map[string]string{
		"registry.example/text:1":  "manifest " + text.Digest.String(),
		"registry.example/short:1": "has 0 layers, and its config 1",
	} {
		if _, err := n.one(t.Context(), "default", name, ""); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want it to contain %q", name, err, want)
		}
	}
}

// gone is a snapshotter in which something happens while its snapshots are listed.
type gone struct {
	snapshots.Snapshotter
	happens func()
}

func (g gone) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	err := g.Snapshotter.Walk(ctx, fn, filters...)
	g.happens()
	return err
}

// A list without images is not the answer of a containerd that went away, or of a call that was given up.
func TestListThatCannotBeMade(t *testing.T) {
	for what, happens := range map[string]func(*imageNode, context.CancelFunc){
		"containerd stops": func(n *imageNode, _ context.CancelFunc) { n.fake.stop() },
		"the call ends":    func(_ *imageNode, cancel context.CancelFunc) { cancel() },
	} {
		n := newImageNode(t)
		n.fake.createImage(t, "default", "registry.example/a:1", n.manifest(t, "default", here, "a"))
		n.unpack(t, "default", "a")
		ctx, cancel := context.WithCancel(namespaces.WithNamespace(t.Context(), "default"))
		n.backend = gone{n.backend, func() { happens(n, cancel) }}
		if list, err := n.list(ctx, "default"); err == nil {
			t.Errorf("%s: got %q and no error", what, listed(list))
		}
		cancel()
	}
}
