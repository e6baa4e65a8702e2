// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/node"
	"github.com/squash-snapshotter/squash/integration/tree"
)

// Fifty containers of one image start at once: while its flat image is being made, and again when it is there. Each
// sees the image whole, all of them share one mount, and nothing of them stays.
func TestFiftyContainersAtOnce(t *testing.T) {
	const count = 50
	for _, m := range []mode{squash, snapshotOnly} {
		t.Run(m.name, func(t *testing.T) {
			n := startNode(t, m)
			layers, err := images.Small(shared.store, images.Gzip, shared.guest)
			if err != nil {
				t.Fatal(err)
			}
			// Entries enough for the flat image to take longer than a container needs to ask for it.
			bulk := layer(t, func(w *images.LayerWriter) error {
				err := w.Dir("bulk", 0o755)
				for i := range 40_000 {
					err = errors.Join(err, w.Symlink(fmt.Sprintf("bulk/%d", i), "nowhere"))
				}
				return err
			})
			img := image(t, images.OCI, append(layers, bulk)...)
			want := wantDigest(t, img, "kinds")
			ref := push(t, img)
			pauseBeforeFlat(t, n, m, ref)
			for round := range 2 {
				var crowd sync.WaitGroup
				for i := range count {
					crowd.Go(func() {
						_, err := n.Run(t.Context(), node.Run{
							Snapshotter: m.snapshotter, Image: ref, ID: fmt.Sprintf("c-%d-%d", round, i),
							Args: []string{images.GuestPath, "expect", "/kinds", want},
						})
						if err != nil {
							t.Errorf("round %d, container %d: %v", round, i, err)
						}
					})
				}
				// None gets further than the paused daemon, and then all do at once; it is a client of containerd, too, so
				// that one container may come late.
				await(t, "all containers to wait for the daemon", func() error {
					clients, err := n.Clients()
					if err == nil && clients < count {
						err = fmt.Errorf("%d of %d", clients, count)
					}
					return err
				})
				if err := n.ResumeDaemon(); err != nil {
					t.Fatal(err)
				}
				crowd.Wait()
				await(t, "end of the containers' mounts", func() error { return onlyFlatMounts(n, 1) })
				if list := ctr(t, n, "snapshot", "--snapshotter", m.snapshotter, "ls"); strings.Contains(list, "Active") {
					t.Errorf("snapshots of containers are left:\n%s", list)
				}
				if err := n.PauseDaemon(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// pauseBeforeFlat pulls an image and pauses the daemon before it has made the image's flat image.
func pauseBeforeFlat(t *testing.T, n *node.Node, m mode, ref string) {
	t.Helper()
	t.Cleanup(func() { n.ResumeDaemon() }) // for the node to be closed
	for range 10 {
		pull(t, n, m, ref)
		if err := n.PauseDaemon(); err != nil {
			t.Fatal(err)
		}
		if len(flatMounts(t, n)) == 0 {
			return
		}
		if err := n.ResumeDaemon(); err != nil {
			t.Fatal(err)
		}
		ctr(t, n, "image", "rm", "--sync", ref)
		await(t, "removal", func() error { return onlyFlatMounts(n, 0) })
	}
	t.Fatal("the flat image is always there before the pull has returned: this test would prove nothing")
}

// wantDigest computes from the layers what the guest program's digest of a directory must be.
func wantDigest(t *testing.T, img v1.Image, dir string) string {
	t.Helper()
	r, err := images.Replay(img)
	if err != nil {
		t.Fatal(err)
	}
	var below []tree.Entry
	for _, e := range r.Visible() {
		name, ok := strings.CutPrefix(e.Path+"/", dir+"/")
		if !ok {
			continue
		}
		e.Path, e.Twin = strings.TrimSuffix(name, "/"), strings.TrimPrefix(e.Twin, dir+"/")
		if e.Path == "" {
			e.Path, e.Sec, e.Nsec = ".", 0, 0
		}
		below = append(below, e)
	}
	return tree.Digest(below)
}

func flatMounts(t *testing.T, n *node.Node) []node.Mount {
	t.Helper()
	return mounts(t, filepath.Join(n.DaemonState(), "mnt"))
}

// onlyFlatMounts tells what a node has mounted beside a number of flat images.
func onlyFlatMounts(n *node.Node, count int) error {
	all, err := node.Mounts(n.Dir())
	if err != nil {
		return err
	}
	flat, err := node.Mounts(filepath.Join(n.DaemonState(), "mnt"))
	if err != nil {
		return err
	}
	if len(flat) != count || len(all) != count {
		return fmt.Errorf("%d flat mounts, want %d, among %d mounts: %v", len(flat), count, len(all), all)
	}
	return nil
}

// An image goes, with all that it alone used, while another one that shares layers and contents with it is half
// pulled: some layers are in, and belong to no image yet.
func TestPullDuringSweep(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		n := startNode(t, m)
		files := func(dir string, seed uint64) v1.Layer {
			return layer(t, func(w *images.LayerWriter) error {
				err := w.Dir(dir, 0o755)
				for i := range 20 {
					err = errors.Join(err, w.File(fmt.Sprintf("%s/%d", dir, i), 0o644, images.Noise(seed+uint64(i), 100000)))
				}
				return err
			})
		}
		base := layer(t, func(w *images.LayerWriter) error { return images.WriteBase(w, shared.guest) })
		// The first image's contents are, by layers: those of a layer of the second, its own, and those of the layer
		// for which the second still waits.
		last := files("late", 7100)
		first := image(t, images.OCI, base, files("first", 7200), files("alone", 7000), files("first-late", 7100))
		second := image(t, images.OCI, base, files("second", 7200), files("own", 7300), last)
		firstRef, secondRef := push(t, first), push(t, second)
		before := settled(t, n.SnapshotterRoot(m.snapshotter))
		pull(t, n, m, firstRef)
		checkContainer(t, n, m, firstRef, "c1", first)

		gate := holdLayer(t, secondRef, last)
		done := make(chan error, 1)
		go func() { done <- n.Pull(t.Context(), m.snapshotter, gate.ref) }()
		await(t, "the second image to be half pulled", func() error {
			select {
			case err := <-done:
				t.Fatalf("the pull does not wait for its last layer: %v", err)
			default:
			}
			list, err := n.Ctr(t.Context(), "snapshot", "--snapshotter", m.snapshotter, "ls")
			// Four layers of the first image, two of the second beside the base.
			if got := strings.Count(list, "Committed"); err != nil || got < 6 {
				return fmt.Errorf("%d layers: %w", got, err)
			}
			return nil
		})
		half := settled(t, n.SnapshotterRoot(m.snapshotter))
		ctr(t, n, "image", "rm", "--sync", firstRef)
		await(t, "the first image's contents to go", func() error {
			if now := allocated(t, n.SnapshotterRoot(m.snapshotter)); now > half-2*20*100000 {
				return fmt.Errorf("%d bytes of disk, %d with the first image", now, half)
			}
			return nil
		})
		gate.open()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		checkContainer(t, n, m, gate.ref, "c2", second)
		ctr(t, n, "image", "rm", "--sync", gate.ref)
		await(t, "removal", func() error { return nothingLeft(n, m, before+512<<10) })
	})
}

// heldLayer is a registry in front of the tests' one that keeps a layer back until it is opened.
type heldLayer struct {
	ref  string // by which the image is pulled through it
	open func()
}

func holdLayer(t *testing.T, ref string, l v1.Layer) heldLayer {
	t.Helper()
	d, err := l.Digest()
	if err != nil {
		t.Fatal(err)
	}
	host, path, _ := strings.Cut(ref, "/")
	pass := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: host})
	opened := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/blobs/"+d.String()) {
			select {
			case <-opened:
			case <-r.Context().Done():
				return
			}
		}
		pass.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return heldLayer{strings.TrimPrefix(server.URL, "http://") + "/" + path, sync.OnceFunc(func() { close(opened) })}
}
