// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"golang.org/x/sys/unix"
)

func parseChain(name string) (c chain, err error) {
	b, err := hex.DecodeString(name)
	if err != nil || len(b) != len(c) {
		return c, fmt.Errorf("%q is no chain", name)
	}
	return chain(b), nil
}

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
		if c, err := parseChain(name); err == nil && filepath.Dir(target) == s.flatMounts() {
			want = s.image(c)
		}
		if exists(want) && m.Shows(want) {
			continue
		}
		// Containers that still use it keep it; nobody new finds it.
		if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s, whose image is gone: %w", target, err)
		}
		log.G(ctx).WithFields(log.Fields{"target": target, "image": m.Image}).Warn("unmounted a flat image that is not of this store")
	}
	// Mount points without a mount are left from a crash between the two.
	for _, dir := range []string{s.flatMounts(), s.skeletonMounts()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if path := filepath.Join(dir, e.Name()); !isErofs(path) {
				if err := os.Remove(path); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
