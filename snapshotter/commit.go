// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/failpoint"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/pack"
)

// Commit makes an active snapshot a committed one. containerd calls it inside
// its global database transaction, so it is one small metastore update,
// whatever the size of the layer; an upper directory is taken in afterwards.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) (err error) {
	defer s.blameDisk(&err)
	var info snapshots.Info // as the client wants it
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return fmt.Errorf("commit %s: %w", key, err)
		}
	}
	var id string
	err = s.update(ctx, func(ctx context.Context) (err error) {
		if id, _, _, err = storage.GetInfo(ctx, key); err != nil {
			return err
		}
		if exists(s.toc(id)) {
			if err := s.checkUntouched(id); err != nil {
				return err
			}
		}
		_, err = storage.CommitActive(ctx, key, name, snapshots.Usage{}, opts...)
		return err
	})
	if err != nil {
		return fmt.Errorf("commit %s: %w", key, err)
	}
	s.changed.Add(1)
	extract := exists(s.extractMark(id))
	if extract && info.Parent != "" {
		s.mergeAhead(name)
	}
	s.background(func(ctx context.Context) { s.settle(ctx, name, id) })
	if extract && s.cfg.OnCommit != nil {
		s.cfg.OnCommit(name)
	}
	return nil
}

// checkUntouched refuses a layer that our differ took in and that was then
// written to through the mount: the two cannot be told from each other.
func (s *Snapshotter) checkUntouched(id string) error {
	f, err := os.Open(s.upper(id))
	if err != nil {
		return err
	}
	defer f.Close()
	if names, err := f.Readdirnames(1); len(names) > 0 {
		return fmt.Errorf("layer was applied and then changed through its mount (%s): prepare a snapshot on top of it instead: %w", names[0], errdefs.ErrFailedPrecondition)
	} else if err != io.EOF {
		return err
	}
	return nil
}

// settle does what a Commit leaves to be done: the upper directory becomes a
// TOC and goes.
func (s *Snapshotter) settle(ctx context.Context, name, id string) {
	_, err := s.summary(ctx, id)
	if _, serr := s.readSource(id); err == nil && serr != nil && !exists(s.durable(id)) {
		err = s.makeDurable(ctx, id) // nothing but the upper directory could bring it back
	}
	if err == nil {
		err = s.dropUpper(id)
	}
	if known, kerr := s.knows(ctx, id); kerr == nil && !known {
		s.askSweep() // removed meanwhile: the collection that followed may have come before the TOC
		return
	}
	if err != nil && ctx.Err() == nil {
		log.G(ctx).WithError(err).WithField("snapshot", name).Warn("could not settle a committed snapshot; it is tried again when it is used and at the next start")
	}
}

// knows tells whether there is a snapshot of an ID.
func (s *Snapshotter) knows(ctx context.Context, id string) (known bool, err error) {
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		names, err := storage.IDMap(ctx)
		_, known = names[id]
		return err
	})
	return known, err
}

// dropUpper removes the directory of a committed snapshot that has its TOC.
func (s *Snapshotter) dropUpper(id string) error {
	if err := s.dropSkeleton(id); err != nil {
		return err
	}
	if err := os.RemoveAll(s.snapshot(id)); err != nil {
		return err
	}
	failpoint.Hit("snapshot.remove")
	return nil
}

// makeTOC makes the TOC of a committed snapshot that has none, from whatever
// is left of the layer.
func (s *Snapshotter) makeTOC(ctx context.Context, id string) error {
	if exists(s.toc(id)) {
		return nil
	}
	if why, err := os.ReadFile(s.lost(id)); err == nil {
		return fmt.Errorf("layer %s was lost with a power cut (%s): remove its image and pull or build it again: %w", id, strings.TrimSpace(string(why)), errdefs.ErrFailedPrecondition)
	}
	if src, err := s.readSource(id); err == nil {
		return s.retake(ctx, id, src)
	}
	return s.convert(ctx, id)
}

// convert takes in the upper directory of a committed snapshot.
func (s *Snapshotter) convert(ctx context.Context, id string) error {
	upper := s.upper(id)
	if !exists(upper) {
		return fmt.Errorf("layer %s has neither a table of contents nor an upper directory: remove the image and pull it again: %w", id, errdefs.ErrFailedPrecondition)
	}
	start := time.Now()
	in, err := s.intake(id)
	if err != nil {
		return err
	}
	defer in.close()
	err = in.take(func(toc *layer.Writer, store layer.ContentStore) error {
		return layer.FromUpper(ctx, upper, !exists(s.extractMark(id)), toc, store)
	})
	if err == nil {
		err = in.publish(ctx)
	}
	if err != nil {
		return fmt.Errorf("take in the upper directory of layer %s: %w", id, err)
	}
	log.G(ctx).WithFields(in.fields()).WithField("duration", time.Since(start).Round(time.Millisecond)).Info("upper directory taken in")
	return nil
}

// intake is a layer on its way into the store: contents to the pack, entries
// to the TOC. It ends by close; publish makes it the layer of its snapshot.
type intake struct {
	s    *Snapshotter
	id   string
	pack *packWriter
	file *os.File // TOC under its temporary name
	sum  layer.Summary
}

func (s *Snapshotter) intake(id string) (*intake, error) {
	if err := os.MkdirAll(s.layer(id), 0o700); err != nil {
		return nil, err
	}
	failpoint.Hit("layer.mkdir")
	f, err := os.CreateTemp(s.layer(id), "toc-*"+tmpSuffix)
	if err != nil {
		os.Remove(s.layer(id)) // if there is nothing else in it
		return nil, err
	}
	failpoint.Hit("toc.create")
	return &intake{s: s, id: id, file: f, pack: &packWriter{s.pack.Begin()}}, nil
}

// take runs from with a TOC writer and a store.
func (in *intake) take(from func(*layer.Writer, layer.ContentStore) error) error {
	b := bufio.NewWriterSize(in.file, 256<<10)
	toc, err := layer.NewWriter(b)
	if err != nil {
		return err
	}
	if err := from(toc, in.pack); err != nil {
		return err
	}
	if in.sum, err = toc.Finish(); err != nil {
		return err
	}
	if err := b.Flush(); err != nil {
		return err
	}
	failpoint.Hit("toc.write")
	return nil
}

// publish makes contents and TOC visible, in this order.
func (in *intake) publish(ctx context.Context) error {
	s, sync := in.s, in.s.cfg.Durability == DurabilitySync
	if err := in.pack.Publish(sync); err != nil {
		return err
	}
	if sync {
		if err := in.file.Sync(); err != nil {
			return err
		}
	}
	if err := os.Rename(in.file.Name(), s.toc(in.id)); err != nil {
		return err
	}
	failpoint.Hit("toc.rename")
	s.changed.Add(1)
	if sync {
		return s.markDurable(in.id)
	}
	s.background(func(ctx context.Context) { _ = s.makeDurable(ctx, in.id) })
	return nil
}

// makeDurable syncs a layer that is in use already. If it cannot, that is
// logged: after a power cut the layer will have to be verified.
func (s *Snapshotter) makeDurable(ctx context.Context, id string) error {
	err := s.pack.Sync()
	if err == nil {
		err = syncFile(s.toc(id))
	}
	if err == nil {
		err = s.markDurable(id)
	}
	if err != nil && !os.IsNotExist(err) && ctx.Err() == nil {
		log.G(ctx).WithError(err).WithField("layer", id).Error("could not make a layer durable: after a power cut it will have to be verified")
	}
	return err
}

// markDurable notes that all of a layer is on the disk, and syncs the note.
func (s *Snapshotter) markDurable(id string) error {
	if err := errors.Join(syncDir(s.layer(id)), syncDir(s.layersDir())); err != nil {
		return err
	}
	if err := os.WriteFile(s.durable(id), nil, 0o600); err != nil {
		return err
	}
	failpoint.Hit("durable.create")
	return syncDir(s.layer(id))
}

// packWriter lets package layer, which knows no pack, store contents in it.
type packWriter struct{ *pack.Writer }

// Put implements layer.ContentStore.
func (w *packWriter) Put(r io.Reader, size int64) (layer.Digest, error) {
	d, err := w.Writer.Put(r, size)
	return layer.Digest(d), err
}

// close ends the intake. Contents that no published TOC refers to are given up.
func (in *intake) close() {
	in.file.Close()
	if err := os.Remove(in.file.Name()); err != nil && !os.IsNotExist(err) {
		log.L.WithError(err).WithField("path", in.file.Name()).Warn("could not remove an unfinished table of contents; the next start does")
	}
	os.Remove(in.s.layer(in.id)) // if nothing was published
	if err := in.pack.Close(); err != nil {
		log.L.WithError(err).Warn("could not give back space; the next start does")
	}
}

func (in *intake) fields() log.Fields {
	st := in.pack.Stats()
	return log.Fields{"layer": in.id, "entries": in.sum.Entries, "bytes": in.sum.Bytes, "newBytes": st.NewBytes, "storedBytes": st.StoredBytes}
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func syncDir(path string) error { return syncFile(path) }
