// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v3"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

func gcCommand() *cli.Command {
	return &cli.Command{
		Name:      "gc",
		Usage:     "give back the space of what nobody needs",
		UsageText: "squashctl [global options] gc [--dry-run]",
		Description: `Removes what is left of removed snapshots, images that nobody needs, and contents that no image shows and no layer has to
keep; then says what went, what stayed though it looks like garbage, and why. The daemon does the same by itself after
removals and when an image was flattened: this command is for those who do not want to wait, or want to know.

Snapshots are containerd's: what it holds stays, and only containerd can let go of it. It does so some time after the
last image, container or lease that needs a snapshot is removed; ctr image rm --sync IMAGE waits for that, and ctr leases
ls shows leases.

Pulls and containers go on meanwhile. With --dry-run nothing is changed.

Exit codes:
   0  done
   4  it could not be done, or not to its end

Examples:
   squashctl gc --dry-run
      show what would be removed
   ctr image rm --sync example.com/app:1 && squashctl gc
      remove an image, and have its space now`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "dry-run", Usage: "show what would be removed, and remove nothing"},
		},
		Action: gc,
	}
}

func gc(ctx context.Context, cmd *cli.Command) error {
	if err := noArguments(cmd); err != nil {
		return err
	}
	dryRun := cmd.Bool("dry-run")
	reply, err := ask(ctx, cmd.String("address"), func(ctx context.Context, daemon adminapi.AdminClient) (*adminapi.CollectResponse, error) {
		return daemon.Collect(ctx, &adminapi.CollectRequest{DryRun: dryRun})
	})
	if err != nil {
		return fmt.Errorf("gc: %w", err)
	}
	out := cmd.Root().Writer
	if asJSON(cmd) {
		err = printJSON(out, reply)
	} else {
		err = printCollection(out, reply, dryRun)
	}
	if err != nil {
		return fmt.Errorf("gc: print: %w", err)
	}
	return nil
}

func printCollection(out io.Writer, c *adminapi.CollectResponse, dryRun bool) error {
	did, gone := "removed", "freed"
	if dryRun {
		did, gone = "would be removed", "would be freed"
	}
	if len(c.Garbage) == 0 {
		fmt.Fprintln(out, "there is no garbage")
	} else {
		if err := garbageTable(c.Garbage, did).write(out, 0); err != nil {
			return err
		}
		fmt.Fprintf(out, "\n%s %s\n", size(c.Bytes), gone)
	}
	if len(c.Kept) == 0 {
		return nil
	}
	fmt.Fprintln(out)
	return garbageTable(c.Kept, "stays").write(out, 0)
}

func garbageTable(garbage []*adminapi.Garbage, state string) *table {
	t := newTable("STATE", "KIND", " COUNT", " BYTES", "WHAT")
	for _, g := range garbage {
		count := "-"
		if g.Count > 0 {
			count = fmt.Sprint(g.Count)
		}
		t.add(state, printable(g.Kind), count, size(g.Bytes), printable(g.Object)+": "+printable(g.Why))
	}
	return t
}
