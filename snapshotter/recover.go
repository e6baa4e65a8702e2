// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/failpoint"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/pack"
	"golang.org/x/sys/unix"
)

// tidy brings the files into the order that the metastore demands, after
// whatever ended the daemon that had them before. It comes before the pack is
// opened and returns what the metastore knows.
func (s *Snapshotter) tidy(ctx context.Context) (ids known, err error) {
	root := os.DirFS(s.root) // patterns do not apply to the root's own name
	var gone []string
	for _, pattern := range []string{"*" + tmpSuffix, "images/*" + tmpSuffix, "layers/*/*" + tmpSuffix} {
		unfinished, err := fs.Glob(root, pattern)
		if err != nil {
			return nil, err
		}
		gone = append(gone, unfinished...)
	}
	refs, err := fs.Glob(root, "images/*"+refsSuffix)
	if err != nil {
		return nil, err
	}
	for _, path := range refs {
		if !exists(filepath.Join(s.root, strings.TrimSuffix(path, refsSuffix)+imageSuffix)) {
			gone = append(gone, path)
		}
	}
	if ids, err = s.readKnown(ctx); err != nil {
		return nil, err
	}
	// A crash between the making of a directory and the commit of its
	// transaction leaves one whose ID the metastore is going to give again, and
	// a metastore that was lost gives all IDs again: what is there must be gone
	// before anything is prepared.
	for _, dir := range []string{s.snapshotsDir(), s.layersDir()} {
		orphans, err := unknownNames(dir, ids)
		if err != nil {
			return nil, err
		}
		for _, id := range orphans {
			gone = append(gone, filepath.Join(filepath.Base(dir), id))
		}
	}
	for _, path := range gone {
		if err := os.RemoveAll(filepath.Join(s.root, path)); err != nil {
			return nil, err
		}
		failpoint.Hit("orphan.remove")
	}
	return ids, s.adoptMounts(ctx)
}

// soundImages makes sure, before any block of the pack is given out, that
// every image shows contents which the index has: begins tells whether
// one begins at a block. Images that do not are removed; they are built again
// when they are needed. False: one of those is in use.
func (s *Snapshotter) soundImages(ctx context.Context, begins func(uint32) bool) (sound bool, err error) {
	images, err := s.imageFiles()
	if err != nil {
		return false, err
	}
	sound = true
	for _, i := range images {
		why := "its list of contents is damaged"
		if refs, err := s.readRefs(i); err == nil {
			why = ""
			for _, b := range refs.Blocks {
				if !begins(b) {
					why = fmt.Sprintf("the index has no content at block %d", b)
					break
				}
			}
		}
		if why == "" {
			continue
		}
		switch err := s.dropImage(i, s.clock); {
		case errdefs.IsFailedPrecondition(err):
			sound = false
			log.G(ctx).WithError(err).WithFields(log.Fields{"image": i.String(), "reason": why}).Error("an image in use shows contents that are not in the index: no space is given back until its containers have gone and the daemon is started again")
		case err != nil:
			return false, err
		default:
			log.G(ctx).WithFields(log.Fields{"image": i.String(), "reason": why}).Warn("image removed; it is built again when it is needed")
		}
	}
	return sound, nil
}

// resume takes up what was left undone: layers that were not durable when the
// machine went down are verified, uppers that were committed are taken in.
func (s *Snapshotter) resume(ctx context.Context, ids known) error {
	boot, err := os.ReadFile(bootID)
	if err != nil {
		return fmt.Errorf("which boot is this: %w", err)
	}
	last, err := os.ReadFile(s.boot())
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	if string(last) != string(boot) {
		if string(last) != orderly {
			if err := s.verifyUnsynced(ctx, ids); err != nil {
				return fmt.Errorf("verify layers after a boot: %w", err)
			}
		}
		if err := s.noteBoot(string(boot)); err != nil {
			return err
		}
	}
	for id, info := range ids {
		if src, err := s.readSource(id); err == nil {
			s.noteDonor(id, src.DiffID)
		}
		if info.Kind != snapshots.KindCommitted || exists(s.lost(id)) {
			continue
		}
		if exists(s.snapshot(id)) {
			s.background(func(ctx context.Context) {
				s.settle(ctx, info.Name, id)
				s.askCollect() // images of layers below are not needed any more, and the first collection may have been before
			})
		}
		if exists(s.toc(id)) && !exists(s.durable(id)) {
			// The predecessor was killed before it had synced the layer.
			s.background(func(ctx context.Context) { _ = s.makeDurable(ctx, id) })
		}
	}
	return s.resumeStacks(ids)
}

// bootID changes with every boot of the machine. Files that were written
// before this boot and never synced may have lost bytes; since it, none has,
// however the daemon ended.
const bootID = "/proc/sys/kernel/random/boot_id"

// orderly stands in place of the boot in which the store was in use last, if
// it was closed and all of it synced.
const orderly = "closed and synced\n"

// noteBoot writes down, durably, in which boot the store is in use.
func (s *Snapshotter) noteBoot(boot string) error {
	err := writeFile(s.boot(), true, func(w io.Writer) error { _, err := io.WriteString(w, boot); return err })
	return errors.Join(err, syncDir(s.root))
}

// noteOrderly syncs the store's file system and notes that nothing can be lost
// any more.
func (s *Snapshotter) noteOrderly() error {
	f, err := os.Open(s.root)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync the file system of %s: %w", s.root, err)
	}
	return s.noteBoot(orderly)
}

// verifyUnsynced looks at what had not been synced when the machine went down:
// what is damaged is taken away, so that it comes back from its blob or is
// reported by name, and never shown.
func (s *Snapshotter) verifyUnsynced(ctx context.Context, ids known) error {
	// Contents first, whatever refers to them: none that is damaged may be
	// taken for known when a layer is taken in again.
	var bad []layer.Digest
	var stop error
	v := s.pack.Verifier(nil)
	defer v.Close()
	s.pack.Unsynced(func(d pack.Digest, _ pack.Placement) {
		if stop != nil {
			return
		}
		if err := v.Verify(ctx, d); errdefs.IsDataLoss(err) {
			bad = append(bad, layer.Digest(d))
		} else if err != nil {
			stop = err
		}
	})
	if stop != nil {
		return stop
	}
	if len(bad) > 0 {
		if err := s.dropContents(ctx, bad); err != nil {
			return err
		}
		log.G(ctx).WithField("contents", len(bad)).Warn("contents were lost with the last boot; they are restored from the blobs of their layers when they are needed")
	}
	for id, info := range ids {
		if exists(s.durable(id)) || exists(s.lost(id)) {
			continue
		}
		if info.Kind != snapshots.KindCommitted {
			// Whoever was unpacking has gone with the boot.
			if err := os.RemoveAll(s.layer(id)); err != nil {
				return err
			}
			continue
		}
		ctx := log.WithLogger(ctx, log.G(ctx).WithFields(log.Fields{"snapshot": info.Name, "layer": id}))
		err := s.eachContent(id, func(layer.Digest) error { return ctx.Err() })
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			if err := s.loseTOC(ctx, id, err); err != nil {
				return err
			}
		default:
			_ = s.makeDurable(ctx, id) // logged; it is tried again at the next start
		}
	}
	return nil
}

// loseTOC takes a TOC away that cannot be read. A layer whose source is known
// is taken in again from its blob when it is needed; any other one is lost.
func (s *Snapshotter) loseTOC(ctx context.Context, id string, why error) error {
	if err := os.Remove(s.toc(id)); err != nil && !os.IsNotExist(err) {
		return err
	}
	failpoint.Hit("toc.remove")
	s.mu.Lock()
	delete(s.layers, id)
	s.mu.Unlock()
	if _, err := s.readSource(id); err == nil {
		log.G(ctx).WithField("reason", why).Warn("a layer was lost with the last boot; it is taken in again from its blob when it is needed")
		return nil
	}
	log.G(ctx).WithField("reason", why).Error("a layer was lost with the last boot: remove its image and pull or build it again")
	if err := os.MkdirAll(s.layer(id), 0o700); err != nil {
		return err
	}
	return writeFile(s.lost(id), true, func(w io.Writer) error { _, err := fmt.Fprintln(w, why); return err })
}

// dropContents cuts contents from the pack, and with them the images that
// show them. Those in use keep what they show.
func (s *Snapshotter) dropContents(ctx context.Context, bad []layer.Digest) error {
	begins := map[uint32]layer.Digest{} // any one of those in the same blocks: Drop takes all
	for _, d := range bad {
		if p, err := s.pack.Lookup(pack.Digest(d)); err == nil {
			begins[p.Block] = d
		}
	}
	images, err := s.imageFiles()
	if err != nil {
		return err
	}
	for _, i := range images {
		refs, err := s.readRefs(i)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, b := range refs.Blocks {
			if _, ok := begins[b]; !ok {
				continue
			}
			err := s.dropImage(i, s.clock)
			if errdefs.IsFailedPrecondition(err) {
				log.G(ctx).WithError(err).Error("damaged content is shown by an image in use")
				for _, b := range refs.Blocks {
					delete(begins, b)
				}
			} else if err != nil {
				return err
			}
			break
		}
	}
	var drop []pack.Digest
	for _, d := range begins {
		drop = append(drop, pack.Digest(d))
	}
	return s.pack.Drop(drop)
}

// retake takes a layer in again from its blob.
func (s *Snapshotter) retake(ctx context.Context, id string, src source) error {
	if s.cfg.Content == nil {
		return fmt.Errorf("layer %s is lost, and there is no content store to take it from: %w", id, errdefs.ErrFailedPrecondition)
	}
	stream, err := s.openSource(ctx, id, src)
	if err != nil {
		return err
	}
	defer stream.Close()
	in, err := s.intake(id)
	if err != nil {
		return err
	}
	defer in.close()
	err = in.take(func(toc *layer.Writer, store layer.ContentStore) error {
		if err := layer.FromTar(ctx, stream, toc, store); err != nil {
			return err
		}
		return stream.drain()
	})
	if err != nil {
		return err
	}
	if err := in.publish(ctx); err != nil {
		return err
	}
	log.G(ctx).WithFields(in.fields()).Warn("lost layer taken in again from its blob")
	return nil
}
