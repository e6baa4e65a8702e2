// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"os"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/node"
)

// The same image in another namespace of containerd, and another image with the same layer elsewhere in its chain,
// take the layers that the node has: nothing of them is downloaded or unpacked. What they show does not hang on the
// image that brought the layers.
func TestKnownLayersAreNeitherFetchedNorUnpacked(t *testing.T) {
	for _, m := range []mode{squash, sideBySide} {
		t.Run(m.name, func(t *testing.T) {
			img := smallImage(t, images.OCI, images.Gzip)
			layers, err := img.Layers()
			if err != nil {
				t.Fatal(err)
			}
			extra := layer(t, func(w *images.LayerWriter) error { return w.File("extra", 0o644, images.Noise(7, 100_000)) })
			other := image(t, images.OCI, append([]v1.Layer{extra}, layers...)...)
			ref, otherRef := push(t, img), push(t, other)
			n := startNode(t, m)
			pull(t, n, m, ref)

			const elsewhere = "elsewhere"
			if _, err := n.CtrIn(t.Context(), elsewhere, "image", "pull", "--plain-http", "--snapshotter", m.snapshotter, ref); err != nil {
				t.Fatal(err)
			}
			blobs, err := n.CtrIn(t.Context(), elsewhere, "content", "ls", "-q")
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range layers {
				if d, err := l.Digest(); err != nil || strings.Contains(blobs, d.String()) {
					t.Errorf("layer %s was fetched again (%v)", d, err)
				}
			}
			pull(t, n, m, otherRef)

			log, err := os.ReadFile(n.DaemonLog())
			if err != nil {
				t.Fatal(err)
			}
			taken, reused := strings.Count(string(log), "layer taken in"), strings.Count(string(log), "layer reused")
			if taken != len(layers)+1 || reused != 2*len(layers) {
				t.Errorf("%d layers taken in, %d reused; want %d and %d", taken, reused, len(layers)+1, 2*len(layers))
			}
			checkContainer(t, n, m, otherRef, "other", other)
			ctr(t, n, "image", "rm", "--sync", ref)
			ctr(t, n, "image", "rm", "--sync", otherRef)
			out, err := n.Run(t.Context(), node.Run{
				Snapshotter: m.snapshotter, Namespace: elsewhere, Image: ref, ID: "elsewhere", Args: []string{images.GuestPath, "tree", "/"},
			})
			if err != nil {
				t.Fatal(err)
			}
			sameTree(t, "the image in the other namespace", lines(out), wantTree(t, img))
		})
	}
}
