// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/node"
)

// A container sees exactly what the layers say, whatever way its image was packed. What the layers say is
// computed from their tar streams; that overlayfs agrees with it is part of the test.
func TestContainerSeesWhatTheLayersSay(t *testing.T) {
	packings := []struct {
		name        string
		family      images.Family
		compression images.Compression
	}{
		{"OCI gzip", images.OCI, images.Gzip},
		{"OCI zstd", images.OCI, images.Zstd},
		{"OCI uncompressed", images.OCI, images.None},
		{"Docker gzip", images.Docker, images.Gzip},
	}
	for _, m := range []mode{overlayfs, squash, snapshotOnly, sideBySide} {
		for _, p := range packings {
			t.Run(m.name+" "+p.name, func(t *testing.T) {
				// A node of its own each: all these images have the same chain of diff IDs.
				n := startNode(t, m)
				img := smallImage(t, p.family, p.compression)
				ref := push(t, img)
				pull(t, n, m, ref)
				checkContainer(t, n, m, ref, "c1", img)
			})
		}
	}
}

// The clients' ways to get an image into a snapshotter differ in who unpacks, and with which labels.
func TestWaysToUnpack(t *testing.T) {
	img := smallImage(t, images.OCI, images.Gzip)
	ways := []struct {
		name string
		get  func(t *testing.T, n *node.Node, m mode, ref string) error
	}{
		{"local pull", func(t *testing.T, n *node.Node, m mode, ref string) error {
			_, err := n.Ctr(t.Context(), "image", "pull", "--local", "--plain-http", "--snapshotter", m.snapshotter, ref)
			return err
		}},
		{"import", func(t *testing.T, n *node.Node, m mode, ref string) error {
			_, err := n.Ctr(t.Context(), "image", "import", "--snapshotter", m.snapshotter, exported(t, ref))
			return err
		}},
		{"local import", func(t *testing.T, n *node.Node, m mode, ref string) error {
			_, err := n.Ctr(t.Context(), "image", "import", "--local", "--snapshotter", m.snapshotter, exported(t, ref))
			return err
		}},
		{"run of an image that is not unpacked", func(t *testing.T, n *node.Node, m mode, ref string) error {
			_, err := n.Ctr(t.Context(), "content", "fetch", "--plain-http", ref)
			return err
		}},
	}
	eachMode(t, func(t *testing.T, m mode) {
		for _, way := range ways {
			t.Run(way.name, func(t *testing.T) {
				n := startNode(t, m)
				ref := push(t, img)
				if err := way.get(t, n, m, ref); err != nil {
					t.Fatal(err)
				}
				checkContainer(t, n, m, ref, "c1", img)
			})
		}
	})
}

// exported writes an image archive with the help of a node that has overlayfs only.
func exported(t *testing.T, ref string) string {
	t.Helper()
	n := startNode(t, overlayfs)
	path := filepath.Join(t.TempDir(), "image.tar")
	ctr(t, n, "content", "fetch", "--plain-http", ref)
	ctr(t, n, "image", "export", path, ref)
	return path
}

// Squash and overlayfs side by side on one node show the same tree to root on the host, who sees more than a
// container does: trusted xattrs, for one.
func TestImageMountShowsWhatOverlayfsShows(t *testing.T) {
	for _, m := range []mode{squash, snapshotOnly} {
		t.Run(m.name, func(t *testing.T) {
			n := startNode(t, m)
			img := smallImage(t, images.OCI, images.Gzip)
			ref := push(t, img)
			var seen [2][]string
			for i, snapshotter := range []string{node.Overlayfs, node.Squash} {
				if err := n.Pull(t.Context(), snapshotter, ref); err != nil {
					t.Fatal(err)
				}
				target := mountPoint(t)
				ctr(t, n, "image", "mount", "--snapshotter", snapshotter, ref, target)
				seen[i] = walk(t, target)
				ctr(t, n, "image", "unmount", "--snapshotter", snapshotter, "--rm", target)
				if left := mounts(t, target); len(left) > 0 {
					t.Errorf("%s: still mounted: %v", snapshotter, left)
				}
			}
			sameTree(t, "squash against overlayfs", seen[1], seen[0])
		})
	}
}

// A writable root file system takes writes that the next container does not see; a read-only one takes none.
func TestWritesStayInTheirContainer(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		n := startNode(t, m)
		img := smallImage(t, images.OCI, images.Gzip)
		ref := push(t, img)
		pull(t, n, m, ref)
		want := wantTree(t, img)

		c, err := n.Start(t.Context(), node.Run{Snapshotter: m.snapshotter, Image: ref, ID: "writer", Args: []string{images.GuestPath, "wait"}})
		if err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{
			{"write", "/change/overwritten", "changed in the container"},
			{"write", "/fresh", "new in the container"},
			{"remove", "/kinds/many"},
			{"remove", "/change/chowned"},
		} {
			if _, err := c.Exec(t.Context(), append([]string{images.GuestPath}, args...)...); err != nil {
				t.Fatal(err)
			}
		}
		out, err := c.Exec(t.Context(), images.GuestPath, "cat", "/change/overwritten")
		if err != nil || out != "changed in the container" {
			t.Errorf("after a write: %q, %v", out, err)
		}
		if out, err := c.Exec(t.Context(), images.GuestPath, "sum", "/kinds/many/file-001"); err == nil {
			t.Errorf("a removed file can be read: %s", out)
		}
		if err := c.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		sameTree(t, "next container", lines(guest(t, n, m, ref, "next", "tree", "/")), want)

		readOnly := node.Run{Snapshotter: m.snapshotter, Image: ref, ID: "ro", ReadOnly: true, Args: []string{images.GuestPath, "tree", "/"}}
		out, err = n.Run(t.Context(), readOnly)
		if err != nil {
			t.Fatal(err)
		}
		sameTree(t, "read-only container", lines(out), want)
		readOnly.Args = []string{images.GuestPath, "write", "/fresh", "x"}
		if _, err := n.Run(t.Context(), readOnly); err == nil || !strings.Contains(err.Error(), "read-only file system") {
			t.Errorf("write into a read-only root: %v", err)
		}
	})
}

// A container in a user namespace owns its files: without help from the snapshotter containerd copies the image
// into a snapshot whose files it gives to the mapped owner one by one, and commits it.
func TestUserNamespace(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		n := startNode(t, m)
		// 4000000000 has no place in the mapping, so this image is a plain one.
		img := image(t, images.OCI, layer(t, func(w *images.LayerWriter) error {
			return images.WriteBase(w, shared.guest)
		}), layer(t, func(w *images.LayerWriter) error {
			return w.File("home/data", 0o640, []byte("data"), images.Owner(1000, 1000))
		}))
		ref := push(t, img)
		pull(t, n, m, ref)
		out, err := n.Run(t.Context(), node.Run{
			Snapshotter: m.snapshotter, Image: ref, ID: "mapped",
			Flags: []string{"--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"},
			Args:  []string{images.GuestPath, "tree", "/"},
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`0640 1000:1000`, `"home/data"`, `0600 0:0`, `"etc/shadow"`} {
			if !strings.Contains(out, want) {
				t.Errorf("no %s in\n%s", want, out)
			}
		}
	})
}

// After the last image is gone nothing of it is left: no snapshot, no mount, next to no disk; and it can come
// back.
func TestImageRemoval(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		n := startNode(t, m)
		img := smallImage(t, images.OCI, images.Gzip)
		ref := push(t, img)
		root := n.SnapshotterRoot(m.snapshotter)
		before := settled(t, root)
		for round := range 2 {
			pull(t, n, m, ref)
			checkContainer(t, n, m, ref, fmt.Sprintf("c%d", round), img)
			ctr(t, n, "image", "rm", "--sync", ref)
			await(t, "removal", func() error { return nothingLeft(n, m, before+256<<10) })
		}
	})
}

// nothingLeft tells what a snapshotter still has after its last image was removed.
func nothingLeft(n *node.Node, m mode, disk int64) error {
	list, err := node.Mounts(n.Dir())
	if err != nil {
		return err
	}
	if len(list) > 0 {
		return fmt.Errorf("mounts: %v", list)
	}
	now, err := node.Allocated(n.SnapshotterRoot(m.snapshotter))
	if err != nil {
		return err
	}
	if now > disk {
		return fmt.Errorf("%d bytes of disk, want at most %d", now, disk)
	}
	return nil
}

// Removing an image takes nothing from a container that runs on it.
func TestImageRemovedWhileContainerRuns(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		n := startNode(t, m)
		img := smallImage(t, images.OCI, images.Gzip)
		ref := push(t, img)
		before := settled(t, n.SnapshotterRoot(m.snapshotter))
		pull(t, n, m, ref)
		c, err := n.Start(t.Context(), node.Run{Snapshotter: m.snapshotter, Image: ref, ID: "c", Args: []string{images.GuestPath, "wait"}})
		if err != nil {
			t.Fatal(err)
		}
		ctr(t, n, "image", "rm", "--sync", ref)
		out, err := c.Exec(t.Context(), images.GuestPath, "tree", "/")
		if err != nil {
			t.Fatal(err)
		}
		sameTree(t, "container without image", lines(out), wantTree(t, img))
		if err := c.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		await(t, "removal", func() error { return nothingLeft(n, m, before+256<<10) })
	})
}

// A hundred layers are as good as one.
func TestManyLayers(t *testing.T) {
	const count = 100
	stack := []v1.Layer{layer(t, func(w *images.LayerWriter) error { return images.WriteBase(w, shared.guest) })}
	for i := 1; i < count; i++ {
		stack = append(stack, layer(t, func(w *images.LayerWriter) error {
			if err := w.Dir("var", 0o755); err != nil {
				return err
			}
			if i > 10 {
				if err := w.Whiteout(fmt.Sprintf("var/layer-%d", i-10)); err != nil {
					return err
				}
			}
			if err := w.File("var/counter", 0o644, fmt.Appendf(nil, "%d\n", i)); err != nil {
				return err
			}
			return w.File(fmt.Sprintf("var/layer-%d", i), 0o644, images.Prose(uint64(i), 3000))
		}))
	}
	img := image(t, images.OCI, stack...)
	eachMode(t, func(t *testing.T, m mode) {
		n := startNode(t, m)
		ref := push(t, img)
		pull(t, n, m, ref)
		checkContainer(t, n, m, ref, "c1", img)
	})
}

// Contents are stored once per node: an image that is there in one namespace adds next to nothing in another.
func TestSecondNamespaceAddsNoDisk(t *testing.T) {
	m := squash
	n := startNode(t, m)
	img := smallImage(t, images.OCI, images.Gzip)
	ref := push(t, img)
	root := n.DaemonRoot()
	var disk [3]int64
	disk[0] = settled(t, root)
	for i, namespace := range []string{"first", "second"} {
		if _, err := n.CtrIn(t.Context(), namespace, "image", "pull", "--plain-http", "--snapshotter", m.snapshotter, ref); err != nil {
			t.Fatal(err)
		}
		disk[i+1] = settled(t, root)
	}
	first, second := disk[1]-disk[0], disk[2]-disk[1]
	t.Logf("first pull: %d KiB, second: %d KiB", first>>10, second>>10)
	if second > first/5 {
		t.Errorf("the second namespace added %d bytes to the %d bytes of the first", second, first)
	}
	for _, namespace := range []string{"first", "second"} {
		out, err := n.Run(t.Context(), node.Run{
			Snapshotter: m.snapshotter, Namespace: namespace, Image: ref, ID: "c-" + namespace,
			Args: []string{images.GuestPath, "tree", "/"},
		})
		if err != nil {
			t.Fatal(err)
		}
		sameTree(t, "namespace "+namespace, lines(out), wantTree(t, img))
	}
	// One namespace leaving takes nothing from the other.
	if _, err := n.CtrIn(t.Context(), "first", "image", "rm", "--sync", ref); err != nil {
		t.Fatal(err)
	}
	settled(t, root)
	out, err := n.Run(t.Context(), node.Run{
		Snapshotter: m.snapshotter, Namespace: "second", Image: ref, ID: "left", Args: []string{images.GuestPath, "tree", "/"},
	})
	if err != nil {
		t.Fatal(err)
	}
	sameTree(t, "second namespace alone", lines(out), wantTree(t, img))
}
