// SPDX-License-Identifier: Apache-2.0

package mounts

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/squash-snapshotter/squash/internal/erofs"
	"github.com/squash-snapshotter/squash/internal/kmsgtest"
)

func TestMountShowsImageAndPack(t *testing.T) {
	forEachMode(t, func(t *testing.T, m *Mounter) {
		for _, pack := range []string{"", "pack"} {
			t.Run("pack="+pack, func(t *testing.T) {
				root := newRoot(t)
				f := newFixture(t, root, "a.erofs", pack)
				target := mkdir(t, root, "target")
				mount(t, m, f.image, f.pack, target)
				f.check(t, target)

				must(t, m.Unmount(target))
				if _, err := os.Stat(filepath.Join(target, "inline")); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("after unmount: %v", err)
				}
			})
		}
	})
}

func TestMountIsReadOnly(t *testing.T) {
	forEachMode(t, func(t *testing.T, m *Mounter) {
		root := newRoot(t)
		f := newFixture(t, root, "a.erofs", "pack")
		target := mkdir(t, root, "target")
		mount(t, m, f.image, f.pack, target)

		if err := os.WriteFile(filepath.Join(target, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("create a file: got %v, want EROFS", err)
		}
		if err := os.Chmod(filepath.Join(target, "inline"), 0); !errors.Is(err, unix.EROFS) {
			t.Errorf("chmod: got %v, want EROFS", err)
		}
		var st unix.Statfs_t
		must(t, unix.Statfs(target, &st))
		if st.Flags&unix.ST_RDONLY == 0 {
			t.Errorf("statfs flags %#x do not say read-only", st.Flags)
		}
	})
}

func TestMountHonoursDeviceNodesAndSetuid(t *testing.T) {
	forEachMode(t, func(t *testing.T, m *Mounter) {
		root := newRoot(t)
		f := newFixture(t, root, "a.erofs", "pack")
		target := mkdir(t, root, "target")
		mount(t, m, f.image, f.pack, target)

		if got, err := os.ReadFile(filepath.Join(target, "null")); err != nil || len(got) != 0 {
			t.Errorf("read device 1:3: %q, %v", got, err)
		}
		var st unix.Statfs_t
		must(t, unix.Statfs(target, &st))
		if bad := st.Flags & (unix.ST_NODEV | unix.ST_NOSUID | unix.ST_NOEXEC); bad != 0 {
			t.Errorf("statfs flags have %#x", bad)
		}
	})
}

// An image that was built after the pack had grown must see the new blocks, and an older mount of the
// same pack must go on seeing the old ones.
func TestMountsOfGrowingPack(t *testing.T) {
	forEachMode(t, func(t *testing.T, m *Mounter) {
		root := newRoot(t)
		older := newFixture(t, root, "older.erofs", "pack")
		olderTarget := mkdir(t, root, "older")
		mount(t, m, older.image, older.pack, olderTarget)

		data, err := os.ReadFile(older.pack)
		must(t, err)
		grown := append(data, noise(3*erofs.BlockSize)...)
		pack, err := os.OpenFile(older.pack, os.O_WRONLY|os.O_APPEND, 0)
		must(t, err)
		_, err = pack.Write(grown[len(data):])
		must(t, errors.Join(err, pack.Close()))

		first := uint32(len(data) / erofs.BlockSize)
		newer := fixture{image: filepath.Join(root, "newer.erofs"), pack: older.pack, files: map[string][]byte{
			"new": grown[len(data):],
		}}
		writeImage(t, newer.image,
			erofs.Options{Devices: []erofs.Device{{Blocks: first + 3, UnifiedAddr: 1 << 20}}}, newer.files,
			map[string]erofs.Inode{"new": {
				Mode:    unix.S_IFREG | 0o644,
				Extents: []erofs.Extent{{Device: 1, Block: first, Length: 3 * erofs.BlockSize}},
			}})
		newerTarget := mkdir(t, root, "newer")
		mount(t, m, newer.image, newer.pack, newerTarget)
		newer.check(t, newerTarget)
		older.check(t, olderTarget)
	})
}

func TestMountTakesAwkwardPaths(t *testing.T) {
	forEachMode(t, func(t *testing.T, m *Mounter) {
		for name, part := range map[string]string{
			"space":     "a b",
			"comma":     "a,device=b",
			"colon":     "a:b",
			"hash":      "#a",
			"backslash": `a\040b`,
			"newline":   "a\nb",
			"quote":     `a"b'`,
			"not UTF-8": "a\xffb",
			"deleted":   "a (deleted)",
		} {
			t.Run(name, func(t *testing.T) {
				root := newRoot(t)
				dir := mkdir(t, root, part)
				f := newFixture(t, dir, part, part+".pack")
				target := mkdir(t, dir, "target "+part)
				mount(t, m, f.image, f.pack, target)
				f.check(t, target)
				checkMounted(t, root, map[string]string{target: f.image})
				must(t, m.Unmount(target))
			})
		}
	})
}

func TestMountTakesLongPaths(t *testing.T) {
	forEachMode(t, func(t *testing.T, m *Mounter) {
		// The longest name of a file, and one that just passes through a directory descriptor.
		for _, length := range []int{32, 255} {
			root := newRoot(t)
			dir := mkdir(t, root, strings.Repeat("d", 200), strings.Repeat("e", 200))
			name := strings.Repeat("i", length)
			f := newFixture(t, dir, name, strings.Repeat("p", length))
			target := mkdir(t, dir, "target")
			mount(t, m, f.image, f.pack, target)
			f.check(t, target)

			want := f.image // a loop device knows its file by any path
			if m.Mode() == ModeFile {
				want = map[int]string{32: name, 255: ""}[length]
			}
			checkMounted(t, root, map[string]string{target: want})
			got, err := Mounted(root)
			must(t, err)
			if shows := got[target].Shows(f.image); shows != (want != "") {
				t.Errorf("%d bytes: Shows(%q) = %t", length, f.image, shows)
			}
			if got[target].Shows(f.pack) {
				t.Errorf("%d bytes: Shows(%q)", length, f.pack)
			}
			must(t, m.Unmount(target))
		}
	})
}

func TestMountTakesRelativePaths(t *testing.T) {
	forEachMode(t, func(t *testing.T, m *Mounter) {
		root := newRoot(t)
		f := newFixture(t, root, "a.erofs", "pack")
		target := mkdir(t, root, "target")
		t.Chdir(root)
		mount(t, m, "a.erofs", "pack", "target")
		f.check(t, target)
		checkMounted(t, ".", map[string]string{target: f.image})
		must(t, m.Unmount("target"))
	})
}

func TestMountFailureSaysWhyAndLeavesNothing(t *testing.T) {
	kmsgtest.Noisy(t)
	forEachMode(t, func(t *testing.T, m *Mounter) {
		root := newRoot(t)
		plain := newFixture(t, root, "plain.erofs", "")
		packed := newFixture(t, root, "packed.erofs", "pack")
		target := mkdir(t, root, "target")
		occupied := mkdir(t, root, "occupied")
		mount(t, m, plain.image, "", occupied)
		bound := loopDevices(t, root)
		notImage := filepath.Join(root, "not-an-image")
		must(t, os.WriteFile(notImage, make([]byte, 8192), 0o600))

		for _, c := range []struct {
			name                string
			image, pack, target string
			is                  error
			says                []string
		}{
			{"missing image", root + "/none", "", target, fs.ErrNotExist, []string{"image", root + "/none"}},
			{"missing pack", packed.image, root + "/none", target, fs.ErrNotExist, []string{"pack", root + "/none"}},
			{"image is a directory", root, "", target, errdefs.ErrInvalidArgument, []string{"not a regular file"}},
			{"image is a device", "/dev/null", "", target, errdefs.ErrInvalidArgument, []string{"not a regular file"}},
			{"pack is a directory", packed.image, root, target, errdefs.ErrInvalidArgument, []string{"pack " + root}},
			{"not an image", notImage, "", target, unix.EINVAL, []string{"cannot find valid erofs superblock"}},
			{"device for an image without", plain.image, packed.pack, target, unix.EINVAL,
				[]string{"extra devices don't match (ondisk 0, given 1)"}},
			{"missing target", plain.image, "", root + "/none", fs.ErrNotExist, []string{root + "/none"}},
			{"target is a file", plain.image, "", plain.image, errdefs.ErrInvalidArgument, []string{"not a directory"}},
			{"target occupied", plain.image, "", occupied, errdefs.ErrAlreadyExists, []string{occupied}},
		} {
			t.Run(c.name, func(t *testing.T) {
				err := m.Mount(t.Context(), c.image, c.pack, c.target)
				if !errors.Is(err, c.is) {
					t.Errorf("got %v, want %v", err, c.is)
				}
				for _, text := range append(c.says, string(m.Mode()), c.image, c.target) {
					if err != nil && !strings.Contains(err.Error(), text) {
						t.Errorf("error lacks %q: %v", text, err)
					}
				}
				checkMounted(t, root, map[string]string{occupied: plain.image})
				waitFor(t, "loop devices to be freed", func() error {
					if left := loopDevices(t, root); len(left) != len(bound) {
						return errors.New("more are bound than before")
					}
					return nil
				})
			})
		}
	})
}

func TestMountCancelledAtAnyPoint(t *testing.T) {
	forEachMode(t, func(t *testing.T, m *Mounter) {
		root := newRoot(t)
		f := newFixture(t, root, "a.erofs", "pack")
		target := mkdir(t, root, "target")
		for k := 0; ; k++ {
			left := k
			err := m.Mount(cancelAfter{t.Context(), &left}, f.image, f.pack, target)
			if err == nil {
				if k == 0 {
					t.Error("the context was never looked at")
				}
				break
			}
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("cancelled after %d looks: %v", k, err)
			}
			checkNothingLeft(t, root)
		}
		must(t, m.Unmount(target))
	})
}

// A descriptor left open would hold a loop device until the garbage collector finds it.
func TestMountLeavesNoDescriptorOpen(t *testing.T) {
	forEachMode(t, func(t *testing.T, m *Mounter) {
		root := newRoot(t)
		dir := mkdir(t, root, strings.Repeat("d", 200), strings.Repeat("e", 200))
		f := newFixture(t, dir, "a.erofs", "pack")
		plain := newFixture(t, dir, "plain.erofs", "")
		target := mkdir(t, root, "target")
		defer debug.SetGCPercent(debug.SetGCPercent(-1))

		before := openDescriptors(t)
		for range 2 {
			must(t, m.Mount(t.Context(), f.image, f.pack, target))
			must(t, m.Unmount(target))
			if err := m.Mount(t.Context(), f.image, root+"/none", target); err == nil {
				t.Error("mounted without the pack")
			}
			if err := m.Mount(t.Context(), plain.image, f.pack, target); err == nil {
				t.Error("mounted with a pack too many")
			}
			if err := m.Mount(t.Context(), f.image, f.pack, root+"/none"); err == nil {
				t.Error("mounted on nothing")
			}
			_, err := Probe(t.Context(), root)
			must(t, err)
		}
		if after := openDescriptors(t); !slices.Equal(after, before) {
			t.Errorf("open files: before %q, after %q", before, after)
		}
	})
}

func openDescriptors(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	var open []string
	for _, entry := range entries {
		// Of the listing itself, and of nothing else, the descriptor is closed by now.
		if file, err := os.Readlink("/proc/self/fd/" + entry.Name()); err == nil {
			open = append(open, file)
		}
	}
	slices.Sort(open)
	return open
}

// Side by side, the mounts of loop mode fight for the same free devices.
func TestMountsInParallel(t *testing.T) {
	forEachMode(t, func(t *testing.T, m *Mounter) {
		root := newRoot(t)
		f := newFixture(t, root, "a.erofs", "pack")
		const n = 24
		var wg sync.WaitGroup
		for i := range n {
			target := mkdir(t, root, "target", string(rune('a'+i)))
			wg.Go(func() {
				for range 3 {
					if err := m.Mount(t.Context(), f.image, f.pack, target); err != nil {
						t.Error(err)
						return
					}
					f.check(t, target)
					if err := m.Unmount(target); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestUnmountIsIdempotent(t *testing.T) {
	root := newRoot(t)
	m := newMounter(t, ModeAuto)
	f := newFixture(t, root, "a.erofs", "pack")
	target := mkdir(t, root, "target")
	mount(t, m, f.image, f.pack, target)
	for range 2 {
		must(t, m.Unmount(target))
	}
	must(t, m.Unmount(filepath.Join(root, "none")))
	must(t, m.Unmount(filepath.Join(root, "none", "below")))
}

func TestUnmountInUseIsFailedPrecondition(t *testing.T) {
	forEachMode(t, func(t *testing.T, m *Mounter) {
		root := newRoot(t)
		f := newFixture(t, root, "a.erofs", "pack")
		target := mkdir(t, root, "target")
		mount(t, m, f.image, f.pack, target)

		user, err := os.Open(filepath.Join(target, "packed"))
		must(t, err)
		t.Cleanup(func() { user.Close() })
		err = m.Unmount(target)
		if !errdefs.IsFailedPrecondition(err) || !errors.Is(err, unix.EBUSY) {
			t.Errorf("got %v, want FailedPrecondition and EBUSY", err)
		} else if !strings.Contains(err.Error(), target) {
			t.Errorf("error does not name %s: %v", target, err)
		}
		f.check(t, target)

		must(t, user.Close())
		must(t, m.Unmount(target))
	})
}

// What the documentation of Unmount says about overlays: a container that runs on the mount keeps its
// files when the mount is taken off, and lets go of image and loop devices when it ends.
func TestUnmountBelowOverlay(t *testing.T) {
	forEachMode(t, func(t *testing.T, m *Mounter) {
		root := newRoot(t)
		f := newFixture(t, root, "a.erofs", "pack")
		lower, merged := mkdir(t, root, "lower"), mkdir(t, root, "merged")
		mount(t, m, f.image, f.pack, lower)
		mountNew(t, "overlay", merged,
			"lowerdir="+lower+",upperdir="+mkdir(t, root, "upper")+",workdir="+mkdir(t, root, "work"))

		must(t, m.Unmount(lower))
		f.check(t, merged)
		if bound := len(loopDevices(t, root)); m.Mode() == ModeLoop && bound != 2 {
			t.Errorf("%d loop devices are bound, want 2", bound)
		}
	})
}

func TestNewChoosesMode(t *testing.T) {
	both := Capabilities{FileBacked: true, Loop: true}
	onlyFile := Capabilities{FileBacked: true, LoopReason: "no loops here"}
	onlyLoop := Capabilities{FileBackedReason: "no files here", Loop: true}
	none := Capabilities{FileBackedReason: "no files here", LoopReason: "no loops here"}
	for _, c := range []struct {
		caps Capabilities
		mode Mode
		want Mode // "" for an error
		is   error
		says []string
	}{
		{caps: both, mode: ModeAuto, want: ModeFile},
		{caps: both, mode: "", want: ModeFile},
		{caps: both, mode: ModeFile, want: ModeFile},
		{caps: both, mode: ModeLoop, want: ModeLoop},
		{caps: onlyFile, mode: ModeAuto, want: ModeFile},
		{caps: onlyLoop, mode: ModeAuto, want: ModeLoop},
		{caps: onlyFile, mode: ModeLoop, is: errdefs.ErrFailedPrecondition, says: []string{`"loop"`, "no loops here", `"auto"`}},
		{caps: onlyLoop, mode: ModeFile, is: errdefs.ErrFailedPrecondition, says: []string{`"file"`, "no files here", `"auto"`}},
		{caps: none, mode: ModeAuto, is: errdefs.ErrFailedPrecondition, says: []string{"no files here", "no loops here"}},
		{caps: both, mode: "fuse", is: errdefs.ErrInvalidArgument, says: []string{`"fuse"`, `"auto"`, `"file"`, `"loop"`}},
	} {
		m, err := New(c.caps, c.mode)
		if c.want != "" {
			if err != nil || m.Mode() != c.want {
				t.Errorf("New(%+v, %q): got %+v, %v, want mode %q", c.caps, c.mode, m, err, c.want)
			}
			continue
		}
		if !errors.Is(err, c.is) {
			t.Errorf("New(%+v, %q): got %v, want %v", c.caps, c.mode, err, c.is)
			continue
		}
		for _, text := range c.says {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("New(%+v, %q): error lacks %q: %v", c.caps, c.mode, text, err)
			}
		}
	}
}
