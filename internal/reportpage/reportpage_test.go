// SPDX-License-Identifier: Apache-2.0

package reportpage

import (
	"bytes"
	"encoding/json"
	"errors"
	"html"
	"io"
	"math"
	"regexp"
	"strings"
	"testing"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

// How the page looks and works in a browser is tested in integration/page.

func write(t *testing.T, r *adminapi.ReportResponse) string {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, r); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

var (
	policyElement = regexp.MustCompile(`<meta http-equiv="Content-Security-Policy" content="([^"]*)">`)
	styles        = regexp.MustCompile(`(?s)<style>(.*?)</style>`)
	scripts       = regexp.MustCompile(`(?s)<script>(.*?)</script>`)
	data          = regexp.MustCompile(`(?s)<script type="application/json" id="tree">(.*?)</script>`)
)

// only returns what an expression that must match once has in its group.
func only(t *testing.T, e *regexp.Regexp, page string) string {
	t.Helper()
	found := e.FindAllStringSubmatch(page, -1)
	if len(found) != 1 {
		t.Fatalf("%s: %d times", e, len(found))
	}
	return found[0][1]
}

// A browser would take neither style nor script if the template changed a byte of them.
func TestPolicyAllowsWhatThePageHas(t *testing.T) {
	page := write(t, &adminapi.ReportResponse{})
	got := html.UnescapeString(only(t, policyElement, page))
	for _, want := range []string{
		"default-src 'none'",
		"style-src '" + source(only(t, styles, page)) + "'",
		"script-src '" + source(only(t, scripts, page)) + "'",
		"base-uri 'none'", "form-action 'none'",
	} {
		if !strings.Contains(got+";", want+";") {
			t.Errorf("policy %q, want %q in it", got, want)
		}
	}
	if strings.Contains(got, "unsafe") {
		t.Errorf("policy %q", got)
	}
}

// Neither a document nor an address of anything else: the page works offline, and looks the same in ten years.
func TestPageRefersToNothing(t *testing.T) {
	page := write(t, &adminapi.ReportResponse{Image: &adminapi.Image{Name: "a/b:1"}, Advice: []*adminapi.Advice{{Text: "x"}}})
	for _, found := range regexp.MustCompile(`(?i)\s(src|srcset|href|action|data|poster|style|on\w+)="?([^"\s>]*)|url\(|@import|https?://`).FindAllStringSubmatch(page, -1) {
		if !strings.HasPrefix(found[2], "#") {
			t.Errorf("the page has %q", found[0])
		}
	}
}

func TestNamesAreNoMarkup(t *testing.T) {
	for _, name := range []string{"</script><script>alert(1)</script>", "<!--<script>", "</style><b onclick=x>", `"'><b>`, "\u202e\u2066\x00\x1b\x9b\xff"} {
		raw, text := []byte(name), strings.ToValidUTF8(name, "\uFFFD")
		page := write(t, &adminapi.ReportResponse{
			Image: &adminapi.Image{Name: text, Platform: text, Digest: text},
			Tree:  &adminapi.Directory{Name: raw, Bytes: 1, Directories: []*adminapi.Directory{{Name: raw, Bytes: 1}}},

			DuplicatePaths:    []*adminapi.DuplicatePath{{Path: raw}},
			DuplicateContents: []*adminapi.DuplicateContent{{Digest: text, Paths: [][]byte{raw}}},
			Waste:             []*adminapi.Waste{{Cause: text}},
			Layers:            []*adminapi.LayerReport{{Layer: &adminapi.Layer{Blob: text, CreatedBy: text, Created: text}}},
			Advice:            []*adminapi.Advice{{Text: text}},
		})
		if strings.Contains(name, ">") && strings.Contains(page, name) {
			t.Errorf("%q is in the page as it is", name)
		}
		if i := strings.IndexFunc(page, func(r rune) bool {
			return r < ' ' && r != '\n' || r == 0x7f || r >= 0x80 && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == '\uFFFD'
		}); i >= 0 && !strings.Contains(text, "\uFFFD") {
			t.Errorf("%q: something that cannot be seen, after %q", name, page[max(0, i-40):i])
		}
		if got := strings.Count(page, "</script>"); got != 2 {
			t.Errorf("%q: %d ends of scripts, want 2", name, got)
		}
		only(t, scripts, page)
		var tree cell
		if err := json.Unmarshal([]byte(only(t, data, page)), &tree); err != nil || len(tree.Cells) != 1 {
			t.Errorf("%q: the data of the map: %v", name, err)
		}
	}
}

// The same report gives the same page.
func TestPageIsReproducible(t *testing.T) {
	r := &adminapi.ReportResponse{LayerBytes: 5, Waste: []*adminapi.Waste{{Cause: "deleted", Bytes: 2}, {Cause: "shared", Bytes: 1}}}
	if first, second := write(t, r), write(t, r); first != second {
		t.Error("two pages of one report differ")
	}
}

func TestWriteTellsOfErrors(t *testing.T) {
	read, write := io.Pipe()
	broken := errors.New("no space")
	read.CloseWithError(broken)
	if err := Write(write, &adminapi.ReportResponse{}); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
}

func TestBarsStayInTheirLine(t *testing.T) {
	list := steps(&adminapi.ReportResponse{
		LayerBytes: 100, OwnBytes: 250,
		Waste: []*adminapi.Waste{
			{Cause: "overwritten", Bytes: 40}, {Cause: "deleted", Bytes: math.MaxInt64}, {Cause: "compression", Bytes: -250},
		},
	})
	want := []step{
		{Kind: "sum", Bytes: "100 B", Share: "100.0 %", Bar: bar{"0.0", "400.0"}},
		{Kind: "wasted", Bytes: "−40 B", Share: "−40.0 %", Bar: bar{"240.0", "160.0"}},
		{Kind: "wasted", Bytes: "−9.2 EB", Share: "−9223372036854775808.0 %", Bar: bar{"0.0", "240.0"}},
		{Kind: "more", Bytes: "+250 B", Share: "+250.0 %", Bar: bar{"0.0", "1000.0"}},
		{Kind: "sum", Bytes: "250 B", Share: "250.0 %", Bar: bar{"0.0", "1000.0"}},
	}
	for i, w := range want {
		got := list[i]
		got.Title, got.What = "", ""
		if got != w {
			t.Errorf("step %d: got %+v, want %+v", i+1, got, w)
		}
	}
}

func TestCellsAddUpWhatIsWasted(t *testing.T) {
	c := newCell(&adminapi.Directory{
		Bytes: 900, Files: 1200, DuplicateBytes: 200, ShadowedBytes: 100,
		Directories: []*adminapi.Directory{{Name: []byte("a\nb"), Bytes: 100, Files: 1}, {Name: []byte("empty")}},
	}, 2000)
	if c.Area != 1000 || c.Share != "50.0 %" || c.Waste != 3 {
		t.Errorf("got %+v", c)
	}
	if want := "containers see 900 B in 1,200 files; 200 B of it is elsewhere in the image as well; 100 B was overwritten or deleted; 30.0 % wasted"; c.What != want {
		t.Errorf("got %q, want %q", c.What, want)
	}
	if len(c.Cells) != 2 || c.Cells[0].Name != `"a\nb"` || c.Cells[0].What != "containers see 100 B in 1 file" {
		t.Fatalf("directories: %+v", c.Cells)
	}
	if rest := c.Cells[1]; !rest.Rest || rest.Area != 900 || !strings.HasPrefix(rest.What, "containers see 800 B in 1,199 files; 200 B of it") {
		t.Errorf("what is in no directory: %+v", rest)
	}
}

func FuzzWrite(f *testing.F) {
	f.Add([]byte("</script>"), "`${x}`", int64(-5), uint64(7))
	f.Add([]byte{0xff, 0}, "\u2028<!--", int64(math.MinInt64), uint64(math.MaxUint64))
	f.Fuzz(func(t *testing.T, raw []byte, text string, signed int64, bytes uint64) {
		page := write(t, &adminapi.ReportResponse{
			Image: &adminapi.Image{Name: text, OwnBytes: bytes}, LayerBytes: bytes, OwnBytes: bytes,
			Waste:          []*adminapi.Waste{{Cause: text, Bytes: signed}},
			Tree:           &adminapi.Directory{Name: raw, Bytes: bytes, Directories: []*adminapi.Directory{{Name: []byte(text), Bytes: 1}}},
			DuplicatePaths: []*adminapi.DuplicatePath{{Path: raw, Bytes: bytes}},
			Layers:         []*adminapi.LayerReport{{Layer: &adminapi.Layer{CreatedBy: text, Blob: string(raw)}, Bytes: bytes, ShadowedBytes: bytes / 2}},
			Advice:         []*adminapi.Advice{{Text: text, Layer: uint32(bytes)}},
		})
		if got := strings.Count(page, "<script"); got != 2 {
			t.Errorf("%d scripts", got)
		}
		only(t, scripts, page)
		if err := json.Unmarshal([]byte(only(t, data, page)), &cell{}); err != nil {
			t.Error(err)
		}
	})
}
