// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/treetest"
	"golang.org/x/sys/unix"
)

// appliedByContainerd shows what a layer makes of a parent when containerd's own
// applier unpacks it and overlayfs stacks the two.
func appliedByContainerd(t testing.TB, parent []mount.Mount, layer []byte) treetest.Tree {
	t.Helper()
	dir := t.TempDir()
	upper, bottom := filepath.Join(dir, "upper"), filepath.Join(dir, "bottom")
	must(t, errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(bottom, 0o755)))
	lowers := lowersOf(parent)
	ctx := log.WithLogger(context.Background(), log.L)
	_, err := archive.Apply(ctx, upper, bytes.NewReader(layer), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(lowers))
	must(t, err)
	st, err := os.Stat(lowers[0])
	must(t, err)
	must(t, os.Chmod(upper, st.Mode())) // no layer says anything about the root
	return treeOf(t, []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"ro", "lowerdir=" + upper + ":" + strings.Join(lowers, ":") + ":" + bottom}}})
}

// appliedInPlace is the same by containerd's applier on a copy of the parent,
// from which it deletes what the layer hides.
func appliedInPlace(t testing.TB, parent []mount.Mount, layer []byte) treetest.Tree {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("cp", "-a", parent[0].Source+"/.", dir).CombinedOutput(); err != nil {
		t.Fatalf("copy the parent: %v: %s", err, out)
	}
	_, err := archive.Apply(context.Background(), dir, bytes.NewReader(layer))
	must(t, err)
	tree, err := treetest.Read(dir)
	must(t, err)
	return tree
}

// appliedBySquash is the same with our differ and a flat image.
func (c comparing) appliedBySquash(t *testing.T, parent string, layer []byte) (tree treetest.Tree) {
	t.Helper()
	t.Run(randomName(), func(t *testing.T) { // which removes it
		top := unpackOn(t, c.Snapshotter, c.blobs, parent, [][]byte{layer}, c.Snapshotter)
		tree = treeOf(t, c.viewOf(t, top))
	})
	return tree
}

// coarse is what containerd's walking differ keeps of a tree: whole seconds, no
// times of directories that have nothing else new, of all attributes the
// capabilities, and no word of a link that was torn by nothing but one of these.
func coarse(tree treetest.Tree) treetest.Tree {
	rough := treetest.Tree{Entries: map[string]*treetest.Entry{}, Ghosts: tree.Ghosts}
	for p, e := range tree.Entries {
		e := *e
		e.Mtime.Nsec, e.Links = 0, nil
		if e.Mode&unix.S_IFMT == unix.S_IFDIR {
			e.Mtime.Sec = 0
		}
		e.Xattrs = maps.Clone(e.Xattrs)
		maps.DeleteFunc(e.Xattrs, func(name, _ string) bool { return name != "security.capability" })
		rough.Entries[p] = &e
	}
	return rough
}

// bareDirectories leaves out what an applier that changes directories in place
// cannot know to be gone: attributes of a directory that was there before.
func bareDirectories(tree treetest.Tree) treetest.Tree {
	bare := treetest.Tree{Entries: map[string]*treetest.Entry{}, Ghosts: tree.Ghosts}
	for p, e := range tree.Entries {
		e := *e
		if e.Mode&unix.S_IFMT == unix.S_IFDIR {
			e.Xattrs = nil
		}
		bare.Entries[p] = &e
	}
	return bare
}

// checkChange compares an active snapshot with its parent and requires that the
// layer, applied over the parent, shows what the snapshot showed.
func (c comparing) checkChange(t *testing.T, parent string, change func(t *testing.T, root string)) {
	t.Helper()
	below, active := c.viewOf(t, parent), c.activeOn(t, parent)
	root, undo := mountFor(t, active)
	change(t, root)
	undo()
	want := treeOf(t, active) // mounted anew: what a copy-up tore apart or linked shows only then

	layer, err := c.changes(c, below, active)
	must(t, err)
	t.Run("applied by containerd", func(t *testing.T) { sameTree(t, want, appliedByContainerd(t, below, layer)) })
	t.Run("applied in place", func(t *testing.T) {
		sameTree(t, bareDirectories(want), bareDirectories(appliedInPlace(t, below, layer)))
	})
	t.Run("applied by squash", func(t *testing.T) { sameTree(t, want, c.appliedBySquash(t, parent, layer)) })
	t.Run("as the walking differ", func(t *testing.T) {
		walked, err := c.changes(walking.NewWalkingDiff(c.store), below, active)
		must(t, err)
		sameTree(t, coarse(appliedByContainerd(t, below, walked)), coarse(want))
	})
	if t.Failed() {
		t.Log("the layer:\n" + listing(layer))
	}
}

// listing is a layer for people.
func listing(layer []byte) string {
	var b bytes.Buffer
	r := tar.NewReader(bytes.NewReader(layer))
	for {
		h, err := r.Next()
		if err != nil {
			return b.String()
		}
		fmt.Fprintf(&b, "%c %04o %d:%d %8d %s %q -> %q %q\n", h.Typeflag, h.Mode, h.Uid, h.Gid, h.Size, h.ModTime.UTC().Format(time.RFC3339Nano), h.Name, h.Linkname, slices.Sorted(maps.Keys(h.PAXRecords)))
	}
}
