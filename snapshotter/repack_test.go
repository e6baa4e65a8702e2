// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/containerd/containerd/v2/pkg/testutil"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// scattered is an image of 300 small files of which an upper layer replaces
// seven of eight: every shared cluster of the lower one is mostly unused.
func scattered() image {
	lower, upper := []treetest.Step{treetest.Dir("d")}, []treetest.Step{}
	for i := range 300 {
		name := fmt.Sprintf("d/%d", i)
		lower = append(lower, treetest.File(name, noise(7500, uint64(i))))
		if i%8 != 0 {
			upper = append(upper, treetest.File(name, "short"))
		}
	}
	return image{treetest.Layer(lower...), treetest.Layer(upper...)}
}

const (
	scatteredNeeded = 38 * 7500
	scatteredAll    = 300 * 7500
)

// repacked waits until the pack stores no more than what is needed, with room
// for the ends of clusters.
func (n *node) repacked() {
	n.t.Helper()
	waitFor(n.t, "the needed contents are moved together and the rest is freed", func() error {
		if err := n.Cleanup(context.Background()); err != nil {
			return err
		}
		if st := n.pack.Stats(); st.Stored > scatteredNeeded*5/4 {
			return fmt.Errorf("%d bytes stored", st.Stored)
		}
		return nil
	})
}

func TestMostlyUnusedClustersAreRepacked(t *testing.T) {
	testutil.RequiresRoot(t)
	n := newNode(t, mounts.ModeAuto)
	img := scattered()
	top := n.pull("ns/1", img)
	must(t, n.Flatten(context.Background(), top))
	n.repacked()
	n.showsLayers(top, img)
	sum, err := n.Check(context.Background(), CheckOptions{}, func(f Finding) { t.Errorf("found %+v", f) })
	if err != nil || sum.Contents == 0 {
		t.Errorf("check: %+v, %v", sum, err)
	}
	n.close()
	n.open()
	n.repacked()
	n.showsLayers(top, img)
	// What was moved away comes back when another image shows it.
	other := n.pull("ns/2", image{img[0]})
	n.showsLayers(other, img[:1])
	n.removeAll()
	n.expectNothingLeft()
}

func TestClustersOfAnImageInUseStay(t *testing.T) {
	testutil.RequiresRoot(t)
	n := newNode(t, mounts.ModeAuto)
	img := scattered()
	top := n.pull("ns/1", img)
	_, root, undo := n.run(top)
	for range 3 {
		must(t, n.Cleanup(context.Background()))
	}
	if st := n.pack.Stats(); st.Stored < scatteredAll*3/4 { // some clusters are needed by nobody
		t.Errorf("%d bytes stored: clusters went that a container shows", st.Stored)
	}
	treetest.Check(t, img, root, treetest.Options{ImpliedMtime: true})
	undo()
	n.askSweep()
	n.repacked()
	n.showsLayers(top, img)
}

// Mounts that a client has got, and not mounted yet, stay what they are.
func TestClustersOfAnImageThatWasHandedOutStay(t *testing.T) {
	testutil.RequiresRoot(t)
	n := newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	img := scattered()
	top := n.pull("ns/1", img)
	key := n.key("container")
	m, err := n.Prepare(ctx, key, top)
	must(t, err)
	for range 3 {
		must(t, n.Cleanup(ctx))
		for _, lower := range lowersOf(m) {
			if _, err := os.Stat(lower + "/d"); err != nil {
				t.Fatalf("a lower directory of mounts that were handed out: %v", err)
			}
		}
	}
	root, undo := n.mounted(key, m)
	treetest.Check(t, img, root, treetest.Options{ImpliedMtime: true})
	undo()
	n.askSweep()
	n.repacked()
	n.showsLayers(top, img)
}

// showsLayers compares a view of a snapshot with an overlayfs of the layers.
func (n *node) showsLayers(name string, layers image) {
	n.t.Helper()
	root, undo := n.view(name)
	defer undo()
	treetest.Check(n.t, layers, root, treetest.Options{ImpliedMtime: true})
}
