// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/epoch"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/squash-snapshotter/squash/internal/layer"
)

// Compare writes what upper changes of lower into containerd's content store,
// as a layer. It reads what changed and nothing else, so it takes two forms:
// the mounts of an active snapshot over those of its parent, and the view of a
// committed snapshot over that of its parent.
//
// ErrNotImplemented, before anything is written: everything else. Another
// differ, which walks both trees, may do it.
func (s *Snapshotter) Compare(ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt) (_ ocispec.Descriptor, err error) {
	defer s.blameDisk(&err)
	var cfg diff.Config
	for _, opt := range opts {
		if err := opt(&cfg); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("compare: %w", err)
		}
	}
	if cfg.SourceDateEpoch == nil {
		cfg.SourceDateEpoch = epoch.FromContext(ctx)
	}
	if cfg.MediaType == "" {
		cfg.MediaType = ocispec.MediaTypeImageLayerGzip
	}
	compress, ok := layerCompressions[cfg.MediaType]
	if !ok || cfg.Compressor != nil || s.cfg.Store == nil {
		return ocispec.Descriptor{}, fmt.Errorf("compare: media type %s: %w", cfg.MediaType, errdefs.ErrNotImplemented)
	}
	c, err := s.changeOf(ctx, lower, upper)
	if err != nil {
		// Of whatever kind it is, another differ may have an answer.
		return ocispec.Descriptor{}, fmt.Errorf("compare: %v: %w", err, errdefs.ErrNotImplemented)
	}
	defer c.close()
	desc, err := s.writeLayer(ctx, cfg, compress, c)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write the changes of %s as a layer: %w", c, err)
	}
	return desc, nil
}

// layerCompressions are the media types that a layer can be written as.
var layerCompressions = map[string]compression.Compression{
	ocispec.MediaTypeImageLayer:     compression.Uncompressed,
	ocispec.MediaTypeImageLayerGzip: compression.Gzip,
	ocispec.MediaTypeImageLayerZstd: compression.Zstd,
}

// change is what one snapshot adds to its parent.
type change interface {
	// write adds all entries of the change.
	write(ctx context.Context, to *layer.TarWriter) error
	close()
	fmt.Stringer
}

var errOthers = errors.New("the mounts are not those of a snapshot of ours and its parent")

// changeOf finds out of which snapshot upper is. On error nothing is held.
func (s *Snapshotter) changeOf(ctx context.Context, lower, upper []mount.Mount) (change, error) {
	below, ok := s.readOnly(lower)
	if !ok {
		return nil, errOthers
	}
	if t, ok := s.target(upper); ok && plainOptions(upper) {
		return s.upperChange(ctx, t, below)
	}
	above, ok := s.readOnly(upper)
	if !ok || len(above) == 0 {
		return nil, errOthers
	}
	return s.layerChange(ctx, below, above)
}

// plainOptions tells whether the options of a snapshot's mount are only such as
// change nothing about what it shows: ID-mapped, for one, it shows other owners
// than its upper directory has.
func plainOptions(mounts []mount.Mount) bool {
	for _, m := range mounts {
		for _, o := range m.Options {
			name, _, _ := strings.Cut(o, "=")
			switch name {
			case "lowerdir", "upperdir", "workdir", "index", "volatile", "rw", "ro", "rbind", "bind":
			default:
				if o != "metacopy=off" && o != "redirect_dir=off" {
					return false
				}
			}
		}
		if m.Target != "" {
			return false
		}
	}
	return true
}

// readOnly takes mounts apart that can only be read, and returns the directories
// that they show, the top one first: none for a view without a parent.
func (s *Snapshotter) readOnly(mounts []mount.Mount) (dirs []string, ok bool) {
	if len(mounts) == 0 {
		return nil, true
	}
	if len(mounts) > 1 || !plainOptions(mounts) {
		return nil, false
	}
	switch m := mounts[0]; m.Type {
	case "bind":
		if !slices.Contains(m.Options, "ro") {
			return nil, false
		}
		if id, ok := s.upperID(m.Source); ok && s.checkUntouched(id) == nil {
			return nil, true
		}
		dirs = []string{m.Source}
	case "overlay":
		for _, o := range m.Options {
			if strings.HasPrefix(o, "upperdir=") {
				return nil, false
			}
			if v, ok := strings.CutPrefix(o, "lowerdir="); ok {
				dirs = strings.Split(v, ":")
			}
		}
	}
	return dirs, len(dirs) > 0
}

// show tells whether these are the directories, topmost first, of images that
// together show a chain: its flat image, or one below and the layers above it.
func (l layout) show(dirs []string, tocs []layer.Summary) bool {
	chains := chainsOf(tocs)
	for n, dir := range dirs {
		i, err := parseImageName(filepath.Base(filepath.Dir(dir)))
		if err != nil || l.imageRoot(i) != dir || i.layers > len(chains) || len(chains) == 0 || i.chain != chains[len(chains)-1] {
			return false
		}
		if i.layers == 0 {
			return n == len(dirs)-1
		}
		chains = chains[:len(chains)-i.layers]
	}
	return len(chains) == 0
}

// upperChange is the change that the upper directory of an active snapshot
// holds.
type upperChange struct {
	s  *Snapshotter
	id string
}

// upperChange makes sure that below is what is under the upper directory, in
// this form or that: a stack may have become flat. An unpack has a skeleton there.
func (s *Snapshotter) upperChange(ctx context.Context, t target, below []string) (change, error) {
	if err := s.checkActive(ctx, t.id); err != nil {
		return nil, err
	}
	ids, err := s.readKnown(ctx)
	if err != nil {
		return nil, err
	}
	tocs := s.chains(ids)[ids.byName()[ids[t.id].Parent]]
	if t.bind != (len(below) == 0) || !t.bind && !s.show(t.lowers, tocs) || !s.show(below, tocs) {
		return nil, errOthers
	}
	return upperChange{s, t.id}, nil
}

func (c upperChange) String() string { return "active snapshot " + c.id }

func (c upperChange) close() {}

func (c upperChange) write(ctx context.Context, to *layer.TarWriter) error {
	err := layer.WalkUpper(ctx, c.s.upper(c.id), false, func(e *layer.Entry, content io.Reader) error {
		return to.Add(e, func(w io.Writer) error {
			if n, err := io.Copy(w, content); err != nil || n < e.Size {
				return fmt.Errorf("%d of %d bytes read, it may be written to at this moment: %w", n, e.Size, errors.Join(err, errdefs.ErrUnavailable))
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	// A directory that is being removed looks like a smaller one.
	return c.s.checkActive(ctx, c.id)
}

// layerChange is the change that a committed snapshot's layer holds.
type layerChange struct {
	*pinnedLayer
	id string
}

// layerChange finds the layer that what shows a chain adds to what shows
// another one, or to nothing.
func (s *Snapshotter) layerChange(ctx context.Context, below, above []string) (change, error) {
	ids, err := s.readKnown(ctx)
	if err != nil {
		return nil, err
	}
	for id, tocs := range s.chains(ids) {
		if len(tocs) == 0 || ids[id].Kind != snapshots.KindCommitted || !s.show(above, tocs) {
			continue
		}
		// Whoever else has this chain has the same layers.
		if !s.show(below, tocs[:len(tocs)-1]) {
			return nil, fmt.Errorf("more than layer %s differs", id)
		}
		pinned, err := s.pinLayer(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", id, err)
		}
		return &layerChange{pinned, id}, nil
	}
	return nil, errOthers
}

func (c *layerChange) String() string { return "layer " + c.id }
