// SPDX-License-Identifier: Apache-2.0

//go:build failpoints

package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/failpoint"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// Environment of the process that is killed: the directory of its store, and
// which of the scenarios it plays.
const (
	killDir      = "SQUASH_TEST_KILL_DIR"
	killScenario = "SQUASH_TEST_KILL_SCENARIO"
	// killStart before the name of a scenario: a start of its store, no work.
	killStart = "start after "
)

func init() {
	dir, name := os.Getenv(killDir), os.Getenv(killScenario)
	if dir == "" {
		return
	}
	if err := play(dir, name); err != nil {
		fmt.Fprintln(os.Stderr, "scenario", name, "failed:", err)
		os.Exit(3)
	}
	os.Exit(0)
}

// play is the life of the process that is killed.
func play(dir, name string) error {
	if err := log.SetLevel("panic"); err != nil {
		return err
	}
	ctx := context.Background()
	name, start := strings.CutPrefix(name, killStart)
	sc, ok := scenarios[name]
	if !ok {
		return errors.New("there is no such scenario")
	}
	if start {
		sc.ready, sc.do = nil, nothing
	}
	if sc.ready == nil {
		if err := failpoint.Arm(); err != nil {
			return err
		}
	}
	n := killNode(dir, sc)
	s, err := New(ctx, n.cfg)
	if err != nil {
		return err
	}
	n.Snapshotter = s
	if sc.ready != nil {
		if err := sc.ready(ctx, n); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
		if err := failpoint.Arm(); err != nil {
			return err
		}
	}
	if err := sc.do(ctx, n); err != nil {
		return err
	}
	// What goes on in the background may be killed, too.
	if err := eventually(func() error { return errors.Join(n.disorder(ctx), n.notDurable(ctx)) }); err != nil {
		return err
	}
	return s.Close()
}

func killNode(dir string, sc scenario) *node {
	n := &node{dir: dir, blobs: newBlobs()}
	n.cfg = Config{Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Content: n.blobs}
	if sc.config != nil {
		sc.config(&n.cfg)
	}
	for _, img := range killImages {
		for _, l := range img {
			n.blobs.add(l)
		}
	}
	return n
}

// eventually waits for what the background does.
func eventually(check func() error) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := check()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(2 * time.Millisecond) // between two looks at the condition
	}
}

// run starts a scenario on the store in dir, to be killed at the hit that kill
// names; "" lets it live. It returns the labels of the hits that it met, the
// last one "" if it was not killed.
func run(t *testing.T, dir, scenario, kill string) (labels []string) {
	t.Helper()
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), killDir+"="+dir, killScenario+"="+scenario, failpoint.TraceEnv+"="+trace, failpoint.KillEnv+"="+kill)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
	if killed && kill == "" || err != nil && !killed {
		t.Fatalf("scenario %s: %v\n%s", scenario, err, out)
	}
	b, err := os.ReadFile(trace)
	must(t, err)
	labels = strings.Split(string(b), "\n")
	if killed {
		labels = labels[:len(labels)-1]
	}
	return labels
}

// Invariants 2, 3, 4 and 7, with the kill after every single effect on the
// disk, the mounts and the metastore: what was committed is whole, nothing is
// left over, and the work succeeds when it is repeated.
func TestAKillAfterAnyEffectIsSurvived(t *testing.T) {
	var lives []life
	for _, name := range slices.Sorted(maps.Keys(scenarios)) {
		if scenarios[name].damage == nil { // there it is the start that matters
			lives = append(lives, life{scenario: name})
		}
	}
	killAll(t, lives)
}

// A start after a kill is killed, too, after each of its effects.
func TestAKillOfTheStartAfterAKillIsSurvived(t *testing.T) {
	killAll(t, []life{
		{"first start and unpack", true, "pack.write in writeChunk"},
		{"first start and unpack", true, "index.rename in publishIndex < publishPending"},
		{"first start and unpack", true, "file.rename in writeFile < writeImageFile"},
		{"first start and unpack", true, "index.rename in publishIndex < cut"},
		{"restore", true, "index.rename in publishIndex < publishPending < publish < Publish < restore"},
		{"upper directories", true, "metastore.ready in update < nameDirectory < create"},
		{"upper directories", true, "metastore.commit in update < Commit"},
		{"build", true, "image.remove"},
		{"remove", true, "image.remove"},
		{"reboot", true, ""},
	})
}

// life is what is killed at each of its points.
type life struct {
	scenario string
	// start: not the scenario itself, but the start after it was killed at the
	// first point whose label begins with after; "": before it began.
	start bool
	after string
}

func (l life) String() string {
	if l.start {
		return strings.TrimSpace(killStart + l.scenario + " " + l.after)
	}
	return l.scenario
}

func killAll(t *testing.T, lives []life) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts file systems")
	}
	want := killTrees(t)
	t.Run("killed", func(t *testing.T) {
		for _, l := range lives {
			t.Run(l.String(), func(t *testing.T) {
				t.Parallel()
				killEverywhere(t, l, want)
			})
		}
	})
}

// killEverywhere kills after the first, second, … effect, until none is left to
// be killed after, and has what is left checked each time.
func killEverywhere(t *testing.T, l life, want map[string]treetest.Tree) {
	template := scenarios[l.scenario].template(t)
	var all []string
	met := tally{began: time.Now(), killed: map[string]bool{}}
	t.Run("lives", func(t *testing.T) {
		all, _ = l.live(t, template, "")
		all = all[:len(all)-1]
	})
	t.Run("dies", func(t *testing.T) {
		for k := range all {
			t.Run(strconv.Itoa(k), func(t *testing.T) {
				t.Parallel()
				met.add(l.once(t, template, strconv.Itoa(k), k, want))
			})
		}
	})
	// The background does not always keep the same order, so some run may be
	// longer, and some point may not have been hit at the place where it was.
	k := len(all)
	for over := false; !over && !t.Failed(); k++ {
		t.Run(strconv.Itoa(k), func(t *testing.T) { over = !met.add(l.once(t, template, strconv.Itoa(k), k, want)) })
	}
	for _, label := range slices.Compact(slices.Sorted(slices.Values(all))) {
		for try := 0; try < 5 && !met.killed[label] && !t.Failed(); try++ {
			t.Run(label, func(t *testing.T) { met.add(l.once(t, template, label, k, want)) })
		}
	}
	met.report(t)
	if !l.start { // what was undone when it was killed is not always the same
		met.complete(t, all)
	}
}

// live plays it on a copy of the template, which it returns, with a kill or ("")
// without.
func (l life) live(t *testing.T, template, kill string) (labels []string, dir string) {
	t.Helper()
	dir = copied(t, template)
	scenario := l.scenario
	if l.start {
		scenario = killStart + l.scenario
		if l.after != "" {
			if labels := run(t, dir, l.scenario, l.after); !strings.HasPrefix(labels[len(labels)-1], l.after) {
				t.Fatalf("%s did not come to %s, but to\n%s", l.scenario, l.after, strings.Join(labels, "\n"))
			}
		}
	}
	return run(t, dir, scenario, kill), dir
}

// once kills and checks what is left. It returns the label of the point at which
// it killed, "" if there was none.
func (l life) once(t *testing.T, template, kill string, variant int, want map[string]treetest.Tree) (label string) {
	labels, dir := l.live(t, template, kill)
	label = labels[len(labels)-1]
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s, killed at hit %s: %s", l, kill, label)
		}
	})
	survived(t, dir, scenarios[l.scenario], variant, want)
	return label
}

// tally counts at which points processes were killed.
type tally struct {
	mu     sync.Mutex
	began  time.Time
	kills  int
	killed map[string]bool
}

// add counts a kill; "" is none.
func (m *tally) add(label string) (killed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if label == "" {
		return false
	}
	m.kills++
	m.killed[label] = true
	return true
}

func (m *tally) report(t *testing.T) {
	t.Logf("%d kills at %d points, %v", m.kills, len(m.killed), time.Since(m.began).Round(time.Second))
}

// complete fails the test if nothing was killed after one of the kinds of
// effects that a whole life has.
func (m *tally) complete(t *testing.T, all []string) {
	if t.Failed() {
		return
	}
	effect := func(label string) string { return strings.SplitN(label, " ", 2)[0] }
	killed := map[string]bool{}
	for label := range m.killed {
		killed[effect(label)] = true
	}
	for _, label := range all {
		if !killed[effect(label)] {
			t.Errorf("never killed after %s", label)
		}
	}
}

// survived opens the store that a killed process left, checks it, and does the
// work again: at once if variant is odd, after the store has settled if not.
func survived(t *testing.T, dir string, sc scenario, variant int, want map[string]treetest.Tree) {
	ctx := context.Background()
	if sc.damage == nil {
		checkKilled(t, dir)
	}
	n := killNode(dir, sc)
	n.t = t
	t.Cleanup(n.end)
	n.open()
	if variant%2 == 0 {
		n.settles()
		n.whole(want)
	}
	if err := sc.do(ctx, n); err != nil {
		t.Fatalf("the work cannot be repeated: %v", err)
	}
	n.whole(want)
	n.removeAll()
	must(t, n.Cleanup(ctx))
	n.expectNothingLeft()
}

// settles waits until the store has nothing that it should not have, and checks
// what it has.
func (n *node) settles() {
	n.t.Helper()
	ctx := context.Background()
	if err := eventually(func() error { return errors.Join(n.disorder(ctx), n.notDurable(ctx)) }); err != nil {
		n.t.Fatalf("does not come to rest: %v", err)
	}
	checkContents(n.t, n.pack)
}

// whole compares all committed snapshots with what they should show. Others are
// mounted, then removed, as containerd does when their lease expires.
func (n *node) whole(want map[string]treetest.Tree) {
	n.t.Helper()
	for _, info := range n.all() {
		if info.Kind != snapshots.KindCommitted {
			m, err := n.Mounts(context.Background(), info.Name)
			must(n.t, err)
			_, undo := n.mounted(info.Name, m)
			undo()
			continue
		}
		tree, ok := want[info.Name]
		if !ok {
			n.t.Errorf("snapshot %s is of no scenario", info.Name)
			continue
		}
		n.shows(info.Name, tree)
	}
	n.settles()
	n.checkUsage()
}

// killTrees is what the snapshots of all scenarios show, by name; those of the
// images are compared with the reference.
func killTrees(t *testing.T) map[string]treetest.Tree {
	want := map[string]treetest.Tree{}
	n := killNode(t.TempDir(), scenario{})
	n.t = t
	t.Cleanup(n.end)
	n.open()
	ctx := context.Background()
	for i, img := range killImages {
		top := n.pull(killPrefix(i), img)
		root, undo := n.view(top)
		treetest.Check(t, img, root, treetest.Options{})
		undo()
	}
	must(t, commitContainer(ctx, n))
	must(t, commitWalked(ctx, n))
	must(t, build(ctx, n))
	for _, info := range n.all() {
		if info.Kind == snapshots.KindCommitted {
			want[info.Name] = n.tree(info.Name)
		}
	}
	for name, file := range map[string]string{containerName: "/written", walkedName: "/walked"} {
		if e := want[name].Entries[file]; e == nil || e.SHA256 != sha256Hex(noise(9000, uint64(len(file)))) {
			t.Fatalf("%s of %s is not what was written", file, name)
		}
		if want[name].Entries["/gone"] != nil {
			t.Fatalf("/gone of %s was deleted", name)
		}
	}
	n.removeAll()
	must(t, n.Cleanup(ctx))
	n.expectNothingLeft()
	return want
}

// template makes the store that a scenario starts from.
func (sc scenario) template(t *testing.T) string {
	dir := t.TempDir()
	if sc.before == nil {
		return dir
	}
	ctx := context.Background()
	n := killNode(dir, sc)
	n.t = t
	n.open()
	err := sc.before(ctx, n)
	if err == nil {
		err = eventually(func() error { return errors.Join(n.disorder(ctx), n.notDurable(ctx)) })
	}
	must(t, errors.Join(err, closeAndUnmount(n.Snapshotter)))
	if sc.damage != nil {
		must(t, sc.damage(n.layout))
	}
	return dir
}

// copied copies a store; its mounts are gone, as after a reboot.
func copied(t *testing.T, template string) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup((&node{t: t, dir: dir}).end)
	if !exists(filepath.Join(template, "root")) {
		return dir
	}
	out, err := exec.Command("cp", "-a", "--sparse=always", filepath.Join(template, "root"), dir).CombinedOutput()
	if err != nil {
		t.Fatalf("copy the store: %v\n%s", err, bytes.TrimSpace(out))
	}
	return dir
}
