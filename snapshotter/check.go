// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/flatten"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/pack"
)

// CheckOptions choose what Check does.
type CheckOptions struct {
	// Quick leaves out the contents: only checksums of files are compared.
	Quick bool
	// Repair mends what can be mended.
	Repair bool
	// Rate bounds the reading of contents, in bytes per second; 0: unbounded.
	Rate int64
	// Progress, if set, is told how far a step has come, several times a
	// second at most. It must not block.
	Progress func(CheckProgress)
}

// CheckProgress is how far a check has come.
type CheckProgress struct {
	Step        string // "index", "layers", "images", "contents", "files"
	Done, Total uint64 // of the step: bytes for contents, things otherwise
}

// FindingKind says what is wrong.
type FindingKind string

// The kinds of findings.
const (
	FindingIndex   FindingKind = "index"   // an index file is damaged
	FindingLayer   FindingKind = "layer"   // a committed layer's TOC is damaged or missing
	FindingContent FindingKind = "content" // a content's bytes are not what its digest says
	FindingImage   FindingKind = "image"   // a flat image or its list of contents is damaged
	FindingOrphan  FindingKind = "orphan"  // a file, mount or loop device that belongs to nothing
)

// Finding is one thing that is wrong.
type Finding struct {
	Kind     FindingKind
	Object   string // what: a path, a digest, the name of a snapshot
	Detail   string // how it shows
	Repaired bool
	Remedy   string // what a person can do; "" if it was repaired
}

// CheckSummary counts what a check met.
type CheckSummary struct {
	Layers, Images, Contents, Bytes uint64
	Findings, Repaired              uint64
}

// check is a check under way.
type check struct {
	s     *Snapshotter
	opts  CheckOptions
	found func(Finding)
	sum   CheckSummary
	ids   known
	told  time.Time
}

// Check looks for damage and calls found for each. Containers, pulls and
// removals go on meanwhile. The error says that the check could not be done,
// not that something was found. ErrUnavailable: another check is under way.
func (s *Snapshotter) Check(ctx context.Context, opts CheckOptions, found func(Finding)) (CheckSummary, error) {
	if !s.checking.TryLock() {
		return CheckSummary{}, fmt.Errorf("another check is under way: %w", errdefs.ErrUnavailable)
	}
	defer s.checking.Unlock()
	c := &check{s: s, opts: opts, found: found}
	if err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		c.ids, err = knownSnapshots(ctx)
		return err
	}); err != nil {
		return c.sum, fmt.Errorf("check: read the metastore: %w", err)
	}
	steps := []func(context.Context) error{c.index, c.layers}
	if !opts.Quick {
		steps = append(steps, c.contents) // images are mended from sound contents
	}
	for _, step := range append(steps, c.images, c.files) {
		if err := step(ctx); err != nil {
			return c.sum, fmt.Errorf("check: %w", err)
		}
	}
	return c.sum, nil
}

func (c *check) report(f Finding) {
	c.sum.Findings++
	if f.Repaired {
		c.sum.Repaired++
		f.Remedy = ""
	}
	c.found(f)
}

// progress tells how far a step has come, not too often.
func (c *check) progress(step string, done, total uint64) {
	if now := time.Now(); c.opts.Progress != nil && (done == total || now.Sub(c.told) > 200*time.Millisecond) {
		c.told = now
		c.opts.Progress(CheckProgress{step, done, total})
	}
}

func (c *check) index(context.Context) error {
	const restart = "restart the daemon: it gives up what it cannot read, and takes lost contents from the layers' blobs again"
	for path, err := range c.s.pack.CheckIndex() {
		c.report(Finding{Kind: FindingIndex, Object: path, Detail: err.Error(), Remedy: restart})
	}
	if !c.s.pack.Whole() {
		c.report(Finding{Kind: FindingIndex, Object: filepath.Join(c.s.root, "index"), Detail: "it is not known which blocks of the pack are in use; nothing is freed",
			Remedy: "stop the containers whose images the log names, then restart the daemon"})
	}
	c.progress("index", 1, 1)
	return nil
}

// layers reads the TOCs of committed snapshots.
func (c *check) layers(ctx context.Context) error {
	for i, id := range slices.Sorted(maps.Keys(c.ids)) {
		info := c.ids[id]
		c.progress("layers", uint64(i+1), uint64(len(c.ids)))
		if info.Kind != snapshots.KindCommitted || !exists(c.s.toc(id)) && exists(c.s.upper(id)) && !exists(c.s.lost(id)) {
			continue // nothing to read yet
		}
		c.sum.Layers++
		err := c.s.eachContent(id, func(layer.Digest) error { return ctx.Err() })
		switch known, kerr := c.s.knows(ctx, id); {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil || kerr == nil && !known: // sound, or removed meanwhile
			continue
		}
		f := Finding{Kind: FindingLayer, Object: info.Name, Detail: err.Error(), Remedy: "remove the image and pull it again"}
		if c.opts.Repair {
			if merr := c.s.mendLayer(ctx, id, err); merr == nil {
				f.Repaired = true
			} else {
				f.Remedy = merr.Error()
			}
		}
		c.report(f)
	}
	return nil
}

// mendLayer takes a layer in again whose TOC cannot be read.
func (s *Snapshotter) mendLayer(ctx context.Context, id string, why error) error {
	if _, err := s.readSource(id); err != nil {
		return fmt.Errorf("the layer came from no blob: remove its image and pull or build it again")
	}
	if err := s.loseTOC(ctx, id, why); err != nil {
		return err
	}
	_, err := s.summary(ctx, id)
	return err
}

// contents compares every content with its digest.
func (c *check) contents(ctx context.Context) error {
	total := c.s.pack.Stats().Bytes
	var bad []pack.Digest
	var stop error
	v := c.s.pack.Verifier(newThrottle(ctx, c.opts.Rate))
	defer v.Close()
	c.s.pack.Each(func(d pack.Digest, p pack.Placement) bool {
		err := v.Verify(ctx, d)
		switch {
		case errdefs.IsDataLoss(err):
			bad = append(bad, d)
		case err != nil && !errdefs.IsNotFound(err): // freed meanwhile
			stop = err
			return false
		}
		c.sum.Contents++
		c.sum.Bytes += p.Size
		c.progress("contents", min(c.sum.Bytes, total), total)
		return true
	})
	if stop != nil || len(bad) == 0 {
		return stop
	}
	var mended map[layer.Digest]bool
	var why error
	if c.opts.Repair {
		mended, why = c.s.mendContents(ctx, bad)
	}
	for _, d := range bad {
		f := Finding{Kind: FindingContent, Object: fmt.Sprintf("sha256:%x", d[:]), Detail: "its bytes in the pack are others",
			Repaired: mended[layer.Digest(d)], Remedy: "repair while containerd has the blob of a layer that holds it; fetch it with `ctr content fetch <reference of the image>`"}
		if why != nil {
			f.Remedy = why.Error()
		}
		c.report(f)
	}
	return nil
}

// mendContents writes contents again where they are, from the blobs of layers
// that have them. Containers that show them see the right bytes from then on.
func (s *Snapshotter) mendContents(ctx context.Context, bad []pack.Digest) (mended map[layer.Digest]bool, why error) {
	mender, wanted, err := s.pack.Mend(ctx, bad)
	if err != nil {
		return nil, err
	}
	missing := map[layer.Digest]bool{}
	for _, d := range wanted {
		missing[layer.Digest(d)] = true
	}
	entries, err := os.ReadDir(s.layersDir())
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		id := e.Name()
		if has, err := s.layerHas(id, missing); err != nil || !has {
			continue // a TOC that cannot be read has been reported
		}
		put := func(r io.Reader, _ int64, want layer.Digest) error { return mender.Put(pack.Digest(want), r) }
		if err := s.refillLayer(ctx, id, missing, put); err != nil {
			why = errors.Join(why, err)
		}
		if len(missing) == 0 {
			break
		}
	}
	why = errors.Join(why, mender.Close(), s.pack.Sync())
	v := s.pack.Verifier(nil)
	defer v.Close()
	mended = map[layer.Digest]bool{}
	for _, d := range bad {
		mended[layer.Digest(d)] = v.Verify(ctx, d) == nil
	}
	return mended, errors.Join(why, forgetCachedPages())
}

// forgetCachedPages makes the kernel read files again: mounted images may have
// cached what was just mended. Only clean pages go, of all files.
func forgetCachedPages() error {
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("1\n"), 0); err != nil {
		return fmt.Errorf("drop cached pages, so that running containers see what was mended: %w", err)
	}
	return nil
}

// images compares the images with the sums that were noted.
func (c *check) images(ctx context.Context) error {
	images, err := c.s.imageFiles()
	if err != nil {
		return err
	}
	byName := c.ids.byName()
	ids := map[chain][]string{}
	for chain, tops := range c.s.tops(c.ids) {
		ids[chain] = c.ids.lineage(tops[0], byName)
	}
	for i, image := range images {
		if err := ctx.Err(); err != nil {
			return err
		}
		c.progress("images", uint64(i+1), uint64(len(images)))
		c.sum.Images++
		done := c.s.useImage(image)
		err := c.s.checkImage(image)
		if err != nil && exists(c.s.image(image)) {
			f := Finding{Kind: FindingImage, Object: c.s.image(image), Detail: err.Error(), Remedy: "run with --repair: it is built again from the layers"}
			if c.opts.Repair {
				if merr := c.s.mendImage(ctx, image, ids[image.chain]); merr == nil {
					f.Repaired = true
				} else {
					f.Remedy = merr.Error()
				}
			}
			c.report(f)
		}
		done()
	}
	return nil
}

func (s *Snapshotter) checkImage(i imageName) error {
	refs, err := s.readRefs(i)
	if err != nil {
		return fmt.Errorf("list of contents: %w", err)
	}
	f, err := os.Open(s.image(i))
	if err != nil {
		return err
	}
	defer f.Close()
	sum := flatten.NewImageSum()
	n, err := io.Copy(sum, f)
	if err != nil {
		return err
	}
	if uint64(n) != refs.ImageSize || sum.Sum32() != refs.ImageSum {
		return fmt.Errorf("%d bytes with sum %08x, not %d with %08x", n, sum.Sum32(), refs.ImageSize, refs.ImageSum)
	}
	if none := s.pack.Begins(refs.Blocks); len(none) > 0 {
		return fmt.Errorf("it shows %d contents that the pack does not have, the first at block %d", len(none), none[0])
	}
	return nil
}

// mendImage builds an image again. The bytes are the same as they were, so
// they are written where the damaged ones are: mounts of it see them.
func (s *Snapshotter) mendImage(ctx context.Context, i imageName, ids []string) error {
	if ids == nil {
		return errors.New("no snapshot has this image: it goes with its last container")
	}
	tree, err := s.imageTree(ctx, i, ids)
	if err != nil {
		return err
	}
	w := s.pack.Begin()
	defer w.Close()
	places, err := s.locate(ctx, tree, ids, w)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(s.image(i), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	stats, refs, err := writeImage(ctx, f, tree, places)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(stats.Image), f.Sync()); err != nil {
		return err
	}
	if err := writeFile(s.refs(i), true, func(w io.Writer) error { return flatten.WriteRefs(w, refs) }); err != nil {
		return err
	}
	return errors.Join(forgetCachedPages(), s.checkImage(i))
}

// files looks for what belongs to nothing.
func (c *check) files(ctx context.Context) error {
	s := c.s
	// What was removed and not yet collected is no orphan.
	if err := s.collect(ctx, c.opts.Repair, nil); err != nil {
		return err
	}
	orphans, err := s.orphans(ctx)
	if err != nil {
		return err
	}
	for _, o := range orphans {
		c.report(Finding{Kind: FindingOrphan, Object: o, Detail: "nothing that exists has this", Remedy: "restart the daemon: it removes it"})
	}
	if err := c.loops(); err != nil {
		return err
	}
	c.progress("files", 1, 1)
	return nil
}

// orphans lists the files and mounts that belong to nothing.
func (s *Snapshotter) orphans(ctx context.Context) (orphans []string, err error) {
	s.collecting.Lock()
	defer s.collecting.Unlock()
	err = s.withoutChanges(ctx, func(ctx context.Context) error {
		ids, err := knownSnapshots(ctx)
		if err != nil {
			return err
		}
		for _, dir := range []string{s.snapshotsDir(), s.layersDir()} {
			names, err := unknownNames(dir, ids)
			if err != nil {
				return err
			}
			for _, name := range names {
				if isID(name) {
					orphans = append(orphans, filepath.Join(dir, name))
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	mounted, err := mounts.Mounted(s.imageMounts())
	if err != nil {
		return nil, err
	}
	for target := range mounted {
		if image, err := parseImageName(filepath.Base(target)); err != nil || !exists(s.image(image)) {
			orphans = append(orphans, target)
		}
	}
	slices.Sort(orphans)
	return orphans, nil
}

// newThrottle bounds the reading through any number of readers together; nil
// for no bound.
func newThrottle(ctx context.Context, rate int64) func(io.Reader) io.Reader {
	if rate <= 0 {
		return nil
	}
	start, read := time.Now(), int64(0)
	return func(r io.Reader) io.Reader {
		return readerFunc(func(p []byte) (int, error) {
			due := start.Add(time.Duration(float64(read) / float64(rate) * float64(time.Second)))
			if wait := time.Until(due); wait > 0 {
				select {
				case <-time.After(wait):
				case <-ctx.Done():
					return 0, ctx.Err()
				}
			}
			n, err := r.Read(p)
			read += int64(n)
			return n, err
		})
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
