// SPDX-License-Identifier: Apache-2.0

package reportpage

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"regexp"
	"strconv"
	"strings"
	"testing"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

var words = Words{
	Size:    func(n uint64) string { return fmt.Sprintf("%d bytes", n) },
	Name:    func(name string) string { return strings.ToValidUTF8(name, "?") },
	Command: func(c string) string { return c },
	Version: "test",
}

func page(t *testing.T, r *adminapi.ReportResponse) string {
	t.Helper()
	var b strings.Builder
	if err := Write(&b, r, words); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

const hostile = `</script><script>alert(1)</script><img src=x onerror=alert(2)>" onload="`

func hostileReport() *adminapi.ReportResponse {
	return &adminapi.ReportResponse{
		Image: &adminapi.Image{Name: hostile, Platform: hostile}, LayerBytes: 1000, OwnBytes: 300, Efficiency: 0.5,
		Waste:             []*adminapi.Waste{{Cause: hostile, Bytes: 100}, {Cause: "compression", Bytes: -50}},
		DuplicatePaths:    []*adminapi.DuplicatePath{{Path: []byte(hostile + "\xff"), Count: 2, Bytes: 7}},
		DuplicateContents: []*adminapi.DuplicateContent{{Digest: hostile, Paths: [][]byte{[]byte(hostile)}}},
		Layers:            []*adminapi.LayerReport{{Layer: &adminapi.Layer{CreatedBy: hostile}, Bytes: 1000, ShadowedBytes: 400}},
		Advice:            []*adminapi.Advice{{Layer: 0, Bytes: 5, Text: hostile}},
		Tree:              &adminapi.Directory{Bytes: 500, Directories: []*adminapi.Directory{{Name: []byte(hostile), Bytes: 1 << 53}}},
	}
}

func TestNamesAreText(t *testing.T) {
	got := page(t, hostileReport())
	if n := strings.Count(got, "<script"); n != 2 {
		t.Errorf("%d scripts, want data and script", n)
	}
	for _, bad := range []string{"<img", `onload="`, "alert(1)</script>"} {
		if strings.Contains(got, bad) {
			t.Errorf("the page holds %q", bad)
		}
	}
}

// The policy allows this style and this script, to the byte, and nothing else.
func TestPolicyAllowsWhatThePageHas(t *testing.T) {
	got := page(t, hostileReport())
	policy := html.UnescapeString(regexp.MustCompile(`Content-Security-Policy" content="([^"]*)"`).FindStringSubmatch(got)[1])
	for _, part := range []string{"style", "script"} {
		text := regexp.MustCompile(`(?s)<` + part + `>(.*?)</` + part + `>`).FindStringSubmatch(got)[1]
		sum := sha256.Sum256([]byte(text))
		if want := fmt.Sprintf("%s-src 'sha256-%s'", part, base64.StdEncoding.EncodeToString(sum[:])); !strings.Contains(policy, want) {
			t.Errorf("policy %q has no %s", policy, want)
		}
	}
	if !strings.HasPrefix(policy, "default-src 'none';") || strings.Contains(policy, "unsafe") {
		t.Errorf("policy %q", policy)
	}
	if strings.Contains(got, "style=") || strings.Contains(got, "http://") || strings.Contains(got, "https://") {
		t.Error("the page has a style that the policy does not allow, or an address")
	}
}

func TestDataOfTheMap(t *testing.T) {
	got := page(t, hostileReport())
	data := regexp.MustCompile(`(?s)id="data">(.*?)</script>`).FindStringSubmatch(got)[1]
	var root directory
	if err := json.Unmarshal([]byte(data), &root); err != nil {
		t.Fatal(err)
	}
	if root.Bytes != 500 || len(root.Below) != 1 || root.Below[0].Name != hostile || root.Below[0].Bytes != 1<<53 {
		t.Errorf("got %+v", root)
	}
}

// Bars begin where the one before ends, and stay within their rail whatever the numbers are.
func TestStepsLineUp(t *testing.T) {
	r := &adminapi.ReportResponse{LayerBytes: 1000, OwnBytes: 5000, Waste: []*adminapi.Waste{{Cause: "overwritten", Bytes: 300}, {Cause: "deleted", Bytes: 200}, {Cause: "compression", Bytes: -4500}}}
	var got []string
	for _, s := range steps(r) {
		got = append(got, s.Name+" "+strconv.FormatFloat(s.At, 'g', 4, 64)+"+"+strconv.FormatFloat(s.Length, 'g', 4, 64))
	}
	if want := "in layers 0+100, overwritten 70+30, deleted 50+20, compression 50+0, on disk 0+100"; strings.Join(got, ", ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	page(t, &adminapi.ReportResponse{Image: &adminapi.Image{}}) // an image without anything
}
