// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

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
	if err := s.collect(ctx, s.sweepDue.Swap(false), nil); err != nil {
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
		if err := s.collect(ctx, sweep, nil); err != nil && ctx.Err() == nil {
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
// images, then directories, and if layers went (or sweep says so) content. tell,
// which may be nil, learns what went and what stayed.
func (s *Snapshotter) collect(ctx context.Context, sweep bool, tell *Collection) error {
	s.collecting.Lock()
	defer s.collecting.Unlock()
	return s.collectNow(ctx, sweep, tell)
}

// collectNow is collect with s.collecting held.
func (s *Snapshotter) collectNow(ctx context.Context, sweep bool, tell *Collection) error {
	p, err := s.planCollection(ctx)
	if err != nil {
		return err
	}
	if tell != nil {
		if err := p.measure(ctx, s); err != nil {
			return err
		}
	}
	var errs error
	for _, id := range p.uppers {
		err := s.dropUpper(id)
		errs = errors.Join(errs, err)
		tell.removed(err, p.upper(id))
	}
	for _, id := range p.skeletons {
		errs = errors.Join(errs, s.dropSkeleton(id))
	}
	dropped := 0
	for _, i := range p.images {
		err := s.dropImage(i, p.began)
		switch {
		case err == nil:
			dropped++
		case errdefs.IsFailedPrecondition(err):
			log.G(ctx).WithError(err).Info("an image that is no longer needed is still in use")
		default:
			errs = errors.Join(errs, err)
		}
		tell.removed(err, p.image(i))
	}
	for _, id := range p.layers {
		err := os.RemoveAll(s.layer(id))
		errs = errors.Join(errs, err)
		tell.removed(err, p.layer(id))
		failpoint.Hit("layer.remove")
		s.mu.Lock()
		delete(s.layers, id)
		s.forgetDonor(id)
		s.mu.Unlock()
	}
	if len(p.layers) > 0 || dropped > 0 || sweep {
		errs = errors.Join(errs, s.withReserve(func() error {
			need, err := s.sweep(ctx, p.ids, tell)
			if err == nil {
				err = s.tellClusters(p.ids, need, nil, nil, tell)
			}
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
	if err := s.wanted(i, began); err != nil {
		return err
	}
	delete(s.uses, i)
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

// wanted returns ErrFailedPrecondition if an image is in use, or somebody came to
// need it since the collection began. s.mu is held.
func (s *Snapshotter) wanted(i imageName, began uint64) error {
	if u := s.uses[i]; u != nil && (u.users > 0 || u.last > began) {
		return fmt.Errorf("%s is wanted again: %w", i.what(), errdefs.ErrFailedPrecondition)
	}
	users, err := mounts.Users(s.imageMount(i))
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return fmt.Errorf("%s is mounted at %s: %w", i.what(), users[0], errdefs.ErrFailedPrecondition)
	}
	return nil
}
