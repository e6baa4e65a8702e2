// SPDX-License-Identifier: Apache-2.0

// Command demo shows on this machine what squash does: it makes an image the way images of CI runners grow,
// pulls and runs it with containerd's overlayfs snapshotter and with squash, each on a fresh node of its own,
// and prints what each needed. It needs root, the go command and nothing from any registry.
//
//	demo [-only overlayfs|squash|erofs]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/squash-snapshotter/squash/integration/binaries"
	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/measure"
	"github.com/squash-snapshotter/squash/integration/node"
	"github.com/squash-snapshotter/squash/integration/tree"
)

func main() {
	node.Reap()
	only := flag.String("only", "", "run with this snapshotter alone")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	d := &demo{out: os.Stdout, started: time.Now(), only: *only}
	if err := d.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type demo struct {
	out     io.Writer
	started time.Time
	only    string
	told    string // by squashctl
}

// result is one row of the table.
type result struct {
	snapshotter string
	pull        time.Duration // download from loopback and unpack
	run         time.Duration // ctr run of a program that only says hello
	verify      time.Duration // ctr run of a program that reads every file, page cache dropped before
	disk        int64         // blocks of the snapshotter's root after the background work has come to rest
	skipped     string        // why there are no numbers
}

func (d *demo) run(ctx context.Context) error {
	if os.Getuid() != 0 {
		return errors.New("mounts and containers need root")
	}
	d.say("building containerd, ctr, the shim and runc (the first time takes a minute or two)")
	bin, err := binaries.Build(ctx, func(what string) { d.say("  %s", what) })
	if err != nil {
		return err
	}
	if d.only == "" || d.only == node.Squash {
		d.say("building the squash daemon")
		dir, remove, err := node.TempDir()
		if err != nil {
			return err
		}
		defer remove()
		if err := bin.BuildDaemon(ctx, dir); err != nil {
			return err
		}
	}
	store, err := images.OpenStore(filepath.Join(bin.Repo, "bin", "images"))
	if err != nil {
		return err
	}
	registry, err := store.Serve()
	if err != nil {
		return err
	}
	defer registry.Close()
	guest, err := os.ReadFile(bin.Guest)
	if err != nil {
		return err
	}
	goroot, err := binaries.GoRoot(ctx)
	if err != nil {
		return err
	}
	d.say("making the demo image")
	layers, err := images.Demo(store, guest, goroot, func(title string) { d.say("  %s", title) })
	if err != nil {
		return err
	}
	img, err := images.TitledImage(images.OCI, layers)
	if err != nil {
		return err
	}
	ref, err := registry.Push(ctx, "demo:1", img)
	if err != nil {
		return err
	}
	d.say("computing from the layers what a container must see")
	replayed, err := images.Replay(img) // also warms the page cache with the blobs, for all snapshotters alike
	if err != nil {
		return err
	}
	want := tree.Digest(replayed.Visible(images.Volatile...))
	d.image(layers)

	var results []result
	for _, snapshotter := range []string{node.Overlayfs, node.Squash, node.Erofs} {
		if d.only != "" && d.only != snapshotter {
			continue
		}
		r := result{snapshotter: snapshotter}
		if snapshotter == node.Erofs {
			_, _, r.skipped = measure.Mkfs(ctx)
		}
		if r.skipped == "" {
			d.say("%s: a fresh node", snapshotter)
			if err := d.measure(ctx, bin, &r, ref, want); err != nil {
				return fmt.Errorf("%s: %w", snapshotter, err)
			}
		}
		results = append(results, r)
	}
	d.table(results, replayed.Savings)
	if d.told != "" {
		fmt.Fprintf(d.out, "What squashctl says of it:\n\n%s\n", d.told)
	}
	d.say("done, everything is cleaned up")
	return nil
}

// measure pulls and runs on a node that has never seen the image.
func (d *demo) measure(ctx context.Context, bin *binaries.Set, r *result, ref, want string) (err error) {
	setup, err := measure.NewSetup(ctx, bin, r.snapshotter)
	if err != nil {
		return err
	}
	n, err := node.Start(ctx, setup.Options)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, n.Logs(30))
		}
		err = errors.Join(err, n.Close())
	}()
	root := n.SnapshotterRoot(r.snapshotter)
	syscall.Sync()

	d.say("%s:   pull", r.snapshotter)
	start := time.Now()
	if err := n.Pull(ctx, r.snapshotter, ref); err != nil {
		return err
	}
	r.pull = time.Since(start)

	d.say("%s:   run", r.snapshotter)
	start = time.Now()
	if _, err := n.Run(ctx, node.Run{Snapshotter: r.snapshotter, Image: ref, ID: "hello"}); err != nil {
		return err
	}
	r.run = time.Since(start)

	d.say("%s:   waiting until background work has come to rest", r.snapshotter)
	if r.disk, err = node.Settled(ctx, root); err != nil {
		return err
	}

	d.say("%s:   read and verify every file from inside a container, cold", r.snapshotter)
	if err := measure.DropCaches(); err != nil {
		return err
	}
	start = time.Now()
	out, err := n.Run(ctx, node.Run{
		Snapshotter: r.snapshotter, Image: ref, ID: "verify",
		Args: []string{images.GuestPath, "expect", "/", want},
	})
	if err != nil {
		return fmt.Errorf("the container does not see what the layers say: %w", err)
	}
	r.verify = time.Since(start)
	d.say("%s:   as the layers say: %s", r.snapshotter, strings.TrimSpace(out))
	if r.snapshotter == node.Squash {
		return d.tell(ctx, bin, n, ref)
	}
	return nil
}

// tell asks squashctl about the image: why it got smaller, whether it is what the layers say, and for one layer of it.
func (d *demo) tell(ctx context.Context, bin *binaries.Set, n *node.Node, ref string) error {
	var told strings.Builder
	for _, args := range [][]string{
		{"report", "--rows", "5", ref},
		{"verify", ref},
		{"export", "-o", filepath.Join(n.Dir(), "one-layer.tar"), ref},
	} {
		d.say("%s:   squashctl %s", node.Squash, args[0])
		start := time.Now()
		out, errs, code, err := n.Squashctl(ctx, bin.Squashctl, args...)
		if err == nil && code != 0 {
			err = fmt.Errorf("exit code %d\n%s", code, errs)
		}
		if err != nil {
			return fmt.Errorf("squashctl %s: %w", args[0], err)
		}
		fmt.Fprintf(&told, "squashctl %s (%s)\n\n%s\n", args[0], measure.Seconds(time.Since(start)), strings.TrimSpace(out)+"\n")
	}
	d.told = told.String()
	return nil
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "[%5.1fs] %s\n", time.Since(d.started).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) image(layers []images.Titled) {
	fmt.Fprintf(d.out, "\nThe image (%s):\n\n", runtime.GOARCH)
	for i, l := range layers {
		size, _ := l.Layer.Size() // known since the layer was made
		fmt.Fprintf(d.out, "  %d  %-46s %8s compressed\n", i+1, l.Title, measure.MiB(size))
	}
	fmt.Fprintln(d.out)
}

func (d *demo) table(results []result, s images.Savings) {
	fmt.Fprintf(d.out, "\n  %-12s %10s %10s %14s %14s\n", "snapshotter", "pull", "first run", "cold read all", "disk")
	measured := make(map[string]string)
	for _, r := range results {
		if r.skipped != "" {
			fmt.Fprintf(d.out, "  %-12s skipped: %s\n", r.snapshotter, r.skipped)
			continue
		}
		fmt.Fprintf(d.out, "  %-12s %10s %10s %14s %14s\n", r.snapshotter,
			measure.Seconds(r.pull), measure.Seconds(r.run), measure.Seconds(r.verify), measure.MiB(r.disk))
		measured[r.snapshotter] = fmt.Sprintf("   %s: %s measured", r.snapshotter, measure.MiB(r.disk))
	}
	fmt.Fprintln(d.out, "\nWhat there is to save, computed from the layers; file contents in blocks of 4 KiB:")
	fmt.Fprintln(d.out)
	row := func(what string, a images.Amount, note string) {
		fmt.Fprintf(d.out, "  %-45s %10s in %6d files%s\n", what, measure.MiB(a.Blocks), a.Files, note)
	}
	row("all layers", s.Total, measured[node.Overlayfs])
	row("- the same content again", s.Duplicate, "")
	row("- overwritten later, seen by no container", s.Overwritten, "")
	row("- deleted later, seen by no container", s.Deleted, "")
	row("= visible contents, each once", s.Visible, measured[node.Squash])
	fmt.Fprintln(d.out)
}
