// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v3"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

func dfCommand() *cli.Command {
	return &cli.Command{
		Name:      "df",
		Usage:     "show what takes up the disk",
		UsageText: "squashctl [global options] df",
		Description: `Shows what is allocated below the daemon's root, which du -B1 counts as well, by part, and the part that is contents by
who needs them:

   visible         some image shows them
   unflattened     of layers of which no flat image was built yet: nobody knows what it will show
   not-restorable  no image shows them, but their layer could not be read from containerd again
   kept            no image shows them; the configuration says shadowed = keep
   unreferenced    nobody needs them; the next collection frees them, or squashctl gc
   rest            being written by a pull, or what the file system takes or saves by itself

Containers and pulls go on meanwhile; nothing is changed. Numbers are of the moment.

Exit codes:
   0  done
   4  it could not be done

Examples:
   squashctl df
      a table
   squashctl --format json df
      one object, all numbers in bytes`,
		Action: df,
	}
}

func df(ctx context.Context, cmd *cli.Command) error {
	if err := noArguments(cmd); err != nil {
		return err
	}
	usage, err := ask(ctx, cmd.String("address"), func(ctx context.Context, daemon adminapi.AdminClient) (*adminapi.DiskUsageResponse, error) {
		return daemon.DiskUsage(ctx, &adminapi.DiskUsageRequest{})
	})
	if err != nil {
		return fmt.Errorf("df: %w", err)
	}
	out := cmd.Root().Writer
	if asJSON(cmd) {
		err = printJSON(out, usage)
	} else {
		err = printUsage(out, usage)
	}
	if err != nil {
		return fmt.Errorf("df: print: %w", err)
	}
	return nil
}

func printUsage(out io.Writer, u *adminapi.DiskUsageResponse) error {
	fmt.Fprintf(out, "%s takes up %s; of its file system's %s, %s are free\n\n", printable(u.Root), size(u.Bytes), size(u.FilesystemBytes), size(u.FreeBytes))
	parts := newTable("PART", " COUNT", " BYTES", " SHARE", "WHAT")
	for _, p := range u.Parts {
		addPart(parts, "", p, u.Bytes)
		if p.Name == "contents" {
			for _, c := range u.Contents {
				addPart(parts, "  ", c, u.Bytes)
			}
		}
	}
	if err := parts.write(out, 0); err != nil {
		return err
	}
	fmt.Fprintln(out)
	encodings := newTable("ENCODING", " CONTENTS", " BYTES", " STORED", " RATIO")
	var bytes uint64
	for _, e := range u.Encodings {
		ratio := "-"
		if e.StoredBytes > 0 {
			ratio = fmt.Sprintf("%.2f", float64(e.Bytes)/float64(e.StoredBytes))
		}
		encodings.add(printable(e.Encoding), fmt.Sprint(e.Contents), size(e.Bytes), size(e.StoredBytes), ratio)
		bytes += e.Bytes
	}
	if err := encodings.write(out, 0); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "\nthe files of all layers have %s, distinct contents %s; they are on %s: %s saved\n",
		size(u.LayerBytes), size(bytes), size(u.Bytes), percent(float64(u.LayerBytes)-float64(u.Bytes), float64(u.LayerBytes)))
	return err
}

// addPart adds a row; parts of nothing are left out below others.
func addPart(t *table, indent string, p *adminapi.UsagePart, all uint64) {
	if indent != "" && p.Count == 0 && p.Bytes == 0 {
		return
	}
	count := fmt.Sprint(p.Count)
	if p.Count == 0 {
		count = "-"
	}
	bytes := size(uint64(max(p.Bytes, -p.Bytes)))
	if p.Bytes < 0 {
		bytes = "-" + bytes
	}
	t.add(indent+printable(p.Name), count, bytes, percent(float64(p.Bytes), float64(all)), printable(p.What))
}
