// SPDX-License-Identifier: Apache-2.0

package page

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

// scheme has the browser ask for a scheme of colours.
func scheme(name string) step {
	return call(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}},
	})
}

// window sets the size of the window; narrow ones are those of telephones.
func window(width, height int64) step {
	return call(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: width, Height: height, DeviceScaleFactor: 1, Mobile: width < 720,
	})
}

// contrasts is the contrast, as WCAG defines it, of every text with the first background behind it.
const contrasts = `(() => {
	const parse = (c) => (c.match(/[\d.]+/g) || []).map(Number);
	const light = (c) => c.slice(0, 3).map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
		.reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
	const list = [];
	const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
	for (let n = walker.nextNode(); n; n = walker.nextNode()) {
		if (!n.data.trim() || !n.parentElement.checkVisibility()) continue;
		let opacity = 1, back = null;
		for (let e = n.parentElement; e; e = e.parentElement) {
			const style = getComputedStyle(e), c = parse(style.backgroundColor);
			if (!back && (c.length === 3 || c[3] === 1)) back = c;
			if (!back) opacity *= Number(style.opacity);
		}
		const front = parse(getComputedStyle(n.parentElement).color).slice(0, 3).map((v, i) => v * opacity + back[i] * (1 - opacity));
		const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
		list.push({Text: n.data.trim(), Contrast: (a + 0.05) / (b + 0.05)});
	}
	return list;
})()`

// shifts sums up how far the page moved what it had shown already.
const shifts = `new Promise((done) => {
	let sum = 0;
	const count = (list) => { for (const e of list) sum += e.value; };
	const o = new PerformanceObserver((list) => count(list.getEntries()));
	o.observe({type: "layout-shift", buffered: true});
	requestAnimationFrame(() => requestAnimationFrame(() => { count(o.takeRecords()); done(sum); }));
})`

// In every width and scheme all text can be read, nothing is wider than the window, and nothing moves.
func TestPageCanBeRead(t *testing.T) {
	looks := []struct {
		name, scheme  string
		width, height int64
	}{
		{"light", "light", 1280, 900},
		{"dark", "dark", 1280, 900},
		{"narrow", "light", 390, 844},
		{"narrow-dark", "dark", 390, 844},
	}
	backgrounds := map[string]string{}
	for _, look := range looks {
		t.Run(look.name, func(t *testing.T) {
			p := open(t, sample(), scheme(look.scheme), window(look.width, look.height))
			if got := value[int64](p, "innerWidth"); got != look.width {
				t.Fatalf("the window is %d wide", got)
			}
			if got := value[int64](p, "document.documentElement.scrollWidth"); got > look.width {
				t.Errorf("the page is %d wide", got)
			}
			if got := value[float64](p, shifts); got > 0 {
				t.Errorf("layout shifts: %f", got)
			}
			texts := value[[]struct {
				Text     string
				Contrast float64
			}](p, contrasts)
			if len(texts) < 200 {
				t.Errorf("only %d texts", len(texts))
			}
			for _, text := range texts {
				if text.Contrast < 4.5 {
					t.Errorf("%q has a contrast of %.2f", text.Text, text.Contrast)
				}
			}
			backgrounds[look.name] = value[string](p, "getComputedStyle(document.body).backgroundColor")
			// Numbers of a column end at the same place.
			ends := value[[]float64](p, `[...document.querySelectorAll("#paths td.bytes")].map(c => c.getBoundingClientRect().right)`)
			for _, end := range ends {
				if end != ends[0] {
					t.Errorf("numbers end at %v", ends)
					break
				}
			}
			if *screenshots != "" {
				png, err := chromedp.Run(p.ctx, chromedp.FullScreenshot(100))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(*screenshots, "squash-report-"+look.name+".png"), png, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	if backgrounds["light"] == backgrounds["dark"] {
		t.Errorf("light and dark have the same background: %v", backgrounds)
	}
}

// Without scripts the tables are there, and the map does not pretend to be.
func TestPageWithoutScripts(t *testing.T) {
	r := sample()
	p := open(t, r, call(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}))
	type seen struct{ Map, Note bool }
	if got := value[seen](p, `({Map: document.querySelector("#map").checkVisibility(), Note: document.querySelector(".scriptless").checkVisibility()})`); got.Map || !got.Note {
		t.Errorf("shown: %+v", got)
	}
	sameRows(t, "layers", p.rows("#layers"), len(r.Layers))
	sameRows(t, "paths", p.rows("#paths"), len(r.DuplicatePaths))
}

// nasty are names that an image may hold.
var nasty = []string{
	"</script><script>alert(1)</script>",
	"<img src=x onerror=alert(1)>",
	`"><svg onload=alert(1)>`,
	"{{.Name}} ${alert(1)} `alert(1)`",
	"<!--", "-->", "]]>", "\u2028\u2029", "&lt;b&gt; &amp;",
	"evil\u202egpj.exe", "\x1b]0;title\x07\x00", "line\nfeed\r", "\xff\xfe not UTF-8 \x80",
	"javascript:alert(1)", "' onmouseover='alert(1)", "א ב ג right to left",
	strings.Repeat("n", 255), strings.Repeat("\u0301", 100), "__proto__", "constructor",
}

// Whatever a name is, it is text.
func TestNastyNamesAreText(t *testing.T) {
	r := &adminapi.ReportResponse{
		Image: &adminapi.Image{Name: nasty[0], Platform: nasty[1], Digest: nasty[2], Manifest: nasty[3]},
		Tree:  &adminapi.Directory{}, LayerBytes: 1, Efficiency: 1,
	}
	for i, name := range nasty {
		raw := []byte(name)
		inner := &adminapi.Directory{Name: raw, Bytes: 1000, Files: 1}
		r.Tree.Directories = append(r.Tree.Directories, &adminapi.Directory{Name: raw, Bytes: 2000, Files: 2, Directories: []*adminapi.Directory{inner}})
		r.Tree.Bytes += 2000
		r.DuplicatePaths = append(r.DuplicatePaths, &adminapi.DuplicatePath{Path: raw, Count: 2, Bytes: 10})
		text := strings.ToValidUTF8(name, "\uFFFD") // strings of the API are UTF-8
		r.DuplicateContents = append(r.DuplicateContents, &adminapi.DuplicateContent{Digest: text, Size: 5, Count: 2, Bytes: 10, Paths: [][]byte{raw, raw}})
		r.Waste = append(r.Waste, &adminapi.Waste{Cause: text})
		r.Layers = append(r.Layers, &adminapi.LayerReport{Layer: &adminapi.Layer{Blob: text, CreatedBy: text, Created: text, Comment: text}})
		r.Advice = append(r.Advice, &adminapi.Advice{Layer: uint32(2 * i), Text: text})
	}
	for _, width := range []int64{1280, 390} {
		p := open(t, r, window(width, 900))
		if got := p.text("h1"); got != nasty[0] {
			t.Errorf("heading %q, want %q", got, nasty[0])
		}
		rows := sameRows(t, "paths", p.rows("#paths"), len(nasty))
		for i, want := range map[int]string{
			0: nasty[0], 1: nasty[1], 7: `"\u2028\u2029"`, 8: nasty[8], 9: `"evil\u202egpj.exe"`, 10: `"\x1b]0;title\a\x00"`,
			11: `"line\nfeed\r"`, 12: `"\xff\xfe not UTF-8 \x80"`, 15: nasty[15], 16: nasty[16],
		} {
			if rows[i][2] != want {
				t.Errorf("path %d is %q, want %q", i, rows[i][2], want)
			}
			found := false
			for _, d := range p.cells() {
				found = found || strings.HasPrefix(d.Label, "/"+want+": ")
			}
			if !found {
				t.Errorf("no cell of %q", want)
			}
		}
		// Nothing but the page's own elements.
		if got := value[string](p, `[...new Set([...document.querySelectorAll("*")].map(e => e.localName))].sort().join(" ")`); got !=
			"a abbr b bdi body button code dd div dl dt em h1 h2 head header html i li main meta nav ol p rect script section small span style svg table tbody td th thead title tr wbr" {
			t.Errorf("elements: %s", got)
		}
		if got := value[int](p, `document.scripts.length`); got != 2 {
			t.Errorf("%d scripts", got)
		}
		if got := value[string](p, `[...document.querySelectorAll("*")].flatMap(e => [...e.attributes]).map(a => a.name).filter(n => n.startsWith("on")).join()`); got != "" {
			t.Errorf("handlers: %s", got)
		}
		if got := value[int64](p, "document.documentElement.scrollWidth"); got > width {
			t.Errorf("the page is %d wide in a window of %d: %s", got, width, value[string](p, `[...document.querySelectorAll("*")]
				.filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.localName + "." + e.getAttribute("class")).join(" ")`))
		}
		p.run(chromedp.Evaluate[chromedp.Void](`document.querySelector("#map button:not([aria-disabled])").click()`))
		if got := p.way(); got == "/" {
			t.Error("a click did not open a directory")
		}
	}
}
