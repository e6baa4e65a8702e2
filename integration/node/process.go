// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
)

const (
	readyLimit = 30 * time.Second      // a daemon must answer within this time
	stopLimit  = 20 * time.Second      // and end after SIGTERM within this
	pollEvery  = 20 * time.Millisecond // how often an outside condition is looked at
)

// process is a daemon with its own process group and a log file.
type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	err  error         // how, valid after done
}

func startProcess(path string, args, env []string, logFile string) (*process, error) {
	out, err := os.OpenFile(logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p := &process{name: filepath.Base(path), cmd: exec.Command(path, args...), done: make(chan struct{})}
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = env, out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// stop signals the process group and waits. SIGTERM must lead to exit status 0 in time; what does not end is
// killed and reported.
func (p *process) stop(sig syscall.Signal) error {
	if !p.running() {
		return fmt.Errorf("%s had already ended: %w", p.name, p.err)
	}
	if err := unix.Kill(-p.cmd.Process.Pid, sig); err != nil {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	select {
	case <-p.done:
	case <-time.After(stopLimit):
		unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
		<-p.done
		return fmt.Errorf("%s did not end within %v of %v", p.name, stopLimit, sig)
	}
	if sig == unix.SIGTERM && p.err != nil {
		return fmt.Errorf("%s after %v: %w", p.name, sig, p.err)
	}
	return nil
}

// waitReady asks until the process behind the socket gives a good answer. It fails as soon as the process ends.
func (p *process) waitReady(ctx context.Context, socket string, ask func(context.Context, *grpc.ClientConn) error) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}))
	if err != nil {
		return err
	}
	defer conn.Close()
	for {
		err := ask(ctx, conn)
		if err == nil {
			return nil
		}
		conn.ResetConnectBackoff()
		select {
		case <-p.done:
			return fmt.Errorf("%s ended before it was ready: %w", p.name, errors.Join(p.err, err))
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready after %v: %w", p.name, readyLimit, err)
		case <-time.After(pollEvery):
		}
	}
}

// connections counts those that a listening unix socket has accepted and that are open.
func connections(socket string) (count int, err error) {
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(table)) {
		// Num RefCount Protocol Flags Type St Inode Path; state 03 is "connected".
		f := strings.Fields(line)
		if len(f) == 8 && f[5] == "03" && f[7] == socket {
			count++
		}
	}
	return count, nil
}

// serving asks containerd's health service, which is set to serving after all plugins have started.
func serving(ctx context.Context, conn *grpc.ClientConn) error {
	r, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		return err
	}
	if r.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("health: %v", r.Status)
	}
	return nil
}

// listing asks a snapshotter for its list, to the end.
func listing(ctx context.Context, conn *grpc.ClientConn) error {
	ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", Namespace)
	list, err := snapshotsapi.NewSnapshotsClient(conn).List(ctx, &snapshotsapi.ListSnapshotsRequest{Snapshotter: Squash})
	for err == nil {
		_, err = list.Recv()
	}
	if err == io.EOF {
		return nil
	}
	return err
}
