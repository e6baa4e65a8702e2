// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/pack"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// checked runs a check and returns what it found.
func (n *node) checked(opts CheckOptions) (findings []Finding, sum CheckSummary) {
	n.t.Helper()
	sum, err := n.Check(context.Background(), opts, func(f Finding) { findings = append(findings, f) })
	must(n.t, err)
	if sum.Findings != uint64(len(findings)) {
		n.t.Errorf("the summary counts %d findings, %d were told", sum.Findings, len(findings))
	}
	return findings, sum
}

// overwrite puts other bytes into a file, without telling anybody.
func overwrite(t *testing.T, path string, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt(b, at)
	must(t, err)
	must(t, f.Sync())
}

var checkedContent = noise(70_000, 77)

func checkedImage() image {
	return image{
		treetest.Layer(treetest.Dir("d"), treetest.File("d/big", checkedContent), treetest.File("d/small", "small"), treetest.File("gone", noise(40_000, 78))),
		treetest.Layer(treetest.File("other", noise(30_000, 79)), treetest.Whiteout("gone")),
	}
}

func TestCheckOfASoundStoreFindsNothing(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	top := n.pull("ns/1", checkedImage())
	must(t, n.Flatten(context.Background(), top))
	n.pull("ns/2", sample(1))
	for _, opts := range []CheckOptions{{Quick: true}, {}, {Repair: true}} {
		findings, sum := n.checked(opts)
		if len(findings) > 0 {
			t.Errorf("%+v: %+v", opts, findings)
		}
		if sum.Layers == 0 || sum.Images == 0 || (sum.Contents == 0) != opts.Quick {
			t.Errorf("%+v: checked %+v", opts, sum)
		}
	}
}

func TestCheckFindsAndMendsDamage(t *testing.T) {
	t.Parallel()
	where := func(n *node) int64 {
		p, err := n.pack.Lookup(pack.Digest(sha256.Sum256([]byte(checkedContent))))
		must(n.t, err)
		return int64(p.Block) * pack.BlockSize
	}
	for name, c := range map[string]struct {
		damage func(n *node, top string)
		kind   FindingKind
		quick  bool // found without reading contents
	}{
		"a content":          {func(n *node, _ string) { overwrite(n.t, n.pack.Path(), where(n)+5000, []byte("damage")) }, FindingContent, false},
		"a flat image":       {func(n *node, top string) { overwrite(n.t, n.image(n.flatImage(top)), 1200, []byte("damage")) }, FindingImage, true},
		"a list of contents": {func(n *node, top string) { overwrite(n.t, n.refs(n.flatImage(top)), 33, []byte{0xff}) }, FindingImage, true},
		"a TOC": {func(n *node, top string) {
			overwrite(n.t, n.toc(n.id(checkedImage().names("ns/1")[0])), 40, []byte("damage"))
		}, FindingLayer, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, mounts.ModeAuto)
			n.t = t
			top := n.pull("ns/1", checkedImage())
			must(t, n.Flatten(context.Background(), top))
			must(t, n.Cleanup(context.Background()))
			want := n.tree(top)
			_, root, undo := n.run(top)
			defer undo()
			c.damage(n, top)

			if findings, _ := n.checked(CheckOptions{Quick: true}); (len(findings) > 0) != c.quick {
				t.Errorf("quick: %+v", findings)
			}
			findings, _ := n.checked(CheckOptions{})
			if len(findings) != 1 || findings[0].Kind != c.kind || findings[0].Repaired || findings[0].Remedy == "" {
				t.Fatalf("found: %+v", findings)
			}
			findings, sum := n.checked(CheckOptions{Repair: true})
			if len(findings) != 1 || !findings[0].Repaired || findings[0].Remedy != "" || sum.Repaired != 1 {
				t.Fatalf("repair: %+v", findings)
			}
			if findings, _ := n.checked(CheckOptions{}); len(findings) > 0 {
				t.Errorf("after the repair: %+v", findings)
			}
			// The container was running all the time.
			got, err := os.ReadFile(root + "/d/big")
			must(t, err)
			if string(got) != checkedContent {
				t.Error("the running container reads other bytes after the repair")
			}
			n.shows(top, want)
		})
	}
}

func TestCheckReportsWhatItCannotMend(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	img := checkedImage()
	top := n.pull("ns/1", img)
	must(t, n.Flatten(context.Background(), top))
	p, err := n.pack.Lookup(pack.Digest(sha256.Sum256([]byte(checkedContent))))
	must(t, err)
	overwrite(t, n.pack.Path(), int64(p.Block)*pack.BlockSize, []byte("damage"))
	n.blobs.remove(img[0])
	findings, _ := n.checked(CheckOptions{Repair: true})
	if len(findings) != 1 || findings[0].Repaired || findings[0].Remedy == "" {
		t.Fatalf("%+v", findings)
	}
	n.blobs.add(img[0])
	if findings, _ := n.checked(CheckOptions{Repair: true}); len(findings) != 1 || !findings[0].Repaired {
		t.Errorf("with the blob back: %+v", findings)
	}
}

// A loop device that somebody left behind. Those of mounts are none, nor are
// those of other files below the root: they may be a container's own.
func TestCheckFindsAndDetachesLeakedLoopDevices(t *testing.T) {
	t.Parallel()
	for _, mode := range []mounts.Mode{mounts.ModeFile, mounts.ModeLoop} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, mode)
			top := n.pull("ns/1", checkedImage())
			want := n.tree(top)
			_, root, undo := n.run(top)
			defer undo()
			key, other, undoOther := n.run(top)
			defer undoOther()
			must(t, os.WriteFile(other+"/disk", make([]byte, 4096), 0o600))
			losetup(t, n.upper(n.id(key))+"/disk")
			if findings, _ := n.checked(CheckOptions{Quick: true}); len(findings) > 0 {
				t.Fatalf("%+v", findings)
			}

			leaked := []string{losetup(t, n.pack.Path()), losetup(t, n.image(n.flatImage(top)))}
			slices.Sort(leaked)
			for _, opts := range []CheckOptions{{Quick: true}, {}} {
				findings, _ := n.checked(opts)
				if len(findings) != 2 || findings[0].Object != leaked[0] || findings[1].Object != leaked[1] {
					t.Fatalf("%+v, want %v", findings, leaked)
				}
				if f := findings[0]; f.Kind != FindingOrphan || f.Repaired || f.Remedy == "" {
					t.Errorf("%+v", f)
				}
			}
			findings, sum := n.checked(CheckOptions{Quick: true, Repair: true})
			if len(findings) != 2 || sum.Repaired != 2 || findings[0].Remedy != "" {
				t.Fatalf("repair: %+v", findings)
			}
			waitFor(t, "the leaked devices to be free", func() error {
				if findings, _ := n.checked(CheckOptions{Quick: true}); len(findings) > 0 {
					return fmt.Errorf("%+v", findings)
				}
				return nil
			})
			if got, err := os.ReadFile(root + "/d/big"); err != nil || string(got) != checkedContent {
				t.Errorf("the running container reads other bytes after the repair: %v", err)
			}
			n.shows(top, want)
		})
	}
}

func TestOnlyFilesThatAreMountedMayLeakLoopDevices(t *testing.T) {
	l := layout{root: "/root", state: "/state"}
	for path, want := range map[string]bool{
		l.root + "/pack": true, l.image(flatImage(chain{1})): true, l.image(flatImage(chain{1})) + ".tmp": true, l.skeleton("17"): true,
		l.metadata(): false, l.upper("17") + "/pack": false, l.upper("17") + "/5/skeleton.erofs": false, l.snapshotsDir() + "/x/skeleton.erofs": false, "/elsewhere/pack": false, "": false,
	} {
		if got := l.mountable(path); got != want {
			t.Errorf("%q: %v", path, got)
		}
	}
}

// losetup binds a file to a loop device that stays until it is detached.
func losetup(t *testing.T, file string) string {
	t.Helper()
	out, err := exec.Command("losetup", "--read-only", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup %s: %v: %s", file, err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = mounts.DetachLoop(device, file) }) // it may be free, or another test's, by then
	return device
}

// Progress comes to its end in every step, and a slow rate is kept.
func TestCheckTellsProgress(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	n.pull("ns/1", checkedImage())
	last := map[string]CheckProgress{}
	n.checked(CheckOptions{Progress: func(p CheckProgress) {
		if p.Done < last[p.Step].Done {
			t.Errorf("%s went back from %d to %d", p.Step, last[p.Step].Done, p.Done)
		}
		last[p.Step] = p
	}})
	for _, step := range []string{"index", "layers", "contents", "files"} {
		if p := last[step]; p.Total == 0 || p.Done != p.Total {
			t.Errorf("%s ended at %d of %d", step, p.Done, p.Total)
		}
	}
}

func TestCheckEndsWithItsContext(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	n.pull("ns/1", checkedImage())
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := n.Check(ctx, CheckOptions{Rate: 1}, func(Finding) {}); err == nil {
		t.Error("a cancelled check came to its end")
	}
}

// A boot in which layers were not yet durable: what is damaged is not shown,
// and comes back from the blobs.
func TestLayersThatWereNotDurableAreVerifiedAfterABoot(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(n *node, l layout, id string, content int64){
		"content lost": func(n *node, _ layout, _ string, content int64) {
			overwrite(n.t, n.cfg.Root+"/pack", content, make([]byte, 8192))
		},
		"TOC lost":  func(n *node, l layout, id string, _ int64) { must(n.t, os.Remove(l.toc(id))) },
		"TOC empty": func(n *node, l layout, id string, _ int64) { must(n.t, os.Truncate(l.toc(id), 0)) },
		"index lost": func(n *node, l layout, _ string, _ int64) {
			must(n.t, os.RemoveAll(l.root+"/index"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, mounts.ModeAuto)
			n.t = t
			top := n.pull("ns/1", checkedImage())
			want := n.tree(top)
			l, base := n.layout, n.id(checkedImage().names("ns/1")[0])
			p, err := n.pack.Lookup(pack.Digest(sha256.Sum256([]byte(checkedContent))))
			must(t, err)
			var marks []string
			for _, name := range checkedImage().names("ns/1") {
				marks = append(marks, l.durable(n.id(name)))
			}
			waitFor(t, "the layers to become durable", func() error {
				for _, m := range marks {
					if _, err := os.Stat(m); err != nil {
						return err
					}
				}
				return nil
			})
			n.close()
			for _, m := range mountsBelow(t, n.dir) {
				must(t, unmount(m.Mountpoint))
			}
			for _, m := range append(marks, l.root+"/index/synced") {
				must(t, os.Remove(m))
			}
			must(t, os.WriteFile(l.boot(), []byte("another boot\n"), 0o600))
			damage(n, l, base, int64(p.Block)*pack.BlockSize)
			n.open()
			n.shows(top, want)
			if findings, _ := n.checked(CheckOptions{}); len(findings) > 0 {
				t.Errorf("%+v", findings)
			}
		})
	}
}

// Layers that are durable are not read again: this is what makes a start after
// a boot cheap.
func TestDurableLayersAreNotVerifiedAfterABoot(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	n.close()
	n.cfg.Durability = DurabilitySync
	n.open()
	top := n.pull("ns/1", checkedImage())
	must(t, n.Flatten(context.Background(), top))
	p, err := n.pack.Lookup(pack.Digest(sha256.Sum256([]byte(checkedContent))))
	must(t, err)
	l := n.layout
	n.close()
	must(t, os.WriteFile(l.boot(), []byte("another boot\n"), 0o600))
	overwrite(t, n.cfg.Root+"/pack", int64(p.Block)*pack.BlockSize, []byte("damage"))
	n.open()
	if findings, _ := n.checked(CheckOptions{}); len(findings) != 1 {
		t.Errorf("the start has looked at a durable layer: %+v", findings)
	}
}

// A pack that lost its end: nobody reads zeros where contents were.
func TestContentsBehindTheEndOfThePackComeBack(t *testing.T) {
	t.Parallel()
	n := newNode(t, mounts.ModeAuto)
	top := n.pull("ns/1", checkedImage())
	want := n.tree(top)
	path := n.pack.Path()
	n.close()
	for _, m := range mountsBelow(t, n.dir) {
		must(t, unmount(m.Mountpoint))
	}
	must(t, os.Truncate(path, 8192))
	n.open()
	n.shows(top, want)
	if findings, _ := n.checked(CheckOptions{}); len(findings) > 0 {
		t.Errorf("%+v", findings)
	}
	n.removeAll()
	n.expectNothingLeft()
}
