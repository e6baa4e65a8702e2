// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// An image of many layers has each of its TOCs read once, however it is unpacked:
// those below are not there any more when the last one comes.
func TestEachLayerIsMergedOnce(t *testing.T) {
	t.Parallel()
	for _, parallel := range []bool{false, true} {
		t.Run(fmt.Sprintf("parallel=%t", parallel), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, mounts.ModeAuto)
			u := &unpacker{node: n, namespace: "ns", parallel: parallel}
			img := append(sample(1), treetest.Layer(treetest.File("top", "top")))
			name, err := u.unpack(img)
			must(t, err)
			ids := n.lineage(name)
			waitFor(t, "the layers below to be merged", func() error {
				tocs, err := n.summaries(context.Background(), ids)
				must(t, err)
				if below := n.merged.take(chainsOf(tocs)); below.layers < len(ids)-1 {
					return fmt.Errorf("%d layers are", below.layers)
				}
				return nil
			})
			for _, id := range ids[:len(ids)-1] {
				must(t, os.Rename(n.toc(id), n.toc(id)+".away"))
			}
			must(t, n.Flatten(context.Background(), name))
			for _, id := range ids[:len(ids)-1] {
				must(t, os.Rename(n.toc(id)+".away", n.toc(id)))
			}
			fresh := newNode(t, mounts.ModeAuto)
			n.shows(name, fresh.tree(fresh.pull("ns/1", img)))
		})
	}
}

// Trees are kept for a moment, and a few of them.
func TestMergedTreesAreForgotten(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	for seed := range uint64(4) {
		n.tree(n.pull(fmt.Sprint("ns/", seed), sample(seed)))
	}
	m := &n.merged
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.trees) == 0 || len(m.trees) > keepTrees {
		t.Errorf("%d trees are kept", len(m.trees))
	}
	for i := range m.trees {
		m.trees[i].used = time.Now().Add(-keepTree)
	}
	m.mu.Unlock()
	m.forget()
	m.mu.Lock()
	if len(m.trees) > 0 {
		t.Errorf("%d trees are kept that nobody asked for since", len(m.trees))
	}
}

// lineage returns the IDs of a committed snapshot and its parents, the bottom one
// first.
func (n *node) lineage(name string) (ids []string) {
	n.t.Helper()
	must(n.t, n.ms.WithTransaction(context.Background(), false, func(ctx context.Context) (err error) {
		if ids, err = committedChain(ctx, name); err == nil && len(ids) == 0 {
			err = errors.New("no such snapshot")
		}
		return err
	}))
	return ids
}
