// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/failpoint"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"golang.org/x/sys/unix"
)

// adoptMounts keeps the mounts that show files of this store, and takes away
// those that show something else: the root may have been emptied, while the
// mounts of its old images were still there.
func (s *Snapshotter) adoptMounts(ctx context.Context) error {
	mounted, err := mounts.Mounted(s.state)
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	for target, m := range mounted {
		name := filepath.Base(target)
		want := s.skeleton(name)
		if i, err := parseImageName(name); err == nil && filepath.Dir(target) == s.imageMounts() {
			want = s.image(i)
		}
		if exists(want) && m.Shows(want) {
			continue
		}
		// Containers that still use it keep it; nobody new finds it.
		if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s, whose image is gone: %w", target, err)
		}
		failpoint.Hit("mount.remove")
		log.G(ctx).WithFields(log.Fields{"target": target, "image": m.Image}).Warn("unmounted an image that is not of this store")
	}
	// Mount points without a mount are left from a crash between the two.
	for _, dir := range []string{s.imageMounts(), s.skeletonMounts()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if path := filepath.Join(dir, e.Name()); !isErofs(path) {
				if err := os.Remove(path); err != nil {
					return err
				}
				failpoint.Hit("mountpoint.remove")
			}
		}
	}
	return nil
}

// probeOverlay makes sure that snapshots can be upper directories of overlayfs,
// which containers would otherwise be the first to find out.
func (s *Snapshotter) probeOverlay() error {
	dir, err := os.MkdirTemp(s.snapshotsDir(), newPrefix)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"fs", "work", "lower", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	merged := filepath.Join(dir, "merged")
	options := fmt.Sprintf("index=off,metacopy=off,redirect_dir=off,workdir=%[1]s/work,upperdir=%[1]s/fs,lowerdir=%[1]s/lower", dir)
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return fmt.Errorf("overlayfs does not take directories below %s as upper ones (%w): let root be on a local disk file system such as ext4, or xfs with ftype=1, and not on overlayfs: %w", s.root, err, errdefs.ErrFailedPrecondition)
	}
	return unix.Unmount(merged, unix.MNT_DETACH)
}
