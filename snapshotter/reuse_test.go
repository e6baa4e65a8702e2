// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// reuseNode is a node below a containerd of some version.
func reuseNode(t *testing.T, version string) *node {
	t.Helper()
	n := newNode(t, mounts.ModeAuto)
	n.close()
	n.cfg.ContainerdVersion = func(context.Context) (string, error) { return version, nil }
	n.open()
	return n
}

// unpacker is a client of containerd that unpacks images with labels.
type unpacker struct {
	*node
	namespace string
	parallel  bool // Prepare names no parents, Commit does
	diffIDs   bool // knows the labels of containerd 2.3
	number    int
	// What became of the layers.
	applied, staged, remote int
}

// unpack is what containerd's unpacker and its metadata store do together.
func (u *unpacker) unpack(img image) (top string, err error) {
	ctx := namespaces.WithNamespace(context.Background(), u.namespace)
	var diffIDs []digest.Digest
	parent := ""
	for i, l := range img {
		below := diffIDs
		diffIDs = append(diffIDs, digest.FromBytes(l))
		chain := func(ids []digest.Digest) string { return identity.ChainID(ids).String() }
		labels := map[string]string{snapshots.LabelSnapshotRef: chain(diffIDs)}
		if u.diffIDs {
			labels[snapshots.LabelSnapshotDiffID] = diffIDs[i].String()
			if i > 0 {
				labels[labelParentChain] = chain(below)
			}
		}
		u.number++
		key := fmt.Sprintf("%s/%d/extract-%d %s", u.namespace, u.number, u.number, chain(diffIDs))
		prepareOn := parent
		if u.parallel {
			prepareOn = ""
		}
		m, err := u.Prepare(ctx, key, prepareOn, snapshots.WithLabels(labels))
		if errdefs.IsAlreadyExists(err) {
			// containerd looks the snapshot up by label and parent.
			found := ""
			err := u.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
				if info.Kind == snapshots.KindCommitted && found == "" {
					found = info.Name
				}
				return nil
			}, fmt.Sprintf("labels.%q==%s,parent==%q", snapshots.LabelSnapshotRef, chain(diffIDs), prepareOn))
			if err != nil || found == "" {
				return "", fmt.Errorf("layer %d exists and is not found: %v", i, err)
			}
			u.remote++
			parent = found
			continue
		}
		if err != nil {
			return "", err
		}
		if m[len(m)-1].ReadOnly() {
			u.staged++
		} else {
			desc := u.blobs.add(l)
			got, err := u.Apply(ctx, desc, m)
			if err != nil || got.Digest != diffIDs[i] {
				return "", fmt.Errorf("apply layer %d: %s, %w", i, got.Digest, err)
			}
			u.applied++
		}
		u.number++
		name := fmt.Sprintf("%s/%d/%s", u.namespace, u.number, chain(diffIDs))
		opts := []snapshots.Opt{snapshots.WithLabels(labels)}
		if u.parallel && parent != "" {
			opts = append(opts, snapshots.WithParent(parent))
		}
		if err := u.Commit(ctx, name, key, opts...); err != nil {
			return "", err
		}
		parent = name
	}
	return parent, nil
}

func (u *unpacker) counts() [3]int { return [3]int{u.applied, u.staged, u.remote} }

// Whatever containerd and its client speak, the image is the same, and only what
// the node lacks is applied.
func TestLayersThatAreThereAreReused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		version           string
		parallel, diffIDs bool
		want              [3]int // layers applied, staged, found in place
	}{
		{"v2.4.2", false, true, [3]int{0, 3, 0}},
		{"2.4.0+unknown", true, true, [3]int{0, 3, 0}},
		{"v2.5.0-rc.1", true, true, [3]int{0, 3, 0}},
		{"v2.4.2", false, false, [3]int{1, 0, 2}}, // a client that unpacks by itself, and is older
		{"v2.3.7", false, true, [3]int{1, 0, 2}},
		{"v2.3.7", true, true, [3]int{3, 0, 0}},
		{"v2.2.9", true, false, [3]int{3, 0, 0}},
		{"v2.0.14", false, false, [3]int{0, 0, 3}},
		{"1.6.20~ds1", false, false, [3]int{0, 0, 3}},
		{"dev", false, true, [3]int{3, 0, 0}},
	} {
		t.Run(fmt.Sprintf("%s parallel=%t diffIDs=%t", c.version, c.parallel, c.diffIDs), func(t *testing.T) {
			t.Parallel()
			n := reuseNode(t, c.version)
			img := sample(1)
			first := &unpacker{node: n, namespace: "a", parallel: c.parallel, diffIDs: c.diffIDs}
			top, err := first.unpack(img)
			must(t, err)
			if first.counts() != [3]int{3, 0, 0} {
				t.Errorf("a new image: %v", first.counts())
			}
			must(t, n.Flatten(context.Background(), top))
			must(t, n.Cleanup(context.Background()))
			want := n.tree(top)

			second := &unpacker{node: n, namespace: "b", parallel: c.parallel, diffIDs: c.diffIDs}
			again, err := second.unpack(img)
			must(t, err)
			if second.counts() != c.want {
				t.Errorf("the same image in another namespace: %v applied, staged, in place; want %v", second.counts(), c.want)
			}
			n.shows(again, want)
			sum, err := n.Check(context.Background(), CheckOptions{}, func(f Finding) { t.Errorf("check: %+v", f) })
			if err != nil || sum.Findings > 0 {
				t.Errorf("check: %+v, %v", sum, err)
			}
			if shared := strings.HasPrefix(again, "a/"); shared != (c.want[2] == 3) {
				t.Errorf("%s is shared: %t", again, shared)
			} else if shared {
				return // both namespaces have the same snapshots
			}
			// What the one has does not hang on the other.
			for _, info := range n.all() {
				if strings.HasPrefix(info.Name, "a/") {
					must(t, n.Remove(context.Background(), info.Name))
				}
			}
			must(t, n.Cleanup(context.Background()))
			n.shows(again, want)
			n.removeAll()
			must(t, n.Cleanup(context.Background()))
			n.expectNothingLeft()
		})
	}
}

// The same layer on top of others.
func TestALayerIsReusedBelowAnotherChain(t *testing.T) {
	t.Parallel()
	n := reuseNode(t, "v2.4.2")
	tools := treetest.Layer(treetest.Dir("implied/dir", treetest.Mode(0o700)), treetest.File("implied/tool", noise(30_000, 7)))
	one := image{treetest.Layer(treetest.Dir("implied", treetest.Mode(0o711), treetest.Owner(1, 1))), tools}
	two := image{treetest.Layer(treetest.Dir("implied", treetest.Mode(0o755), treetest.Owner(2, 2)), treetest.File("other", "x")), tools}
	u := &unpacker{node: n, namespace: "ns", parallel: true, diffIDs: true}
	_, err := u.unpack(one)
	must(t, err)
	top, err := u.unpack(two)
	must(t, err)
	if want := [3]int{3, 1, 0}; u.counts() != want {
		t.Errorf("%v applied, staged, in place; want %v", u.counts(), want)
	}
	fresh := newNode(t, mounts.ModeAuto)
	n.shows(top, fresh.tree(fresh.pull("ns/1", two)))
}

// Labels may be anything: a layer is what Apply found it to be.
func TestLabelsDoNotMakeALayerAnother(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"v2.4.2", "v2.0.14"} {
		n := reuseNode(t, version)
		u := &unpacker{node: n, namespace: "ns", diffIDs: true}
		img := sample(1)
		_, err := u.unpack(img)
		must(t, err)
		known, other := digest.FromBytes(img[0]), digest.FromString("other")
		chain := func(ids ...digest.Digest) string { return identity.ChainID(ids).String() }
		for i, labels := range []map[string]string{
			{snapshots.LabelSnapshotRef: other.String(), snapshots.LabelSnapshotDiffID: known.String()},
			{snapshots.LabelSnapshotRef: known.String(), snapshots.LabelSnapshotDiffID: known.String(), labelParentChain: other.String()},
			{snapshots.LabelSnapshotRef: chain(other, known), snapshots.LabelSnapshotDiffID: known.String()},
			{snapshots.LabelSnapshotRef: other.String(), snapshots.LabelSnapshotDiffID: other.String()},
			{snapshots.LabelSnapshotRef: "sha256:short", snapshots.LabelSnapshotDiffID: known.String()},
			{snapshots.LabelSnapshotDiffID: known.String()},
		} {
			m, err := n.Prepare(context.Background(), fmt.Sprintf("ns/%d/extract-forged", 100+i), "", snapshots.WithLabels(labels))
			if err != nil || m[0].ReadOnly() {
				t.Errorf("%s: %v: %v, %v", version, labels, m, err)
			}
		}
	}
}

// A client that does not know what read-only mounts mean applies the layer to
// them, through our differ.
func TestApplyToAStagedLayerAnswersWithoutReading(t *testing.T) {
	t.Parallel()
	n := reuseNode(t, "v2.4.2")
	img := sample(1)[:1]
	u := &unpacker{node: n, namespace: "ns", diffIDs: true}
	_, err := u.unpack(img)
	must(t, err)
	d := digest.FromBytes(img[0])
	labels := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: d.String(), snapshots.LabelSnapshotDiffID: d.String()})
	ctx := namespaces.WithNamespace(context.Background(), "b")
	m, err := n.Prepare(ctx, "b/1/extract-x", "", labels)
	must(t, err)
	opened := n.blobs.timesOpened(img[0])
	got, err := n.Apply(ctx, n.blobs.add(img[0]), m)
	if err != nil || got.Digest != d || got.Size != int64(len(img[0])) || n.blobs.timesOpened(img[0]) != opened {
		t.Errorf("Apply: %+v, %v, blob opened %d times", got, err, n.blobs.timesOpened(img[0])-opened)
	}
	again, err := n.Mounts(ctx, "b/1/extract-x")
	if err != nil || len(again) != 1 || again[0].Source != m[0].Source || !again[0].ReadOnly() {
		t.Errorf("Mounts: %v, %v; Prepare said %v", again, err, m)
	}
	must(t, n.Commit(ctx, "b/2/"+d.String(), "b/1/extract-x", labels))
	// Committed, the mounts are nobody's to apply to.
	if _, err := n.Apply(ctx, n.blobs.add(img[0]), m); !errdefs.IsNotImplemented(err) {
		t.Errorf("Apply after Commit: %v", err)
	}
}

// Contents that were freed are no obstacle as long as a blob has them.
func TestAPartlyFreedLayerIsReusedIfItCanBeRestored(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	hides := func(version string) (*node, image) {
		n := reuseNode(t, version)
		base := treetest.Layer(treetest.File("hidden", noise(50_000, 1)), treetest.File("shown", noise(20_000, 2)))
		img := image{base, treetest.Layer(treetest.Whiteout("hidden"))}
		u := &unpacker{node: n, namespace: "a", diffIDs: true}
		top, err := u.unpack(img)
		must(t, err)
		must(t, n.Flatten(ctx, top))
		must(t, n.Cleanup(ctx))
		if n.pack.Stats().Contents != 1 {
			t.Fatalf("%d contents, want the one that is shown", n.pack.Stats().Contents)
		}
		return n, img[:1]
	}
	t.Run("restored", func(t *testing.T) {
		n, base := hides("v2.4.2")
		u := &unpacker{node: n, namespace: "b", diffIDs: true}
		top, err := u.unpack(base)
		must(t, err)
		if want := [3]int{0, 1, 0}; u.counts() != want {
			t.Errorf("%v applied, staged, in place; want %v", u.counts(), want)
		}
		root, undo := n.view(top)
		defer undo()
		if b, err := os.ReadFile(filepath.Join(root, "hidden")); err != nil || string(b) != noise(50_000, 1) {
			t.Errorf("hidden: %d bytes, %v", len(b), err)
		}
	})
	t.Run("blob gone", func(t *testing.T) {
		n, base := hides("v2.4.2")
		n.blobs.remove(base[0])
		u := &unpacker{node: n, namespace: "b", diffIDs: true}
		top, err := u.unpack(base)
		must(t, err)
		if want := [3]int{1, 0, 0}; u.counts() != want {
			t.Errorf("%v applied, staged, in place; want %v", u.counts(), want)
		}
		n.tree(top)
	})
}

// Which layers there are is known after a restart, too.
func TestLayersAreReusedAfterARestart(t *testing.T) {
	t.Parallel()
	n := reuseNode(t, "v2.4.2")
	u := &unpacker{node: n, namespace: "a", diffIDs: true}
	_, err := u.unpack(sample(1))
	must(t, err)
	n.close()
	n.open()
	u = &unpacker{node: n, namespace: "b", diffIDs: true}
	_, err = u.unpack(sample(1))
	must(t, err)
	if want := [3]int{0, 3, 0}; u.counts() != want {
		t.Errorf("%v applied, staged, in place; want %v", u.counts(), want)
	}
	n.removeAll()
	must(t, n.Cleanup(context.Background()))
	n.expectNothingLeft()
	if len(n.donors) > 0 {
		t.Errorf("layers that are gone are still taken for donors: %v", n.donors)
	}
}
