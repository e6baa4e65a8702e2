// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/treetest"
	"golang.org/x/sys/unix"
)

// never is a quiet time after which nothing settles while a test runs.
const never = time.Hour

// stackNode is a node whose stacks settle after some time.
func stackNode(t *testing.T, mode mounts.Mode, quiet time.Duration) *node {
	t.Helper()
	n := newNode(t, mode)
	n.close()
	n.cfg.quiet = quiet
	n.open()
	return n
}

// step is a build step: what change does in a container on parent is committed.
// It returns what the container saw in the end.
func (n *node) step(parent, name string, change func(root string)) treetest.Tree {
	n.t.Helper()
	ctx := context.Background()
	key, root, undo := n.run(parent)
	change(root)
	tree, err := treetest.Read(root)
	must(n.t, err)
	must(n.t, mount.UnmountAll(root, 0))
	must(n.t, n.Commit(ctx, name, key))
	undo()
	return tree
}

// built pulls and flattens an image, and makes some steps on top of it. names
// begin with the image's.
func (n *node) built(steps int) (names []string, trees []treetest.Tree) {
	n.t.Helper()
	names = []string{n.pull("ns/1", sample(1))}
	must(n.t, n.Flatten(context.Background(), names[0]))
	trees = []treetest.Tree{n.tree(names[0])}
	for i := range steps {
		name := fmt.Sprintf("ns/%d/step %d", 10+i, i+1)
		trees = append(trees, n.step(names[i], name, func(root string) {
			must(n.t, os.WriteFile(fmt.Sprintf("%s/opt/step%d", root, i+1), []byte(stepContent(i+1)), 0o640))
			must(n.t, os.WriteFile(root+"/etc/conf", fmt.Append(nil, "step ", i+1), 0o600))
		}))
		names = append(names, name)
	}
	return names, trees
}

func stepContent(i int) string { return noise(30_000, 5000+uint64(i)) }

// lowersOf are the lower directories that mounts name; a bind has its source.
func lowersOf(m []mount.Mount) []string {
	for _, o := range m[0].Options {
		if v, ok := strings.CutPrefix(o, "lowerdir="); ok {
			return strings.Split(v, ":")
		}
	}
	return []string{m[0].Source}
}

// height is how many lower directories show a snapshot.
func (n *node) height(name string) int {
	n.t.Helper()
	key := n.key("height")
	m, err := n.View(context.Background(), key, name)
	must(n.t, err)
	must(n.t, n.Remove(context.Background(), key))
	return len(lowersOf(m))
}

// layerImages counts the images of single layers.
func (n *node) layerImages() (count int) {
	n.t.Helper()
	images, err := n.imageFiles()
	must(n.t, err)
	for _, i := range images {
		if i.layers > 0 {
			count++
		}
	}
	return count
}

// A hundred steps of a build: each shows what its container saw, and the whole
// chain is flattened far less often.
func TestBuildStepsAreStacked(t *testing.T) {
	t.Parallel()
	n := stackNode(t, mounts.ModeAuto, never)
	// Large, for directories and the ends of index files are nobody's usage.
	name := n.pull("ns/1", append(sample(1), treetest.Layer(treetest.File("large", noise(12<<20, 1)))))
	must(t, n.Flatten(context.Background(), name))
	const steps = 100
	tallest := 0
	for i := range steps {
		parent := name
		name = fmt.Sprintf("ns/%d/step", 10+i)
		want := n.step(parent, name, func(root string) { buildStep(t, root, i) })
		n.shows(name, want)
		tallest = max(tallest, n.height(name))
	}
	images, err := n.imageFiles()
	must(t, err)
	flat := 0
	for _, i := range images {
		if i.layers == 0 {
			flat++
		}
	}
	// One is for the base, and one for half a stack of steps; twice in a while a
	// step comes before that is there.
	if flat < 2 || flat > 4 {
		t.Errorf("%d flat images after %d steps, want 2 to 4", flat, steps)
	}
	if tallest < 5 || tallest > 8 {
		t.Errorf("up to %d lower directories", tallest)
	}
	n.usagesAddUp("after a build")
	n.removeAll()
	must(t, n.Cleanup(context.Background()))
	n.expectNothingLeft()
}

// buildStep makes a few changes of every kind there is.
func buildStep(t *testing.T, root string, i int) {
	t.Helper()
	at := func(format string, args ...any) string { return filepath.Join(root, fmt.Sprintf(format, args...)) }
	must(t, os.WriteFile(at("opt/file%d", i), []byte(noise(100+i*97, uint64(i))), 0o644))
	switch i % 10 {
	case 0:
		must(t, errors.Join(os.MkdirAll(at("tree%d/a/b", i), 0o750), os.WriteFile(at("tree%d/a/b/f", i), []byte("deep"), 0o600)))
	case 1: // the second one's directory is in no image below
		must(t, errors.Join(os.Remove(at("opt/file%d", i-1)), os.Remove(at("tree%d/a/b/f", i-1))))
	case 2: // an opaque directory
		must(t, errors.Join(os.RemoveAll(at("tree%d/a", i-2)), os.Mkdir(at("tree%d/a", i-2), 0o711), os.WriteFile(at("tree%d/a/new", i-2), nil, 0o600)))
	case 3:
		must(t, os.Link(at("opt/file%d", i), at("etc/link%d", i)))
		if i == 3 { // later, the lower file has one name, and overlayfs shows two inodes as long as the container lives
			must(t, os.Link(at("etc/more"), at("link%d", i)))
		}
	case 4:
		must(t, errors.Join(os.Rename(at("opt/file%d", i-2), at("opt/renamed%d", i)), os.Chmod(at("etc"), 0o700|os.FileMode(i%8))))
	case 5:
		must(t, errors.Join(os.Symlink("../etc/conf", at("opt/symlink%d", i)), os.Chown(at("opt"), i, i+1)))
	case 6: // a file in a directory's place, and the other way round
		must(t, errors.Join(os.RemoveAll(at("tree%d", i-6)), os.WriteFile(at("tree%d", i-6), []byte("file"), 0o600),
			os.Remove(at("opt/file%d", i-1)), os.Mkdir(at("opt/file%d", i-1), 0o755)))
	case 7:
		must(t, errors.Join(unix.Setxattr(at("opt/file%d", i), "user.step", fmt.Append(nil, i), 0), unix.Setxattr(at("opt"), "user.step", fmt.Append(nil, i), 0),
			unix.Setxattr(root, "trusted.step", fmt.Append(nil, i), 0)))
	case 8:
		must(t, errors.Join(os.Chtimes(at("etc/conf"), time.Time{}, time.Unix(int64(i), 5)), os.Chtimes(root, time.Time{}, time.Unix(int64(i), 6)), os.Chmod(root, 0o751)))
	case 9:
		must(t, os.RemoveAll(at("link%d", i-6)))
		f, err := os.OpenFile(at("bin/tool"), os.O_WRONLY|os.O_APPEND, 0)
		must(t, err)
		_, err = f.WriteString("more")
		must(t, errors.Join(err, f.Close()))
	}
}

// Once nobody builds on a chain it is flattened, and no other of the build; its
// layers' images go.
func TestAStackSettles(t *testing.T) {
	t.Parallel()
	n := stackNode(t, mounts.ModeAuto, 2*time.Second)
	names, trees := n.built(3)
	top := names[3]
	if h := n.height(top); h != 3 {
		t.Errorf("%d lower directories after 3 steps, want 3", h)
	}
	waitFor(t, "the chain to be flat and its layers' images to go", func() error {
		if c := n.layerImages(); c > 0 || !exists(n.image(n.flatImage(top))) {
			return fmt.Errorf("%d layer images", c)
		}
		return n.Cleanup(context.Background())
	})
	for _, name := range names[1:3] {
		if exists(n.image(n.flatImage(name))) {
			t.Errorf("%s was flattened, too", name)
		}
	}
	if h := n.height(top); h != 1 {
		t.Errorf("%d lower directories of a flat chain", h)
	}
	for i := range names {
		n.shows(names[i], trees[i])
	}
}

// With much above the flat image nobody waits for the build to end.
func TestATallStackIsFlattenedAtOnce(t *testing.T) {
	t.Parallel()
	n := stackNode(t, mounts.ModeAuto, never)
	names, _ := n.built(1)
	want := n.step(names[1], "ns/4/many", func(root string) {
		for i := range minStackEntries * 2 / 3 {
			must(t, os.WriteFile(fmt.Sprintf("%s/opt/many%d", root, i), nil, 0o600))
		}
	})
	n.shows("ns/4/many", want)
	waitFor(t, "the chain to be flat", func() error { _, err := os.Stat(n.image(n.flatImage("ns/4/many"))); return err })
	n.shows("ns/4/many", want)
	if exists(n.image(n.flatImage(names[1]))) {
		t.Error("a small step was flattened, too")
	}
}

// Layers that a differ took in from a blob are not stacked, nor are large ones.
func TestPulledImagesHaveOneLowerDirectory(t *testing.T) {
	t.Parallel()
	n := stackNode(t, mounts.ModeAuto, never)
	names, _ := n.built(1)
	img := sample(1)
	must(t, n.Flatten(context.Background(), n.pull("ns/3", img[:2])))
	top := n.pull("ns/3", img[:2])
	if h := n.height(n.pull("ns/3", image{img[0], img[1], treetest.Layer(treetest.File("own", "x"))})); h != 1 {
		t.Errorf("%d lower directories of a pulled image", h)
	}
	if h := n.height(top); h != 1 {
		t.Errorf("%d lower directories of a flat image", h)
	}
	if h := n.height(names[1]); h != 2 {
		t.Errorf("%d lower directories of a small step", h)
	}
	n.step(names[1], "ns/4/large step", func(root string) {
		for i := range minStackEntries {
			must(t, os.WriteFile(fmt.Sprintf("%s/opt/many%d", root, i), nil, 0o600))
		}
	})
	if h := n.height("ns/4/large step"); h != 1 {
		t.Errorf("%d lower directories of a large step", h)
	}
}

// A layer that cannot be told by itself is not shown by itself.
func TestALayerThatImpliesDirectoriesIsFlattened(t *testing.T) {
	t.Parallel()
	n := stackNode(t, mounts.ModeAuto, never)
	img := image{treetest.Layer(treetest.Dir("d", treetest.Mode(0o700), treetest.Owner(5, 6))), treetest.Layer(treetest.File("d/file", "x"))}
	top := n.pull("ns/1", img)
	must(t, n.Flatten(context.Background(), img.names("ns/1")[0]))
	must(t, os.Remove(n.source(n.id(top)))) // as if it had been an upper directory
	if h := n.height(top); h != 1 {
		t.Errorf("%d lower directories", h)
	}
	n.showsLayers(top, img)
}
