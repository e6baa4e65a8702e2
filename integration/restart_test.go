// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/node"
)

// waiting starts a container that does nothing until it is asked.
func waiting(t *testing.T, n *node.Node, m mode, ref, id string) *node.Container {
	t.Helper()
	c, err := n.Start(t.Context(), node.Run{Snapshotter: m.snapshotter, Image: ref, ID: id, Args: []string{images.GuestPath, "wait"}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func dropCaches(t *testing.T) {
	t.Helper()
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Fatal(err)
	}
}

// Nothing in user space is on the read path: with the daemon stopped or killed, a running container reads files
// that nobody has read before, and its mounts are where they were. A daemon that comes back takes over: new
// containers start, and what is removed goes away.
func TestContainerOutlivesDaemon(t *testing.T) {
	ways := []struct {
		name string
		end  func(*node.Node) error
	}{
		{"SIGTERM", (*node.Node).StopDaemon},
		{"SIGKILL", (*node.Node).KillDaemon},
	}
	for _, m := range []mode{squash, snapshotOnly} {
		for _, way := range ways {
			t.Run(m.name+" "+way.name, func(t *testing.T) {
				n := startNode(t, m)
				img := smallImage(t, images.OCI, images.Gzip)
				want := wantTree(t, img)
				ref := push(t, img)
				before := settled(t, n.DaemonRoot())
				pull(t, n, m, ref)
				c := waiting(t, n, m, ref, "c1")
				mounted := fmt.Sprint(mounts(t, n.DaemonState()))

				if err := way.end(n); err != nil {
					t.Fatal(err)
				}
				if now := fmt.Sprint(mounts(t, n.DaemonState())); now != mounted {
					t.Errorf("mounts with the daemon: %s\nwithout: %s", mounted, now)
				}
				dropCaches(t)
				out, err := c.Exec(t.Context(), images.GuestPath, "tree", "/")
				if err != nil {
					t.Fatal(err)
				}
				sameTree(t, "without daemon", lines(out), want)

				if err := n.StartDaemon(t.Context()); err != nil {
					t.Fatal(err)
				}
				if now := fmt.Sprint(mounts(t, n.DaemonState())); now != mounted {
					t.Errorf("mounts before: %s\nafter the restart: %s", mounted, now)
				}
				if out, err = c.Exec(t.Context(), images.GuestPath, "tree", "/"); err != nil {
					t.Fatal(err)
				}
				sameTree(t, "after the restart", lines(out), want)
				checkContainer(t, n, m, ref, "c2", img)
				if err := c.Stop(t.Context()); err != nil {
					t.Fatal(err)
				}
				ctr(t, n, "image", "rm", "--sync", ref)
				await(t, "removal", func() error { return nothingLeft(n, m, before+256<<10) })
			})
		}
	}
}

// After a reboot every mount is gone and the run directory is empty. Starting a container makes what it needs.
func TestMountsComeBackAfterReboot(t *testing.T) {
	for _, m := range []mode{squash, snapshotOnly} {
		t.Run(m.name, func(t *testing.T) {
			n := startNode(t, m)
			img := smallImage(t, images.OCI, images.Gzip)
			ref := push(t, img)
			pull(t, n, m, ref)
			checkContainer(t, n, m, ref, "c1", img)
			if err := n.Reboot(t.Context()); err != nil {
				t.Fatal(err)
			}
			checkContainer(t, n, m, ref, "c2", img)
		})
	}
}

// containerd may go and come back under a running container.
func TestContainerdRestart(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		n := startNode(t, m)
		img := smallImage(t, images.OCI, images.Gzip)
		ref := push(t, img)
		pull(t, n, m, ref)
		c := waiting(t, n, m, ref, "c1")
		if err := n.StopContainerd(); err != nil {
			t.Fatal(err)
		}
		if err := n.StartContainerd(t.Context()); err != nil {
			t.Fatal(err)
		}
		out, err := c.Exec(t.Context(), images.GuestPath, "tree", "/")
		if err != nil {
			t.Fatal(err)
		}
		sameTree(t, "after the restart", lines(out), wantTree(t, img))
		checkContainer(t, n, m, ref, "c2", img)
		// The daemon's own connection to containerd has to come back, too: a new image is pulled and flattened.
		other := image(t, images.OCI, layer(t, func(w *images.LayerWriter) error {
			return images.WriteBase(w, shared.guest)
		}), layer(t, func(w *images.LayerWriter) error {
			return w.File("etc/other", 0o644, images.Prose(5, 50000))
		}))
		second := push(t, other)
		pull(t, n, m, second)
		if out := guest(t, n, m, second, "c3", "sum", "/etc/other"); !strings.Contains(out, "/etc/other") {
			t.Errorf("sum: %q", out)
		}
	})
}

// A daemon that is killed in the middle of a pull leaves nothing that stands in the way of the next pull.
func TestDaemonKilledDuringPull(t *testing.T) {
	for _, m := range []mode{squash, snapshotOnly} {
		t.Run(m.name, func(t *testing.T) {
			n := startNode(t, m)
			var stack []v1.Layer
			stack = append(stack, layer(t, func(w *images.LayerWriter) error { return images.WriteBase(w, shared.guest) }))
			for i := range 4 {
				stack = append(stack, layer(t, func(w *images.LayerWriter) error {
					err := w.Dir(fmt.Sprintf("big-%d", i), 0o755)
					for j := range 64 {
						err = errors.Join(err, w.File(fmt.Sprintf("big-%d/%d", i, j), 0o644, images.Noise(uint64(1000*i+j), 1<<20)))
					}
					return err
				}))
			}
			img := image(t, images.OCI, stack...)
			ref := push(t, img)
			before := settled(t, n.DaemonRoot())

			done := make(chan error, 1)
			go func() { done <- n.Pull(context.WithoutCancel(t.Context()), m.snapshotter, ref) }()
			await(t, "pull under way", func() error {
				if now := allocated(t, n.DaemonRoot()); now < before+100<<20 {
					return fmt.Errorf("%d bytes", now)
				}
				return nil
			})
			if err := n.KillDaemon(); err != nil {
				t.Fatal(err)
			}
			err := <-done
			t.Logf("the interrupted pull: %v", err)
			if err := n.StartDaemon(t.Context()); err != nil {
				t.Fatal(err)
			}
			pull(t, n, m, ref)
			checkContainer(t, n, m, ref, "c1", img)
			ctr(t, n, "image", "rm", "--sync", ref)
			await(t, "removal", func() error { return nothingLeft(n, m, before+1<<20) })
		})
	}
}

// Two daemons on one root would destroy each other's data: the second refuses to start and says why.
func TestSecondDaemonIsRefused(t *testing.T) {
	n := startNode(t, squash)
	out, err := n.SecondDaemon(t.Context(), 20*time.Second)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		t.Errorf("the second daemon runs: %v\n%s", err, out)
	case err == nil:
		t.Errorf("the second daemon ended with success:\n%s", out)
	case !strings.Contains(out, n.DaemonRoot()):
		t.Errorf("the message does not name the root that is in use:\n%s", out)
	}
	img := smallImage(t, images.OCI, images.Gzip)
	ref := push(t, img)
	pull(t, n, squash, ref)
	checkContainer(t, n, squash, ref, "c1", img)
}

// Pulls of several images at once, with removals in between, end as if they had come one after the other.
func TestPullsAndRemovalsAtOnce(t *testing.T) {
	eachMode(t, func(t *testing.T, m mode) {
		n := startNode(t, m)
		base := layer(t, func(w *images.LayerWriter) error { return images.WriteBase(w, shared.guest) })
		const count = 4
		var imgs [count]v1.Image
		var refs [count]string
		for i := range count {
			own := layer(t, func(w *images.LayerWriter) error {
				err := errors.Join(w.Dir("own", 0o755), w.File("own/number", 0o644, fmt.Appendf(nil, "%d", i)))
				for j := range 20 {
					err = errors.Join(err, w.File(fmt.Sprintf("own/shared-%d", j), 0o644, images.Noise(uint64(500+j), 100000)))
					err = errors.Join(err, w.File(fmt.Sprintf("own/mine-%d", j), 0o644, images.Noise(uint64(600+20*i+j), 100000)))
				}
				return err
			})
			imgs[i] = image(t, images.OCI, base, own)
			refs[i] = push(t, imgs[i])
		}
		before := settled(t, n.SnapshotterRoot(m.snapshotter))
		for round := range 3 {
			errs := make(chan error, count)
			for i := range count {
				go func() {
					err := n.Pull(t.Context(), m.snapshotter, refs[i])
					if err == nil && i%2 == 0 {
						_, err = n.Ctr(t.Context(), "image", "rm", "--sync", refs[i])
					}
					errs <- err
				}()
			}
			for range count {
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
			for i := 1; i < count; i += 2 {
				checkContainer(t, n, m, refs[i], fmt.Sprintf("c-%d-%d", round, i), imgs[i])
				ctr(t, n, "image", "rm", "--sync", refs[i])
			}
		}
		await(t, "removal", func() error { return nothingLeft(n, m, before+512<<10) })
	})
}

// crashVariable makes this test program start a node with a running container and then wait to be killed.
const crashVariable = "SQUASH_TEST_CRASH"

// A test program that is killed leaves nothing on the machine.
func TestKilledTestLeavesNothing(t *testing.T) {
	if dir := os.Getenv(crashVariable); dir != "" {
		n := startNode(t, overlayfs)
		ref := push(t, smallImage(t, images.OCI, images.Gzip))
		pull(t, n, overlayfs, ref)
		waiting(t, n, overlayfs, ref, "orphan")
		fmt.Println("started")
		select {}
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestKilledTestLeavesNothing$")
	cmd.Env = append(os.Environ(), crashVariable+"="+dir, "SQUASH_TEST_DIR="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	word := make([]byte, 7)
	if _, err := out.Read(word); err != nil || string(word) != "started" {
		t.Errorf("the other test program says %q, %v", word, err)
	}
	if len(mounts(t, dir)) == 0 {
		t.Error("no container is running: this test would prove nothing")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() // ends by the signal
	await(t, "clean-up by the reaper", func() error {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		if len(entries) > 0 {
			return fmt.Errorf("still there: %v", entries)
		}
		return nil
	})
	if left := mounts(t, dir); len(left) > 0 {
		t.Errorf("mounts are left: %v", left)
	}
}
