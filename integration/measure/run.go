// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/node"
)

// Subject is an image to measure with.
type Subject struct {
	Name     string
	Ref      string
	Image    v1.Image
	Want     string // digest of the tree that a container must see
	Programs [][]string
	// Second is the reference of a similar image that is pulled when the first is there; empty: none.
	Second      string
	SecondImage v1.Image
}

// Sample is what one run measured: seconds, bytes, or ratios, by metric.
type Sample map[string]float64

// Run measures a subject on a fresh node. verify has a container check all that it sees, which takes a while.
func Run(ctx context.Context, s Setup, subject Subject, verify bool, tell func(string)) (_ Sample, err error) {
	n, err := node.Start(ctx, s.Options)
	if err != nil {
		return nil, err
	}
	r := &run{ctx: ctx, node: n, snapshotter: s.Snapshotter, subject: subject, sample: make(Sample), tell: tell}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, n.Logs(30))
		}
		err = errors.Join(err, n.Close())
	}()
	steps := []func() error{r.pull, r.start, r.settle, r.trees, r.programs, r.reads, r.second, r.remove}
	if verify {
		steps = slices.Insert(steps, 3, r.verify)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return r.sample, nil
}

type run struct {
	ctx         context.Context
	node        *node.Node
	snapshotter string
	subject     Subject
	sample      Sample
	tell        func(string)
	used        node.Usage // before the pull
	containers  int
}

// seconds does something and notes how long it took.
func (r *run) seconds(metric string, do func() error) error {
	start := time.Now()
	if err := do(); err != nil {
		return err
	}
	r.sample[metric] = time.Since(start).Seconds()
	return nil
}

// warm reads the blobs of an image, so that the registry serves them from memory for all setups alike.
func warm(img v1.Image) error {
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		blob, err := l.Compressed()
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, blob)
		if err := errors.Join(err, blob.Close()); err != nil {
			return fmt.Errorf("read blob: %w", err)
		}
	}
	return nil
}

func (r *run) pull() (err error) {
	r.tell("pull")
	if err := warm(r.subject.Image); err != nil {
		return err
	}
	syscall.Sync()
	if err := r.node.ResetPeak(); err != nil {
		return err
	}
	if r.used, err = r.node.Usage(); err != nil {
		return err
	}
	return r.seconds("pull", func() error { return r.node.Pull(r.ctx, r.snapshotter, r.subject.Ref) })
}

// start runs a program that says hello and ends, right after the pull and then again.
func (r *run) start() error {
	hello := func() error {
		r.containers++
		id := fmt.Sprintf("hello-%d", r.containers)
		_, err := r.node.Run(r.ctx, node.Run{
			Snapshotter: r.snapshotter, Image: r.subject.Ref, ID: id, Args: []string{images.GuestPath, "hello"},
		})
		return err
	}
	if err := r.seconds("first start", hello); err != nil {
		return err
	}
	return r.seconds("start", hello)
}

// settle waits for the end of background work: what it needed and what it left.
func (r *run) settle() error {
	r.tell("waiting until background work has come to rest")
	disk, err := node.Settled(r.ctx, r.node.SnapshotterRoot(r.snapshotter))
	if err != nil {
		return err
	}
	content, err := node.Allocated(r.node.ContentStore())
	if err != nil {
		return err
	}
	used, err := r.node.Usage()
	if err != nil {
		return err
	}
	r.sample["disk"], r.sample["content store"] = float64(disk), float64(content)
	r.sample["pull CPU"] = (used.CPU - r.used.CPU).Seconds()
	r.sample["peak memory"] = float64(used.Memory)
	return nil
}

func (r *run) verify() error {
	r.tell("verify every file")
	_, err := r.node.Run(r.ctx, node.Run{
		Snapshotter: r.snapshotter, Image: r.subject.Ref, ID: "verify",
		Args: []string{images.GuestPath, "expect", "/", r.subject.Want},
	})
	if err != nil {
		return fmt.Errorf("the container does not see what the layers say: %w", err)
	}
	return nil
}

// inside starts a container that waits, without which do would measure how containers are started.
func (r *run) inside(do func(guest func(args ...string) (string, error)) error) (err error) {
	r.containers++
	c, err := r.node.Start(r.ctx, node.Run{
		Snapshotter: r.snapshotter, Image: r.subject.Ref, ID: fmt.Sprintf("wait-%d", r.containers),
		Args: []string{images.GuestPath, "wait"},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Stop(context.WithoutCancel(r.ctx))) }()
	return do(func(args ...string) (string, error) {
		return c.Exec(r.ctx, append([]string{images.GuestPath}, args...)...)
	})
}

// numbers reads seconds, and a count, in what the guest program prints.
func numbers(out string, err error) (list []float64, _ error) {
	for f := range strings.FieldsSeq(out) {
		n, parse := strconv.ParseFloat(f, 64)
		list, err = append(list, n), errors.Join(err, parse)
	}
	if err == nil && len(list) == 0 {
		err = errors.New("the guest program printed nothing")
	}
	return list, err
}

// trees looks at every entry, cold, and for names that are not there, in directories that are known then.
func (r *run) trees() error {
	r.tell("walk")
	return r.inside(func(guest func(...string) (string, error)) error {
		if err := DropCaches(); err != nil {
			return err
		}
		for _, m := range []struct{ metric, verb string }{{"cold walk", "walk"}, {"warm walk", "walk"}, {"missing names", "miss"}} {
			list, err := numbers(guest(m.verb, "/"))
			if err != nil {
				return err
			}
			r.sample[m.metric] = list[0]
		}
		return nil
	})
}

// programs runs each program cold, then ten times warm.
func (r *run) programs() error {
	r.tell("programs")
	return r.inside(func(guest func(...string) (string, error)) error {
		for _, p := range r.subject.Programs {
			name := path.Base(p[0])
			for _, m := range []struct{ metric, runs string }{{"cold " + name, "1"}, {"warm " + name, "10"}} {
				if m.runs == "1" {
					if err := DropCaches(); err != nil {
						return err
					}
				}
				list, err := numbers(guest(append([]string{"time", m.runs}, p...)...))
				if err != nil {
					return err
				}
				r.sample[m.metric] = Median(list)
			}
		}
		return nil
	})
}

// reads reads every file, cold in a container that is new on fresh mounts, then warm.
func (r *run) reads() error {
	r.tell("read every file")
	if err := DropCaches(); err != nil {
		return err
	}
	return r.inside(func(guest func(...string) (string, error)) error {
		if err := DropCaches(); err != nil {
			return err
		}
		before, err := pageCache()
		if err != nil {
			return err
		}
		list, err := numbers(guest("read", "/"))
		if err != nil {
			return err
		}
		r.sample["cold read"], r.sample["bytes read"] = list[0], list[1]
		for _, m := range []struct {
			metric string
			wait   time.Duration
		}{{"page cache per byte read", 0}, {"and 3 s later", 3 * time.Second}} {
			time.Sleep(m.wait) // that is what is measured
			after, err := pageCache()
			if err != nil {
				return err
			}
			r.sample[m.metric] = float64(after-before) / list[1]
		}
		var again []float64
		for range 3 {
			list, err := numbers(guest("read", "/"))
			if err != nil {
				return err
			}
			again = append(again, list[0])
		}
		r.sample["warm read"] = Median(again)
		return nil
	})
}

// second pulls the similar image and notes what it adds.
func (r *run) second() error {
	if r.subject.Second == "" {
		return nil
	}
	r.tell("pull of the second image")
	if err := warm(r.subject.SecondImage); err != nil {
		return err
	}
	root := r.node.SnapshotterRoot(r.snapshotter)
	before, err := node.Settled(r.ctx, root)
	if err != nil {
		return err
	}
	pull := func() error { return r.node.Pull(r.ctx, r.snapshotter, r.subject.Second) }
	if err := r.seconds("second pull", pull); err != nil {
		return err
	}
	after, err := node.Settled(r.ctx, root)
	if err != nil {
		return err
	}
	r.sample["second disk"] = float64(after - before)
	_, err = r.node.Ctr(r.ctx, "image", "rm", "--sync", r.subject.Second)
	return err
}

func (r *run) remove() error {
	r.tell("image rm")
	return r.seconds("rm", func() error {
		_, err := r.node.Ctr(r.ctx, "image", "rm", "--sync", r.subject.Ref)
		return err
	})
}
