// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v3"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
	"github.com/squash-snapshotter/squash/internal/legible"
	"github.com/squash-snapshotter/squash/internal/reportpage"
)

func reportCommand() *cli.Command {
	return &cli.Command{
		Name:      "report",
		Usage:     "explain what an image wastes as layers, and what its author can change",
		UsageText: "squashctl [global options] report [--platform PLATFORM] [--rows N] [--html FILE] IMAGE",
		Description: `Follows the bytes of an image's files from its layers to the disk:

   overwritten   in a layer, and replaced by a later one
   deleted       in a layer, and removed by a later one
   duplicate     seen by containers under several paths
   shared        on the disk for another image as well
   compression   less than the files' bytes on the disk; more if negative, for files fill whole blocks

Then the paths and contents that cost most, each layer with the command that made it, and advice to the image's author.
Efficiency is the part of the layers' bytes that containers see, each content once. The advice is about the image in the
registry, its size and the time to pull it: on this node squash has saved the space already.

Exit codes:
   0  done
   4  it could not be done

Examples:
   squashctl report registry.example/runner:1
      print the tables
   squashctl report --html report.html registry.example/runner:1
      write a page for a browser, with a map of the directories; it is one file and needs no network
   squashctl --format json report registry.example/runner:1
      print one JSON object; the names of its fields are those of the admin API`,
		Flags: []cli.Flag{
			platformFlag(),
			&cli.StringFlag{Name: "html", Usage: "write a page into `FILE`, which is replaced, instead of tables"},
			&cli.Uint32Flag{Name: "rows", Value: 20, Usage: "print at most `N` rows of duplicate paths and contents"},
		},
		ShellComplete: completeImage,
		Action:        report,
	}
}

func report(ctx context.Context, cmd *cli.Command) error {
	image, err := imageOf(cmd)
	if err != nil {
		return err
	}
	rows := cmd.Uint32("rows")
	if rows == 0 || rows > mostRows {
		return usageError{fmt.Errorf("--rows %d: must be a number from 1 to %d", rows, mostRows)}
	}
	reply, err := ask(ctx, cmd.String("address"), func(ctx context.Context, daemon adminapi.AdminClient) (*adminapi.ReportResponse, error) {
		return daemon.Report(ctx, &adminapi.ReportRequest{Image: image, Rows: rows})
	})
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	out := cmd.Root().Writer
	if file := cmd.String("html"); file != "" {
		if err := writePage(file, reply); err != nil {
			return fmt.Errorf("report: %w", err)
		}
	}
	switch {
	case asJSON(cmd):
		err = printJSON(out, reply)
	case cmd.IsSet("html"):
		_, err = fmt.Fprintf(out, "%s written\n", printable(cmd.String("html")))
	default:
		err = printReport(out, reply)
	}
	if err != nil {
		return fmt.Errorf("report: print: %w", err)
	}
	return nil
}

// writePage writes a page under its name when it is whole.
func writePage(file string, r *adminapi.ReportResponse) error {
	if err := replaceable(file); err != nil {
		return err
	}
	return writeAside(file, func(w io.Writer) error {
		buffer := bufio.NewWriter(w)
		return errors.Join(reportpage.Write(buffer, r), buffer.Flush())
	})
}

// printReport writes the tables.
func printReport(w io.Writer, r *adminapi.ReportResponse) error {
	var b strings.Builder
	i := r.Image
	fmt.Fprintf(&b, "%s  %s  %s, %s, %s\n\n", printable(i.Name), printable(i.Platform), plural(uint64(i.Layers), "layer"), plural(i.Files, "file"), stateOf(i))
	fmt.Fprintf(&b, "efficiency    %.1f %%   of %s in layers, containers see %s of distinct content\n",
		100*r.Efficiency, size(r.LayerBytes), size(r.DistinctBytes))
	fmt.Fprintf(&b, "on this node  %s of its own, %s shared with other images: %s saved\n\n",
		size(i.OwnBytes), size(i.SharedBytes), percent(float64(r.LayerBytes)-float64(i.OwnBytes+i.SharedBytes), float64(r.LayerBytes)))

	b.WriteString("Where the bytes go\n")
	waste := newTable("", " Space", " Share", " Files")
	waste.add("in layers", size(r.LayerBytes), percent(1, 1), "")
	for _, c := range r.Waste {
		files := fmt.Sprint(c.Files)
		if c.Cause == "compression" {
			files = ""
		}
		waste.add("- "+printable(c.Cause), signedSize(c.Bytes), percent(float64(c.Bytes), float64(r.LayerBytes)), files)
	}
	waste.add("on disk", size(r.OwnBytes), percent(float64(r.OwnBytes), float64(r.LayerBytes)), "")
	waste.write(&b, 2)

	b.WriteString("\nLayers\n")
	layers := newTable(" #", " Added", " Shadowed", " Again", " Files", "Command")
	for n, l := range r.Layers {
		made := cmp.Or(shorten(commandOf(r, uint32(n)), commandWidth), "-")
		layers.add(fmt.Sprint(n+1), size(l.Bytes), size(l.ShadowedBytes), size(l.DuplicateBytes), fmt.Sprint(l.Files), made)
	}
	layers.write(&b, 2)
	b.WriteString("  Shadowed: overwritten or deleted by later layers. Again: content that a layer below has already.\n")

	if len(r.DuplicatePaths) > 0 {
		b.WriteString("\nPaths in several layers\n")
		paths := newTable(" Count", " Total Space", "Path")
		for _, p := range r.DuplicatePaths {
			paths.add(fmt.Sprint(p.Count), size(p.Bytes), printable(string(p.Path)))
		}
		paths.write(&b, 2)
	}
	if len(r.DuplicateContents) > 0 {
		b.WriteString("\nContents in several places\n")
		contents := newTable(" Count", " Total Space", "Content", "Paths")
		for _, c := range r.DuplicateContents {
			var paths []string
			for _, p := range c.Paths {
				paths = append(paths, printable(string(p)))
			}
			contents.add(fmt.Sprint(c.Count), size(c.Bytes), shortDigest(c.Digest), shorten(strings.Join(paths, " "), commandWidth))
		}
		contents.write(&b, 2)
	}
	if len(r.Advice) > 0 {
		b.WriteString("\nWhat the author of the image can change\n")
		for _, a := range r.Advice {
			fmt.Fprintf(&b, "  Layer %d, up to %s", a.Layer+1, size(a.Bytes))
			if made := commandOf(r, a.Layer); made != "" {
				fmt.Fprintf(&b, ", %s", shorten(made, commandWidth))
			}
			fmt.Fprintf(&b, "\n    %s\n", printable(a.Text))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// commandOf returns the command that made a layer; "" if that is not known.
func commandOf(r *adminapi.ReportResponse, layer uint32) string {
	if int(layer) >= len(r.Layers) {
		return ""
	}
	return command(r.Layers[layer].Layer.GetCreatedBy())
}

// mostRows is what the daemon gives.
const mostRows = 1000

// commandWidth is how much of a command is shown.
const commandWidth = 80

// signedSize is size for what may be less than nothing.
func signedSize(bytes int64) string { return legible.SignedSize(bytes) }
