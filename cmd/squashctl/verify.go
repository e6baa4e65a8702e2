// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v3"
	"google.golang.org/grpc"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

// notEqual is verify's exit code if containers see something else than the layers say.
const notEqual = 1

func verifyCommand() *cli.Command {
	return &cli.Command{
		Name:      "verify",
		Usage:     "prove that containers see what an image's layers say",
		UsageText: "squashctl [global options] verify [--platform PLATFORM] IMAGE",
		Description: `Reads the blobs of the image's layers from containerd's content store, compares them with their digests and with the
diff IDs of the image's config, and applies them anew, in memory. Then it reads the mounted image through the kernel, as a
container does, and compares every name, its type, owner, mode, time, attributes, links and content. Nothing that squash
has noted about the layers is believed. It ends at the first difference.

What was read a moment ago comes from the kernel's cache; squashctl fsck checks the disk.

With --format json, the verdict is one object; the names of its fields are those of the admin API.

Exit codes:
   0  all is equal
   1  something differs; it is printed
   4  it could not be done, or not to its end: a blob is gone or damaged, for one

Examples:
   squashctl verify registry.example/runner:1`,
		Flags:         []cli.Flag{platformFlag()},
		Action:        verify,
		ShellComplete: completeImage,
	}
}

func verify(ctx context.Context, cmd *cli.Command) error {
	image, err := imageOf(cmd)
	if err != nil {
		return err
	}
	bar := progressOf(cmd, "verifying")
	defer bar.clear()
	var verdict *adminapi.Verdict
	err = receive(ctx, cmd.String("address"), func(ctx context.Context, daemon adminapi.AdminClient) (grpc.ServerStreamingClient[adminapi.VerifyResponse], error) {
		return daemon.Verify(ctx, &adminapi.VerifyRequest{Image: image})
	}, func(reply *adminapi.VerifyResponse) error {
		switch m := reply.Message.(type) {
		case *adminapi.VerifyResponse_Progress:
			amount := amountOf(m.Progress.Step)
			if m.Progress.Step == "layers" {
				amount = size
			}
			bar.report(m.Progress.Step, m.Progress.Done, m.Progress.Total, amount)
		case *adminapi.VerifyResponse_Verdict:
			verdict = m.Verdict
		}
		return nil
	})
	bar.clear()
	if err == nil && verdict == nil {
		err = errors.New("the daemon ended without a verdict; see " + seeLog)
	}
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	out := cmd.Root().Writer
	if asJSON(cmd) {
		err = printJSON(out, verdict)
	} else {
		err = printVerdict(out, verdict)
	}
	if err != nil {
		return fmt.Errorf("verify: print: %w", err)
	}
	if !verdict.Equal {
		return result(notEqual)
	}
	return nil
}

func printVerdict(w io.Writer, v *adminapi.Verdict) error {
	_, err := fmt.Fprintf(w, "%s of %s, and %s that containers see (%s, %s) compared: ", plural(v.Entries, "entry"), plural(v.Layers, "layer"),
		plural(v.Names, "name"), plural(v.Files, "file"), size(v.Bytes))
	if err != nil || v.Equal {
		if err == nil {
			_, err = fmt.Fprintln(w, "equal")
		}
		return err
	}
	from := fmt.Sprintf(", from layer %d", v.Layer+1)
	if v.What == "unexpected" {
		from = ""
	}
	_, err = fmt.Fprintf(w, "different\n%s%s: %s\n  the layers say:  %s\n  containers see:  %s\n",
		printable(string(v.Path)), from, printable(v.What), printable(v.Want), printable(v.Got))
	return err
}
