// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"

	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/snapshotter"
)

// OpenSnapshotter is the OpenFunc of package snapshotter.
func OpenSnapshotter(ctx context.Context, cfg Config, containerd Containerd, committed func(name string)) (Backend, error) {
	compression, err := snapshotter.ParseCompression(cfg.Compression)
	if err != nil {
		return nil, err
	}
	config := snapshotter.Config{
		Root:        cfg.Root,
		State:       cfg.State,
		Mount:       mounts.Mode(cfg.Mount),
		Durability:  snapshotter.Durability(cfg.Durability),
		Shadowed:    snapshotter.Shadowed(cfg.Shadowed),
		Compression: compression,
		Content:     containerd,
		Store:       containerd.Store(),
		OnCommit:    committed,
	}
	if cfg.ReuseLayers {
		config.ContainerdVersion = containerd.Version
	}
	s, err := snapshotter.New(ctx, config)
	if err != nil {
		return nil, err
	}
	return s, nil
}
