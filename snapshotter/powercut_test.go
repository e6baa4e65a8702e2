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
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/pack"
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

// chooseBlobs has some blobs gone.
func (m *powered) chooseBlobs() {
	m.lost = map[digest.Digest]bool{}
	for _, img := range m.images {
		for _, l := range img {
			if m.blobs.add(l); m.r.Float64() < m.lostBlobs {
				m.lost[digest.FromBytes(l)] = true
			}
		}
	}
	for _, img := range m.images {
		for _, l := range img {
			if m.lost[digest.FromBytes(l)] {
				m.blobs.remove(l)
			}
		}
	}
}

// marks lists the layers that the store takes for durable.
func (m *powered) marks() map[string]bool {
	m.t.Helper()
	marks, err := filepath.Glob(filepath.Join(m.cfg.Root, "layers", "*", "durable"))
	must(m.t, err)
	ids := map[string]bool{}
	for _, path := range marks {
		ids[filepath.Base(filepath.Dir(path))] = true
	}
	return ids
}

// look compares what a snapshot shows with what it must show. A refusal to
// show it is returned.
func (m *powered) look(name string) (refusal error) {
	t, ctx := m.t, context.Background()
	t.Helper()
	key := m.key("view")
	mnt, err := m.View(ctx, key, name)
	if err != nil {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("the error does not name %s: %v", name, err)
		}
		return err
	}
	root := filepath.Join(m.dir, "view")
	must(t, os.MkdirAll(root, 0o700))
	defer func() { must(t, m.Remove(ctx, key)) }()
	if err := mount.All(mnt, root); err != nil {
		t.Errorf("%s: mount: %v", name, err)
		return nil
	}
	defer func() { must(t, mount.UnmountAll(root, 0)) }()
	got, err := treetest.Read(root)
	if err != nil {
		t.Errorf("%s cannot be read: %v", name, err)
		return nil
	}
	for _, line := range treetest.Diff(m.want[filepath.Base(name)], got, treetest.Options{}) {
		t.Errorf("WRONG: %s shows %s", name, line)
	}
	return nil
}

// chainBlobs are the blobs of the layers below a name, itself included, and
// whether a committed container is on top.
func (m *powered) chainBlobs(name string) (blobs []digest.Digest, upper bool) {
	for i, img := range m.images {
		for _, ns := range powerNamespaces {
			if name == powerCommit(ns, i) {
				for _, l := range img {
					blobs = append(blobs, digest.FromBytes(l))
				}
				return blobs, true
			}
			if at := slices.Index(img.names(ns), name); at >= 0 {
				for _, l := range img[:at+1] {
					blobs = append(blobs, digest.FromBytes(l))
				}
				return blobs, false
			}
		}
	}
	m.t.Fatalf("no such snapshot was ever made: %s", name)
	return nil, false
}

// mayRefuse tells whether a snapshot may answer with an error.
func (m *powered) mayRefuse(name string) bool {
	blobs, upper := m.chainBlobs(name)
	if upper && !m.marked[m.id(name)] {
		return true // nobody but the disk had its bytes
	}
	if !slices.ContainsFunc(blobs, func(d digest.Digest) bool { return m.lost[d] }) {
		return false
	}
	// What was durable may have been freed since, if its blob was there.
	return !m.pristine || m.shadowed == ShadowedFree || m.durability == DurabilityBackground
}

// lookAt looks at snapshots in any order and returns those that answer with an
// error, as some may.
func (m *powered) lookAt(names []string) (refused map[string]error) {
	m.t.Helper()
	refused = map[string]error{}
	m.r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for _, name := range names {
		if err := m.look(name); err != nil {
			refused[name] = err
			if !m.mayRefuse(name) {
				m.t.Errorf("LOST, though its blobs are there or it was durable: %s: %v", name, err)
			}
		}
	}
	return refused
}

// listed are the committed snapshots.
func (m *powered) listed() (names []string) {
	m.t.Helper()
	for _, info := range m.all() {
		if info.Kind == snapshots.KindCommitted {
			names = append(names, info.Name)
		}
	}
	return names
}

// sound makes sure of invariant 2.
func (m *powered) sound(when string) {
	t := m.t
	t.Helper()
	var all []pack.Digest
	m.pack.Each(func(d pack.Digest, _ pack.Placement) bool {
		all = append(all, d)
		return true
	})
	for _, d := range all {
		if err := m.pack.Verify(context.Background(), d, nil); err != nil && m.has(d) {
			t.Errorf("%s: %v", when, err)
		}
	}
}

func (m *powered) has(d pack.Digest) bool {
	_, err := m.pack.Lookup(d)
	return err == nil
}

func (m *powered) check() {
	t, ctx := m.t, context.Background()
	names := m.listed()
	for name := range m.certain {
		if !slices.Contains(names, name) {
			t.Errorf("LOST, and not even listed: %s", name)
		}
	}
	m.sum.Listed += len(names)
	for _, name := range names {
		if !m.marked[m.id(name)] {
			m.sum.Unmarked++
		}
		if _, upper := m.chainBlobs(name); upper {
			m.sum.Uppers++
		}
	}
	if m.pullFirst {
		for range 2 {
			m.pullAndLook()
		}
	}
	refused := m.lookAt(names)
	m.sum.Reported += len(refused)
	m.sum.Shown += len(names) - len(refused)
	if t.Failed() {
		for name, err := range refused {
			t.Logf("refused: %s: %v", name, err)
		}
	}
	must(t, m.Cleanup(ctx))
	m.sound("after the first collection")
	m.close()
	m.open() // in the same boot
	again := m.lookAt(m.listed())
	for name, err := range again {
		if _, ok := refused[name]; !ok && slices.Contains(names, name) {
			t.Errorf("%s was whole before a restart and is not after it: %v", name, err)
		}
	}
	m.mend(again)
	for _, info := range m.all() {
		if info.Kind != snapshots.KindCommitted || m.empty {
			must(t, m.Remove(ctx, info.Name))
		}
	}
	must(t, m.Cleanup(ctx))
	if m.empty {
		m.expectNothingLeft()
	}
	for i, img := range m.images {
		ns := powerNamespaces[(i+int(m.seed))%2]
		if err := m.look(m.pull(ns, img)); err != nil {
			t.Errorf("an image that was pulled anew: %v", err)
		}
	}
	m.sound("in the end")
	m.certain = map[string]bool{}
	for _, name := range m.listed() {
		m.certain[name] = true
	}
}

// pullAndLook pulls an image anew, which may meet what the cut left of it.
func (m *powered) pullAndLook() {
	img, ns := m.images[m.r.IntN(len(m.images))], powerNamespaces[m.r.IntN(2)]
	name, err := m.tryPull(context.Background(), ns, img)
	for _, l := range img {
		if err == nil {
			delete(m.lost, digest.FromBytes(l)) // the pull has brought them
			m.blobs.add(l)
		}
	}
	if err == nil {
		err = m.look(name)
	}
	if err != nil && m.lostBlobs == 0 {
		m.t.Errorf("pulled right after the cut: %s: %v", name, err)
	}
}

// mend does what the errors say: the blobs come back, or what is damaged is
// removed with all that stands on it. Then everything is whole.
func (m *powered) mend(refused map[string]error) {
	t, ctx := m.t, context.Background()
	fetch := m.r.IntN(2) == 0
	m.lost = map[digest.Digest]bool{}
	for _, img := range m.images {
		for _, l := range img {
			m.blobs.add(l)
		}
	}
	gone := map[string]bool{}
	for _, info := range slices.Backward(m.all()) { // parents first
		upper := strings.Contains(info.Name, "committed")
		gone[info.Name] = info.Kind != snapshots.KindCommitted || gone[info.Parent] || refused[info.Name] != nil && (upper || !fetch)
	}
	for _, info := range m.all() {
		if gone[info.Name] {
			must(t, m.Remove(ctx, info.Name))
		}
	}
	for name, err := range m.lookAt(m.listed()) {
		t.Errorf("still not whole after it was mended: %s: %v", name, err)
	}
}
