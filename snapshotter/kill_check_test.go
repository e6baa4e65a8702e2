// SPDX-License-Identifier: Apache-2.0

//go:build failpoints

package snapshotter

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/moby/sys/mountinfo"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/pack"
)

var (
	rootFile  = regexp.MustCompile(`^(version|boot|reserve|metadata\.db|pack|index|layers|images|snapshots)$`)
	indexFile = regexp.MustCompile(`^([0-9a-f]{8}-[0-9a-f]{8}\.\d+|synced)$`)
	layerFile = regexp.MustCompile(`^(toc|source|durable)$`)
)

// disorder tells what a store has that it should not have once it is at rest:
// files, mounts and contents that nothing refers to, and blocks that no content
// covers; and what it lacks: contents that no sweep may have freed.
func (n *node) disorder(ctx context.Context) error {
	var ids known
	err := n.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		ids, err = knownSnapshots(ctx)
		return err
	})
	if err != nil {
		return err
	}
	var errs error
	bad := func(format string, args ...any) { errs = errors.Join(errs, fmt.Errorf(format, args...)) }
	each := func(dir string, f func(name string)) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			bad("%w", err)
		}
		for _, e := range entries {
			f(e.Name())
		}
	}
	named := func(dir string, pattern *regexp.Regexp) {
		each(dir, func(name string) {
			if !pattern.MatchString(name) {
				bad("%s is left in %s", name, dir)
			}
		})
	}
	named(n.root, rootFile)
	named(filepath.Join(n.root, "index"), indexFile)
	each(n.snapshotsDir(), func(id string) {
		if info, ok := ids[id]; !ok || info.Kind == snapshots.KindCommitted {
			bad("snapshots/%s is left", id)
		}
	})
	refs := map[pack.Digest]bool{}
	each(n.layersDir(), func(id string) {
		if _, ok := ids[id]; !ok {
			bad("layers/%s is left", id)
		}
		named(n.layer(id), layerFile)
		keeps := ids[id].Kind == snapshots.KindCommitted && (n.cfg.Shadowed == ShadowedKeep || !exists(n.source(id)))
		err := n.eachContent(id, func(d layer.Digest) error {
			refs[pack.Digest(d)] = true
			if _, err := n.pack.Lookup(pack.Digest(d)); err != nil && keeps {
				bad("layer %s: %w", id, err)
			}
			return nil
		})
		if err != nil && (ids[id].Kind == snapshots.KindCommitted || !os.IsNotExist(err)) {
			bad("layer %s: %w", id, err)
		}
	})
	live := map[chain]bool{}
	for id, tocs := range n.chains(ids) {
		if ids[id].Kind == snapshots.KindCommitted {
			if tocs == nil {
				bad("committed snapshot %s has no chain", id)
				continue
			}
			live[chainOf(tocs)] = true
		}
	}
	images, err := n.imageFiles()
	if err != nil {
		bad("%w", err)
	}
	needed := neededLayers(ids, n.chains(ids), images)
	each(n.imagesDir(), func(name string) {
		i, err := parseImageName(strings.TrimSuffix(strings.TrimSuffix(name, imageSuffix), refsSuffix))
		if err != nil || !live[i.chain] || i.layers > 0 && !needed[i] || !exists(n.image(i)) {
			bad("images/%s is left", name)
			return
		}
		blocks, err := n.readRefs(i)
		if err != nil {
			bad("refs of %s: %w", i, err)
		}
		if none := n.pack.Begins(blocks.Blocks); len(none) > 0 {
			bad("%s shows blocks %v that are no content's", i.what(), none)
		}
	})
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(n.state))
	if err != nil {
		bad("%w", err)
	}
	var mounted []string
	for _, m := range infos {
		mounted = append(mounted, m.Mountpoint)
	}
	each(n.imageMounts(), func(name string) {
		if i, err := parseImageName(name); err != nil || !live[i.chain] || !exists(n.image(i)) || !slices.Contains(mounted, n.imageMount(i)) {
			bad("mount point %s is left", name)
		}
	})
	each(n.skeletonMounts(), func(id string) {
		if info, ok := ids[id]; !ok || info.Kind != snapshots.KindActive || !slices.Contains(mounted, n.skeletonMount(id)) {
			bad("skeleton %s is left", id)
		}
	})
	n.pack.Each(func(d pack.Digest, p pack.Placement) bool {
		if !refs[d] {
			bad("content %x is left", d[:4])
		}
		return true
	})
	var st syscall.Stat_t
	if err := syscall.Stat(n.pack.Path(), &st); err != nil {
		bad("%w", err)
	}
	// The file system's own blocks (extent trees) count as the file's, too.
	if stored, allocated := int64(n.pack.Stats().Stored), st.Blocks*512; allocated < stored || allocated > stored+64<<10 {
		bad("the pack takes up %d bytes, the index speaks of %d", allocated, stored)
	}
	return errs
}

// notDurable tells which layers a power cut could still take.
func (n *node) notDurable(ctx context.Context) error {
	return n.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		ids, err := knownSnapshots(ctx)
		for id, info := range ids {
			if info.Kind == snapshots.KindCommitted && !exists(n.durable(id)) {
				err = errors.Join(err, fmt.Errorf("layer %s is not durable", id))
			}
		}
		return err
	})
}

// checkContents hashes the bytes of every content of the index: invariant 2.
func checkContents(t *testing.T, s *pack.Store) {
	t.Helper()
	f, err := os.Open(s.Path())
	must(t, err)
	defer f.Close()
	seen := map[pack.Digest]bool{}
	s.Each(func(d pack.Digest, p pack.Placement) bool {
		b := make([]byte, p.Size)
		_, err := f.ReadAt(b, int64(p.Block)*pack.BlockSize)
		if err != nil || pack.Digest(sha256.Sum256(b)) != d {
			// A sweep may just have cut it from the index.
			if again, lerr := s.Lookup(d); lerr == nil && again == p {
				t.Errorf("content %x has other bytes: %v", d[:4], err)
			}
		}
		if seen[d] {
			t.Errorf("content %x is in the index twice", d[:4])
		}
		seen[d] = true
		return true
	})
}

// checkKilled is checkContents before the start that frees what is not needed. It
// looks at a copy, to leave all of the recovery to the start.
func checkKilled(t *testing.T, dir string) {
	t.Helper()
	root := filepath.Join(dir, "root")
	if !exists(filepath.Join(root, "index")) {
		return
	}
	to := t.TempDir()
	out, err := exec.Command("cp", "-a", "--sparse=always", filepath.Join(root, "pack"), filepath.Join(root, "index"), to).CombinedOutput()
	if err != nil {
		t.Fatalf("copy the pack: %v\n%s", err, out)
	}
	s, err := pack.Open(context.Background(), to)
	must(t, err)
	checkContents(t, s)
	must(t, s.Close())
}

// checkUsage compares the sum of all usages with what there is: invariant 7.
func (n *node) checkUsage() {
	n.t.Helper()
	var sum, there int64
	for _, info := range n.all() {
		u, err := n.Usage(context.Background(), info.Name)
		must(n.t, err)
		sum += u.Size
	}
	for _, dir := range []string{n.layersDir(), n.imagesDir(), n.snapshotsDir()} {
		must(n.t, filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
			if err == nil && path != dir {
				there += info.Sys().(*syscall.Stat_t).Blocks * 512
			}
			return err
		}))
	}
	there += int64(n.pack.Stats().Stored)
	// A line of the index is less than a block.
	if lines := int64(n.pack.Stats().Contents) * pack.BlockSize; sum < there-there/100 || sum > there+there/100+lines {
		n.t.Errorf("usages add up to %d bytes, %d are there", sum, there)
	}
}
