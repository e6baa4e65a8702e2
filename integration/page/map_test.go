// SPDX-License-Identifier: Apache-2.0

package page

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

// drawn is a cell of the map as the browser has laid it out.
type drawn struct {
	Label, Class        string
	X, Y, Width, Height float64
	Opens               bool
}

func (d drawn) path() string {
	path, _, _ := strings.Cut(d.Label, ": ")
	return path
}

func (p *tab) cells() []drawn {
	p.t.Helper()
	return value[[]drawn](p, `[...document.querySelectorAll("#map button")].map(b => {
		const r = b.getBoundingClientRect(), map = b.parentNode.getBoundingClientRect();
		return {Label: b.getAttribute("aria-label"), Class: b.className, X: r.x - map.x, Y: r.y - map.y,
			Width: r.width, Height: r.height, Opens: !b.hasAttribute("aria-disabled")};
	})`)
}

// way is the breadcrumb.
func (p *tab) way() string {
	p.t.Helper()
	return value[string](p, `[...document.querySelectorAll("#crumbs button")].map(b => b.textContent).join(" ")`)
}

func find(t *testing.T, cells []drawn, path string) drawn {
	t.Helper()
	i := slices.IndexFunc(cells, func(d drawn) bool { return d.path() == path })
	if i < 0 {
		t.Fatalf("no cell of %s", path)
	}
	return cells[i]
}

func directory(d *adminapi.Directory, path string) *adminapi.Directory {
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		i := slices.IndexFunc(d.Directories, func(d *adminapi.Directory) bool { return string(d.Name) == name })
		d = d.Directories[i]
	}
	return d
}

// Areas are those of the directories, nothing covers anything else, and the numbers are in the labels.
func TestMapShowsDirectoriesInProportion(t *testing.T) {
	r := sample()
	p := open(t, r)
	cells := p.cells()
	whole := float64(r.LayerBytes)
	size := value[[]float64](p, `[map.clientWidth, map.clientHeight]`)
	top := 0
	for _, d := range cells {
		if strings.Count(d.path(), "/") != 1 || strings.HasPrefix(d.Label, "files and") {
			continue
		}
		top++
		dir := directory(r.Tree, d.path())
		want := float64(dir.Bytes+dir.ShadowedBytes) / whole
		if got := d.Width * d.Height / (size[0] * size[1]); math.Abs(got-want) > 0.005 {
			t.Errorf("%s has %.4f of the map, want %.4f", d.path(), got, want)
		}
		_, rest, _ := strings.Cut(d.Label, ": ")
		sized, _, _ := strings.Cut(rest, ",")
		sameAmount(t, d.path(), sized, float64(dir.Bytes+dir.ShadowedBytes))
		if share := float64(dir.DuplicateBytes+dir.ShadowedBytes) / float64(dir.Bytes+dir.ShadowedBytes); share > 0 && !strings.Contains(d.Label, fmt.Sprintf("%.1f %% wasted", 100*share)) {
			t.Errorf("%s: %q, want %.1f %% wasted", d.path(), d.Label, 100*share)
		}
	}
	if top < 4 || len(cells) < 60 {
		t.Errorf("%d cells, %d of them at the top", len(cells), top)
	}
	for i, a := range cells {
		for _, b := range cells[i+1:] {
			wide := min(a.X+a.Width, b.X+b.Width) - max(a.X, b.X)
			high := min(a.Y+a.Height, b.Y+b.Height) - max(a.Y, b.Y)
			inside := strings.HasPrefix(strings.TrimPrefix(b.path(), "files and small directories in ")+"/", a.path()+"/")
			if wide > 0.5 && high > 0.5 && !inside {
				t.Errorf("%q and %q overlap by %.1f x %.1f", a.Label, b.Label, wide, high)
			}
		}
	}
	if rest := find(t, cells, "files and small directories in /var/lib/dpkg"); !strings.Contains(rest.Label, "wasted") || !strings.Contains(rest.Class, "w5") {
		t.Errorf("files of dpkg: %+v", rest)
	}
	for path, class := range map[string]string{"/usr/lib/jvm": "w1", "/var/cache": "w5", "/usr": "w2", "/opt": "w3", "/root": "w0"} {
		if d := find(t, cells, path); !slices.Contains(strings.Fields(d.Class), class) {
			t.Errorf("%s has class %q, want %s", path, d.Class, class)
		}
	}
}

// Clicks, the breadcrumb and the keyboard lead into directories and back.
func TestMapIsZoomed(t *testing.T) {
	p := open(t, sample())
	const focused = `document.activeElement.getAttribute("aria-label") || ""`
	at := func(path string) string { return fmt.Sprintf(`#map button[aria-label^="%s: "]`, path) }
	expect := func(step, way, here string) {
		t.Helper()
		if got := p.way(); got != way {
			t.Errorf("%s: breadcrumb %q, want %q", step, got, way)
		}
		if got := p.text("#here"); !strings.HasPrefix(got, here) {
			t.Errorf("%s: %q, want %q", step, got, here)
		}
	}
	expect("at first", "/", "2.0 GB, 100.0 % of the image: containers see 1.4 GB in ")

	// Its title: what is in the middle of a directory belongs to a directory in it.
	title := find(t, p.cells(), "/usr")
	corner := value[[]float64](p, `(map.scrollIntoView({behavior: "instant"}), [map.getBoundingClientRect().x, map.getBoundingClientRect().y])`)
	p.run(chromedp.MouseClickXY(corner[0]+title.X+20, corner[1]+title.Y+8))
	expect("click", "/ usr", "1.0 GB, ")
	if n := len(p.cells()); n < 60 {
		t.Errorf("inside /usr: %d cells", n)
	}
	for _, d := range p.cells() {
		if !strings.Contains(d.Label, "/usr") {
			t.Errorf("inside /usr: %q", d.Label)
		}
	}
	p.run(chromedp.Click(chromedp.CSS(at("/usr/share/locale"))))
	if got := p.way(); !strings.HasPrefix(got, "/ usr share locale") {
		t.Errorf("a click two levels deeper: %q", got)
	}
	p.run(chromedp.Click(chromedp.CSS(`#crumbs li:nth-child(2) button`)))
	expect("breadcrumb", "/ usr", "1.0 GB, ")
	p.run(chromedp.Focus(chromedp.CSS(`#crumbs li:nth-child(1) button`)), chromedp.KeyEvent(kb.Enter))
	expect("breadcrumb to the root", "/", "2.0 GB, ")
	if got := value[string](p, focused); !strings.HasPrefix(got, "/usr: ") {
		t.Errorf("back at the root, %q has the focus, want the directory where one comes from", got)
	}

	// A directory that has the focus does not cover what is in it.
	if got := value[bool](p, `(() => {
		map.scrollIntoView({behavior: "instant"});
		const b = document.activeElement, r = b.getBoundingClientRect();
		return b.matches(":focus-visible") && document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2).closest("button") !== b;
	})()`); !got {
		t.Error("the directory with the focus covers what is in it, or shows no focus")
	}

	p.run(chromedp.KeyEvent(kb.Enter))
	expect("Enter", "/ usr", "1.0 GB, ")
	p.run(chromedp.KeyEvent(kb.Escape))
	expect("Escape", "/", "2.0 GB, ")
	p.run(chromedp.KeyEvent(kb.Escape))
	expect("Escape at the root", "/", "2.0 GB, ")
	// One stop of the Tab key, whatever the number of cells; arrows go from there to all of them.
	if got := value[int](p, `document.querySelectorAll("#map button[tabindex='0']").length`); got != 1 {
		t.Errorf("%d cells can be reached with Tab, want 1", got)
	}
	reached := map[string]bool{}
	for _, key := range []string{kb.ArrowRight, kb.ArrowDown, kb.ArrowLeft, kb.ArrowUp} {
		for range 12 {
			p.run(chromedp.KeyEvent(key))
			label := value[string](p, focused)
			if label == "" {
				t.Fatal("the focus has left the map")
			}
			reached[label] = true
			if hidden := value[bool](p, `tip.hidden`); hidden {
				t.Errorf("no tooltip for %q", label)
			}
			if got := value[string](p, `tip.firstElementChild.textContent`); !strings.Contains(label, got) {
				t.Errorf("tooltip %q for %q", got, label)
			}
		}
	}
	if len(reached) < 12 {
		t.Errorf("arrows reach %d cells", len(reached))
	}
}

// The address of the page names the directory that is shown: it can be handed on, and "back" leads back.
func TestAddressNamesADirectory(t *testing.T) {
	p := open(t, sample())
	back := func(want string) {
		t.Helper()
		value[any](p, `new Promise((done) => { addEventListener("popstate", () => setTimeout(done), {once: true}); history.back(); }).then(() => 0)`)
		if got := p.way(); got != want {
			t.Errorf("back: breadcrumb %q, want %q", got, want)
		}
	}
	visit := func(hash, want string) {
		t.Helper()
		value[any](p, fmt.Sprintf(`new Promise((done) => { addEventListener("popstate", () => setTimeout(done), {once: true}); location.hash = %q; }).then(() => 0)`, hash))
		if got := p.way(); got != want {
			t.Errorf("%s: breadcrumb %q, want %q", hash, got, want)
		}
	}
	p.run(chromedp.Evaluate[chromedp.Void](`document.querySelector('#map button[aria-label^="/usr: "]').click()`))
	if got := value[string](p, "location.hash"); got != "#/usr" {
		t.Errorf("address %q", got)
	}
	p.run(chromedp.Evaluate[chromedp.Void](`document.querySelector('#map button[aria-label^="/usr/share: "]').click()`))
	back("/ usr")
	back("/")
	visit("#/usr/lib/jvm", "/ usr lib jvm")
	visit("#layer-3", "/ usr lib jvm")
	visit("#/usr/no-such", "/ usr")
	visit("#/%E0%A4%A", "/")
}
