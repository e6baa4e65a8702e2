// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"google.golang.org/grpc"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
	"github.com/squash-snapshotter/squash/snapshotter"
)

// Verifier is what a Backend may be as well: one that can compare what it shows with the blobs of layers.
type Verifier interface {
	Verify(ctx context.Context, name string, layers []snapshotter.BlobLayer, progress func(step string, done, total uint64)) (snapshotter.Verdict, error)
}

var _ Verifier = (*snapshotter.Snapshotter)(nil)

// Verify compares an image with its layers for as long as the client listens and the daemon is not to stop.
func (a *adminServer) Verify(req *adminapi.VerifyRequest, stream grpc.ServerStreamingServer[adminapi.VerifyResponse]) error {
	verifier, ok := a.backend.(Verifier)
	if !ok {
		return errgrpc.ToGRPC(fmt.Errorf("this snapshotter cannot verify images: %w", errdefs.ErrNotImplemented))
	}
	ctx, cancel := a.whileServing(stream.Context())
	defer cancel()
	image, described, _, err := a.theImage(ctx, req.Image)
	if err != nil {
		return errgrpc.ToGRPC(err)
	}
	if ctx, err = withNamespace(ctx, image.Namespace); err != nil {
		return errgrpc.ToGRPC(err)
	}
	var layers []snapshotter.BlobLayer
	for i, blob := range image.Layers {
		layers = append(layers, snapshotter.BlobLayer{Blob: blob, DiffID: image.Config.RootFS.DiffIDs[i]})
	}
	start := time.Now()
	steps := throttle(func(p *adminapi.Progress) error {
		return stream.Send(&adminapi.VerifyResponse{Message: &adminapi.VerifyResponse_Progress{Progress: p}})
	})
	found, err := verifier.Verify(ctx, image.top(), layers, steps.report)
	steps.stop()
	if err != nil {
		return errgrpc.ToGRPC(fmt.Errorf("image %s: %w", image.Name, whyEnded(ctx, err)))
	}
	verdict := &adminapi.Verdict{
		Image: described, Equal: found.Difference == nil,
		Layers: found.Layers, Entries: found.Entries, Names: found.Names, Files: found.Files, Bytes: found.Bytes,
	}
	logger := log.G(ctx).WithFields(log.Fields{"image": image.Name, "names": found.Names, "took": time.Since(start).Round(time.Millisecond)})
	if d := found.Difference; d != nil {
		verdict.Path, verdict.What, verdict.Want, verdict.Got = []byte("/"+d.Path), valid(d.What), valid(d.Want), valid(d.Got)
		verdict.Layer = uint32(max(d.Layer, 0))
		logger.WithFields(log.Fields{"path": "/" + d.Path, "what": d.What}).Warn("an image does not show what its layers say")
	} else {
		logger.Info("image verified")
	}
	return stream.Send(&adminapi.VerifyResponse{Message: &adminapi.VerifyResponse_Verdict{Verdict: verdict}})
}

// whileServing returns a context of a call that also ends with the daemon.
func (a *adminServer) whileServing(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(a.serving, func() { cancel(errStopping) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// whyEnded adds to an error why the context of its call ended: that something was cancelled does not say it.
func whyEnded(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// steps passes on how far something has come, not more often than a person can read, and never from two goroutines at
// once. A client that is behind holds nothing up but the report that is on its way.
type steps struct {
	mu   sync.Mutex
	send func(*adminapi.Progress) error // nil: no more
	step string
	next time.Time
}

func throttle(send func(*adminapi.Progress) error) *steps { return &steps{send: send} }

func (s *steps) report(step string, done, total uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.send == nil || step == s.step && now.Before(s.next) && done != total {
		return
	}
	s.step, s.next = step, now.Add(progressInterval)
	if s.send(&adminapi.Progress{Step: step, Done: done, Total: total}) != nil {
		s.send = nil // the client is gone: the call's context ends
	}
}

// stop returns when nothing is on its way to the client any more: a stream is not for two senders.
func (s *steps) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.send = nil
}
