// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
)

// Timing and size of the watcher. The label that says "unpacked" is written some milliseconds after the last commit,
// and nothing announces it.
const (
	firstLook  = 50 * time.Millisecond
	longestNap = 30 * time.Second
	patience   = 5 * time.Minute // without news, after which nothing is asked any more
	mostLayers = 1024            // layers remembered; the oldest are forgotten first
)

// watcher learns when the last layer of an image was committed and flattens that image's chain before a container
// asks for it. It is a matter of speed alone: whatever the watcher misses is flattened for the first container.
//
//	Commit ─▶ committed(name) ─▶ layers waiting ─▶ is one the top of an unpacked image? ─▶ flatten(name)
//	                                   ▲
//	containerd's events ─▶ news ───────┘ ask again soon
type watcher struct {
	// unpacked returns the chain IDs of all images of a namespace that are unpacked.
	unpacked func(ctx context.Context, namespace string) (map[string]bool, error)
	flatten  func(ctx context.Context, name string) error

	news chan struct{} // capacity 1: "look soon"

	mu      sync.Mutex
	waiting []waitingLayer // in the order of their commits
}

// waitingLayer is a committed snapshot that may turn out to be the top of an image.
type waitingLayer struct {
	namespace string
	chain     string
	name      string // backend name: <namespace>/<number>/<chain>
}

func newWatcher() *watcher {
	return &watcher{news: make(chan struct{}, 1)}
}

// committed tells the watcher about a newly committed snapshot by its backend name. It does not block.
// Names that do not end in a chain ID cannot be the top of an image and are ignored.
func (w *watcher) committed(name string) {
	parts := strings.SplitN(name, "/", 3)
	if len(parts) != 3 || digest.Digest(parts[2]).Validate() != nil {
		return
	}
	l := waitingLayer{namespace: parts[0], chain: parts[2], name: name}
	w.mu.Lock()
	w.waiting = slices.DeleteFunc(w.waiting, func(o waitingLayer) bool { return o.namespace == l.namespace && o.chain == l.chain })
	w.waiting = append(w.waiting, l)
	w.waiting = w.waiting[max(0, len(w.waiting)-mostLayers):]
	w.mu.Unlock()
	w.lookSoon()
}

// heard tells the watcher that something happened to images or snapshots of namespace; "" stands for all.
func (w *watcher) heard(namespace string) {
	w.mu.Lock()
	concerned := slices.ContainsFunc(w.waiting, func(l waitingLayer) bool { return namespace == "" || l.namespace == namespace })
	w.mu.Unlock()
	if concerned {
		w.lookSoon()
	}
}

func (w *watcher) lookSoon() {
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// run looks for complete images until ctx ends: soon after news, then less and less often, then not at all.
func (w *watcher) run(ctx context.Context) {
	var nap time.Duration
	var next, giveUp time.Time
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.news:
			now := time.Now()
			nap, giveUp = firstLook, now.Add(patience)
			// News that never stops must not put off the look for ever.
			if soon := now.Add(nap); next.Before(now) || next.After(soon) {
				next = soon
			}
			timer.Reset(next.Sub(now))
		case <-timer.C:
			w.look(ctx)
			now := time.Now()
			nap = min(2*nap, longestNap)
			if w.idle() || now.After(giveUp) {
				next = time.Time{}
				continue
			}
			next = now.Add(nap)
			timer.Reset(nap)
		}
	}
}

func (w *watcher) idle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.waiting) == 0
}

// look flattens, one after the other, all waiting layers that are the top of an unpacked image.
func (w *watcher) look(ctx context.Context) {
	w.mu.Lock()
	waiting := slices.Clone(w.waiting)
	w.mu.Unlock()
	unpacked := map[string]map[string]bool{} // by namespace
	for _, l := range waiting {
		if _, asked := unpacked[l.namespace]; asked {
			continue
		}
		tops, err := w.unpacked(ctx, l.namespace)
		if err != nil {
			log.G(ctx).WithError(err).WithField("namespace", l.namespace).Debug("cannot ask containerd for unpacked images, will try again")
		}
		unpacked[l.namespace] = tops
	}
	for _, l := range waiting {
		if unpacked[l.namespace][l.chain] && ctx.Err() == nil {
			w.complete(ctx, l)
		}
	}
}

// complete flattens one layer's chain. An attempt that fails is not repeated: the first container brings the next.
func (w *watcher) complete(ctx context.Context, l waitingLayer) {
	w.mu.Lock()
	w.waiting = slices.DeleteFunc(w.waiting, func(o waitingLayer) bool { return o == l })
	w.mu.Unlock()
	ctx = log.WithLogger(namespaces.WithNamespace(ctx, l.namespace), log.G(ctx).WithField("name", l.name))
	err := traced(ctx, "flatten", func() error { return w.flatten(ctx, l.name) })
	if err != nil && ctx.Err() == nil && !errdefs.IsNotFound(err) {
		log.G(ctx).WithError(err).Warn("cannot flatten the image ahead of its first container")
	}
}
