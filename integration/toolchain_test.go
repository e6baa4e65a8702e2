// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/squash-snapshotter/squash/integration/binaries"
	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/node"
)

// demoImage is the large image of the demo: six layers, 34,000 files, 480 MiB.
func demoImage(t *testing.T) v1.Image {
	t.Helper()
	goroot, err := binaries.GoRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	parts, err := images.Demo(shared.store, shared.guest, goroot, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	var stack []v1.Layer
	for _, p := range parts {
		stack = append(stack, p.Layer)
	}
	return image(t, images.OCI, stack...)
}

// The life of a large image: its container sees what the layers say, its disk usage is what the snapshotter
// reports, and nothing of it stays behind.
func TestLargeImage(t *testing.T) {
	img := demoImage(t)
	eachMode(t, func(t *testing.T, m mode) {
		n := startNode(t, m)
		ref := push(t, img)
		root := n.SnapshotterRoot(m.snapshotter)
		before := allocated(t, root)
		pull(t, n, m, ref)
		checkContainer(t, n, m, ref, "c1", img)
		full := settled(t, root)
		t.Logf("disk: %d MiB", full>>20)
		reported := usage(t, n, m)
		if low, high := full-full/100, full+full/100; reported < low || reported > high {
			t.Errorf("sum of usage is %d bytes, blocks of %s are %d bytes: more than 1 %% apart", reported, root, full)
			entries, err := os.ReadDir(root)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				t.Logf("%10d %s", allocated(t, filepath.Join(root, e.Name())), e.Name())
			}
		}
		ctr(t, n, "image", "rm", "--sync", ref)
		await(t, "disk after removal", func() error {
			if now := allocated(t, root); now > before+2<<20 {
				return fmt.Errorf("%d bytes are still allocated, before the pull it was %d", now, before)
			}
			return nil
		})
	})
}

// usage is the sum of what the snapshotter reports for all snapshots, in bytes.
func usage(t *testing.T, n *node.Node, m mode) int64 {
	t.Helper()
	var sum int64
	for _, line := range lines(ctr(t, n, "snapshot", "--snapshotter", m.snapshotter, "usage", "-b"))[1:] {
		f := strings.Fields(line)
		size, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			t.Fatalf("usage line %q: %v", line, err)
		}
		sum += size
	}
	return sum
}

func allocated(t *testing.T, dir string) int64 {
	t.Helper()
	if _, err := os.Stat(filepath.Dir(dir)); err != nil {
		t.Fatal(err)
	}
	n, err := node.Allocated(dir)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// settled waits until background work no longer changes the disk usage of dir.
func settled(t *testing.T, dir string) int64 {
	t.Helper()
	n, err := node.Settled(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
