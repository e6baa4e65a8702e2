// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/squash-snapshotter/squash/service"
)

// errOpened is what the fake backend answers, so that run ends where serving would begin.
var errOpened = errors.New("this is far enough")

// execute runs the program up to the opening of the backend and returns the configuration it arrived there with.
func execute(t *testing.T, args ...string) (cfg service.Config, code int, stdout, stderr string) {
	t.Helper()
	open := func(_ context.Context, got service.Config, _ service.Containerd, _ func(string)) (service.Backend, error) {
		cfg = got
		return nil, errOpened
	}
	var out, errs strings.Builder
	code = run(t.Context(), open, append([]string{"containerd-squash-grpc"}, args...), &out, &errs)
	return cfg, code, out.String(), errs.String()
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExitCodes(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.toml")
	broken := writeFile(t, "\nmount = \"fuse\"\n")
	for _, c := range []struct {
		name string
		args []string
		code int
		want string // in the output
	}{
		{"version", []string{"--version"}, 0, "containerd-squash-grpc version "},
		{"help", []string{"--help"}, 0, "Examples:"},
		{"unknown flag", []string{"--nope"}, 2, "-nope"},
		{"flag without value", []string{"--root"}, 2, "--root"},
		{"argument", []string{"serve"}, 2, `unexpected argument "serve"`},
		{"bad level", []string{"--log-level", "loud"}, 2, `log.level = "loud": must be one of`},
		{"relative root", []string{"--root", "lib"}, 2, `root = "lib": must be an absolute path`},
		{"config that is not there", []string{"--config", missing}, 1, missing},
		{"config with an error", []string{"--config", broken}, 1, broken + ":2: mount"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, code, stdout, stderr := execute(t, c.args...)
			if code != c.code {
				t.Errorf("got exit code %d, want %d", code, c.code)
			}
			if !strings.Contains(stdout+stderr, c.want) {
				t.Errorf("got output %q%q, want it to contain %q", stdout, stderr, c.want)
			}
			if c.code != 0 && stdout != "" {
				t.Errorf("an error was written to standard output: %q", stdout)
			}
		})
	}
}

func TestFlagsOverrideTheFile(t *testing.T) {
	dir := t.TempDir()
	config := writeFile(t, fmt.Sprintf(`
address = "%[1]s/file.sock"
root = "%[1]s/file-root"
state = "%[1]s/file-state"
containerd_address = "%[1]s/file-containerd.sock"
mount = "loop"
durability = "sync"
log.level = "warn"
log.format = "json"
`, dir))
	fromFile := service.DefaultConfig()
	fromFile.Address, fromFile.Root, fromFile.State = dir+"/file.sock", dir+"/file-root", dir+"/file-state"
	fromFile.ContainerdAddress = dir + "/file-containerd.sock"
	fromFile.Mount, fromFile.Durability = "loop", "sync"
	fromFile.LogLevel, fromFile.LogFormat = "warn", "json"
	cfg, code, _, stderr := execute(t, "--config", config)
	if code != 1 || !strings.Contains(stderr, errOpened.Error()) {
		t.Fatalf("got exit code %d, %q", code, stderr)
	}
	if cfg != fromFile {
		t.Errorf("file alone: got %+v, want %+v", cfg, fromFile)
	}
	want := fromFile
	want.Address, want.Root, want.State = dir+"/flag.sock", dir+"/flag-root", dir+"/flag-state"
	want.ContainerdAddress = dir + "/flag-containerd.sock"
	want.LogLevel, want.LogFormat = "error", "text"
	cfg, _, _, _ = execute(t, "--config", config, "--address", want.Address, "--root", want.Root, "--state", want.State,
		"--containerd-address", want.ContainerdAddress, "--log-level", want.LogLevel, "--log-format", want.LogFormat)
	if cfg != want {
		t.Errorf("file and flags: got %+v, want %+v", cfg, want)
	}
}

// program is the real daemon with a socket on which it talks to the service manager.
type program struct {
	dir    string
	binary string
	notify *net.UnixConn
}

func buildProgram(t *testing.T) program {
	t.Helper()
	dir := t.TempDir()
	p := program{dir: dir, binary: filepath.Join(dir, "daemon")}
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", p.binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	var err error
	if p.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify.sock"), Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.notify.Close() })
	return p
}

func (p program) args() []string {
	return []string{
		"--config", os.DevNull,
		"--address", p.dir + "/s.sock", "--root", p.dir + "/root", "--state", p.dir + "/state",
		"--containerd-address", p.dir + "/no-containerd.sock",
	}
}

// start runs cmd until the test ends.
func (p program) start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
		if t.Failed() {
			t.Logf("the daemon said:\n%s", &stderr)
		}
	})
}

// told returns the next message to the service manager.
func (p program) told(t *testing.T) string {
	t.Helper()
	if err := p.notify.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	message := make([]byte, 1000)
	n, err := p.notify.Read(message)
	if err != nil {
		t.Fatal(err)
	}
	return string(message[:n])
}

func TestSignalsStopTheDaemon(t *testing.T) {
	p := buildProgram(t)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		cmd := exec.Command(p.binary, p.args()...)
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+p.notify.LocalAddr().String())
		p.start(t, cmd)
		if got := p.told(t); got != "READY=1" {
			t.Errorf("told the service manager %q, want READY=1", got)
		}
		conn, err := net.Dial("unix", p.dir+"/s.sock")
		if err != nil {
			t.Errorf("the daemon said that it is ready and is not: %v", err)
		} else {
			conn.Close()
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if got := p.told(t); got != "STOPPING=1" {
			t.Errorf("told the service manager %q, want STOPPING=1", got)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %v", sig, err)
		}
		if _, err := os.Lstat(p.dir + "/s.sock"); !os.IsNotExist(err) {
			t.Errorf("%v: the socket stays: %v", sig, err)
		}
	}
}

// The socket of the service manager is served, and outlives the daemon.
func TestSocketActivation(t *testing.T) {
	p := buildProgram(t)
	path := p.dir + "/passed.sock"
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	passed, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer passed.Close()
	// The variable names the process that the socket is for, so a shell sets it and becomes the daemon.
	cmd := exec.Command("/bin/sh", append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, p.binary}, p.args()...)...)
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "NOTIFY_SOCKET="+p.notify.LocalAddr().String())
	cmd.ExtraFiles = []*os.File{passed}
	p.start(t, cmd)
	if got := p.told(t); got != "READY=1" {
		t.Errorf("told the service manager %q, want READY=1", got)
	}
	if _, err := os.Lstat(p.dir + "/s.sock"); !os.IsNotExist(err) {
		t.Errorf("the daemon made a socket of its own: %v", err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket of the service manager is gone: %v", err)
	}
}
