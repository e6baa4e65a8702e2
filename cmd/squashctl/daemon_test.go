// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

// fakeDaemon serves the admin API with a check that the test writes.
type fakeDaemon struct {
	adminapi.UnimplementedAdminServer
	check func(*adminapi.CheckRequest, grpc.ServerStreamingServer[adminapi.CheckResponse]) error
}

func (f fakeDaemon) Check(req *adminapi.CheckRequest, stream grpc.ServerStreamingServer[adminapi.CheckResponse]) error {
	return f.check(req, stream)
}

// listen returns a listener on a new socket, which is closed when the test ends.
func listen(t *testing.T) *net.UnixListener {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// serveOn serves until the test ends and returns the address.
func serveOn(t *testing.T, register func(*grpc.Server)) string {
	t.Helper()
	l := listen(t)
	server := grpc.NewServer()
	register(server)
	go server.Serve(l)
	t.Cleanup(server.Stop)
	return l.Addr().String()
}

// fakeFsck serves check and returns the address.
func fakeFsck(t *testing.T, check func(*adminapi.CheckRequest, grpc.ServerStreamingServer[adminapi.CheckResponse]) error) string {
	t.Helper()
	return serveOn(t, func(s *grpc.Server) { adminapi.RegisterAdminServer(s, fakeDaemon{check: check}) })
}

func TestDaemonThatCannotBeReached(t *testing.T) {
	dir := t.TempDir()
	stale := listen(t)
	stale.SetUnlinkOnClose(false)
	stale.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other := serveOn(t, func(*grpc.Server) {})
	for _, c := range []struct {
		name, address string
		want          []string
	}{
		{"no socket", dir + "/none.sock", []string{"there is no socket " + dir + "/none.sock", "systemctl start containerd-squash-grpc", "--address"}},
		{"no directory", dir + "/none/none.sock", []string{"there is no socket " + dir + "/none/none.sock"}},
		{"nobody listens", stale.Addr().String(), []string{"nobody listens on socket " + stale.Addr().String(), "systemctl start containerd-squash-grpc"}},
		{"a file", file, []string{file + " is not a socket", "--address"}},
		{"below a file", file + "/s.sock", []string{file + "/s.sock", "--address"}},
		{"path that is too long", "/" + strings.Repeat("x", 200), []string{"/xxx", "--address"}},
		{"empty", "", []string{"--address"}},
		{"another program", other, []string{"what serves on " + other + " cannot do this", "upgrade", "--address"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, stdout, stderr := execute(t, "--address", c.address, "fsck")
			if code != notDone {
				t.Errorf("got exit code %d, want %d", code, notDone)
			}
			for _, want := range c.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("got %q, want it to contain %q", stderr, want)
				}
			}
			if stdout != "" {
				t.Errorf("an error was written to standard output: %q", stdout)
			}
		})
	}
}

func TestDaemonThatDoesNotLetOthersIn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: takes another user's place")
	}
	l := listen(t)
	if err := os.Chmod(l.Addr().String(), 0o600); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // for good, so the thread ends with its user
		if err := unix.Setfsuid(65534); err != nil {
			failed <- err
			return
		}
		_, err := dial(context.Background(), l.Addr().String(), time.Minute)
		failed <- err
	}()
	err := <-failed
	if err == nil || !strings.Contains(err.Error(), "permission to connect to "+l.Addr().String()+" was denied: run squashctl as root") {
		t.Errorf("got %v", err)
	}
}

func TestDaemonThatDoesNotAnswer(t *testing.T) {
	l := listen(t) // and nobody accepts
	_, err := dial(t.Context(), l.Addr().String(), 20*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "did not answer for 20ms") {
		t.Errorf("got %v", err)
	}
}

func TestAddressMayBeAURL(t *testing.T) {
	conn, err := dial(t.Context(), "unix://"+serveOn(t, func(*grpc.Server) {}), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}
