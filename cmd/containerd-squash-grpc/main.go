// SPDX-License-Identifier: Apache-2.0

// Command containerd-squash-grpc is the squash daemon: containerd's proxy snapshotter and differ. It owns flags,
// signals and the talk with the service manager; package service does the work.
//
// Exit codes: 0 after a stop by SIGTERM or SIGINT, 1 when something failed, 2 when the command line is wrong.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/squash-snapshotter/squash/service"
)

func main() {
	ctx, release := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	// The first signal asks to stop, the second one insists.
	context.AfterFunc(ctx, release)
	os.Exit(run(ctx, service.OpenSnapshotter, os.Args, os.Stdout, os.Stderr))
}
