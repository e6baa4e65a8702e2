// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/pack"
)

// restore reads contents that were freed, and that a new image shows again,
// from the blobs of its layers: one pass over each layer that has any. What is
// not restored stays in missing.
//
// ErrFailedPrecondition, saying how to mend it: a blob is gone too.
func (s *Snapshotter) restore(ctx context.Context, ids []string, missing map[layer.Digest]bool, w *pack.Writer) error {
	start := time.Now()
	total, layers := len(missing), 0
	var gone error
	for _, id := range ids {
		if len(missing) == 0 {
			break
		}
		has, err := s.layerHas(id, missing)
		if err != nil {
			return fmt.Errorf("layer %s: %w", id, err)
		}
		if !has {
			continue
		}
		switch err := s.restoreLayer(ctx, id, missing, w); {
		case errdefs.IsFailedPrecondition(err):
			gone = err // another layer may have the same contents
		case err != nil:
			return fmt.Errorf("restore freed contents of layer %s: %w", id, err)
		default:
			layers++
		}
	}
	if len(missing) > 0 {
		if gone == nil {
			gone = fmt.Errorf("%d contents are lost: remove the image and pull it again: %w", len(missing), errdefs.ErrFailedPrecondition)
		}
		return gone
	}
	// The layers' durable marks speak for what they refer to.
	if err := w.Publish(true); err != nil {
		return err
	}
	st := w.Stats()
	log.G(ctx).WithFields(log.Fields{
		"contents": total, "bytes": st.NewBytes, "layers": layers, "duration": time.Since(start).Round(time.Millisecond),
	}).Info("restored contents that were freed and that a new image shows")
	return nil
}

// layerHas tells whether a layer refers to one of the contents.
func (s *Snapshotter) layerHas(id string, contents map[layer.Digest]bool) (has bool, err error) {
	err = s.eachContent(id, func(d layer.Digest) error {
		if contents[d] {
			has = true
			return io.EOF
		}
		return nil
	})
	if err == io.EOF {
		err = nil
	}
	return has, err
}

// eachContent calls f for the contents that a layer's TOC refers to, in order.
func (s *Snapshotter) eachContent(id string, f func(layer.Digest) error) error {
	c, err := s.openContents(id)
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		d, err := c.next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = f(d)
		}
		if err != nil {
			return err
		}
	}
}

// contents reads the digests of a TOC.
type contents struct {
	file *os.File
	toc  *layer.Reader
}

func (s *Snapshotter) openContents(id string) (*contents, error) {
	f, err := os.Open(s.toc(id))
	if err != nil {
		return nil, err
	}
	r, err := layer.NewReader(bufio.NewReaderSize(f, 256<<10))
	if err != nil {
		f.Close()
		return nil, err
	}
	return &contents{f, r}, nil
}

// next returns the next digest; io.EOF behind the last one.
func (c *contents) next() (layer.Digest, error) {
	var e layer.Entry
	for {
		if err := c.toc.Next(&e); err != nil {
			return layer.Digest{}, err
		}
		if e.Type == layer.TypeReg && e.Size > layer.InlineMax {
			return e.Digest, nil
		}
	}
}

func (c *contents) Close() {
	c.toc.Close()
	c.file.Close()
}

// restoreLayer reads a layer's blob once and stores what is missing.
func (s *Snapshotter) restoreLayer(ctx context.Context, id string, missing map[layer.Digest]bool, w *pack.Writer) error {
	return s.refillLayer(ctx, id, missing, func(r io.Reader, size int64, want layer.Digest) error {
		got, err := w.Put(r, size)
		if err == nil && layer.Digest(got) != want {
			err = fmt.Errorf("the blob holds content sha256:%x where the layer had sha256:%x: %w", got[:], want[:], errdefs.ErrDataLoss)
		}
		return err
	})
}

// refillLayer reads a layer's blob once and hands what is missing to put, which
// refuses other bytes than those wanted.
func (s *Snapshotter) refillLayer(ctx context.Context, id string, missing map[layer.Digest]bool, put func(r io.Reader, size int64, want layer.Digest) error) error {
	src, err := s.readSource(id)
	if err != nil || s.cfg.Content == nil {
		return fmt.Errorf("contents of layer %s are lost and it has no blob: remove the image and pull it again: %w", id, errdefs.ErrFailedPrecondition)
	}
	stream, err := s.openSource(ctx, id, src)
	if err != nil {
		return err
	}
	defer stream.Close()
	order, err := s.openContents(id)
	if err != nil {
		return err
	}
	defer order.Close()
	toc, err := layer.NewWriter(io.Discard)
	if err != nil {
		return err
	}
	return layer.FromTar(ctx, stream, toc, &refill{order, missing, put})
}

// refill is the store of a layer that is read again: the TOC says which content
// comes next, so only what is missing is read at all.
type refill struct {
	order   *contents
	missing map[layer.Digest]bool
	put     func(r io.Reader, size int64, want layer.Digest) error
}

// Put implements layer.ContentStore.
func (f *refill) Put(r io.Reader, size int64) (layer.Digest, error) {
	want, err := f.order.next()
	if err == io.EOF {
		err = fmt.Errorf("the blob has more files than the layer had: %w", errdefs.ErrDataLoss)
	}
	if err == nil && f.missing[want] {
		if err = f.put(r, size, want); err == nil {
			delete(f.missing, want)
		}
	}
	return want, err
}
