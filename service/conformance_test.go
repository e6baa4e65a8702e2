// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/testutil"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// containerd's own suite, through its proxy client, a unix socket and the whole daemon. Why it is told "overlayfs" is
// said where package snapshotter runs it in process.
func TestConformanceThroughSocket(t *testing.T) {
	testutil.RequiresRoot(t)
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		// The suite's own directory may be too long for the address of a socket.
		dir, err := os.MkdirTemp("", "squash-")
		if err != nil {
			return nil, nil, err
		}
		cfg := DefaultConfig()
		cfg.Root, cfg.State = filepath.Join(root, "root"), filepath.Join(root, "state")
		cfg.Address = filepath.Join(dir, "squash.sock")
		cfg.ContainerdAddress = filepath.Join(dir, "containerd.sock") // nobody is there: nothing is asked

		ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
		ready, ended := make(chan struct{}), make(chan error, 1)
		go func() {
			ended <- Run(ctx, cfg, Options{Open: OpenSnapshotter, Ready: func() { close(ready) }})
		}()
		select {
		case <-ready:
		case err := <-ended:
			stop()
			return nil, nil, errors.Join(err, os.RemoveAll(dir))
		}
		inNamespace := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return call(namespaces.WithNamespace(ctx, "suite"), method, req, reply, cc, opts...)
		}
		conn, err := grpc.NewClient("unix://"+cfg.Address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUnaryInterceptor(inNamespace))
		if err != nil {
			stop()
			return nil, nil, errors.Join(err, <-ended, os.RemoveAll(dir))
		}
		end := func() error {
			stop()
			err := errors.Join(conn.Close(), <-ended, os.RemoveAll(dir))
			mounted, lerr := mounts.Mounted(cfg.State)
			err = errors.Join(err, lerr)
			for target := range mounted {
				err = errors.Join(err, unix.Unmount(target, 0))
			}
			return err
		}
		return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "squash"), end, nil
	})
}
