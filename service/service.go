// SPDX-License-Identifier: Apache-2.0

// Package service owns what lies between the snapshotter and the world: the configuration file, the lock on the root
// directory, the socket, the gRPC services on it, and the daemon's own questions to containerd.
//
//	containerd ──Snapshots, Diff──▶ socket ──▶ Backend (the snapshotter)
//	squashctl  ──Admin────────────▶ socket ──▶ Backend
//	containerd ◀──content, leases, introspection, events── ContentSource, watcher ◀── Backend
//
// It knows nothing of layers, packs or images. Its share in the invariants of the design: one process per root
// (otherwise none of them holds), names from outside never become paths (6), blobs are streamed with bounded
// memory (8).
package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
)

// grace bounds a stop. Nothing is lost when a bound is exceeded: stopping hard is no worse than being killed.
type grace struct {
	finish time.Duration // for calls to finish by themselves
	abort  time.Duration // for calls and background work to notice that they were cancelled
	close  time.Duration // for the backend to close
}

var usualGrace = grace{finish: 5 * time.Second, abort: 3 * time.Second, close: 5 * time.Second}

// Backend is what is served: a snapshotter that is also the differ of its own mounts. If it is a snapshots.Cleaner,
// Cleanup is served too; if it is a Checker, checks are.
type Backend interface {
	snapshots.Snapshotter
	diff.Applier
	diff.Comparer
	// Flatten makes the flat image of the committed snapshot name ready for containers. name is a backend name as
	// it was passed to OpenFunc's committed.
	Flatten(ctx context.Context, name string) error
}

// Blobs gives a Backend the blobs of containerd's content store, see ContentSource.
type Blobs interface {
	Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
	Kept(ctx context.Context) (map[digest.Digest]bool, error)
	ImagesOf(ctx context.Context, blob digest.Digest) ([]string, error)
	Store() content.Store
}

// Containerd is what a Backend asks of containerd.
type Containerd interface {
	Blobs
	// Version returns containerd's version.
	Version(ctx context.Context) (string, error)
}

// OpenFunc opens the Backend. ctx carries the logger and bounds the opening alone. The Backend calls committed, which
// does not block, with the backend name of every snapshot whose commit ended an unpack.
type OpenFunc func(ctx context.Context, cfg Config, containerd Containerd, committed func(name string)) (Backend, error)

// Options are what the caller of Run has to say beyond the configuration.
type Options struct {
	// Open opens the backend.
	Open OpenFunc
	// Version of this program, for squashctl.
	Version string
	// Listener is used instead of a new socket at Config.Address, if it is set.
	Listener net.Listener
	// Ready is called once, when calls are being served; Stopping once, when that ends. Both may be nil.
	Ready, Stopping func()

	grace *grace // nil: usualGrace
}

// Run serves cfg until ctx ends, which is not an error, or something fails. It returns within seconds after ctx ended.
// Mounts stay as they are.
func Run(ctx context.Context, cfg Config, opts Options) (err error) {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	grace := *cmp.Or(opts.grace, &usualGrace)
	lock, err := lockRoot(cfg.Root)
	if err != nil {
		return err
	}
	defer lock.Close()
	// Clients can connect from here on, and wait while the backend opens.
	listener := opts.Listener
	if listener == nil {
		if listener, err = listen(ctx, cfg.Address); err != nil {
			return err
		}
	}
	defer listener.Close()
	conn, err := dialContainerd(cfg.ContainerdAddress)
	if err != nil {
		return err
	}
	defer conn.Close()

	watch := newWatcher()
	containerd := containerdClient{NewContentSource(conn), versionapi.NewVersionClient(conn)}
	backend, err := opts.Open(ctx, cfg, containerd, watch.committed)
	if err != nil {
		return fmt.Errorf("open snapshotter: %w", err)
	}
	defer func() { err = errors.Join(err, closeBackend(backend, grace.close)) }()

	images := newImageWatch(conn, listener.Addr().String())
	watch.unpacked, watch.flatten = images.unpacked, backend.Flatten
	stopWatching := background(ctx, grace.abort, watch.run, func(ctx context.Context) { images.follow(ctx, watch.heard) })
	defer stopWatching()

	return serve(ctx, listener, backend, conn, self{cfg, opts.Version, containerd.Version}, opts, grace)
}

// serve answers calls until ctx ends, and then lets the calls under way finish.
func serve(ctx context.Context, listener net.Listener, backend Backend, conn grpc.ClientConnInterface, self self, opts Options, grace grace) error {
	server, healthy := newServer(ctx, backend, conn, listener.Addr().String(), self)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	log.G(ctx).WithField("address", listener.Addr().String()).Info("serving")
	notify(opts.Ready)

	select {
	case err := <-served:
		server.Stop()
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	log.G(ctx).Info("stopping")
	notify(opts.Stopping)
	healthy.Shutdown()
	stop(ctx, server, grace)
	return nil
}

func notify(hook func()) {
	if hook != nil {
		hook()
	}
}

// stop ends a server: gracefully, else by cancelling its calls, else by leaving them behind.
func stop(ctx context.Context, server *grpc.Server, grace grace) {
	if within(grace.finish, server.GracefulStop) {
		return
	}
	log.G(ctx).Warnf("calls are still running after %v, cancelling them", grace.finish)
	if !within(grace.abort, server.Stop) {
		log.G(ctx).Warnf("calls are still running %v after they were cancelled, leaving them behind", grace.abort)
	}
}

// background starts jobs that run until ctx ends. The function it returns cancels them and waits, but not for long.
func background(ctx context.Context, abort time.Duration, jobs ...func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	for _, job := range jobs {
		running.Go(func() { job(ctx) })
	}
	return func() {
		cancel()
		if !within(abort, running.Wait) {
			log.G(ctx).Warnf("background work is still running %v after it was cancelled, leaving it behind", abort)
		}
	}
}

func closeBackend(backend Backend, limit time.Duration) error {
	var err error
	if !within(limit, func() { err = backend.Close() }) {
		return fmt.Errorf("close snapshotter: not done after %v", limit)
	}
	if err != nil {
		return fmt.Errorf("close snapshotter: %w", err)
	}
	return nil
}

// within runs f and tells whether it returned in time; if not, f goes on by itself.
func within(limit time.Duration, f func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}
