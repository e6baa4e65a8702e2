// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"runtime/debug"
	"strings"

	"github.com/containerd/log"
	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v3"

	"github.com/squash-snapshotter/squash/service"
)

// version is set by the linker; without it, the module's version is shown.
var version string

// usageError marks what the caller can mend on the command line.
type usageError struct{ error }

// run is the whole program: it returns the exit code.
func run(ctx context.Context, open service.OpenFunc, args []string, stdout, stderr io.Writer) int {
	err := newCommand(open, stdout, stderr).Run(ctx, args)
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "containerd-squash-grpc: %v\n", err)
	if _, ok := errors.AsType[usageError](err); ok {
		fmt.Fprintln(stderr, "See containerd-squash-grpc --help.")
		return 2
	}
	return 1
}

func newCommand(open service.OpenFunc, stdout, stderr io.Writer) *cli.Command {
	defaults := service.DefaultConfig()
	return &cli.Command{
		Name:            "containerd-squash-grpc",
		Usage:           "containerd snapshotter that stores every file content once and mounts one flat image per chain",
		UsageText:       "containerd-squash-grpc [options]",
		Version:         shownVersion(),
		Description:     description,
		HideHelpCommand: true,
		Writer:          stdout,
		ErrWriter:       stderr,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Value: service.DefaultConfigPath, Usage: "read the configuration `FILE`; it may be missing only at its default place"},
			&cli.StringFlag{Name: "address", Value: defaults.Address, Usage: "serve on the unix socket `SOCK`"},
			&cli.StringFlag{Name: "root", Value: defaults.Root, Usage: "keep layers, contents and images in `DIR`"},
			&cli.StringFlag{Name: "state", Value: defaults.State, Usage: "mount flat images below `DIR`"},
			&cli.StringFlag{Name: "containerd-address", Value: defaults.ContainerdAddress, Usage: "find containerd at the unix socket `SOCK`"},
			&cli.StringFlag{Name: "log-level", Value: defaults.LogLevel, Usage: "log from `LEVEL` on: trace, debug, info, warn, error"},
			&cli.StringFlag{Name: "log-format", Value: defaults.LogFormat, Usage: "log as `FORMAT`: text, json"},
		},
		OnUsageError: func(_ context.Context, _ *cli.Command, err error, _ bool) error { return usageError{err} },
		// run decides about the exit code.
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			cfg, err := configure(cmd)
			if err != nil {
				return err
			}
			return serve(ctx, cfg, open)
		},
	}
}

const description = `Flags override the configuration file. The socket is taken from the service manager if it passes one.
SIGTERM and SIGINT stop the daemon within seconds; mounts, and the containers on them, stay.

Exit codes: 0 after a stop by signal, 1 when something failed, 2 when the command line is wrong.

Examples:
   containerd-squash-grpc
      serve with /etc/containerd-squash-grpc/config.toml, or the defaults if there is none
   containerd-squash-grpc --config /etc/squash-test.toml --log-level debug
      serve with another configuration file and a talkative log
   containerd-squash-grpc --root /mnt/fast/squash --address /run/squash/squash.sock
      keep everything on another disk and serve on another socket`

func shownVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// configure returns the configuration of the file, overridden by the flags that are given.
func configure(cmd *cli.Command) (service.Config, error) {
	if cmd.Args().Present() {
		return service.Config{}, usageError{fmt.Errorf("unexpected argument %q", cmd.Args().First())}
	}
	cfg, err := service.LoadConfig(cmd.String("config"))
	if errors.Is(err, fs.ErrNotExist) && !cmd.IsSet("config") {
		cfg, err = service.DefaultConfig(), nil
	}
	if err != nil {
		return service.Config{}, err
	}
	for flag, value := range map[string]*string{
		"address":            &cfg.Address,
		"root":               &cfg.Root,
		"state":              &cfg.State,
		"containerd-address": &cfg.ContainerdAddress,
		"log-level":          &cfg.LogLevel,
		"log-format":         &cfg.LogFormat,
	} {
		if cmd.IsSet(flag) {
			*value = cmd.String(flag)
		}
	}
	// What the file says was checked when it was read.
	if err := cfg.Validate(); err != nil {
		return service.Config{}, usageError{err}
	}
	return cfg, nil
}

// serve runs the daemon until ctx ends.
func serve(ctx context.Context, cfg service.Config, open service.OpenFunc) error {
	if err := errors.Join(log.SetLevel(cfg.LogLevel), log.SetFormat(log.OutputFormat(cfg.LogFormat))); err != nil {
		return err
	}
	listener, err := passedListener()
	if err != nil {
		return err
	}
	tell := func(state string) func() {
		return func() {
			if _, err := daemon.SdNotify(false, state); err != nil {
				log.G(ctx).WithError(err).Warn("cannot notify the service manager")
			}
		}
	}
	return service.Run(ctx, cfg, service.Options{
		Open:     open,
		Version:  shownVersion(),
		Listener: listener,
		Ready:    tell(daemon.SdNotifyReady),
		Stopping: tell(daemon.SdNotifyStopping),
	})
}

// passedListener returns the socket that the service manager listens on for this process, or nil.
func passedListener() (net.Listener, error) {
	listeners, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("take the socket of the service manager: %w", err)
	}
	switch {
	case len(listeners) == 0:
		return nil, nil
	case len(listeners) == 1 && listeners[0] != nil && strings.HasPrefix(listeners[0].Addr().Network(), "unix"):
		return listeners[0], nil
	}
	return nil, fmt.Errorf("the service manager passed %d sockets, or one of another kind: want one unix stream socket", len(listeners))
}
