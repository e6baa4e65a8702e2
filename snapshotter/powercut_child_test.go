// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/treetest"
	"golang.org/x/sys/unix"
)

// Environment of the process that is at work when the power goes.
const (
	powerDir  = "SQUASH_TEST_POWER_DIR"
	powerSeed = "SQUASH_TEST_POWER_SEED"
	powerCut  = "SQUASH_TEST_POWER_CUT" // after how many commits of what size the child cuts, the disk, and its copy
)

// powerNamespaces have snapshots of their own and share contents.
var powerNamespaces = []string{"a/1", "b/1"}

// powerImages share their bottom layers in pairs, and in these "late", which
// the one of each pair shows and the other one does not: it is freed and
// restored.
func powerImages() []image {
	var images []image
	for i := range uint64(4) {
		pair, tag := 100*(i/2+1), 1000*(i+1)
		base := []treetest.Step{
			treetest.Dir("base", treetest.Mode(0o750)), treetest.File("base/file", noise(40_000, pair)),
			treetest.File("base/gone", prose(3000, pair+1)), treetest.File("base/late", noise(90_000, pair+2)),
		}
		for k := range uint64(20) {
			base = append(base, treetest.File(fmt.Sprintf("base/small%d", k), prose(100+int(k)*300, pair+10+k)))
		}
		own := []treetest.Step{
			treetest.File("base/file", noise(40_001, tag)), treetest.File("own", prose(120_000, tag+1)),
			treetest.File("common", noise(150_000, 1)), treetest.File("tiny", fmt.Sprint("image ", i)),
		}
		if i%2 == 0 {
			own = append(own, treetest.File("base/late", noise(1000, tag+2)))
		}
		if i == 0 {
			// Long enough for the power to go while it is being synced.
			own = append(own, treetest.File("large", strings.Repeat(noise(1<<20+1, tag+3), 16)))
		}
		top := []treetest.Step{
			treetest.Whiteout("base/gone"), treetest.Dir("more"), treetest.File("more/own", noise(60_000, tag+4)),
			treetest.Hardlink("more/link", "more/own"), treetest.Symlink("link", "own"),
		}
		images = append(images, image{treetest.Layer(base...), treetest.Layer(own...), treetest.Layer(top...)})
	}
	return images
}

// powerCommit is what a committed container on an image is called.
func powerCommit(ns string, i int) string { return fmt.Sprintf("%s/committed-%d", ns, i) }

// fillUpper is what such a container wrote.
func fillUpper(m []mount.Mount, i int) error {
	var upper string
	for _, o := range m[0].Options {
		if v, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = v
		}
	}
	when := time.Unix(1_700_000_000, int64(i))
	if err := os.Mkdir(filepath.Join(upper, "written"), 0o755); err != nil {
		return err
	}
	for j, size := range []int{0, 10, 1500, 5000, 5000, 70_000, 300_000} {
		path := filepath.Join(upper, "written", fmt.Sprint(j))
		if err := errors.Join(os.WriteFile(path, []byte(noise(size, uint64(9000+10*i+j))), 0o644), os.Chtimes(path, when, when)); err != nil {
			return err
		}
	}
	own := filepath.Join(upper, "own")
	return errors.Join(
		os.Chtimes(filepath.Join(upper, "written"), when, when),
		os.WriteFile(own, []byte(noise(2000, uint64(9900+i))), 0o600), os.Chtimes(own, when, when),
		unix.Mknod(filepath.Join(upper, "link"), unix.S_IFCHR, 0))
}

// powerChild does what a node does, and writes down outside of the disk what
// has been committed for certain (+) and what may be removed from now on (-).
type powerChild struct {
	*Snapshotter
	blobs   *blobs
	images  []image
	journal *os.File
	cut     func(n int) error // called right after the commit of a layer of n bytes
}

func workUntilThePowerGoes(dir string, seed uint64) error {
	if err := log.SetLevel("panic"); err != nil {
		return err
	}
	ctx := context.Background()
	c := &powerChild{blobs: newBlobs(), images: powerImages()}
	for _, img := range c.images {
		for _, l := range img {
			c.blobs.add(l)
		}
	}
	var err error
	if c.journal, err = openJournal(dir); err != nil {
		return err
	}
	cfg := powerPlan(seed).config(dir)
	cfg.Content = c.blobs
	if c.Snapshotter, err = New(ctx, cfg); err != nil {
		return err
	}
	failed := make(chan error)
	if c.cut, err = cutAfter(c.journal); err != nil {
		return err
	}
	for pair := range len(c.images) / 2 {
		go func() { failed <- c.work(ctx, pair, rand.New(rand.NewPCG(seed, uint64(pair)))) }()
	}
	go writeBack(cfg.Root, seed)
	return <-failed
}

// cutAfter cuts the power after some commits, sooner than the parent could: what
// follows a commit in the background has hardly begun then.
func cutAfter(journal *os.File) (cut func(n int) error, err error) {
	var after int64
	var size int
	var from, to string
	if plan := os.Getenv(powerCut); plan == "" {
		return func(int) error { return nil }, nil
	} else if _, err := fmt.Sscan(plan, &after, &size, &from, &to); err != nil {
		return nil, err
	}
	var commits atomic.Int64
	return func(n int) error {
		if n < size || commits.Add(1) != after {
			return nil
		}
		if err := cutPower(journal, to, from); err != nil {
			return err
		}
		fmt.Println(cutMade)
		return nil
	}, nil
}

// cutMade is what the child prints when it has cut.
const cutMade = "cut"

// cutPower copies the disk as it is, and notes in the journal what came before
// and what may have come before or after.
func cutPower(journal *os.File, to, from string) error {
	if _, err := journal.WriteString(cutBegins + "\n"); err != nil {
		return err
	}
	if err := reflink(to, from); err != nil {
		return err
	}
	_, err := journal.WriteString(cutEnds + "\n")
	return err
}

const cutBegins, cutEnds = "= cut begins", "= cut ends"

func openJournal(dir string) (*os.File, error) {
	return os.OpenFile(powerJournal(dir), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}

func (c *powerChild) note(sign byte, name string) error {
	_, err := fmt.Fprintf(c.journal, "%c %s\n", sign, name)
	fmt.Println() // the parent counts
	return err
}

// work has a pair of images to itself.
func (c *powerChild) work(ctx context.Context, pair int, r *rand.Rand) (err error) {
	for k := 0; ; k++ {
		i, ns := 2*pair+r.IntN(2), powerNamespaces[r.IntN(len(powerNamespaces))]
		names := c.images[i].names(ns)
		switch r.IntN(9) {
		case 0, 1, 2:
			if err = c.pull(ctx, ns, c.images[i]); err == nil && r.IntN(2) == 0 {
				err = c.Flatten(ctx, names[2])
			}
		case 3, 4:
			err = c.commit(ctx, ns, i)
		case 5:
			err = c.Cleanup(ctx)
		case 6:
			name := append(names, powerCommit(ns, i))[r.IntN(4)]
			err = c.Flatten(ctx, name)
			if errdefs.IsNotFound(err) || name == powerCommit(ns, i) && errdefs.IsFailedPrecondition(err) {
				err = nil // not there now, or lost at an earlier cut
			}
		case 7:
			err = c.remove(ctx, ns, i)
		case 8: // the disk forgets their contents, too
			for _, ns := range powerNamespaces {
				err = errors.Join(err, c.remove(ctx, ns, 2*pair), c.remove(ctx, ns, 2*pair+1))
			}
			err = errors.Join(err, c.Cleanup(ctx))
		}
		if err != nil {
			return fmt.Errorf("step %d with image %d of %s: %w", k, i, ns, err)
		}
	}
}

func (c *powerChild) pull(ctx context.Context, ns string, img image) error {
	parent := ""
	for i, name := range img.names(ns) {
		if _, err := c.Stat(ctx, name); err == nil {
			if err := c.note('+', name); err != nil {
				return err
			}
			parent = name
			continue
		}
		key := fmt.Sprintf("%s/extract-%d %s", ns, rand.Uint64(), filepath.Base(name))
		m, err := c.Prepare(ctx, key, parent)
		if err != nil {
			return err
		}
		if _, err := c.Apply(ctx, c.blobs.add(img[i]), m); err != nil {
			return err
		}
		if err := c.Commit(ctx, name, key); err != nil {
			return err
		}
		if err := errors.Join(c.note('+', name), c.cut(len(img[i]))); err != nil {
			return err
		}
		parent = name
	}
	return nil
}

func (c *powerChild) commit(ctx context.Context, ns string, i int) error {
	name := powerCommit(ns, i)
	if _, err := c.Stat(ctx, name); err == nil {
		return nil
	}
	key := fmt.Sprintf("%s/container-%d", ns, rand.Uint64())
	m, err := c.Prepare(ctx, key, c.images[i].names(ns)[2])
	if errdefs.IsNotFound(err) {
		return nil // the image is not there now
	}
	if err != nil {
		return err
	}
	if err := fillUpper(m, i); err != nil {
		return err
	}
	if err := c.Commit(ctx, name, key); err != nil {
		return err
	}
	return errors.Join(c.note('+', name), c.cut(0))
}

// remove removes an image, but for what another one stands on.
func (c *powerChild) remove(ctx context.Context, ns string, i int) error {
	names := append(c.images[i].names(ns), powerCommit(ns, i))
	for _, name := range slices.Backward(names) {
		if err := c.note('-', name); err != nil {
			return err
		}
		switch err := c.Remove(ctx, name); {
		case errdefs.IsNotFound(err):
		case errdefs.IsFailedPrecondition(err):
			return c.note('+', name)
		case err != nil:
			return err
		}
	}
	return nil
}
