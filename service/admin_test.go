// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
	"github.com/squash-snapshotter/squash/snapshotter"
)

type found = func(snapshotter.Finding)

// checkingBackend is a backend of which only Check is ever called.
type checkingBackend struct {
	*fakeBackend
	check func(ctx context.Context, opts snapshotter.CheckOptions, found found) (snapshotter.CheckSummary, error)
}

func (b checkingBackend) Check(ctx context.Context, opts snapshotter.CheckOptions, found func(snapshotter.Finding)) (snapshotter.CheckSummary, error) {
	return b.check(ctx, opts, found)
}

// serveBackend serves backend until the test ends or stop, which is idempotent, is called.
func serveBackend(t *testing.T, backend Backend) (client adminapi.AdminClient, stop func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := serve(ctx, listener, backend, nil, self{}, Options{}, patient); err != nil {
			t.Error(err)
		}
	}()
	stop = func() {
		cancel()
		<-ended
	}
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close() // calls end with it
		stop()
	})
	return adminapi.NewAdminClient(conn), stop
}

// startCheck serves check and calls it.
func startCheck(t *testing.T, req *adminapi.CheckRequest, check func(context.Context, snapshotter.CheckOptions, found) (snapshotter.CheckSummary, error)) (grpc.ServerStreamingClient[adminapi.CheckResponse], context.CancelFunc) {
	t.Helper()
	client, _ := serveBackend(t, checkingBackend{check: check})
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	stream, err := client.Check(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	return stream, cancel
}

// receive returns all messages of a check and the error that ended it, nil if it ended well.
func receive(stream grpc.ServerStreamingClient[adminapi.CheckResponse]) (messages []*adminapi.CheckResponse, err error) {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return messages, nil
		}
		if err != nil {
			return messages, err
		}
		messages = append(messages, m)
	}
}

func TestCheckIsServed(t *testing.T) {
	var got snapshotter.CheckOptions
	stream, _ := startCheck(t, &adminapi.CheckRequest{Quick: true, Repair: true, RateBytesPerSecond: 12_000_000},
		func(_ context.Context, opts snapshotter.CheckOptions, found found) (snapshotter.CheckSummary, error) {
			opts.Progress(snapshotter.CheckProgress{Step: "index", Done: 1, Total: 2})
			found(snapshotter.Finding{Kind: snapshotter.FindingImage, Object: "/root/images/a.erofs", Detail: "checksum", Repaired: true})
			found(snapshotter.Finding{Kind: snapshotter.FindingOrphan, Object: "\xff\x00name", Detail: "\xff", Remedy: "remove it\xff"})
			opts.Progress, got = nil, opts
			return snapshotter.CheckSummary{Layers: 1, Images: 2, Contents: 3, Bytes: 4, Findings: 5, Repaired: 6}, nil
		})
	messages, err := receive(stream)
	if err != nil {
		t.Fatal(err)
	}
	if got.Quick != true || got.Repair != true || got.Rate != 12_000_000 {
		t.Errorf("checked with %+v", got)
	}
	want := []string{
		`{"progress":{"step":"index","done":"1","total":"2"}}`,
		`{"finding":{"kind":"image","object":"/root/images/a.erofs","detail":"checksum","repaired":true}}`,
		`{"finding":{"kind":"orphan","object":"` + "\uFFFD" + `\u0000name","detail":"` + "\uFFFD" + `","remedy":"remove it` + "\uFFFD" + `"}}`,
		`{"summary":{"layers":"1","images":"2","contents":"3","bytes":"4","findings":"5","repaired":"6"}}`,
	}
	if len(messages) != len(want) {
		t.Fatalf("got %d messages, want %d: %v", len(messages), len(want), messages)
	}
	for i, m := range messages {
		var wanted adminapi.CheckResponse
		if err := protojson.Unmarshal([]byte(want[i]), &wanted); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(m, &wanted) {
			t.Errorf("message %d is %v, want %v", i, m, &wanted)
		}
	}
}

// big is more than the kernel and gRPC take for a client that does not read.
var big = strings.Repeat("x", 4096)

// numbered is the n-th of many findings.
func numbered(n int) snapshotter.Finding {
	return snapshotter.Finding{Object: fmt.Sprint(n), Detail: big}
}

// checkNumbers complains unless the findings among messages are all that numbered returns for 0 to n-1.
func checkNumbers(t *testing.T, messages []*adminapi.CheckResponse, n int) {
	t.Helper()
	var got []string
	for _, m := range messages {
		if f := m.GetFinding(); f != nil {
			got = append(got, f.Object)
		}
	}
	for i := range max(n, len(got)) {
		if i >= len(got) || i >= n || got[i] != fmt.Sprint(i) {
			t.Fatalf("got %d findings, want %d; they differ from %d on", len(got), n, i)
		}
	}
}

func TestProgressNeverWaitsForTheClient(t *testing.T) {
	const findings, reports = 500, 200_000
	done := make(chan struct{})
	stream, _ := startCheck(t, &adminapi.CheckRequest{}, func(_ context.Context, opts snapshotter.CheckOptions, found found) (snapshotter.CheckSummary, error) {
		defer close(done)
		for i := range findings {
			found(numbered(i))
		}
		for i := range uint64(reports) {
			opts.Progress(snapshotter.CheckProgress{Step: fmt.Sprint("step ", i%2), Done: i, Total: reports})
		}
		return snapshotter.CheckSummary{Findings: findings}, nil
	})
	<-done // nothing was read so far
	messages, err := receive(stream)
	if err != nil {
		t.Fatal(err)
	}
	checkNumbers(t, messages, findings)
	if len(messages) > findings+100 {
		t.Errorf("got %d messages: progress was kept for a client that did not read", len(messages))
	}
	if last := messages[len(messages)-1].GetSummary(); last.GetFindings() != findings {
		t.Errorf("the last message is %v, want the summary", messages[len(messages)-1])
	}
}

func TestCheckEndsWithItsClient(t *testing.T) {
	for name, act := range map[string]func(context.Context, found){
		"while it works": func(ctx context.Context, _ found) { <-ctx.Done() },
		"while it waits for the client to read": func(ctx context.Context, found found) {
			for i := 0; ctx.Err() == nil; i++ {
				found(numbered(i))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			began, ended := make(chan struct{}), make(chan error, 1)
			stream, cancel := startCheck(t, &adminapi.CheckRequest{}, func(ctx context.Context, _ snapshotter.CheckOptions, found found) (snapshotter.CheckSummary, error) {
				close(began)
				act(ctx, found)
				ended <- ctx.Err()
				return snapshotter.CheckSummary{}, ctx.Err()
			})
			<-began
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("the check saw %v, want that it was cancelled", err)
			}
			if _, err := receive(stream); status.Code(err) != codes.Canceled {
				t.Errorf("got %v, want Canceled", err)
			}
		})
	}
}

func TestCheckEndsWhenTheDaemonStops(t *testing.T) {
	for name, result := range map[string]func(context.Context) error{
		"and says so":          func(ctx context.Context) error { return fmt.Errorf("layers: %w", ctx.Err()) },
		"just as it was ready": func(context.Context) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			began := make(chan struct{})
			client, stop := serveBackend(t, checkingBackend{check: func(ctx context.Context, _ snapshotter.CheckOptions, found found) (snapshotter.CheckSummary, error) {
				close(began)
				<-ctx.Done()
				return snapshotter.CheckSummary{}, result(ctx)
			}})
			stream, err := client.Check(t.Context(), &adminapi.CheckRequest{})
			if err != nil {
				t.Fatal(err)
			}
			<-began
			stop() // would wait for a minute if the check went on
			_, err = receive(stream)
			if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "the daemon is stopping") {
				t.Errorf("got %v, want Unavailable because the daemon is stopping", err)
			}
		})
	}
}

func TestCheckErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		code codes.Code
	}{
		{fmt.Errorf("another check is under way: %w", errdefs.ErrUnavailable), codes.Unavailable},
		{fmt.Errorf("open pack: %w", errdefs.ErrFailedPrecondition), codes.FailedPrecondition},
		{fmt.Errorf("read pack: %w", context.DeadlineExceeded), codes.DeadlineExceeded},
		{errors.New("disk on fire"), codes.Unknown},
	} {
		stream, _ := startCheck(t, &adminapi.CheckRequest{}, func(_ context.Context, _ snapshotter.CheckOptions, found found) (snapshotter.CheckSummary, error) {
			found(numbered(0))
			return snapshotter.CheckSummary{}, c.err
		})
		messages, err := receive(stream)
		if status.Code(err) != c.code || !strings.Contains(err.Error(), c.err.Error()) {
			t.Errorf("got %v, want %v and %q", err, c.code, c.err)
		}
		if len(messages) != 1 {
			t.Errorf("%v: got %d messages, want what was found before and no summary", c.err, len(messages))
		}
		checkNumbers(t, messages, 1)
	}
}

func TestCheckRequestsThatMakeNoSense(t *testing.T) {
	stream, _ := startCheck(t, &adminapi.CheckRequest{RateBytesPerSecond: -1}, nil)
	if _, err := receive(stream); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "rate_bytes_per_second = -1") {
		t.Errorf("got %v, want InvalidArgument", err)
	}
}

func TestBackendThatCannotCheck(t *testing.T) {
	client, _ := serveBackend(t, &fakeBackend{})
	stream, err := client.Check(t.Context(), &adminapi.CheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := receive(stream); status.Code(err) != codes.Unimplemented {
		t.Errorf("got %v, want Unimplemented", err)
	}
}

func TestPanicInACheckFailsItAlone(t *testing.T) {
	panicking := true
	client, _ := serveBackend(t, checkingBackend{check: func(context.Context, snapshotter.CheckOptions, found) (snapshotter.CheckSummary, error) {
		if panicking {
			panic("boom")
		}
		return snapshotter.CheckSummary{}, nil
	}})
	for _, want := range []codes.Code{codes.Internal, codes.OK} {
		stream, err := client.Check(t.Context(), &adminapi.CheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := receive(stream); status.Code(err) != want {
			t.Errorf("got %v, want %v", err, want)
		}
		panicking = false
	}
}

// sink is a stream whose client reads when the test does.
type sink struct {
	grpc.ServerStreamingServer[adminapi.CheckResponse]
	messages chan *adminapi.CheckResponse
}

func (s sink) Send(m *adminapi.CheckResponse) error {
	s.messages <- m
	return nil
}

type checkFunc func(context.Context, snapshotter.CheckOptions, found) (snapshotter.CheckSummary, error)

func (f checkFunc) Check(ctx context.Context, opts snapshotter.CheckOptions, found func(snapshotter.Finding)) (snapshotter.CheckSummary, error) {
	return f(ctx, opts, found)
}

func TestProgressIsThrottledByStep(t *testing.T) {
	for interval, want := range map[time.Duration][]string{
		time.Hour: {"a 1", "a 3", "b 1", "b 3"},
		0:         {"a 1", "a 2", "a 3", "b 1", "b 2", "b 3"},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		client := sink{messages: make(chan *adminapi.CheckResponse)}
		s := sendChecks(ctx, cancel, client, interval, unreadMessages)
		var got []string
		_, err := s.run(checkFunc(func(_ context.Context, _ snapshotter.CheckOptions, found found) (snapshotter.CheckSummary, error) {
			for _, step := range []string{"a", "b"} {
				for done := range uint64(3) {
					s.progress(snapshotter.CheckProgress{Step: step, Done: done + 1, Total: 3})
					// The finding ends what is sent of this report.
					found(snapshotter.Finding{})
					for m := range client.messages {
						if m.GetFinding() != nil {
							break
						}
						got = append(got, fmt.Sprint(m.GetProgress().Step, " ", m.GetProgress().Done))
					}
				}
			}
			go func() { <-client.messages }() // the summary
			return snapshotter.CheckSummary{}, nil
		}), snapshotter.CheckOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("interval %v: got %q, want %q", interval, got, want)
		}
		cancel(nil)
	}
}

func TestFindingsAreNotLostOnASlowClient(t *testing.T) {
	const findings, unread = 100, 10
	ctx, cancel := context.WithCancelCause(t.Context())
	client := sink{messages: make(chan *adminapi.CheckResponse)}
	s := sendChecks(ctx, cancel, client, time.Hour, unread)
	var messages []*adminapi.CheckResponse
	many, read := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(read)
		<-many
		for range findings + 1 {
			messages = append(messages, <-client.messages)
		}
	}()
	_, err := s.run(checkFunc(func(_ context.Context, _ snapshotter.CheckOptions, found found) (snapshotter.CheckSummary, error) {
		for i := range findings {
			if i == unread {
				close(many)
			}
			found(numbered(i))
		}
		return snapshotter.CheckSummary{}, nil
	}), snapshotter.CheckOptions{})
	if err != nil {
		t.Fatal(err)
	}
	<-read
	checkNumbers(t, messages, findings)
	if messages[findings].GetSummary() == nil {
		t.Errorf("the last message is %v, want the summary", messages[findings])
	}
}
