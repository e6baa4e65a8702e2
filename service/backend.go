// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"

	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/snapshotter"
)

// OpenSnapshotter is the OpenFunc of package snapshotter.
func OpenSnapshotter(ctx context.Context, cfg Config, blobs Blobs, committed func(name string)) (Backend, error) {
	compression, err := snapshotter.ParseCompression(cfg.Compression)
	if err != nil {
		return nil, err
	}
	s, err := snapshotter.New(ctx, snapshotter.Config{
		Root:        cfg.Root,
		State:       cfg.State,
		Mount:       mounts.Mode(cfg.Mount),
		Durability:  snapshotter.Durability(cfg.Durability),
		Shadowed:    snapshotter.Shadowed(cfg.Shadowed),
		Compression: compression,
		Content:     blobs,
		OnCommit:    committed,
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}
