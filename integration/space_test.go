// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/squash-snapshotter/squash/integration/images"
)

type spacePart struct {
	Name  string
	Count int64
	Bytes int64
}

type spaceUsage struct {
	Root            string
	Bytes           int64
	Parts, Contents []spacePart
}

type spaceCollection struct {
	Garbage, Kept []struct {
		Kind, Object, Why string
		Count, Bytes      int64
	}
	Bytes int64
}

func unmarshal(t *testing.T, text string, to any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), to); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}

// onDisk is what du says.
func onDisk(t *testing.T, dir string) int64 {
	t.Helper()
	out, err := exec.Command("du", "-s", "-B1", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("du: %v\n%s", err, out)
	}
	n, err := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestSquashctlAccountsForTheDisk(t *testing.T) {
	n := startNode(t, squash)
	img := told(t)
	ref := push(t, img)
	pull(t, n, squash, ref)
	squashctl(t, n, 0, "report", ref) // it is flat by now
	squashctl(t, n, 0, "gc")

	out, _ := squashctl(t, n, 0, "--format", "json", "df")
	var u spaceUsage
	unmarshal(t, out, &u)
	parts, contents := int64(0), int64(0)
	for _, p := range u.Parts {
		parts += p.Bytes
		if p.Name == "contents" {
			contents = p.Bytes
		}
	}
	for _, c := range u.Contents {
		contents -= c.Bytes
		if (c.Name == "visible") != (c.Count > 0) {
			t.Errorf("after a collection, of one flat image: %+v", c)
		}
	}
	if want := onDisk(t, u.Root); parts != want || u.Bytes != want || contents != 0 {
		t.Errorf("parts add up to %d, bytes are %d, du says %d; contents are off by %d", parts, u.Bytes, want, contents)
	}
	out, _ = squashctl(t, n, 0, "df")
	for _, want := range []string{u.Root + " takes up ", "\n  visible ", "ENCODING", " saved\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("df printed\n%swithout %q", out, want)
		}
	}

	out, _ = squashctl(t, n, 0, "gc", "--dry-run")
	if out != "there is no garbage\n" {
		t.Errorf("with nothing to remove, gc --dry-run printed\n%s", out)
	}

	// A second image keeps the base layer.
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	second := push(t, image(t, images.OCI, layers[0]))
	pull(t, n, squash, second)
	squashctl(t, n, 0, "report", second) // it is flat: nothing changes in the background
	ctr(t, n, "image", "rm", "--sync", ref)
	squashctl(t, n, 0, "gc")
	out, _ = squashctl(t, n, 0, "--format", "json", "gc")
	var c spaceCollection
	unmarshal(t, out, &c)
	if len(c.Garbage) > 0 {
		t.Errorf("a second collection found %+v", c.Garbage)
	}
	out, _ = squashctl(t, n, 0, "--format", "json", "df")
	unmarshal(t, out, &u)
	if want := onDisk(t, u.Root); u.Bytes != want {
		t.Errorf("bytes are %d, du says %d", u.Bytes, want)
	}

	ctr(t, n, "image", "rm", "--sync", second)
	squashctl(t, n, 0, "gc")
	out, _ = squashctl(t, n, 0, "--format", "json", "df")
	unmarshal(t, out, &u)
	for _, p := range u.Contents {
		if p.Count > 0 {
			t.Errorf("no image is left, and %+v", p)
		}
	}
}
