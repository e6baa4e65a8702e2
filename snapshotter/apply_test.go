// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/treetest"
	"golang.org/x/sys/unix"
)

// openFunc is a ContentSource made of a function.
type openFunc func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)

func (f openFunc) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	return f(ctx, desc)
}

func (f openFunc) Kept(context.Context) (map[digest.Digest]bool, error) { return nil, nil }

func (f openFunc) ImagesOf(context.Context, digest.Digest) ([]string, error) { return nil, nil }

// newNodeWith is newNode with another source of blobs.
func newNodeWith(t *testing.T, source openFunc) *node {
	t.Helper()
	n := newNode(t, mounts.ModeAuto)
	n.close()
	n.cfg.Content = source
	n.open()
	return n
}

func TestApplyLeavesForeignMountsAloneWithoutReading(t *testing.T) {
	t.Parallel()
	n := newNodeWith(t, func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
		t.Error("content was asked for")
		return nil, errdefs.ErrNotFound
	})
	ctx := context.Background()
	_, err := n.Prepare(ctx, "ns/1/parent", "")
	must(t, err)
	must(t, n.Commit(ctx, "ns/2/parent", "ns/1/parent"))
	view, err := n.View(ctx, "ns/3/view", "ns/2/parent")
	must(t, err)
	empty, err := n.View(ctx, "ns/4/view", "")
	must(t, err)
	ours, err := n.Prepare(ctx, "ns/5/extract-x", "")
	must(t, err)
	upper := n.upper(n.id("ns/5/extract-x"))
	overlay := func(upper string) []mount.Mount {
		return []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/usr", "upperdir=" + upper, "workdir=/tmp"}}}
	}
	for name, m := range map[string][]mount.Mount{
		"none":                        nil,
		"a bind elsewhere":            {{Type: "bind", Source: t.TempDir(), Options: []string{"rw"}}},
		"an overlay elsewhere":        overlay(t.TempDir()),
		"an overlay without upper":    {{Type: "overlay", Options: []string{"lowerdir=/usr:/etc"}}},
		"a view":                      view,
		"a view of nothing":           empty,
		"two mounts":                  {ours[0], ours[0]},
		"another type":                {{Type: "erofs", Source: upper}},
		"a directory in the upper":    overlay(upper + "/sub"),
		"a name that is no ID":        overlay(filepath.Join(n.snapshotsDir(), "x", "fs")),
		"an ID in another spelling":   overlay(filepath.Join(n.snapshotsDir(), "01", "fs")),
		"a path that leads elsewhere": overlay(n.snapshotsDir() + "/../snapshots/1/fs"),
		"the work directory":          overlay(n.workdir(n.id("ns/5/extract-x"))),
	} {
		if _, err := n.Apply(ctx, n.blobs.add(sample(1)[0]), m); !errdefs.IsNotImplemented(err) {
			t.Errorf("Apply to %s: %v", name, err)
		}
	}
	if _, err := n.Apply(ctx, ocispec.Descriptor{MediaType: "application/x-unknown", Digest: digest.FromString("x")}, ours); !errdefs.IsNotImplemented(err) {
		t.Errorf("Apply of an unknown media type: %v", err)
	}
}

func TestApplyWithoutContentSourceIsNotImplemented(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	n.close()
	n.cfg.Content = nil
	n.open()
	m, err := n.Prepare(context.Background(), "ns/1/extract-x", "")
	must(t, err)
	if _, err := n.Apply(context.Background(), ocispec.Descriptor{MediaType: plainType}, m); !errdefs.IsNotImplemented(err) {
		t.Errorf("Apply: %v", err)
	}
}

func TestASnapshotTakesOneLayer(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	m, err := n.Prepare(ctx, "ns/1/extract-x", "")
	must(t, err)
	_, err = n.Apply(ctx, n.blobs.add(sample(1)[0]), m)
	must(t, err)
	before := n.pack.Stats()
	if _, err := n.Apply(ctx, n.blobs.add(sample(2)[0]), m); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a second Apply: %v", err)
	}
	if st := n.pack.Stats(); st != before {
		t.Errorf("a refused Apply changed the pack from %+v to %+v", before, st)
	}

	root, _ := n.mounted("ns/1/extract-x", m)
	must(t, os.WriteFile(root+"/written", nil, 0o600))
	if err := n.Commit(ctx, "ns/2/layer", "ns/1/extract-x"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "written") {
		t.Errorf("Commit of a layer that was applied and then written to: %v", err)
	}
	must(t, os.Remove(root+"/written"))
	must(t, n.Commit(ctx, "ns/2/layer", "ns/1/extract-x"))

	if _, err := n.Apply(ctx, n.blobs.add(sample(1)[0]), m); err == nil || errdefs.IsNotImplemented(err) {
		t.Errorf("Apply to a committed snapshot: %v", err)
	}
}

func TestABlobThatIsNotThereIsNotFound(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	m, err := n.Prepare(ctx, "ns/1/extract-x", "")
	must(t, err)
	desc := ocispec.Descriptor{MediaType: plainType, Digest: digest.FromString("nothing")}
	if _, err := n.Apply(ctx, desc, m); !errdefs.IsNotFound(err) {
		t.Errorf("Apply: %v", err)
	}
}

func compress(t testing.TB, data []byte, c compression.Compression) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := compression.CompressStream(&b, c)
	must(t, err)
	_, err = w.Write(data)
	must(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

func TestALayerThatIsCutOrGarbageLeavesNothingAndCanBeTriedAgain(t *testing.T) {
	t.Parallel()
	plain := treetest.Layer(treetest.File("a", noise(200_000, 1)), treetest.File("b", noise(1<<20+200_000, 2)), treetest.File("c", noise(90_000, 3)))
	gz, zst := compress(t, plain, compression.Gzip), compress(t, plain, compression.Zstd)
	flipped := func(b []byte) []byte {
		b = bytes.Clone(b)
		b[len(b)/2] ^= 0x55
		return b
	}
	for name, bad := range map[string]struct {
		data      []byte
		mediaType string
	}{
		"gzip cut in the middle":        {gz[:len(gz)/2], gzipType},
		"gzip without its trailer":      {gz[:len(gz)-8], gzipType},
		"gzip with a flipped bit":       {flipped(gz), gzipType},
		"zstd cut in the middle":        {zst[:len(zst)/2], zstdType},
		"zstd without its last bytes":   {zst[:len(zst)-5], zstdType},
		"zstd with a flipped bit":       {flipped(zst), zstdType},
		"garbage":                       {[]byte(noise(100_000, 9)), plainType},
		"garbage in gzip":               {compress(t, []byte(noise(100_000, 9)), compression.Gzip), gzipType},
		"tar cut in a file":             {plain[:600_000], plainType},
		"tar cut in a small file":       {treetest.Layer(treetest.File("a", strings.Repeat("x", 800)))[:900], plainType},
		"tar cut in a header":           {plain[:300], plainType},
		"tar with a damaged header":     {append(bytes.Clone(plain[:200_000/512*512+1024]), noise(4096, 5)...), plainType},
		"tar of a type that is unknown": {bytes.Replace(treetest.Layer(treetest.File("f", "")), []byte("ustar"), []byte("ustax"), 1), plainType},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, mounts.ModeAuto)
			ctx := context.Background()
			m, err := n.Prepare(ctx, "ns/1/extract-x", "")
			must(t, err)
			desc := n.blobs.add(bad.data)
			desc.MediaType = bad.mediaType
			if _, err := n.Apply(ctx, desc, m); err == nil {
				t.Error("Apply took it")
			} else if !strings.Contains(err.Error(), desc.Digest.String()) {
				t.Errorf("the error does not name the blob: %v", err)
			}
			id := n.id("ns/1/extract-x")
			if st := n.pack.Stats(); st.Contents != 0 {
				t.Errorf("the pack holds %+v", st)
			}
			if b := blocks(t, n.pack.Path()); b != 0 {
				t.Errorf("the pack takes up %d blocks", b)
			}
			if left, _ := os.ReadDir(n.layer(id)); len(left) > 0 {
				t.Errorf("left of the layer: %v", left)
			}
			if left, err := os.ReadDir(n.upper(id)); err != nil || len(left) > 0 {
				t.Errorf("left in the upper directory: %v, %v", left, err)
			}
			_, err = n.Apply(ctx, n.blobs.add(plain), m)
			must(t, err)
			must(t, n.Commit(ctx, "ns/2/layer", "ns/1/extract-x"))
			root, _ := n.view("ns/2/layer")
			treetest.Check(t, [][]byte{plain}, root, treetest.Options{})
		})
	}
}

func TestDiffIDIsThatOfTheWholeStream(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	layer := append(treetest.Layer(treetest.File("f", noise(30_000, 1))), make([]byte, 12<<20)...) // more than is read ahead
	layer = append(layer, "behind the end"...)
	for i, c := range []struct {
		mediaType string
		how       compression.Compression
	}{
		{plainType, compression.Uncompressed}, {gzipType, compression.Gzip}, {zstdType, compression.Zstd},
		{images.MediaTypeDockerSchema2Layer, compression.Uncompressed}, {images.MediaTypeDockerSchema2LayerGzip, compression.Gzip},
		{images.MediaTypeDockerSchema2LayerForeignGzip, compression.Gzip}, {images.MediaTypeDockerSchema2LayerZstd, compression.Zstd},
		//lint:ignore SA1019 images that name it exist
		{ocispec.MediaTypeImageLayerNonDistributableGzip, compression.Gzip},
	} {
		data := layer
		if c.how != compression.Uncompressed {
			data = compress(t, layer, c.how)
		}
		desc := n.blobs.add(data)
		desc.MediaType = c.mediaType
		key := fmt.Sprintf("ns/%d/extract-x", i)
		m, err := n.Prepare(ctx, key, "")
		must(t, err)
		got, err := n.Apply(ctx, desc, m)
		if err != nil {
			t.Errorf("%s: %v", c.mediaType, err)
			continue
		}
		want := ocispec.Descriptor{MediaType: plainType, Digest: digest.FromBytes(layer), Size: int64(len(layer))}
		if got.Digest != want.Digest || got.Size != want.Size || got.MediaType != want.MediaType {
			t.Errorf("%s: %+v, want %+v", c.mediaType, got, want)
		}
	}
}

// gate is a blob whose reading stops after half of it until it is opened.
type gate struct {
	io.Reader
	reached, open chan struct{}
}

func newGate(data []byte) *gate {
	g := &gate{reached: make(chan struct{}), open: make(chan struct{})}
	g.Reader = io.MultiReader(bytes.NewReader(data[:len(data)/2]), g.wait(), bytes.NewReader(data[len(data)/2:]))
	return g
}

type waiter struct{ g *gate }

func (w waiter) Read([]byte) (int, error) {
	close(w.g.reached)
	<-w.g.open
	return 0, io.EOF
}

func (g *gate) wait() io.Reader { return waiter{g} }
func (g *gate) Close() error    { return nil }

func TestASnapshotThatIsRemovedWhileApplyRunsLeavesNothing(t *testing.T) {
	t.Parallel()
	layer := treetest.Layer(treetest.File("a", noise(6<<20, 1)), treetest.File("b", noise(6<<20, 2)))
	for _, when := range []string{"while the blob is opened", "while the blob is read"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			g := newGate(layer)
			n := newNodeWith(t, func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
				if when == "while the blob is opened" {
					close(g.reached)
					<-g.open
					return io.NopCloser(bytes.NewReader(layer)), nil
				}
				return g, nil
			})
			ctx := context.Background()
			m, err := n.Prepare(ctx, "ns/1/extract-x", "")
			must(t, err)
			done := make(chan error)
			go func() {
				_, err := n.Apply(ctx, n.blobs.add(layer), m)
				done <- err
			}()
			<-g.reached
			must(t, n.Remove(ctx, "ns/1/extract-x"))
			waitFor(t, "the collection that the removal asked for", func() error {
				if len(n.garbage) > 0 {
					return errors.New("not begun")
				}
				return nil
			})
			must(t, n.Cleanup(ctx))
			must(t, n.Cleanup(ctx))
			close(g.open)
			if err := <-done; !errdefs.IsNotFound(err) {
				t.Errorf("Apply to a snapshot that was removed meanwhile: %v", err)
			}
			n.expectNothingLeft() // no further removal and no Cleanup is needed
		})
	}
}

func TestACallerThatGivesUpEndsApply(t *testing.T) {
	t.Parallel()
	layer := sample(1)[1]
	ctx, cancel := context.WithCancel(context.Background())
	n := newNodeWith(t, func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
		cancel()
		return io.NopCloser(bytes.NewReader(layer)), nil
	})
	m, err := n.Prepare(context.Background(), "ns/1/extract-x", "")
	must(t, err)
	if _, err := n.Apply(ctx, n.blobs.add(layer), m); !errors.Is(err, context.Canceled) {
		t.Errorf("Apply: %v", err)
	}
	must(t, n.Remove(context.Background(), "ns/1/extract-x"))
	n.expectNothingLeft()
}

func TestApplyToASnapshotThatWasPreparedForUseWritesFiles(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	img := crashImage(0)
	for _, parent := range []image{nil, img[:2]} {
		key := fmt.Sprintf("ns/9/plain key on %d layers", len(parent))
		top := ""
		if parent != nil {
			top = n.pull("ns/1", parent)
		}
		m, err := n.Prepare(ctx, key, top)
		must(t, err)
		desc := n.blobs.add(img[2])
		applied, err := n.Apply(ctx, desc, m)
		must(t, err)
		if applied.Digest != desc.Digest {
			t.Errorf("diffID %s, want %s", applied.Digest, desc.Digest)
		}
		layers := append(parent[:len(parent):len(parent)], img[2])
		root, undo := n.mounted(key, m)
		treetest.Check(t, layers, root, treetest.Options{})
		name := key + " committed"
		must(t, n.Commit(ctx, name, key))
		undo()
		root, _ = n.view(name)
		treetest.Check(t, layers, root, treetest.Options{})
	}
}

// What an unpack gets must suit every client: see the design.
func TestMountsForAnUnpackAreOneWritableOverlay(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	top := n.pull("ns/1", image{treetest.Layer(
		treetest.Dir("private", treetest.Mode(0o2710), treetest.Owner(5, 6)), treetest.File("private/file", "x"), treetest.Symlink("link", "private"))})
	for _, parent := range []string{"", top} {
		m, err := n.Prepare(ctx, "ns/2/extract-on "+parent, parent)
		must(t, err)
		if len(m) != 1 || m[0].Type != "overlay" || m[0].ReadOnly() {
			t.Fatalf("mounts: %v", m)
		}
		dirs := map[string]string{}
		for _, o := range m[0].Options {
			if name, dir, ok := strings.Cut(o, "="); ok && strings.HasSuffix(name, "dir") && name != "redirect_dir" {
				if _, twice := dirs[name]; twice || strings.ContainsAny(dir, ":,") || !filepath.IsAbs(dir) {
					t.Errorf("option %q", o)
				}
				dirs[name] = dir
			}
			if o == "ro" || o == "volatile" {
				t.Errorf("option %q", o)
			}
		}
		if len(dirs) != 3 || dirs["upperdir"] == "" || dirs["workdir"] == "" || dirs["lowerdir"] == "" {
			t.Errorf("directories: %v", dirs)
		}
		if parent != "" {
			var st unix.Stat_t
			must(t, unix.Lstat(dirs["lowerdir"]+"/private", &st))
			if st.Mode != unix.S_IFDIR|0o2710 || st.Uid != 5 || st.Gid != 6 {
				t.Errorf("the lower directory shows private as mode %o of %d:%d", st.Mode, st.Uid, st.Gid)
			}
		}
		root, undo := n.mounted("ns/2/extract-on "+parent, m)
		must(t, os.WriteFile(root+"/written", nil, 0o600))
		undo()
	}
}

func TestAHardlinkToNothingIsReportedAndRemovable(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	good := n.pull("ns/1", sample(1))
	want := n.tree(good)
	bad := n.pull("ns/2", image{treetest.Layer(treetest.File("f", "x")), treetest.Layer(treetest.Hardlink("name", "missing/file"))})
	for what, err := range map[string]error{
		"View":                  second(n.View(ctx, "ns/3/view", bad)),
		"Prepare":               second(n.Prepare(ctx, "ns/3/container", bad)),
		"Prepare for an unpack": second(n.Prepare(ctx, "ns/3/extract-next", bad)),
		"Flatten":               n.Flatten(ctx, bad),
	} {
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(fmt.Sprint(err), `"missing/file"`) || !strings.Contains(fmt.Sprint(err), "layer 2 of 2") {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, info := range n.all() {
		if strings.HasPrefix(info.Name, "ns/3/") {
			t.Errorf("%s is there although it failed", info.Name)
		}
	}
	must(t, n.Cleanup(ctx))
	n.shows(good, want)
	n.removeAll()
	must(t, n.Cleanup(ctx))
	n.expectNothingLeft()
}

func second[T any](_ T, err error) error { return err }
