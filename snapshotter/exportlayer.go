// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"fmt"
	"io"

	"github.com/squash-snapshotter/squash/internal/flatten"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/pack"
)

// ExportLayer writes what a container sees of a committed snapshot as one
// layer, an uncompressed tar: the root first, then names in byte order, each
// content compared with its digest on the way. The same layers give the same
// bytes, whatever else the node holds. progress is told bytes of files.
//
// ErrFailedPrecondition, saying what helps: contents were freed, and the blob
// from which they come back is gone. ErrDataLoss: a content has other bytes than
// its digest says.
func (s *Snapshotter) ExportLayer(ctx context.Context, name string, w io.Writer, progress func(done, total uint64)) (layer.TarStats, error) {
	ids, err := s.readChain(ctx, name)
	if err != nil {
		return layer.TarStats{}, fmt.Errorf("export %s: %w", name, err)
	}
	tree, err := s.merge(ctx, ids)
	if err != nil {
		return layer.TarStats{}, fmt.Errorf("export %s: %w", name, err)
	}
	// What is read must not be freed or moved meanwhile.
	pins := s.pack.Begin()
	defer s.askSweep() // what was brought back may be needed no more
	defer pins.Close()
	places, err := s.locate(ctx, tree, ids, pins)
	if err != nil {
		return layer.TarStats{}, fmt.Errorf("export %s: %w", name, err)
	}
	var done, total uint64
	for _, p := range places {
		total += p.Size
	}
	reader := s.pack.Verifier(nil)
	defer reader.Close()
	tw := layer.NewImageWriter(w)
	err = tree.Walk(ctx, func(h *flatten.PathHistory) error {
		v := h.Visible()
		if v == nil {
			return nil
		}
		e := v.Entry
		if v.SameAs != "" {
			e.Type, e.Target = layer.TypeHardlink, v.SameAs
		}
		return tw.Add(&e, func(w io.Writer) error {
			if e.Size <= layer.InlineMax {
				_, err := w.Write(e.Inline)
				return err
			}
			done += uint64(e.Size)
			progress(done, max(done, total)) // a content under several names counts again
			return reader.Copy(ctx, w, pack.Digest(e.Digest), places[e.Digest])
		})
	})
	if err == nil {
		err = tw.Close()
	}
	if err != nil {
		return layer.TarStats{}, fmt.Errorf("export %s: %w", name, err)
	}
	return tw.Stats(), nil
}
