// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/tree"
)

var day = time.Date(2026, time.May, 4, 3, 2, 1, 0, time.UTC)

func newTree(t *testing.T) *Tree {
	t.Helper()
	spool, err := NewSpool(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { spool.Close() })
	return New(spool, day)
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("call %d: %v", i+1, err)
		}
	}
}

// write makes a layer and lists the names in it.
func write(t *testing.T, before, after *Tree) (v1.Layer, []string) {
	t.Helper()
	store, err := images.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l, err := store.Layer("", images.GzipDefault, func(w *images.LayerWriter) error { return WriteLayer(w, before, after) })
	if err != nil {
		t.Fatal(err)
	}
	stream, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var names []string
	for in := tar.NewReader(stream); ; {
		h, err := in.Next()
		if err == io.EOF {
			return l, names
		}
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(h.Name, "/")
		if h.Typeflag == tar.TypeLink {
			name += " = " + h.Linkname
		}
		names = append(names, name)
	}
}

// sample has one of each, in a tree.
func sample(t *testing.T) *Tree {
	t.Helper()
	tr := newTree(t)
	must(t,
		tr.Dir("usr/bin", 0o755), tr.Symlink("bin", "usr/bin"),
		tr.File("bin/sh", 0o755, "shell"),
		tr.put(&tar.Header{Typeflag: tar.TypeLink, Name: "usr/bin/bash", Linkname: "bin/sh"}, nil),
		tr.File("opt/a/one", 0o644, "1"), tr.File("opt/a/two", 0o600, "2"), tr.File("opt/b/three", 0o644, ""),
		tr.Dir("opt/empty", 0o711),
	)
	return tr
}

// A layer has what a step wrote, with the directories above, and whiteouts of what it deleted; nothing else.
func TestLayerHasWhatChanged(t *testing.T) {
	base := sample(t)
	_, names := write(t, nil, base)
	all := []string{"bin", "opt", "opt/a", "opt/a/one", "opt/a/two", "opt/b", "opt/b/three", "opt/empty", "usr", "usr/bin",
		"usr/bin/bash", "usr/bin/sh = usr/bin/bash"}
	if !slices.Equal(names, all) {
		t.Errorf("first layer: %q", names)
	}
	for _, step := range []struct {
		name string
		do   func(*Tree) error
		want []string
	}{
		{"nothing", func(*Tree) error { return nil }, nil},
		{"append", func(tr *Tree) error { return tr.Append("opt/a/one", "1") }, []string{"opt", "opt/a", "opt/a/one"}},
		{"the same again", func(tr *Tree) error { return tr.File("opt/a/one", 0o644, "1") }, []string{"opt", "opt/a", "opt/a/one"}},
		{"chown", func(tr *Tree) error { return tr.Chown("usr", 7, 7) },
			[]string{"usr", "usr/bin", "usr/bin/bash", "usr/bin/sh = usr/bin/bash"}},
		{"chmod of a file", func(tr *Tree) error {
			return tr.Chmod("opt/a/one", func(m int64) int64 { return m | 0o020 })
		}, []string{"opt", "opt/a", "opt/a/one"}},
		{"touch of an empty directory", func(tr *Tree) error { return tr.Touch("opt/empty") }, []string{"opt", "opt/empty"}},
		{"remove files", func(tr *Tree) error { return tr.Remove("opt/*/t*") },
			[]string{"opt", "opt/a", "opt/a/.wh.two", "opt/b", "opt/b/.wh.three"}},
		{"remove a directory", func(tr *Tree) error { return tr.Remove("opt/a") }, []string{"opt", "opt/.wh.a"}},
		{"remove at the top", func(tr *Tree) error { return tr.Remove("opt") }, []string{".wh.opt"}},
		{"a file instead of a directory", func(tr *Tree) error {
			return errors.Join(tr.Remove("opt/a"), tr.File("opt/a", 0o644, "x"))
		}, []string{"opt", "opt/a"}},
		{"a directory instead of a file", func(tr *Tree) error {
			return errors.Join(tr.Remove("opt/a/one"), tr.File("opt/a/one/x", 0o644, "x"))
		}, []string{"opt", "opt/a", "opt/a/one", "opt/a/one/x"}},
	} {
		t.Run(step.name, func(t *testing.T) {
			after := base.Clone()
			must(t, step.do(after))
			if _, names := write(t, base, after); !slices.Equal(names, step.want) {
				t.Errorf("got %q, want %q", names, step.want)
			}
			if _, names := write(t, nil, base); !slices.Equal(names, all) {
				t.Errorf("the tree before the step has changed: %q", names)
			}
		})
	}
	if err := base.Clone().Remove("opt/no*"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("remove of nothing: %v", err)
	}
}

// The layers of many steps, laid over each other, are the tree after the last one; and they are the same every time.
func TestLayersMakeTheTree(t *testing.T) {
	steps := []func(*Tree) error{
		func(tr *Tree) error { return tr.Chown("opt", 1001, 1002) },
		func(tr *Tree) error { return errors.Join(tr.Remove("opt/a/one"), tr.Remove("opt/b")) },
		func(tr *Tree) error {
			return errors.Join(tr.File("opt/b/three", 0o755, "new"), tr.Append("opt/a/two", "+"))
		},
		func(tr *Tree) error { return errors.Join(tr.Remove("opt/a"), tr.Symlink("opt/a", "b")) },
		func(tr *Tree) error { return tr.Chmod("usr/bin/sh", func(int64) int64 { return 0o4711 }) },
	}
	var digests [2]v1.Hash
	for round := range digests {
		trees := []*Tree{nil, sample(t)}
		for i, step := range steps {
			next := trees[len(trees)-1].Clone()
			next.Now = day.Add(time.Duration(i+1) * time.Hour)
			must(t, step(next))
			trees = append(trees, next)
		}
		var stack []v1.Layer
		for i := 1; i < len(trees); i++ {
			l, _ := write(t, trees[i-1], trees[i])
			stack = append(stack, l)
		}
		img, err := images.Image(images.OCI, stack...)
		if err != nil {
			t.Fatal(err)
		}
		if digests[round], err = img.Digest(); err != nil {
			t.Fatal(err)
		}
		if got, want := visible(t, stack...), visible(t, whole(t, trees[len(trees)-1])); !slices.Equal(got, want) {
			t.Errorf("- one layer, + many:\n%s", strings.Join(tree.Diff(want, got, 20), "\n"))
		}
	}
	if digests[0] != digests[1] {
		t.Errorf("digests differ: %v", digests)
	}
}

func whole(t *testing.T, tr *Tree) v1.Layer {
	l, _ := write(t, nil, tr)
	return l
}

// visible is what a container sees. Which names share an inode is left out: a chmod through one of two names that a
// lower layer has splits them, as in overlayfs.
func visible(t *testing.T, stack ...v1.Layer) []string {
	t.Helper()
	img, err := images.Image(images.OCI, stack...)
	if err != nil {
		t.Fatal(err)
	}
	r, err := images.Replay(img)
	if err != nil {
		t.Fatal(err)
	}
	list := r.Visible()
	for i := range list {
		list[i].Twin = ""
	}
	return tree.Lines(list)
}

// A tar stream, and a directory of the host, become what GNU tar makes of them.
func TestUnpackAndCopy(t *testing.T) {
	var stream bytes.Buffer
	w := tar.NewWriter(&stream)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "./d/", Mode: 0o755, ModTime: day},
		{Typeflag: tar.TypeReg, Name: "./d/f", Mode: 0o4755, Uid: 3, Gid: 4, ModTime: day, Size: 5},
		{Typeflag: tar.TypeLink, Name: "./d/g", Linkname: "./d/f", ModTime: day},
		{Typeflag: tar.TypeSymlink, Name: "./d/l", Linkname: "f", Mode: 0o777, ModTime: day},
	} {
		must(t, w.WriteHeader(&h))
		if h.Size > 0 {
			if _, err := io.WriteString(w, "bytes"); err != nil {
				t.Fatal(err)
			}
		}
	}
	must(t, w.Close())
	tr := newTree(t)
	must(t, tr.Unpack(bytes.NewReader(stream.Bytes())))
	if files, n := tr.Sizes(); files != 2 || n != 10 {
		t.Errorf("%d names of files, %d bytes", files, n)
	}

	l := whole(t, tr)
	host := t.TempDir()
	in, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cmd := exec.CommandContext(t.Context(), "tar", "-C", host, "-x", "--numeric-owner", "--same-owner", "-p", "-f", "-")
	cmd.Stdin = in
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	list, err := tree.Walk(host)
	if err != nil {
		t.Fatal(err)
	}
	byPath := make(map[string]tree.Entry)
	for _, e := range list {
		byPath[e.Path] = e
	}
	if f, g := byPath["d/f"], byPath["d/g"]; f.Mode != 0o4755 || f.UID != 3 || f.GID != 4 || f.Size != 5 || g.Twin != "d/f" || f.Sec != day.Unix() {
		t.Errorf("got %v and %v", f, g)
	}
	if l := byPath["d/l"]; l.Target != "f" {
		t.Errorf("got %v", l)
	}

	again := newTree(t)
	must(t, os.WriteFile(filepath.Join(host, "left"), nil, 0o644))
	must(t, again.Copy("to", host, func(rel string) bool { return rel != "left" },
		func(rel string, _ fs.FileMode) bool { return rel == "d/f" }))
	if got, want := slices.Sorted(maps.Keys(again.find("to/d").children)), []string{"f", "g", "l"}; !slices.Equal(got, want) {
		t.Errorf("copied: %q", got)
	}
	if again.find("to/left") != nil || again.find("to/d/f").ino.header.Mode != 0o755 || again.find("to/d/g").ino.header.Mode != 0o644 {
		t.Error("copy took what it should not, or gave other modes")
	}
	short := tar.Header{Typeflag: tar.TypeReg, Name: "short", Size: 4}
	if err := again.put(&short, strings.NewReader("abc")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a content that ends early: %v", err)
	}
	if err := again.Unpack(bytes.NewReader(stream.Bytes()[:1600])); err == nil {
		t.Error("a stream that ends early was taken")
	}
}
