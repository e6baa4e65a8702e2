// SPDX-License-Identifier: Apache-2.0

// Package binaries owns the programs that the tests and the demo run: containerd, ctr, the shim and runc at the
// versions that integration/tools/go.mod pins, the squash daemon of this repository, and the guest program.
// It always asks the go command to build them; that is a matter of seconds when nothing has changed, and no
// test can run against a stale daemon. The daemon goes to a directory of the caller, so that a build that runs
// meanwhile does not change what is being tested.
package binaries

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The commands that make up a node besides the daemon, as import paths of the tools module.
var (
	containerdCommands = []string{
		"github.com/containerd/containerd/v2/cmd/containerd",
		"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
		"github.com/containerd/containerd/v2/cmd/ctr",
	}
	runcCommand = "github.com/opencontainers/runc"
)

// The programs of this repository, relative to it.
const (
	daemonCommand    = "./cmd/containerd-squash-grpc"
	squashctlCommand = "./cmd/squashctl"
)

// Set says where the programs are.
type Set struct {
	Repo  string // the repository
	Tools string // directory with containerd, containerd-shim-runc-v2, ctr, runc
	Guest string // path of the guest program

	// Paths of containerd-squash-grpc and squashctl; empty until BuildDaemon.
	Daemon, Squashctl string
}

// Build makes containerd, its helpers and the guest program below bin/ of the repository that holds the current
// directory, which must lie in the integration module. tell gets a line before each step.
func Build(ctx context.Context, tell func(string)) (*Set, error) {
	module, err := output(ctx, ".", "go", "list", "-m", "-f", "{{.Dir}}")
	if err != nil {
		return nil, fmt.Errorf("find the integration module: %w", err)
	}
	repo := filepath.Dir(module)
	s := &Set{
		Repo:  repo,
		Tools: filepath.Join(repo, "bin", "tools"),
		Guest: filepath.Join(repo, "bin", "guest"),
	}
	if err := os.MkdirAll(s.Tools, 0o755); err != nil {
		return nil, err
	}
	tools := filepath.Join(module, "tools")
	version, err := output(ctx, tools, "go", "list", "-m", "-f", "{{.Version}}", "github.com/containerd/containerd/v2")
	if err != nil {
		return nil, err
	}
	tell("containerd " + version + ", ctr, shim")
	flags := "-s -w -X github.com/containerd/containerd/v2/version.Version=" + version
	if err := goBuild(ctx, tools, "0", flags, s.Tools+"/", containerdCommands...); err != nil {
		return nil, err
	}
	// runc enters namespaces from C code before Go's runtime starts, so it needs cgo. Without the "seccomp" tag
	// it needs no library; containers here run without a seccomp filter.
	tell("runc")
	if err := goBuild(ctx, tools, "1", "-s -w", s.Tools+"/", runcCommand); err != nil {
		return nil, err
	}
	tell("guest program")
	return s, goBuild(ctx, module, "0", "-s -w -buildid=", s.Guest, "./cmd/guest")
}

// BuildDaemon makes the squash daemon and squashctl in dir.
func (s *Set) BuildDaemon(ctx context.Context, dir string) error {
	if err := goBuild(ctx, s.Repo, "0", "", dir+"/", daemonCommand, squashctlCommand); err != nil {
		return err
	}
	s.Daemon = filepath.Join(dir, filepath.Base(daemonCommand))
	s.Squashctl = filepath.Join(dir, filepath.Base(squashctlCommand))
	return nil
}

// Versions gives the versions of the programs that are not of this repository.
func (s *Set) Versions(ctx context.Context) (map[string]string, error) {
	out := make(map[string]string)
	for name, module := range map[string]string{"containerd": "github.com/containerd/containerd/v2", "runc": runcCommand} {
		version, err := output(ctx, filepath.Join(s.Repo, "integration", "tools"), "go", "list", "-m", "-f", "{{.Version}}", module)
		if err != nil {
			return nil, err
		}
		out[name] = version
	}
	return out, nil
}

// GoRoot is the directory of the Go toolchain that builds this module.
func GoRoot(ctx context.Context) (string, error) {
	data, err := output(ctx, ".", "go", "env", "-json", "GOROOT")
	if err != nil {
		return "", err
	}
	var env struct{ GOROOT string }
	if err := json.Unmarshal([]byte(data), &env); err != nil {
		return "", fmt.Errorf("go env: %w", err)
	}
	return env.GOROOT, nil
}

func goBuild(ctx context.Context, dir, cgo, ldflags, to string, packages ...string) error {
	args := append([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags", ldflags, "-o", to}, packages...)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s (in %s): %w\n%s", strings.Join(args, " "), dir, err, out)
	}
	return nil
}

func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}
