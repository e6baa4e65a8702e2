// SPDX-License-Identifier: Apache-2.0

//go:build failpoints

package snapshotter

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/pack"
	"github.com/squash-snapshotter/squash/internal/treetest"
	"golang.org/x/sys/unix"
)

// scenario is work during which a process is killed.
type scenario struct {
	config func(*Config)
	before func(context.Context, *node) error // makes what is there already
	damage func(layout) error                 // is done to that while the store is closed
	// ready runs in the process that is killed, which is safe until it is done;
	// without it the start is part of the scenario.
	ready func(context.Context, *node) error
	// do is the work. It leaves alone what was done before, so that it can be
	// repeated.
	do func(context.Context, *node) error
}

// killImages: the second shows what the first one hides, the third has enough
// layers for index files to be merged, the fourth has those of the first above
// another.
var killImages = func() []image {
	base := treetest.Layer(
		treetest.Dir("base", treetest.Mode(0o750)), treetest.File("base/shown", noise(20_000, 1)), treetest.File("base/hidden", noise(9_000, 2)),
		treetest.File("gone", noise(1<<20+70_000, 3)), treetest.File("small", "small"))
	images := []image{
		{base, treetest.Layer(treetest.File("base/hidden", noise(9_001, 4)), treetest.Whiteout("gone"), treetest.Hardlink("base/link", "base/hidden"))},
		{base, treetest.Layer(treetest.File("base/shown", noise(20_001, 5)), treetest.Symlink("link", "gone"))},
		{},
		nil,
	}
	images[3] = image{treetest.Layer(treetest.File("under", noise(5000, 30))), base, images[0][1]}
	for i := range uint64(5) {
		images[2] = append(images[2], treetest.Layer(treetest.File(fmt.Sprint("file", i), noise(5000, 10+i))))
	}
	return images
}()

// killPrefix: the first two images are of one namespace and have a snapshot in
// common.
func killPrefix(i int) string { return fmt.Sprint("ns/", i/2) }

// pulled unpacks and flattens images and frees what they do not show.
func pulled(images ...int) func(context.Context, *node) error {
	return func(ctx context.Context, n *node) error {
		for _, i := range images {
			top, err := n.tryPull(ctx, killPrefix(i), killImages[i])
			if err == nil {
				err = n.Flatten(ctx, top)
			}
			if err == nil {
				err = n.Cleanup(ctx)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
}

const (
	containerName = "ns/0/container committed"
	walkedName    = "ns/0/layer of another differ"
)

// commitContainer commits what a container wrote.
func commitContainer(ctx context.Context, n *node) error {
	return commitWritten(ctx, n, containerName, "container", "written")
}

// commitWalked commits a layer that another differ unpacked through the mount.
func commitWalked(ctx context.Context, n *node) error {
	return commitWritten(ctx, n, walkedName, "extract-walked", "walked")
}

func commitWritten(ctx context.Context, n *node, name, key, file string) error {
	if _, err := n.Stat(ctx, name); err == nil {
		return n.Flatten(ctx, name)
	}
	key = fmt.Sprintf("ns/0/%s-%d", key, rand.Uint64())
	top := killImages[1].names(killPrefix(1))[1]
	m, err := n.Prepare(ctx, key, top)
	if err != nil {
		return err
	}
	upper, err := upperOf(m)
	if err != nil {
		return err
	}
	path := filepath.Join(upper, file)
	err = errors.Join(
		os.WriteFile(path, []byte(noise(9000, uint64(len(file)+1))), 0o640),
		os.Chtimes(path, time.Time{}, time.Unix(1_700_000_000, 123_456_789)), // every time the same tree
		unix.Mknod(filepath.Join(upper, "gone"), unix.S_IFCHR, 0))
	if err == nil {
		err = n.Commit(ctx, name, key)
	}
	if err == nil {
		err = n.Flatten(ctx, name)
	}
	return err
}

const builtSteps = 3

func builtName(step int) string { return fmt.Sprintf("ns/0/build step %d", step) }

// build commits a few steps on top of each other, has a view of each, and waits
// until the last one is flat.
func build(ctx context.Context, n *node) error {
	parent := killImages[1].names(killPrefix(1))[1]
	for i := range builtSteps {
		name := builtName(i)
		if _, err := n.Stat(ctx, name); err != nil {
			key := fmt.Sprintf("ns/0/step-%d", rand.Uint64())
			m, err := n.Prepare(ctx, key, parent)
			if err != nil {
				return err
			}
			upper, err := upperOf(m)
			if err != nil {
				return err
			}
			at := time.Unix(1_600_000_000+int64(i), 5)
			path := filepath.Join(upper, fmt.Sprint("built", i))
			if err := errors.Join(os.WriteFile(path, []byte(noise(6000, 900+uint64(i))), 0o640), os.Chtimes(path, time.Time{}, at)); err != nil {
				return err
			}
			if i > 0 {
				if err := unix.Mknod(filepath.Join(upper, fmt.Sprint("built", i-1)), unix.S_IFCHR, 0); err != nil {
					return err
				}
			}
			if err := errors.Join(os.Chtimes(upper, time.Time{}, at), n.Commit(ctx, name, key)); err != nil {
				return err
			}
		}
		key := fmt.Sprintf("ns/0/view-%d", rand.Uint64())
		if _, err := n.View(ctx, key, name); err != nil {
			return err
		}
		if err := n.Remove(ctx, key); err != nil {
			return err
		}
		parent = name
	}
	var ids []string
	if err := n.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		ids, err = committedChain(ctx, parent)
		return err
	}); err != nil {
		return err
	}
	tocs, err := n.summaries(ctx, ids)
	if err != nil {
		return err
	}
	return eventually(func() error { _, err := os.Stat(n.image(flatImage(chainOf(tocs)))); return err })
}

func upperOf(m []mount.Mount) (string, error) {
	for _, o := range m[0].Options {
		if v, ok := strings.CutPrefix(o, "upperdir="); ok {
			return v, nil
		}
	}
	return "", fmt.Errorf("no upper directory in %v", m)
}

// shown has every flat image mounted, as on a node at work.
func shown(ctx context.Context, n *node) error {
	var committed []string
	err := n.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted {
			committed = append(committed, info.Name)
		}
		return nil
	})
	for _, name := range committed {
		err = errors.Join(err, n.Flatten(ctx, name))
	}
	return err
}

// removed removes all images and what was committed on top of them, one after
// the other: content goes while others' beside it stays, and at last all of it.
func removed(ctx context.Context, n *node) error {
	for i := range killImages {
		if err := removeImage(ctx, n.Snapshotter, i); err != nil {
			return err
		}
		if err := n.Cleanup(ctx); err != nil {
			return err
		}
	}
	return nil
}

// losePower makes a store look as after one: another boot, a layer without the
// durable mark, and a content whose bytes never came to the disk.
func losePower(l layout) error {
	s, err := pack.Open(context.Background(), l.root)
	if err != nil {
		return err
	}
	p, err := s.Lookup(pack.Digest(sha256.Sum256([]byte(noise(20_000, 1)))))
	if err := errors.Join(err, s.Close()); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(l.root, "pack"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(make([]byte, 5000), int64(p.Block)*pack.BlockSize)
	marks, merr := filepath.Glob(filepath.Join(l.layersDir(), "*", "durable"))
	err = errors.Join(err, merr, f.Close(), os.Remove(l.boot()), os.Remove(filepath.Join(l.root, "index", "synced")))
	if len(marks) == 0 {
		err = errors.Join(err, errors.New("no layer was durable"))
	}
	for _, mark := range marks {
		err = errors.Join(err, os.Remove(mark))
	}
	return err
}

func nothing(context.Context, *node) error { return nil }

var scenarios = map[string]scenario{
	"first start and unpack": {do: pulled(0)},
	"durable unpack with loop devices": {
		config: func(c *Config) { c.Durability, c.Mount = DurabilitySync, mounts.ModeLoop },
		ready:  nothing,
		do:     pulled(0),
	},
	"restore": {before: pulled(0), ready: nothing, do: pulled(1)},
	"merge": {
		config: func(c *Config) { c.Shadowed = ShadowedKeep },
		before: func(ctx context.Context, n *node) error {
			_, err := n.tryPull(ctx, killPrefix(2), killImages[2][:4])
			return err
		},
		ready: nothing,
		do:    pulled(2),
	},
	"reuse": {
		config: func(c *Config) {
			c.ContainerdVersion = func(context.Context) (string, error) { return "v2.4.2", nil }
		},
		before: pulled(0), ready: nothing, do: pulled(3),
	},
	"upper directories": {before: pulled(1), ready: shown, do: inOrder(commitContainer, commitWalked)},
	"build": {
		config: func(c *Config) { c.quiet = 500 * time.Millisecond },
		before: pulled(1),
		ready:  shown,
		do:     build,
	},
	// A power cut took bytes of a layer that was not durable.
	"reboot": {before: pulled(0), damage: losePower, ready: nothing, do: pulled(0, 1)},
	"remove": {before: inOrder(pulled(0, 1), commitContainer), ready: shown, do: removed},
}
