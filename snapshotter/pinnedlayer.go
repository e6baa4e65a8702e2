// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/pack"
)

// pinnedLayer is a committed layer all of whose contents are there and stay
// there until close. Contents are read by digest: no name of the layer is
// looked up anywhere, and what a later entry of the layer replaces is found as
// well as what replaces it.
type pinnedLayer struct {
	toc    *os.File
	pins   *pack.Writer
	places map[layer.Digest]pack.Placement
	reader *pack.Verifier
}

// pinLayer fails if a content was freed, or if the layer says what only makes
// sense together with those below it: a hardlink to one of their files.
func (s *Snapshotter) pinLayer(ctx context.Context, id string) (_ *pinnedLayer, err error) {
	toc, err := os.Open(s.toc(id))
	if err != nil {
		return nil, err
	}
	p := &pinnedLayer{toc: toc, pins: s.pack.Begin(), places: map[layer.Digest]pack.Placement{}, reader: s.pack.Verifier(nil)}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	names := map[string]struct{}{}
	return p, p.each(ctx, func(e *layer.Entry) (err error) {
		switch e.Type {
		case layer.TypeWhiteout, layer.TypeOpaque, layer.TypeDir:
			return nil
		case layer.TypeHardlink:
			if _, ok := names[e.Target]; !ok {
				return fmt.Errorf("hardlink %q to %q, which the layer does not have", e.Path, e.Target)
			}
		case layer.TypeReg:
			if _, ok := p.places[e.Digest]; !ok && e.Size > layer.InlineMax {
				if p.places[e.Digest], err = p.pins.Lookup(pack.Digest(e.Digest)); err != nil {
					return fmt.Errorf("content of %q: %w", e.Path, err)
				}
			}
		}
		names[e.Path] = struct{}{}
		return nil
	})
}

// each calls f for every entry of the TOC, which is read from its start.
func (p *pinnedLayer) each(ctx context.Context, f func(e *layer.Entry) error) error {
	if _, err := p.toc.Seek(0, io.SeekStart); err != nil {
		return err
	}
	r, err := layer.NewReader(bufio.NewReaderSize(p.toc, 256<<10))
	if err != nil {
		return err
	}
	defer r.Close()
	var e layer.Entry
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch err := r.Next(&e); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := f(&e); err != nil {
			return err
		}
	}
}

func (p *pinnedLayer) write(ctx context.Context, to *layer.TarWriter) error {
	return p.each(ctx, func(e *layer.Entry) error {
		return to.Add(e, func(w io.Writer) (err error) {
			if e.Size <= layer.InlineMax {
				_, err = w.Write(e.Inline)
				return err
			}
			return p.reader.Copy(ctx, w, pack.Digest(e.Digest), p.places[e.Digest])
		})
	})
}

// close lets sweeps have the contents again.
func (p *pinnedLayer) close() {
	p.toc.Close()
	p.reader.Close()
	p.pins.Close()
}
