// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/pack"
)

// collectPlan is what a collection removes, as of one moment. Making it changes nothing.
type collectPlan struct {
	ids   known
	began uint64 // Snapshotter.clock
	// By ID: of snapshots, and of the mount points of skeletons.
	uppers, skeletons, layers []string
	// That nobody needs; those still in use stay, and keep their content by their
	// refs. They go at the first collection after their last user.
	images []imageName

	sizes map[string]uint64 // allocated bytes by path, if they were measured
	paths layout
}

// planCollection looks for what is there and belongs to no snapshot.
func (s *Snapshotter) planCollection(ctx context.Context) (p collectPlan, err error) {
	p.paths = s.layout
	s.mu.Lock()
	p.began = s.clock
	s.mu.Unlock()
	// A directory that has no snapshot now will never have one.
	err = s.withoutChanges(ctx, func(ctx context.Context) (err error) {
		if p.ids, err = knownSnapshots(ctx); err != nil {
			return err
		}
		dirs, err := unknownNames(s.snapshotsDir(), p.ids)
		if err != nil {
			return err
		}
		for _, id := range dirs {
			if !strings.HasPrefix(id, newPrefix) { // being made; what a crash left is removed at start
				p.uppers = append(p.uppers, id)
			}
		}
		if p.layers, err = unknownNames(s.layersDir(), p.ids); err != nil {
			return err
		}
		p.skeletons, err = unknownNames(s.skeletonMounts(), p.ids)
		return err
	})
	if err != nil {
		return p, err
	}
	p.images, err = s.unneededImages(p.ids)
	return p, err
}

// unneededImages are flat ones whose chain is no committed snapshot's, and those
// of layers that neededLayers does not name.
func (s *Snapshotter) unneededImages(ids known) (unneeded []imageName, err error) {
	images, err := s.imageFiles()
	if err != nil {
		return nil, err
	}
	chains := s.chains(ids)
	live := topsOf(ids, chains)
	stacked := neededLayers(ids, chains, images)
	for _, i := range images {
		if !stacked[i] && (i.layers > 0 || len(live[i.chain]) == 0) {
			unneeded = append(unneeded, i)
		}
	}
	return unneeded, nil
}

// measure notes what the removal of the plan's files gives back.
func (p *collectPlan) measure(ctx context.Context, s *Snapshotter) error {
	p.sizes = map[string]uint64{}
	var paths []string
	for _, id := range p.uppers {
		paths = append(paths, s.snapshot(id))
	}
	for _, id := range p.layers {
		paths = append(paths, s.layer(id))
	}
	for _, i := range p.images {
		paths = append(paths, s.image(i), s.refs(i))
	}
	// Layers that are the same share their TOC: it goes with the last of them.
	names := map[uint64]uint64{} // that were met, by inode
	for _, path := range paths {
		err := walkFiles(ctx, path, func(_ string, st *syscall.Stat_t) {
			if names[st.Ino]++; st.Mode&syscall.S_IFMT == syscall.S_IFDIR || names[st.Ino] == uint64(st.Nlink) {
				p.sizes[path] += uint64(st.Blocks) * 512
			}
			if st.Nlink == 1 {
				delete(names, st.Ino)
			}
		})
		if err != nil {
			return fmt.Errorf("measure %s: %w", path, err)
		}
	}
	return nil
}

func (p *collectPlan) upper(id string) Garbage {
	return Garbage{Kind: "snapshot", Object: id, Why: "its snapshot was removed, or its layer was taken in", Bytes: p.sizes[p.paths.snapshot(id)]}
}

func (p *collectPlan) layer(id string) Garbage {
	return Garbage{Kind: "layer", Object: id, Why: "its snapshot was removed", Bytes: p.sizes[p.paths.layer(id)]}
}

func (p *collectPlan) image(i imageName) Garbage {
	return Garbage{Kind: "image", Object: i.what(), Why: "no snapshot needs it", Bytes: p.sizes[p.paths.image(i)] + p.sizes[p.paths.refs(i)]}
}

// Garbage is what a collection removes, or what it looked at and left.
type Garbage struct {
	Kind   string // "snapshot", "image", "layer", "contents" or "clusters"
	Object string
	Why    string
	Count  uint64 // of contents and clusters
	Bytes  uint64 // allocated
}

// Collection is what a collection did or is going to do.
type Collection struct {
	Garbage []Garbage
	// Kept looks like garbage and stays.
	Kept []Garbage
}

// Bytes are those of all garbage.
func (c Collection) Bytes() (sum uint64) {
	for _, g := range c.Garbage {
		sum += g.Bytes
	}
	return sum
}

// removed notes that something went, or by err why it stayed.
func (c *Collection) removed(err error, g Garbage) {
	switch {
	case c == nil:
	case err == nil:
		c.Garbage = append(c.Garbage, g)
	default:
		g.Why = strings.TrimSuffix(err.Error(), ": "+errdefs.ErrFailedPrecondition.Error())
		c.Kept = append(c.Kept, g)
	}
}

// contents notes which went and which no image shows and stayed.
func (c *Collection) contents(gone pack.SweepStats, need needed) {
	if c == nil {
		return
	}
	if gone.Contents > 0 {
		c.Garbage = append(c.Garbage, Garbage{Kind: "contents", Object: "unreferenced", Why: "no image shows them and no layer has to keep them", Count: gone.Contents, Bytes: gone.Bytes})
	}
	for _, w := range need.whole {
		c.Kept = append(c.Kept, Garbage{Kind: "contents", Object: "layer " + w.id + " (snapshot " + w.name + ")", Why: w.why, Count: w.contents, Bytes: w.bytes})
	}
}

// tellClusters notes the shared clusters that repack is going to free by and by.
// Before the plan is done, the images that are going, and the blocks that gone
// tells of, count as if they were not there any more; nil otherwise.
func (s *Snapshotter) tellClusters(ids known, need needed, going []imageName, gone func(block uint32) bool, tell *Collection) error {
	if tell == nil {
		return nil
	}
	worst := s.pack.Wasted(need.used, gone)
	for b := range s.repacked {
		delete(worst, b)
	}
	if len(worst) == 0 {
		return nil
	}
	images, err := s.imageFiles()
	if err != nil {
		return err
	}
	images = slices.DeleteFunc(images, func(i imageName) bool { return slices.Contains(going, i) })
	if _, err := s.showing(ids, images, worst); err != nil {
		return err
	}
	if len(worst) == 0 {
		return nil // images in use show them
	}
	var bytes uint64
	counted := map[uint32]bool{}
	s.pack.Stored(func(block uint32, n int64) {
		if worst[block] && !counted[block] {
			counted[block] = true
			bytes += uint64(n)
		}
	})
	tell.Kept = append(tell.Kept, Garbage{
		Kind: "clusters", Object: "mostly unused", Why: "what is needed is moved out of them in the background; the collection after that frees them",
		Count: uint64(len(worst)), Bytes: bytes,
	})
	return nil
}

// Collect removes what nobody needs and tells what went and what stayed; with
// dryRun it tells what it would do, and changes nothing.
func (s *Snapshotter) Collect(ctx context.Context, dryRun bool) (c Collection, err error) {
	if dryRun {
		s.collecting.Lock()
		defer s.collecting.Unlock()
		_, _, err = s.foresee(ctx, &c)
	} else {
		defer s.blameDisk(&err)
		s.sweepDue.Store(false)
		if err = s.collect(ctx, true, &c); err != nil {
			s.askSweep() // what is left is tried again
		}
	}
	if err != nil {
		return c, fmt.Errorf("collect: %w", err)
	}
	return c, nil
}

// foresee tells what a collection would do. s.collecting is held.
func (s *Snapshotter) foresee(ctx context.Context, tell *Collection) (needed, pack.SweepStats, error) {
	p, err := s.planCollection(ctx)
	if err == nil {
		err = p.measure(ctx, s)
	}
	if err != nil {
		return needed{}, pack.SweepStats{}, err
	}
	for _, id := range p.uppers {
		tell.removed(nil, p.upper(id))
	}
	var going []imageName
	for _, i := range p.images {
		s.mu.Lock()
		err := s.wanted(i, p.began)
		s.mu.Unlock()
		if err == nil {
			going = append(going, i)
		} else if !errdefs.IsFailedPrecondition(err) {
			return needed{}, pack.SweepStats{}, err
		}
		tell.removed(err, p.image(i))
	}
	for _, id := range p.layers {
		tell.removed(nil, p.layer(id))
	}
	p.images = going
	mark, err := s.pack.BeginMark()
	if err != nil {
		return needed{}, pack.SweepStats{}, err
	}
	defer mark.Cancel()
	need, err := s.markNeeded(ctx, mark, p.ids, p)
	if err != nil {
		return need, pack.SweepStats{}, err
	}
	st, gone, err := mark.Unmet()
	if err != nil {
		return need, st, err
	}
	tell.contents(st, need)
	return need, st, errors.Join(s.tellClusters(p.ids, need, going, gone, tell), ctx.Err())
}
