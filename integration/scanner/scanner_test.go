// SPDX-License-Identifier: Apache-2.0

// Package scanner shows that squashing hides nothing from a vulnerability scanner: syft finds the same packages, files and
// digests in the root that containers see as in the image's layers. It is a package of its own because the scanner is large.
package scanner

import (
	"context"
	"crypto"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/anchore/stereoscope"
	stereofile "github.com/anchore/stereoscope/pkg/file"
	"github.com/anchore/stereoscope/pkg/image/oci"
	"github.com/anchore/syft/syft"
	"github.com/anchore/syft/syft/cataloging"
	"github.com/anchore/syft/syft/cataloging/filecataloging"
	"github.com/anchore/syft/syft/file"
	"github.com/anchore/syft/syft/source"
	"github.com/anchore/syft/syft/source/directorysource"
	"github.com/anchore/syft/syft/source/stereoscopesource"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"golang.org/x/sys/unix"

	"github.com/squash-snapshotter/squash/integration/binaries"
	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/node"
)

func TestMain(m *testing.M) {
	node.Reap()
	os.Exit(m.Run())
}

func TestScannerFindsTheSameInTheSquashedRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("this test mounts: it needs root")
	}
	ctx := t.Context()
	bin, err := binaries.Build(ctx, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := bin.BuildDaemon(ctx, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	store, err := images.OpenStore(filepath.Join(bin.Repo, "bin", "images"))
	if err != nil {
		t.Fatal(err)
	}
	registry, err := store.Serve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { registry.Close() })
	img := packages(t, store, bin.Guest)
	ref, err := registry.Push(ctx, "test-scanner:1", img)
	if err != nil {
		t.Fatal(err)
	}

	layered := scanLayers(t, img)
	squashed := scanDirectory(t, squashedRoot(t, bin, img, ref))
	for _, c := range []struct {
		what         string
		layers, root map[string]bool
		planted      []string
	}{
		{"packages", layered.packages, squashed.packages, []string{"deb libold 2.0-1", "deb stays 1.0-1", "npm left-pad 1.3.0", "python requests 2.31.0", "go-module golang.org/x/sys"}},
		{"files", layered.files, squashed.files, []string{"/usr/bin/tool sha256:"}},
		{"file metadata", layered.metadata, squashed.metadata, []string{"/usr/bin/tool"}},
	} {
		for _, planted := range c.planted {
			if !slices.ContainsFunc(slices.Collect(maps.Keys(c.layers)), func(got string) bool { return strings.HasPrefix(got, planted) }) {
				t.Errorf("%s: the scanner does not find %q in the layers: this test proves little", c.what, planted)
			}
		}
		for _, d := range differences(c.layers, c.root) {
			t.Errorf("%s: %s", c.what, d)
		}
		t.Logf("%d %s", len(c.layers), c.what)
	}
	for _, gone := range []string{"deb libold 1.0-1", "deb removed", "npm hidden"} {
		for got := range squashed.packages {
			if strings.HasPrefix(got, gone) {
				t.Errorf("found %q, which a layer removed", got)
			}
		}
	}

	// The comparison can fail: the same root without one file.
	less := t.TempDir()
	if out, err := exec.Command("cp", "-a", squashedRoot(t, bin, img, ref)+"/.", less).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Remove(filepath.Join(less, "usr/lib/node_modules/left-pad/package.json")); err != nil {
		t.Fatal(err)
	}
	found := scanDirectory(t, less)
	if len(differences(layered.packages, found.packages)) != 1 || len(differences(layered.files, found.files)) == 0 {
		t.Errorf("a root without a package differs by %q", differences(layered.packages, found.packages))
	}
}

// packages is an image with packages of several kinds, of which some are upgraded, removed or hidden.
func packages(t *testing.T, store *images.Store, guest string) v1.Image {
	t.Helper()
	program, err := os.ReadFile(guest)
	if err != nil {
		t.Fatal(err)
	}
	deb := func(name, version string) string {
		return fmt.Sprintf("Package: %s\nStatus: install ok installed\nMaintainer: someone <someone@example.com>\nArchitecture: amd64\nVersion: %s\nDescription: a package\n\n", name, version)
	}
	npm := func(name, version string) []byte {
		return fmt.Appendf(nil, `{"name":%q,"version":%q,"license":"MIT"}`, name, version)
	}
	dirs := func(w *images.LayerWriter, paths ...string) error {
		for _, p := range paths {
			if err := w.Dir(p, 0o755); err != nil {
				return err
			}
		}
		return nil
	}
	var layers []v1.Layer
	for _, write := range []func(w *images.LayerWriter) error{
		func(w *images.LayerWriter) error {
			return first(dirs(w, "etc", "usr", "usr/bin", "usr/lib", "usr/lib/node_modules", "usr/lib/node_modules/left-pad", "usr/lib/node_modules/hidden",
				"usr/lib/python3", "usr/lib/python3/dist-packages", "usr/lib/python3/dist-packages/requests-2.31.0.dist-info", "var", "var/lib", "var/lib/dpkg", "var/lib/dpkg/info"),
				w.File("etc/os-release", 0o644, []byte("ID=debian\nVERSION_ID=\"12\"\nNAME=Debian\n")),
				w.File("var/lib/dpkg/status", 0o644, []byte(deb("libold", "1.0-1")+deb("removed", "1.0-1")+deb("stays", "1.0-1"))),
				w.File("var/lib/dpkg/info/libold.list", 0o644, []byte("/.\n/usr\n/usr/lib\n/usr/lib/libold.so\n")),
				w.File("var/lib/dpkg/info/removed.list", 0o644, []byte("/.\n/usr/lib/removed.so\n")),
				w.File("usr/lib/libold.so", 0o644, images.Noise(1, 5000)), w.File("usr/lib/removed.so", 0o644, images.Noise(2, 5000)),
				w.File("usr/lib/node_modules/left-pad/package.json", 0o644, npm("left-pad", "1.3.0")),
				w.File("usr/lib/node_modules/hidden/package.json", 0o644, npm("hidden", "9.9.9")),
				w.File("usr/lib/python3/dist-packages/requests-2.31.0.dist-info/METADATA", 0o644, []byte("Metadata-Version: 2.1\nName: requests\nVersion: 2.31.0\n")),
				w.File("usr/lib/python3/dist-packages/requests-2.31.0.dist-info/RECORD", 0o644, []byte("requests/__init__.py,sha256=abc,1\n")))
		},
		func(w *images.LayerWriter) error { // upgrade one package, remove another
			return first(w.File("var/lib/dpkg/status", 0o644, []byte(deb("libold", "2.0-1")+deb("stays", "1.0-1"))),
				w.Whiteout("var/lib/dpkg/info/removed.list"), w.Whiteout("usr/lib/removed.so"), w.File("usr/lib/libold.so", 0o644, images.Noise(3, 6000)))
		},
		func(w *images.LayerWriter) error { // hide a package with its directory, add a program under two names
			return first(w.Whiteout("usr/lib/node_modules/hidden"), w.File("usr/bin/tool", 0o755, program), w.Symlink("usr/bin/t", "tool"))
		},
		func(w *images.LayerWriter) error { // the same again for another owner
			return w.File("usr/bin/tool", 0o755, program, images.Owner(1000, 1000))
		},
	} {
		l, err := store.Layer("", images.Gzip, write)
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
	}
	img, err := images.Image(images.OCI, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// squashedRoot pulls the image with squash, and returns a view of it.
func squashedRoot(t *testing.T, bin *binaries.Set, img v1.Image, ref string) string {
	t.Helper()
	n, err := node.Start(t.Context(), node.Options{Tools: bin.Tools, Daemon: bin.Daemon})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := n.Pull(t.Context(), node.Squash, ref); err != nil {
		t.Fatal(err)
	}
	out, err := n.Ctr(t.Context(), "images", "mount", "--snapshotter", node.Squash, ref, mountPoint(t))
	if err != nil {
		t.Fatal(err)
	}
	target := strings.TrimSpace(out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:])
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Error(err)
		}
	})
	return target
}

func mountPoint(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// findings are what a scanner says, as sets of lines.
type findings struct{ packages, files, metadata map[string]bool }

// scanLayers lets the scanner apply the layers itself.
func scanLayers(t *testing.T, img v1.Image) findings {
	t.Helper()
	dir := t.TempDir()
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	read, err := stereoscope.GetImageFromSource(t.Context(), dir, oci.Directory)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { read.Cleanup() })
	return scan(t, stereoscopesource.New(read, stereoscopesource.ImageConfig{Reference: dir}), "")
}

func scanDirectory(t *testing.T, dir string) findings {
	t.Helper()
	src, err := directorysource.New(directorysource.Config{Path: dir, Base: dir})
	if err != nil {
		t.Fatal(err)
	}
	return scan(t, src, dir)
}

func scan(t *testing.T, src source.Source, base string) findings {
	t.Helper()
	defer src.Close()
	config := syft.DefaultCreateSBOMConfig().
		WithCatalogerSelection(cataloging.NewSelectionRequest().WithDefaults("image").WithRemovals("rpm-db-cataloger")). // which wants a database driver
		WithFilesConfig(filecataloging.DefaultConfig().WithSelection(file.AllFilesSelection).WithHashers(crypto.SHA256))
	sbom, err := syft.CreateSBOM(context.WithoutCancel(t.Context()), src, config)
	if err != nil {
		t.Fatal(err)
	}
	at := func(p string) string { return "/" + strings.TrimPrefix(strings.TrimPrefix(p, base), "/") }
	found := findings{map[string]bool{}, map[string]bool{}, map[string]bool{}}
	for _, p := range sbom.Artifacts.Packages.Sorted() {
		var places []string
		for _, l := range p.Locations.ToSlice() {
			places = append(places, at(l.RealPath))
		}
		slices.Sort(places)
		found.packages[fmt.Sprintf("%s %s %s %s at %s", p.Type, p.Name, p.Version, p.PURL, strings.Join(places, " "))] = true
	}
	for c, digests := range sbom.Artifacts.FileDigests {
		for _, d := range digests {
			found.files[fmt.Sprintf("%s %s:%s", at(c.RealPath), d.Algorithm, d.Value)] = true
		}
	}
	for c, m := range sbom.Artifacts.FileMetadata {
		if m.Type == stereofile.TypeDirectory { // a directory that no layer states has other metadata for syft than for overlayfs
			continue
		}
		found.metadata[fmt.Sprintf("%s %s %v %d:%d %s", at(c.RealPath), m.Type, m.Mode().Perm(), m.UserID, m.GroupID, m.MIMEType)] = true
	}
	return found
}

// differences lists what only one of two has.
func differences(layers, root map[string]bool) (all []string) {
	for _, line := range slices.Sorted(maps.Keys(layers)) {
		if !root[line] {
			all = append(all, "only in the layers: "+line)
		}
	}
	for _, line := range slices.Sorted(maps.Keys(root)) {
		if !layers[line] {
			all = append(all, "only in the squashed root: "+line)
		}
	}
	return all
}
