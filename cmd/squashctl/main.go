// SPDX-License-Identifier: Apache-2.0

// Command squashctl is the operator's tool of squash. It owns the command line, what is printed and the exit codes; the
// daemon, which it asks through the admin API, does the work. Each command has a file of its own.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, release := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	// The first signal asks to stop, the second one insists.
	context.AfterFunc(ctx, release)
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}
