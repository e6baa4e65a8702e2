// SPDX-License-Identifier: Apache-2.0

package treetest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// Overlay unpacks layers (bottom first) with containerd's applier below the
// test's temporary directory and returns the mount point of a read-only
// overlayfs of them: what a container must see. A layer that the applier
// refuses fails the test. The mount goes when the test ends.
//
// Directories that the topmost layer having them only implies carry the
// marker which Read reports as Entry.Implied.
func Overlay(t testing.TB, layers [][]byte) string {
	t.Helper()
	root, err := overlay(t, layers, takeLower)
	if err != nil {
		t.Fatalf("reference for the image: %v", err)
	}
	return root
}

// OverlayOfMerged is Overlay for a snapshotter whose unpack mounts have one
// lower directory that shows all layers below merged, and which leaves the
// applying to containerd's walking differ. It returns the error with which
// that differ refuses an image.
//
// It differs from Overlay in the metadata of a few implied directories, above
// which single layers show something else than all of them together, and in
// that hardlinks to files of lower layers are refused.
func OverlayOfMerged(t testing.TB, layers [][]byte) (string, error) {
	t.Helper()
	return overlay(t, layers, merged)
}

// Check compares what the directory got shows with the reference for layers,
// and reports each difference as an error of the test.
func Check(t testing.TB, layers [][]byte, got string, opts Options) {
	t.Helper()
	want, err := Read(Overlay(t, layers))
	if err != nil {
		t.Fatalf("reference: %v", err)
	}
	tree, err := Read(got)
	if err != nil {
		t.Fatalf("image under test: %v", err)
	}
	for _, line := range Diff(want, tree, opts) {
		t.Error(line)
	}
}

// Refusal returns the error with which the reference applier rejects the
// image, nil when it takes all layers.
func Refusal(t testing.TB, layers [][]byte) error {
	t.Helper()
	_, err := unpackAll(t.TempDir(), layers, takeLower)
	return err
}

func overlay(t testing.TB, layers [][]byte, how manner) (string, error) {
	dir := t.TempDir()
	lowers, err := unpackAll(dir, layers, how)
	if err != nil {
		return "", err
	}
	// Overlayfs without an upper directory wants two lower ones.
	bottom := filepath.Join(dir, "bottom")
	if err := os.Mkdir(bottom, 0o755); err != nil {
		return "", err
	}
	target := filepath.Join(dir, "root")
	if err := os.Mkdir(target, 0o755); err != nil {
		return "", err
	}
	if err := mountOverlay(target, append(lowers, bottom), "", ""); err != nil {
		return "", err
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Errorf("unmount reference: %v", err)
			unix.Unmount(target, unix.MNT_DETACH)
		}
	})
	return target, nil
}

// unpackAll returns the unpacked directories, top layer first.
func unpackAll(dir string, layers [][]byte, how manner) ([]string, error) {
	var lowers []string
	for i, layer := range layers {
		upper, err := unpack(dir, layer, lowers, how)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", layerName(i, len(layers)), err)
		}
		lowers = slices.Insert(lowers, 0, upper)
	}
	return lowers, nil
}
