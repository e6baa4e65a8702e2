// SPDX-License-Identifier: Apache-2.0

package mounts

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/squash-snapshotter/squash/internal/erofs"
)

// The pack's pages stay out of the page cache with direct I/O, and only then.
func TestDirectIOReadsPastThePageCache(t *testing.T) {
	root := newRoot(t)
	caps, err := Probe(t.Context(), root)
	must(t, err)
	f := newFixture(t, root, "a.erofs", "pack")
	for name, opts := range map[string][]Option{"buffered": nil, "direct": {DirectIO()}} {
		t.Run(name, func(t *testing.T) {
			direct := len(opts) > 0
			m, err := New(caps, ModeFile, opts...)
			must(t, err)
			target := mkdir(t, root, name)
			mount(t, m, f.image, f.pack, target)
			infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(target))
			must(t, err)
			if got := strings.Contains(infos[0].VFSOptions, "directio"); got != direct {
				t.Errorf("mount options are %s", infos[0].VFSOptions)
			}

			forgetPages(t, f.pack)
			f.check(t, target)
			if got := cachedPages(t, f.pack); got > 0 == direct {
				t.Errorf("%d pages of the pack are cached after a read", got)
			}
		})
	}
}

// Loop devices read their files directly in any case.
func TestDirectIOChangesNothingInLoopMode(t *testing.T) {
	root := newRoot(t)
	m, err := New(Capabilities{Loop: true}, ModeAuto, DirectIO())
	must(t, err)
	f := newFixture(t, root, "a.erofs", "pack")
	target := mkdir(t, root, "target")
	mount(t, m, f.image, f.pack, target)
	f.check(t, target)
}

func TestDirectIOThatTheKernelLacksIsRefused(t *testing.T) {
	caps := Capabilities{FileBacked: true, DirectIOReason: "it is too old"}
	for _, mode := range []Mode{ModeFile, ModeAuto} {
		if _, err := New(caps, mode, DirectIO()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), caps.DirectIOReason) {
			t.Errorf("mode %s: got %v, want FailedPrecondition with the reason", mode, err)
		}
		if _, err := New(caps, mode); err != nil {
			t.Errorf("mode %s without the option: %v", mode, err)
		}
	}
}

// forgetPages writes a file back and drops its pages from the page cache.
func forgetPages(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	must(t, f.Sync())
	must(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	if n := cachedPages(t, path); n > 0 {
		t.Fatalf("%d pages of %s stay cached", n, filepath.Base(path))
	}
}

// cachedPages is the number of pages of a file in the page cache.
func cachedPages(t *testing.T, path string) (n int) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	info, err := f.Stat()
	must(t, err)
	pages := (int(info.Size()) + erofs.BlockSize - 1) / erofs.BlockSize
	mapped, err := unix.Mmap(int(f.Fd()), 0, pages*erofs.BlockSize, unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(mapped)
	resident, err := mincore(mapped, pages)
	must(t, err)
	for _, b := range resident {
		n += int(b & 1)
	}
	return n
}

func mincore(mapped []byte, pages int) ([]byte, error) {
	resident := make([]byte, pages)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mapped[0])), uintptr(len(mapped)), uintptr(unsafe.Pointer(&resident[0])))
	if errno != 0 {
		return nil, errno
	}
	return resident, nil
}
