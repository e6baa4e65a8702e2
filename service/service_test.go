// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// fakeBackend is containerd's native snapshotter with a differ that the test writes.
type fakeBackend struct {
	snapshots.Snapshotter
	blobs     Containerd
	committed func(string)
	apply     func(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount) (ocispec.Descriptor, error)
	compare   func(ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt) (ocispec.Descriptor, error)
	stat      func(ctx context.Context)
	walk      func(ctx context.Context)
	flatten   func(ctx context.Context, name string) error
	closed    func() error
}

func (f *fakeBackend) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, _ ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	return f.apply(ctx, desc, mounts)
}

func (f *fakeBackend) Compare(ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt) (ocispec.Descriptor, error) {
	if f.compare == nil {
		return ocispec.Descriptor{}, errdefs.ErrNotImplemented
	}
	return f.compare(ctx, lower, upper, opts...)
}

func (f *fakeBackend) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	if f.stat != nil {
		f.stat(ctx)
	}
	return f.Snapshotter.Stat(ctx, key)
}

func (f *fakeBackend) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	if f.walk != nil {
		f.walk(ctx)
	}
	return f.Snapshotter.Walk(ctx, fn, filters...)
}

func (f *fakeBackend) Flatten(ctx context.Context, name string) error { return f.flatten(ctx, name) }

func (f *fakeBackend) Close() error {
	err := f.Snapshotter.Close()
	if f.closed != nil {
		return errors.Join(err, f.closed())
	}
	return err
}

// daemon is a Run under test.
type daemon struct {
	cfg     Config
	backend *fakeBackend
	conn    *grpc.ClientConn
	stop    func() error // idempotent

	mu     sync.Mutex
	stages []string
}

func (d *daemon) stage(name string) func() {
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.stages = append(d.stages, name)
	}
}

func testConfig(t *testing.T) Config {
	dir := t.TempDir()
	cfg := DefaultConfig()
	cfg.Address = filepath.Join(dir, "run", "s.sock")
	cfg.Root = filepath.Join(dir, "root")
	cfg.State = filepath.Join(dir, "state")
	cfg.ContainerdAddress = filepath.Join(dir, "no-containerd.sock")
	return cfg
}

// startDaemon runs the service over backend until the test ends or stop is called, and waits until it serves.
func startDaemon(t *testing.T, cfg Config, backend *fakeBackend, bounds grace) *daemon {
	t.Helper()
	d := &daemon{cfg: cfg, backend: backend}
	ready := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	var result error
	go func() {
		defer close(ended)
		result = Run(ctx, cfg, Options{
			Open: func(_ context.Context, cfg Config, blobs Containerd, committed func(string)) (Backend, error) {
				sn, err := native.NewSnapshotter(filepath.Join(cfg.Root, "native"))
				backend.Snapshotter, backend.blobs, backend.committed = sn, blobs, committed
				return backend, err
			},
			Ready:    func() { d.stage("ready")(); close(ready) },
			Stopping: d.stage("stopping"),
			grace:    &bounds,
		})
	}()
	d.stop = func() error {
		cancel()
		<-ended
		return result
	}
	t.Cleanup(func() { d.stop() })
	select {
	case <-ready:
	case <-ended:
		t.Fatalf("the service did not start: %v", result)
	}
	conn, err := grpc.NewClient("unix://"+cfg.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	d.conn = conn
	return d
}

var anyLayer = &diffapi.ApplyRequest{Diff: &types.Descriptor{}}

// patient bounds are never reached by a test that passes.
var patient = grace{finish: time.Minute, abort: time.Minute, close: time.Minute}

func TestSnapshotsAreServed(t *testing.T) {
	d := startDaemon(t, testConfig(t), &fakeBackend{}, patient)
	ctx := namespaces.WithNamespace(t.Context(), "default")
	sn := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(d.conn), "squash")
	mounts, err := sn.Prepare(ctx, "default/1/key", "")
	if err != nil {
		t.Fatal(err)
	}
	if len(mounts) != 1 {
		t.Errorf("got mounts %v, want one", mounts)
	}
	if err := sn.Commit(ctx, "default/2/name", "default/1/key"); err != nil {
		t.Fatal(err)
	}
	if _, err := sn.Stat(ctx, "default/3/none"); !errdefs.IsNotFound(err) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	var names []string
	if err := sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error { names = append(names, i.Name); return nil }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(names, []string{"default/2/name"}) {
		t.Errorf("got snapshots %v", names)
	}
	if err := d.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if !slices.Equal(d.stages, []string{"ready", "stopping"}) {
		t.Errorf("told the service manager %v", d.stages)
	}
}

// Requests and replies may be as large as containerd's own servers take them, not only gRPC's 4 MiB.
func TestLargeMessagesAreTaken(t *testing.T) {
	d := startDaemon(t, testConfig(t), &fakeBackend{}, patient)
	_, err := snapshotsapi.NewSnapshotsClient(d.conn).Stat(t.Context(), &snapshotsapi.StatSnapshotRequest{Key: strings.Repeat("x", 10<<20)}, grpc.MaxCallSendMsgSize(16<<20))
	if status.Code(err) == codes.ResourceExhausted {
		t.Errorf("got %v", status.Convert(err).Code())
	}
}

func TestCallersNamespaceReachesTheBackend(t *testing.T) {
	var got, onward string
	var known bool
	see := func(ctx context.Context) {
		got, known = namespaces.Namespace(ctx)
		headers, _ := metadata.FromOutgoingContext(ctx)
		onward = strings.Join(headers.Get(namespaces.GRPCHeader), " ")
	}
	backend := &fakeBackend{stat: see, walk: see}
	backend.apply = func(ctx context.Context, d ocispec.Descriptor, _ []mount.Mount) (ocispec.Descriptor, error) {
		see(ctx)
		return d, nil
	}
	d := startDaemon(t, testConfig(t), backend, patient)
	sn := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(d.conn), "squash")
	differ := diffproxy.NewDiffApplier(diffapi.NewDiffClient(d.conn)).(diff.Applier)
	for name, call := range map[string]func(ctx context.Context){
		"Stat":  func(ctx context.Context) { sn.Stat(ctx, "x") },
		"Walk":  func(ctx context.Context) { sn.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }) },
		"Apply": func(ctx context.Context) { differ.Apply(ctx, ocispec.Descriptor{}, nil) },
	} {
		got, known = "not called", false
		call(namespaces.WithNamespace(t.Context(), "team-a"))
		if got != "team-a" || !known {
			t.Errorf("%s: got namespace %q, want team-a", name, got)
		}
		if onward != "team-a" {
			t.Errorf("%s: calls onward go to namespace %q, want team-a", name, onward)
		}
		got = "not called"
		call(t.Context()) // as the garbage collector calls
		if got != "" || known {
			t.Errorf("%s without namespace: got %q, want none", name, got)
		}
	}
}

// A call of the backend to containerd must carry the namespace that the backend was called with.
func TestCallersNamespaceReachesContainerd(t *testing.T) {
	fake := newFakeContainerd(t)
	data := randomBytes(1000)
	desc := fake.write(t, "team-a", data, nil)
	backend := &fakeBackend{}
	backend.apply = func(ctx context.Context, d ocispec.Descriptor, _ []mount.Mount) (ocispec.Descriptor, error) {
		blob, err := backend.blobs.Open(ctx, d)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		return d, blob.Close()
	}
	cfg := testConfig(t)
	cfg.ContainerdAddress = fake.address
	d := startDaemon(t, cfg, backend, patient)
	differ := diffproxy.NewDiffApplier(diffapi.NewDiffClient(d.conn)).(diff.Applier)
	if _, err := differ.Apply(namespaces.WithNamespace(t.Context(), "team-a"), desc, nil); err != nil {
		t.Error(err)
	}
	if _, err := differ.Apply(namespaces.WithNamespace(t.Context(), "team-b"), desc, nil); !errdefs.IsNotFound(err) {
		t.Errorf("in another namespace: got %v, want ErrNotFound", err)
	}
}

func TestPanicFailsOneCallOnly(t *testing.T) {
	panicking := true
	boom := func(context.Context) {
		if panicking {
			panic("boom")
		}
	}
	d := startDaemon(t, testConfig(t), &fakeBackend{stat: boom, walk: boom}, patient)
	client := snapshotsapi.NewSnapshotsClient(d.conn)
	if _, err := client.Stat(t.Context(), &snapshotsapi.StatSnapshotRequest{Key: "x"}); status.Code(err) != codes.Internal {
		t.Errorf("unary call: got %v, want Internal", err)
	}
	list, err := client.List(t.Context(), &snapshotsapi.ListSnapshotsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := list.Recv(); status.Code(err) != codes.Internal {
		t.Errorf("streaming call: got %v, want Internal", err)
	}
	panicking = false
	if _, err := client.Stat(t.Context(), &snapshotsapi.StatSnapshotRequest{Key: "x"}); status.Code(err) != codes.NotFound {
		t.Errorf("the next call: got %v, want NotFound", err)
	}
}

func TestComparingIsLeftToContainerd(t *testing.T) {
	d := startDaemon(t, testConfig(t), &fakeBackend{}, patient)
	if _, err := diffapi.NewDiffClient(d.conn).Diff(t.Context(), &diffapi.DiffRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("got %v, want Unimplemented", err)
	}
}

func TestHealthIsServed(t *testing.T) {
	d := startDaemon(t, testConfig(t), &fakeBackend{}, patient)
	reply, err := grpc_health_v1.NewHealthClient(d.conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if reply.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("got %v, want SERVING", reply.Status)
	}
}

func TestStopLetsCallsFinish(t *testing.T) {
	began, finish := make(chan struct{}), make(chan struct{})
	backend := &fakeBackend{apply: func(ctx context.Context, d ocispec.Descriptor, _ []mount.Mount) (ocispec.Descriptor, error) {
		close(began)
		<-finish
		return d, ctx.Err()
	}}
	d := startDaemon(t, testConfig(t), backend, patient)
	applied := make(chan error, 1)
	go func() {
		_, err := diffapi.NewDiffClient(d.conn).Apply(context.WithoutCancel(t.Context()), anyLayer)
		applied <- err
	}()
	<-began
	stopped := make(chan error, 1)
	go func() { stopped <- d.stop() }()
	// A server that begins to stop says so to its clients.
	d.conn.WaitForStateChange(t.Context(), connectivity.Ready)
	close(finish)
	if err := <-applied; err != nil {
		t.Errorf("the call under way failed: %v", err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestStopCancelsCallsThatDoNotFinish(t *testing.T) {
	began := make(chan struct{})
	backend := &fakeBackend{apply: func(ctx context.Context, _ ocispec.Descriptor, _ []mount.Mount) (ocispec.Descriptor, error) {
		close(began)
		<-ctx.Done()
		return ocispec.Descriptor{}, ctx.Err()
	}}
	d := startDaemon(t, testConfig(t), backend, grace{finish: 10 * time.Millisecond, abort: time.Minute, close: time.Minute})
	go diffapi.NewDiffClient(d.conn).Apply(context.WithoutCancel(t.Context()), anyLayer)
	<-began
	if err := d.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestStopLeavesBehindWhatCannotBeCancelled(t *testing.T) {
	fake := newFakeContainerd(t)
	cfg := testConfig(t)
	cfg.ContainerdAddress = fake.address
	began, finish := make(chan struct{}, 3), make(chan struct{})
	t.Cleanup(func() { close(finish) })
	stuck := func() {
		began <- struct{}{}
		<-finish
	}
	backend := &fakeBackend{
		apply: func(context.Context, ocispec.Descriptor, []mount.Mount) (ocispec.Descriptor, error) {
			stuck()
			return ocispec.Descriptor{}, nil
		},
		flatten: func(context.Context, string) error { stuck(); return nil },
		closed:  func() error { stuck(); return nil },
	}
	d := startDaemon(t, cfg, backend, grace{finish: time.Millisecond, abort: time.Millisecond, close: time.Millisecond})
	go diffapi.NewDiffClient(d.conn).Apply(context.WithoutCancel(t.Context()), anyLayer)
	<-began
	fake.write(t, "default", []byte("config"), map[string]string{unpackedLabel + "squash": chainID("top")})
	backend.committed(backendName("default", 1, "top"))
	<-began
	if err := d.stop(); err == nil || !strings.Contains(err.Error(), "close snapshotter") {
		t.Errorf("got %v, want an error about closing the snapshotter", err)
	}
}

func TestStopReportsCloseError(t *testing.T) {
	broken := errors.New("disk on fire")
	d := startDaemon(t, testConfig(t), &fakeBackend{closed: func() error { return broken }}, patient)
	if err := d.stop(); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
}

func TestStopFreesSocketAndRoot(t *testing.T) {
	cfg := testConfig(t)
	for range 2 {
		d := startDaemon(t, cfg, &fakeBackend{}, patient)
		err := Run(t.Context(), cfg, Options{})
		if err == nil || !strings.Contains(err.Error(), "in use by another containerd-squash-grpc") {
			t.Errorf("second daemon: got %v, want a refusal", err)
		}
		if err := d.stop(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(cfg.Address); !os.IsNotExist(err) {
			t.Errorf("the socket stays: %v", err)
		}
	}
}

func TestBackendThatCannotOpenEndsRun(t *testing.T) {
	cfg := testConfig(t)
	broken := errors.New("no EROFS")
	err := Run(t.Context(), cfg, Options{Open: func(context.Context, Config, Containerd, func(string)) (Backend, error) { return nil, broken }})
	if !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
	if _, err := os.Lstat(cfg.Address); !os.IsNotExist(err) {
		t.Errorf("the socket stays: %v", err)
	}
}

func TestInvalidConfigIsRefusedBeforeAnythingHappens(t *testing.T) {
	cfg := testConfig(t)
	cfg.Mount = "fuse"
	if err := Run(t.Context(), cfg, Options{}); err == nil || !strings.Contains(err.Error(), `mount = "fuse"`) {
		t.Errorf("got %v, want an error about mount", err)
	}
	if _, err := os.Lstat(cfg.Root); !os.IsNotExist(err) {
		t.Errorf("root was made: %v", err)
	}
}

func TestPassedListenerIsUsed(t *testing.T) {
	cfg := testConfig(t)
	path := filepath.Join(t.TempDir(), "passed.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = Run(ctx, cfg, Options{
		Listener: l,
		Open: func(context.Context, Config, Containerd, func(string)) (Backend, error) {
			sn, err := native.NewSnapshotter(filepath.Join(cfg.Root, "native"))
			return &fakeBackend{Snapshotter: sn}, err
		},
		Ready: func() {
			if _, err := net.Dial("unix", path); err != nil {
				t.Errorf("the passed socket is not served: %v", err)
			}
			if _, err := os.Lstat(cfg.Address); !os.IsNotExist(err) {
				t.Errorf("a socket was made at the configured address: %v", err)
			}
			cancel()
		},
	})
	if err != nil {
		t.Error(err)
	}
}
