// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"fmt"
	"testing"

	"github.com/squash-snapshotter/squash/integration/images"
)

// What no container can see is given back to the disk; and when another image on the same layer shows it, it is
// there again.
func TestHiddenContentIsFreedAndComesBack(t *testing.T) {
	const files, size = 40, 200000
	base := layer(t, func(w *images.LayerWriter) error {
		err := errors.Join(images.WriteBase(w, shared.guest), w.Dir("data", 0o755))
		for i := range files {
			err = errors.Join(err, w.File(fmt.Sprintf("data/%d", i), 0o644, images.Noise(uint64(3000+i), size)))
		}
		return err
	})
	// Half of the files are overwritten, the others are deleted with their directory.
	hiding := layer(t, func(w *images.LayerWriter) error {
		err := w.Dir("data", 0o755)
		for i := range files {
			if i%2 == 0 {
				err = errors.Join(err, w.File(fmt.Sprintf("data/%d", i), 0o644, []byte("small")))
			} else {
				err = errors.Join(err, w.Whiteout(fmt.Sprintf("data/%d", i)))
			}
		}
		return err
	})
	eachMode(t, func(t *testing.T, m mode) {
		n := startNode(t, m)
		hidden, shown := image(t, images.OCI, base, hiding), image(t, images.OCI, base)
		first, second := push(t, hidden), push(t, shown)
		before := settled(t, n.SnapshotterRoot(m.snapshotter))
		pull(t, n, m, first)
		checkContainer(t, n, m, first, "c1", hidden)
		// With containerd's differ the daemon does not know the blobs that it would read contents from again.
		if m == squash {
			if used := settled(t, n.DaemonRoot()) - before; used > files*size/2 {
				t.Errorf("%d bytes of disk are in use, of which %d cannot be seen", used, files*size)
			}
		}
		pull(t, n, m, second)
		checkContainer(t, n, m, second, "c2", shown)
		checkContainer(t, n, m, first, "c3", hidden)
		ctr(t, n, "image", "rm", "--sync", first)
		ctr(t, n, "image", "rm", "--sync", second)
		await(t, "removal", func() error { return nothingLeft(n, m, before+256<<10) })
	})
}
