// SPDX-License-Identifier: Apache-2.0

package manual_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/urfave/cli/v3"

	"github.com/squash-snapshotter/squash/internal/manual"
)

func TestPageSaysWhatTheCommandSays(t *testing.T) {
	cmd := &cli.Command{
		Usage:     "do it",
		UsageText: "tool [--rate N] DIR",
		Description: "Reads DIR.\n.hidden is a word, and a\\b is a 'path' that costs 5 …\n\n   column  kept  as it is\n\n" +
			"Exit codes:\n   0  done\n\nExamples:\n   tool --rate 5 x\n      slowly",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "rate", Aliases: []string{"r"}, Value: 7, Usage: "go at `N` a second"},
			&cli.BoolFlag{Name: "quick", Usage: "hurry"},
		},
	}
	var page strings.Builder
	if err := manual.Write(&page, "tool", cmd, "other"); err != nil {
		t.Fatal(err)
	}
	groff := exec.Command("groff", "-man", "-wall", "-Tutf8", "-P-c", "-P-b", "-P-u")
	groff.Stdin = strings.NewReader(page.String())
	var errs strings.Builder
	groff.Stderr = &errs
	out, err := groff.Output()
	if groff.Err != nil {
		t.Skipf("groff shows what a page looks like: %v", groff.Err)
	}
	if err != nil || errs.Len() > 0 {
		t.Fatalf("groff: %v\n%s\n%s", err, errs.String(), page.String())
	}
	at := 0
	for _, want := range []string{
		"NAME", "tool - do it", "SYNOPSIS", "tool [--rate N] DIR", "DESCRIPTION", "Reads DIR.", ".hidden is a word, and a\\b is a 'path' that costs 5 …",
		"column  kept  as it is", "OPTIONS", "--rate, -r N", "go at N a second (default: 7)", "--quick\n", "hurry",
		"EXIT STATUS", "0  done", "EXAMPLES", "tool --rate 5 x\n", "   slowly", "SEE ALSO", "other(8)",
	} {
		n := strings.Index(string(out)[at:], want)
		if n < 0 {
			t.Fatalf("%q is not in, or not in order:\n%s", want, out)
		}
		at += n
	}
}
