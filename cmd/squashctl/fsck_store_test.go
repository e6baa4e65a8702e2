// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/squash-snapshotter/squash/internal/kmsgtest"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/treetest"
	"github.com/squash-snapshotter/squash/service"
	"github.com/squash-snapshotter/squash/snapshotter"
)

// blobs is a content store of layers that are not compressed.
type blobs map[digest.Digest][]byte

func (b blobs) Open(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	data, ok := b[desc.Digest]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, errdefs.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (b blobs) Kept(context.Context) (map[digest.Digest]bool, error) {
	kept := map[digest.Digest]bool{}
	for d := range b {
		kept[d] = true
	}
	return kept, nil
}

func (b blobs) ImagesOf(context.Context, digest.Digest) ([]string, error) { return nil, nil }

// store is the real daemon, in this process, with one image of one layer that has the file /tool.
type store struct {
	service.Backend
	root, address string
	tool          []byte
	top           string // the image's snapshot
}

func newStore(t *testing.T) *store {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts file systems")
	}
	dir := t.TempDir()
	cfg := service.DefaultConfig()
	cfg.Root, cfg.State, cfg.Address = filepath.Join(dir, "root"), filepath.Join(dir, "state"), filepath.Join(dir, "s.sock")
	cfg.ContainerdAddress = filepath.Join(dir, "no-containerd.sock")

	s := &store{root: cfg.Root, address: cfg.Address, tool: make([]byte, 70_000)}
	random := rand.NewChaCha8([32]byte{1})
	random.Read(s.tool)
	layer := treetest.Layer(treetest.Dir("bin"), treetest.File("bin/tool", string(s.tool)), treetest.File("small", "small"))
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(layer), Size: int64(len(layer))}
	kept := blobs{desc.Digest: layer}

	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- service.Run(ctx, cfg, service.Options{
			Open: func(ctx context.Context, cfg service.Config, _ service.Containerd, committed func(string)) (service.Backend, error) {
				opened, err := snapshotter.New(ctx, snapshotter.Config{Root: cfg.Root, State: cfg.State, Mount: mounts.ModeAuto, Content: kept, OnCommit: committed})
				s.Backend = opened
				return opened, err
			},
			Ready: func() { close(ready) },
		})
	}()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		err := <-ended
		mounted, merr := mounts.Mounted(cfg.State)
		err = errors.Join(err, merr)
		for target := range mounted {
			err = errors.Join(err, unix.Unmount(target, unix.MNT_DETACH))
		}
		if err != nil {
			t.Error(err)
		}
	})

	s.top = "ns/1/" + desc.Digest.String()
	m, err := s.Prepare(ctx, "ns/1/extract-1 top", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(ctx, desc, m); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Commit(ctx, s.top, "ns/1/extract-1 top"), s.Flatten(ctx, s.top)); err != nil {
		t.Fatal(err)
	}
	return s
}

// damage overwrites a few bytes of the one file that pattern names below the root.
func (s *store) damage(t *testing.T, pattern string, at int64) {
	t.Helper()
	kmsgtest.Noisy(t)
	paths, err := filepath.Glob(filepath.Join(s.root, pattern))
	if err != nil || len(paths) != 1 {
		t.Fatalf("%s: %v, %v, want one file", pattern, paths, err)
	}
	f, err := os.OpenFile(paths[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("damage"), at)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// toolInPack returns where the pack has the file's bytes, which no compression makes smaller.
func (s *store) toolInPack(t *testing.T) int64 {
	t.Helper()
	pack, err := os.ReadFile(filepath.Join(s.root, "pack"))
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(pack, s.tool[:4096])
	if at < 0 {
		t.Fatal("the pack does not have the file's bytes as they are")
	}
	return int64(at)
}

// readTool returns the file as a view of the image shows it.
func (s *store) readTool(t *testing.T) []byte {
	t.Helper()
	m, err := s.View(t.Context(), "ns/2/view", s.top)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := mount.All(m, dir); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(mount.UnmountAll(dir, 0), s.Remove(context.Background(), "ns/2/view")); err != nil {
			t.Error(err)
		}
	}()
	tool, err := os.ReadFile(filepath.Join(dir, "bin", "tool"))
	if err != nil {
		t.Error(err)
	}
	return tool
}

// fsck returns the exit code and the findings, each as its kind and "repaired" or "left".
func (s *store) fsck(t *testing.T, args ...string) (code int, findings []string) {
	t.Helper()
	code, stdout, stderr := execute(t, append([]string{"--address", s.address, "fsck", "--format", "json"}, args...)...)
	if stderr != "" {
		t.Errorf("fsck %q said %q", args, stderr)
	}
	for line := range strings.Lines(stdout) {
		var l struct {
			Finding *struct {
				Kind, Remedy string
				Repaired     bool
			}
			Summary *struct{ Layers uint64 }
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		switch f := l.Finding; {
		case f == nil && l.Summary == nil:
			t.Errorf("printed %s", line)
		case f == nil:
		case f.Repaired:
			findings = append(findings, f.Kind+" repaired")
		case f.Remedy == "":
			t.Errorf("no remedy: %s", line)
		default:
			findings = append(findings, f.Kind+" left")
		}
	}
	return code, findings
}

func TestFsckOfARealStore(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(*testing.T, *store)
		kind   string
		quick  bool // a quick check finds it
	}{
		{"flat image", func(t *testing.T, s *store) { s.damage(t, "images/*.erofs", 1200) }, "image", true},
		{"table of contents", func(t *testing.T, s *store) { s.damage(t, "layers/*/toc", 40) }, "layer", true},
		{"pack", func(t *testing.T, s *store) { s.damage(t, "pack", s.toolInPack(t)+5000) }, "content", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t)
			expect := func(code int, findings []string, args ...string) {
				t.Helper()
				gotCode, got := s.fsck(t, args...)
				if gotCode != code || !slices.Equal(got, findings) {
					t.Errorf("fsck %q: exit code %d, found %q; want %d, %q", args, gotCode, got, code, findings)
				}
			}
			expect(0, nil)
			c.damage(t, s)
			if c.quick {
				expect(damageLeft, []string{c.kind + " left"}, "--quick")
			} else {
				expect(0, nil, "--quick")
			}
			expect(damageLeft, []string{c.kind + " left"})
			expect(allRepaired, []string{c.kind + " repaired"}, "--repair", "--rate", "100")
			expect(0, nil)
			if !bytes.Equal(s.readTool(t), s.tool) {
				t.Error("after the repair, the image shows other bytes")
			}
		})
	}
}
