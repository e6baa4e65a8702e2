// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Ctr runs ctr in the default namespace and returns its standard output. Errors carry standard error.
func (n *Node) Ctr(ctx context.Context, args ...string) (string, error) {
	return n.CtrIn(ctx, Namespace, args...)
}

// commandLimit is far more than any call of ours takes, unless the node's options say otherwise.
const commandLimit = time.Minute

// CtrIn runs ctr in a namespace. A call that does not end within the limit is given up; the squash daemon is
// then ended with SIGQUIT, for its log to show where it hangs.
func (n *Node) CtrIn(ctx context.Context, namespace string, args ...string) (string, error) {
	limit := cmp.Or(n.opts.Limit, commandLimit)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	args = append([]string{"--address", n.containerdSocket(), "--namespace", namespace}, args...)
	cmd := exec.CommandContext(ctx, filepath.Join(n.opts.Tools, "ctr"), args...)
	cmd.Env = n.env()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	// A container's output keeps these pipes open; it must not hold up a cancelled call.
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) && n.daemon != nil && n.daemon.running() {
			err = errors.Join(fmt.Errorf("no end after %v", limit), err, n.daemon.stop(unix.SIGQUIT))
		}
		return out.String(), fmt.Errorf("ctr %s: %w\n%s", strings.Join(args[4:], " "), err, errOut.String())
	}
	return out.String(), nil
}

// Pull pulls ref with plain HTTP and unpacks it into a snapshotter.
func (n *Node) Pull(ctx context.Context, snapshotter, ref string) error {
	_, err := n.Ctr(ctx, "image", "pull", "--plain-http", "--snapshotter", snapshotter, ref)
	return err
}

// Run describes a container.
type Run struct {
	Snapshotter string
	Namespace   string // empty: default
	Image       string
	ID          string
	ReadOnly    bool     // read-only root file system
	Flags       []string // more flags of ctr run
	Args        []string // program and arguments; empty: what the image says
}

func (n *Node) runArgs(r Run, flags ...string) (namespace string, args []string) {
	args = append([]string{"run"}, flags...)
	args = append(args, "--snapshotter", r.Snapshotter, "--runc-root", n.runcRoot(), "--cgroup", "/"+n.name+"/"+r.ID)
	if r.ReadOnly {
		args = append(args, "--read-only")
	}
	args = append(append(args, r.Flags...), r.Image, r.ID)
	namespace = r.Namespace
	if namespace == "" {
		namespace = Namespace
	}
	return namespace, append(args, r.Args...)
}

// Run runs a container to its end, removes it and returns its output. An exit status other than 0 is an error.
func (n *Node) Run(ctx context.Context, r Run) (string, error) {
	namespace, args := n.runArgs(r, "--rm")
	return n.CtrIn(ctx, namespace, args...)
}

// Container is a container that runs in the background.
type Container struct {
	node      *Node
	id        string
	namespace string
	execs     int
}

// Start runs a container in the background until Stop or Close.
func (n *Node) Start(ctx context.Context, r Run) (*Container, error) {
	namespace, args := n.runArgs(r, "--detach", "--null-io")
	if _, err := n.CtrIn(ctx, namespace, args...); err != nil {
		return nil, err
	}
	c := &Container{node: n, id: r.ID, namespace: namespace}
	n.containers[namespace+"/"+r.ID] = c
	return c, nil
}

// Exec runs a program inside the container and returns its output.
func (c *Container) Exec(ctx context.Context, args ...string) (string, error) {
	c.execs++
	head := []string{"task", "exec", "--exec-id", fmt.Sprintf("e%d", c.execs), c.id}
	return c.node.CtrIn(ctx, c.namespace, append(head, args...)...)
}

// Pid is the container's first process, as the host numbers it.
func (c *Container) Pid(ctx context.Context) (string, error) {
	out, err := c.node.CtrIn(ctx, c.namespace, "task", "ls")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == c.id {
			return f[1], nil
		}
	}
	return "", fmt.Errorf("container %s has no task in:\n%s", c.id, out)
}

// Stop kills and removes the container and its snapshot.
func (c *Container) Stop(ctx context.Context) error {
	delete(c.node.containers, c.namespace+"/"+c.id)
	_, killed := c.node.CtrIn(ctx, c.namespace, "task", "rm", "--force", c.id)
	_, removed := c.node.CtrIn(ctx, c.namespace, "container", "rm", c.id)
	return errors.Join(killed, removed)
}

// Await asks until done says so, and fails with the last reason after limit. It is for effects that containerd
// and the daemon bring about in the background, such as garbage collection.
func Await(ctx context.Context, limit time.Duration, done func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := done()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %w", limit, err)
		case <-time.After(pollEvery):
		}
	}
}
