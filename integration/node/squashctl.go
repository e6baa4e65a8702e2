// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
)

// Squashctl runs the program squashctl on the node's daemon, in the default namespace unless args name another one, and
// returns what it prints and its exit code. An error says that it could not be run, or not to its end.
func (n *Node) Squashctl(ctx context.Context, program string, args ...string) (stdout, stderr string, code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(n.opts.Limit, commandLimit))
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append([]string{"--address", n.daemonSocket()}, args...)...)
	cmd.Env = n.env()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return out.String(), errOut.String(), exit.ExitCode(), nil
	}
	if err != nil {
		err = fmt.Errorf("squashctl %q: %w\n%s", args, err, errOut.String())
	}
	return out.String(), errOut.String(), 0, err
}
