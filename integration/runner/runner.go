// SPDX-License-Identifier: Apache-2.0

// Package runner owns the large images of the benchmark: they hold what images of CI runners hold (a small Debian,
// compilers, Python, Node, the Go toolchain, tools from npm) in layers as such images have them, with everything given
// to another user, upgraded, installed twice and cleaned up.
//
//	apt, npm, go ──▶ versions (lock) ──▶ downloads ──recipe──▶ rootfs.Tree, step by step ──▶ layers in the cache
//
// The first run needs the network. Later ones take the layers from the cache and need nothing at all; the same
// versions give the same bytes. The second image is the first one rebuilt with other packages in one layer: nearly all
// contents are the same, and no layer is.
package runner

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/rootfs"
)

// Programs that the images have, each with arguments that make it load what it needs and end.
var Programs = [][]string{
	{"/" + goDir + "/bin/go", "version"},
	{"/usr/bin/node", "--version"},
	{"/usr/bin/python3", "-c", "import json, ssl, email.parser, http.client"},
	{"/usr/bin/git", "--version"},
}

// Cached tells whether Layers needs nothing but the cache.
func (c *Cache) Cached(v Variant) bool {
	l, err := c.lock()
	if err != nil || l == nil {
		return false
	}
	keys, err := l.keys(v)
	if err != nil {
		return false
	}
	return !slices.ContainsFunc(keys, func(key string) bool { return !c.Store.Has(key, images.GzipDefault) })
}

// Layers gives the layers of an image, bottom first; the last one has the guest program. tell gets a line before
// each step that takes time.
func (c *Cache) Layers(ctx context.Context, v Variant, guest []byte, tell func(string)) (out []images.Titled, err error) {
	l, err := c.lock()
	if err != nil {
		return nil, err
	}
	if l == nil {
		tell("asking apt and npm for versions")
		if l, err = c.resolve(ctx, tell); err != nil {
			return nil, fmt.Errorf("large image: %w", err)
		}
	}
	keys, err := l.keys(v)
	if err != nil {
		return nil, err
	}
	b := &build{variant: v, steps: steps(v), guest: guest, tell: tell}
	if !c.Cached(v) {
		if err := c.prepare(ctx, b, l); err != nil {
			return nil, fmt.Errorf("large image: %w", err)
		}
		defer b.spool.Close()
	}
	for i, key := range keys {
		layer, err := c.Store.Layer(key, images.GzipDefault, func(w *images.LayerWriter) error { return b.write(ctx, w, i) })
		if err != nil {
			return nil, fmt.Errorf("large image: %w", err)
		}
		out = append(out, images.Titled{Title: b.steps[i].title, Layer: layer})
	}
	program, err := c.Store.Layer(fmt.Sprintf("guest %x", guest), images.GzipDefault, func(w *images.LayerWriter) error {
		return first(w.Dir("usr", 0o755), w.Dir("usr/bin", 0o755), w.File("usr"+images.GuestPath, 0o755, guest))
	})
	if err != nil {
		return nil, fmt.Errorf("large image: %w", err)
	}
	return append(out, images.Titled{Title: "the guest program", Layer: program}), nil
}

// keys names the layers but the last one in the store.
func (l *lock) keys(v Variant) ([]string, error) {
	sum, err := l.digest()
	if err != nil {
		return nil, err
	}
	var out []string
	for i := range steps(v) {
		out = append(out, fmt.Sprintf("%s versions %s image %d layer %d", recipe, sum, v+1, i+1))
	}
	return out, nil
}

// build makes layers in order. A step is run when its layer, or one above, is asked for.
type build struct {
	kitchen
	variant       Variant
	steps         []step
	guest         []byte
	tell          func(string)
	spool         *rootfs.Spool
	before, after *rootfs.Tree
	done          int // steps that are in after
}

func (b *build) write(ctx context.Context, w *images.LayerWriter, i int) error {
	for ; b.done <= i; b.done++ {
		s := b.steps[b.done]
		b.tell(s.title)
		b.before = b.after
		if b.after == nil {
			b.after = rootfs.New(b.spool, b.built)
		} else {
			b.after = b.after.Clone()
		}
		if err := s.do(ctx, &b.kitchen, b.after); err != nil {
			return fmt.Errorf("%s: %w", s.title, err)
		}
	}
	return rootfs.WriteLayer(w, b.before, b.after)
}

// prepare downloads what is not there and fills the kitchen.
func (c *Cache) prepare(ctx context.Context, b *build, l *lock) error {
	a, err := c.apt()
	if err != nil {
		return err
	}
	b.kitchen = kitchen{
		debs: a.debs, npm: make(map[string]string), variant: b.variant, built: b.variant.built(),
		old: make(map[string][]deb), new: make(map[string][]deb),
	}
	for name, list := range l.Debs {
		if err := a.download(ctx, list); err != nil {
			return err
		}
		if step, ok := strings.CutSuffix(name, ", older"); ok {
			b.kitchen.old[step] = list
		} else {
			b.kitchen.new[name] = list
		}
	}
	for name, s := range l.Npm {
		if b.npm[name], err = c.install(ctx, &s); err != nil {
			return err
		}
	}
	if b.toolchain, err = toolchain(ctx, l.Go); err != nil {
		return err
	}
	b.spool, err = rootfs.NewSpool(c.dir)
	return err
}

// resolve chooses versions, downloads them and writes the lock.
func (c *Cache) resolve(ctx context.Context, tell func(string)) (*lock, error) {
	l := &lock{Recipe: recipe, Debs: make(map[string][]deb), Npm: make(map[string]npmState), Go: goVersion}
	a, err := c.apt()
	if err != nil {
		return nil, err
	}
	if err := a.update(ctx); err != nil {
		return nil, err
	}
	var below []string // names of all steps so far
	installed := make(map[string]bool)
	for _, s := range debSteps {
		wanted := slices.Concat(below, s.debs)
		services := strings.HasPrefix(s.name, "services")
		if !services {
			below = wanted
		}
		all, err := a.closure(ctx, wanted)
		if err != nil {
			return nil, fmt.Errorf("%w\n%s", err, remedy)
		}
		list := slices.DeleteFunc(all, func(d deb) bool { return installed[d.Name] })
		for _, d := range list {
			installed[d.Name] = !services
		}
		older, err := a.older(ctx, list)
		if err != nil {
			return nil, fmt.Errorf("%w\n%s", err, remedy)
		}
		first := slices.Clone(list)
		for i, d := range first {
			if old, ok := older[d.Name]; ok {
				first[i] = old
			}
		}
		l.Debs[s.name], l.Debs[s.name+", older"] = list, first
		tell(fmt.Sprintf("  downloading %d packages: %s", len(list)+len(older), s.name))
		if err := a.download(ctx, list); err != nil {
			return nil, err
		}
		if err := a.download(ctx, first); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(npmSteps)) {
		tell("  downloading npm packages: " + name)
		s := npmState{Dependencies: npmSteps[name]}
		if _, err := c.install(ctx, &s); err != nil {
			return nil, err
		}
		l.Npm[name] = s
	}
	return l, c.writeLock(l)
}

// toolchain has the go command bring a Go toolchain into its module cache.
func toolchain(ctx context.Context, version string) (string, error) {
	module := fmt.Sprintf("golang.org/toolchain@v0.0.1-%s.linux-%s", version, runtime.GOARCH)
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", module)
	out, err := cmd.Output()
	var found struct{ Dir, Error string }
	if json.Unmarshal(out, &found) == nil && found.Error != "" {
		return "", fmt.Errorf("go mod download %s: %s\n%s", module, found.Error, remedy)
	}
	if err != nil {
		return "", fmt.Errorf("go mod download %s: %w", module, err)
	}
	return filepath.Clean(found.Dir), nil
}
