// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

// defaultAddress is where a daemon serves that is not told otherwise.
const defaultAddress = "/run/containerd-squash-grpc/containerd-squash-grpc.sock"

// answerTimeout is how long a daemon that is starting may take to answer.
const answerTimeout = 30 * time.Second

// mostMessage is as much as the daemon puts into one message, in bytes.
const mostMessage = 16 << 20

// dial returns a connection to a daemon that answers at the socket path address within limit. Its errors say what
// stands in the way and what helps.
func dial(ctx context.Context, address string, limit time.Duration) (*grpc.ClientConn, error) {
	path := strings.TrimPrefix(address, "unix://")
	connect := func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	// What gRPC makes of such an error cannot be told from the answer of a daemon.
	first, err := connect(ctx, path)
	if err != nil {
		return nil, explainDial(path, err)
	}
	first.Close()
	conn, err := grpc.NewClient("passthrough:///squash",
		grpc.WithContextDialer(connect),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(mostMessage)),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	conn.Connect()
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if !conn.WaitForStateChange(ctx, state) {
			conn.Close()
			return nil, fmt.Errorf("the daemon at %s did not answer for %v: it may still be starting, or hang; its log may tell (%s)", path, limit, seeLog)
		}
	}
	return conn, nil
}

// ask calls the daemon at address once, and explains what went wrong.
func ask[Reply any](ctx context.Context, address string, call func(context.Context, adminapi.AdminClient) (Reply, error)) (reply Reply, err error) {
	conn, err := dial(ctx, address, answerTimeout)
	if err != nil {
		return reply, err
	}
	defer conn.Close()
	if reply, err = call(ctx, adminapi.NewAdminClient(conn)); err != nil {
		return reply, explainCall(address, err)
	}
	return reply, nil
}

// receive calls the daemon at address and hands all that it answers to take, whose error ends the call.
func receive[Reply any](ctx context.Context, address string, call func(context.Context, adminapi.AdminClient) (grpc.ServerStreamingClient[Reply], error), take func(*Reply) error) error {
	conn, err := dial(ctx, address, answerTimeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := call(ctx, adminapi.NewAdminClient(conn))
	if err != nil {
		return explainCall(address, err)
	}
	for {
		reply, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return explainCall(address, err)
		}
		if err := take(reply); err != nil {
			return err
		}
	}
}

const (
	startIt = "systemctl start containerd-squash-grpc"
	seeLog  = "journalctl -u containerd-squash-grpc"
)

// explainDial says why nobody can be reached at the socket path, and what helps.
func explainDial(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no socket %s: the daemon is not running (%s) or serves elsewhere (name its socket with --address)", path, startIt)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("permission to connect to %s was denied: run squashctl as root", path)
	case errors.Is(err, unix.ECONNREFUSED):
		if info, serr := os.Stat(path); serr == nil && info.Mode().Type() != fs.ModeSocket {
			return fmt.Errorf("%s is not a socket: name the one of the daemon with --address", path)
		}
		return fmt.Errorf("nobody listens on socket %s: the daemon is not running; start it (%s)", path, startIt)
	}
	return fmt.Errorf("connect to the daemon: %w; name its socket with --address", err)
}

// explainCall says in the operator's words why a call of the daemon at address failed.
func explainCall(address string, err error) error {
	said := status.Convert(err)
	switch said.Code() {
	case codes.Unimplemented:
		return fmt.Errorf("what serves on %s cannot do this: %s; it is another daemon (see --address), or older than squashctl %s: upgrade and restart it", address, printable(said.Message()), shownVersion())
	case codes.Unavailable:
		return fmt.Errorf("%s; try again later; if the daemon ended, its log tells why: %s", printable(said.Message()), seeLog)
	case codes.Internal, codes.Unknown:
		return fmt.Errorf("the daemon failed: %s; its log may tell more: %s", printable(said.Message()), seeLog)
	}
	return errors.New(printable(said.Message()))
}
