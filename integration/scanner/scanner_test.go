// SPDX-License-Identifier: Apache-2.0

package scanner

import (
	"crypto"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"

	stereofile "github.com/anchore/stereoscope/pkg/file"
	"github.com/anchore/syft/syft"
	"github.com/anchore/syft/syft/cataloging"
	"github.com/anchore/syft/syft/cataloging/filecataloging"
	"github.com/anchore/syft/syft/file"
	"github.com/anchore/syft/syft/source"
	"github.com/anchore/syft/syft/source/directorysource"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"

	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/node"
	"github.com/squash-snapshotter/squash/integration/tree"
)

// findings is what a scan found, as sorted lines that can be compared.
type findings struct {
	packages []string // type, name, version, places
	details  []string // of packages: purl, licences, files, …
	files    []string // names, modes, owners
	digests  map[string]string
}

// scan has syft look for what is installed, and at every file. It looks at both kinds of sources with what it has for
// images, not with what looks for lists of what is to be installed; and not for packages of RPM, which needs SQLite.
func scan(t *testing.T, src source.Source) findings {
	t.Helper()
	defer src.Close()
	cfg := syft.DefaultCreateSBOMConfig().
		WithCatalogerSelection(cataloging.NewSelectionRequest().WithDefaults("image").WithRemovals("rpm")).
		WithFilesConfig(filecataloging.DefaultConfig().WithSelection(file.AllFilesSelection).WithHashers(crypto.SHA256))
	bom, err := syft.CreateSBOM(t.Context(), src, cfg)
	if err != nil {
		t.Fatalf("scan: %v", err)
	}
	f := findings{digests: map[string]string{}}
	for p := range bom.Artifacts.Packages.Enumerate() {
		line := fmt.Sprintf("%s %s %s", p.Type, p.Name, p.Version)
		var places []string
		for _, l := range p.Locations.ToSlice() {
			places = append(places, absolute(l.AccessPath)+" "+absolute(l.RealPath))
		}
		slices.Sort(places)
		f.packages = append(f.packages, line+" at "+strings.Join(places, ", "))
		metadata, err := json.Marshal(p.Metadata)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		var licences []string
		for _, l := range p.Licenses.ToSlice() {
			licences = append(licences, l.Value)
		}
		f.details = append(f.details, fmt.Sprintf("%s: %s, licences %q, %s %s", line, p.PURL, licences, fmt.Sprintf("%T", p.Metadata), metadata))
	}
	for at, m := range bom.Artifacts.FileMetadata {
		name := absolute(at.RealPath)
		if name == "/" {
			continue // of images, syft does not tell it
		}
		// Not where symlinks lead: of directories, syft tells the place on the host.
		line := fmt.Sprintf("%s %s %v %d:%d", name, m.Type, m.Mode(), m.UserID, m.GroupID)
		if m.Type == stereofile.TypeRegular {
			line += fmt.Sprintf(" %d bytes, %s", m.Size(), m.MIMEType)
		}
		f.files = append(f.files, line)
	}
	for at, list := range bom.Artifacts.FileDigests {
		for _, d := range list {
			f.digests[absolute(at.RealPath)] = d.Algorithm + ":" + d.Value
		}
	}
	slices.Sort(f.packages)
	slices.Sort(f.details)
	slices.Sort(f.files)
	return f
}

// absolute is a path as an image has it; those of directories come without a slash.
func absolute(p string) string { return path.Join("/", p) }

// fromLayers opens the image that the registry has, with its layers.
func fromLayers(t *testing.T, ref string) source.Source {
	t.Helper()
	parsed, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(parsed, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := layout.Write(dir, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img})); err != nil {
		t.Fatal(err)
	}
	src, err := syft.GetSource(t.Context(), dir, syft.DefaultGetSourceConfig().WithSources("oci-dir"))
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// fromSquash pulls the image with squash and opens the root file system that containers see.
func fromSquash(t *testing.T, ref string) source.Source {
	t.Helper()
	n := shared.node
	if err := n.Pull(t.Context(), node.Squash, ref); err != nil {
		t.Fatal(err)
	}
	target := t.TempDir()
	t.Cleanup(func() {
		list, err := node.Mounts(target)
		if err != nil {
			t.Error(err)
		}
		for _, m := range slices.Backward(list) {
			if err := unix.Unmount(m.Target, 0); err != nil {
				t.Errorf("unmount %s: %v", m.Target, err)
			}
		}
	})
	if _, err := n.Ctr(t.Context(), "image", "mount", "--snapshotter", node.Squash, ref, target); err != nil {
		t.Fatal(err)
	}
	list, err := node.Mounts(target)
	if err != nil || len(list) != 1 {
		t.Fatalf("mounts of the image: %v, %v", list, err)
	}
	if list[0].Type != "erofs" {
		t.Fatalf("the image is mounted as %+v, want the flat image alone", list[0])
	}
	src, err := directorysource.New(directorysource.Config{Path: target, Base: target})
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// differences lists what two scans do not agree on.
func differences(layers, squashed findings) []string {
	lines := func(digests map[string]string) (list []string) {
		for name, digest := range digests {
			list = append(list, name+" "+digest)
		}
		slices.Sort(list)
		return list
	}
	var all []string
	for _, part := range []struct {
		title     string
		want, got []string
	}{
		{"packages", layers.packages, squashed.packages},
		{"details of packages", layers.details, squashed.details},
		{"files", layers.files, squashed.files},
		{"digests", lines(layers.digests), lines(squashed.digests)},
	} {
		if diff := tree.Diff(part.want, part.got, 20); len(diff) > 0 {
			all = append(append(all, part.title+":"), diff...)
		}
	}
	return all
}

// A scanner finds the same packages, files and digests in what containers see as in the layers.
func TestScannerFindsTheSame(t *testing.T) {
	img := packages(t)
	ref := push(t, img)
	layers, squashed := scan(t, fromLayers(t, ref)), scan(t, fromSquash(t, ref))
	if diff := differences(layers, squashed); len(diff) > 0 {
		t.Errorf("- in the layers, + in the squashed root:\n%s", strings.Join(diff, "\n"))
	}
	for _, f := range []struct {
		what string
		findings
	}{{"layers", layers}, {"squashed root", squashed}} {
		t.Logf("%s: %d packages, %d files, %d digests", f.what, len(f.packages), len(f.files), len(f.digests))
		checkPlanted(t, f.what, f.findings)
		checkDigests(t, f.what, f.findings, img)
	}
}

// checkPlanted makes sure that a scan found what was planted and nothing that is hidden: two scans that find nothing
// are the same, too.
func checkPlanted(t *testing.T, what string, f findings) {
	t.Helper()
	for _, p := range planted {
		want := strings.Fields(p)
		if !slices.ContainsFunc(f.packages, func(line string) bool {
			got := strings.Fields(line)
			return got[0] == want[0] && got[1] == want[1] && (want[2] == "*" || got[2] == want[2]) && strings.Contains(line, " "+want[3])
		}) {
			t.Errorf("%s: no %s in\n%s", what, p, strings.Join(f.packages, "\n"))
		}
	}
	for _, h := range hidden {
		if i := slices.IndexFunc(f.packages, func(line string) bool { return strings.Contains(line+" ", " "+h+" ") }); i >= 0 {
			t.Errorf("%s: %s is hidden, and found: %s", what, h, f.packages[i])
		}
	}
	if len(f.details) != len(f.packages) || !slices.ContainsFunc(f.details, func(line string) bool {
		return strings.HasPrefix(line, "deb upgraded 2.0-1: pkg:deb/debian/upgraded@2.0-1?") && strings.Contains(line, `"path":"/usr/bin/upgraded"`)
	}) {
		t.Errorf("%s: details of packages:\n%s", what, strings.Join(f.details, "\n"))
	}
}

// checkDigests compares the scanner's digests with those of the layers' tar streams.
func checkDigests(t *testing.T, what string, f findings, img v1.Image) {
	t.Helper()
	r, err := images.Replay(img)
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	for _, e := range r.Visible() {
		if e.Type != '-' {
			continue
		}
		files++
		// syft has no digest of a file without bytes.
		if got := f.digests[absolute(e.Path)]; got != "sha256:"+e.Content && e.Size > 0 {
			t.Errorf("%s: %s has digest %q, want sha256:%s", what, e.Path, got, e.Content)
		}
	}
	if files < 20 || len(f.digests) > files {
		t.Errorf("%s: %d digests of %d files", what, len(f.digests), files)
	}
}

// The comparison is one that can fail: a root that lacks a file, or has another content, is not the same.
func TestScannerNoticesWhatIsMissing(t *testing.T) {
	layers := scan(t, fromLayers(t, push(t, packages(t))))
	other := push(t, packages(t, func(w *images.LayerWriter) error {
		return dirs(w, "usr", "usr/lib", "usr/lib/node_modules", "usr/lib/node_modules/left-pad", "usr/bin")
	}, func(w *images.LayerWriter) error {
		return w.Whiteout("usr/lib/node_modules/left-pad/package.json")
	}, func(w *images.LayerWriter) error {
		return w.File(kept.file, 0o755, []byte(strings.ToUpper(kept.name)+" "+kept.version+"\n"))
	}))
	diff := differences(layers, scan(t, fromSquash(t, other)))
	for _, want := range []string{"npm left-pad 1.3.0 at ", "/usr/lib/node_modules/left-pad/package.json sha256:", "/usr/bin/kept sha256:"} {
		if !slices.ContainsFunc(diff, func(line string) bool { return strings.HasPrefix(line, "- "+want) }) {
			t.Errorf("no %q in\n%s", want, strings.Join(diff, "\n"))
		}
	}
}
