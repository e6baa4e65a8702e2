// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/urfave/cli/v3"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

// version is set by the linker; without it, the module's version is shown.
var version string

// notDone is the exit code of every command that could not do what it was asked for. Smaller ones are results and belong
// to the command.
const notDone = 4

// result is a command's exit code other than 0 when it did what it was asked for, and has printed what it has to say.
type result int

func (r result) Error() string { return fmt.Sprintf("exit code %d", int(r)) }

// usageError marks what the caller can mend on the command line.
type usageError struct{ error }

// run is the whole program: it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := newCommand(stdout, stderr).Run(ctx, args)
	if err == nil {
		return 0
	}
	if r, ok := errors.AsType[result](err); ok {
		return int(r)
	}
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	fmt.Fprintf(stderr, "squashctl: %v\n", err)
	if _, ok := errors.AsType[usageError](err); ok {
		fmt.Fprintln(stderr, "See squashctl --help.")
	}
	return notDone
}

func newCommand(stdout, stderr io.Writer) *cli.Command {
	root := &cli.Command{
		Name:                            "squashctl",
		Usage:                           "look after the squash snapshotter of this node",
		UsageText:                       "squashctl [global options] COMMAND [options]",
		Version:                         shownVersion(),
		Description:                     description,
		HideHelpCommand:                 true,
		EnableShellCompletion:           true,
		ConfigureShellCompletionCommand: configureCompletion,
		Writer:                          stdout,
		ErrWriter:                       stderr,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "address", Value: defaultAddress, Usage: "find the daemon at the unix socket `SOCK`"},
			&cli.StringFlag{Name: "namespace", Aliases: []string{"n"}, Value: "default", Sources: cli.EnvVars("CONTAINERD_NAMESPACE"), Usage: "look for images in the containerd namespace `NAME`"},
			&cli.StringFlag{Name: "format", Value: "table", Usage: "print `FORMAT`: table, json"},
		},
		Commands: []*cli.Command{
			lsCommand(),
			reportCommand(),
			blameCommand(),
			verifyCommand(),
			exportCommand(),
			dfCommand(),
			gcCommand(),
			fsckCommand(),
			installConfigCommand(),
			doctorCommand(),
		},
		Before: func(ctx context.Context, cmd *cli.Command) (context.Context, error) {
			if format := cmd.String("format"); format != "table" && format != "json" {
				return ctx, usageError{fmt.Errorf("--format %q: must be table or json", format)}
			}
			return ctx, nil
		},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if cmd.Args().Present() {
				return usageError{fmt.Errorf("unknown command %q", cmd.Args().First())}
			}
			return cli.ShowRootCommandHelp(cmd)
		},
		// run decides about the exit code.
		ExitErrHandler: func(context.Context, *cli.Command, error) {},
	}
	for _, c := range append(root.Commands, root) {
		c.OnUsageError = func(_ context.Context, _ *cli.Command, err error, _ bool) error { return usageError{err} }
	}
	return root
}

const description = `The daemon, containerd-squash-grpc, must be running, and only root may talk to it.

Exit codes: 0 when all is well, 4 when the command could not be done; each command says what others mean.

Examples:
   squashctl ls
      which images are there, and what do they take up?
   squashctl report registry.example/runner:1
      why is this one smaller here than its layers?
   squashctl --namespace k8s.io ls
      ask about the images of Kubernetes
   squashctl doctor
      is this node set up right?
   squashctl --address /run/squash/squash.sock fsck --quick
      ask the daemon at another socket
   source <(squashctl completion bash)
      complete commands and options in this shell`

func shownVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// asJSON tells whether a program reads the output.
func asJSON(cmd *cli.Command) bool { return cmd.String("format") == "json" }

// imageOf is the image that is the one argument of cmd.
func imageOf(cmd *cli.Command) (*adminapi.ImageRef, error) {
	switch args := cmd.Args(); {
	case !args.Present():
		return nil, usageError{errors.New("no image is named")}
	case args.Len() > 1:
		return nil, usageError{fmt.Errorf("unexpected argument %q", args.Get(1))}
	}
	return imageNamed(cmd, cmd.Args().First()), nil
}

// imageNamed is an image in the namespace, and for the platform if cmd has such a flag.
func imageNamed(cmd *cli.Command, name string) *adminapi.ImageRef {
	return &adminapi.ImageRef{Namespace: cmd.String("namespace"), Name: name, Platform: cmd.String("platform")}
}

// platformFlag is for commands about one image.
func platformFlag() cli.Flag {
	return &cli.StringFlag{Name: "platform", Usage: "of an image for several platforms, take the one for `PLATFORM`, such as linux/arm64"}
}

// noArguments is an error unless cmd was given options alone.
func noArguments(cmd *cli.Command) error {
	if cmd.Args().Present() {
		return usageError{fmt.Errorf("unexpected argument %q", cmd.Args().First())}
	}
	return nil
}
