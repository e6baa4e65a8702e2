// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/squash-snapshotter/squash/internal/flatten"
)

// Flatten makes sure that a committed snapshot's flat image exists and is
// mounted. ErrNotFound, ErrInvalidArgument: no committed snapshot has the name.
func (s *Snapshotter) Flatten(ctx context.Context, name string) (err error) {
	defer s.blameDisk(&err)
	ids, err := s.readChain(ctx, name)
	if err != nil {
		return fmt.Errorf("flatten %s: %w", name, err)
	}
	if _, err := s.flat(ctx, ids); err != nil {
		return fmt.Errorf("flatten %s: %w", name, err)
	}
	if err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, _, _, err := storage.GetInfo(ctx, name)
		return err
	}); err != nil {
		s.askSweep() // removed meanwhile
	}
	return nil
}

// flat returns the directory that shows the chain of the committed snapshots
// ids, the bottom one first, as one image.
func (s *Snapshotter) flat(ctx context.Context, ids []string) (string, error) {
	tocs, err := s.summaries(ctx, ids)
	if err != nil {
		return "", err
	}
	return s.flatRoot(ctx, chainOf(tocs), ids)
}

// flatRoot is flat for layers whose chain is known.
func (s *Snapshotter) flatRoot(ctx context.Context, c chain, ids []string) (string, error) {
	return s.shown(ctx, flatImage(c), ids, func(ctx context.Context) (*flatten.Tree, error) { return s.merge(ctx, ids) })
}
