// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/urfave/cli/v3"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

// Exit codes of doctor beside 0 and notDone.
const (
	hasWarnings = 1
	hasProblems = 2
)

// States of a finding.
const (
	isFine     = "ok"
	isWarning  = "warning"
	isProblem  = "problem"
	notChecked = "not checked"
)

// diagnosis is the outcome of one check.
type diagnosis struct {
	Check  string `json:"check"`
	State  string `json:"state"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy"`
}

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:      "doctor",
		Usage:     "look for what keeps squash from working, or from working well, on this node",
		UsageText: "squashctl [global options] doctor [--config FILE] [--kubernetes]",
		Description: `Checks the daemon, its socket and file system, what the kernel can do, containerd and its configuration. Nothing is
changed. What cannot be checked, because the daemon or containerd does not answer, is said to be so.

With --format json, one object {"check":…,"state":…,"detail":…,"remedy":…} a line; state is "ok", "warning", "problem" or
"not checked".

Exit codes:
   0  all is well
   1  there are warnings: squash works, but not as well as it could, or something could not be checked
   2  there are problems
   4  it could not be done

Examples:
   squashctl doctor
      check this node
   squashctl doctor --kubernetes
      Kubernetes is to have its images in squash
   squashctl --format json doctor
      for a program`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Value: "/etc/containerd/config.toml", Usage: "containerd's configuration is `FILE`"},
			&cli.BoolFlag{Name: "kubernetes", Usage: "check that every pod's images are in squash"},
		},
		Action: doctor,
	}
}

func doctor(ctx context.Context, cmd *cli.Command) error {
	if err := noArguments(cmd); err != nil {
		return err
	}
	address := cmd.String("address")
	var found []diagnosis
	daemon, err := ask(ctx, address, func(ctx context.Context, daemon adminapi.AdminClient) (*adminapi.InspectResponse, error) {
		return daemon.Inspect(ctx, &adminapi.InspectRequest{})
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	found = append(found, checkDaemon(daemon, err))
	found = append(found, checkSocket(strings.TrimPrefix(address, "unix://")))
	found = append(found, checkUnit(ctx, "/run/systemd/system")...)
	if err == nil {
		found = append(found, checkRoot(daemon.Root), checkState(daemon.State))
		found = append(found, checkKernel(daemon)...)
		found = append(found, checkContainerd(daemon)...)
		found = append(found, checkDecompressor(daemon))
	} else {
		found = append(found, probeKernel(ctx)...)
		found = append(found, diagnosis{"containerd", notChecked, "the daemon tells what containerd has loaded", startIt})
	}
	config := checkConfig(ctx, cmd, daemon)
	if len(config) == 1 && config[0].State == isFine {
		for i := range found {
			// What is missing in the running containerd is in its file.
			found[i].Remedy = strings.TrimPrefix(found[i].Remedy, mergeThen)
		}
	}
	found = append(found, config...)
	if err := printDiagnoses(cmd, found); err != nil {
		return fmt.Errorf("doctor: print: %w", err)
	}
	worst := 0
	for _, d := range found {
		switch d.State {
		case isProblem:
			worst = hasProblems
		case isWarning, notChecked:
			worst = max(worst, hasWarnings)
		}
	}
	if worst > 0 {
		return result(worst)
	}
	return nil
}

func printDiagnoses(cmd *cli.Command, found []diagnosis) error {
	out := cmd.Root().Writer
	if asJSON(cmd) {
		lines := json.NewEncoder(out)
		lines.SetEscapeHTML(false)
		for _, d := range found {
			if err := lines.Encode(d); err != nil {
				return err
			}
		}
		return nil
	}
	rows := newTable("CHECK", "STATE", "DETAIL")
	for _, d := range found {
		rows.add(d.Check, d.State, printable(d.Detail))
		if d.Remedy == "" {
			continue
		}
		for n, line := range strings.Split(strings.TrimSuffix(d.Remedy, "\n"), "\n") {
			lead := "        "
			if n == 0 {
				lead = "remedy: "
			}
			rows.add("", "", lead+printable(line))
		}
	}
	return rows.write(out, 0)
}
