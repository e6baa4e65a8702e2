// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/node"
)

var update = flag.Bool("update", false, "write the golden files anew")

// told is an image of which squashctl has something to tell: each layer wastes space in a way of its own.
func told(t *testing.T) v1.Image {
	t.Helper()
	big := func(seed uint64, kib int) []byte { return images.Noise(seed, kib<<10) }
	layers := []struct {
		command string
		write   func(w *images.LayerWriter) error
	}{
		{"/bin/sh -c #(nop) ADD file:base in /", func(w *images.LayerWriter) error {
			return first(w.Dir("bin", 0o755), w.Dir("opt", 0o755), w.Dir("opt/tool", 0o755), w.File("bin/sh", 0o755, big(1, 2000)),
				w.Symlink("sh", "bin/sh"), w.Symlink("tools", "opt"), w.File("opt/tool/run", 0o755, big(2, 3000)), w.File("opt/tool/data", 0o644, images.Prose(3, 3<<20)),
				w.File("opt/tool/version", 0o644, []byte("1\n")))
		}},
		{"RUN /bin/sh -c chown -R 1000:1000 /opt/tool # buildkit", func(w *images.LayerWriter) error {
			mine := images.Owner(1000, 1000)
			return first(w.Dir("opt/tool", 0o755, mine), w.File("opt/tool/run", 0o755, big(2, 3000), mine), w.File("opt/tool/data", 0o644, images.Prose(3, 3<<20), mine),
				w.File("opt/tool/version", 0o644, []byte("1\n"), mine))
		}},
		{"RUN /bin/sh -c apt-get update && apt-get install -y tool=2 # buildkit", func(w *images.LayerWriter) error {
			return first(w.Dir("var", 0o755), w.Dir("var/lib", 0o755), w.Dir("var/lib/apt", 0o755), w.Dir("var/lib/apt/lists", 0o755),
				w.File("var/lib/apt/lists/all", 0o644, images.Prose(4, 5<<20)), w.File("opt/tool/run", 0o755, big(5, 3000)), w.File("opt/tool/version", 0o644, []byte("2\n")),
				w.File("bin/sh-copy", 0o755, big(1, 2000)), w.Hardlink("bin/sh-link", "bin/sh-copy"))
		}},
		{"RUN /bin/sh -c rm -rf /var/lib/apt/lists # buildkit", func(w *images.LayerWriter) error {
			return first(w.Dir("var/lib/apt", 0o755), w.Whiteout("var/lib/apt/lists"))
		}},
	}
	img := image(t, images.OCI)
	for i, l := range layers {
		var err error
		img, err = mutate.Append(img, mutate.Addendum{Layer: layer(t, l.write), History: v1.History{
			CreatedBy: l.command, Created: v1.Time{Time: images.Epoch.Add(time.Duration(i) * time.Hour)},
		}})
		if err != nil {
			t.Fatal(err)
		}
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

// golden compares what a command printed with a file. The registry's port, and blobs, which another version of Go may
// compress otherwise, are masked.
func golden(t *testing.T, name, got string) {
	t.Helper()
	got = regexp.MustCompile(`127\.0\.0\.1:\d+/test-[-a-z0-9]+:[0-9a-f]+`).ReplaceAllString(got, "registry/told:1")
	got = regexp.MustCompile(`("(?:blob|digest|manifest)":"|blob    )sha256:[0-9a-f]{64}`).ReplaceAllString(got, "${1}sha256:…")
	got = regexp.MustCompile(`"blob_bytes":\d+`).ReplaceAllString(got, `"blob_bytes":1`)
	file := filepath.Join("testdata", "squashctl", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

func TestSquashctlTellsOfImages(t *testing.T) {
	n := startNode(t, squash)
	img := told(t)
	ref := push(t, img)
	pull(t, n, squash, ref)

	out, _ := squashctl(t, n, 0, "report", ref)
	golden(t, "report.txt", out)
	out, _ = squashctl(t, n, 0, "--format", "json", "report", ref)
	golden(t, "report.json", out)
	var r struct {
		Efficiency    float64
		LayerBytes    int64 `json:"layer_bytes"`
		VisibleBytes  int64 `json:"visible_bytes"`
		DistinctBytes int64 `json:"distinct_bytes"`
		OwnBytes      int64 `json:"own_bytes"`
		Waste         []struct {
			Cause string
			Bytes int64
		}
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	left := r.LayerBytes
	for i, want := range []int64{-1, r.VisibleBytes, r.DistinctBytes, -1, r.OwnBytes} {
		if left -= r.Waste[i].Bytes; want >= 0 && left != want {
			t.Errorf("after %s, %d bytes are left, want %d", r.Waste[i].Cause, left, want)
		}
	}

	out, _ = squashctl(t, n, 0, "verify", ref)
	golden(t, "verify.txt", out)
	out, _ = squashctl(t, n, 0, "export", "--compression", "none", "-o", filepath.Join(t.TempDir(), "image.tar"), ref)
	golden(t, "export.txt", out)

	// A second image, of the same base, that has a container.
	base, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	second := push(t, image(t, images.OCI, base[0]))
	pull(t, n, squash, second)
	ctr(t, n, "container", "create", "--snapshotter", node.Squash, second, "c1")
	out, _ = squashctl(t, n, 0, "report", second)
	golden(t, "report-second.txt", out)
	out, _ = squashctl(t, n, 0, "ls")
	// The names differ in what is masked; they are in the order of their digests.
	rows := lines(out)
	if len(rows) != 3 || !strings.Contains(out, "flat, in use by 1 container\n") {
		t.Errorf("ls printed\n%s", out)
	}
	for _, row := range rows[1:] {
		if strings.HasPrefix(row, ref) {
			golden(t, "ls.txt", strings.Join(strings.Fields(row), " ")+"\n")
		}
	}

	out, _ = squashctl(t, n, 0, "blame", ref, "/opt/tool/run", "tools/tool/version", "/sh", "bin/sh-link", "/var/lib/apt", "/var/lib/apt/lists/all")
	golden(t, "blame.txt", out)
	out, _ = squashctl(t, n, 0, "--format", "json", "blame", ref, "/opt/tool/run")
	golden(t, "blame.json", out)
	out, _ = squashctl(t, n, 0, "blame", "--all", ref)
	golden(t, "blame-all.json", out)
	out, _ = squashctl(t, n, 1, "blame", ref, "/no/such", "/bin/sh")
	golden(t, "blame-unknown.txt", out)
}

func TestSquashctlVerifiesImages(t *testing.T) {
	n := startNode(t, squash)
	for _, img := range []v1.Image{told(t), smallImage(t, images.OCI, images.Zstd)} {
		ref := push(t, img)
		pull(t, n, squash, ref)
		out, _ := squashctl(t, n, 0, "verify", ref)
		if !strings.HasSuffix(out, " compared: equal\n") {
			t.Errorf("got %q", out)
		}
	}
	// Other bytes in the pack, of a file that is in no cache: noise is stored as it is.
	ref := push(t, image(t, images.OCI, layer(t, func(w *images.LayerWriter) error {
		return w.File("noise", 0o600, images.Noise(77, 1<<20))
	})))
	pull(t, n, squash, ref)
	pack, err := os.OpenFile(filepath.Join(n.DaemonRoot(), "pack"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pack.Close()
	all, err := os.ReadFile(pack.Name())
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(all, images.Noise(77, 1<<20)[:4096])
	if at < 0 {
		t.Fatal("the file is not in the pack as it is")
	}
	if _, err := pack.WriteAt([]byte("other"), int64(at)); err != nil {
		t.Fatal(err)
	}
	out, _ := squashctl(t, n, 1, "verify", ref)
	if !strings.Contains(out, "/noise, from layer 1: content") {
		t.Errorf("got %q", out)
	}
	if _, err := pack.WriteAt(images.Noise(77, 16), int64(at)); err != nil {
		t.Fatal(err)
	}
}

func TestSquashctlSaysWhatIsWrong(t *testing.T) {
	n := startNode(t, squash)
	ref := push(t, told(t))
	for _, c := range []struct {
		name string
		prep func()
		args []string
		want []string
	}{
		{"no such image", func() {}, []string{"report", ref}, []string{"namespace default has no image " + ref, "squashctl ls"}},
		{"not unpacked with squash", func() {
			if err := n.Pull(t.Context(), node.Overlayfs, ref); err != nil {
				t.Fatal(err)
			}
		}, []string{"report", ref}, []string{"is not unpacked with squash", "image pull --snapshotter squash " + ref}},
		{"in another namespace", func() {
			if _, err := n.CtrIn(t.Context(), "other", "image", "pull", "--plain-http", "--snapshotter", node.Squash, ref); err != nil {
				t.Fatal(err)
			}
			if _, err := n.Ctr(t.Context(), "image", "rm", ref); err != nil {
				t.Fatal(err)
			}
		}, []string{"blame", ref, "/bin/sh"}, []string{"it is in namespace other", "--namespace"}},
		{"no such platform", func() {}, []string{"--namespace", "other", "report", "--platform", "linux/riscv64", ref}, []string{"linux/riscv64", "is not on this node", "--platform linux/riscv64"}},
		{"no platform", func() {}, []string{"--namespace", "other", "report", "--platform", "a/b/c/d", ref}, []string{`platform "a/b/c/d"`}},
		{"part of a name", func() {}, []string{"--namespace", "other", "report", ref[strings.Index(ref, "/")+1:]}, []string{"do you mean " + ref}},
		{"no namespace", func() {}, []string{"--namespace", "a b", "ls"}, []string{`namespace "a b"`}},
		{"daemon not running", func() {
			if err := n.StopDaemon(); err != nil {
				t.Fatal(err)
			}
		}, []string{"ls"}, []string{"the daemon is not running", "systemctl start"}},
	} {
		c.prep()
		out, errs := squashctl(t, n, 4, c.args...)
		for _, want := range c.want {
			if !strings.Contains(errs, want) {
				t.Errorf("%s: got %q, want it to contain %q", c.name, errs, want)
			}
		}
		if out != "" {
			t.Errorf("%s: printed %q", c.name, out)
		}
	}
}
