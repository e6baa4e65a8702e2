// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/treetest"
	"golang.org/x/sys/unix"
)

// Every work is tried with no block left, with one, with two and so on until
// it succeeds: whichever of its writes needs a block, some try is the one in
// which it is the first that gets none. The same with inodes.
func TestADiskThatIsFullAtAnyWriteIsSurvived(t *testing.T) {
	for name, f := range fillings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fillUp(t, f)
		})
	}
}

func fillUp(t *testing.T, f filling) {
	s := newFullStore(t, f.config, f.before)
	leave := s.disk.leave
	if f.inodes {
		leave = s.disk.leaveInodes
	}
	// try does the work and returns how it failed, "" if it did not.
	try := func(left int64) string {
		if f.ready != nil {
			s.disk.makeRoom()
			f.ready(t, s.node)
			s.rests()
		}
		leave(left)
		there := s.disk.footprint()
		err := f.do(context.Background(), s.node)
		if err == nil {
			return ""
		}
		text := strings.ReplaceAll(err.Error(), s.cfg.Root, "DIR")
		if !errdefs.IsResourceExhausted(err) || !errors.Is(err, unix.ENOSPC) || !strings.Contains(text, "make room") || !strings.Contains(text, "DIR") {
			t.Errorf("not a clear error: %v", err)
		}
		if f.atOnce && (f.keeps == "" || !strings.Contains(text, f.keeps)) {
			waitFor(t, "the space of what failed", func() error { return grown(there, s.disk.footprint()) })
		}
		return text
	}
	var met []string
	for left := int64(0); ; left += max(1, f.step) {
		text := try(left)
		if text == "" {
			break
		}
		leave(0)
		s.serves()
		s.undo()
		waitFor(t, "the space of what failed and was removed", s.givenBack)
		if !f.once && (len(met) == 0 || trimDigits(text) != trimDigits(met[len(met)-1])) { // another write: once with room right after
			try(left)
			s.works(f)
		}
		if met = append(met, text); t.Failed() {
			t.Fatalf("with %d left, where it came to: %s", left, text)
		}
	}
	for _, want := range f.fails {
		if !strings.Contains(strings.Join(met, "\n"), want) {
			t.Errorf("no error had %q in it; met:\n%s", want, strings.Join(met, "\n"))
		}
	}
	t.Logf("failed with 0 to %d left", (int64(len(met))-1)*max(1, f.step))
	s.works(f)
	leave(0)
	s.removeEverything()
}

// trimDigits makes errors of the same write the same.
func trimDigits(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'f' {
			return -1
		}
		return r
	}, s)
}

// fullStore is a store on a small disk with an image and a container on it.
type fullStore struct {
	*node
	disk      *smallDisk
	container string        // its key
	root      string        // where the test has mounted it
	base      treetest.Tree // what it shows
	names     map[string]bool
	before    map[string]int64
	used      int64
}

func newFullStore(t *testing.T, config func(*Config), before func(*testing.T, *node)) *fullStore {
	d := newSmallDisk(t, "ext4")
	s := &fullStore{node: d.node(t), disk: d, names: map[string]bool{}}
	if config != nil {
		config(&s.cfg)
	}
	s.open()
	s.container, s.root, _ = s.run(s.pull("ns/0", fullImage(0)))
	var err error
	s.base, err = treetest.Read(s.root)
	must(t, err)
	if before != nil {
		before(t, s.node)
	}
	must(t, s.Cleanup(context.Background()))
	for _, info := range s.all() {
		s.names[info.Name] = true
	}
	s.rests()
	s.before = d.footprint()
	s.used, _ = d.space()
	return s
}

// rests waits for what the background does to committed layers.
func (s *fullStore) rests() {
	s.t.Helper()
	for _, info := range s.all() {
		id := s.id(info.Name)
		waitFor(s.t, "layer "+id+" to be settled", func() error {
			if info.Kind == snapshots.KindCommitted && (!exists(s.durable(id)) || exists(s.snapshot(id))) {
				return errors.New("it is not")
			}
			return nil
		})
	}
}

// serves asks for all that needs no space.
func (s *fullStore) serves() {
	s.t.Helper()
	ctx := context.Background()
	for _, info := range s.all() {
		if s.names[info.Name] {
			_, err := s.Stat(ctx, info.Name)
			must(s.t, err)
			_, err = s.Usage(ctx, info.Name)
			must(s.t, err)
		}
	}
	m, err := s.Mounts(ctx, s.container)
	must(s.t, err)
	again := s.t.TempDir()
	must(s.t, mount.All([]mount.Mount{{Type: "bind", Source: lowerOf(m), Options: []string{"ro", "rbind"}}}, again))
	defer func() { must(s.t, mount.UnmountAll(again, 0)) }()
	for _, root := range []string{s.root, again} {
		got, err := treetest.Read(root)
		must(s.t, err)
		sameTree(s.t, s.base, got)
	}
}

// A snapshot whose transaction fails gives its ID back, and the next one gets
// it, while the directory of the first is still to be removed.
func TestASnapshotGetsTheIDOfOneThatFailed(t *testing.T) {
	t.Parallel()
	s := newFullStore(t, nil, nil)
	ctx := context.Background()
	for i := range 40 {
		s.disk.leave(6) // enough for directories
		labels := map[string]string{"l": strings.Repeat("x", (i+1)<<16)}
		if _, err := s.Prepare(ctx, s.key("container"), "", snapshots.WithLabels(labels)); !errdefs.IsResourceExhausted(err) {
			t.Fatalf("Prepare on a full disk: %v", err)
		}
		s.disk.makeRoom()
		key := s.key("container")
		_, err := s.Prepare(ctx, key, "")
		must(t, err)
		must(t, s.Cleanup(ctx))
		if dir := s.upper(s.id(key)); !exists(dir) {
			t.Fatalf("%s of a snapshot was removed as that of the one before", dir)
		}
	}
	s.undo()
	must(t, mount.UnmountAll(s.root, 0))
}

func lowerOf(m []mount.Mount) string {
	for _, o := range m[0].Options {
		if lower, ok := strings.CutPrefix(o, "lowerdir="); ok {
			return lower
		}
	}
	return ""
}

// undo removes what was not there at first.
func (s *fullStore) undo() {
	s.t.Helper()
	for _, info := range s.all() {
		if !s.names[info.Name] {
			must(s.t, s.Remove(context.Background(), info.Name))
		}
	}
	must(s.t, s.Cleanup(context.Background()))
}

// givenBack compares the store with what it was at first, file by file, and by
// what the file system says is taken.
func (s *fullStore) givenBack() error {
	after := s.disk.footprint()
	if err := grown(s.before, after); err != nil {
		return err
	}
	used, _ := s.disk.space()
	if more := used - s.disk.ballastSize() - s.used; more > after["/metadata.db"]-s.before["/metadata.db"]+2 {
		return fmt.Errorf("%d more blocks are taken, and not by the files of the store", more)
	}
	return nil
}

// works does the work with room, on whatever a failure has left, checks what it
// made and undoes it.
func (s *fullStore) works(f filling) {
	s.t.Helper()
	s.disk.makeRoom()
	if f.ready != nil && len(s.all()) == len(s.names) {
		f.ready(s.t, s.node)
	}
	must(s.t, f.do(context.Background(), s.node))
	for prefix, img := range f.shows {
		names := img.names(prefix)
		root, undo := s.view(names[len(names)-1])
		treetest.Check(s.t, img, root, treetest.Options{})
		undo()
	}
	if findings, _ := s.checked(CheckOptions{}); len(findings) > 0 {
		s.t.Errorf("check: %+v", findings)
	}
	s.undo()
	waitFor(s.t, "the space of what was removed", s.givenBack)
}

// removeEverything empties the store while the disk is full.
func (s *fullStore) removeEverything() {
	s.t.Helper()
	must(s.t, mount.UnmountAll(s.root, 0))
	s.removeAll()
	must(s.t, s.Cleanup(context.Background()))
	s.expectNothingLeft()
	if findings, _ := s.checked(CheckOptions{}); len(findings) > 0 {
		s.t.Errorf("check: %+v", findings)
	}
	s.disk.makeRoom()
}

// A daemon that cannot start on a full disk could never be asked to remove
// what fills it.
func TestAStartOnAFullDisk(t *testing.T) {
	t.Parallel()
	s := newFullStore(t, nil, nil)
	s.close()
	s.disk.leave(0)
	s.open()
	s.serves()
	s.removeEverything()
}

// A small image goes from a full disk whose index takes up more than the image
// gives back.
func TestASweepOnAFullDisk(t *testing.T) {
	t.Parallel()
	many := image{treetest.Layer(func() (files []treetest.Step) {
		for i := range 700 {
			files = append(files, treetest.File(fmt.Sprint("file", i), noise(5000, uint64(1000+i))))
		}
		return files
	}()...)}
	s := newFullStore(t, nil, func(t *testing.T, n *node) { n.pull("ns/7", many) })
	ctx := context.Background()
	s.pull("ns/1", image{treetest.Layer(treetest.File("own", noise(100_000, 1)))})
	s.rests()
	s.disk.leave(0)
	s.undo()
	waitFor(t, "the space of the image", s.givenBack)
	s.serves()
	must(t, mount.UnmountAll(s.root, 0))
	s.removeAll()
	must(t, s.Cleanup(ctx))
	s.expectNothingLeft()
}
