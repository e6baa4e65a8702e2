// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"github.com/squash-snapshotter/squash/internal/pack"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// chooseBlobs has some blobs gone.
func (m *powered) chooseBlobs() {
	m.lost = map[digest.Digest]bool{}
	for _, img := range m.images {
		for _, l := range img {
			if m.blobs.add(l); m.r.Float64() < m.lostBlobs {
				m.lost[digest.FromBytes(l)] = true
			}
		}
	}
	for _, img := range m.images {
		for _, l := range img {
			if m.lost[digest.FromBytes(l)] {
				m.blobs.remove(l)
			}
		}
	}
}

// marks lists the layers that the store takes for durable.
func (m *powered) marks() map[string]bool {
	m.t.Helper()
	marks, err := filepath.Glob(filepath.Join(m.cfg.Root, "layers", "*", "durable"))
	must(m.t, err)
	ids := map[string]bool{}
	for _, path := range marks {
		ids[filepath.Base(filepath.Dir(path))] = true
	}
	return ids
}

// look compares what a snapshot shows with what it must show. A refusal to
// show it is returned.
func (m *powered) look(name string) (refusal error) {
	t, ctx := m.t, context.Background()
	t.Helper()
	key := m.key("view")
	mnt, err := m.View(ctx, key, name)
	if err != nil {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("the error does not name %s: %v", name, err)
		}
		return err
	}
	root := filepath.Join(m.dir, "view")
	must(t, os.MkdirAll(root, 0o700))
	defer func() { must(t, m.Remove(ctx, key)) }()
	if err := mount.All(mnt, root); err != nil {
		t.Errorf("%s: mount: %v", name, err)
		return nil
	}
	defer func() { must(t, mount.UnmountAll(root, 0)) }()
	got, err := treetest.Read(root)
	if err != nil {
		t.Errorf("%s cannot be read: %v", name, err)
		return nil
	}
	for _, line := range treetest.Diff(m.want[filepath.Base(name)], got, treetest.Options{}) {
		t.Errorf("WRONG: %s shows %s", name, line)
	}
	return nil
}

// chainBlobs are the blobs of the layers below a name, itself included, and
// whether a committed container is on top.
func (m *powered) chainBlobs(name string) (blobs []digest.Digest, upper bool) {
	for i, img := range m.images {
		for _, ns := range powerNamespaces {
			if name == powerCommit(ns, i) {
				for _, l := range img {
					blobs = append(blobs, digest.FromBytes(l))
				}
				return blobs, true
			}
			if at := slices.Index(img.names(ns), name); at >= 0 {
				for _, l := range img[:at+1] {
					blobs = append(blobs, digest.FromBytes(l))
				}
				return blobs, false
			}
		}
	}
	m.t.Fatalf("no such snapshot was ever made: %s", name)
	return nil, false
}

// mayRefuse tells whether a snapshot may answer with an error.
func (m *powered) mayRefuse(name string) bool {
	blobs, upper := m.chainBlobs(name)
	if upper && !m.marked[m.id(name)] {
		return true // nobody but the disk had its bytes
	}
	if !slices.ContainsFunc(blobs, func(d digest.Digest) bool { return m.lost[d] }) {
		return false
	}
	// What was durable may have been freed since, if its blob was there.
	return !m.pristine || m.shadowed == ShadowedFree || m.durability == DurabilityBackground
}

// lookAt looks at snapshots in any order and returns those that answer with an
// error, as some may.
func (m *powered) lookAt(names []string) (refused map[string]error) {
	m.t.Helper()
	refused = map[string]error{}
	m.r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for _, name := range names {
		if err := m.look(name); err != nil {
			refused[name] = err
			if !m.mayRefuse(name) {
				m.t.Errorf("LOST, though its blobs are there or it was durable: %s: %v", name, err)
			}
		}
	}
	return refused
}

// listed are the committed snapshots.
func (m *powered) listed() (names []string) {
	m.t.Helper()
	for _, info := range m.all() {
		if info.Kind == snapshots.KindCommitted {
			names = append(names, info.Name)
		}
	}
	return names
}

// sound makes sure of invariant 2.
func (m *powered) sound(when string) {
	t := m.t
	t.Helper()
	var all []pack.Digest
	v := m.pack.Verifier(nil)
	defer v.Close()
	m.pack.Each(func(d pack.Digest, _ pack.Placement) bool {
		all = append(all, d)
		return true
	})
	for _, d := range all {
		if err := v.Verify(context.Background(), d); err != nil && m.has(d) {
			t.Errorf("%s: %v", when, err)
		}
	}
}

func (m *powered) has(d pack.Digest) bool {
	_, err := m.pack.Lookup(d)
	return err == nil
}

func (m *powered) check() {
	t, ctx := m.t, context.Background()
	names := m.listed()
	for name := range m.certain {
		if !slices.Contains(names, name) {
			t.Errorf("LOST, and not even listed: %s", name)
		}
	}
	m.sum.Listed += len(names)
	for _, name := range names {
		if !m.marked[m.id(name)] {
			m.sum.Unmarked++
		}
		if _, upper := m.chainBlobs(name); upper {
			m.sum.Uppers++
		}
	}
	if m.pullFirst {
		for range 2 {
			m.pullAndLook()
		}
	}
	refused := m.lookAt(names)
	m.sum.Reported += len(refused)
	m.sum.Shown += len(names) - len(refused)
	if t.Failed() {
		for name, err := range refused {
			t.Logf("refused: %s: %v", name, err)
		}
	}
	must(t, m.Cleanup(ctx))
	m.sound("after the first collection")
	m.close()
	m.open() // in the same boot
	again := m.lookAt(m.listed())
	for name, err := range again {
		if _, ok := refused[name]; !ok && slices.Contains(names, name) {
			t.Errorf("%s was whole before a restart and is not after it: %v", name, err)
		}
	}
	m.mend(again)
	for _, info := range m.all() {
		if info.Kind != snapshots.KindCommitted || m.empty {
			must(t, m.Remove(ctx, info.Name))
		}
	}
	must(t, m.Cleanup(ctx))
	if m.empty {
		m.expectNothingLeft()
	}
	for i, img := range m.images {
		ns := powerNamespaces[(i+int(m.seed))%2]
		if err := m.look(m.pull(ns, img)); err != nil {
			t.Errorf("an image that was pulled anew: %v", err)
		}
	}
	m.sound("in the end")
	m.certain = map[string]bool{}
	for _, name := range m.listed() {
		m.certain[name] = true
	}
}

// pullAndLook pulls an image anew, which may meet what the cut left of it.
func (m *powered) pullAndLook() {
	img, ns := m.images[m.r.IntN(len(m.images))], powerNamespaces[m.r.IntN(2)]
	name, err := m.tryPull(context.Background(), ns, img)
	for _, l := range img {
		if err == nil {
			delete(m.lost, digest.FromBytes(l)) // the pull has brought them
			m.blobs.add(l)
		}
	}
	if err == nil {
		err = m.look(name)
	}
	if err != nil && m.lostBlobs == 0 {
		m.t.Errorf("pulled right after the cut: %s: %v", name, err)
	}
}

// mend does what the errors say: the blobs come back, or what is damaged is
// removed with all that stands on it. Then everything is whole.
func (m *powered) mend(refused map[string]error) {
	t, ctx := m.t, context.Background()
	fetch := m.r.IntN(2) == 0
	m.lost = map[digest.Digest]bool{}
	for _, img := range m.images {
		for _, l := range img {
			m.blobs.add(l)
		}
	}
	gone := map[string]bool{}
	for _, info := range slices.Backward(m.all()) { // parents first
		upper := strings.Contains(info.Name, "committed")
		gone[info.Name] = info.Kind != snapshots.KindCommitted || gone[info.Parent] || refused[info.Name] != nil && (upper || !fetch)
	}
	for _, info := range m.all() {
		if gone[info.Name] {
			must(t, m.Remove(ctx, info.Name))
		}
	}
	for name, err := range m.lookAt(m.listed()) {
		t.Errorf("still not whole after it was mended: %s: %v", name, err)
	}
}
