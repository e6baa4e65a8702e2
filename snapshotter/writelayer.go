// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/squash-snapshotter/squash/internal/layer"
)

// writeLayer writes a change into containerd's content store. Descriptor and
// labels are those that containerd's walking differ would give it.
func (s *Snapshotter) writeLayer(ctx context.Context, cfg diff.Config, compress compression.Compression, c change) (_ ocispec.Descriptor, err error) {
	start := time.Now()
	ref, ours := cfg.Reference, cfg.Reference == ""
	if ours {
		ref = "squash-diff-" + rand.Text()
	}
	blob, err := s.cfg.Store.Writer(ctx, content.WithRef(ref), content.WithDescriptor(ocispec.Descriptor{MediaType: cfg.MediaType}))
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("begin blob %s: %w", ref, err)
	}
	defer func() {
		blob.Close()
		if err != nil && ours {
			s.abort(ctx, ref)
		}
	}()
	if !ours {
		if err := blob.Truncate(0); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("begin blob %s anew: %w", ref, err)
		}
	}
	sum, plain := newSummer(blob), newSummer(nil)
	stats, err := writeTar(ctx, sum, plain, cfg.SourceDateEpoch, compress, c)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	set := maps.Clone(cfg.Labels)
	if compress != compression.Uncompressed {
		if set == nil {
			set = map[string]string{}
		}
		set[labels.LabelUncompressed] = plain.digest().String()
	}
	info, err := s.commitBlob(ctx, blob, sum, set)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	log.G(ctx).WithFields(log.Fields{
		"of": c.String(), "digest": info.Digest.String(), "diffID": plain.digest().String(), "entries": stats.Entries, "leftOut": stats.LeftOut,
		"bytes": plain.n, "blobBytes": info.Size, "duration": time.Since(start).Round(time.Millisecond),
	}).Info("changes written as a layer")
	return ocispec.Descriptor{MediaType: cfg.MediaType, Size: info.Size, Digest: info.Digest}, nil
}

// commitBlob makes what was written a blob. That there is one already is as
// good; it gets the label that says what it holds, if it has none.
func (s *Snapshotter) commitBlob(ctx context.Context, blob content.Writer, sum *summer, set map[string]string) (content.Info, error) {
	var opts []content.Opt
	if set != nil {
		opts = append(opts, content.WithLabels(set))
	}
	if err := blob.Commit(ctx, sum.n, sum.digest(), opts...); err != nil && !errdefs.IsAlreadyExists(err) {
		return content.Info{}, fmt.Errorf("commit blob %s: %w", sum.digest(), err)
	}
	info, err := s.cfg.Store.Info(ctx, sum.digest())
	if err != nil {
		return content.Info{}, fmt.Errorf("blob %s: %w", sum.digest(), err)
	}
	diffID, ok := set[labels.LabelUncompressed]
	if _, labelled := info.Labels[labels.LabelUncompressed]; labelled || !ok {
		return info, nil
	}
	if info.Labels == nil {
		info.Labels = map[string]string{}
	}
	info.Labels[labels.LabelUncompressed] = diffID
	if info, err = s.cfg.Store.Update(ctx, info, "labels."+labels.LabelUncompressed); err != nil {
		return content.Info{}, fmt.Errorf("label blob %s: %w", sum.digest(), err)
	}
	return info, nil
}

// abort gives up a blob that was begun, also when the caller has gone.
func (s *Snapshotter) abort(ctx context.Context, ref string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := s.cfg.Store.Abort(ctx, ref); err != nil && !errdefs.IsNotFound(err) {
		log.G(ctx).WithError(err).WithField("ref", ref).Warn("could not give up an unfinished layer; containerd does in a day")
	}
}

// writeTar writes the layer compressed to blob, and as it is to plain.
func writeTar(ctx context.Context, blob, plain io.Writer, latest *time.Time, compress compression.Compression, c change) (layer.TarStats, error) {
	// Every Write to the content store is a question and an answer.
	buffer := bufio.NewWriterSize(blob, 1<<20)
	packed, err := compression.CompressStream(buffer, compress)
	if err != nil {
		return layer.TarStats{}, fmt.Errorf("compress: %w", err)
	}
	tw := layer.NewTarWriter(io.MultiWriter(packed, plain), latest)
	if err = c.write(ctx, tw); err == nil {
		err = tw.Close()
	}
	if err = errors.Join(err, packed.Close()); err != nil {
		return layer.TarStats{}, err
	}
	if err := buffer.Flush(); err != nil {
		return layer.TarStats{}, fmt.Errorf("write blob: %w", err)
	}
	return tw.Stats(), nil
}

// summer counts and hashes what it hands on.
type summer struct {
	to  io.Writer // may be nil
	sum digest.Digester
	n   int64
}

func newSummer(to io.Writer) *summer { return &summer{to: to, sum: digest.SHA256.Digester()} }

// Write implements io.Writer.
func (s *summer) Write(p []byte) (n int, err error) {
	n = len(p)
	if s.to != nil {
		n, err = s.to.Write(p)
	}
	s.sum.Hash().Write(p[:n])
	s.n += int64(n)
	return n, err
}

func (s *summer) digest() digest.Digest { return s.sum.Digest() }
