// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/internal/legible"
)

// browse opens a page in a headless browser and returns what its document has become. What the page did wrong, as its
// console has it, fails the test.
func browse(t *testing.T, address string, flags ...string) string {
	t.Helper()
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("chromium is missing (package chromium): the page is not opened in a browser")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	args := append([]string{"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--user-data-dir=" + t.TempDir(),
		"--enable-logging=stderr", "--window-size=1280,900", "--virtual-time-budget=5000", "--dump-dom"}, flags...)
	cmd := exec.CommandContext(ctx, browser, append(args, address)...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		t.Fatalf("chromium: %v\n%s", err, errs.String())
	}
	for line := range strings.Lines(errs.String()) {
		if strings.Contains(line, "CONSOLE") {
			t.Errorf("the page's console: %s", line)
		}
	}
	if !strings.Contains(out.String(), "</html>") {
		t.Fatalf("chromium gives no document: %q\n%s", out.String(), errs.String())
	}
	return out.String()
}

func TestReportPageInABrowser(t *testing.T) {
	n := startNode(t, squash)
	ref := push(t, told(t))
	pull(t, n, squash, ref)
	file := filepath.Join(t.TempDir(), "report.html")
	squashctl(t, n, 0, "report", "--html", file, ref)
	out, _ := squashctl(t, n, 0, "--format", "json", "report", ref)
	var want struct {
		LayerBytes uint64 `json:"layer_bytes"`
		OwnBytes   uint64 `json:"own_bytes"`
		Waste      []struct {
			Cause string
			Bytes int64
		}
		Layers []struct{ Bytes uint64 }
		Tree   struct {
			Files       int64
			Directories []struct {
				Name          string
				Bytes         uint64
				ShadowedBytes uint64 `json:"shadowed_bytes"`
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &want); err != nil {
		t.Fatal(err)
	}
	address := (&url.URL{Scheme: "file", Path: file}).String()
	page := browse(t, address)

	numbers := func(table string) (all []string) {
		_, rest, _ := strings.Cut(page, `id="`+table+`"`)
		rest, _, _ = strings.Cut(rest, "</table>")
		for _, m := range regexp.MustCompile(`class="number bytes"[^>]*>([^<]*)<`).FindAllStringSubmatch(rest, -1) {
			all = append(all, m[1])
		}
		return all
	}
	steps := []string{legible.Size(want.LayerBytes)}
	for _, w := range want.Waste {
		steps = append(steps, strings.Replace(legible.SignedSize(-w.Bytes), "-", "−", 1))
	}
	steps = append(steps, legible.Size(want.OwnBytes))
	if got := numbers("steps"); !slices.Equal(got, steps) {
		t.Errorf("steps: got %q, want %q", got, steps)
	}
	var layers []string
	for _, l := range want.Layers {
		layers = append(layers, legible.Size(l.Bytes))
	}
	if got := numbers("layers"); len(layers) == 0 || !slices.Equal(got, layers) {
		t.Errorf("layers: got %q, want %q", got, layers)
	}
	// The map is drawn by the script.
	if len(want.Tree.Directories) == 0 {
		t.Error("the tree is empty")
	}
	for _, d := range want.Tree.Directories {
		if label := `aria-label="/` + d.Name + `: ` + legible.Size(d.Bytes+d.ShadowedBytes); !strings.Contains(page, label) {
			t.Errorf("the map has no %s", label)
		}
	}
	if !strings.Contains(page, fmt.Sprintf(" in %d files", want.Tree.Files)) {
		t.Errorf("the page does not tell of %d files", want.Tree.Files)
	}
	inside := browse(t, address+"#/opt/tool", "--blink-settings=preferredColorScheme=0")
	if !strings.Contains(inside, `aria-current="location">tool</button>`) {
		t.Error("the page does not show the directory that its address names")
	}
	if entries, err := os.ReadDir(filepath.Dir(file)); err != nil || len(entries) != 1 {
		t.Errorf("beside the page there is %v, %v", entries, err)
	}
}

// Names that an image's author chose do nothing in the page, and nobody sees them as something else.
func TestReportPageOfHostileNames(t *testing.T) {
	n := startNode(t, squash)
	hostile := []string{"</script><script>document.title='owned'</script>", "<img src=x onerror=document.title='owned'>", "\u202egnp.exe", "a\x01\xff", strings.Repeat("n", 255)}
	write := func(w *images.LayerWriter) error {
		for i, name := range hostile {
			name = strings.ReplaceAll(name, "/", "∕")
			if err := first(w.Dir(name, 0o755), w.File(name+"/"+name, 0o644, images.Noise(uint64(i), 100_000))); err != nil {
				return err
			}
		}
		return nil
	}
	ref := push(t, image(t, images.OCI, layer(t, write), layer(t, write)))
	pull(t, n, squash, ref)
	file := filepath.Join(t.TempDir(), "report.html")
	squashctl(t, n, 0, "report", "--html", file, ref)
	page := browse(t, (&url.URL{Scheme: "file", Path: file}).String())
	if strings.Contains(page, "<title>owned") || strings.Contains(page, "\u202e") || strings.Contains(page, "\x01") {
		t.Error("a name got into the page as something else than text")
	}
	if !strings.Contains(page, `\u202egnp.exe`) || !strings.Contains(page, "squash report</title>") {
		t.Error("the names are not shown")
	}
}
