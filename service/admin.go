// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"google.golang.org/grpc"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
	"github.com/squash-snapshotter/squash/snapshotter"
)

// Checker is what a Backend may be as well: one that looks for damage of what it keeps.
type Checker interface {
	// Check is snapshotter.Snapshotter.Check. found takes many findings without waiting for a client that reads slowly,
	// but not any number.
	Check(ctx context.Context, opts snapshotter.CheckOptions, found func(snapshotter.Finding)) (snapshotter.CheckSummary, error)
}

const (
	// progressInterval is the least time between two reports of one step.
	progressInterval = 200 * time.Millisecond
	// unreadMessages is how many messages, a few hundred bytes each, wait for a client before the check does. It is
	// large, since the check may hold locks meanwhile, and a client may be suspended for long.
	unreadMessages = 100_000
)

var _ Checker = (*snapshotter.Snapshotter)(nil)

// adminServer serves the admin API.
type adminServer struct {
	adminapi.UnimplementedAdminServer
	serving context.Context // ends when the daemon stops
	backend Backend
	self    self
	images  *nodeImages
	plugins *imageWatch
}

var errStopping = fmt.Errorf("the daemon is stopping: %w", errdefs.ErrUnavailable)

// Check runs a check for as long as the client listens and the daemon is not to stop.
func (a *adminServer) Check(req *adminapi.CheckRequest, stream grpc.ServerStreamingServer[adminapi.CheckResponse]) error {
	checker, ok := a.backend.(Checker)
	if !ok {
		return errgrpc.ToGRPC(fmt.Errorf("this snapshotter cannot check what it keeps: %w", errdefs.ErrNotImplemented))
	}
	if req.RateBytesPerSecond < 0 {
		return errgrpc.ToGRPC(fmt.Errorf("rate_bytes_per_second = %d: must not be negative: %w", req.RateBytesPerSecond, errdefs.ErrInvalidArgument))
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	defer context.AfterFunc(a.serving, func() { cancel(errStopping) })()

	log.G(ctx).WithFields(log.Fields{"quick": req.Quick, "repair": req.Repair}).Info("check began")
	start := time.Now()
	out := sendChecks(ctx, cancel, stream, progressInterval, unreadMessages)
	summary, err := out.run(checker, snapshotter.CheckOptions{
		Quick:    req.Quick,
		Repair:   req.Repair,
		Rate:     req.RateBytesPerSecond,
		Progress: out.progress,
	})
	err = whyEnded(ctx, err)
	logger := log.G(ctx).WithFields(log.Fields{"findings": summary.Findings, "repaired": summary.Repaired, "took": time.Since(start)})
	switch {
	case errdefs.IsCanceled(err):
		logger.Info("check was ended by its client")
		return errgrpc.ToGRPC(err)
	case err != nil:
		logger.WithError(err).Warn("check was not done")
		return errgrpc.ToGRPC(err)
	}
	logger.Info("check done")
	return nil
}

// checkSender passes on what a check reports. A goroutine of its own sends, so that only findings, of which none may
// be lost, ever wait for the client; the check itself stays in the goroutine of the call, where a panic is caught.
type checkSender struct {
	ctx      context.Context
	queue    chan *adminapi.CheckResponse
	sent     chan struct{} // closed when all of queue was sent, or the client is gone
	interval time.Duration

	mu   sync.Mutex
	last snapshotter.CheckProgress // that was reported
	next time.Time                 // when its step may be reported again, unless it comes to its end
}

// sendChecks returns a sender to stream, for one call of run. cancel ends ctx.
func sendChecks(ctx context.Context, cancel context.CancelCauseFunc, stream grpc.ServerStreamingServer[adminapi.CheckResponse], interval time.Duration, unread int) *checkSender {
	s := &checkSender{
		ctx:      ctx,
		queue:    make(chan *adminapi.CheckResponse, unread),
		sent:     make(chan struct{}),
		interval: interval,
	}
	go func() {
		defer close(s.sent)
		for m := range s.queue {
			if err := stream.Send(m); err != nil {
				cancel(fmt.Errorf("tell the client: %w", err))
				return
			}
		}
	}()
	return s
}

// run checks, and returns when nothing is on its way to the client any more: a stream must not be used after its call.
func (s *checkSender) run(checker Checker, opts snapshotter.CheckOptions) (snapshotter.CheckSummary, error) {
	defer func() {
		close(s.queue)
		<-s.sent
	}()
	summary, err := checker.Check(s.ctx, opts, s.finding)
	if err != nil {
		return summary, err
	}
	sent := s.send(&adminapi.CheckResponse{Message: &adminapi.CheckResponse_Summary{Summary: &adminapi.Summary{
		Layers:   summary.Layers,
		Images:   summary.Images,
		Contents: summary.Contents,
		Bytes:    summary.Bytes,
		Findings: summary.Findings,
		Repaired: summary.Repaired,
	}}})
	if !sent {
		return summary, context.Cause(s.ctx)
	}
	return summary, nil
}

// send queues m, and waits for the client if it has not taken what was found before. It tells whether m was queued, which
// fails only when the check is to end.
func (s *checkSender) send(m *adminapi.CheckResponse) bool {
	if s.ctx.Err() != nil {
		return false
	}
	select {
	case s.queue <- m:
		return true
	case <-s.ctx.Done():
		return false
	}
}

func (s *checkSender) finding(f snapshotter.Finding) {
	s.send(&adminapi.CheckResponse{Message: &adminapi.CheckResponse_Finding{Finding: &adminapi.Finding{
		Kind:     valid(string(f.Kind)),
		Object:   valid(f.Object),
		Detail:   valid(f.Detail),
		Repaired: f.Repaired,
		Remedy:   valid(f.Remedy),
	}}})
}

// progress never waits: a report is left out if the last one of its step is recent, or the client is behind. The end of a
// step is always recent enough.
func (s *checkSender) progress(p snapshotter.CheckProgress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	early := p.Step == s.last.Step && now.Before(s.next) && (p.Done != p.Total || p == s.last)
	if early || len(s.queue) > 0 {
		return
	}
	select {
	case s.queue <- &adminapi.CheckResponse{Message: &adminapi.CheckResponse_Progress{Progress: &adminapi.Progress{
		Step:  valid(p.Step),
		Done:  p.Done,
		Total: p.Total,
	}}}:
		s.last, s.next = p, now.Add(s.interval)
	default:
	}
}

// valid makes text what a message may carry: names on disk need not be UTF-8.
func valid(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }
