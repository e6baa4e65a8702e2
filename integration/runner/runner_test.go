// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/rootfs"
	"github.com/squash-snapshotter/squash/integration/tree"
)

func TestParseURIs(t *testing.T) {
	out := "NOTE: something\n" +
		"'http://archive/pool/z.deb' zlib1g_1%3a1.2.13.dfsg-1_amd64.deb 86684 SHA256:1\n" +
		"'http://archive/pool/b.deb' bash_5.2~rc1_amd64.deb 5 MD5Sum:2\n"
	list, err := parseURIs(out)
	want := []deb{
		{Name: "bash", Version: "5.2~rc1", File: "bash_5.2~rc1_amd64.deb"},
		{Name: "zlib1g", Version: "1:1.2.13.dfsg-1", File: "zlib1g_1%3a1.2.13.dfsg-1_amd64.deb"},
	}
	if err != nil || !slices.Equal(list, want) {
		t.Errorf("got %v, %v", list, err)
	}
	if _, err := parseURIs("'x' no-version.deb 1 SHA256:1\n"); err == nil {
		t.Error("a file without version was taken")
	}
}

func TestMadison(t *testing.T) {
	out := " git | 1:2.2 | http://archive stable/main amd64 Packages\n git | 1:2.2 | http://archive stable/main Sources\n" +
		" git-man | 9 | http://archive stable/main amd64 Packages\n git | 1:2.1 | http://archive security/main amd64 Packages\n"
	if got := madison(out, "git"); !slices.Equal(got, []string{"1:2.2", "1:2.1"}) {
		t.Errorf("got %q", got)
	}
}

// What a package brings is what dpkg-deb extracts, and dpkg's list has it.
func TestUnpackDeb(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("dpkg-deb is missing (package dpkg): packages cannot be made and unpacked")
	}
	dir := t.TempDir()
	source, file, host := filepath.Join(dir, "source"), filepath.Join(dir, "p.deb"), filepath.Join(dir, "host")
	for name, content := range map[string]string{
		"DEBIAN/control":  "Package: p\nVersion: 1:2-3\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: p\n",
		"usr/bin/program": strings.Repeat("code ", 30000),
		"usr/lib/p/empty": "",
	} {
		if err := os.MkdirAll(filepath.Join(source, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(source, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.Chmod(filepath.Join(source, "usr/bin/program"), 0o4755),
		os.Symlink("program", filepath.Join(source, "usr/bin/alias")),
		os.Link(filepath.Join(source, "usr/bin/program"), filepath.Join(source, "usr/bin/twin")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"--root-owner-group", "--build", source, file}, {"--extract", file, host}} {
		if out, err := exec.CommandContext(t.Context(), "dpkg-deb", args...).CombinedOutput(); err != nil {
			t.Fatalf("dpkg-deb %q: %v\n%s", args, err, out)
		}
	}

	spool, err := rootfs.NewSpool(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer spool.Close()
	tr := rootfs.New(spool, time.Unix(1e9, 0))
	if err := unpackDeb(t.Context(), tr, file); err != nil {
		t.Fatal(err)
	}
	store, err := images.OpenStore(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	layer, err := store.Layer("", images.GzipDefault, func(w *images.LayerWriter) error { return rootfs.WriteLayer(w, nil, tr) })
	if err != nil {
		t.Fatal(err)
	}
	want, err := tree.Walk(host)
	if err != nil {
		t.Fatal(err)
	}
	var got []tree.Entry
	var status tree.Entry
	for _, e := range visible(t, layer) {
		if e.Path == "var/lib/dpkg/status" {
			status = e
		}
		if e.Path != "var" && !strings.HasPrefix(e.Path, "var/") {
			got = append(got, e)
		}
	}
	withoutDirTimes(got)
	withoutDirTimes(want)
	if diff := tree.Diff(tree.Lines(want), tree.Lines(got), 20); len(diff) > 0 {
		t.Errorf("- dpkg-deb, + ours:\n%s", strings.Join(diff, "\n"))
	}
	if status.Size < 50 {
		t.Errorf("dpkg's list: %v", status)
	}
	if err := unpackDeb(t.Context(), tr, filepath.Join(source, "DEBIAN/control")); err == nil {
		t.Error("a file that is no package was unpacked")
	}
}

// withoutDirTimes forgets when names were put into directories.
func withoutDirTimes(list []tree.Entry) {
	for i := range list {
		if list[i].Type == 'd' {
			list[i].Sec, list[i].Nsec = 0, 0
		}
	}
}

func visible(t *testing.T, layers ...v1.Layer) []tree.Entry {
	t.Helper()
	img, err := images.Image(images.OCI, layers...)
	if err != nil {
		t.Fatal(err)
	}
	r, err := images.Replay(img)
	if err != nil {
		t.Fatal(err)
	}
	return r.Visible()
}

// The large images are as large and as alike as the benchmark says. They are downloaded by the benchmark, not here.
func TestLargeImages(t *testing.T) {
	cache, err := OpenCache()
	if err != nil {
		t.Fatal(err)
	}
	if !cache.Cached(First) || !cache.Cached(Second) {
		t.Skip("the large images are not in " + cache.Dir() + ": make bench downloads and builds them")
	}
	seen := make(map[string]bool)
	digests := make(map[v1.Hash]bool)
	for v := First; v <= Second; v++ {
		titled, err := cache.Layers(t.Context(), v, []byte("guest"), func(string) {})
		if err != nil {
			t.Fatal(err)
		}
		var stack []v1.Layer
		for i, l := range titled {
			d, err := l.Layer.DiffID()
			if err != nil {
				t.Fatal(err)
			}
			if digests[d] && i < len(titled)-1 {
				t.Errorf("image %d has layer %q in common with the other image", v+1, l.Title)
			}
			digests[d] = true
			stack = append(stack, l.Layer)
		}
		if len(stack) < 10 || len(stack) > 20 {
			t.Errorf("image %d has %d layers", v+1, len(stack))
		}
		img, err := images.Image(images.OCI, stack...)
		if err != nil {
			t.Fatal(err)
		}
		r, err := images.Replay(img)
		if err != nil {
			t.Fatal(err)
		}
		if r.Savings.Total.Bytes < 1.5e9 || r.Savings.Duplicate.Bytes < 1e8 || r.Savings.Overwritten.Bytes < 1e7 || r.Savings.Deleted.Bytes < 1e7 {
			t.Errorf("image %d: %+v", v+1, r.Savings)
		}
		var fresh, all int64
		programs := make(map[string]bool)
		for _, e := range r.Visible() {
			programs["/"+e.Path] = e.Mode&0o111 != 0
			if e.Type != '-' {
				continue
			}
			all += e.Size
			if !seen[e.Content] {
				seen[e.Content] = true
				fresh += e.Size
			}
		}
		for _, p := range Programs {
			if !programs[p[0]] {
				t.Errorf("image %d has no program %s", v+1, p[0])
			}
		}
		t.Logf("image %d: %d layers, %+v, %d of %d visible bytes are new", v+1, len(stack), r.Savings, fresh, all)
		if share := float64(fresh) / float64(all); v == Second && (share < 0.03 || share > 0.15) {
			t.Errorf("%.1f %% of the second image are not in the first", 100*share)
		}
	}
}
