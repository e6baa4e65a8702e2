// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// Invariant 9.
func TestConcurrentUseEndsLikeSerialUse(t *testing.T) {
	t.Parallel()
	const workers, rounds = 8, 12
	n := newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	failures := make(chan error, workers*rounds)
	var group sync.WaitGroup
	for w := range workers {
		dir := t.TempDir()
		r := rand.New(rand.NewPCG(uint64(w), 9))
		group.Go(func() {
			for k := range rounds {
				if err := useImage(ctx, n, r.IntN(crashImages), r.IntN(2), fmt.Sprintf("w/%d/%d", w, k), dir, r.IntN(5)); err != nil {
					failures <- fmt.Errorf("worker %d, round %d: %w", w, k, err)
				}
			}
		})
	}
	stop := make(chan struct{})
	var cleaner sync.WaitGroup
	cleaner.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = n.Cleanup(ctx) // images in use are an error of their own
			}
		}
	})
	group.Wait()
	close(stop)
	cleaner.Wait()
	close(failures)
	for err := range failures {
		t.Error(err)
	}

	// Whatever is there, is right; and with all images there the store holds
	// what one that was filled in peace does.
	serial := newNode(t, mounts.ModeAuto)
	for i := range crashImages {
		for ns := range 2 {
			prefix := fmt.Sprintf("ns%d/%d", ns, i)
			n.pull(prefix, crashImage(i))
			top := serial.pull(prefix, crashImage(i))
			n.shows(top, serial.tree(top))
			must(t, n.Flatten(ctx, top))
		}
	}
	must(t, n.Cleanup(ctx))
	must(t, serial.Cleanup(ctx))
	for _, c := range []*node{n, serial} {
		if mounted := mountsBelow(t, c.dir); len(mounted) != crashImages {
			t.Errorf("%d mounts, want one for each of %d images: %v", len(mounted), crashImages, mountIDs(t, c.dir))
		}
	}
	waitFor(t, "equal packs", func() error {
		a, b := n.pack.Stats(), serial.pack.Stats()
		if a.Contents != b.Contents || a.Bytes != b.Bytes || a.Stored != b.Stored {
			return errors.Join(fmt.Errorf("the pack holds %+v, that of the serial store %+v", a, b), n.Cleanup(ctx), serial.Cleanup(ctx))
		}
		return nil
	})
	n.removeAll()
	must(t, n.Cleanup(ctx))
	n.expectNothingLeft()
}

// useImage pulls an image, looks at it, and perhaps removes it. Others may do
// the same at once, so that what it has pulled is gone or has children.
func useImage(ctx context.Context, n *node, i, ns int, key, target string, what int) error {
	img, prefix := crashImage(i), fmt.Sprintf("ns%d/%d", ns, i)
	tolerable := func(err error) bool {
		return errdefs.IsNotFound(err) || errdefs.IsAlreadyExists(err) || errdefs.IsFailedPrecondition(err)
	}
	// Another worker may remove the parent of the layer that is being pulled.
	top, err := n.tryPull(ctx, prefix, img)
	if err != nil {
		if tolerable(err) || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("pull: %w", err)
	}
	switch what {
	case 0:
		names := img.names(prefix)
		for j := len(names) - 1; j >= 0; j-- {
			if err := n.Remove(ctx, names[j]); err != nil && !tolerable(err) {
				return fmt.Errorf("remove: %w", err)
			}
		}
		return nil
	case 1:
		if err := n.Flatten(ctx, top); err != nil && !tolerable(err) && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("flatten: %w", err)
		}
		return nil
	}
	prepare := n.View
	if what == 2 {
		prepare = n.Prepare
	}
	m, err := prepare(ctx, key, top)
	if err != nil {
		if tolerable(err) || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("prepare: %w", err)
	}
	if err := mount.All(m, target); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	err = checkContent(target, i)
	return errors.Join(err, mount.UnmountAll(target, 0), n.Remove(ctx, key))
}

// checkContent reads the files of a crash image.
func checkContent(root string, i int) error {
	tag := uint64(1000 * (i + 1))
	var errs error
	for name, want := range map[string]string{
		"own": prose(120_000, tag), "base/file": noise(40_001, tag+1), "small": fmt.Sprint(i), "more/own": noise(60_000, tag+2), "more/link": noise(60_000, tag+2),
	} {
		got, err := os.ReadFile(filepath.Join(root, name))
		if err == nil && string(got) != want {
			err = fmt.Errorf("%s has other bytes than its layer", name)
		}
		errs = errors.Join(errs, err)
	}
	if exists(filepath.Join(root, "base/gone")) {
		errs = errors.Join(errs, errors.New("base/gone is there"))
	}
	return errs
}

// A flat image that is being written while its snapshot and content go must not
// be found when the same layers come again: they lie elsewhere then.
func TestAFlatImageWrittenDuringRemovalIsNotUsedLater(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	for k := range 40 {
		img := crashImage(k % crashImages)
		names := img.names("ns/1")
		top := n.pull("ns/1", img)
		var group sync.WaitGroup
		group.Go(func() { _ = n.Flatten(ctx, top) }) // the snapshot may be gone
		group.Go(func() {
			for j := len(names) - 1; j >= 0; j-- {
				if err := n.Remove(ctx, names[j]); err != nil {
					t.Errorf("remove: %v", err)
				}
			}
			_ = n.Cleanup(ctx)
			// It comes where the old content was.
			other := image{treetest.Layer(treetest.File("f", noise(10_000+k, uint64(k))))}
			if _, err := n.tryPull(ctx, fmt.Sprintf("other/%d", k), other); err != nil {
				t.Errorf("pull: %v", err)
			}
		})
		group.Wait()
		top = n.pull("ns/1", img)
		root, undo := n.view(top)
		if err := checkContent(root, k%crashImages); err != nil {
			t.Errorf("round %d: %v", k, err)
		}
		undo()
		for j := len(names) - 1; j >= 0; j-- {
			must(t, n.Remove(ctx, names[j]))
		}
	}
	n.removeAll()
	n.expectNothingLeft()
}

// A collection judges images by what it saw at its beginning.
func TestAFlatImageThatIsAskedForDuringACollectionStays(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	top := n.pull("ns/1", crashImage(0))
	must(t, n.Flatten(ctx, top))
	c := n.flatImage(top)
	began := n.clock
	done := n.useImage(c)
	if err := n.dropImage(c, n.clock); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a flat image that is being asked for is dropped: %v", err)
	}
	done()
	if err := n.dropImage(c, began); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a flat image that was asked for since the collection began is dropped: %v", err)
	}
	must(t, n.dropImage(c, n.clock))
	if exists(n.imageMount(c)) || exists(n.image(c)) { // skeletons may go a moment later
		t.Error("a flat image that nobody asked for is still there")
	}
}

// While a flat image is written, its content stays, whatever is removed.
func TestContentThatAFlatImageIsWrittenOverIsNotFreed(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	steps := []treetest.Step{treetest.File("a", noise(50_000, 1)), treetest.File("b", noise(50_000, 2))}
	for i := range 300 {
		steps = append(steps, treetest.File(fmt.Sprintf("inline%d", i), noise(500, uint64(i))))
	}
	top := n.pull("ns/1", image{treetest.Layer(steps...)})
	before := n.pack.Stats()
	// The image goes into a pipe that holds less than it.
	pipe, err := smallPipe(n.image(n.flatImage(top)) + tmpSuffix)
	must(t, err)
	done := make(chan error)
	go func() { done <- n.Flatten(ctx, top) }()
	waitFor(t, "the pipe to be full", pipe.full)
	n.removeAll()
	_ = n.Cleanup(ctx)
	if st := n.pack.Stats(); st.Contents != before.Contents {
		t.Errorf("contents were freed under an image that is being written: %+v, before %+v", st, before)
	}
	pipe.close()
	if err := <-done; err == nil {
		t.Error("the image was written to a closed pipe")
	}
	_ = n.Cleanup(ctx)
	n.expectNothingLeft()
}

func TestOneSnapshotUnderManyNamesIsMountedOnce(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	top := n.pull("ns/1", crashImage(0))
	var group sync.WaitGroup
	for k := range 32 {
		group.Go(func() {
			if _, err := n.View(ctx, fmt.Sprintf("ns/2/view-%d", k), top); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if mounted := mountsBelow(t, n.dir); len(mounted) != 1 {
		t.Errorf("mounted: %v", mountIDs(t, n.dir))
	}
	n.removeAll()
	n.expectNothingLeft()
}
