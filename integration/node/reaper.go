// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// reaperVariable carries the directory of a node to its reaper.
const reaperVariable = "SQUASH_NODE_REAPER"

// reaper is a second copy of the running program that waits on a pipe. The pipe's other end is held by the
// program that started the node; when that dies in whatever way (a panic, a test timeout, SIGKILL), the kernel
// closes the pipe and the reaper sweeps.
type reaper struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

// Reap must be called first in main or TestMain of every program that starts nodes. In a reaper it does the
// reaper's work and does not return; everywhere else it returns at once.
func Reap() {
	dir := os.Getenv(reaperVariable)
	if dir == "" {
		return
	}
	word, err := io.ReadAll(os.Stdin)
	if err != nil || len(word) == 0 {
		if err := sweep(dir); err != nil {
			fmt.Fprintf(os.Stderr, "clean up after a node that died: %v\n", err)
		}
	}
	os.Exit(0)
}

func startReaper(dir string) (*reaper, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("reaper: %w", err)
	}
	r := &reaper{cmd: exec.Command(exe)}
	r.cmd.Env = append(os.Environ(), reaperVariable+"="+dir)
	// Its own session: a Ctrl-C for the test must not end it. It keeps no output pipe of the test open but
	// standard error, where its findings belong.
	r.cmd.Stderr = os.Stderr
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if r.pipe, err = r.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("reaper: %w", err)
	}
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("reaper: %w", err)
	}
	return r, nil
}

// dismiss tells the reaper that nothing is left to do and waits for its end.
func (r *reaper) dismiss() error {
	if _, err := io.WriteString(r.pipe, "done"); err != nil {
		return fmt.Errorf("dismiss reaper: %w", err)
	}
	if err := r.pipe.Close(); err != nil {
		return fmt.Errorf("dismiss reaper: %w", err)
	}
	if err := r.cmd.Wait(); err != nil {
		return fmt.Errorf("reaper: %w", err)
	}
	return nil
}

// TempDir makes a directory for the life of this program: remove deletes it, and a reaper does so when the
// program dies before.
func TempDir() (dir string, remove func() error, err error) {
	if dir, err = os.MkdirTemp("", "squash-temp-"); err != nil {
		return "", nil, err
	}
	r, err := startReaper(dir)
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	return dir, func() error { return errors.Join(os.RemoveAll(dir), r.dismiss()) }, nil
}
