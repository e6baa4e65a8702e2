// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

// completionTimeout is how long a person waits for a key to have an effect.
const completionTimeout = time.Second

// The library's script for bash needs the package bash-completion, and those for bash and fish end words at colons,
// which images' names have.
var (
	//go:embed completion/bash
	bashCompletion string
	//go:embed completion/fish
	fishCompletion string
)

// configureCompletion makes the library's command print our scripts.
func configureCompletion(c *cli.Command) {
	c.Hidden = false
	c.Usage = "print the completion script of a shell; see squashctl completion --help"
	for _, shell := range c.Commands {
		if script, ok := map[string]string{"bash": bashCompletion, "fish": fishCompletion}[shell.Name]; ok {
			shell.Action = func(_ context.Context, cmd *cli.Command) error {
				_, err := io.WriteString(cmd.Root().Writer, script)
				return err
			}
		}
	}
}

// completeImage completes the first argument of a command with the names of images, as the scripts want them: colons
// escaped. It says nothing if the daemon does not.
func completeImage(ctx context.Context, cmd *cli.Command) {
	// The last argument is the library's flag.
	if n := len(os.Args) - 2; n > 0 && strings.HasPrefix(os.Args[n], "-") {
		cli.DefaultCompleteWithFlags(ctx, cmd)
		return
	}
	if slices.ContainsFunc(cmd.Args().Slice(), func(arg string) bool { return !strings.HasPrefix(arg, "-") }) {
		return // it has its image
	}
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	conn, err := dial(ctx, cmd.String("address"), completionTimeout)
	if err != nil {
		return
	}
	defer conn.Close()
	reply, err := adminapi.NewAdminClient(conn).ListImages(ctx, &adminapi.ListImagesRequest{Namespace: cmd.String("namespace")})
	if err != nil {
		return
	}
	for _, i := range reply.Images {
		if completable(i.Name) {
			fmt.Fprintln(cmd.Root().Writer, strings.ReplaceAll(i.Name, ":", `\:`))
		}
	}
}

// completable tells whether a name may be put on a command line: names come from others, and may hold what a shell
// would act upon.
func completable(name string) bool {
	return name != "" && !strings.HasPrefix(name, "-") && !strings.ContainsFunc(name, func(r rune) bool {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		return !letter && !strings.ContainsRune("._-/:@+", r)
	})
}
