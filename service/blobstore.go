// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"google.golang.org/grpc"
)

// leaseTime is how long a blob stays that its writer's caller has to refer to first.
const leaseTime = time.Hour

// blobStore is containerd's content store as a place for new blobs.
//
// A blob that nothing refers to goes with containerd's next garbage collection unless a lease holds it. containerd's
// diff service does not pass its caller's lease on to a proxy plugin, so a writer without one gets a lease that
// expires by itself.
type blobStore struct {
	content.Store
	leases leases.Manager
}

func newBlobStore(conn grpc.ClientConnInterface) blobStore {
	return blobStore{
		Store:  contentproxy.NewContentStore(contentapi.NewContentClient(conn)),
		leases: leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(conn)),
	}
}

// Writer implements content.Ingester. ctx carries the namespace.
func (b blobStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	if _, ok := leases.FromContext(ctx); !ok {
		lease, err := b.leases.Create(ctx, leases.WithExpiration(leaseTime), func(l *leases.Lease) error {
			l.ID = "squash-diff-" + rand.Text()
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("lease for a new blob: %w", err)
		}
		ctx = leases.WithLease(ctx, lease.ID)
	}
	return b.Store.Writer(ctx, opts...)
}
