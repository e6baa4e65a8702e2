// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
	"github.com/squash-snapshotter/squash/snapshotter"
)

// Housekeeper is what a Backend may be as well: one that can tell what takes up its space, and give some back.
type Housekeeper interface {
	DiskUsage(ctx context.Context) (snapshotter.DiskUsage, error)
	Collect(ctx context.Context, dryRun bool) (snapshotter.Collection, error)
}

var _ Housekeeper = (*snapshotter.Snapshotter)(nil)

func (a *adminServer) housekeeper() (Housekeeper, error) {
	h, ok := a.backend.(Housekeeper)
	if !ok {
		return nil, fmt.Errorf("this snapshotter cannot tell what takes up its space: %w", errdefs.ErrNotImplemented)
	}
	return h, nil
}

// DiskUsage tells what takes up the space of the root.
func (a *adminServer) DiskUsage(ctx context.Context, _ *adminapi.DiskUsageRequest) (*adminapi.DiskUsageResponse, error) {
	keeper, err := a.housekeeper()
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	ctx, done := a.whileServing(ctx)
	defer done()
	u, err := keeper.DiskUsage(ctx)
	if err != nil {
		return nil, errgrpc.ToGRPC(whyEnded(ctx, err))
	}
	reply := &adminapi.DiskUsageResponse{
		Root:            valid(u.Root),
		FilesystemBytes: u.FileSystem,
		FreeBytes:       u.Free,
		Bytes:           u.Bytes,
		Parts:           partMessages(u.Parts),
		Contents:        partMessages(u.Contents),
		LayerBytes:      u.LayerBytes,
	}
	for _, e := range u.Encodings {
		reply.Encodings = append(reply.Encodings, &adminapi.EncodingUsage{Encoding: e.Encoding, Contents: e.Contents, Bytes: e.Bytes, StoredBytes: e.Stored})
	}
	return reply, nil
}

func partMessages(parts []snapshotter.UsagePart) (messages []*adminapi.UsagePart) {
	for _, p := range parts {
		messages = append(messages, &adminapi.UsagePart{Name: p.Name, Count: p.Count, Bytes: p.Bytes, What: valid(p.What)})
	}
	return messages
}

// Collect removes what nobody needs, or tells what it would remove.
func (a *adminServer) Collect(ctx context.Context, req *adminapi.CollectRequest) (*adminapi.CollectResponse, error) {
	keeper, err := a.housekeeper()
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	start := time.Now()
	ctx, done := a.whileServing(ctx)
	defer done()
	c, err := keeper.Collect(ctx, req.DryRun)
	if err != nil {
		return nil, errgrpc.ToGRPC(whyEnded(ctx, err))
	}
	if !req.DryRun {
		log.G(ctx).WithFields(log.Fields{
			"bytes": c.Bytes(), "removed": len(c.Garbage), "kept": len(c.Kept), "duration": time.Since(start).Round(time.Millisecond),
		}).Info("collection that was asked for is done")
	}
	return &adminapi.CollectResponse{Garbage: garbageMessages(c.Garbage), Bytes: c.Bytes(), Kept: garbageMessages(c.Kept)}, nil
}

func garbageMessages(garbage []snapshotter.Garbage) (messages []*adminapi.Garbage) {
	for _, g := range garbage {
		messages = append(messages, &adminapi.Garbage{Kind: g.Kind, Object: valid(g.Object), Why: valid(g.Why), Count: g.Count, Bytes: g.Bytes})
	}
	return messages
}
