// SPDX-License-Identifier: Apache-2.0

// Package integration tests squash with the real thing: containerd, ctr, the shim and runc from upstream
// sources, the squash daemon of this repository, containers on the running kernel, and images from a registry
// on the loopback interface. Everything needs root; nothing needs the network.
//
// Every test has nodes of its own. A node that is closed with something left over (a mount, a loop device, a
// daemon that does not end on SIGTERM) fails its test.
package integration

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/squash-snapshotter/squash/integration/binaries"
	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/node"
	"github.com/squash-snapshotter/squash/integration/tree"
)

// fixture is what all tests share: programs, blobs and the registry. Nothing of it changes during tests.
type fixture struct {
	bin      *binaries.Set
	noDaemon error        // why there is no daemon
	remove   func() error // removes the daemon
	store    *images.Store
	registry *images.Registry
	guest    []byte
}

var shared fixture

func TestMain(m *testing.M) {
	node.Reap()
	if err := shared.setUp(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "set-up:", errors.Join(err, shared.tearDown()))
		os.Exit(1)
	}
	code := m.Run()
	if err := shared.tearDown(); err != nil {
		fmt.Fprintln(os.Stderr, "tear-down:", err)
		code = 1
	}
	os.Exit(code)
}

func (f *fixture) setUp(ctx context.Context) (err error) {
	if os.Getuid() != 0 {
		return fmt.Errorf("these tests mount and run containers: they need root")
	}
	if f.bin, err = binaries.Build(ctx, func(string) {}); err != nil {
		return err
	}
	dir, remove, err := node.TempDir()
	if err != nil {
		return err
	}
	f.remove = remove
	f.noDaemon = f.bin.BuildDaemon(ctx, dir)
	if f.guest, err = os.ReadFile(f.bin.Guest); err != nil {
		return err
	}
	if f.store, err = images.OpenStore(filepath.Join(f.bin.Repo, "bin", "images")); err != nil {
		return err
	}
	f.registry, err = f.store.Serve()
	return err
}

func (f *fixture) tearDown() error {
	var errs []error
	if f.registry != nil {
		errs = append(errs, f.registry.Close())
	}
	if f.remove != nil {
		errs = append(errs, f.remove())
	}
	return errors.Join(errs...)
}

// mode is a way to set up a node.
type mode struct {
	name         string
	snapshotter  string
	snapshotOnly bool
	unpacks      int // layers at once; 0: containerd's default, one
}

var (
	overlayfs    = mode{name: "overlayfs", snapshotter: node.Overlayfs}
	squash       = mode{name: "squash", snapshotter: node.Squash}
	snapshotOnly = mode{name: "squash, snapshot plugin only", snapshotter: node.Squash, snapshotOnly: true}
	sideBySide   = mode{name: "squash, layers side by side", snapshotter: node.Squash, unpacks: 4}
)

// withOverlayfs proves the tests themselves: what fails with containerd's own snapshotter is no fault of squash.
var withOverlayfs = flag.Bool("overlayfs", false, "run the tests with containerd's overlayfs snapshotter, too")

// eachMode runs a test in all modes.
func eachMode(t *testing.T, test func(t *testing.T, m mode)) {
	modes := []mode{squash, snapshotOnly}
	if *withOverlayfs {
		modes = append([]mode{overlayfs}, modes...)
	}
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) { test(t, m) })
	}
}

// startNode starts a node that is closed with the test; a failed test shows the daemons' logs.
func startNode(t *testing.T, m mode) *node.Node {
	t.Helper()
	opts := node.Options{Tools: shared.bin.Tools, SnapshotOnly: m.snapshotOnly, Unpacks: m.unpacks, Debug: true}
	if m.snapshotter == node.Squash {
		if shared.noDaemon != nil {
			t.Fatal(shared.noDaemon)
		}
		opts.Daemon = shared.bin.Daemon
	}
	n, err := node.Start(t.Context(), opts)
	if err != nil {
		t.Fatalf("start node: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(n.Logs(120))
		}
		if err := n.Close(); err != nil {
			t.Errorf("close node: %v", err)
		}
	})
	return n
}

// smallImage makes the image with all kinds of entries.
func smallImage(t *testing.T, f images.Family, c images.Compression) v1.Image {
	t.Helper()
	layers, err := images.Small(shared.store, c, shared.guest)
	if err != nil {
		t.Fatal(err)
	}
	return image(t, f, layers...)
}

func image(t *testing.T, f images.Family, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := images.Image(f, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// layer makes one layer that is not kept under a name.
func layer(t *testing.T, write func(*images.LayerWriter) error) v1.Layer {
	t.Helper()
	l, err := shared.store.Layer("", images.Gzip, write)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// push puts an image into the registry under a name of this test and returns its reference.
func push(t *testing.T, img v1.Image) string {
	t.Helper()
	repo := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(t.Name()))
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	ref, err := shared.registry.Push(t.Context(), fmt.Sprintf("test-%s-x:%s", repo, d.Hex[:12]), img)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func pull(t *testing.T, n *node.Node, m mode, ref string) {
	t.Helper()
	if err := n.Pull(t.Context(), m.snapshotter, ref); err != nil {
		t.Fatal(err)
	}
}

// ctr runs ctr and fails the test when it fails.
func ctr(t *testing.T, n *node.Node, args ...string) string {
	t.Helper()
	out, err := n.Ctr(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// guest runs the guest program in a container of its own.
func guest(t *testing.T, n *node.Node, m mode, ref, id string, args ...string) string {
	t.Helper()
	out, err := n.Run(t.Context(), node.Run{
		Snapshotter: m.snapshotter, Image: ref, ID: id,
		Args: append([]string{images.GuestPath}, args...),
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// wantTree computes from the layers what a container must see.
func wantTree(t *testing.T, img v1.Image) []string {
	t.Helper()
	r, err := images.Replay(img)
	if err != nil {
		t.Fatal(err)
	}
	return tree.Lines(r.Visible(images.Volatile...))
}

func sameTree(t *testing.T, what string, got, want []string) {
	t.Helper()
	if diff := tree.Diff(want, got, 20); len(diff) > 0 {
		t.Errorf("%s: - wanted, + got:\n%s", what, strings.Join(diff, "\n"))
	}
	if len(got) == 0 {
		t.Errorf("%s: empty", what)
	}
}

// checkContainer runs a container and compares all that it sees with what the layers say.
func checkContainer(t *testing.T, n *node.Node, m mode, ref, id string, img v1.Image) {
	t.Helper()
	sameTree(t, "container "+id, lines(guest(t, n, m, ref, id, "tree", "/")), wantTree(t, img))
}

// lines splits output into lines that are not empty.
func lines(out string) []string {
	var list []string
	for line := range strings.Lines(out) {
		if line = strings.TrimSuffix(line, "\n"); line != "" {
			list = append(list, line)
		}
	}
	return list
}

// await waits for an effect that happens in the background.
func await(t *testing.T, what string, done func() error) {
	t.Helper()
	if err := node.Await(t.Context(), 30*time.Second, done); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// mounts lists the mount table below dir.
func mounts(t *testing.T, dir string) []node.Mount {
	t.Helper()
	list, err := node.Mounts(dir)
	if err != nil {
		t.Fatal(err)
	}
	return list
}
