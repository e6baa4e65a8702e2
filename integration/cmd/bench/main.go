// SPDX-License-Identifier: Apache-2.0

// Command bench measures snapshotters against each other on this machine: each on fresh nodes of its own with a
// private containerd, with images from a registry on the loopback interface, in rounds that take turns. It prints
// tables and writes Markdown, JSON and SVG. It needs root, and the network once, for the packages of the large image.
//
//	bench [-setups LIST] [-images LIST] [-rounds N] [-to DIR]
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/squash-snapshotter/squash/integration/binaries"
	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/measure"
	"github.com/squash-snapshotter/squash/integration/node"
	"github.com/squash-snapshotter/squash/integration/runner"
	"github.com/squash-snapshotter/squash/integration/tree"
)

func main() {
	node.Reap()
	b := &bench{started: time.Now()}
	flag.StringVar(&b.setups, "setups", "overlayfs,overlayfs-parallel,erofs-lz4,erofs-lz4-parallel,squash-none,squash-lz4,squash-zstd",
		"what to compare, the first one is 100 %: "+measure.SetupForms)
	flag.StringVar(&b.images, "images", "demo,runner,layers", "images to measure with: demo, runner, layers (128 of them), files (a million)")
	flag.IntVar(&b.rounds, "rounds", 3, "how often everything is measured")
	flag.StringVar(&b.to, "to", filepath.Join("docs", "bench"), "directory for the results, relative to the repository")
	flag.BoolVar(&b.verify, "verify", true, "have a container check every file in the first round")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := b.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct {
	setups, images, to string
	rounds             int
	verify             bool
	started            time.Time
	registries         []*images.Registry
}

func (b *bench) run(ctx context.Context) (err error) {
	if os.Getuid() != 0 {
		return errors.New("mounts and containers need root")
	}
	b.say("building containerd, ctr, the shim, runc and the squash daemon")
	bin, err := binaries.Build(ctx, func(what string) { b.say("  %s", what) })
	if err != nil {
		return err
	}
	dir, remove, err := node.TempDir()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	if err := bin.BuildDaemon(ctx, dir); err != nil {
		return err
	}
	results, setups, err := b.prepare(ctx, bin)
	if err != nil {
		return err
	}
	defer func() {
		for _, r := range b.registries {
			err = errors.Join(err, r.Close())
		}
	}()
	subjects, err := b.subjects(ctx, bin, results)
	if err != nil {
		return err
	}
	for round := range b.rounds {
		for _, subject := range subjects {
			for _, s := range setups {
				if s.Missing != "" {
					continue
				}
				name := fmt.Sprintf("round %d, %s, %s", round+1, subject.Name, s.Name)
				b.say("%s", name)
				sample, err := measure.Run(ctx, s, subject, b.verify && round == 0, func(what string) { b.say("%s:   %s", name, what) })
				if ctx.Err() != nil {
					return err
				}
				if err != nil {
					// The others are worth their numbers all the same.
					b.say("%s: FAILED: %v", name, err)
					results.Failed = append(results.Failed, name)
					continue
				}
				results.Add(subject.Name, s.Name, sample)
				// What is there is kept if the rest is given up.
				if err := b.write(bin, results); err != nil {
					return err
				}
			}
		}
	}
	results.Table(os.Stdout)
	b.say("results are in %s", b.to)
	if len(results.Failed) > 0 {
		return fmt.Errorf("%d runs failed: %s", len(results.Failed), strings.Join(results.Failed, "; "))
	}
	return nil
}

// prepare makes the setups and looks which of them can be had.
func (b *bench) prepare(ctx context.Context, bin *binaries.Set) (*measure.Results, []measure.Setup, error) {
	machine, err := measure.ThisMachine(cmp.Or(os.Getenv("SQUASH_TEST_DIR"), os.TempDir()))
	if err != nil {
		return nil, nil, err
	}
	if machine.Versions, err = bin.Versions(ctx); err != nil {
		return nil, nil, err
	}
	if _, version, missing := measure.Mkfs(ctx); missing == "" {
		machine.Versions["mkfs.erofs"] = version
	}
	machine.Versions["program that decompresses layers:"] = measure.Gunzip()
	results := &measure.Results{
		Machine: machine, Rounds: b.rounds, Skipped: make(map[string]string), About: make(map[string]string),
		Command: strings.Join(append([]string{"make bench"}, quoted(os.Args[1:])...), " "),
	}
	var setups []measure.Setup
	for name := range strings.SplitSeq(b.setups, ",") {
		s, err := measure.NewSetup(ctx, bin, name)
		if err != nil {
			return nil, nil, err
		}
		b.say("trying %s", name)
		if err := s.Try(ctx); err != nil {
			return nil, nil, err
		}
		if s.Missing != "" {
			b.say("  skipped: %s", s.Missing)
			results.Skipped[name] = s.Missing
		}
		results.Setups = append(results.Setups, name)
		setups = append(setups, s)
	}
	return results, setups, nil
}

// quoted gives flags the form in which make bench takes them.
func quoted(args []string) []string {
	if len(args) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("BENCH=%q", strings.Join(args, " "))}
}

// subjects makes the images and pushes them.
func (b *bench) subjects(ctx context.Context, bin *binaries.Set, results *measure.Results) (list []measure.Subject, err error) {
	guest, err := os.ReadFile(bin.Guest)
	if err != nil {
		return nil, err
	}
	for name := range strings.SplitSeq(b.images, ",") {
		b.say("making the image %s", name)
		var s measure.Subject
		switch name {
		case "demo":
			s, err = b.demo(ctx, bin, guest)
		case "runner":
			s, err = b.runner(ctx, guest)
		case "layers":
			s, err = b.generated(ctx, bin, name, guest, images.ManyLayers)
		case "files":
			s, err = b.generated(ctx, bin, name, guest, images.ManyFiles)
		default:
			err = fmt.Errorf("image %q is not one of demo, runner, layers, files", name)
		}
		if err != nil {
			return nil, err
		}
		s.Name = name
		b.say("  computing from the layers what a container must see")
		replayed, err := images.Replay(s.Image)
		if err != nil {
			return nil, err
		}
		s.Want = tree.Digest(replayed.Visible(images.Volatile...))
		results.Subjects = append(results.Subjects, name)
		if results.About[name], err = about(s, replayed); err != nil {
			return nil, err
		}
		b.say("  %s", results.About[name])
		list = append(list, s)
	}
	return list, nil
}

// about says what an image is like.
func about(s measure.Subject, r *images.Replayed) (string, error) {
	layers, err := s.Image.Layers()
	if err != nil {
		return "", err
	}
	var blobs int64
	for _, l := range layers {
		n, err := l.Size()
		if err != nil {
			return "", err
		}
		blobs += n
	}
	text := fmt.Sprintf("%d layers, %s compressed, %s in %d files unpacked, %s of it seen by a container, each content once",
		r.Layers, measure.MiB(blobs), measure.MiB(r.Savings.Total.Bytes), r.Savings.Total.Files, measure.MiB(r.Savings.Visible.Bytes))
	if s.SecondImage == nil {
		return text, nil
	}
	second, err := images.Replay(s.SecondImage)
	if err != nil {
		return "", err
	}
	has := make(map[string]bool)
	for _, e := range r.Visible() {
		has[e.Content] = true
	}
	var fresh int64
	for _, e := range second.Visible() {
		if !has[e.Content] {
			has[e.Content] = true
			fresh += e.Size
		}
	}
	return fmt.Sprintf("%s; of what the second image shows, %.1f %% is not in the first", text,
		100*float64(fresh)/float64(second.Savings.Visible.Bytes)), nil
}

func (b *bench) demo(ctx context.Context, bin *binaries.Set, guest []byte) (s measure.Subject, err error) {
	store, err := images.OpenStore(filepath.Join(bin.Repo, "bin", "images"))
	if err != nil {
		return s, err
	}
	goroot, err := binaries.GoRoot(ctx)
	if err != nil {
		return s, err
	}
	layers, err := images.Demo(store, guest, goroot, func(title string) { b.say("  %s", title) })
	if err != nil {
		return s, err
	}
	s.Programs = runner.Programs[:1] // Go is where it is in the large image
	s.Image, s.Ref, err = b.push(ctx, store, "demo:1", plain(layers))
	return s, err
}

// generated makes an image that is nothing but names and bytes.
func (b *bench) generated(ctx context.Context, bin *binaries.Set, name string, guest []byte, layers func(*images.Store, []byte) ([]v1.Layer, error)) (s measure.Subject, err error) {
	store, err := images.OpenStore(filepath.Join(bin.Repo, "bin", "images"))
	if err != nil {
		return s, err
	}
	list, err := layers(store, guest)
	if err != nil {
		return s, err
	}
	s.Image, s.Ref, err = b.push(ctx, store, name+":1", list)
	return s, err
}

func plain(titled []images.Titled) (layers []v1.Layer) {
	for _, l := range titled {
		layers = append(layers, l.Layer)
	}
	return layers
}

func (b *bench) runner(ctx context.Context, guest []byte) (s measure.Subject, err error) {
	cache, err := runner.OpenCache()
	if err != nil {
		return s, err
	}
	s.Programs = runner.Programs
	b.say("  downloads and layers are kept in %s", cache.Dir())
	first, err := cache.Layers(ctx, runner.First, guest, func(title string) { b.say("  %s", title) })
	if err != nil {
		return s, err
	}
	if s.Image, s.Ref, err = b.push(ctx, cache.Store, "runner:1", plain(first)); err != nil {
		return s, err
	}
	second, err := cache.Layers(ctx, runner.Second, guest, func(title string) { b.say("  second: %s", title) })
	if err != nil {
		return s, err
	}
	s.SecondImage, s.Second, err = b.push(ctx, cache.Store, "runner:2", plain(second))
	return s, err
}

// push puts layers into an image and serves it.
func (b *bench) push(ctx context.Context, store *images.Store, tag string, layers []v1.Layer) (v1.Image, string, error) {
	img, err := images.Image(images.OCI, layers...)
	if err != nil {
		return nil, "", err
	}
	registry, err := store.Serve()
	if err != nil {
		return nil, "", err
	}
	b.registries = append(b.registries, registry)
	ref, err := registry.Push(ctx, tag, img)
	return img, ref, err
}

// write leaves the results as they are now.
func (b *bench) write(bin *binaries.Set, r *measure.Results) error {
	to := b.to
	if !filepath.IsAbs(to) {
		to = filepath.Join(bin.Repo, to)
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(to, "results.json"), append(data, '\n'), 0o644); err != nil {
		return err
	}
	var text strings.Builder
	r.Markdown(&text)
	if err := os.WriteFile(filepath.Join(to, "README.md"), []byte(text.String()), 0o644); err != nil {
		return err
	}
	return r.Plots(to)
}

func (b *bench) say(format string, args ...any) {
	fmt.Printf("[%6.1fs] %s\n", time.Since(b.started).Seconds(), fmt.Sprintf(format, args...))
}
