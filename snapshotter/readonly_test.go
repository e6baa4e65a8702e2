// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/treetest"
	"golang.org/x/sys/unix"
)

// clearlyReadOnly tells what an error lacks that a read-only disk caused.
func clearlyReadOnly(err error, root string) error {
	if !errors.Is(err, unix.EROFS) || !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), root) || !strings.Contains(err.Error(), "mount it writable") {
		return err
	}
	return nil
}

// An error of the disk makes ext4 read-only under the daemon, with files open
// for writing: what needs no writing goes on, all else says what is wrong.
func TestADiskThatBecomesReadOnly(t *testing.T) {
	t.Parallel()
	s := newFullStore(t, nil, nil)
	ctx := context.Background()
	top := fullImage(0).names("ns/0")[1]
	extract, err := s.Prepare(ctx, "ns/1/extract-x", "")
	must(t, err)
	// Beyond any that is left to another test: the kernel refuses all writing.
	must(t, os.WriteFile(filepath.Join("/sys/fs/ext4", s.disk.device, "trigger_fs_error"), []byte("1"), 0))

	s.serves()
	must(t, s.Flatten(ctx, top))
	for what, err := range map[string]error{
		"Prepare":               second(s.Prepare(ctx, "ns/2/container", top)),
		"Prepare for an unpack": second(s.Prepare(ctx, "ns/2/extract-y", "")),
		"View":                  second(s.View(ctx, "ns/2/view", top)),
		"Apply":                 second(s.Apply(ctx, s.blobs.add(fullImage(1)[0]), extract)),
		"Commit":                s.Commit(ctx, "ns/2/committed", "ns/1/extract-x"),
		"Remove":                s.Remove(ctx, "ns/1/extract-x"),
	} {
		if err == nil || clearlyReadOnly(err, s.cfg.Root) != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := len(s.all()); n != 4 {
		t.Errorf("%d snapshots are listed", n)
	}
	if findings, _ := s.checked(CheckOptions{}); len(findings) > 0 {
		t.Errorf("check: %+v", findings)
	}

	// The daemon is stopped, the disk mounted again.
	if err := clearlyReadOnly(s.Snapshotter.Close(), s.cfg.Root); err != nil {
		t.Errorf("Close: %v", err)
	}
	s.Snapshotter = nil
	must(t, mount.UnmountAll(s.root, 0))
	for _, m := range mountsBelow(t, s.cfg.State) {
		must(t, unmount(m.Mountpoint))
	}
	s.disk.unmount()
	s.disk.mount()
	s.open()
	root, undo := s.view(s.pull("ns/3", fullImage(3)))
	treetest.Check(t, fullImage(3), root, treetest.Options{})
	undo()
	s.removeAll()
	must(t, s.Cleanup(ctx))
	s.expectNothingLeft()
}

func TestAStartOnAReadOnlyDisk(t *testing.T) {
	t.Parallel()
	s := newFullStore(t, nil, nil)
	must(t, mount.UnmountAll(s.root, 0))
	s.close()
	remount := func(flags uintptr) {
		waitFor(t, "the disk to be remounted", func() error { return unix.Mount("", s.disk.point, "", unix.MS_REMOUNT|flags, "") })
	}
	remount(unix.MS_RDONLY)
	opened, err := New(context.Background(), s.cfg)
	if err == nil {
		opened.Close()
		t.Fatal("it has started")
	}
	if err := clearlyReadOnly(err, s.cfg.Root); err != nil {
		t.Error(err)
	}
	remount(0)
	s.open()
	s.removeAll()
	must(t, s.Cleanup(context.Background()))
	s.expectNothingLeft()
}
