// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// Environment of the process that the test kills.
const (
	crashDir  = "SQUASH_TEST_CRASH_DIR"
	crashSeed = "SQUASH_TEST_CRASH_SEED"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(powerDir); dir != "" {
		seed, err := strconv.ParseUint(os.Getenv(powerSeed), 10, 64)
		if err == nil {
			err = workUntilThePowerGoes(dir, seed)
		}
		fmt.Fprintln(os.Stderr, "power cut child:", err)
		os.Exit(3)
	}
	if dir := os.Getenv(crashDir); dir != "" {
		seed, err := strconv.ParseUint(os.Getenv(crashSeed), 10, 64)
		if err == nil {
			err = liveUntilKilled(dir, seed)
		}
		fmt.Fprintln(os.Stderr, "crash child:", err)
		os.Exit(3)
	}
	if dir := os.Getenv(costDir); dir != "" {
		if err := liveForCost(dir, os.Getenv(costStep)); err != nil {
			fmt.Fprintln(os.Stderr, "cost child:", err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const crashImages = 4

// crashImage has two layers of its own on one that all of them share.
func crashImage(i int) image {
	tag := uint64(1000 * (i + 1))
	return image{
		treetest.Layer(treetest.Dir("base", treetest.Mode(0o750)), treetest.File("base/file", noise(40_000, 1)), treetest.File("base/gone", prose(3000, 2))),
		treetest.Layer(treetest.File("own", prose(120_000, tag)), treetest.File("base/file", noise(40_001, tag+1)), treetest.File("small", fmt.Sprint(i))),
		treetest.Layer(treetest.Whiteout("base/gone"), treetest.File("more/own", noise(60_000, tag+2)), treetest.Hardlink("more/link", "more/own")),
	}
}

func crashTop(i int) string { return crashImage(i).names(fmt.Sprintf("ns/%d", i))[2] }

// committedFile is what the child writes to an upper directory.
func committedFile(i, j int) (name, content string) {
	return fmt.Sprintf("written%d", j), prose(1500+100*j, uint64(9000+100*i+j))
}

const committedFiles = 12

func committedName(i int) string { return fmt.Sprintf("ns/%d/committed", i) }

// liveUntilKilled does, in an order that the seed gives, what a node does.
func liveUntilKilled(dir string, seed uint64) error {
	if err := log.SetLevel("panic"); err != nil {
		return err
	}
	ctx := context.Background()
	n := &node{dir: dir, blobs: newBlobs()}
	s, err := New(ctx, Config{Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Content: n.blobs})
	if err != nil {
		return err
	}
	n.Snapshotter = s
	for i := range crashImages {
		for _, l := range crashImage(i) {
			n.blobs.add(l) // freed contents are restored from here
		}
	}
	fmt.Println("open")
	r := rand.New(rand.NewPCG(seed, 0))
	for k := 0; ; k++ {
		i := r.IntN(crashImages)
		switch r.IntN(6) {
		case 0, 1, 2:
			_, err = n.tryPull(ctx, fmt.Sprintf("ns/%d", i), crashImage(i))
			if err == nil && r.IntN(2) == 0 {
				err = s.Flatten(ctx, crashTop(i))
			}
		case 3:
			err = commitUpper(ctx, s, i, fmt.Sprintf("ns/%d/container-%d-%d", i, seed, k))
		case 4:
			err = removeImage(ctx, s, i)
		case 5:
			err = s.Cleanup(ctx)
		}
		if err != nil {
			return fmt.Errorf("step %d with image %d: %w", k, i, err)
		}
	}
}

func commitUpper(ctx context.Context, s *Snapshotter, i int, key string) error {
	m, err := s.Prepare(ctx, key, crashTop(i))
	if errdefs.IsNotFound(err) {
		return nil // the image is not there now
	}
	if err != nil {
		return err
	}
	var upper string
	for _, o := range m[0].Options {
		if v, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = v
		}
	}
	for j := range committedFiles {
		name, content := committedFile(i, j)
		if err := os.WriteFile(filepath.Join(upper, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	if err := s.Commit(ctx, committedName(i), key); errdefs.IsAlreadyExists(err) {
		return s.Remove(ctx, key)
	} else {
		return err
	}
}

// removeImage removes what is there of an image, and what was made from it.
func removeImage(ctx context.Context, s *Snapshotter, i int) error {
	prefix := fmt.Sprintf("ns/%d/", i)
	for {
		var leaf string
		parents := map[string]bool{}
		var names []string
		err := s.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			parents[info.Parent] = true
			names = append(names, info.Name)
			return nil
		})
		if err != nil {
			return err
		}
		for _, name := range names {
			if strings.HasPrefix(name, prefix) && !parents[name] {
				leaf = name
			}
		}
		if leaf == "" {
			return nil
		}
		if err := s.Remove(ctx, leaf); err != nil {
			return err
		}
	}
}

// Invariant 4.
func TestAKillAtAnyMomentLeavesEveryCommittedSnapshotWhole(t *testing.T) {
	const kills = 36
	n := newNode(t, mounts.ModeAuto)
	want := map[string]treetest.Tree{}
	for i := range crashImages {
		img := crashImage(i)
		n.pull(fmt.Sprintf("ns/%d", i), img)
		for _, name := range img.names(fmt.Sprintf("ns/%d", i)) {
			want[name] = n.tree(name)
		}
		root, undo := n.view(crashTop(i))
		treetest.Check(t, img, root, treetest.Options{})
		undo()
	}
	n.close()
	moments := rand.New(rand.NewPCG(20, 26))
	for k := range kills {
		killed(t, n.dir, uint64(k), moments)
		n.open()
		if t.Failed() {
			t.Fatalf("kill %d", k)
		}
		n.wholeAfterKill(want)
		if t.Failed() {
			t.Fatalf("after kill %d", k)
		}
		n.close()
	}
	n.open()
	for i := range crashImages {
		n.pull(fmt.Sprintf("ns/%d", i), crashImage(i))
		n.shows(crashTop(i), want[crashTop(i)])
	}
	n.removeAll()
	must(t, n.Cleanup(context.Background()))
	n.expectNothingLeft()
}

// killed runs a child on the store and kills it after up to 150 ms: while it
// opens the store, or at work.
func killed(t *testing.T, dir string, seed uint64, moments *rand.Rand) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), crashDir+"="+dir, crashSeed+"="+strconv.FormatUint(seed, 10))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	if moments.IntN(6) > 0 {
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Errorf("the child did not open the store: %v", err)
		}
	}
	time.Sleep(time.Duration(moments.IntN(150_000)) * time.Microsecond) // the moment is what is drawn
	killErr := cmd.Process.Kill()
	err = cmd.Wait()
	var exit *exec.ExitError
	if killErr != nil || !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child ended by itself: %v\n%s", err, stderr.String())
	}
}

func (n *node) wholeAfterKill(want map[string]treetest.Tree) {
	t, ctx := n.t, context.Background()
	t.Helper()
	for _, info := range n.all() {
		if info.Kind != snapshots.KindCommitted {
			if info.Kind == snapshots.KindActive {
				must(t, n.Remove(ctx, info.Name))
			}
			continue
		}
		tree := n.tree(info.Name)
		if strings.HasSuffix(info.Name, "/committed") {
			i, err := strconv.Atoi(strings.Split(info.Name, "/")[1])
			must(t, err)
			for j := range committedFiles {
				name, content := committedFile(i, j)
				if e := tree.Entries["/"+name]; e == nil || e.SHA256 != sha256Hex(content) {
					t.Errorf("%s: %s is not what was written", info.Name, name)
				}
				delete(tree.Entries, "/"+name)
			}
			sameTree(t, want[crashTop(i)], tree)
			continue
		}
		sameTree(t, want[info.Name], tree)
	}
	for _, m := range mountsBelow(t, n.dir) {
		c, err := parseImageName(filepath.Base(m.Mountpoint))
		if err == nil && !exists(n.image(c)) {
			t.Errorf("mounted without an image: %s", m.Mountpoint)
		}
	}
}
