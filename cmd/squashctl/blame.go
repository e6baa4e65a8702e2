// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v3"
	"google.golang.org/grpc"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

// notInImage is blame's exit code if no layer has one of the paths.
const notInImage = 1

func blameCommand() *cli.Command {
	return &cli.Command{
		Name:      "blame",
		Usage:     "say which layer gave a file of an image, and what it replaced",
		UsageText: "squashctl [global options] blame [--platform PLATFORM] IMAGE PATH…\nsquashctl [global options] blame [--platform PLATFORM] --all IMAGE",
		Description: `Tells for each path which layer gave what containers see there: its number (the bottom one is 1), diff ID, blob, the
time and the command of the image's history; and what older layers had there. Symlinks on the way to a path are followed,
one at its end is not.

With --all, all paths that any layer has, deleted ones included, as JSON lines: the first is {"layers":{...}}, each other one
{"path":{...}}, in which layers count from 0. So it is with --format json.

Exit codes:
   0  done
   1  no layer has one of the paths
   4  it could not be done

Examples:
   squashctl blame registry.example/runner:1 /usr/bin/git /etc/passwd
      where these came from
   squashctl blame --all registry.example/runner:1 | grep '"fate":"deleted"'
      paths of which a layer has something that was deleted later`,
		Flags: []cli.Flag{
			platformFlag(),
			&cli.BoolFlag{Name: "all", Usage: "tell of all paths, as JSON lines"},
		},
		ShellComplete: completeImage,
		Action:        blame,
	}
}

func blame(ctx context.Context, cmd *cli.Command) error {
	args := cmd.Args().Slice()
	switch all := cmd.Bool("all"); {
	case len(args) == 0:
		return usageError{errors.New("no image is named")}
	case all && len(args) > 1:
		return usageError{fmt.Errorf("--all: unexpected argument %q", args[1])}
	case !all && len(args) == 1:
		return usageError{errors.New("no path is named; --all tells of all")}
	}
	req := &adminapi.BlameRequest{Image: imageNamed(cmd, args[0]), All: cmd.Bool("all")}
	for _, p := range args[1:] {
		req.Paths = append(req.Paths, []byte(p))
	}
	out := cmd.Root().Writer
	lines := asJSON(cmd) || req.All
	var layers []*adminapi.Layer
	unknown := false
	err := receive(ctx, cmd.String("address"), func(ctx context.Context, daemon adminapi.AdminClient) (grpc.ServerStreamingClient[adminapi.BlameResponse], error) {
		return daemon.Blame(ctx, req)
	}, func(reply *adminapi.BlameResponse) (err error) {
		switch m := reply.Message.(type) {
		case *adminapi.BlameResponse_Layers:
			layers = m.Layers.Layers
			if lines {
				err = printLine(out, "layers", m.Layers)
			}
		case *adminapi.BlameResponse_Path:
			unknown = unknown || len(m.Path.Versions) == 0
			if lines {
				err = printLine(out, "path", m.Path)
			} else {
				err = printOrigin(out, m.Path, layers)
			}
		}
		if err != nil {
			return fmt.Errorf("print: %w", err)
		}
		return nil
	})
	switch {
	case err != nil:
		return fmt.Errorf("blame: %w", err)
	case unknown:
		return result(notInImage)
	}
	return nil
}

// printOrigin writes for people where a path came from.
func printOrigin(w io.Writer, p *adminapi.PathOrigin, layers []*adminapi.Layer) error {
	var b strings.Builder
	path := printable(string(p.Path))
	if asked := string(p.Asked); strings.Trim(asked, "/") != strings.Trim(string(p.Path), "/") {
		path = fmt.Sprintf("%s (%s)", path, printable(asked))
	}
	b.WriteString(path + "\n")
	if len(p.Versions) == 0 {
		b.WriteString("  no layer has it\n")
	}
	for n, v := range p.Versions {
		fmt.Fprintf(&b, "  %s %s\n", fateOf(v, n == 0), describe(v))
		made := layerLines(v.Layer, layers)
		for _, line := range made {
			fmt.Fprintf(&b, "      %s\n", line)
		}
	}
	b.WriteByte('\n')
	_, err := io.WriteString(w, b.String())
	return err
}

func fateOf(v *adminapi.PathVersion, top bool) string {
	switch v.Fate {
	case "visible":
		return fmt.Sprintf("from layer %d:", v.Layer+1)
	case "merged":
		return fmt.Sprintf("merged with what layer %d has:", v.Layer+1)
	case "deleted":
		if top {
			return fmt.Sprintf("deleted by layer %d; layer %d had:", v.By+1, v.Layer+1)
		}
		return fmt.Sprintf("before, deleted by layer %d; layer %d had:", v.By+1, v.Layer+1)
	}
	return fmt.Sprintf("before, replaced by layer %d; layer %d had:", v.By+1, v.Layer+1)
}

func describe(v *adminapi.PathVersion) string {
	text := fmt.Sprintf("%s, mode %04o, owner %d:%d, %s", printable(v.Type), v.Mode, v.Uid, v.Gid, time.Unix(v.Mtime, 0).UTC().Format(time.RFC3339))
	switch v.Type {
	case "file":
		text += fmt.Sprintf(", %s, %s", size(v.Size), v.Digest)
	case "symlink":
		text += " to " + printable(string(v.Target))
	}
	if len(v.SameAs) > 0 {
		text += ", the same file as " + printable(string(v.SameAs))
	}
	if v.Implied {
		text += " (after the layer below: this layer does not state it)"
	}
	return text
}

func layerLines(n uint32, layers []*adminapi.Layer) []string {
	if int(n) >= len(layers) {
		return nil
	}
	l := layers[n]
	lines := []string{"diff ID " + l.DiffId, "blob    " + l.Blob}
	if l.CreatedBy != "" {
		lines = append(lines, "made by "+command(l.CreatedBy))
	}
	if l.Created != "" {
		lines = append(lines, "created "+printable(l.Created))
	}
	return lines
}
