// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// filling is work that needs space.
type filling struct {
	config func(*Config)
	before func(t *testing.T, n *node)              // makes, once and with room, what is there already
	ready  func(t *testing.T, n *node)              // makes, with room, what each try needs
	do     func(ctx context.Context, n *node) error // can be repeated
	shows  map[string]image                         // what committed snapshots show after it, by prefix
	step   int64                                    // more of it is left with each try; 0 is 1
	inodes bool                                     // it is inodes that are scarce
	atOnce bool                                     // its space is given back before anything is removed
	once   bool                                     // it succeeds once, at the end: the metastore keeps what it needs
	keeps  string                                   // unless the error has this in it: what came before stays
	// fails are parts of the errors that must have been met: the writes that
	// the work is known to make.
	fails []string
}

// fullImage is an image of which some content is freed once it is flattened.
func fullImage(seed uint64) image {
	return image{
		treetest.Layer(treetest.Dir("d", treetest.Mode(0o750)), treetest.File("d/file", noise(20_000, seed)), treetest.File("hidden", noise(5000, seed+10)), treetest.File("small", fmt.Sprint(seed))),
		treetest.Layer(treetest.Whiteout("hidden"), treetest.File("more", noise(9000, seed+20)), treetest.Hardlink("link", "more")),
	}
}

var (
	// unhiding shows what the store's image has hidden.
	unhiding = image{fullImage(0)[0], treetest.Layer(treetest.File("other", noise(3000, 99)))}
	large    = image{treetest.Layer(treetest.File("large", noise(1<<20+300_000, 7)), treetest.File("small", noise(700_000, 8)), treetest.File("small too", noise(700_000, 9)))}
	written  = image{fullImage(6)[0]}
)

func pulls(prefix string, img image) func(context.Context, *node) error {
	return func(ctx context.Context, n *node) error {
		_, err := n.tryPull(ctx, prefix, img)
		return err
	}
}

func flattens(prefix string, img image) func(context.Context, *node) error {
	names := img.names(prefix)
	return func(ctx context.Context, n *node) error { return n.Flatten(ctx, names[len(names)-1]) }
}

// inOrder does one thing after the other.
func inOrder(steps ...func(context.Context, *node) error) func(context.Context, *node) error {
	return func(ctx context.Context, n *node) error {
		for _, step := range steps {
			if err := step(ctx, n); err != nil {
				return err
			}
		}
		return nil
	}
}

// writeUpper has another differ write a layer into an upper directory.
func writeUpper(t *testing.T, n *node) {
	t.Helper()
	ctx := context.Background()
	m, err := n.Prepare(ctx, "ns/1/extract-written", "")
	must(t, err)
	_, err = apply.NewFileSystemApplier(n.blobs).Apply(ctx, n.blobs.add(written[0]), m)
	must(t, err)
}

// commitWrittenUpper commits it and has it taken in.
func commitWrittenUpper(opts ...snapshots.Opt) func(ctx context.Context, n *node) error {
	return func(ctx context.Context, n *node) error {
		name := written.names("ns/1")[0]
		if _, err := n.Stat(ctx, name); err != nil {
			if err := n.Commit(ctx, name, "ns/1/extract-written", opts...); err != nil {
				return err
			}
		}
		return n.Flatten(ctx, name)
	}
}

// manyLabels are more than the metastore has free pages for.
var manyLabels = snapshots.WithLabels(map[string]string{"label": strings.Repeat("0123456789abcdef", 4096)})

var fillings = map[string]filling{
	"durable unpack": {
		config: func(c *Config) { c.Durability = DurabilitySync },
		do:     pulls("ns/1", fullImage(1)),
		shows:  map[string]image{"ns/1": fullImage(1)},
		fails: []string{
			"mkdir DIR/snapshots/new-", "/fs: ", "/work: ", "/lower: ", "mkdir DIR/layers/", "write DIR/layers/", "/source.tmp", "write DIR/pack: ",
			"write index file: ", "note what is synced: ",
		},
	},
	"unpack": {
		do:    inOrder(pulls("ns/1", fullImage(2)), flattens("ns/1", fullImage(2))),
		shows: map[string]image{"ns/1": fullImage(2)},
		fails: []string{"mkdir DIR/snapshots/new-", "mkdir DIR/layers/", "/source.tmp", "write DIR/pack: ", "write index file: "},
	},
	"unpack of large contents": {
		do:    pulls("ns/1", large),
		shows: map[string]image{"ns/1": large},
		step:  24,
		fails: []string{"store content of 1348576 bytes: ", "end segment: "},
	},
	"unpack without inodes": {
		config: func(c *Config) { c.Durability = DurabilitySync },
		do:     inOrder(pulls("ns/1", fullImage(3)), flattens("ns/1", fullImage(3))),
		shows:  map[string]image{"ns/1": fullImage(3)},
		inodes: true,
		fails:  []string{"mkdir DIR/snapshots/new-", "mkdir DIR/layers/", "/source.tmp", "create index file: ", "note what is synced: "},
	},
	"directories of the layers below": {
		ready: func(t *testing.T, n *node) { must(t, pulls("ns/1", fullImage(4)[:1])(context.Background(), n)) },
		do: func(ctx context.Context, n *node) error {
			_, err := n.Prepare(ctx, n.key("extract-x"), fullImage(4).names("ns/1")[0])
			return err
		},
		fails: []string{"mkdir DIR/snapshots/new-", "/skeleton.erofs.tmp"},
	},
	"flatten": {
		ready:  func(t *testing.T, n *node) { must(t, pulls("ns/1", fullImage(5))(context.Background(), n)) },
		do:     flattens("ns/1", fullImage(5)),
		shows:  map[string]image{"ns/1": fullImage(5)},
		atOnce: true,
		fails:  []string{".erofs.tmp", ".refs.tmp"},
	},
	"restore": {
		ready:  func(t *testing.T, n *node) { must(t, pulls("ns/0", unhiding)(context.Background(), n)) },
		do:     flattens("ns/0", unhiding),
		shows:  map[string]image{"ns/0": unhiding},
		atOnce: true,
		fails:  []string{"write DIR/pack: ", "write index file: ", "note what is synced: ", ".refs.tmp"},
	},
	"upper directory": {
		ready:  writeUpper,
		do:     commitWrittenUpper(),
		shows:  map[string]image{"ns/1": written},
		atOnce: true,
		keeps:  "/images/",
		fails:  []string{"mkdir DIR/layers/", "write DIR/layers/", "write DIR/pack: ", "write index file: "},
	},
	"upper directory without inodes": {
		ready:  writeUpper,
		do:     commitWrittenUpper(),
		shows:  map[string]image{"ns/1": written},
		inodes: true,
		atOnce: true,
		keeps:  "/images/",
		fails:  []string{"mkdir DIR/layers/", "create index file: "},
	},
	"commit": {
		ready: writeUpper,
		do:    commitWrittenUpper(manyLabels),
		shows: map[string]image{"ns/1": written},
		fails: []string{"commit failed: write DIR/metadata.db: "},
	},
	"container": {
		do: func(ctx context.Context, n *node) error {
			_, err := n.Prepare(ctx, n.key("container"), fullImage(0).names("ns/0")[1], manyLabels)
			return err
		},
		once:  true,
		fails: []string{"mkdir DIR/snapshots/new-", "/fs: ", "/work: ", "commit failed: write DIR/metadata.db: "},
	},
	"layer as files": {
		do: func(ctx context.Context, n *node) error {
			key := n.key("container")
			m, err := n.Prepare(ctx, key, "")
			if err != nil {
				return err
			}
			_, err = n.Apply(ctx, n.blobs.add(fullImage(7)[0]), m)
			return err
		},
		fails: []string{"/fs/d", "/fs/hidden"},
	},
}
