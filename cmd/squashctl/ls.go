// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v3"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

func lsCommand() *cli.Command {
	return &cli.Command{
		Name:      "ls",
		Usage:     "list the images of a namespace, and what they take up",
		UsageText: "squashctl [global options] ls",
		Description: `Lists the images of which squash has layers.

   LAYERS    number of layers
   FILES     regular files that containers see
   AS LAYERS bytes of the files of all layers
   OWN       bytes on the disk that this image alone needs
   SHARED    bytes on the disk that other images show as well
   SAVED     of the bytes as layers
   STATE     flat: its flat image is built; layers: it is unpacked, and the first container builds the flat image;
             partial: not all of its layers are unpacked; error: squash cannot tell, and squashctl fsck may tell more

With --format json, one object a line; the names of its fields are those of the admin API.

Exit codes:
   0  done
   4  it could not be done

Examples:
   squashctl ls
      images of the namespace "default"
   squashctl --namespace k8s.io ls
      images of Kubernetes
   squashctl --format json ls
      for a program`,
		Action: ls,
	}
}

func ls(ctx context.Context, cmd *cli.Command) error {
	if err := noArguments(cmd); err != nil {
		return err
	}
	reply, err := ask(ctx, cmd.String("address"), func(ctx context.Context, daemon adminapi.AdminClient) (*adminapi.ListImagesResponse, error) {
		return daemon.ListImages(ctx, &adminapi.ListImagesRequest{Namespace: cmd.String("namespace")})
	})
	if err != nil {
		return fmt.Errorf("ls: %w", err)
	}
	out := cmd.Root().Writer
	if asJSON(cmd) {
		for _, i := range reply.Images {
			if err := printJSON(out, i); err != nil {
				return fmt.Errorf("ls: print: %w", err)
			}
		}
		return nil
	}
	rows := newTable("IMAGE", "PLATFORM", " LAYERS", " FILES", " AS LAYERS", " OWN", " SHARED", " SAVED", "STATE")
	for _, i := range reply.Images {
		layers, files, own, shared, saved := size(i.LayerBytes), "-", "-", "-", "-"
		if i.Error != "" {
			layers = "-"
		}
		if i.Flat {
			files, own, shared = fmt.Sprint(i.Files), size(i.OwnBytes), size(i.SharedBytes)
			saved = percent(float64(i.LayerBytes)-float64(i.OwnBytes+i.SharedBytes), float64(i.LayerBytes))
		}
		rows.add(printable(i.Name), printable(i.Platform), fmt.Sprint(i.Layers), files, layers, own, shared, saved, stateOf(i))
	}
	if err := rows.write(out, 0); err != nil {
		return fmt.Errorf("ls: print: %w", err)
	}
	return nil
}

func stateOf(i *adminapi.Image) string {
	state := "layers"
	switch {
	case i.Error != "":
		return "error: " + printable(i.Error)
	case i.Unpacked < i.Layers:
		return fmt.Sprintf("partial (%d of %s)", i.Unpacked, plural(uint64(i.Layers), "layer"))
	case i.Flat:
		state = "flat"
	}
	if i.Containers > 0 {
		state += ", in use by " + plural(uint64(i.Containers), "container")
	}
	return state
}
