// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

var (
	cuts    = flag.Int("cuts", 10, "power cuts that the test makes")
	cutSeed = flag.Uint64("cut-seed", 1, "seed of the first power cut; each has the next one")
	keepCut = flag.Bool("keep", false, "keep the disk of a power cut that fails")
)

// plan is what the seed of a cut decides, for the child and for its parent.
type plan struct {
	kind, options string // of the file system
	durability    Durability
	shadowed      Shadowed
	onOld         bool    // goes on with the store that the last cut left
	lives         int     // boots, each ended by a cut, before anybody looks
	lostBlobs     float64 // share of the blobs that are gone after the cut
	pullFirst     bool    // new pulls before the old images are looked at
	empty         bool    // remove everything in the end
}

func powerPlan(seed uint64) plan {
	r := rand.New(rand.NewPCG(seed, 7))
	fs := inner[seed%uint64(len(inner))]
	p := plan{kind: fs.kind, options: fs.options, durability: DurabilityBackground, shadowed: ShadowedFree, lives: 1}
	if r.IntN(3) == 0 {
		p.durability = DurabilitySync
	}
	if r.IntN(3) == 0 {
		p.shadowed = ShadowedKeep
	}
	p.onOld, p.pullFirst, p.empty = r.IntN(2) == 0, r.IntN(2) == 0, r.IntN(2) == 0
	if r.IntN(3) == 0 {
		p.lives = 2
	}
	if r.IntN(3) == 0 {
		p.lostBlobs = []float64{0.3, 1}[r.IntN(2)]
	}
	return p
}

func (p plan) config(dir string) Config {
	return Config{
		Root: filepath.Join(dir, "disk", "root"), State: filepath.Join(dir, "node", "state"),
		Durability: p.durability, Shadowed: p.shadowed,
	}
}

func powerJournal(dir string) string { return filepath.Join(dir, "journal") }

// The power goes at any moment, on a disk file system of its own: what was not
// written back is lost. After the boot every committed snapshot shows exactly
// its tree, or is reported by name where it could not be brought back from its
// blobs. Wrong bytes are never shown, and everything can be removed.
func TestAPowerCutAtAnyMomentNeverShowsWrongBytes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts file systems")
	}
	dir := t.TempDir()
	d := newDisks(t, dir)
	want := powerTrees(t)
	must(t, os.Mkdir(filepath.Join(dir, "node"), 0o700))
	old := map[string]*powered{} // by kind of file system
	var sum verdicts
	for k := range *cuts {
		seed := *cutSeed + uint64(k)
		p := powerPlan(seed)
		t.Run(fmt.Sprintf("%s seed %d", p.kind, seed), func(t *testing.T) {
			m := &powered{t: t, d: d, dir: dir, seed: seed, plan: p, want: want, r: rand.New(rand.NewPCG(seed, 8)), sum: &sum}
			before := old[p.kind]
			delete(old, p.kind)
			if before != nil && p.onOld {
				m.disk, m.certain = before.disk, before.certain
			} else {
				if before != nil {
					d.remove(t, before.disk)
				}
				m.disk, m.certain, m.pristine = d.copy(t, d.fresh(p.kind)), map[string]bool{}, true
			}
			m.cutAndCheck()
			if !t.Failed() {
				old[p.kind] = m
			}
		})
	}
	t.Logf("%d power cuts: %+v", *cuts, sum)
}

// verdicts count what was met after the cuts.
type verdicts struct {
	Listed, Shown, Reported, Unmarked, Uppers int
}

// powerTrees says what each snapshot must show, by its name within a namespace.
func powerTrees(t *testing.T) map[string]treetest.Tree {
	n := newNode(t, mounts.ModeAuto)
	want := map[string]treetest.Tree{}
	for i, img := range powerImages() {
		top := n.pull("a/1", img)
		for _, name := range img.names("a/1") {
			want[filepath.Base(name)] = n.tree(name)
		}
		root, undo := n.view(top)
		treetest.Check(t, img, root, treetest.Options{})
		undo()
		name, ctx := powerCommit("a/1", i), context.Background()
		m, err := n.Prepare(ctx, "a/1/container", top)
		must(t, err)
		must(t, fillUpper(m, i))
		must(t, n.Commit(ctx, name, "a/1/container"))
		want[filepath.Base(name)] = n.tree(name)
	}
	return want
}

// powered is a machine whose power is cut.
type powered struct {
	plan
	t        *testing.T
	d        *disks
	dir      string
	seed     uint64
	r        *rand.Rand
	want     map[string]treetest.Tree
	sum      *verdicts
	disk     string
	pristine bool            // the disk was empty at first
	certain  map[string]bool // snapshots that were committed, and not removed, when the power went
	*node
	images []image
	lost   map[digest.Digest]bool // blobs
	marked map[string]bool        // IDs of layers that had a durable mark when the machine came up
}

func (m *powered) cutAndCheck() {
	t := m.t
	t.Logf("%+v, on an empty disk: %v", m.plan, m.pristine)
	for range m.lives {
		m.live()
	}
	if *keepCut {
		kept := m.d.copy(m.t, m.disk)
		defer func() {
			if t.Failed() {
				path := filepath.Join(os.TempDir(), fmt.Sprintf("squash-cut-%d.%s", m.seed, m.kind))
				m.d.command(t, "cp", "--sparse=always", kept, path)
				t.Logf("the disk as the cut left it: %s", path)
			}
			m.d.remove(t, kept)
		}()
	}
	m.boot()
	m.node = closedNode(t, filepath.Join(m.dir, "node"))
	m.cfg, m.images = m.config(m.dir), powerImages()
	m.cfg.Content = m.blobs
	m.chooseBlobs()
	m.marked = m.marks()
	m.open()
	m.check()
	m.end() // closes and unmounts
	m.d.unmount(t)
}

// boot mounts the disk in a machine that has started anew.
func (m *powered) boot() {
	t := m.t
	t.Helper()
	m.d.mount(t, m.kind, m.options, m.disk)
	must(t, os.RemoveAll(filepath.Join(m.dir, "node", "state")))
	path := filepath.Join(m.dir, "disk", "root", "boot")
	if exists(path) {
		must(t, os.WriteFile(path, []byte("another boot"), 0o600))
	}
}

// live boots the machine, has it work and cuts the power.
func (m *powered) live() {
	t := m.t
	m.boot()
	var lines strings.Builder
	for name := range m.certain {
		fmt.Fprintf(&lines, "+ %s\n", name)
	}
	must(t, os.WriteFile(powerJournal(m.dir), []byte(lines.String()), 0o600))
	c := exec.Command("/proc/self/exe")
	cut, commits, size := m.d.next(), 0, 0
	switch m.r.IntN(4) {
	case 0:
		commits = 1 + m.r.IntN(25)
	case 1:
		commits, size = 1+m.r.IntN(3), 1<<20
	}
	c.Env = append(os.Environ(), powerDir+"="+m.dir, powerSeed+"="+strconv.FormatUint(m.seed, 10))
	if commits > 0 {
		c.Env = append(c.Env, fmt.Sprintf("%s=%d %d %s %s", powerCut, commits, size, m.disk, cut))
	}
	var stderr strings.Builder
	c.Stderr = &stderr
	out, err := c.StdoutPipe()
	must(t, err)
	must(t, c.Start())
	ended := false
	end := func() error {
		if ended {
			return nil
		}
		ended = true
		killErr := c.Process.Kill()
		err := c.Wait()
		for _, mounted := range mountsBelow(t, filepath.Join(m.dir, "node")) {
			err = errors.Join(err, unmount(mounted.Mountpoint))
		}
		var exit *exec.ExitError
		if killErr != nil || !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			return fmt.Errorf("the child ended by itself: %w\n%s", err, stderr.String())
		}
		return nil
	}
	t.Cleanup(func() { _ = end() })
	ticks := bufio.NewReader(out)
	for k, line := m.r.IntN(60), ""; commits > 0 && line != cutMade+"\n" || commits == 0 && k > 0; k-- {
		if line, err = ticks.ReadString('\n'); err != nil {
			t.Fatalf("reading from the child: %v, %v", err, end())
		}
	}
	go io.Copy(io.Discard, ticks)
	if commits == 0 {
		time.Sleep(time.Duration(m.r.IntN([]int{3000, 60_000}[m.r.IntN(2)])) * time.Microsecond) // the moment is what is drawn
		journal, err := openJournal(m.dir)
		must(t, err)
		defer journal.Close()
		must(t, cutPower(journal, cut, m.disk))
	}
	must(t, end())
	m.d.unmount(t)
	m.d.remove(t, m.disk)
	m.disk = cut
	m.certain = m.journal()
}

// journal tells which snapshots had been committed for certain when the power
// went: what was noted while the disk was copied may be on it or not.
func (m *powered) journal() map[string]bool {
	m.t.Helper()
	b, err := os.ReadFile(powerJournal(m.dir))
	must(m.t, err)
	before, after, ok := strings.Cut(string(b), cutBegins)
	during, _, ended := strings.Cut(after, cutEnds)
	if !ok || !ended {
		m.t.Fatal("the journal does not speak of the cut")
	}
	certain := map[string]bool{}
	for line := range strings.Lines(before) {
		certain[strings.TrimSpace(line[2:])] = line[0] == '+'
	}
	for line := range strings.Lines(during) {
		if name := strings.TrimSpace(line); name != "" {
			certain[name[2:]] = false
		}
	}
	maps.DeleteFunc(certain, func(_ string, yes bool) bool { return !yes })
	return certain
}
