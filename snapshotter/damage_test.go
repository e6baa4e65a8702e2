// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/mounts"
)

// Damage of one image: the store opens, others are whole, and the damaged one
// can be removed.
func TestDamageOfOneImageStaysItsOwn(t *testing.T) {
	t.Parallel()
	truncate := func(path string, by int64) error {
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		return os.Truncate(path, max(0, st.Size()-by))
	}
	flip := func(path string, at int64) error {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if at < 0 {
			at += int64(len(b))
		}
		b[at] ^= 0x55
		return os.WriteFile(path, b, 0o600)
	}
	type damage struct {
		do    func(l layout, id string, c imageName) error
		wrong bool // the image cannot be shown any more
	}
	for name, d := range map[string]damage{
		"TOC without its end": {func(l layout, id string, _ imageName) error { return truncate(l.toc(id), 10) }, true},
		"empty TOC":           {func(l layout, id string, _ imageName) error { return truncate(l.toc(id), 1<<40) }, true},
		"flipped bit in the TOC": {func(l layout, id string, c imageName) error {
			return errors.Join(flip(l.toc(id), 60), os.Remove(l.image(c)))
		}, true},
		"flipped bit in a trailer": {func(l layout, id string, _ imageName) error { return flip(l.toc(id), -3) }, true},
		"other magic": {func(l layout, id string, c imageName) error {
			return errors.Join(flip(l.toc(id), 0), os.Remove(l.image(c)))
		}, true},
		"no TOC":             {func(l layout, id string, _ imageName) error { return os.Remove(l.toc(id)) }, false}, // its blob brings it back
		"no layer directory": {func(l layout, id string, _ imageName) error { return os.RemoveAll(l.layer(id)) }, true},
		// What is read from the flat image does not need it.
		"flipped bit in the TOC under a flat image": {func(l layout, id string, _ imageName) error { return flip(l.toc(id), 60) }, false},
		"source file of garbage":                    {func(l layout, id string, _ imageName) error { return os.WriteFile(l.source(id), []byte("{"), 0o600) }, false},
		"no list of what it shows":                  {func(l layout, _ string, c imageName) error { return os.Remove(l.refs(c)) }, false},
		"damaged list":                              {func(l layout, _ string, c imageName) error { return flip(l.refs(c), -1) }, false},
		"no flat image":                             {func(l layout, _ string, c imageName) error { return os.Remove(l.image(c)) }, false},
		"no flat image and no list":                 {func(l layout, _ string, c imageName) error { return os.RemoveAll(l.imagesDir()) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, mounts.ModeAuto)
			ctx := context.Background()
			good, bad := n.pull("ns/1", sample(1)), n.pull("ns/2", sample(2))
			wantGood, wantBad := n.tree(good), n.tree(bad)
			middle := sample(2).names("ns/2")[1]
			id, c, l := n.id(middle), n.flatImage(bad), n.layout
			n.close()
			for _, m := range mountsBelow(t, n.dir) {
				must(t, unmount(m.Mountpoint))
			}
			must(t, d.do(l, id, c))

			n.open()
			if infos := n.all(); len(infos) != 6 {
				t.Errorf("%d snapshots are listed, want 6", len(infos))
			}
			n.shows(good, wantGood)
			if d.wrong {
				for what, err := range map[string]error{
					"View":                  second(n.View(ctx, "ns/3/view", bad)),
					"Prepare":               second(n.Prepare(ctx, "ns/3/container", bad)),
					"Prepare for an unpack": second(n.Prepare(ctx, "ns/3/extract-x", bad)),
				} {
					if text := fmt.Sprint(err); err == nil || !strings.Contains(text, "layer "+id) && !strings.Contains(text, "layer 2 of 3") && !strings.Contains(text, "layers/"+id+"/") {
						t.Errorf("%s of the damaged image: the error should name layer %s: %v", what, id, err)
					}
				}
			} else {
				n.shows(bad, wantBad)
			}
			_ = n.Cleanup(ctx) // it may say what it cannot know
			n.shows(good, wantGood)
			n.pull("ns/4", sample(4))
			n.shows(good, wantGood)
			names := sample(2).names("ns/2")
			for i := len(names) - 1; i >= 0; i-- {
				must(t, n.Remove(ctx, names[i]))
			}
			must(t, n.Cleanup(ctx))
			n.shows(good, wantGood)
			bad = n.pull("ns/2", sample(2))
			n.shows(bad, wantBad)
			n.removeAll()
			must(t, n.Cleanup(ctx))
			n.expectNothingLeft()
		})
	}
}

// A flat image that does not mount is an error, and is gone with its snapshot.
func TestADamagedFlatImageIsReportedAndRemovable(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	good, bad := n.pull("ns/1", sample(1)), n.pull("ns/2", sample(2))
	want := n.tree(good)
	must(t, n.Flatten(ctx, bad))
	c := n.flatImage(bad)
	n.close()
	must(t, unmount(n.cfg.State+"/mnt/"+c.String()))
	image := filepath.Join(n.cfg.Root, "images", c.String()+imageSuffix)
	must(t, os.WriteFile(image, make([]byte, 8192), 0o600))
	n.open()
	if _, err := n.View(ctx, "ns/3/view", bad); err == nil || !strings.Contains(err.Error(), image) {
		t.Errorf("View of a flat image without a superblock: %v", err)
	}
	n.shows(good, want)
	for _, info := range n.all() {
		if strings.HasPrefix(info.Name, "ns/2/") {
			must(t, n.Remove(ctx, info.Name))
		}
	}
	must(t, n.Cleanup(ctx))
	n.shows(good, want)
	n.removeAll()
	must(t, n.Cleanup(ctx))
	n.expectNothingLeft()
}

// Invariant 5.
func TestAFlatImageIsRebuiltByteForByte(t *testing.T) {
	t.Parallel()
	n, twin := newNode(t, mounts.ModeAuto), newNode(t, mounts.ModeAuto)
	ctx := context.Background()
	read := func(n *node, top string) []byte {
		t.Helper()
		must(t, n.Flatten(ctx, top))
		b, err := os.ReadFile(n.image(n.flatImage(top)))
		must(t, err)
		return b
	}
	for i := range uint64(3) {
		top := n.pull(fmt.Sprint("ns/", i), sample(i))
		twin.pull(fmt.Sprint("other/", i), sample(i))
		first := read(n, top)
		if !bytes.Equal(first, read(twin, sample(i).names(fmt.Sprint("other/", i))[2])) {
			t.Errorf("image %d: a store that took the same layers in the same order has another flat image", i)
		}
		c := n.flatImage(top)
		must(t, unmount(n.imageMount(c)))
		must(t, os.Remove(n.image(c)))
		if !bytes.Equal(first, read(n, top)) {
			t.Errorf("image %d was rebuilt with other bytes", i)
		}
	}
}

func TestAStoreOfANewerFormatIsRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	n.pull("ns/1", sample(1))
	n.close()
	for content, text := range map[string]string{"2\n": "newer", "999": "newer", "garbage": "no version"} {
		must(t, os.WriteFile(n.cfg.Root+"/version", []byte(content), 0o600))
		before := fmt.Sprint(blocks(t, n.cfg.Root+"/pack"))
		s, err := New(context.Background(), n.cfg)
		if err == nil {
			s.Close()
		}
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), n.cfg.Root) {
			t.Errorf("New on a store of version %q: %v", content, err)
		}
		if after := fmt.Sprint(blocks(t, n.cfg.Root+"/pack")); after != before {
			t.Errorf("version %q: the pack was changed", content)
		}
	}
	must(t, os.WriteFile(n.cfg.Root+"/version", []byte("1\n"), 0o600))
	n.open()
}

func TestDirectoriesThatCannotWorkAreRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "a,b"), 0o700))
	must(t, os.Symlink("a,b", filepath.Join(dir, "link")))
	for _, bad := range []string{"", file, file + "/below", dir + "/a,b", dir + "/a:b", dir + `/a\b`, dir + "/a b", dir + "/a\nb", dir + "/link"} {
		for _, cfg := range []Config{{Root: bad, State: dir + "/state"}, {Root: dir + "/root", State: bad}} {
			s, err := New(context.Background(), cfg)
			if err == nil {
				s.Close()
				t.Errorf("New took root %q, state %q", cfg.Root, cfg.State)
			} else if bad != "" && !strings.Contains(err.Error(), filepath.Base(bad)) && !strings.Contains(err.Error(), fmt.Sprintf("%q", bad)) && !strings.Contains(err.Error(), "a,b") && !strings.Contains(err.Error(), file) {
				t.Errorf("the error does not name %q: %v", bad, err)
			}
		}
	}
	for _, name := range []string{"a:b", `a\b`, "a b", "a\nb"} {
		if exists(filepath.Join(dir, name)) {
			t.Errorf("%q was made before it was refused", name)
		}
	}
	if _, err := New(context.Background(), Config{Root: dir + "/r", State: dir + "/s", Durability: "never"}); err == nil {
		t.Error("New took an unknown durability")
	}
	if _, err := New(context.Background(), Config{Root: dir + "/r", State: dir + "/s", Mount: "teleport"}); err == nil {
		t.Error("New took an unknown mount mode")
	}
}

// tmpfs has no pages that a file-backed mount could read: loop devices serve it.
func TestARootOnTmpfsWorks(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts file systems")
	}
	dir := t.TempDir()
	root := filepath.Join(t.TempDir(), "tmpfs")
	must(t, os.Mkdir(root, 0o700))
	must(t, mountTmpfs(root))
	t.Cleanup(func() { must(t, unmount(root)) })
	n := closedNode(t, dir)
	n.cfg.Root = filepath.Join(root, "root")
	n.open()
	if n.mounter.Mode() != mounts.ModeLoop {
		t.Errorf("mount mode on tmpfs: %s", n.mounter.Mode())
	}
	top := n.pull("ns/1", crashImage(0))
	v, undo := n.view(top)
	must(t, checkContent(v, 0))
	undo()
	n.removeAll()
	must(t, n.Cleanup(context.Background()))
	n.expectNothingLeft()
}
