// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/squash-snapshotter/squash/internal/failpoint"
	"github.com/squash-snapshotter/squash/internal/flatten"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/pack"
	"golang.org/x/sys/unix"
)

// imageName names an EROFS image that shows contents of the pack, and all that
// belongs to it: its file, its refs, its mount point.
type imageName struct {
	chain  chain
	layers int // of the chain, the topmost ones alone; 0: all of it, and flat
}

func flatImage(c chain) imageName         { return imageName{c, 0} }
func layerImage(c chain, n int) imageName { return imageName{c, n} }

func (i imageName) String() string {
	if i.layers > 0 {
		return fmt.Sprintf("%s-%d", i.chain, i.layers)
	}
	return i.chain.String()
}

// what says in a log or an error which kind of image it is.
func (i imageName) what() string {
	if i.layers > 0 {
		return "layer image " + i.String()
	}
	return "flat image " + i.String()
}

func parseImageName(name string) (i imageName, err error) {
	c, n, ok := strings.Cut(name, "-")
	if i.chain, err = parseChain(c); err == nil && ok {
		i.layers, err = strconv.Atoi(n)
	}
	if err == nil && i.String() != name {
		err = fmt.Errorf("%q is no image's name", name)
	}
	return i, err
}

// imageFiles lists the images that there are.
func (s *Snapshotter) imageFiles() ([]imageName, error) {
	entries, err := os.ReadDir(s.imagesDir())
	if err != nil {
		return nil, err
	}
	var images []imageName
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), imageSuffix)
		if i, err := parseImageName(name); ok && err == nil {
			images = append(images, i)
		}
	}
	return images, nil
}

// treeMaker makes the tree that an image is to show.
type treeMaker func(ctx context.Context) (*flatten.Tree, error)

// shown makes sure that an image exists and is mounted, and returns the
// directory that shows its tree. ids are the layers of its chain.
func (s *Snapshotter) shown(ctx context.Context, i imageName, ids []string, make treeMaker) (string, error) {
	target := s.imageMount(i)
	root := s.imageRoot(i)
	defer s.useImage(i)()
	// The kernel knows what is mounted, whatever happened since.
	if isErofs(target) {
		return root, nil
	}
	return root, s.once(ctx, "image "+i.String(), func(ctx context.Context) error {
		defer s.useImage(i)() // the caller may have gone
		if isErofs(target) {
			return nil
		}
		if !exists(s.image(i)) {
			if err := s.writeImageFile(ctx, i, ids, make); err != nil {
				return err
			}
		}
		return s.mount(ctx, s.image(i), s.pack.Path(), target)
	})
}

// imageUse guards an image against a collection that judged it before
// somebody came to need it.
type imageUse struct {
	users int
	last  uint64 // Snapshotter.clock when somebody last asked for it
}

// useImage keeps collections away from an image until the function
// that it returns is called, and those that are under way for good.
func (s *Snapshotter) useImage(i imageName) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.uses[i]
	if u == nil {
		u = &imageUse{}
		s.uses[i] = u
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

// writeImageFile builds an image, and before it the list of what it shows.
// Contents of the layers ids that were freed are brought back.
func (s *Snapshotter) writeImageFile(ctx context.Context, i imageName, ids []string, make treeMaker) (err error) {
	start := time.Now()
	defer func() {
		if err != nil {
			s.askSweep() // what was pinned here may have lost its layers meanwhile
		}
	}()
	tree, err := make(ctx)
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
	err = writeFile(s.image(i), true, func(w io.Writer) error {
		var refs flatten.Refs
		if stats, refs, err = writeImage(ctx, w, tree, places); err != nil {
			return err
		}
		return writeFile(s.refs(i), true, func(w io.Writer) error { return flatten.WriteRefs(w, refs) })
	})
	if err != nil {
		os.Remove(s.refs(i)) // a list without an image; the next start removes it, too
		return err
	}
	s.changed.Add(1)
	lg := log.G(ctx).WithFields(log.Fields{
		"chain": i.chain.String(), "layers": len(ids), "files": stats.Files, "bytes": stats.Bytes,
		"imageBytes": stats.Image, "duration": time.Since(start).Round(time.Millisecond),
	})
	if i.layers > 0 {
		lg.Debug("layers stacked") // it hides nothing for good: there is nothing to free
		return nil
	}
	lg.Info("image flattened")
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
	if stats.Files <= math.MaxUint32 {
		refs.Files = uint32(stats.Files)
	}
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
