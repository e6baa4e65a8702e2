// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/failpoint"
	"github.com/squash-snapshotter/squash/internal/flatten"
)

// Prepare makes an active snapshot. For the unpacking of a layer it returns
// one overlay with an upper directory, whatever lies below; otherwise an
// overlay over what shows the parent, or a bind of an empty directory.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) (_ []mount.Mount, err error) {
	defer s.blameDisk(&err)
	return s.create(ctx, snapshots.KindActive, key, parent, opts)
}

// View makes a read-only snapshot: a bind of the parent's flat image, or a
// read-only overlay of a chain that was committed just now.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) (_ []mount.Mount, err error) {
	defer s.blameDisk(&err)
	return s.create(ctx, snapshots.KindView, key, parent, opts)
}

// Mounts returns the mounts of an active snapshot or view again, and makes
// what they need anew if a reboot took it away.
func (s *Snapshotter) Mounts(ctx context.Context, key string) (_ []mount.Mount, err error) {
	defer s.blameDisk(&err)
	var snap storage.Snapshot
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		snap, err = storage.GetSnapshot(ctx, key)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("mounts of %s: %w", key, err)
	}
	m, err := s.mountsOf(ctx, snap)
	if err != nil {
		return nil, fmt.Errorf("mounts of %s: %w", key, err)
	}
	return m, nil
}

// isExtract tells whether a key is that of a layer being unpacked: containerd
// passes <namespace>/<number>/<client's key>, direct callers the last alone.
func isExtract(key string) bool {
	if parts := strings.SplitN(key, "/", 3); len(parts) == 3 {
		key = parts[2]
	}
	return strings.HasPrefix(key, snapshots.UnpackKeyPrefix+"-")
}

func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) (_ []mount.Mount, err error) {
	extract := kind == snapshots.KindActive && isExtract(key)
	if extract && s.cfg.ContainerdVersion != nil {
		m, err := s.reuse(ctx, key, parent, opts)
		if m != nil || errdefs.IsAlreadyExists(err) {
			return m, err
		}
		if err != nil {
			log.G(ctx).WithError(err).WithField("key", key).Warn("a layer that is there cannot be reused; it is unpacked as usual")
		}
	}
	lower, release, err := s.parentRoot(ctx, key, parent, extract)
	if err != nil {
		return nil, err
	}
	defer release()
	dir, err := s.newDirectory(kind, extract, lower)
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", key, err)
	}
	snap, err := s.nameDirectory(ctx, dir, kind, key, parent, opts)
	if err != nil {
		s.askCollect() // the parent may have been removed since its flat image was made
		if err := os.RemoveAll(dir); err != nil {
			log.G(ctx).WithError(err).WithField("path", dir).Warn("could not remove the directory of a failed snapshot; the next start does")
		}
		return nil, fmt.Errorf("create snapshot %s: %w", key, err)
	}
	m, err := s.mountsOf(ctx, snap)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create snapshot %s: %w", key, err), s.Remove(context.WithoutCancel(ctx), key))
	}
	return m, nil
}

// parentRoot makes sure, before anything is created, that the parent can be
// shown, and returns the directory that shows it. Unpacking needs no more of
// it than a skeleton, so for that it is "". What shows it stays until release.
func (s *Snapshotter) parentRoot(ctx context.Context, key, parent string, extract bool) (root string, release func(), err error) {
	if parent == "" || extract {
		return "", func() {}, nil
	}
	var ids []string
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		if _, _, _, err := storage.GetInfo(ctx, key); err == nil {
			return fmt.Errorf("create snapshot %s: %w", key, errdefs.ErrAlreadyExists)
		}
		if ids, err = committedChain(ctx, parent); err != nil {
			return fmt.Errorf("parent %s: %w", parent, err)
		}
		return nil
	})
	if err != nil {
		return "", nil, err
	}
	lowers, release, err := s.lowers(ctx, ids)
	if err != nil {
		return "", nil, fmt.Errorf("flatten %s: %w", parent, err)
	}
	return lowers[0], release, nil
}

// newDirectory makes the files of a snapshot under a temporary name.
func (s *Snapshotter) newDirectory(kind snapshots.Kind, extract bool, lower string) (dir string, err error) {
	if dir, err = os.MkdirTemp(s.snapshotsDir(), newPrefix); err != nil {
		return "", err
	}
	failpoint.Hit("snapshot.mkdir")
	defer func(made string) { // returning an error empties dir
		if err != nil {
			os.RemoveAll(made)
		}
	}(dir)
	// overlayfs shows the upper directory's own metadata as the root's.
	mode, uid, gid := os.FileMode(0o755), 0, 0
	if lower != "" {
		st, err := os.Stat(lower)
		if err != nil {
			return "", err
		}
		sys := st.Sys().(*syscall.Stat_t)
		mode, uid, gid = st.Mode(), int(sys.Uid), int(sys.Gid)
	}
	fs := filepath.Join(dir, "fs")
	if err := os.Mkdir(fs, 0o755); err != nil {
		return "", err
	}
	if err := errors.Join(os.Chown(fs, uid, gid), os.Chmod(fs, mode)); err != nil {
		return "", err
	}
	if kind != snapshots.KindActive {
		return dir, nil
	}
	if err := os.Mkdir(filepath.Join(dir, "work"), 0o711); err != nil {
		return "", err
	}
	if extract {
		err = errors.Join(os.Mkdir(filepath.Join(dir, "lower"), 0o755), os.WriteFile(filepath.Join(dir, "extract"), nil, 0o600))
	}
	failpoint.Hit("snapshot.fill")
	return dir, err
}

// nameDirectory makes a snapshot and gives it its directory. If that fails the
// directory has its old name again before anybody else sees it: the ID is going
// to be the next snapshot's.
func (s *Snapshotter) nameDirectory(ctx context.Context, dir string, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) (snap storage.Snapshot, err error) {
	s.naming.Lock()
	defer s.naming.Unlock()
	named := false
	err = s.update(ctx, func(ctx context.Context) (err error) {
		if snap, err = storage.CreateSnapshot(ctx, kind, key, parent, opts...); err != nil {
			return err
		}
		err = os.Rename(dir, s.snapshot(snap.ID))
		named = err == nil
		return err
	})
	if err != nil && named {
		err = errors.Join(err, os.Rename(s.snapshot(snap.ID), dir))
	}
	return snap, err
}

// newPrefix is the beginning of a directory that has no ID yet.
const newPrefix = "new-"

// mountsOf makes what a snapshot's mounts need and describes them.
//
// Nothing that an unpack gets may look read-only: containerd takes that for a
// layer which needs no unpacking.
func (s *Snapshotter) mountsOf(ctx context.Context, snap storage.Snapshot) ([]mount.Mount, error) {
	ids := slices.Clone(snap.ParentIDs)
	slices.Reverse(ids)
	if snap.Kind == snapshots.KindActive && exists(s.stagedMark(snap.ID)) {
		// This one has to look read-only.
		return []mount.Mount{{Type: "bind", Source: s.upper(snap.ID), Options: []string{"ro", "rbind"}}}, nil
	}
	if snap.Kind == snapshots.KindActive && exists(s.extractMark(snap.ID)) {
		lower, err := s.skeletonFor(ctx, snap.ID, ids)
		if err != nil {
			return nil, err
		}
		return s.overlay(snap.ID, lower), nil
	}
	if len(ids) == 0 {
		access := "rw"
		if snap.Kind == snapshots.KindView {
			access = "ro"
		}
		return []mount.Mount{{Type: "bind", Source: s.upper(snap.ID), Options: []string{access, "rbind"}}}, nil
	}
	lowers, release, err := s.lowers(ctx, ids)
	if err != nil {
		return nil, err
	}
	defer release()
	switch {
	case snap.Kind != snapshots.KindView:
		return s.overlay(snap.ID, strings.Join(lowers, ":")), nil
	case len(lowers) > 1: // overlayfs needs no upper directory then
		return []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{
			"ro", "index=off", "metacopy=off", "redirect_dir=off", "lowerdir=" + strings.Join(lowers, ":"),
		}}}, nil
	}
	return []mount.Mount{{Type: "bind", Source: lowers[0], Options: []string{"ro", "rbind"}}}, nil
}

// overlay describes the one form of overlay mount that every client takes
// apart in the same way. Redirects and metadata-only copies are switched off:
// an upper directory must say by itself what its layer changes.
func (s *Snapshotter) overlay(id, lower string) []mount.Mount {
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{
		"index=off", "metacopy=off", "redirect_dir=off",
		"workdir=" + s.workdir(id), "upperdir=" + s.upper(id), "lowerdir=" + lower,
	}}}
}

// skeletonFor returns a directory with the parents' directories. Whoever
// unpacks through the mount copies from there the metadata of directories that
// the layer implies; our own differ does not look at it.
func (s *Snapshotter) skeletonFor(ctx context.Context, id string, parents []string) (string, error) {
	if len(parents) == 0 {
		return s.emptyLower(id), nil
	}
	target := s.skeletonMount(id)
	if isErofs(target) {
		return filepath.Join(target, flatten.RootName), nil
	}
	err := s.once(ctx, "skeleton "+id, func(ctx context.Context) error {
		if isErofs(target) {
			return nil
		}
		for _, p := range parents {
			if _, err := s.summary(ctx, p); err != nil {
				return err
			}
		}
		tree, err := s.merge(ctx, parents)
		if err != nil {
			return err
		}
		err = writeFile(s.skeleton(id), false, func(w io.Writer) error {
			b := bufio.NewWriterSize(w, 1<<20)
			return errors.Join(tree.WriteSkeleton(ctx, b), b.Flush())
		})
		if err != nil {
			return err
		}
		return s.mount(ctx, s.skeleton(id), "", target)
	})
	if err != nil {
		return "", fmt.Errorf("directories of the layers below: %w", err)
	}
	return filepath.Join(target, flatten.RootName), nil
}

// dropSkeleton removes the skeleton's mount. What is busy stays for the next
// collection.
func (s *Snapshotter) dropSkeleton(id string) error {
	target := s.skeletonMount(id)
	if !exists(target) {
		return nil // most snapshots have none
	}
	if err := s.mounter.Unmount(target); err != nil {
		return err
	}
	failpoint.Hit("mount.remove")
	if err := removeIfThere(target); err != nil {
		return err
	}
	failpoint.Hit("mountpoint.remove")
	return nil
}
