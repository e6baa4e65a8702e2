// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/testutil"
	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/treetest"
	"golang.org/x/sys/unix"
)

var randomImages = flag.Int("random-images", 300, "random images that the oracle tests compare")

// Invariant 1, on layers made to be nasty: what a view of the snapshot shows is
// what overlayfs over the same layers shows, entry by entry.
func TestDifferShowsWhatOverlayShows(t *testing.T) {
	testutil.RequiresRoot(t)
	blobs := newBlobs()
	s := open(t, blobs)
	t.Run("image", func(t *testing.T) {
		for _, c := range treetest.Cases() {
			t.Run(c.Name, func(t *testing.T) {
				t.Parallel()
				compareDiffer(t, s, blobs, c, true)
			})
		}
	})
}

// The same when containerd's own differ writes through the mounts and Commit
// gets upper directories.
func TestWalkingDifferShowsWhatOverlayShows(t *testing.T) {
	testutil.RequiresRoot(t)
	blobs := newBlobs()
	s := open(t, blobs)
	t.Run("image", func(t *testing.T) {
		for _, c := range treetest.Cases() {
			t.Run(c.Name, func(t *testing.T) {
				t.Parallel()
				compareWalking(t, s, blobs, c)
			})
		}
	})
}

// The images that have some content, in the forms that are not the default.
func TestOtherCompressionShowsWhatOverlayShows(t *testing.T) {
	testutil.RequiresRoot(t)
	const some = 32 << 10 // bytes of a layer
	for _, algorithm := range []string{"lz4", "none"} {
		blobs := newBlobs()
		s := openConfig(t, Config{Content: blobs, Compression: Compression{Algorithm: algorithm}})
		t.Run(algorithm, func(t *testing.T) {
			for _, c := range treetest.Cases() {
				if !slices.ContainsFunc(c.Layers, func(l []byte) bool { return len(l) >= some }) {
					continue
				}
				t.Run(c.Name, func(t *testing.T) {
					t.Parallel()
					compareDiffer(t, s, blobs, c, false)
				})
			}
		})
	}
}

func TestRandomImagesShowWhatOverlayShows(t *testing.T) {
	testutil.RequiresRoot(t)
	blobs := newBlobs()
	var stores []*Snapshotter
	for _, algorithm := range []string{"zstd", "lz4", "none"} {
		stores = append(stores, openConfig(t, Config{Content: blobs, Compression: Compression{Algorithm: algorithm}}))
	}
	t.Run("image", func(t *testing.T) {
		for seed := range *randomImages {
			t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
				t.Parallel()
				c := treetest.Random(t, int64(seed))
				s := stores[seed/3%len(stores)]
				if seed%3 == 2 {
					compareWalking(t, s, blobs, c)
				} else {
					compareDiffer(t, s, blobs, c, seed%9 == 0)
				}
			})
		}
	})
}

// compareDiffer unpacks an image with our differ, and may have it verified as well.
func compareDiffer(t *testing.T, s *Snapshotter, blobs *blobs, c treetest.Case, verifying bool) {
	t.Helper()
	if c.Refused != "" {
		t.Skipf("containerd's applier refuses this image (%s): there is nothing to compare with", c.Refused)
	}
	if c.Artefact != "" {
		t.Skipf("an accident of unpacking by system calls that is not followed: %s", c.Artefact)
	}
	top := unpack(t, s, blobs, c.Layers, s)
	treetest.Check(t, c.Layers, view(t, s, top), treetest.Options{ImpliedMtime: true})
	if verifying {
		checkVerifies(t, s, top, c.Layers)
	}
}

// compareWalking unpacks an image with containerd's differ. It is shown the
// layers below as one directory, and so is the reference.
func compareWalking(t *testing.T, s *Snapshotter, blobs *blobs, c treetest.Case) {
	t.Helper()
	compareWalked(t, s, blobs, c, func(top string) string { return view(t, s, top) })
}

// compareWalked is compareWalking with another way to show the top snapshot.
func compareWalked(t *testing.T, s *Snapshotter, blobs *blobs, c treetest.Case, show func(top string) (root string)) {
	t.Helper()
	reference, err := treetest.OverlayOfMerged(t, c.Layers)
	if err != nil {
		t.Skipf("containerd's applier refuses this image in an upper directory: %v", err)
	}
	want, err := treetest.Read(reference)
	if err != nil {
		t.Fatalf("reference: %v", err)
	}
	start := time.Now()
	top := unpack(t, s, blobs, c.Layers, apply.NewFileSystemApplier(blobs))
	got, err := treetest.Read(show(top))
	if err != nil {
		t.Fatalf("image: %v", err)
	}
	for p, e := range got.Entries {
		// A directory that a lower layer implied has the time of its unpack,
		// and a later one that implies it again copies that. No header of a
		// test names the present; the reference has put 1970 there.
		if w := want.Entries[p]; w != nil && e.Mode&unix.S_IFMT == unix.S_IFDIR && !time.Unix(e.Mtime.Unix()).Before(start.Truncate(time.Second)) {
			e.Mtime = w.Mtime
		}
	}
	for _, line := range treetest.Diff(want, got, treetest.Options{}) {
		t.Error(line)
	}
}

// unpack does what containerd does to pull an image, and returns the name of
// the top snapshot. Everything is removed when the test ends.
func unpack(t *testing.T, s *Snapshotter, blobs *blobs, layers [][]byte, d diff.Applier) string {
	t.Helper()
	return unpackOn(t, s, blobs, "", layers, d)
}

// unpackOn is unpack for layers on top of a committed snapshot.
func unpackOn(t *testing.T, s *Snapshotter, blobs *blobs, parent string, layers [][]byte, d diff.Applier) string {
	t.Helper()
	ctx := context.Background()
	base := t.Name()
	if parent != "" {
		base = parent + " +"
	}
	for i, l := range layers {
		name := fmt.Sprintf("%s layer %d", base, i)
		key := fmt.Sprintf("test/%d/extract-%d %s", i, i, name)
		m, err := s.Prepare(ctx, key, parent)
		if err != nil {
			t.Fatalf("prepare layer %d: %v", i, err)
		}
		desc := blobs.add(l)
		applied, err := d.Apply(ctx, desc, m)
		if err != nil {
			t.Fatalf("apply layer %d: %v", i, err)
		}
		if applied.Digest != desc.Digest {
			t.Fatalf("layer %d: diffID %s, want %s", i, applied.Digest, desc.Digest)
		}
		if err := s.Commit(ctx, name, key); err != nil {
			t.Fatalf("commit layer %d: %v", i, err)
		}
		t.Cleanup(func() {
			if err := s.Remove(ctx, name); err != nil && !errdefs.IsNotFound(err) { // a test may have removed it
				t.Errorf("remove layer %d: %v", i, err)
			}
		})
		parent = name
	}
	return parent
}

// view mounts a view of a snapshot and returns the mount point.
func view(t *testing.T, s snapshots.Snapshotter, name string) string {
	t.Helper()
	ctx := context.Background()
	key := "view of " + name
	m, err := s.View(ctx, key, name)
	if err != nil {
		t.Fatalf("view: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Remove(ctx, key); err != nil {
			t.Errorf("remove view: %v", err)
		}
	})
	return mountAll(t, m)
}

func mountAll(t *testing.T, m []mount.Mount) string {
	t.Helper()
	target := t.TempDir()
	if err := mount.All(m, target); err != nil {
		t.Fatalf("mount %v: %v", m, err)
	}
	t.Cleanup(func() {
		if err := mount.UnmountAll(target, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return target
}
