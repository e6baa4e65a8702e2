// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/testutil"
	"github.com/opencontainers/go-digest"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// silent is containerd when it does not answer.
type silent struct{ *blobs }

func (silent) Kept(context.Context) (map[digest.Digest]bool, error) {
	return nil, errors.New("containerd is down")
}

// du is what the program of that name says about a directory.
func du(t *testing.T, dir string) int64 {
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

// treeHash is of all names, sizes, times and bytes below a directory; the pack's
// bytes, which are holes for the most part, are left out.
func treeHash(t *testing.T, dir string) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(h, path, info.Mode(), info.Size(), info.ModTime())
		if !info.Mode().IsRegular() || e.Name() == "pack" {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(h, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// usage measures the root, and checks that the parts add up, and to what du says.
func usage(t *testing.T, s *Snapshotter) DiskUsage {
	t.Helper()
	u, err := s.DiskUsage(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var parts, contents, pack int64
	for _, p := range u.Parts {
		parts += p.Bytes
		if p.Name == "contents" {
			pack = p.Bytes
		}
	}
	for _, p := range u.Contents {
		contents += p.Bytes
	}
	if want := du(t, s.root); parts != want || int64(u.Bytes) != want {
		t.Errorf("the parts add up to %d, bytes are %d, du says %d", parts, u.Bytes, want)
	}
	if contents != pack {
		t.Errorf("contents add up to %d, the pack takes up %d", contents, pack)
	}
	return u
}

func contentsPart(t *testing.T, u DiskUsage, name string) UsagePart {
	t.Helper()
	for _, p := range u.Contents {
		if p.Name == name {
			return p
		}
	}
	t.Fatalf("no part %q", name)
	return UsagePart{}
}

func TestDiskUsageSaysWhoNeedsContents(t *testing.T) {
	testutil.RequiresRoot(t)
	ctx := context.Background()
	blobs := newBlobs()
	s := open(t, blobs)
	if u := usage(t, s); u.Bytes == 0 || u.Free > u.FileSystem {
		t.Errorf("of an empty root: %+v", u)
	}
	top := unpack(t, s, blobs, [][]byte{baseLayer, topLayer}, s)
	u := usage(t, s)
	if p := contentsPart(t, u, "unflattened"); p.Count != 5 || contentsPart(t, u, "visible").Count != 0 {
		t.Errorf("before it is flat: %+v", u.Contents)
	}
	if want := uint64(len(replaced) + len(deleted) + len(hidden) + 2*len(kept) + len(newer)); u.LayerBytes != want {
		t.Errorf("layers have %d bytes, want %d", u.LayerBytes, want)
	}
	blobs.remove(baseLayer)
	if err := s.Flatten(ctx, top); err != nil {
		t.Fatal(err)
	}
	if err := s.Cleanup(ctx); err != nil {
		t.Fatal(err)
	}
	u = usage(t, s)
	if p := contentsPart(t, u, "not-restorable"); p.Count != 3 || contentsPart(t, u, "visible").Count != 2 {
		t.Errorf("its blob is gone: %+v", u.Contents)
	}
	blobs.add(baseLayer)
	u = usage(t, s)
	if p := contentsPart(t, u, "unreferenced"); p.Count != 3 || p.Bytes < int64(len(deleted)) {
		t.Errorf("its blob is back: %+v", u.Contents)
	}
	var contents uint64
	for _, e := range u.Encodings {
		contents += e.Contents
	}
	if contents != 5 {
		t.Errorf("encodings: %+v", u.Encodings)
	}
}

// What a dry run foretells is what a collection does, and frees on the disk.
func TestCollectDoesWhatItsDryRunSays(t *testing.T) {
	testutil.RequiresRoot(t)
	ctx := context.Background()
	blobs := newBlobs()
	s := open(t, blobs)
	top := flattened(t, s, blobs, baseLayer, topLayer)
	gone := treetest.Layer(treetest.File("gone", bytesOf(77, 2_000_000)))
	other := unpackOn(t, s, blobs, t.Name()+" layer 0", [][]byte{gone}, s)
	if err := s.Flatten(ctx, other); err != nil {
		t.Fatal(err)
	}
	s.collecting.Lock() // nobody else collects
	defer s.collecting.Unlock()
	err := s.update(ctx, func(ctx context.Context) error { _, _, err := storage.Remove(ctx, other); return err })
	if err != nil {
		t.Fatal(err)
	}
	hash, before := treeHash(t, s.root), du(t, s.root)
	var foretold, done, again Collection
	if _, _, err := s.foresee(ctx, &foretold); err != nil {
		t.Fatal(err)
	}
	if got := treeHash(t, s.root); got != hash {
		t.Fatal("a dry run changed the root")
	}
	kinds := map[string]int{}
	for _, g := range foretold.Garbage {
		kinds[g.Kind]++
	}
	if kinds["image"] == 0 || kinds["layer"] != 1 || kinds["contents"] != 1 {
		t.Errorf("foretold: %+v", foretold)
	}
	if err := s.collectNow(ctx, true, &done); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(done) != fmt.Sprint(foretold) {
		t.Errorf("done:     %+v\nforetold: %+v", done, foretold)
	}
	// The index is rewritten, and directories do not shrink.
	if freed := before - du(t, s.root); freed < int64(done.Bytes())-16<<10 || freed > int64(done.Bytes())+64<<10 {
		t.Errorf("the disk has %d bytes more, the answer says %d", freed, done.Bytes())
	}
	if _, _, err := s.foresee(ctx, &again); err != nil || len(again.Garbage) > 0 {
		t.Errorf("after it: %+v, %v", again, err)
	}
	treetest.Check(t, [][]byte{baseLayer, topLayer}, view(t, s, top), treetest.Options{ImpliedMtime: true})
}

// Clusters that go as a whole are contents that are freed, and none to be moved.
func TestADryRunTellsEachClusterOnce(t *testing.T) {
	testutil.RequiresRoot(t)
	ctx := context.Background()
	lower, upper := []treetest.Step{treetest.Dir("d")}, []treetest.Step{}
	for i := range 300 {
		name := fmt.Sprintf("d/%d", i)
		lower = append(lower, treetest.File(name, noise(7500, uint64(i))))
		if i%100 != 0 {
			upper = append(upper, treetest.File(name, "short"))
		}
	}
	blobs := newBlobs()
	s := open(t, blobs)
	top := unpack(t, s, blobs, [][]byte{treetest.Layer(lower...), treetest.Layer(upper...)}, s)
	s.collecting.Lock() // nobody else collects
	defer s.collecting.Unlock()
	if err := s.Flatten(ctx, top); err != nil {
		t.Fatal(err)
	}
	var foretold, done Collection
	if _, _, err := s.foresee(ctx, &foretold); err != nil {
		t.Fatal(err)
	}
	if err := s.collectNow(ctx, true, &done); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(done) != fmt.Sprint(foretold) {
		t.Errorf("done:     %+v\nforetold: %+v", done, foretold)
	}
	if len(foretold.Garbage) != 1 || len(foretold.Kept) != 1 || foretold.Kept[0].Kind != "clusters" {
		t.Errorf("foretold: %+v; want contents that go, and clusters", foretold)
	}
}

func TestCollectSaysWhyItKeeps(t *testing.T) {
	testutil.RequiresRoot(t)
	ctx := context.Background()
	blobs := newBlobs()
	s := open(t, blobs)
	top := unpack(t, s, blobs, [][]byte{baseLayer, topLayer}, s)
	blobs.remove(baseLayer)
	if err := s.Flatten(ctx, top); err != nil {
		t.Fatal(err)
	}
	c, err := s.Collect(ctx, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Kept) != 1 || c.Kept[0].Count != 3 || !strings.Contains(c.Kept[0].Why, "does not keep its blob sha256:") {
		t.Errorf("its blob is gone: %+v", c)
	}
	s.cfg.Content = silent{blobs}
	blobs.add(baseLayer)
	if c, err = s.Collect(ctx, true); err != nil || len(c.Kept) != 1 || !strings.Contains(c.Kept[0].Why, "containerd does not tell") {
		t.Errorf("containerd does not answer: %+v, %v", c, err)
	}
	if c, err = s.Collect(ctx, false); err != nil || !has(t, s, deleted) {
		t.Errorf("containerd does not answer: %+v, %v", c, err)
	}
}

func TestCollectSaysWhereAnImageIsMounted(t *testing.T) {
	testutil.RequiresRoot(t)
	ctx := context.Background()
	blobs := newBlobs()
	s := open(t, blobs)
	top := flattened(t, s, blobs, baseLayer)
	m, err := s.View(ctx, "view", top)
	if err != nil {
		t.Fatal(err)
	}
	target := t.TempDir()
	if err := mount.All(m, target); err != nil {
		t.Fatal(err)
	}
	defer mount.UnmountAll(target, 0)
	s.collecting.Lock() // nobody else collects
	defer s.collecting.Unlock()
	for _, name := range []string{"view", top} {
		if err := s.update(ctx, func(ctx context.Context) error { _, _, err := storage.Remove(ctx, name); return err }); err != nil {
			t.Fatal(err)
		}
	}
	var foretold, done Collection
	if _, _, err := s.foresee(ctx, &foretold); err != nil {
		t.Fatal(err)
	}
	if len(foretold.Kept) != 1 || foretold.Kept[0].Kind != "image" || !strings.HasSuffix(foretold.Kept[0].Why, "is mounted at "+target) {
		t.Errorf("kept: %+v", foretold.Kept)
	}
	for _, g := range foretold.Garbage {
		if g.Kind == "contents" {
			t.Errorf("contents that the mounted image shows would go: %+v", g)
		}
	}
	if err := s.collectNow(ctx, true, &done); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(done.Kept) != fmt.Sprint(foretold.Kept) {
		t.Errorf("done:     %+v\nforetold: %+v", done.Kept, foretold.Kept)
	}
}
