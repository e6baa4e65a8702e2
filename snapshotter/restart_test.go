// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/pack"
	"github.com/squash-snapshotter/squash/internal/treetest"
	"golang.org/x/sys/unix"
)

// mountIDs gives the identity of what is mounted below dir, by mount point.
func mountIDs(t *testing.T, dir string) map[string]string {
	t.Helper()
	ids := map[string]string{}
	for _, m := range mountsBelow(t, dir) {
		ids[m.Mountpoint] = fmt.Sprintf("mount %d, device %d:%d", m.ID, m.Major, m.Minor)
	}
	return ids
}

func TestARestartIsNotNoticed(t *testing.T) {
	t.Parallel()
	for _, mode := range bothModes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, mode)
			ctx := context.Background()
			img := sample(1)
			top := n.pull("ns/1", img)
			want := n.tree(top)
			key, root, undo := n.run(top)
			_, err := n.Prepare(ctx, "ns/2/extract-under way", top)
			must(t, err)
			before := mountIDs(t, n.dir)
			if len(before) != 2 {
				t.Fatalf("a flat image and a skeleton should be mounted: %v", before)
			}
			n.close()
			read := func(name, content string) {
				t.Helper()
				dropCaches(t, filepath.Join(root, name))
				if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != content {
					t.Errorf("a running container cannot read %s: %v", name, err)
				}
			}
			read("big", noise(1<<20+300_000, 13))
			n.open()
			if after := mountIDs(t, n.dir); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("mounts after the restart: %v\nbefore: %v", after, before)
			}
			read("bin/tool", noise(70_001, 14))
			n.shows(top, want)

			must(t, os.WriteFile(filepath.Join(root, "written"), []byte("x"), 0o600))
			m, err := n.Mounts(ctx, key)
			must(t, err)
			if !strings.Contains(strings.Join(m[0].Options, ","), "upperdir="+n.upper(n.id(key))) {
				t.Errorf("mounts of the container after the restart: %v", m)
			}
			must(t, n.Commit(ctx, "ns/3/committed", key))
			undo()
			if tree := n.tree("ns/3/committed"); len(tree.Entries) != len(want.Entries)+1 {
				t.Errorf("%d entries after a commit of one file over %d", len(tree.Entries), len(want.Entries))
			}
			n.pull("ns/4", sample(2))
			n.removeAll()
			must(t, n.Cleanup(ctx))
			n.expectNothingLeft()
		})
	}
}

func TestARebootIsMadeUpForOnDemand(t *testing.T) {
	t.Parallel()
	for _, mode := range bothModes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, mode)
			ctx := context.Background()
			top := n.pull("ns/1", sample(1))
			want := n.tree(top)
			_, err := n.View(ctx, "ns/2/view", top)
			must(t, err)
			m, err := n.Prepare(ctx, "ns/3/container", top)
			must(t, err)
			must(t, os.WriteFile(n.upper(n.id("ns/3/container"))+"/written", []byte("x"), 0o600))
			x, err := n.Prepare(ctx, "ns/4/extract-layer", top)
			must(t, err)
			n.close()
			for _, m := range mountsBelow(t, n.dir) {
				must(t, unix.Unmount(m.Mountpoint, 0))
			}
			must(t, os.RemoveAll(n.cfg.State))
			n.open()
			for key, want := range map[string]string{"ns/3/container": fmt.Sprint(m), "ns/4/extract-layer": fmt.Sprint(x)} {
				again, err := n.Mounts(ctx, key)
				must(t, err)
				if fmt.Sprint(again) != want {
					t.Errorf("mounts of %s after the reboot: %v, before: %s", key, again, want)
				}
			}
			if len(mountsBelow(t, n.dir)) != 2 {
				t.Errorf("mounted after the reboot: %v", mountIDs(t, n.dir))
			}
			v, err := n.Mounts(ctx, "ns/2/view")
			must(t, err)
			for key, m := range map[string][]mount.Mount{"ns/2/view": v, "ns/3/container": m} {
				root, undo := n.mounted(key, m)
				got, err := treetest.Read(root)
				must(t, err)
				delete(got.Entries, "/written")
				sameTree(t, want, got)
				undo()
			}
			n.shows(top, want)
			n.removeAll()
			must(t, n.Cleanup(ctx))
			n.expectNothingLeft()
		})
	}
}

func TestWhatACrashLeftIsRemovedAtStart(t *testing.T) {
	t.Parallel()
	for _, mode := range bothModes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, mode)
			n.close()
			n.cfg.Shadowed = ShadowedKeep
			n.open()
			ctx := context.Background()
			top := n.pull("ns/1", sample(1))
			want, before := n.tree(top), n.pack.Stats()
			id, c := n.id(top), n.flatImage(top)
			layout, mounter := n.layout, n.mounter
			n.close()

			write := func(path string, data []byte) string {
				t.Helper()
				must(t, os.MkdirAll(filepath.Dir(path), 0o755))
				must(t, os.WriteFile(path, data, 0o600))
				return path
			}
			copied := func(from, to string) string {
				t.Helper()
				b, err := os.ReadFile(from)
				must(t, err)
				return write(to, b)
			}
			strange := layerImage(sha256.Sum256([]byte("strange")), 4)
			unmounted := flatImage(sha256.Sum256([]byte("never mounted")))
			leftovers := []string{
				write(filepath.Join(layout.snapshotsDir(), newPrefix+"123", "fs", "file"), nil),
				write(filepath.Join(layout.upper("4711"), "file"), nil),
				write(layout.image(unmounted)+tmpSuffix, []byte("half")),
				write(layout.refs(unmounted), []byte("refs of no image")),
				write(filepath.Join(layout.layer(id), "toc-123"+tmpSuffix), []byte("half")),
				copied(layout.toc(id), layout.toc("4712")),
				filepath.Join(layout.layersDir(), "4713"),
				copied(layout.image(c), layout.image(strange)),
				// Its TOC is there, so the upper directory is done with.
				write(filepath.Join(layout.upper(id), "file"), nil),
				layout.imageMount(strange), layout.imageMount(unmounted), layout.skeletonMount("4714"), layout.skeletonMount("4715"),
			}
			for _, dir := range append(leftovers[9:], leftovers[6]) {
				must(t, os.MkdirAll(dir, 0o700))
			}
			must(t, mounter.Mount(ctx, layout.image(strange), filepath.Join(layout.root, "pack"), layout.imageMount(strange)))
			skeleton := copied(layout.image(c), filepath.Join(t.TempDir(), "removed"))
			must(t, mounter.Mount(ctx, skeleton, filepath.Join(layout.root, "pack"), layout.skeletonMount("4715")))

			// A layer that was on its way when the power went: half published,
			// half in an open segment.
			store, err := pack.Open(ctx, layout.root)
			must(t, err)
			w := store.Begin()
			_, err = w.Put(strings.NewReader(noise(300_000, 77)), 300_000)
			must(t, err)
			must(t, w.Publish(false))
			_, err = w.Put(strings.NewReader(noise(2<<20, 78)), 2<<20)
			must(t, err)
			must(t, store.Close())
			write(filepath.Join(layout.root, "index", "00000099-00000099.0"+tmpSuffix), []byte("half"))

			n.open()
			if m, err := n.Prepare(ctx, "ns/2/container", top); err != nil {
				t.Errorf("prepare right after the start: %v, %v", m, err)
			}
			waitFor(t, "the leftovers to go", func() error {
				var errs error
				for _, path := range leftovers {
					errs = errors.Join(errs, gone(path))
				}
				if st := n.pack.Stats(); st.Contents != before.Contents || st.Stored != before.Stored {
					errs = errors.Join(errs, fmt.Errorf("the pack holds %+v, it should be %+v", st, before))
				}
				if b := blocks(t, n.pack.Path()); b*512 > int64(before.Stored) {
					errs = errors.Join(errs, fmt.Errorf("the pack takes up %d bytes, the index speaks of %d", b*512, before.Stored))
				}
				return errs
			})
			n.shows(top, want)
			n.removeAll()
			must(t, n.Cleanup(ctx))
			n.expectNothingLeft()
		})
	}
}

// The mounts outlive the files, and the same layers would find them by name.
func TestMountsOfAStoreThatWasDeletedAreNotUsed(t *testing.T) {
	t.Parallel()
	for _, mode := range bothModes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, mode)
			top := n.pull("ns/1", sample(1))
			want := n.tree(top)
			before := mountIDs(t, n.dir)
			n.close()
			must(t, os.RemoveAll(n.cfg.Root))
			n.open()
			if left := mountIDs(t, n.dir); len(left) > 0 || len(before) != 1 {
				t.Errorf("mounted after the root was deleted: %v, before: %v", left, before)
			}
			n.pull("ns/2", sample(2))
			n.shows(n.pull("ns/1", sample(1)), want)
		})
	}
}

func TestContentOfALayerThatNeverGotItsTOCIsFreedAfterARestart(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	top := n.pull("ns/1", sample(1))
	want := n.tree(top)
	must(t, n.Cleanup(context.Background()))
	before := n.pack.Stats()
	w := n.pack.Begin()
	_, err := w.Put(strings.NewReader(noise(300_000, 77)), 300_000)
	must(t, err)
	must(t, w.Publish(false))
	must(t, w.Close())
	n.close()
	n.open()
	waitFor(t, "the content to be freed", func() error {
		if st := n.pack.Stats(); st.Contents > before.Contents {
			return fmt.Errorf("the pack holds %+v, it should be %+v", st, before)
		}
		return nil
	})
	n.shows(top, want)
}

// The directory of a snapshot whose transaction was not committed has the ID
// that the metastore gives next.
func TestAnIDWhoseTransactionACrashUndidIsUsedAgain(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	_, err := n.Prepare(ctx, "ns/1/a", "")
	must(t, err)
	n.close()
	for i := range 20 {
		must(t, os.MkdirAll(fmt.Sprintf("%s/%d/fs/d", n.cfg.Root+"/snapshots", 2+i), 0o755))
		must(t, os.WriteFile(fmt.Sprintf("%s/%d/fs/stale", n.cfg.Root+"/snapshots", 2+i), nil, 0o600))
	}
	n.open()
	for i := range 20 {
		m, err := n.Prepare(ctx, fmt.Sprintf("ns/1/%d", i), "")
		must(t, err)
		if entries, err := os.ReadDir(m[0].Source); err != nil || len(entries) > 0 {
			t.Fatalf("a new snapshot starts with %v, %v", entries, err)
		}
		must(t, os.WriteFile(m[0].Source+"/mine", nil, 0o600))
	}
	must(t, n.Cleanup(ctx))
	for i := range 20 {
		if !exists(n.upper(n.id(fmt.Sprintf("ns/1/%d", i))) + "/mine") {
			t.Error("what was written to a new snapshot was collected")
		}
	}
}

func TestAnUpperDirectoryThatWasNeverTakenInIsAfterARestart(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	top := n.pull("ns/1", sample(1))
	key, root, undo := n.run(top)
	must(t, os.WriteFile(root+"/written", []byte(noise(5000, 50)), 0o600))
	must(t, os.RemoveAll(root+"/etc"))
	want, err := treetest.Read(root)
	must(t, err)
	id := n.id(key)
	release := n.holdConversion(id)
	must(t, n.Commit(ctx, "ns/2/committed", key))
	undo()
	n.close()
	release(errors.New("the snapshotter is closed"))
	if exists(n.cfg.Root + "/layers/" + id + "/toc") {
		t.Fatal("the upper directory was taken in although its conversion was held up")
	}
	n.open()
	n.shows("ns/2/committed", want)
	waitFor(t, "the upper directory to go", func() error { return gone(n.snapshot(id)) })
	n.removeAll()
	must(t, n.Cleanup(ctx))
	n.expectNothingLeft()
}

// holdConversion keeps the upper directory of a snapshot from being taken in
// until release is called; then it fails with what release got, or goes on.
func (n *node) holdConversion(id string) (release func(error)) {
	s, begun, hold := n.Snapshotter, make(chan struct{}), make(chan error)
	go n.flight.Do("convert "+id, func() (any, error) {
		close(begun)
		if err := <-hold; err != nil {
			return nil, err
		}
		return nil, s.convert(context.Background(), id)
	})
	<-begun
	return func(err error) { hold <- err }
}

// Commit happens in containerd's database transaction: whatever the size of the
// upper directory, reading it comes afterwards.
func TestCommitDoesNotReadTheUpperDirectory(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	m, err := n.Prepare(ctx, "ns/1/container", "")
	must(t, err)
	for i := range 20_000 {
		if i%1000 == 0 {
			must(t, os.Mkdir(fmt.Sprintf("%s/%d", m[0].Source, i/1000), 0o755))
		}
		f, err := os.Create(fmt.Sprintf("%s/%d/%d", m[0].Source, i/1000, i))
		must(t, err)
		must(t, f.Close())
	}
	id := n.id("ns/1/container")
	release := n.holdConversion(id)
	must(t, n.Commit(ctx, "ns/1/committed", "ns/1/container"))
	if exists(n.layer(id)) {
		t.Error("there is a TOC before the conversion was let go")
	}
	info, err := n.Stat(ctx, "ns/1/committed")
	if err != nil || info.Kind.String() != "Committed" {
		t.Errorf("after Commit: %v, %v", info, err)
	}
	release(nil)
	if tree := n.tree("ns/1/committed"); len(tree.Entries) != 20_000+20+1 {
		t.Errorf("the view shows %d entries", len(tree.Entries))
	}
}
