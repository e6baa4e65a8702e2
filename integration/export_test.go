// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"golang.org/x/sys/unix"

	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/node"
)

// exportResult is what export prints for programs.
type exportResult struct {
	Digest    string
	Platforms []struct {
		Platform, Manifest string
		DiffID             string `json:"diff_id"`
	}
	LeftOut []string `json:"left_out"`
}

func export(t *testing.T, n *node.Node, args ...string) exportResult {
	t.Helper()
	out, _ := squashctl(t, n, 0, append([]string{"--format", "json", "export"}, args...)...)
	var r exportResult
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	return r
}

// The exported image, in whatever form, shows what the original one does; overlayfs judges.
func TestExportedImageShowsTheSame(t *testing.T) {
	n := startNode(t, squash)
	other := startNode(t, overlayfs)
	img := smallImage(t, images.OCI, images.Gzip)
	ref := push(t, img)
	pull(t, n, squash, ref)
	dir := t.TempDir()

	archive := filepath.Join(dir, "oci.tar")
	export(t, n, "-o", archive, ref)
	ctr(t, other, "image", "import", "--snapshotter", node.Overlayfs, archive)
	checkContainer(t, other, overlayfs, ref+"-squashed", "oci", img)
	ctr(t, other, "image", "rm", "--sync", ref+"-squashed")
	// Where the original is, its name stays its own.
	before := ctr(t, n, "image", "ls", "name=="+ref)
	ctr(t, n, "image", "import", "--snapshotter", node.Squash, archive)
	if after := ctr(t, n, "image", "ls", "name=="+ref); after != before {
		t.Errorf("the image became\n%s\nand was\n%s", after, before)
	}

	archive = filepath.Join(dir, "docker.tar")
	export(t, n, "--type", "docker-archive", "--compression", "none", "-o", archive, ref)
	loaded, err := tarball.ImageFromPath(archive, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(loaded); err != nil {
		t.Error(err)
	}
	ctr(t, other, "image", "import", "--snapshotter", node.Overlayfs, archive)
	checkContainer(t, other, overlayfs, ref+"-squashed", "docker", img)

	folder := filepath.Join(dir, "layout")
	r := export(t, n, "--type", "oci-dir", "-o", folder, ref)
	index, err := layout.ImageIndexFromPath(folder)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	h, err := v1.NewHash(r.Digest)
	if err != nil {
		t.Fatal(err)
	}
	one, err := index.Image(h)
	if err != nil {
		t.Fatal(err)
	}
	keepsTheConfig(t, img, one)

	flat := ref + "-flat"
	export(t, n, "--store", flat, ref)
	export(t, n, "--store", flat, ref) // the same again is no error
	export(t, n, "--compression", "zstd", "--store", ref+"-zstd", ref)
	checkContainer(t, n, overlayfs, ref+"-zstd", "zstd", img)
	checkContainer(t, n, squash, flat, "stored", img)
	checkContainer(t, n, overlayfs, flat, "stored-overlayfs", img)
	ctr(t, n, "leases", "create", "--id", "collect")
	ctr(t, n, "leases", "delete", "--sync", "collect") // collects what nothing refers to
	pushed := ref + "-pushed"
	r = export(t, n, "--push", pushed, ref)
	pull(t, other, overlayfs, pushed)
	checkContainer(t, other, overlayfs, pushed, "pushed", img)
	parsed, err := name.ParseReference(pushed, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	remoteImage, err := remote.Image(parsed)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(remoteImage); err != nil {
		t.Error(err)
	}
	if got, err := remoteImage.Digest(); err != nil || got.String() != r.Digest {
		t.Errorf("pushed %s (%v), want %s", got, err, r.Digest)
	}
	// The original image is what it was.
	checkContainer(t, n, squash, ref, "original", img)
	if out, _ := squashctl(t, n, 0, "verify", ref); !strings.Contains(out, "equal") {
		t.Errorf("got %q", out)
	}
	noLeftovers(t, dir, "docker.tar", "layout", "oci.tar")
	if out := ctr(t, n, "leases", "ls"); strings.Contains(out, "squash-export") {
		t.Errorf("a lease is left:\n%s", out)
	}
}

func noLeftovers(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if strings.Join(names, " ") != strings.Join(want, " ") {
		t.Errorf("%q is left, want %q", names, want)
	}
}

// keepsTheConfig compares all but layers and history.
func keepsTheConfig(t *testing.T, original, exported v1.Image) {
	t.Helper()
	was, err := original.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	is, err := exported.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if len(is.RootFS.DiffIDs) != 1 || len(is.History) != len(was.History)+1 || is.History[len(is.History)-1].EmptyLayer {
		t.Errorf("got %d layers and history %+v", len(is.RootFS.DiffIDs), is.History)
	}
	was, is = was.DeepCopy(), is.DeepCopy()
	was.History, is.History, was.RootFS, is.RootFS = nil, nil, v1.RootFS{}, v1.RootFS{}
	a, errA := json.Marshal(was)
	b, errB := json.Marshal(is)
	if errA != nil || errB != nil || string(a) != string(b) {
		t.Errorf("config: got\n%s\nwant\n%s", b, a)
	}
}

// The same image gives the same bytes, whatever the node is like and did before.
func TestExportIsReproducible(t *testing.T) {
	img := told(t)
	ref := push(t, img)
	base, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	first := startNode(t, squash)
	pull(t, first, squash, ref)
	dir := t.TempDir()
	for _, compression := range []string{"gzip", "zstd", "none"} {
		want := export(t, first, "--compression", compression, "-o", filepath.Join(dir, "first-"+compression), ref)
		if compression == "gzip" {
			if err := first.StopDaemon(); err != nil {
				t.Fatal(err)
			}
			if err := first.StartDaemon(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		again := export(t, first, "--compression", compression, "-o", filepath.Join(dir, "again-"+compression), ref)
		if again.Digest != want.Digest {
			t.Errorf("%s: %s, then %s", compression, want.Digest, again.Digest)
		}
		a, errA := os.ReadFile(filepath.Join(dir, "first-"+compression))
		b, errB := os.ReadFile(filepath.Join(dir, "again-"+compression))
		if errA != nil || errB != nil || string(a) != string(b) {
			t.Errorf("%s: the archives differ: %v, %v", compression, errA, errB)
		}
	}
	want := export(t, first, "-o", filepath.Join(dir, "last"), ref)

	// Contents lie elsewhere, and in another encoding; some of them were freed with another image.
	second, err := node.Start(t.Context(), node.Options{Tools: shared.bin.Tools, Daemon: shared.bin.Daemon, DaemonConfig: "compression = \"none\"\n"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := second.Close(); err != nil {
			t.Error(err)
		}
	})
	pull(t, second, squash, push(t, image(t, images.OCI, base[2], base[0])))
	pull(t, second, squash, ref)
	if got := export(t, second, "-o", filepath.Join(dir, "second"), ref); got.Digest != want.Digest {
		t.Errorf("got %s on another node, want %s", got.Digest, want.Digest)
	}
}

func TestExportOfSeveralPlatforms(t *testing.T) {
	n := startNode(t, squash)
	index := mutate.IndexMediaType(empty.Index, "application/vnd.oci.image.index.v1+json")
	for _, p := range []v1.Platform{{OS: "linux", Architecture: "riscv64"}, {OS: "linux", Architecture: runtime.GOARCH}, {OS: "linux", Architecture: "s390x"}, {OS: "unknown", Architecture: "unknown"}} {
		img := image(t, images.OCI, layer(t, func(w *images.LayerWriter) error {
			return first(w.Dir("etc", 0o755), w.File("etc/arch", 0o644, []byte(p.Architecture)))
		}), layer(t, func(w *images.LayerWriter) error { return w.File("etc/second", 0o644, []byte("2")) }))
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		config = config.DeepCopy()
		config.Architecture = p.Architecture
		if img, err = mutate.ConfigFile(img, config); err != nil {
			t.Fatal(err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &p}})
	}
	host, _, _ := strings.Cut(push(t, told(t)), "/")
	ref := host + "/test-platforms:1"
	parsed, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(parsed, index); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"linux/" + runtime.GOARCH, "linux/riscv64"} {
		ctr(t, n, "image", "pull", "--plain-http", "--snapshotter", node.Squash, "--platform", p, ref)
	}
	dir := t.TempDir()
	r := export(t, n, "--type", "oci-dir", "-o", filepath.Join(dir, "all"), ref)
	if len(r.Platforms) != 2 || r.Platforms[0].Platform != "linux/riscv64" || r.Platforms[1].Platform != "linux/"+runtime.GOARCH || strings.Join(r.LeftOut, " ") != "linux/s390x attestation" {
		t.Errorf("got %+v", r)
	}
	got, err := layout.ImageIndexFromPath(filepath.Join(dir, "all"))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(got); err != nil {
		t.Error(err)
	}
	manifest, err := got.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	inner, err := got.ImageIndex(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if manifest, err = inner.IndexManifest(); err != nil || len(manifest.Manifests) != 2 || manifest.Manifests[0].Platform.Architecture != "riscv64" {
		t.Errorf("got %+v, %v", manifest, err)
	}
	r = export(t, n, "--platform", "linux/riscv64", "--store", ref+"-riscv64", ref)
	if len(r.Platforms) != 1 || r.Platforms[0].Manifest != r.Digest || len(r.LeftOut) != 0 {
		t.Errorf("got %+v", r)
	}
	if out := ctr(t, n, "image", "ls"); !strings.Contains(out, ref+"-riscv64") {
		t.Errorf("got\n%s", out)
	}
	_, errs := squashctl(t, n, 4, "export", "--platform", "linux/s390x", "-o", filepath.Join(dir, "none"), ref)
	if !strings.Contains(errs, "linux/s390x") {
		t.Errorf("got %q", errs)
	}
	if _, errs := squashctl(t, n, 4, "export", "--type", "docker-archive", "-o", filepath.Join(dir, "none"), ref); !strings.Contains(errs, "choose one with --platform") {
		t.Errorf("two platforms in an archive of one: got %q", errs)
	}
	noLeftovers(t, dir, "all")
}

func TestExportThatCannotBeDone(t *testing.T) {
	n := startNode(t, squash)
	ref := push(t, told(t))
	pull(t, n, squash, ref)
	taken := push(t, image(t, images.OCI, layer(t, func(w *images.LayerWriter) error { return w.File("a", 0o644, nil) })))
	pull(t, n, squash, taken)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	device := filepath.Join(dir, "pipe") // stands for /dev/stdout, which root could replace
	if err := unix.Mkfifo(device, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{ref}, "one of -o FILE, --store REF and --push REF"},
		{[]string{"-o", file, ref}, "is there already"},
		{[]string{"--type", "oci-dir", "--force", "-o", file, ref}, "a directory is not replaced"},
		{[]string{"-o", filepath.Join(dir, "no", "file"), ref}, "no such file or directory"},
		{[]string{"--store", taken, ref}, "there is an image " + taken + " already"},
		{[]string{"--store", ref, ref}, "there is an image " + ref + " already"},
		{[]string{"--push", "127.0.0.1:1/x:1", ref}, "push to 127.0.0.1:1/x:1"},
		{[]string{"--push", "127.0.0.1:1/x:1", "--user", "me", ref}, "SQUASHCTL_PASSWORD"},
		{[]string{"-o", "/dev/full/x", ref}, "not a directory"},
		{[]string{"--force", "-o", device, ref}, "is no file"},
		{[]string{"--compression", "rar", "-o", file, ref}, "gzip, zstd or none"},
	} {
		_, errs := squashctl(t, n, 4, append([]string{"export"}, c.args...)...)
		if !strings.Contains(errs, c.want) {
			t.Errorf("%q: got %q, want it to contain %q", c.args, errs, c.want)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "precious" {
		t.Errorf("the file holds %q, %v", got, err)
	}
	if _, errs := squashctl(t, n, 4, "report", "--html", device, ref); !strings.Contains(errs, "is no file") {
		t.Errorf("report: got %q", errs)
	}
	noLeftovers(t, dir, "file", "pipe")
	out, _ := squashctl(t, n, 0, "export", "--force", "-o", file, ref)
	if !strings.Contains(out, "4 layers became one") {
		t.Errorf("got %q", out)
	}
}
