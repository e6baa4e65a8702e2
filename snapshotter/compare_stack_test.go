// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/testutil"
	"github.com/containerd/errdefs"
)

// What a builder has committed step by step is shown as a stack, and each step is
// compared by what it changed: the last one, one that is still active, also when
// the chain below has become flat since.
func TestCompareOfBuildSteps(t *testing.T) {
	testutil.RequiresRoot(t)
	c := newComparing(t)
	ctx := context.Background()
	names := []string{unpack(t, c.Snapshotter, c.blobs, changeable(), c.Snapshotter)}
	must(t, c.Flatten(ctx, names[0]))
	for i := range 5 {
		key, name := fmt.Sprint("step ", i), fmt.Sprint("committed ", i)
		m, err := c.Prepare(ctx, key, names[i])
		must(t, err)
		root, undo := mountFor(t, m)
		changeAtRandom(t, root, uint64(20+i))
		must(t, os.RemoveAll(root+"/number")) // a random change may have made anything of it
		must(t, os.WriteFile(root+"/number", fmt.Append(nil, i), 0o600))
		undo()
		must(t, c.Commit(ctx, name, key))
		t.Cleanup(func() { must(t, c.Remove(ctx, name)) })
		names = append(names, name)
	}
	top := len(names) - 1
	above := c.viewOf(t, names[top])
	if len(lowersOf(above)) < 2 {
		t.Fatalf("%v is no stack: this test proves nothing", above)
	}
	check := func(what, parent string, upper []mount.Mount) {
		t.Helper()
		below := c.viewOf(t, parent)
		layer, err := c.changes(c, below, upper)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		sameTree(t, treeOf(t, upper), appliedByContainerd(t, below, layer))
	}
	check("the last step", names[top-1], above)
	check("the first step", names[0], c.viewOf(t, names[1]))
	if _, err := c.changes(c, c.viewOf(t, names[top-2]), above); !errdefs.IsNotImplemented(err) {
		t.Errorf("two steps at once: got %v, want ErrNotImplemented", err)
	}
	active := c.activeOn(t, names[top])
	root, undo := mountFor(t, active)
	must(t, os.WriteFile(root+"/still active", nil, 0o600))
	undo()
	check("an active step", names[top], active)
	must(t, c.Flatten(ctx, names[top]))
	if n := len(lowersOf(c.viewOf(t, names[top]))); n != 1 {
		t.Fatalf("%d lower directories of a chain that is flat", n)
	}
	check("an active step on what has become flat", names[top], active)
	mixed := []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"ro", "lowerdir=" + lowersOf(above)[0]}}}
	if _, err := c.changes(c, c.viewOf(t, names[top-1]), mixed); !errdefs.IsNotImplemented(err) {
		t.Errorf("a part of a stack: got %v, want ErrNotImplemented", err)
	}
}
