// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v3"
	"google.golang.org/grpc"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

func exportCommand() *cli.Command {
	return &cli.Command{
		Name:  "export",
		Usage: "make an image of one layer of what containers see",
		UsageText: `squashctl [global options] export [options] -o FILE IMAGE
squashctl [global options] export [options] --store REF IMAGE
squashctl [global options] export [options] --push REF IMAGE`,
		Description: `Makes what a multi-stage build with COPY --from=build / / gives, without changing the Dockerfile: one layer that holds
what containers see, with the config of the image (entrypoint, environment, labels, platform, ...) and a history that says
which layers became one. The same image and compression give the same digests, on every node. The image itself is not
touched.

It goes to one of these:
   -o FILE      an archive or directory; "-" is standard output
   --store REF  containerd, as an image of this name in the same namespace
   --push REF   a registry

Of an image for several platforms, those that are unpacked with squash are exported, as an index; with --platform, one is, as
a plain image. What is left out, such as other platforms and attestations of a build, is said.

Exit codes:
   0  done
   4  it could not be done; there is no FILE then, and no image REF

Examples:
   squashctl export -o runner.tar registry.example/runner:1
      an OCI archive; ctr image import makes registry.example/runner:1-squashed of it
   squashctl export --type docker-archive -o runner.tar registry.example/runner:1 && docker load < runner.tar
      for Docker
   squashctl export --store registry.example/runner:1-flat registry.example/runner:1
      keep it in containerd; ctr image push can upload it
   squashctl export --push registry.example/runner:1-flat --user me registry.example/runner:1
      upload it; the password is taken from the environment variable SQUASHCTL_PASSWORD`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE`"},
			&cli.StringFlag{Name: "store", Usage: "keep it in containerd as `REF`"},
			&cli.StringFlag{Name: "push", Usage: "upload it as `REF`"},
			&cli.StringFlag{Name: "name", Usage: "call the image `REF` in FILE; if it is not said, it is the image's name with -squashed at its tag"},
			&cli.StringFlag{Name: "type", Value: ociArchive, Usage: "write a `TYPE` of file: oci-archive, docker-archive, oci-dir"},
			&cli.StringFlag{Name: "compression", Value: "gzip", Usage: "compress the layer with `METHOD`: gzip, zstd, none"},
			&cli.BoolFlag{Name: "force", Usage: "replace FILE if it is there"},
			platformFlag(),
			&cli.BoolFlag{Name: "plain-http", Usage: "talk to the registry without TLS; loopback addresses need no flag"},
			&cli.StringFlag{Name: "user", Usage: "log in to the registry as `USER`, with the password in SQUASHCTL_PASSWORD"},
		},
		Action:        export,
		ShellComplete: completeImage,
	}
}

// Types of files.
const (
	ociArchive    = "oci-archive"
	dockerArchive = "docker-archive"
	ociDir        = "oci-dir"
)

func export(ctx context.Context, cmd *cli.Command) error {
	image, err := imageOf(cmd)
	if err != nil {
		return err
	}
	output, store, push := cmd.String("output"), cmd.String("store"), cmd.String("push")
	ways := 0
	for _, way := range []string{output, store, push} {
		if way != "" {
			ways++
		}
	}
	kind := cmd.String("type")
	switch {
	case ways != 1:
		return usageError{errors.New("one of -o FILE, --store REF and --push REF says where to")}
	case kind != ociArchive && kind != dockerArchive && kind != ociDir:
		return usageError{fmt.Errorf("--type %q: must be %s, %s or %s", kind, ociArchive, dockerArchive, ociDir)}
	case (cmd.IsSet("type") || cmd.IsSet("name")) && output == "":
		return usageError{errors.New("--type and --name go with -o FILE")}
	case output == "-" && kind == ociDir:
		return usageError{errors.New("a directory cannot go to standard output")}
	}
	req := &adminapi.ExportRequest{Image: image, StoreAs: store, Compression: cmd.String("compression")}
	switch req.Compression {
	case "gzip", "zstd", "none":
	default:
		return usageError{fmt.Errorf("--compression %q: must be gzip, zstd or none", req.Compression)}
	}
	var result *adminapi.ExportResult
	switch {
	case store != "":
		result, err = receiveExport(ctx, cmd, req, nil)
	case push != "":
		result, err = exportTo(ctx, cmd, req, os.TempDir(), func(l *localImage) error { return l.push(ctx, cmd, push) })
	case output == "-":
		if terminalColumns(cmd.Root().Writer) > 0 {
			return usageError{errors.New("standard output is a terminal: redirect it, or name a file")}
		}
		result, err = exportTo(ctx, cmd, req, os.TempDir(), func(l *localImage) error {
			return l.archive(ctx, cmd.Root().Writer, nameInFile(cmd), kind == dockerArchive)
		})
	default:
		result, err = exportFile(ctx, cmd, req, output, kind)
	}
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return printExport(cmd, result)
}

// nameInFile is not that of the image: whoever imports the file where that is would take its name from it.
func nameInFile(cmd *cli.Command) string {
	if name := cmd.String("name"); name != "" {
		return name
	}
	name, _, _ := strings.Cut(cmd.Args().First(), "@")
	if tag := strings.LastIndex(name, ":"); tag > strings.LastIndex(name, "/") {
		return name + "-squashed"
	}
	return name + ":squashed"
}

// exportFile writes a file or directory, which has its name only when it is whole.
func exportFile(ctx context.Context, cmd *cli.Command, req *adminapi.ExportRequest, output, kind string) (*adminapi.ExportResult, error) {
	_, err := os.Lstat(output)
	if err := replaceable(output); err != nil {
		return nil, err
	}
	switch {
	case err == nil && !cmd.Bool("force"):
		return nil, fmt.Errorf("%s is there already: name another file, or replace it with --force", output)
	case err == nil && kind == ociDir:
		return nil, fmt.Errorf("%s is there already, and a directory is not replaced: remove it, or name another one", output)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	return exportTo(ctx, cmd, req, filepath.Dir(output), func(l *localImage) error {
		if kind == ociDir {
			return l.directory(output, nameInFile(cmd))
		}
		return writeAside(output, func(w io.Writer) error { return l.archive(ctx, w, nameInFile(cmd), kind == dockerArchive) })
	})
}

// exportTo has the daemon export an image into a directory below dir that is removed in the end, and hands it to use.
func exportTo(ctx context.Context, cmd *cli.Command, req *adminapi.ExportRequest, dir string, use func(*localImage) error) (_ *adminapi.ExportResult, err error) {
	local, err := newLocalImage(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, local.remove()) }()
	result, err := receiveExport(ctx, cmd, req, local)
	if err != nil {
		return nil, err
	}
	local.result = result
	return result, use(local)
}

// receiveExport takes what the daemon sends; local is nil if that is no blobs.
func receiveExport(ctx context.Context, cmd *cli.Command, req *adminapi.ExportRequest, local *localImage) (*adminapi.ExportResult, error) {
	bar := progressOf(cmd, "exporting")
	defer bar.clear()
	var result *adminapi.ExportResult
	err := receive(ctx, cmd.String("address"), func(ctx context.Context, daemon adminapi.AdminClient) (grpc.ServerStreamingClient[adminapi.ExportResponse], error) {
		return daemon.Export(ctx, req)
	}, func(reply *adminapi.ExportResponse) error {
		switch m := reply.Message.(type) {
		case *adminapi.ExportResponse_Progress:
			bar.report(m.Progress.Step, m.Progress.Done, m.Progress.Total, size)
		case *adminapi.ExportResponse_Result:
			result = m.Result
		default:
			if local == nil {
				return errors.New("the daemon sends what was not asked for; is it of another version?")
			}
			return local.take(ctx, reply)
		}
		return nil
	})
	if err == nil && result == nil {
		err = errors.New("the daemon ended the export without a result; see " + seeLog)
	}
	return result, err
}

// printExport says what came out; to standard error if the image itself went to standard output.
func printExport(cmd *cli.Command, r *adminapi.ExportResult) error {
	out := cmd.Root().Writer
	if cmd.String("output") == "-" {
		out = cmd.Root().ErrWriter
	}
	if asJSON(cmd) {
		if err := printJSON(out, r); err != nil {
			return fmt.Errorf("export: print: %w", err)
		}
		return nil
	}
	var b strings.Builder
	for _, p := range r.Platforms {
		fmt.Fprintf(&b, "%s: %s became one of %s (%s compressed), %s", printable(p.Platform), plural(uint64(p.Layers), "layer"), size(p.Bytes), size(p.BlobBytes), plural(p.Entries, "entry"))
		if p.EntriesLeftOut > 0 {
			fmt.Fprintf(&b, "; %s left out that no layer can hold", plural(p.EntriesLeftOut, "entry"))
		}
		b.WriteByte('\n')
	}
	if len(r.LeftOut) > 0 {
		fmt.Fprintf(&b, "left out: %s\n", printable(strings.Join(r.LeftOut, ", ")))
	}
	fmt.Fprintf(&b, "%s\n", printable(r.Digest))
	if _, err := io.WriteString(out, b.String()); err != nil {
		return fmt.Errorf("export: print: %w", err)
	}
	return nil
}
