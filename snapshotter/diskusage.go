// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/squash-snapshotter/squash/internal/pack"
	"golang.org/x/sys/unix"
)

// DiskUsage says what takes up the space of the root.
type DiskUsage struct {
	Root             string
	FileSystem, Free uint64 // bytes; Free without what is reserved for root
	// Bytes are allocated below the root, and so in Parts.
	Bytes uint64
	Parts []UsagePart
	// Contents are the pack by who needs it. They add up to its part.
	Contents  []UsagePart
	Encodings []EncodingUsage
	// LayerBytes are those of the regular files of all committed snapshots: what
	// they would take up if each had its own.
	LayerBytes uint64
}

// UsagePart is a part of what is allocated.
type UsagePart struct {
	Name  string
	Count uint64
	// Of contents, what the file system saves by itself is negative.
	Bytes int64
	What  string // for people
}

// EncodingUsage is what contents have as files, and as they are stored.
type EncodingUsage struct {
	Encoding                string
	Contents, Bytes, Stored uint64
}

// Parts of the root, by the first element of the path below it.
var usageParts = []struct{ name, what string }{
	{"contents", "the pack: what is in files, each content once"},
	{"index", "where contents are in the pack"},
	{"layers", "tables of contents of the layers"},
	{"images", "flat images, and what they show"},
	{"stacks", "images of layers that are not flat yet"},
	{"snapshots", "what containers have written, and layers that are being unpacked"},
	{"metadata", "what snapshots there are"},
	{"reserve", "for removals on a full disk"},
	{"other", "directories and marks"},
}

// usagePart tells which part a path below the root belongs to, and whether it
// counts as one of its things.
func usagePart(path string) (name string, counts bool) {
	first, rest, below := strings.Cut(path, "/")
	switch {
	case first == "pack":
		return "contents", false // counted by the index
	case first == "index":
		return "index", below
	case first == "layers":
		return "layers", below && !strings.Contains(rest, "/")
	case first == "images" && below:
		stem, image := strings.CutSuffix(rest, imageSuffix)
		i, err := parseImageName(strings.TrimSuffix(stem, refsSuffix))
		if err == nil && i.layers > 0 {
			return "stacks", image
		}
		return "images", image
	case first == "images":
		return "images", false
	case first == "snapshots":
		return "snapshots", below && !strings.Contains(rest, "/")
	case first == "metadata.db":
		return "metadata", true
	case first == "reserve":
		return "reserve", true
	}
	return "other", path != "."
}

// DiskUsage measures the root. Pulls and containers go on, so that what they do
// meanwhile may be in it or not; the parts add up nevertheless.
func (s *Snapshotter) DiskUsage(ctx context.Context) (DiskUsage, error) {
	u, err := s.diskUsage(ctx)
	if err != nil {
		return u, fmt.Errorf("disk usage of %s: %w", s.root, err)
	}
	return u, nil
}

func (s *Snapshotter) diskUsage(ctx context.Context) (u DiskUsage, err error) {
	u.Root = s.root
	s.collecting.Lock() // nothing is freed between the two countings of the pack
	defer s.collecting.Unlock()
	var disk unix.Statfs_t
	if err := unix.Statfs(s.root, &disk); err != nil {
		return u, err
	}
	u.FileSystem, u.Free = disk.Blocks*uint64(disk.Bsize), disk.Bavail*uint64(disk.Bsize)
	need, unmet, unjudged := s.foresee(ctx, nil)
	if ctx.Err() != nil {
		return u, ctx.Err()
	}
	st := s.pack.Stats()
	sums := map[string]*UsagePart{}
	for _, p := range usageParts {
		sums[p.name] = &UsagePart{Name: p.name, What: p.what}
	}
	linked := map[uint64]bool{} // inodes with several names count with the first
	err = walkFiles(ctx, s.root, func(path string, st *syscall.Stat_t) {
		name, counts := usagePart(path)
		bytes := uint64(st.Blocks) * 512
		if st.Nlink > 1 && st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
			if linked[st.Ino] {
				bytes = 0
			}
			linked[st.Ino] = true
		}
		sums[name].Bytes += int64(bytes)
		if counts {
			sums[name].Count++
		}
		u.Bytes += bytes
	})
	if err != nil {
		return u, err
	}
	sums["contents"].Count = st.Contents
	for _, p := range usageParts {
		u.Parts = append(u.Parts, *sums[p.name])
	}
	if unjudged != nil {
		u.Contents = []UsagePart{{Name: "unjudged", Count: st.Contents, Bytes: int64(st.Stored), What: unjudged.Error()}}
	} else {
		u.Contents = judgedContents(st, need, unmet)
	}
	u.Contents = append(u.Contents, UsagePart{Name: "rest", Bytes: sums["contents"].Bytes - int64(st.Stored), What: "of the pack: being written, or the file system's own"})
	for name, e := range s.pack.ByEncoding() {
		u.Encodings = append(u.Encodings, EncodingUsage{name, e.Contents, e.Bytes, e.Stored})
	}
	slices.SortFunc(u.Encodings, func(a, b EncodingUsage) int { return cmp.Compare(a.Encoding, b.Encoding) })
	u.LayerBytes, err = s.layerBytes(ctx)
	return u, err
}

// judgedContents divides the contents. What neither stays for a layer nor goes is
// shown by an image, or was written since the judgement began.
func judgedContents(all pack.Stats, need needed, unmet pack.SweepStats) []UsagePart {
	visible := UsagePart{Name: "visible", Count: all.Contents, Bytes: int64(all.Stored), What: "some image shows them"}
	unreferenced := UsagePart{Name: "unreferenced", What: "nobody needs them; the next collection frees them"}
	hidden := map[reason]*UsagePart{
		notFlat:       {Name: "unflattened", What: "of layers of which no flat image was built yet"},
		notRestorable: {Name: "not-restorable", What: "no image shows them; their layers could not be read from containerd again"},
		configured:    {Name: "kept", What: "no image shows them; the configuration says shadowed = keep"},
	}
	take := func(to *UsagePart, count, bytes uint64) {
		to.Count, to.Bytes = to.Count+count, to.Bytes+int64(bytes)
		visible.Count, visible.Bytes = visible.Count-count, visible.Bytes-int64(bytes)
	}
	for _, w := range need.whole {
		take(hidden[w.reason], w.contents, w.bytes)
	}
	take(&unreferenced, unmet.Contents, unmet.Bytes)
	return []UsagePart{visible, *hidden[notFlat], *hidden[notRestorable], *hidden[configured], unreferenced}
}

// layerBytes adds up all layers, each as often as there are snapshots of it.
func (s *Snapshotter) layerBytes(ctx context.Context) (sum uint64, err error) {
	ids, err := s.readKnown(ctx)
	if err != nil {
		return 0, err
	}
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		if ids[id].Kind != snapshots.KindCommitted {
			continue
		}
		if t, err := s.knownSummary(id); err == nil { // one that is damaged, or not taken in, counts nothing
			sum += t.Bytes
		}
	}
	return sum, ctx.Err()
}

// walkFiles calls f for all below root, and root itself ("."). It stays on the
// file system, and passes over what goes meanwhile.
func walkFiles(ctx context.Context, root string, f func(path string, st *syscall.Stat_t)) error {
	var device uint64
	return filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return &fs.PathError{Op: "lstat", Path: path, Err: err}
		}
		if path == root {
			device = st.Dev
		}
		if st.Dev != device {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		name, err := filepath.Rel(root, path)
		if err == nil {
			f(name, &st)
		}
		return err
	})
}
