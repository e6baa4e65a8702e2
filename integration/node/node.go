// SPDX-License-Identifier: Apache-2.0

// Package node owns a private container node: one containerd and, if asked for, one squash daemon, with all of
// their files, sockets, mounts and containers below one directory that is gone when the node is closed.
//
//	Options ──Start──▶ containerd + squash ──Ctr, Run──▶ output of ctr and of containers
//	                          └──Close──▶ nothing left, or an error that names what was
//
// A node never touches the machine's own containerd. The exceptions to "below one directory" are fixed by
// containerd: shim sockets lie in /run/containerd/s, and cgroups under a parent named after the node; both are
// removed by Close. When the test process dies without Close, a reaper process that it started does the same
// work (see Reap).
package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Snapshotters that a node offers.
const (
	Overlayfs = "overlayfs"
	Squash    = "squash"
	Erofs     = "erofs"
)

// Namespace is the containerd namespace that is used unless a call names another one.
const Namespace = "default"

// Options says what to start.
type Options struct {
	Tools  string // directory with containerd, containerd-shim-runc-v2, ctr and runc
	Daemon string // squash daemon; empty: a node without squash

	// SnapshotOnly leaves the daemon's differ out of containerd's configuration: only the snapshot plugin is
	// known, and containerd's walking differ writes through the mounts. That is how containerd 1.6 has to be
	// set up and what a user gets who configures no differ.
	SnapshotOnly bool

	// PlainContainerd leaves squash out of containerd's configuration: somebody is to add it before the daemon is used.
	PlainContainerd bool

	// DaemonConfig is the daemon's configuration file (TOML). It may be empty.
	DaemonConfig string

	// Unpacks is how many layers containerd may unpack at once; 0 leaves it at containerd's default, one.
	Unpacks int

	// MkfsOptions go to mkfs.erofs when containerd's erofs differ runs it.
	MkfsOptions []string

	// Path is a directory where containerd looks for programs before it looks in those of PATH.
	Path string

	// Limit is how long a call of ctr may take; 0: a minute.
	Limit time.Duration

	// Debug raises the log level of both daemons from info to debug.
	Debug bool
}

// Node is a running node. Its methods may be called by one goroutine at a time, but for Ctr and Run, which may
// run side by side.
type Node struct {
	opts       Options
	dir        string // everything lies below here
	name       string // base name of dir; also the name of the cgroup parent
	containerd *process
	daemon     *process
	reaper     *reaper
	containers map[string]*Container // running in the background
}

// Start makes a node and waits until both daemons answer requests. On failure nothing is left and the error
// carries the end of the logs.
//
// Node directories are made in $SQUASH_TEST_DIR or the system's temporary directory. That must be a file system
// that can hold overlay upper directories; an overlay is refused.
func Start(ctx context.Context, opts Options) (_ *Node, err error) {
	dir, err := makeDir()
	if err != nil {
		return nil, err
	}
	n := &Node{opts: opts, dir: dir, name: filepath.Base(dir), containers: make(map[string]*Container)}
	if n.reaper, err = startReaper(dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%w\n%s", err, n.Logs(40)), n.Close())
		}
	}()
	for _, d := range []string{n.logDir(), n.tempDir(), filepath.Join(dir, "s")} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, err
		}
	}
	for path, text := range map[string]string{n.containerdConfigFile(): n.containerdConfig(), n.daemonConfigFile(): opts.DaemonConfig} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	if err := n.StartContainerd(ctx); err != nil {
		return nil, err
	}
	if opts.Daemon != "" {
		if err := n.StartDaemon(ctx); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func makeDir() (string, error) {
	base := os.Getenv("SQUASH_TEST_DIR")
	if base == "" {
		base = os.TempDir()
	}
	dir, err := os.MkdirTemp(base, "squash-node-")
	if err != nil {
		return "", fmt.Errorf("node directory: %w", err)
	}
	// Mount tables and /proc show resolved paths.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", fmt.Errorf("node directory: %w", err)
	}
	// Processes in a user namespace walk through it to their root file system.
	if err := os.Chmod(dir, 0o711); err != nil {
		return "", fmt.Errorf("node directory: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return "", fmt.Errorf("node directory: statfs %s: %w", dir, err)
	}
	if fs.Type == unix.OVERLAYFS_SUPER_MAGIC {
		os.Remove(dir)
		return "", fmt.Errorf("node directory: %s lies on overlayfs, which cannot hold snapshots; "+
			"set SQUASH_TEST_DIR to a directory on a disk file system", base)
	}
	// The longest socket of a node is <dir>/s/containerd.sock.ttrpc; the kernel takes 107 bytes.
	if len(dir) > 80 {
		os.Remove(dir)
		return "", fmt.Errorf("node directory: %s is too long for unix sockets; set SQUASH_TEST_DIR to a shorter path", dir)
	}
	return dir, nil
}

// The layout of a node. Every path is made here and nowhere else.

func (n *Node) logDir() string               { return filepath.Join(n.dir, "log") }
func (n *Node) tempDir() string              { return filepath.Join(n.dir, "tmp") }
func (n *Node) containerdConfigFile() string { return filepath.Join(n.dir, "containerd.toml") }
func (n *Node) containerdRoot() string       { return filepath.Join(n.dir, "containerd") }
func (n *Node) containerdState() string      { return filepath.Join(n.dir, "run") }
func (n *Node) containerdSocket() string     { return filepath.Join(n.dir, "s", "containerd.sock") }
func (n *Node) daemonConfigFile() string     { return filepath.Join(n.dir, "squash.toml") }
func (n *Node) daemonSocket() string         { return filepath.Join(n.dir, "s", "squash.sock") }
func (n *Node) runcRoot() string             { return filepath.Join(n.dir, "runc") }

// ContainerdConfigFile is containerd's configuration; it is read when containerd starts.
func (n *Node) ContainerdConfigFile() string { return n.containerdConfigFile() }

// Dir is the node's directory. Tests may put files there.
func (n *Node) Dir() string { return n.dir }

// DaemonRoot is the squash daemon's root directory.
func (n *Node) DaemonRoot() string { return filepath.Join(n.dir, "squash") }

// DaemonState is the squash daemon's state directory, where flat images are mounted.
func (n *Node) DaemonState() string { return filepath.Join(n.dir, "squash-run") }

// SnapshotterRoot is where a snapshotter keeps its data.
func (n *Node) SnapshotterRoot(snapshotter string) string {
	if snapshotter == Squash {
		return n.DaemonRoot()
	}
	return filepath.Join(n.containerdRoot(), "io.containerd.snapshotter.v1."+snapshotter)
}

// StartContainerd starts containerd, also after StopContainerd, and waits until it serves.
func (n *Node) StartContainerd(ctx context.Context) error {
	p, err := startProcess(filepath.Join(n.opts.Tools, "containerd"), []string{"--config", n.containerdConfigFile()}, n.env(), n.logFile("containerd"))
	if err != nil {
		return err
	}
	n.containerd = p
	return p.waitReady(ctx, n.containerdSocket(), serving)
}

// StopContainerd ends containerd with SIGTERM. Containers go on.
func (n *Node) StopContainerd() error { return n.containerd.stop(unix.SIGTERM) }

// KillContainerd ends containerd with SIGKILL. Containers go on.
func (n *Node) KillContainerd() error { return n.containerd.stop(unix.SIGKILL) }

// StartDaemon starts the squash daemon, also after StopDaemon or KillDaemon, and waits until it lists snapshots,
// to us and to containerd, which may have seen it away and then waits up to three seconds between its attempts.
func (n *Node) StartDaemon(ctx context.Context) error {
	p, err := startProcess(n.opts.Daemon, n.daemonArgs(n.daemonSocket()), n.env(), n.logFile("squash"))
	if err != nil {
		return err
	}
	n.daemon = p
	if err := p.waitReady(ctx, n.daemonSocket(), listing); err != nil {
		return err
	}
	if n.opts.PlainContainerd {
		return nil
	}
	return Await(ctx, readyLimit, func() error {
		// Only a call that containerd cannot answer from its own database reaches the daemon.
		const probe = "squash-node-probe"
		if _, err := n.Ctr(ctx, "snapshot", "--snapshotter", Squash, "prepare", probe); err != nil {
			return err
		}
		_, err := n.Ctr(ctx, "snapshot", "--snapshotter", Squash, "rm", probe)
		return err
	})
}

// StopDaemon sends SIGTERM to the squash daemon, waits for its end and returns an error unless it exits with 0.
func (n *Node) StopDaemon() error { return n.daemon.stop(unix.SIGTERM) }

// KillDaemon ends the squash daemon with SIGKILL.
func (n *Node) KillDaemon() error { return n.daemon.stop(unix.SIGKILL) }

// PauseDaemon stops the squash daemon where it is: calls reach it and wait until ResumeDaemon.
func (n *Node) PauseDaemon() error { return unix.Kill(n.daemon.cmd.Process.Pid, unix.SIGSTOP) }

// ResumeDaemon lets a paused daemon go on. For one that is not paused it does nothing.
func (n *Node) ResumeDaemon() error { return unix.Kill(n.daemon.cmd.Process.Pid, unix.SIGCONT) }

// Clients counts the programs that are connected to containerd.
func (n *Node) Clients() (int, error) { return connections(n.containerdSocket()) }

// Reboot does what a reboot does to a node whose containers have ended: both daemons go, every mount goes, the
// run directories are emptied. Then both daemons start again.
func (n *Node) Reboot(ctx context.Context) error {
	if err := n.StopContainerd(); err != nil {
		return err
	}
	if n.daemon != nil {
		if err := n.StopDaemon(); err != nil {
			return err
		}
	}
	if err := errors.Join(sweepMounts(n.dir), sweepLoops(n.dir)); err != nil {
		return err
	}
	for _, dir := range []string{n.containerdState(), n.DaemonState()} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := n.StartContainerd(ctx); err != nil {
		return err
	}
	if n.daemon != nil {
		return n.StartDaemon(ctx)
	}
	return nil
}

// SecondDaemon runs another daemon on the same root and state with a socket of its own until it ends by itself
// and returns its output and exit error. A daemon that is still there after limit is killed; that is an error
// too, and errors.Is(err, context.DeadlineExceeded).
func (n *Node) SecondDaemon(ctx context.Context, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, n.opts.Daemon, n.daemonArgs(filepath.Join(n.dir, "s", "second.sock"))...)
	cmd.Env = n.env()
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("still running after %v: %w", limit, ctx.Err())
	}
	return string(out), err
}

func (n *Node) daemonArgs(socket string) []string {
	return []string{
		"--config", n.daemonConfigFile(), "--address", socket, "--root", n.DaemonRoot(), "--state", n.DaemonState(),
		"--containerd-address", n.containerdSocket(), "--log-level", n.logLevel(), "--log-format", "text",
	}
}

func (n *Node) logLevel() string {
	if n.opts.Debug {
		return "debug"
	}
	return "info"
}

// env has our tools first in PATH, where containerd looks for the shim and the shim for runc, and temporary
// mounts below the node's directory.
func (n *Node) env() []string {
	path := n.opts.Tools + ":" + os.Getenv("PATH")
	if n.opts.Path != "" {
		path = n.opts.Path + ":" + path
	}
	return append(os.Environ(), "PATH="+path, "TMPDIR="+n.tempDir())
}

func (n *Node) logFile(name string) string { return filepath.Join(n.logDir(), name+".log") }

// DaemonLog is the file with the squash daemon's log.
func (n *Node) DaemonLog() string { return n.logFile("squash") }

// Logs gives the last lines of both daemons' logs, and the head of the stack dump of a Go program that died.
func (n *Node) Logs(lines int) string {
	var b strings.Builder
	for _, name := range []string{"squash", "containerd"} {
		data, err := os.ReadFile(n.logFile(name))
		if err != nil {
			continue
		}
		all := strings.Split(strings.TrimSpace(string(data)), "\n")
		fmt.Fprintf(&b, "--- log of %s, last %d of %d lines\n", name, min(lines, len(all)), len(all))
		b.WriteString(strings.Join(all[max(0, len(all)-lines):], "\n"))
		b.WriteByte('\n')
		if dump := slices.IndexFunc(all, isDump); dump >= 0 && dump < len(all)-lines {
			fmt.Fprintf(&b, "--- log of %s, stack dump at line %d\n", name, dump+1)
			b.WriteString(strings.Join(all[dump:min(dump+lines, len(all))], "\n"))
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func isDump(line string) bool {
	return strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") || strings.HasPrefix(line, "SIGQUIT:")
}

// Close ends containers and daemons, unmounts and deletes everything below the node's directory, and returns an
// error for each thing that could not be ended in the ordinary way: a daemon that ignored SIGTERM or failed, a
// mount that was busy, a loop device that stayed.
func (n *Node) Close() error {
	var errs []error
	for _, c := range n.containers {
		errs = append(errs, c.Stop(context.Background()))
	}
	if n.containerd != nil && n.containerd.running() {
		errs = append(errs, n.StopContainerd())
	}
	if n.daemon != nil && n.daemon.running() {
		errs = append(errs, n.StopDaemon())
	}
	errs = append(errs, sweep(n.dir), n.reaper.dismiss())
	return errors.Join(errs...)
}
