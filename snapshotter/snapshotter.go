// SPDX-License-Identifier: Apache-2.0

// Package snapshotter owns the life of snapshots: it is a containerd
// Snapshotter whose committed snapshots are TOCs over one content store, and
// whose mounts show a chain of them as a single flat image. It is also the
// differ that takes layers in and writes them out, for the two share the
// directories of snapshots.
//
//	Prepare(extract-…) ─▶ Apply: blob ─▶ TOC + pack   ─┐
//	Prepare ─▶ writes through the mount                ├─▶ Commit ─▶ metastore
//	                     (TOC made right after Commit) ┘
//	Prepare, View ─▶ flat image of the parent's chain ─▶ EROFS mount ─▶ overlay or bind
//	                 (and images of the layers above, if these were committed just now)
//	Compare: upper directory or TOC ─▶ tar ─▶ blob
//	Remove ─▶ metastore;  Cleanup ─▶ mounts, files, content that nobody refers to
//
// The metastore decides what exists. Files are published before it says so and
// deleted after it has forgotten them, so a crash leaves garbage and never a
// snapshot without its data; New removes the garbage.
//
// Kept here of the design's invariants: no flat image refers to freed blocks
// (3), kill -9 at any point leaves every committed snapshot whole (4), and
// concurrent calls give the same result as one after the other (9).
package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/squash-snapshotter/squash/internal/failpoint"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/pack"
	"golang.org/x/sync/singleflight"
)

// ContentSource yields the blobs of containerd's content store.
type ContentSource interface {
	// Open returns the blob of desc as a stream. ctx carries the containerd
	// namespace. ErrNotFound: the content store does not have it.
	Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
	// Kept returns the blobs of ctx's namespace that are there and that
	// something else than a lease keeps from being collected.
	Kept(ctx context.Context) (map[digest.Digest]bool, error)
	// ImagesOf returns the references of the images of ctx's namespace that
	// have a blob, be it there or not.
	ImagesOf(ctx context.Context, blob digest.Digest) ([]string, error)
}

// Shadowed says what becomes of content that no flat image shows.
type Shadowed string

const (
	// ShadowedFree frees it where it can be read from the layer's blob again.
	ShadowedFree Shadowed = "free-if-restorable"
	// ShadowedKeep keeps it as long as its layer.
	ShadowedKeep Shadowed = "keep"
)

// Durability says when a layer is safe from a power cut.
type Durability string

const (
	// DurabilityBackground syncs a layer right after it was taken in.
	DurabilityBackground Durability = "background"
	// DurabilitySync syncs a layer before Apply returns.
	DurabilitySync Durability = "sync"
)

// Config is what a Snapshotter needs to know.
type Config struct {
	Root  string // directory on a disk file system that overlayfs takes as upper; made if missing
	State string // directory for mount points, emptied by a reboot; made if missing
	// Mount says how flat images are mounted; zero: as the kernel can.
	Mount mounts.Mode
	// Durability; zero: DurabilityBackground.
	Durability Durability
	// Shadowed; zero: ShadowedFree.
	Shadowed Shadowed
	// Compression of contents that come in from now on; zero: the densest form
	// that the kernel reads.
	Compression Compression
	// Content is where Apply finds blobs. Without it Apply answers
	// ErrNotImplemented to everything.
	Content ContentSource
	// ContainerdVersion asks containerd for its version. With it, layers that
	// the node has already are reused; it tells how containerd wants to be told.
	ContainerdVersion func(context.Context) (string, error)
	// Store is where Compare writes blobs: containerd's content store. ctx
	// carries namespace and lease. Without it Compare answers ErrNotImplemented
	// to everything.
	Store content.Store
	// OnCommit, if set, is told the name of every snapshot that was unpacked
	// and committed, outside of any transaction. It must not block.
	OnCommit func(name string)

	// Tests have less patience, or more.
	quiet   time.Duration // zero: quietTime
	settled time.Duration // zero: trimSettled
}

// Snapshotter implements snapshots.Snapshotter, snapshots.Cleaner,
// diff.Applier and diff.Comparer. Two must not share a root.
type Snapshotter struct {
	layout
	cfg         Config
	ms          *storage.MetaStore
	pack        *pack.Store
	mounter     *mounts.Mounter
	kernel      mounts.Capabilities // as found at the start
	compression string              // of contents that come in

	resumed bool // New has come to its end

	// Work that outlives the call which asked for it runs under ctx; Close
	// cancels it and waits.
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	// flight lets one caller do what several wait for: a conversion, a flat
	// image, a mount.
	flight singleflight.Group
	// collecting is held while garbage is removed.
	collecting sync.Mutex
	reserving  sync.Mutex      // held while the reserve is in use
	naming     sync.Mutex      // held while directories are named after new snapshots, or judged by their names
	repacked   map[uint32]bool // shared clusters that were to be moved, by first block; guarded by collecting
	checking   sync.Mutex      // held by a check
	garbage    chan struct{}   // asks for a collection; one is enough
	sweepDue   atomic.Bool     // the next collection looks for content to free
	changed    atomic.Uint64   // counts changes of layers, images and content
	usages     usages
	settling   settling
	merged     merged

	mu       sync.Mutex
	layers   map[string]layer.Summary          // TOCs by snapshot ID, as far as they were asked for
	donors   map[digest.Digest]map[string]bool // IDs of layers by diffID, as far as that is known
	uses     map[imageName]*imageUse
	clock    uint64          // counts the uses of images
	applying map[string]bool // snapshots that a layer is going into
	closing  bool            // no new background work
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
	_ diff.Applier          = (*Snapshotter)(nil)
	_ diff.Comparer         = (*Snapshotter)(nil)
)

// New opens the store below cfg.Root and brings it into order: unfinished
// things are removed, mounts that a predecessor left are taken over, uppers
// that were committed and not yet taken in are.
//
// Damage of single snapshots is logged and does not keep it from opening.
func New(ctx context.Context, cfg Config) (_ *Snapshotter, err error) {
	defer func() { layout{root: cfg.Root}.blameDisk(&err) }()
	s := &Snapshotter{cfg: cfg, garbage: make(chan struct{}, 1), layers: map[string]layer.Summary{}, donors: map[digest.Digest]map[string]bool{}, uses: map[imageName]*imageUse{}, applying: map[string]bool{}, repacked: map[uint32]bool{}, settling: newSettling()}
	s.cfg.quiet, s.cfg.settled = cmp.Or(cfg.quiet, quietTime), cmp.Or(cfg.settled, trimSettled)
	switch cfg.Durability {
	case "":
		s.cfg.Durability = DurabilityBackground
	case DurabilityBackground, DurabilitySync:
	default:
		return nil, fmt.Errorf("durability %q: it is %q or %q", cfg.Durability, DurabilityBackground, DurabilitySync)
	}
	switch cfg.Shadowed {
	case "":
		s.cfg.Shadowed = ShadowedFree
	case ShadowedFree, ShadowedKeep:
	default:
		return nil, fmt.Errorf("shadowed %q: it is %q or %q", cfg.Shadowed, ShadowedFree, ShadowedKeep)
	}
	if s.layout, err = makeLayout(cfg.Root, cfg.State); err != nil {
		return nil, err
	}
	if err := s.breakReserve(); err != nil {
		return nil, err
	}
	if err := s.probeOverlay(); err != nil {
		return nil, err
	}
	caps, err := mounts.Probe(ctx, s.imagesDir())
	if err != nil {
		return nil, fmt.Errorf("probe the kernel: %w", err)
	}
	s.kernel = caps
	if cfg.Mount == "" {
		cfg.Mount = mounts.ModeAuto
	}
	if s.mounter, err = mounts.New(caps, cfg.Mount); err != nil {
		return nil, err
	}
	compress, algorithm, err := cfg.Compression.choose(caps)
	if err != nil {
		return nil, err
	}
	s.compression = algorithm.String()
	if s.ms, err = s.openMetastore(); err != nil {
		return nil, fmt.Errorf("open the metastore: %w", err)
	}
	ids, err := s.tidy(ctx)
	if err == nil {
		s.pack, err = pack.Open(ctx, s.root, pack.Referrers(func(begins func(uint32) bool) (bool, error) {
			return s.soundImages(ctx, begins)
		}), compress)
	}
	if err != nil {
		return nil, errors.Join(err, s.ms.Close())
	}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := s.resume(ctx, ids); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.resumed = true
	if err := s.fillReserve(); err != nil {
		log.G(ctx).WithError(err).Warn("no space could be set aside for removals on a full disk")
	}
	log.G(ctx).WithFields(log.Fields{"root": s.root, "mount": string(s.mounter.Mode()), "compression": s.compression}).Info("snapshotter is open")
	s.background(s.collector)
	if s.mounter.Mode() == mounts.ModeFile {
		s.background(s.trimmer)
	}
	s.askSweep() // a crash may have left content without a reference
	return s, nil
}

// Close waits for work under way and closes the store. Mounts stay. Closing
// again does nothing.
func (s *Snapshotter) Close() (err error) {
	defer s.blameDisk(&err)
	s.mu.Lock()
	again := s.closing
	s.closing = true
	s.mu.Unlock()
	if again {
		return nil
	}
	s.cancel()
	s.work.Wait()
	err = errors.Join(s.ms.Close(), s.pack.Close())
	if err == nil && s.resumed {
		err = s.withReserve(s.noteOrderly)
	}
	return err
}

// background runs f in a goroutine that Close waits for.
func (s *Snapshotter) background(f func(ctx context.Context)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing {
		s.work.Go(func() { f(s.ctx) })
	}
}

// once runs f, which may be under way for another caller already. It goes on
// under the snapshotter's context when the caller gives up.
func (s *Snapshotter) once(ctx context.Context, key string, f func(ctx context.Context) error) error {
	done := s.flight.DoChan(key, func() (any, error) {
		s.mu.Lock()
		if s.closing {
			s.mu.Unlock()
			return nil, fmt.Errorf("the snapshotter is closing: %w", context.Canceled)
		}
		s.work.Add(1)
		s.mu.Unlock()
		defer s.work.Done()
		return nil, f(s.ctx)
	})
	select {
	case r := <-done:
		return r.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// update runs f in a write transaction of the metastore.
func (s *Snapshotter) update(ctx context.Context, f func(ctx context.Context) error) error {
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		err := f(ctx)
		failpoint.Hit("metastore.ready")
		return err
	})
	failpoint.Hit("metastore.commit")
	return err
}

// writeFile publishes a file under its name all at once.
func writeFile(path string, sync bool, write func(w io.Writer) error) (err error) {
	tmp := path + tmpSuffix
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(tmp)
		}
	}()
	failpoint.Hit("file.create")
	if err := write(f); err != nil {
		return err
	}
	failpoint.Hit("file.write")
	if sync {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	failpoint.Hit("file.rename")
	return nil
}
