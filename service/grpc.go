// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

// newServer returns a gRPC server of backend's Snapshots and Diff services, of the admin service, whose calls end with
// ctx and which asks the containerd at the other end of conn, in which backend is found at address, and of the health service, which is also returned and says
// "serving" until it is shut down.
func newServer(ctx context.Context, backend Backend, conn grpc.ClientConnInterface, address string, self self) (*grpc.Server, *health.Server) {
	server := grpc.NewServer(
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
		grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(interceptUnary(log.G(ctx))),
		grpc.StreamInterceptor(interceptStream(log.G(ctx))),
	)
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(backend))
	diffapi.RegisterDiffServer(server, diffservice.FromApplierAndComparer(backend, backend))
	adminapi.RegisterAdminServer(server, &adminServer{serving: ctx, self: self, backend: backend, images: newNodeImages(conn, backend), plugins: newImageWatch(conn, address)})
	healthy := health.NewServer()
	grpc_health_v1.RegisterHealthServer(server, healthy)
	return server, healthy
}

// callContext returns ctx with what code below expects in it, which is the logger and the caller's namespace and
// lease: the contrib services read no headers themselves, and calls to containerd send only what is put in here. The
// garbage collector of containerd calls without a namespace.
func callContext(ctx context.Context, logger *log.Entry) context.Context {
	if namespace, ok := namespaces.Namespace(ctx); ok {
		ctx = namespaces.WithNamespace(ctx, namespace)
		logger = logger.WithField("namespace", namespace)
	}
	if lease, ok := leases.FromContext(ctx); ok {
		ctx = leases.WithLease(ctx, lease)
	}
	return log.WithLogger(ctx, logger)
}

// interceptUnary returns what surrounds every call with one reply.
func interceptUnary(logger *log.Entry) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (reply any, err error) {
		ctx = callContext(ctx, logger)
		err = traced(ctx, info.FullMethod, func() error {
			reply, err = next(ctx, req)
			return err
		})
		return reply, err
	}
}

// interceptStream returns what surrounds every call with a stream of replies, such as List.
func interceptStream(logger *log.Entry) grpc.StreamServerInterceptor {
	return func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		ctx := callContext(stream.Context(), logger)
		return traced(ctx, info.FullMethod, func() error {
			return next(server, streamWithContext{stream, ctx})
		})
	}
}

type streamWithContext struct {
	grpc.ServerStream
	ctx context.Context
}

func (s streamWithContext) Context() context.Context { return s.ctx }

// traced runs f, leaves a trace of how it went in the log, and turns a panic into an error of f alone.
func traced(ctx context.Context, what string, f func() error) (err error) {
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			log.G(ctx).WithField("stack", string(debug.Stack())).Errorf("panic in %s: %v", what, p)
			err = status.Errorf(codes.Internal, "panic in %s: %v; the log of containerd-squash-grpc has the stack", what, p)
		}
		logger := log.G(ctx).WithField("took", time.Since(start))
		if err != nil {
			logger.WithError(err).Debugf("%s failed", what)
		} else {
			logger.Tracef("%s done", what)
		}
	}()
	return f()
}

// dialContainerd returns a connection to the containerd at the socket path address. It is made when it is first used
// and again whenever containerd was restarted.
func dialContainerd(address string) (*grpc.ClientConn, error) {
	retry := backoff.DefaultConfig
	retry.BaseDelay = 100 * time.Millisecond
	retry.MaxDelay = 3 * time.Second
	conn, err := grpc.NewClient("unix://"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: answerTimeout}),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
			grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize)),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", address, err)
	}
	return conn, nil
}
