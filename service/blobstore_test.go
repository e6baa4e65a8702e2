// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/testutil"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/squash-snapshotter/squash/internal/mounts"
	"golang.org/x/sys/unix"
)

// serveStore runs the whole daemon over a store of its own and a fake containerd, and returns a connection to it.
func serveStore(t *testing.T, fake *fakeContainerd) *grpc.ClientConn {
	t.Helper()
	cfg := testConfig(t)
	cfg.ContainerdAddress = fake.address
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- Run(ctx, cfg, Options{Open: OpenSnapshotter, Ready: func() { close(ready) }}) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		mounted, err := mounts.Mounted(cfg.State)
		if err != nil {
			t.Error(err)
		}
		for target := range mounted {
			if err := unix.Unmount(target, 0); err != nil {
				t.Errorf("unmount %s: %v", target, err)
			}
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix://"+cfg.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// A comparison through the socket ends as a blob in the caller's namespace, held by the caller's lease.
func TestComparedLayerGoesToTheCallersNamespaceAndLease(t *testing.T) {
	testutil.RequiresRoot(t)
	fake := newFakeContainerd(t)
	conn := serveStore(t, fake)
	ctx := namespaces.WithNamespace(t.Context(), "callers")
	sn := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "squash")
	active, err := sn.Prepare(ctx, "callers/1/active", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := mount.WithTempMount(ctx, active, func(root string) error {
		return os.WriteFile(filepath.Join(root, "file"), randomBytes(3<<20), 0o600)
	}); err != nil {
		t.Fatal(err)
	}
	lower, err := sn.View(ctx, "callers/2/view", "")
	if err != nil {
		t.Fatal(err)
	}
	lease, err := fake.leases.Create(ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	differ := diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(diff.Comparer)
	compare := func(ctx context.Context, opts ...diff.Opt) ocispec.Descriptor {
		t.Helper()
		desc, err := differ.Compare(ctx, lower, active, opts...)
		if err != nil {
			t.Fatal(err)
		}
		info, err := fake.store.Info(ctx, desc.Digest)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size != desc.Size || info.Labels[labels.LabelUncompressed] == "" {
			t.Errorf("descriptor %+v of a blob of %d bytes, labels %v", desc, info.Size, info.Labels)
		}
		return desc
	}

	desc := compare(leases.WithLease(ctx, lease.ID), diff.WithLabels(map[string]string{"mine": "too"}))
	if desc.MediaType != ocispec.MediaTypeImageLayerGzip {
		t.Errorf("media type %s", desc.MediaType)
	}
	if info, _ := fake.store.Info(ctx, desc.Digest); info.Labels["mine"] != "too" {
		t.Errorf("labels %v", info.Labels)
	}
	if !holds(t, ctx, fake, lease, desc) {
		t.Error("the caller's lease does not hold the layer")
	}
	if all, _ := fake.leases.List(ctx); len(all) != 1 {
		t.Errorf("leases %v, want the caller's alone", all)
	}
	if _, err := fake.store.Info(namespaces.WithNamespace(ctx, "others"), desc.Digest); !errdefs.IsNotFound(err) {
		t.Errorf("in another namespace: %v", err)
	}

	// containerd's diff service does not hand a lease on.
	desc = compare(ctx, diff.WithMediaType(ocispec.MediaTypeImageLayerZstd))
	all, err := fake.leases.List(ctx)
	if err != nil || len(all) != 2 {
		t.Fatalf("leases %v, %v, want a second one", all, err)
	}
	for _, l := range all {
		if l.ID == lease.ID {
			continue
		}
		expires, err := time.Parse(time.RFC3339, l.Labels["containerd.io/gc.expire"])
		if err != nil || expires.Before(time.Now()) || expires.After(time.Now().Add(2*leaseTime)) {
			t.Errorf("it expires at %v, %v", expires, err)
		}
		if !strings.HasPrefix(l.ID, "squash-diff-") || !holds(t, ctx, fake, l, desc) {
			t.Errorf("lease %s does not hold the layer", l.ID)
		}
	}

	if _, err := differ.Compare(ctx, lower, lower); !errdefs.IsNotImplemented(err) {
		t.Errorf("got %v, want ErrNotImplemented", err)
	}
	left, err := fake.store.ListStatuses(ctx)
	if err != nil || len(left) > 0 {
		t.Errorf("unfinished blobs: %v, %v", left, err)
	}
}

func holds(t *testing.T, ctx context.Context, fake *fakeContainerd, lease leases.Lease, desc ocispec.Descriptor) bool {
	t.Helper()
	resources, err := fake.leases.ListResources(ctx, lease)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range resources {
		if r.Type == "content" && r.ID == desc.Digest.String() {
			return true
		}
	}
	return false
}
