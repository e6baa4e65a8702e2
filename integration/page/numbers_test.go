// SPDX-License-Identifier: Apache-2.0

package page

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

// amount reads a size, with a tolerance for what it was rounded to.
func amount(t *testing.T, text string) (bytes, tolerance float64) {
	t.Helper()
	number, unit, ok := strings.Cut(strings.NewReplacer("−", "-", "+", "").Replace(text), " ")
	power := map[string]float64{"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
	n, err := strconv.ParseFloat(number, 64)
	if !ok || power == 0 || err != nil {
		t.Errorf("%q is no size", text)
	}
	if power == 1 {
		return n, 0
	}
	return n * power, power * 0.0501
}

func sameAmount(t *testing.T, what, text string, want float64) {
	t.Helper()
	if got, tolerance := amount(t, text); math.Abs(got-want) > tolerance {
		t.Errorf("%s: %q, want %.0f bytes", what, text, want)
	}
}

func samePercent(t *testing.T, what, text string, want float64) {
	t.Helper()
	got, err := strconv.ParseFloat(strings.TrimSuffix(strings.NewReplacer("−", "-", "+", "").Replace(text), " %"), 64)
	if err != nil || math.Abs(got-want) > 0.0501 {
		t.Errorf("%s: %q, want %f %%", what, text, want)
	}
}

func sameCount(t *testing.T, what, text string, want uint64) {
	t.Helper()
	if got, err := strconv.ParseUint(strings.ReplaceAll(text, ",", ""), 10, 64); err != nil || got != want {
		t.Errorf("%s: %q, want %d", what, text, want)
	}
}

func sameRows(t *testing.T, what string, got [][]string, want int) [][]string {
	t.Helper()
	if len(got) != want || want == 0 {
		t.Fatalf("%s: %d rows, want %d", what, len(got), want)
	}
	return got
}

// Every number of the report can be read on the page.
func TestNumbersOfTheReportAreOnThePage(t *testing.T) {
	r := sample()
	p := open(t, r)
	whole := float64(r.LayerBytes)

	if got := p.text("h1"); got != r.Image.Name {
		t.Errorf("heading: %q", got)
	}
	if got, want := value[string](p, "document.title"), r.Image.Name+" – squash report"; got != want {
		t.Errorf("title: %q, want %q", got, want)
	}
	onDisk := float64(r.Image.OwnBytes + r.Image.SharedBytes)
	samePercent(t, "efficiency", p.text("#efficiency"), 100*r.Efficiency)
	sameAmount(t, "as layers", p.text("#as-layers"), whole)
	sameAmount(t, "on disk", p.text("#on-disk"), onDisk)
	samePercent(t, "saved", p.text("#saved"), 100*(whole-onDisk)/whole)

	steps := sameRows(t, "steps", p.rows("#steps"), len(r.Waste)+2)
	sameAmount(t, "in layers", steps[0][2], whole)
	for i, w := range r.Waste {
		row := steps[i+1]
		if !strings.HasPrefix(strings.ToLower(row[0]), w.Cause) {
			t.Errorf("step %d: %q, want %s", i+1, row[0], w.Cause)
		}
		sameAmount(t, w.Cause, row[2], -float64(w.Bytes))
		samePercent(t, w.Cause, row[3], -100*float64(w.Bytes)/whole)
		if w.Files > 0 {
			sameCount(t, w.Cause, row[4], w.Files)
		} else if row[4] != "" {
			t.Errorf("%s: %q files", w.Cause, row[4])
		}
	}
	sameAmount(t, "on disk", steps[len(steps)-1][2], float64(r.OwnBytes))

	for i, row := range sameRows(t, "layers", p.rows("#layers"), len(r.Layers)) {
		l, what := r.Layers[i], fmt.Sprintf("layer %d", i+1)
		sameCount(t, what, row[0], uint64(i+1))
		sameAmount(t, what+" added", row[2], float64(l.Bytes))
		shadowed, share, _ := strings.Cut(row[3], "\n")
		sameAmount(t, what+" shadowed", strings.TrimSpace(shadowed), float64(l.ShadowedBytes))
		if l.ShadowedBytes > 0 {
			samePercent(t, what+" shadowed", share, 100*float64(l.ShadowedBytes)/float64(l.Bytes))
		}
		sameAmount(t, what+" again", row[4], float64(l.DuplicateBytes))
		sameCount(t, what+" files", row[5], l.Files)
	}
	if row := p.rows("#layers")[8]; !strings.HasPrefix(row[1], "RUN chown -R runner:runner /opt/hostedtoolcache /usr/local/go\n") {
		t.Errorf("command of layer 9: %q", row[1])
	}
	if row := p.rows("#layers")[14]; !strings.Contains(row[1], `\x1b[1mready`) {
		t.Errorf("command of layer 15: %q, want its escape to be seen", row[1])
	}

	for i, row := range sameRows(t, "paths", p.rows("#paths"), len(r.DuplicatePaths)) {
		d := r.DuplicatePaths[i]
		sameCount(t, row[2], row[0], uint64(d.Count))
		sameAmount(t, row[2], row[1], float64(d.Bytes))
		if row[2] != string(d.Path) {
			t.Errorf("path %q, want %q", row[2], d.Path)
		}
	}
	for i, row := range sameRows(t, "contents", p.rows("#contents"), len(r.DuplicateContents)) {
		d := r.DuplicateContents[i]
		sameCount(t, row[2], row[0], uint64(d.Count))
		sameAmount(t, row[2], row[1], float64(d.Bytes))
		for _, want := range []string{string(d.Paths[0]) + "\n", string(d.Paths[1]) + "\n", d.Digest[:19]} {
			if !strings.Contains(row[2], want) {
				t.Errorf("content %q, want %q in it", row[2], want)
			}
		}
	}
	advice := value[[]string](p, `[...document.querySelectorAll(".advice li")].map(e => e.innerText)`)
	if len(advice) != len(r.Advice) {
		t.Fatalf("advice: %q", advice)
	}
	for i, a := range r.Advice {
		if want := fmt.Sprintf("Layer %d", a.Layer+1); !strings.Contains(advice[i], want) || !strings.HasSuffix(strings.TrimSpace(advice[i]), a.Text) {
			t.Errorf("advice %d: %q", i, advice[i])
		}
		bytes, _, _ := strings.Cut(strings.TrimPrefix(advice[i], "up to "), " Layer")
		sameAmount(t, "advice", strings.TrimSpace(bytes), float64(a.Bytes))
	}
	// Where advice points to is on the page.
	if got := value[bool](p, `[...document.querySelectorAll("a[href^='#']")].every(a => document.getElementById(a.hash.slice(1)))`); !got {
		t.Error("a link leads nowhere")
	}
}

// Bars begin where the one before ended, and are as long as their numbers say.
func TestBarsFollowTheBytes(t *testing.T) {
	r := sample()
	p := open(t, r)
	type box struct{ X, Width float64 }
	bars := value[[]box](p, `[...document.querySelectorAll("#steps tbody tr")].map(row => {
		const track = row.querySelector("rect.track").getBoundingClientRect(), bar = row.querySelectorAll("rect")[1].getBoundingClientRect();
		return {X: (bar.x - track.x) / track.width, Width: bar.width / track.width};
	})`)
	at := 1.0
	for i, w := range r.Waste {
		width := float64(w.Bytes) / float64(r.LayerBytes)
		at -= width
		if got := bars[i+1]; math.Abs(got.X-at) > 0.002 || math.Abs(got.Width-width) > 0.002 {
			t.Errorf("%s: bar from %.3f, %.3f long; want %.3f, %.3f", w.Cause, got.X, got.Width, at, width)
		}
	}
	if last, want := bars[len(bars)-1], float64(r.OwnBytes)/float64(r.LayerBytes); last.X != 0 || math.Abs(last.Width-want) > 0.002 {
		t.Errorf("on disk: bar %v, want %.3f", last, want)
	}
}

// A report without anything is a page, too; and one whose compression costs more than it saves.
func TestUnusualReports(t *testing.T) {
	p := open(t, &adminapi.ReportResponse{})
	if got := p.text("#saved"); got != "-" {
		t.Errorf("saved: %q", got)
	}
	p = open(t, &adminapi.ReportResponse{
		LayerBytes: 1000, VisibleBytes: 1000, DistinctBytes: 1000, OwnBytes: 12288, Efficiency: 1,
		Waste: []*adminapi.Waste{{Cause: "compression", Bytes: -11288}, {Cause: "of tomorrow\u202e", Bytes: 0}},
		Tree:  &adminapi.Directory{Bytes: 1000, Files: 3},
	})
	steps := sameRows(t, "steps", p.rows("#steps"), 4)
	sameAmount(t, "compression", steps[1][2], 11288)
	if !strings.HasPrefix(steps[1][2], "+") || !strings.Contains(steps[1][0], "costs more") {
		t.Errorf("compression: %q", steps[1])
	}
	if !strings.HasPrefix(steps[2][0], `"of tomorrow\u202e"`) {
		t.Errorf("a cause that the page does not know: %q", steps[2])
	}
}
