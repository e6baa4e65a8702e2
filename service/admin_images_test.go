// SPDX-License-Identifier: Apache-2.0

package service

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
	"github.com/squash-snapshotter/squash/internal/flatten"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/treetest"
	"github.com/squash-snapshotter/squash/snapshotter"
)

// explainingBackend tells what the test says of its snapshots.
type explainingBackend struct {
	*fakeBackend
	sizes  func(name string) snapshotter.ImageSizes
	tree   *flatten.Tree
	places snapshotter.ImagePlaces
}

func (b explainingBackend) Sizes(_ context.Context, names []string) (all []snapshotter.ImageSizes, err error) {
	for _, name := range names {
		if b.sizes == nil {
			all = append(all, snapshotter.ImageSizes{Flat: true})
			continue
		}
		all = append(all, b.sizes(name))
	}
	return all, nil
}

func (b explainingBackend) Tree(context.Context, string) (*flatten.Tree, error) { return b.tree, nil }

func (b explainingBackend) Places(context.Context, string) (snapshotter.ImagePlaces, error) {
	return b.places, nil
}

// plainPlaces stores every content by itself, in as many bytes as it has.
type plainPlaces struct{ sizes map[layer.Digest]int64 }

func (p plainPlaces) Place(d layer.Digest) (uint32, uint64, bool, error) {
	return uint32(d[0]) | uint32(d[1])<<8, uint64(p.sizes[d]), false, nil
}

func (plainPlaces) ImageBytes() uint64 { return 4096 }
func (plainPlaces) Close()             {}

// serve serves the node's images, of which backend tells, until the test ends or stop is called, which returns a function
// that waits for the end.
func (n *imageNode) serve(t *testing.T, backend explainingBackend) (client adminapi.AdminClient, stop func() (wait func())) {
	t.Helper()
	backend.fakeBackend = &fakeBackend{Snapshotter: n.backend}
	path := filepath.Join(t.TempDir(), "s.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	n.fake.setPlugins(snapshotPlugin("squash", path), snapshotPlugin("other", "/run/other.sock"))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := serve(ctx, listener, backend, n.fake.dial(t), self{}, Options{}, patient); err != nil {
			t.Error(err)
		}
	}()
	stop = func() (wait func()) {
		cancel()
		return func() { <-ended }
	}
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close() // calls end with it
		stop()()
	})
	return adminapi.NewAdminClient(conn), stop
}

func (n *imageNode) createContainer(t *testing.T, namespace, id, image, snapshotter string) {
	t.Helper()
	spec, err := anypb.New(&emptypb.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = metadata.NewContainerStore(n.fake.db).Create(namespaces.WithNamespace(t.Context(), namespace), containers.Container{
		ID: id, Image: image, Snapshotter: snapshotter, Runtime: containers.RuntimeInfo{Name: "none"}, Spec: spec,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// mergedTree merges layers.
func mergedTree(t *testing.T, layers ...[]treetest.Step) *flatten.Tree {
	t.Helper()
	var open []flatten.Layer
	for _, steps := range layers {
		var b bytes.Buffer
		toc, err := layer.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		if err := layer.FromTar(t.Context(), bytes.NewReader(treetest.Layer(steps...)), toc, hashing{}); err != nil {
			t.Fatal(err)
		}
		if _, err := toc.Finish(); err != nil {
			t.Fatal(err)
		}
		open = append(open, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	}
	tree, err := flatten.Merge(t.Context(), open)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// hashing takes contents and keeps none.
type hashing struct{}

func (hashing) Put(r io.Reader, _ int64) (layer.Digest, error) {
	h := sha256.New()
	_, err := io.Copy(h, r)
	return layer.Digest(h.Sum(nil)), err
}

func TestImagesAreListed(t *testing.T) {
	n := newImageNode(t)
	for name, layers := range map[string][]string{
		"flat": {"a", "b"}, "not-flat": {"a"}, "partly": {"a", "b", "c"}, "damaged": {"d"}, "removed": {"r"},
	} {
		n.fake.createImage(t, "default", "registry.example/"+name+":1", n.manifest(t, "default", here, layers...))
	}
	n.fake.createImage(t, "other", "registry.example/their:1", n.manifest(t, "other", here, "a"))
	for _, chain := range [][]string{{"a", "b"}, {"d"}, {"r"}} {
		n.unpack(t, "default", chain...)
	}
	n.unpack(t, "other", "a")
	n.createContainer(t, "default", "c1", "registry.example/flat:1", "squash")
	n.createContainer(t, "default", "c2", "registry.example/flat:1", "squash")
	n.createContainer(t, "default", "c3", "registry.example/flat:1", "other")
	n.createContainer(t, "default", "c4", "registry.example/not-flat:1", "other")
	n.createContainer(t, "other", "c1", "registry.example/flat:1", "squash")
	client, _ := n.serve(t, explainingBackend{sizes: func(name string) snapshotter.ImageSizes {
		switch number, _, _ := strings.Cut(strings.TrimPrefix(name, "default/"), "/"); number {
		case "1": // a
			return snapshotter.ImageSizes{LayerBytes: 100}
		case "2": // a and b
			return snapshotter.ImageSizes{LayerBytes: 300, Flat: true, Files: 7, Own: 50, Shared: 20}
		case "3":
			return snapshotter.ImageSizes{Err: fmt.Errorf("sizes: %w", layer.ErrDamaged)}
		}
		return snapshotter.ImageSizes{Err: fmt.Errorf("sizes: %w", errdefs.ErrNotFound)}
	}})
	reply, err := client.ListImages(t.Context(), &adminapi.ListImagesRequest{Namespace: "default"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range reply.Images {
		got = append(got, fmt.Sprintf("%s %d/%d flat=%v containers=%d files=%d bytes=%d own=%d shared=%d %s",
			i.Name, i.Unpacked, i.Layers, i.Flat, i.Containers, i.Files, i.LayerBytes, i.OwnBytes, i.SharedBytes, i.Error))
	}
	// What a partly unpacked image will take up is not known, though the chain of its layers so far has a flat image.
	want := []string{
		"registry.example/damaged:1 1/1 flat=false containers=0 files=0 bytes=0 own=0 shared=0 sizes: TOC is damaged: data loss",
		"registry.example/flat:1 2/2 flat=true containers=2 files=7 bytes=300 own=50 shared=20 ",
		"registry.example/not-flat:1 1/1 flat=false containers=0 files=0 bytes=100 own=0 shared=0 ",
		"registry.example/partly:1 2/3 flat=false containers=0 files=0 bytes=300 own=0 shared=0 ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// Who asks for the damaged one hears why.
	for name, want := range map[string]codes.Code{"damaged": codes.FailedPrecondition, "removed": codes.NotFound} {
		_, _, err := blamed(t, client, &adminapi.BlameRequest{Image: &adminapi.ImageRef{Namespace: "default", Name: "registry.example/" + name + ":1"}, All: true})
		if status.Code(err) != want {
			t.Errorf("blame of the %s one: got %v, want %v", name, err, want)
		}
	}
}

// blamed returns what Blame sends.
func blamed(t *testing.T, client adminapi.AdminClient, req *adminapi.BlameRequest) (layers *adminapi.BlameLayers, paths []*adminapi.PathOrigin, err error) {
	t.Helper()
	stream, err := client.Blame(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	for {
		reply, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return layers, paths, nil
		case err != nil:
			return layers, paths, err
		case reply.GetLayers() != nil && len(paths) == 0 && layers == nil:
			layers = reply.GetLayers()
		case reply.GetPath() != nil && layers != nil:
			paths = append(paths, reply.GetPath())
		default:
			t.Fatalf("out of order: %v", reply)
		}
	}
}

// origins writes them down: path, who asked for it, and versions as layer:fate@by.
func origins(paths []*adminapi.PathOrigin) (all []string) {
	for _, p := range paths {
		text := string(p.Path) + " ?" + string(p.Asked)
		for _, v := range p.Versions {
			text += fmt.Sprintf(" %d:%s", v.Layer, v.Fate)
			if v.Fate == "overwritten" || v.Fate == "deleted" {
				text += fmt.Sprintf("@%d", v.By)
			}
		}
		all = append(all, text)
	}
	return all
}

func TestPathsAreBlamed(t *testing.T) {
	n := newImageNode(t)
	const name = "registry.example/app:1"
	n.fake.createImage(t, "default", name, n.manifest(t, "default", here, "a", "b"))
	n.unpack(t, "default", "a", "b")
	big := strings.Repeat("x", 2000)
	client, _ := n.serve(t, explainingBackend{tree: mergedTree(t,
		[]treetest.Step{treetest.Dir("usr"), treetest.File("usr/file", "1"), treetest.File("usr/gone\xff", "2"), treetest.Symlink("lib", "usr")},
		[]treetest.Step{treetest.File("usr/file", big, treetest.Mode(0o4711), treetest.Owner(3, 4)), treetest.Hardlink("usr/same", "usr/file", treetest.Mode(0o4711), treetest.Owner(3, 4)), treetest.Whiteout("usr/gone\xff")},
	)})
	image := &adminapi.ImageRef{Namespace: "default", Name: name}
	layers, paths, err := blamed(t, client, &adminapi.BlameRequest{Image: image, Paths: [][]byte{
		[]byte("lib/gone\xff"), []byte("/no"), []byte("/lib/file"), []byte("lib"), []byte("/"), []byte("lib/file")}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"/usr/gone\xff ?lib/gone\xff 0:deleted@1", "/no ?/no", "/usr/file ?/lib/file 1:visible 0:overwritten@1", "/lib ?lib 0:visible",
		"/ ?/ 1:visible 0:merged", "/usr/file ?lib/file 1:visible 0:overwritten@1",
	}
	if got := origins(paths); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if len(layers.Layers) != 2 || layers.Image.Name != name {
		t.Errorf("got %v", layers)
	}
	v := paths[2].Versions[0]
	if v.Type != "file" || v.Mode != 0o4711 || v.Uid != 3 || v.Gid != 4 || v.Size != 2000 || v.Digest != fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(big))) {
		t.Errorf("got %v", v)
	}
	if v := paths[2].Versions[1]; v.Digest != fmt.Sprintf("sha256:%x", sha256.Sum256([]byte("1"))) {
		t.Errorf("a small file: got %v", v)
	}

	_, paths, err = blamed(t, client, &adminapi.BlameRequest{Image: image, All: true})
	want = []string{"/ ? 1:visible 0:merged", "/lib ? 0:visible", "/usr ? 1:visible 0:merged", "/usr/file ? 1:visible 0:overwritten@1", "/usr/gone\xff ? 0:deleted@1", "/usr/same ? 1:visible"}
	if got := origins(paths); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if same := paths[5].Versions[0].SameAs; string(same) != "/usr/file" {
		t.Errorf("got %q", same)
	}
	for _, req := range []*adminapi.BlameRequest{{Image: image}, {Image: image, All: true, Paths: [][]byte{[]byte("/")}}} {
		if _, _, err := blamed(t, client, req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: got %v", req, err)
		}
	}
}

func TestBlameEndsWithTheDaemon(t *testing.T) {
	n := newImageNode(t)
	n.fake.createImage(t, "default", "registry.example/app:1", n.manifest(t, "default", here, "a"))
	n.unpack(t, "default", "a")
	var steps []treetest.Step
	for i := range 20_000 { // more than is on its way to a client that does not read
		steps = append(steps, treetest.File(fmt.Sprintf("%d-%s", i, strings.Repeat("n", 200)), ""))
	}
	client, stop := n.serve(t, explainingBackend{tree: mergedTree(t, steps)})
	stream, err := client.Blame(t.Context(), &adminapi.BlameRequest{Image: &adminapi.ImageRef{Namespace: "default", Name: "registry.example/app:1"}, All: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	wait := stop()
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "the daemon is stopping") {
		t.Errorf("got %v, want Unavailable because the daemon is stopping", err)
	}
	wait()
}

func TestImageIsReported(t *testing.T) {
	n := newImageNode(t)
	created := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))
	n.history = []ocispec.History{{CreatedBy: "ADD base", Created: &created}, {CreatedBy: "ENV A=1", EmptyLayer: true}, {CreatedBy: "RUN \xff", Comment: "builder"}}
	n.fake.createImage(t, "default", "registry.example/app:1", n.manifest(t, "default", here, "a", "b"))
	n.fake.createImage(t, "default", "registry.example/short:1", n.manifest(t, "default", here, "a"))
	n.unpack(t, "default", "a", "b")
	old, recent := strings.Repeat("o", 2<<20), strings.Repeat("n", 3<<20)
	tree := mergedTree(t,
		[]treetest.Step{treetest.File("file", old), treetest.File("copy", recent)},
		[]treetest.Step{treetest.File("file", recent)})
	sizes := map[layer.Digest]int64{}
	tree.Contents(func(d layer.Digest, size int64) { sizes[d] = size })
	client, _ := n.serve(t, explainingBackend{tree: tree, places: plainPlaces{sizes}})
	report := func(name string, rows uint32) (*adminapi.ReportResponse, error) {
		return client.Report(t.Context(), &adminapi.ReportRequest{Image: &adminapi.ImageRef{Namespace: "default", Name: name}, Rows: rows})
	}
	r, err := report("registry.example/app:1", 1)
	if err != nil {
		t.Fatal(err)
	}
	if r.LayerBytes != 8<<20 || r.VisibleBytes != 6<<20 || r.DistinctBytes != 3<<20 || r.OwnBytes != 3<<20+4096 || r.Efficiency != 3./8 {
		t.Errorf("got %v", r)
	}
	var waste []string
	for _, w := range r.Waste {
		waste = append(waste, fmt.Sprint(w.Cause, w.Bytes, "/", w.Files))
	}
	if want := []string{"overwritten2097152/1", "deleted0/0", "duplicate3145728/1", "shared0/0", "compression-4096/0"}; !slices.Equal(waste, want) {
		t.Errorf("got %q, want %q", waste, want)
	}
	if len(r.DuplicatePaths) != 1 || string(r.DuplicatePaths[0].Path) != "/file" || len(r.DuplicateContents) != 1 || len(r.DuplicateContents[0].Paths) != 2 {
		t.Errorf("got %v and %v", r.DuplicatePaths, r.DuplicateContents)
	}
	l := r.Layers[0].Layer
	if l.CreatedBy != "ADD base" || l.Created != "2026-01-02T02:04:05Z" || l.Blob == "" || l.DiffId == "" || l.BlobBytes != 1 {
		t.Errorf("got %v", l)
	}
	if l := r.Layers[1].Layer; l.CreatedBy != "RUN \uFFFD" || l.Comment != "builder" || l.Created != "" {
		t.Errorf("got %v", l)
	}
	if r.Layers[0].ShadowedBytes != 2<<20 || r.Layers[1].DuplicateBytes != 3<<20 || r.Tree.Bytes != 6<<20 || r.Image.Name != "registry.example/app:1" {
		t.Errorf("got %v", r)
	}
	// A history of other layers than the image has says nothing about any. The backend's tree is of two.
	if _, err := report("registry.example/short:1", 1); err == nil {
		t.Error("no error where the tree has more layers than the image")
	}
	if layers, _, err := blamed(t, client, &adminapi.BlameRequest{Image: &adminapi.ImageRef{Namespace: "default", Name: "registry.example/short:1"}, All: true}); err != nil || layers.Layers[0].CreatedBy != "" {
		t.Errorf("got %v, %v", layers, err)
	}
	if _, err := report("registry.example/app:1", mostRows+1); status.Code(err) != codes.InvalidArgument {
		t.Errorf("too many rows: got %v", err)
	}
}

func TestBackendThatCannotExplain(t *testing.T) {
	client, _ := serveBackend(t, &fakeBackend{})
	if _, err := client.ListImages(t.Context(), &adminapi.ListImagesRequest{Namespace: "default"}); status.Code(err) != codes.Unimplemented {
		t.Errorf("list: got %v", err)
	}
	if _, err := client.Report(t.Context(), &adminapi.ReportRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("report: got %v", err)
	}
	if _, _, err := blamed(t, client, &adminapi.BlameRequest{All: true}); status.Code(err) != codes.Unimplemented {
		t.Errorf("blame: got %v", err)
	}
}
