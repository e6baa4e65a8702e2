// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/failpoint"
	"github.com/squash-snapshotter/squash/internal/flatten"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/pack"
	"golang.org/x/sys/unix"
)

// chain names a stack of layers by what they hold: the digest of the bottom
// TOC, folded with those above. It has nothing to do with names that clients
// give, so two snapshots of the same layers share a flat image.
type chain [sha256.Size]byte

func (c chain) String() string { return hex.EncodeToString(c[:]) }

// chainOf folds the digests of TOCs, the bottom one first.
func chainOf(tocs []layer.Summary) (c chain) {
	for i, t := range tocs {
		if i == 0 {
			c = chain(t.Digest)
			continue
		}
		c = sha256.Sum256(append(c[:], t.Digest[:]...))
	}
	return c
}

// Flatten makes sure that a committed snapshot's flat image exists and is
// mounted. ErrNotFound, ErrInvalidArgument: no committed snapshot has the name.
func (s *Snapshotter) Flatten(ctx context.Context, name string) (err error) {
	defer s.blameDisk(&err)
	var ids []string
	if err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		ids, err = committedChain(ctx, name)
		return err
	}); err != nil {
		return fmt.Errorf("flatten %s: %w", name, err)
	}
	if _, err := s.flat(ctx, ids); err != nil {
		return fmt.Errorf("flatten %s: %w", name, err)
	}
	if err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, _, _, err := storage.GetInfo(ctx, name)
		return err
	}); err != nil {
		s.askSweep() // removed meanwhile
	}
	return nil
}

// committedChain returns the IDs of a committed snapshot and its parents, the
// bottom one first.
func committedChain(ctx context.Context, name string) ([]string, error) {
	var ids []string
	for name != "" {
		id, info, _, err := storage.GetInfo(ctx, name)
		if err != nil {
			return nil, err
		}
		if info.Kind != snapshots.KindCommitted {
			return nil, fmt.Errorf("snapshot %s is not committed: %w", name, errdefs.ErrInvalidArgument)
		}
		ids = append(ids, id)
		name = info.Parent
	}
	slices.Reverse(ids)
	return ids, nil
}

// flat returns the directory that shows the chain of the committed snapshots
// ids, the bottom one first.
func (s *Snapshotter) flat(ctx context.Context, ids []string) (string, error) {
	tocs := make([]layer.Summary, len(ids))
	for i, id := range ids {
		var err error
		if tocs[i], err = s.summary(ctx, id); err != nil {
			return "", err
		}
	}
	c := chainOf(tocs)
	target := s.flatMount(c)
	root := filepath.Join(target, flatten.RootName)
	defer s.useFlat(c)()
	// The kernel knows what is mounted, whatever happened since.
	if isErofs(target) {
		return root, nil
	}
	return root, s.once(ctx, "flat "+c.String(), func(ctx context.Context) error {
		defer s.useFlat(c)() // the caller may have gone
		if isErofs(target) {
			return nil
		}
		if !exists(s.image(c)) {
			if err := s.writeFlat(ctx, c, ids); err != nil {
				return err
			}
		}
		return s.mount(ctx, s.image(c), s.pack.Path(), target)
	})
}

// flatUse guards a flat image against a collection that judged it before
// somebody came to need it.
type flatUse struct {
	users int
	last  uint64 // Snapshotter.clock when somebody last asked for it
}

// useFlat keeps collections away from a chain's flat image until the function
// that it returns is called, and those that are under way for good.
func (s *Snapshotter) useFlat(c chain) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.flats[c]
	if u == nil {
		u = &flatUse{}
		s.flats[c] = u
	}
	s.clock++
	u.users, u.last = u.users+1, s.clock
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		u.users--
	}
}

func (s *Snapshotter) mount(ctx context.Context, image, pack, target string) error {
	if err := os.MkdirAll(target, 0o700); err != nil {
		return err
	}
	failpoint.Hit("mountpoint.mkdir")
	if err := s.mounter.Mount(ctx, image, pack, target); err != nil {
		return err
	}
	failpoint.Hit("mount.attach")
	return nil
}

// isErofs tells whether an EROFS is mounted at a mount point.
func isErofs(target string) bool {
	var st unix.Statfs_t
	return unix.Statfs(target, &st) == nil && st.Type == unix.EROFS_SUPER_MAGIC_V1
}

// writeFlat builds the flat image of a chain, and before it the list of what it
// shows. Contents that were freed are brought back.
func (s *Snapshotter) writeFlat(ctx context.Context, c chain, ids []string) (err error) {
	start := time.Now()
	defer func() {
		if err != nil {
			s.askSweep() // what was pinned here may have lost its layers meanwhile
		}
	}()
	tree, err := s.merge(ctx, ids)
	if err != nil {
		return err
	}
	// The writer keeps sweeps away from the contents until the list is there.
	w := s.pack.Begin()
	defer w.Close()
	places, err := s.locate(ctx, tree, ids, w)
	if err != nil {
		return err
	}
	var stats flatten.Stats
	err = writeFile(s.image(c), true, func(w io.Writer) error {
		var refs flatten.Refs
		if stats, refs, err = writeImage(ctx, w, tree, places); err != nil {
			return err
		}
		return writeFile(s.refs(c), true, func(w io.Writer) error { return flatten.WriteRefs(w, refs) })
	})
	if err != nil {
		os.Remove(s.refs(c)) // a list without an image; the next start removes it, too
		return err
	}
	log.G(ctx).WithFields(log.Fields{
		"chain": c.String(), "layers": len(ids), "files": stats.Files, "bytes": stats.Bytes,
		"imageBytes": stats.Image, "duration": time.Since(start).Round(time.Millisecond),
	}).Info("image flattened")
	s.changed.Add(1)
	s.askSweep()
	return nil
}

// writeImage writes a tree whose contents are in the pack, and returns what is
// to be noted about the image.
func writeImage(ctx context.Context, w io.Writer, tree *flatten.Tree, places map[layer.Digest]pack.Placement) (flatten.Stats, flatten.Refs, error) {
	refs := flatten.NewRefs(maps.Values(places))
	sum := flatten.NewImageSum()
	b := bufio.NewWriterSize(io.MultiWriter(w, sum), 1<<20)
	stats, err := tree.WriteImage(ctx, b, func(d layer.Digest) (pack.Placement, error) { return places[d], nil })
	err = errors.Join(err, b.Flush())
	refs.ImageSize, refs.ImageSum = uint64(stats.Image), sum.Sum32()
	return stats, refs, err
}

// locate finds all contents that a tree shows, and restores those that are not
// there. w pins them.
func (s *Snapshotter) locate(ctx context.Context, tree *flatten.Tree, ids []string, w *pack.Writer) (map[layer.Digest]pack.Placement, error) {
	places, missing := map[layer.Digest]pack.Placement{}, map[layer.Digest]bool{}
	look := func(d layer.Digest) {
		if p, err := w.Lookup(pack.Digest(d)); err == nil {
			places[d] = p
		} else {
			missing[d] = true
		}
	}
	tree.Contents(func(d layer.Digest, _ int64) {
		if _, ok := places[d]; !ok {
			look(d)
		}
	})
	if len(missing) == 0 {
		return places, nil
	}
	freed := slices.Collect(maps.Keys(missing))
	if err := s.restore(ctx, ids, missing, w); err != nil {
		return nil, err
	}
	for _, d := range freed {
		look(d)
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("%d contents are missing right after they were restored: %w", len(missing), errdefs.ErrDataLoss)
	}
	return places, nil
}

// merge reads the layers' TOCs.
func (s *Snapshotter) merge(ctx context.Context, ids []string) (*flatten.Tree, error) {
	open := make([]flatten.Layer, len(ids))
	for i, id := range ids {
		open[i] = func() (io.ReadCloser, error) {
			f, err := os.Open(s.toc(id))
			if err != nil {
				return nil, err
			}
			return struct {
				io.Reader
				io.Closer
			}{bufio.NewReaderSize(f, 256<<10), f}, nil
		}
	}
	return flatten.Merge(ctx, open)
}

// summary returns the trailer of a layer's TOC. A layer that was committed as
// an upper directory is taken in first. ErrFailedPrecondition: the layer has
// neither.
func (s *Snapshotter) summary(ctx context.Context, id string) (layer.Summary, error) {
	if sum, err := s.knownSummary(id); !os.IsNotExist(err) {
		return sum, err
	}
	if err := s.once(ctx, "convert "+id, func(ctx context.Context) error { return s.makeTOC(ctx, id) }); err != nil {
		return layer.Summary{}, err
	}
	return s.knownSummary(id)
}

// knownSummary is summary for a layer that has its TOC.
func (s *Snapshotter) knownSummary(id string) (layer.Summary, error) {
	s.mu.Lock()
	sum, ok := s.layers[id]
	s.mu.Unlock()
	if ok {
		return sum, nil
	}
	sum, err := readSummary(s.toc(id))
	if err != nil {
		if !os.IsNotExist(err) {
			err = fmt.Errorf("layer %s: %w", id, err)
		}
		return layer.Summary{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.layers[id] = sum
	return sum, nil
}

func readSummary(path string) (layer.Summary, error) {
	f, err := os.Open(path)
	if err != nil {
		return layer.Summary{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return layer.Summary{}, err
	}
	return layer.ReadSummary(f, st.Size())
}
