// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/pack"
)

// packWriter lets package layer, which knows no pack, store contents in it.
type packWriter struct{ *pack.Writer }

// Put implements layer.ContentStore.
func (w *packWriter) Put(r io.Reader, size int64) (layer.Digest, error) {
	d, err := w.Writer.Put(r, size)
	return layer.Digest(d), err
}

// Stat tells about a snapshot. ErrNotFound: there is none of the name.
func (s *Snapshotter) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	return info, err
}

// Update changes the labels of a snapshot.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (updated snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) (err error) {
		updated, err = storage.UpdateInfo(ctx, info, fieldpaths...)
		return err
	})
	return updated, err
}

// Walk calls fn for every snapshot that the filters choose.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	met := false
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			met = true
			return fn(ctx, info)
		}, filters...)
	})
	if errdefs.IsNotFound(err) && !met {
		return nil // the metastore has never had a snapshot
	}
	return err
}

// Usage tells what a snapshot takes up by itself. A committed one counts the
// blocks that its layer was the first to bring to the node, and its TOC; an
// active one its upper directory.
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
	if info.Kind == snapshots.KindCommitted {
		if u, err := readUsage(s.usage(id)); err == nil || !os.IsNotExist(err) {
			return u, err
		}
	}
	if !exists(s.upper(id)) {
		return snapshots.Usage{}, nil
	}
	du, err := fs.DiskUsage(ctx, s.upper(id))
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("usage of %s: %w", key, err)
	}
	return snapshots.Usage(du), nil
}

func writeUsage(path string, u snapshots.Usage) error {
	return writeFile(path, false, func(w io.Writer) error { return json.NewEncoder(w).Encode(u) })
}

func readUsage(path string) (u snapshots.Usage, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return u, err
	}
	if err := json.Unmarshal(b, &u); err != nil {
		return u, fmt.Errorf("%s: %w", path, err)
	}
	return u, nil
}
