// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/squash-snapshotter/squash/internal/flatten"
	"github.com/squash-snapshotter/squash/internal/layer"
	"golang.org/x/sys/unix"
)

// A chain that was committed just now is shown as a stack: the flat image of
// its lower layers, and above it images of a few layers each. So a build step
// costs what it changes, and not what it changes it in:
//
//	lowerdir=<layers 13>/fs:<layers 9 … 12>/fs:<layers 1 … 8>/fs:<flat image below>/fs
//
// The images are those of the height's binary digits, as in a counter: a step
// makes one new image, each layer is read again as often as the height has
// digits, and no name is looked up in more directories than that.
//
// Layers that a differ took in from a blob are never shown like this. Pulled
// images have one lower directory, which containerd before 2.3 must have to map
// IDs; and what a tar implies and does not state is settled by all layers below,
// where an upper directory says by itself all that it changes.
const (
	// maxStack is the most layers above the flat image.
	maxStack = 128
	// The entries above are at most an eighth of those below, for they take up
	// memory and disk twice: so flattening, too, is in proportion to what has
	// changed. Small images may have some more.
	maxStackShare   = 8
	minStackEntries = 512
	// maxLowers bounds the lower directories in mount options, in bytes.
	// containerd shortens longer options (a page less 512 bytes) by paths that
	// are relative to the working directory, which mounts.Users could not tell.
	maxLowers = 3000
)

// lowers returns the directories that together show the chain of the committed
// snapshots ids, the bottom one first: those of its flat image alone, or of a
// stack, topmost first. The images stay at least until release.
func (s *Snapshotter) lowers(ctx context.Context, ids []string) (roots []string, release func(), err error) {
	tocs, err := s.summaries(ctx, ids)
	if err != nil {
		return nil, nil, err
	}
	chains := chainsOf(tocs)
	top := chains[len(chains)-1]
	// Held before it is decided what there is: a collection may be under way.
	releases := []func(){s.useImage(flatImage(top))}
	release = func() {
		for _, r := range releases {
			r()
		}
	}
	at, share := s.stackable(ids, tocs, chains)
	if share > 1 && s.awaitSettling(ctx) {
		at, share = s.stackable(ids, tocs, chains) // on what was flattened meanwhile
	}
	ok := at > 0 && share <= 1
	if ok {
		releases = append(releases, s.useImage(flatImage(chains[at-1])))
		for _, i := range stackImages(chains, at) {
			releases = append(releases, s.useImage(i))
		}
		if roots, err = s.stack(ctx, ids, chains, at); err == nil {
			s.stacked(top, ids, share > 0.5)
			return roots, release, nil
		}
	}
	if !ok || errors.Is(err, flatten.ErrBelow) {
		var root string
		if root, err = s.flatRoot(ctx, top, ids); err == nil {
			return []string{root}, release, nil
		}
	}
	release()
	return nil, nil, err
}

// stackable tells whether a chain is to be shown as a stack: how many of its
// layers the flat image below has, 0 if it is none, and which share those above
// have of what a stack may hold. Above 1, the whole chain has to be flattened.
func (s *Snapshotter) stackable(ids []string, tocs []layer.Summary, chains []chain) (at int, share float64) {
	above, below := uint64(0), uint64(0)
	for at = len(ids); !exists(s.image(flatImage(chains[at-1]))); at-- {
		if at == 1 || exists(s.source(ids[at-1])) {
			return 0, 0
		}
		above += tocs[at-1].Entries
	}
	height := len(ids) - at
	lowers := bits.OnesCount(uint(height)) + 1
	if height == 0 || lowers*(len(s.imageMount(layerImage(chain{}, maxStack)))+len("/"+flatten.RootName+":")) > maxLowers {
		return 0, 0
	}
	for _, t := range tocs[:at] {
		below += t.Entries
	}
	return at, max(float64(height)/maxStack, float64(above)/float64(max(minStackEntries, below/maxStackShare)))
}

// stackImages names the images of the layers above the first at ones, the bottom
// one first.
func stackImages(chains []chain, at int) (images []imageName) {
	for n := maxStack; n > 0; n /= 2 {
		if (len(chains)-at)&n != 0 {
			at += n
			images = append(images, layerImage(chains[at-1], n))
		}
	}
	return images
}

// stack makes sure that the images of a stack exist and are mounted, and returns
// the directories that show them, topmost first. flatten.ErrBelow: a layer
// cannot be told by itself.
func (s *Snapshotter) stack(ctx context.Context, ids []string, chains []chain, at int) ([]string, error) {
	root, err := s.flatRoot(ctx, chains[at-1], ids[:at])
	if err != nil {
		return nil, err
	}
	roots := []string{root}
	for _, i := range stackImages(chains, at) {
		layers, below := ids[at:at+i.layers], slices.Clone(roots)
		root, err := s.shown(ctx, i, layers, func(ctx context.Context) (*flatten.Tree, error) {
			b := flatten.Below{Directory: func(names []string) (bool, error) { return showDirectory(below, names) }}
			var err error
			if b.Root, err = layer.Directory(below[0]); err != nil {
				return nil, err
			}
			return flatten.Alone(ctx, s.tocReaders(layers), &b)
		})
		if err != nil {
			return nil, err
		}
		roots, at = slices.Insert(roots, 0, root), at+i.layers
	}
	return roots, nil
}

// showDirectory tells whether overlayfs over these directories, topmost first,
// shows a directory under names. They are met one at a time by descriptor, and
// symlinks are not followed: none leads out of an image.
func showDirectory(roots, names []string) (bool, error) {
	for _, root := range roots {
		switch found, hidden, err := openDirectory(root, names); {
		case err != nil:
			return false, fmt.Errorf("%q in %s: %w", names, root, err)
		case found || hidden:
			return found, nil
		}
	}
	return false, nil
}

// openDirectory is showDirectory for one of the directories. hidden: not found,
// and whatever those below it have does not count.
func openDirectory(root string, names []string) (found, hidden bool, err error) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, false, err
	}
	defer func() { unix.Close(fd) }()
	for _, name := range names {
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		switch {
		case errors.Is(err, unix.ENOENT):
			return false, hidden, nil
		case errors.Is(err, unix.ENOTDIR): // a file, a symlink, a whiteout
			return false, true, nil
		case err != nil:
			return false, false, err
		}
		unix.Close(fd)
		fd = next
		var opaque [2]byte
		n, err := unix.Getxattr(fmt.Sprintf("/proc/self/fd/%d", fd), "trusted.overlay.opaque", opaque[:])
		if err != nil && !errors.Is(err, unix.ENODATA) {
			return false, false, err
		}
		hidden = hidden || err == nil && string(opaque[:n]) == "y"
	}
	return true, false, nil
}

// imageTree is what an image shows, from the TOCs of all layers of its chain.
func (s *Snapshotter) imageTree(ctx context.Context, i imageName, ids []string) (*flatten.Tree, error) {
	tree, err := s.merge(ctx, ids)
	if err != nil || i.layers == 0 {
		return tree, err
	}
	return tree.Top(i.layers)
}

// neededLayers returns the images of layers that have to stay: those in the
// stacks of committed snapshots that have no committed child, and all below an
// active snapshot or a view. Its client has got the names of lower directories
// and may mount them at any time, also when the chain is flat by then.
func neededLayers(ids known, tocs map[string][]layer.Summary, images []imageName) map[imageName]bool {
	flat := map[chain]bool{}
	for _, i := range images {
		flat[i.chain] = flat[i.chain] || i.layers == 0
	}
	parents, byName := ids.committedParents(), ids.byName()
	needed, below := map[imageName]bool{}, handedOut(ids, tocs)
	for id, info := range ids {
		if info.Kind != snapshots.KindCommitted || parents[info.Name] {
			continue
		}
		chains := ids.chainsBelow(id, tocs, byName)
		at := len(chains)
		for at > 0 && !flat[chains[at-1]] {
			at--
		}
		for _, i := range stackImages(chains, at) {
			needed[i] = true
		}
	}
	for _, i := range images {
		if i.layers > 0 && below[i.chain] {
			needed[i] = true
		}
	}
	return needed
}

// handedOut returns the chains below active snapshots and views: their clients
// have got the names of directories that show them, and may mount these at any
// time.
func handedOut(ids known, tocs map[string][]layer.Summary) map[chain]bool {
	below, byName := map[chain]bool{}, ids.byName()
	for id, info := range ids {
		if info.Kind == snapshots.KindCommitted {
			continue
		}
		for _, c := range ids.chainsBelow(id, tocs, byName) {
			below[c] = true
		}
	}
	return below
}

// chainsBelow returns the chains of the nearest snapshot whose TOCs are to be
// had, itself or below: active ones have none, nor have committed ones that are
// still to be taken in. byName is k.byName().
func (k known) chainsBelow(id string, tocs map[string][]layer.Summary, byName map[string]string) []chain {
	for tocs[id] == nil && id != "" {
		id = byName[k[id].Parent]
	}
	return chainsOf(tocs[id])
}
