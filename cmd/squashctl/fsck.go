// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/urfave/cli/v3"
	"google.golang.org/grpc"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

// Exit codes of fsck beside 0 and notDone.
const (
	allRepaired = 1
	damageLeft  = 2
)

const megabyte = 1_000_000

func fsckCommand() *cli.Command {
	return &cli.Command{
		Name:      "fsck",
		Usage:     "look for damage of layers, images and contents, and repair it",
		UsageText: "squashctl [global options] fsck [--quick] [--repair] [--rate MB/S]",
		Description: `Reads everything that squash keeps, contents too, and compares it with its checksums and digests. Containers, pulls
and removals go on meanwhile. Without --repair nothing is changed.

Findings and the summary go to standard output, progress to standard error. With --format json each finding is one line
{"finding":{...}} and the last line is {"summary":{...}}; there is no progress. Without a summary the check was not
finished.

Exit codes:
   0  nothing is damaged
   1  all that was damaged was repaired
   2  damage is left
   4  the check could not be done, or not to its end; findings up to there are valid

Examples:
   squashctl fsck
      look for damage, change nothing
   squashctl fsck --quick
      compare the checksums of files alone, which takes seconds
   squashctl fsck --repair
      mend what can be mended, with the layers' blobs in containerd if need be
   squashctl fsck --rate 50 --format json
      read at most 50 megabytes per second, for a job at night; print lines for a program`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "quick", Usage: "leave out the contents, compare checksums of files alone"},
			&cli.BoolFlag{Name: "repair", Usage: "mend what can be mended"},
			&cli.Int64Flag{Name: "rate", Usage: "read at most `MB/S` megabytes of contents per second; 0: no limit"},
		},
		Action: fsck,
	}
}

func fsck(ctx context.Context, cmd *cli.Command) error {
	if err := noArguments(cmd); err != nil {
		return err
	}
	rate := cmd.Int64("rate")
	if rate < 0 || rate > math.MaxInt64/megabyte {
		return usageError{fmt.Errorf("--rate %d: must be a number of megabytes per second from 0 to %d", rate, math.MaxInt64/megabyte)}
	}
	req := &adminapi.CheckRequest{
		Quick:              cmd.Bool("quick"),
		Repair:             cmd.Bool("repair"),
		RateBytesPerSecond: rate * megabyte,
	}
	out := cmd.Root().Writer
	var report checkReport = &checkTable{w: out, req: req}
	if asJSON(cmd) {
		report = checkLines{out}
	}
	summary, err := check(ctx, cmd.String("address"), req, progressOf(cmd, "checking"), report)
	switch {
	case err != nil:
		return fmt.Errorf("fsck: %w", err)
	case summary.Findings > summary.Repaired:
		return result(damageLeft)
	case summary.Findings > 0:
		return result(allRepaired)
	}
	return nil
}

// check has the daemon at address check, and passes on what it says to bar and report. It returns the summary.
func check(ctx context.Context, address string, req *adminapi.CheckRequest, bar *progress, report checkReport) (*adminapi.Summary, error) {
	defer bar.clear()
	var summary *adminapi.Summary
	err := receive(ctx, address, func(ctx context.Context, daemon adminapi.AdminClient) (grpc.ServerStreamingClient[adminapi.CheckResponse], error) {
		return daemon.Check(ctx, req)
	}, func(reply *adminapi.CheckResponse) (err error) {
		switch m := reply.Message.(type) {
		case *adminapi.CheckResponse_Progress:
			bar.report(m.Progress.Step, m.Progress.Done, m.Progress.Total, amountOf(m.Progress.Step))
		case *adminapi.CheckResponse_Finding:
			bar.clear()
			err = report.finding(m.Finding)
		case *adminapi.CheckResponse_Summary:
			bar.clear()
			summary = m.Summary
			err = report.summary(summary)
		}
		if err != nil {
			return fmt.Errorf("print: %w", err)
		}
		return nil
	})
	if err == nil && summary == nil {
		err = fmt.Errorf("the daemon ended the check without a summary; see %s", seeLog)
	}
	return summary, err
}

// amountOf returns how an amount of a step is written.
func amountOf(step string) func(uint64) string {
	if step == "contents" {
		return size
	}
	return func(n uint64) string { return strconv.FormatUint(n, 10) }
}

// checkReport prints what a check finds: findings as they come, then the summary.
type checkReport interface {
	finding(*adminapi.Finding) error
	summary(*adminapi.Summary) error
}

// checkTable prints for people.
type checkTable struct {
	w      io.Writer
	req    *adminapi.CheckRequest
	headed bool
}

const tableRow = "%-8s %-12s %s\n"

func (t *checkTable) finding(f *adminapi.Finding) error {
	var text strings.Builder
	if !t.headed {
		t.headed = true
		fmt.Fprintf(&text, tableRow, "KIND", "STATE", "WHAT")
	}
	state := "not repaired"
	if f.Repaired {
		state = "repaired"
	}
	what := printable(f.Object)
	if f.Detail != "" {
		what += ": " + printable(f.Detail)
	}
	fmt.Fprintf(&text, tableRow, printable(f.Kind), state, what)
	if f.Remedy != "" {
		fmt.Fprintf(&text, tableRow, "", "", "remedy: "+printable(f.Remedy))
	}
	_, err := io.WriteString(t.w, text.String())
	return err
}

func (t *checkTable) summary(s *adminapi.Summary) error {
	contents := fmt.Sprintf("%s (%s)", plural(s.Contents, "content"), size(s.Bytes))
	if t.req.Quick {
		contents = "no contents"
	}
	var text strings.Builder
	if t.headed {
		text.WriteByte('\n')
	}
	fmt.Fprintf(&text, "%s, %s, %s checked: ", plural(s.Layers, "layer"), plural(s.Images, "image"), contents)
	if s.Findings == 0 {
		text.WriteString("nothing is damaged\n")
	} else {
		fmt.Fprintf(&text, "%s, %d repaired, %d left\n", plural(s.Findings, "finding"), s.Repaired, s.Findings-min(s.Findings, s.Repaired))
	}
	if s.Findings > s.Repaired && !t.req.Repair {
		text.WriteString("squashctl fsck --repair mends what can be mended\n")
	}
	_, err := io.WriteString(t.w, text.String())
	return err
}

// checkLines prints for programs: one JSON object a line, whose one key says what it is.
type checkLines struct{ w io.Writer }

func (l checkLines) finding(f *adminapi.Finding) error { return printLine(l.w, "finding", f) }
func (l checkLines) summary(s *adminapi.Summary) error { return printLine(l.w, "summary", s) }
