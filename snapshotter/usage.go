// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/continuity/fs"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/pack"
)

// Usage tells what a snapshot takes up by itself. An active one counts its
// upper directory. Of committed ones each counts the contents that are in the
// pack and that no older snapshot refers to, its TOC, and the images of its chain
// if no older snapshot has the same one: together they count every block once.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	var id string
	var info snapshots.Info
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		id, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil {
		return snapshots.Usage{}, err
	}
	var used snapshots.Usage
	if info.Kind == snapshots.KindCommitted {
		if used, err = s.committedUsage(ctx, id); err != nil {
			return snapshots.Usage{}, fmt.Errorf("usage of %s: %w", key, err)
		}
	}
	if !exists(s.upper(id)) {
		return used, nil
	}
	du, err := fs.DiskUsage(ctx, s.upper(id))
	if err != nil && !(info.Kind == snapshots.KindCommitted && os.IsNotExist(err)) { // taken in just now
		return snapshots.Usage{}, fmt.Errorf("usage of %s: %w", key, err)
	}
	used.Add(snapshots.Usage(du))
	return used, nil
}

// usages are the committed snapshots' usages as of some state of the store.
// They are made for all at once, since what one counts depends on the others.
type usages struct {
	mu    sync.Mutex
	valid bool
	state uint64 // Snapshotter.changed
	byID  map[string]snapshots.Usage
}

func (s *Snapshotter) committedUsage(ctx context.Context, id string) (snapshots.Usage, error) {
	u := &s.usages
	u.mu.Lock()
	defer u.mu.Unlock()
	if state := s.changed.Load(); !u.valid || u.state != state {
		byID, err := s.countUsages(ctx)
		if err != nil {
			return snapshots.Usage{}, err
		}
		u.byID, u.state, u.valid = byID, state, true
	}
	return u.byID[id], nil
}

// countUsages reads the TOCs, the oldest snapshot first.
func (s *Snapshotter) countUsages(ctx context.Context) (map[string]snapshots.Usage, error) {
	ids, err := s.readKnown(ctx)
	if err != nil {
		return nil, err
	}
	var committed []string
	for id, info := range ids {
		if info.Kind == snapshots.KindCommitted {
			committed = append(committed, id)
		}
	}
	slices.SortFunc(committed, func(a, b string) int { return cmp.Compare(age(a), age(b)) })
	chains := s.chains(ids)
	byID := map[string]snapshots.Usage{}
	counted := s.pack.Counter()
	images, err := s.imageFiles()
	if err != nil {
		return nil, err
	}
	imagesOf := map[chain][]imageName{} // whose oldest snapshot has not been met
	for _, i := range images {
		imagesOf[i.chain] = append(imagesOf[i.chain], i)
	}
	files := fileCounter{}
	for _, id := range committed {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		u := files.count(s.toc(id), s.source(id), s.layer(id))
		err := s.eachContent(id, func(d layer.Digest) error {
			u.Size += counted.Count(pack.Digest(d))
			return nil
		})
		if err != nil && !os.IsNotExist(err) && !errors.Is(err, layer.ErrDamaged) { // damaged: as far as it could be read
			return nil, err
		}
		if c := chainOf(chains[id]); chains[id] != nil {
			for _, i := range imagesOf[c] {
				u.Add(files.count(s.image(i), s.refs(i)))
			}
			delete(imagesOf, c)
		}
		byID[id] = u
	}
	return byID, nil
}

// age orders snapshots: the metastore counts them.
func age(id string) uint64 {
	n, _ := strconv.ParseUint(id, 10, 64)
	return n
}

// fileCounter counts what files take up, each inode once: layers that are the
// same share their TOC.
type fileCounter map[uint64]bool

// count adds files up; those that are not there count nothing.
func (f fileCounter) count(paths ...string) (u snapshots.Usage) {
	for _, path := range paths {
		var st syscall.Stat_t
		if syscall.Lstat(path, &st) == nil && !f[st.Ino] {
			f[st.Ino] = true
			u.Inodes++
			u.Size += st.Blocks * 512
		}
	}
	return u
}
