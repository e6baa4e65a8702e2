// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/failpoint"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/mounts"
)

// Remove forgets a snapshot. It holds up every Prepare of this snapshotter, so
// mounts, files and content are left to Cleanup and to the background.
func (s *Snapshotter) Remove(ctx context.Context, key string) (err error) {
	defer s.blameDisk(&err)
	err = s.withReserve(func() error {
		return s.update(ctx, func(ctx context.Context) error {
			_, _, err := storage.Remove(ctx, key)
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	s.askCollect()
	return nil
}

// Cleanup gives back what removed snapshots used.
func (s *Snapshotter) Cleanup(ctx context.Context) (err error) {
	defer s.blameDisk(&err)
	if err := s.collect(ctx, s.sweepDue.Swap(false)); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}

func (s *Snapshotter) askCollect() {
	select {
	case s.garbage <- struct{}{}:
	default: // somebody has asked already
	}
}

// askSweep asks for a collection that looks for content to free even if no
// layer went.
func (s *Snapshotter) askSweep() {
	s.sweepDue.Store(true)
	s.askCollect()
}

// collector collects whenever it is asked to.
func (s *Snapshotter) collector(ctx context.Context) {
	for {
		select {
		case <-s.garbage:
		case <-ctx.Done():
			return
		}
		sweep := s.sweepDue.Swap(false)
		if err := s.collect(ctx, sweep); err != nil && ctx.Err() == nil {
			if sweep {
				s.sweepDue.Store(true)
			}
			log.G(ctx).WithError(err).Warn("could not clean up all; it is tried again after the next removal")
		}
	}
}

// known is what the metastore says exists, by ID.
type known map[string]snapshots.Info

// byName returns the IDs by the snapshots' names.
func (k known) byName() map[string]string {
	ids := make(map[string]string, len(k))
	for id, info := range k {
		ids[info.Name] = id
	}
	return ids
}

// committedParents are the names of the snapshots that have a committed child.
func (k known) committedParents() map[string]bool {
	parents := map[string]bool{}
	for _, info := range k {
		if info.Kind == snapshots.KindCommitted {
			parents[info.Parent] = true
		}
	}
	return parents
}

// lineage returns a snapshot and its parents, the bottom one first. byName is
// k.byName().
func (k known) lineage(id string, byName map[string]string) (ids []string) {
	for ; id != ""; id = byName[k[id].Parent] {
		ids = append(ids, id)
	}
	slices.Reverse(ids)
	return ids
}

// collect removes what the metastore does not know: first mounts, then flat
// images, then directories, and if layers went (or sweep says so) content.
func (s *Snapshotter) collect(ctx context.Context, sweep bool) error {
	s.collecting.Lock()
	defer s.collecting.Unlock()
	s.mu.Lock()
	began := s.clock
	s.mu.Unlock()
	var ids known
	var dirs, layers, skeletons []string
	// A directory that has no snapshot now will never have one.
	err := s.withoutChanges(ctx, func(ctx context.Context) (err error) {
		if ids, err = knownSnapshots(ctx); err != nil {
			return err
		}
		dirs, err = unknownNames(s.snapshotsDir(), ids)
		if err == nil {
			layers, err = unknownNames(s.layersDir(), ids)
		}
		if err == nil {
			skeletons, err = unknownNames(s.skeletonMounts(), ids)
		}
		return err
	})
	if err != nil {
		return err
	}
	var errs error
	for _, id := range dirs {
		if strings.HasPrefix(id, newPrefix) {
			continue // being made; what a crash left is removed at start
		}
		errs = errors.Join(errs, s.dropUpper(id))
	}
	for _, id := range skeletons {
		errs = errors.Join(errs, s.dropSkeleton(id))
	}
	dropped, err := s.collectImages(ctx, ids, began)
	errs = errors.Join(errs, err)
	for _, id := range layers {
		errs = errors.Join(errs, os.RemoveAll(s.layer(id)))
		failpoint.Hit("layer.remove")
		s.mu.Lock()
		delete(s.layers, id)
		s.forgetDonor(id)
		s.mu.Unlock()
	}
	if len(layers) > 0 || dropped > 0 || sweep {
		errs = errors.Join(errs, s.withReserve(func() error {
			need, err := s.sweep(ctx, ids)
			if err == nil {
				err = s.repack(ctx, need)
			}
			return err
		}))
		s.changed.Add(1)
	}
	return errs
}

// withoutChanges runs f in a transaction that holds up all others which write,
// and itself writes nothing: no snapshot is being created meanwhile.
func (s *Snapshotter) withoutChanges(ctx context.Context, f func(ctx context.Context) error) error {
	s.naming.Lock()
	defer s.naming.Unlock()
	ctx, tx, err := s.ms.TransactionContext(ctx, true)
	if err != nil {
		return err
	}
	return errors.Join(f(ctx), tx.Rollback())
}

// readKnown is knownSnapshots in a transaction of its own.
func (s *Snapshotter) readKnown(ctx context.Context) (ids known, err error) {
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		ids, err = knownSnapshots(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the metastore: %w", err)
	}
	return ids, nil
}

func knownSnapshots(ctx context.Context) (known, error) {
	ids := known{}
	names, err := storage.IDMap(ctx)
	if errdefs.IsNotFound(err) {
		return ids, nil // the metastore has never had a snapshot
	}
	if err != nil {
		return nil, err
	}
	for id, name := range names {
		_, info, _, err := storage.GetInfo(ctx, name)
		if err != nil {
			return nil, err
		}
		ids[id] = info
	}
	return ids, nil
}

// unknownNames lists what is in a directory and is no snapshot's.
func unknownNames(dir string, ids known) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if _, ok := ids[e.Name()]; !ok {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// collectImages unmounts and removes the images that nobody needs: flat ones
// whose chain is no committed snapshot's, and those of layers (see neededLayers).
// What is still in use stays, and keeps its content by its refs; it goes at the
// first collection after its last user.
func (s *Snapshotter) collectImages(ctx context.Context, ids known, began uint64) (dropped int, errs error) {
	images, err := s.imageFiles()
	if err != nil {
		return 0, err
	}
	chains := s.chains(ids)
	live := topsOf(ids, chains)
	stacked := neededLayers(ids, chains, images)
	for _, i := range images {
		if stacked[i] || i.layers == 0 && len(live[i.chain]) > 0 {
			continue
		}
		switch err := s.dropImage(i, began); {
		case err == nil:
			dropped++
		case errdefs.IsFailedPrecondition(err):
			log.G(ctx).WithError(err).Info("an image that is no longer needed is still in use")
		default:
			errs = errors.Join(errs, err)
		}
	}
	return dropped, errs
}

// chains returns the TOCs of each snapshot's chain by ID, the bottom one first;
// nil where not all are to be had.
func (s *Snapshotter) chains(ids known) map[string][]layer.Summary {
	byName := ids.byName()
	chains := map[string][]layer.Summary{}
	var tocs func(id string) []layer.Summary
	tocs = func(id string) []layer.Summary {
		if c, ok := chains[id]; ok {
			return c
		}
		chains[id] = nil
		var below []layer.Summary
		if parent := ids[id].Parent; parent != "" {
			if below = tocs(byName[parent]); below == nil {
				return nil
			}
		}
		if sum, err := s.knownSummary(id); err == nil {
			chains[id] = append(below[:len(below):len(below)], sum)
		}
		return chains[id]
	}
	for id := range ids {
		tocs(id)
	}
	return chains
}

// tops returns the committed snapshots whose TOCs are to be had, by chain.
func (s *Snapshotter) tops(ids known) map[chain][]string {
	return topsOf(ids, s.chains(ids))
}

func topsOf(ids known, chains map[string][]layer.Summary) map[chain][]string {
	tops := map[chain][]string{}
	for id, tocs := range chains {
		if ids[id].Kind == snapshots.KindCommitted && tocs != nil {
			c := chainOf(tocs)
			tops[c] = append(tops[c], id)
		}
	}
	return tops
}

// dropImage unmounts and removes an image unless somebody came to need it
// since the collection began. ErrFailedPrecondition: it is in use.
func (s *Snapshotter) dropImage(i imageName, began uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.uses[i]; u != nil {
		if u.users > 0 || u.last > began {
			return fmt.Errorf("%s is wanted again: %w", i.what(), errdefs.ErrFailedPrecondition)
		}
		delete(s.uses, i)
	}
	users, err := mounts.Users(s.imageMount(i))
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return fmt.Errorf("%s is mounted at %s: %w", i.what(), users[0], errdefs.ErrFailedPrecondition)
	}
	if err := s.mounter.Unmount(s.imageMount(i)); err != nil {
		return err
	}
	failpoint.Hit("mount.remove")
	if err := removeIfThere(s.imageMount(i)); err != nil {
		return err
	}
	failpoint.Hit("mountpoint.remove")
	if err := os.Remove(s.image(i)); err != nil {
		return err
	}
	failpoint.Hit("image.remove")
	if err := removeIfThere(s.refs(i)); err != nil {
		return err
	}
	failpoint.Hit("refs.remove")
	return nil
}
