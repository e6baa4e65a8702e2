// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"github.com/squash-snapshotter/squash/integration/images"
)

// What containerd's clients get as the difference of two snapshots is written by squash, without a look at the rest of
// the image, and is a layer: an image that has it on top shows what the snapshot showed.
func TestDiffComesFromTheChangeAlone(t *testing.T) {
	n := startNode(t, squash)
	img := smallImage(t, images.OCI, images.Gzip)
	pull(t, n, squash, push(t, img))
	top := topSnapshot(t, n, squash)
	snapshot := func(args ...string) string {
		t.Helper()
		return ctr(t, n, append([]string{"snapshot", "--snapshotter", squash.snapshotter}, args...)...)
	}
	target := mountPoint(t)
	shell(t, snapshot("prepare", "--target", target, "active", top))
	change(t, target)
	changed := walk(t, target)
	shell(t, "umount "+target)

	const plain = "application/vnd.oci.image.layer.v1.tar"
	active := []byte(snapshot("diff", "--media-type", plain, "active"))
	snapshot("commit", "kept", "active")
	committed := []byte(snapshot("diff", "--media-type", plain, "kept"))
	for what, diff := range map[string][]byte{"active": active, "committed": committed} {
		base, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(diff)), nil })
		if err != nil {
			t.Fatal(err)
		}
		ref := push(t, image(t, images.OCI, append(slices.Clone(base), layer)...))
		pull(t, n, squash, ref)
		at := mountPoint(t)
		view(t, n, squash, "view-"+what, topSnapshot(t, n, squash, top, "kept"), at)
		sameTree(t, what, walk(t, at), changed)
		if err := unix.Unmount(at, 0); err != nil {
			t.Fatal(err)
		}
		snapshot("rm", "view-"+what)
		ctr(t, n, "image", "rm", "--sync", ref)
	}

	log := n.Logs(1 << 20)
	if got := strings.Count(log, "changes written as a layer"); got != 2 {
		t.Errorf("the daemon wrote %d layers, want 2", got)
	}
	const walked = "Using double walk diff"
	if strings.Contains(log, walked) {
		t.Error("containerd walked both trees")
	}
	if list := ctr(t, n, "leases", "ls"); strings.Count(list, "squash-diff-") != 2 {
		t.Errorf("two leases keep the layers for their callers:\n%s", list)
	}

	// The proof that the log would tell, and that others' snapshots are left to containerd.
	theirs := overlayfs
	pull(t, n, theirs, push(t, img))
	ctr(t, n, "snapshot", "--snapshotter", theirs.snapshotter, "diff", topSnapshot(t, n, theirs))
	if !strings.Contains(n.Logs(1<<20), walked) {
		t.Error("containerd did not compare the snapshots of another snapshotter")
	}
}
