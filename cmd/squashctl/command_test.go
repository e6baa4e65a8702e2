// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v3"

	"github.com/squash-snapshotter/squash/service"
)

// execute runs the program with what it prints going to buffers.
func execute(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs strings.Builder
	code = run(t.Context(), append([]string{"squashctl"}, args...), &out, &errs)
	return code, out.String(), errs.String()
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		code int
		want string // in the output
	}{
		{"version", []string{"--version"}, 0, "squashctl version "},
		{"nothing", nil, 0, "Examples:"},
		{"help", []string{"--help"}, 0, "fsck"},
		{"help of fsck", []string{"fsck", "--help"}, 0, "2  damage is left"},
		{"completion of bash", []string{"completion", "bash"}, 0, "squashctl"},
		{"unknown command", []string{"fsk"}, notDone, `unknown command "fsk"`},
		{"unknown flag", []string{"--nope"}, notDone, "-nope"},
		{"unknown flag of fsck", []string{"fsck", "--nope"}, notDone, "-nope"},
		{"help of report", []string{"report", "--help"}, 0, "--html"},
		{"help of export", []string{"export", "--help"}, 0, "SQUASHCTL_PASSWORD"},
		{"help of doctor", []string{"doctor", "--help"}, 0, "2  there are problems"},
		{"argument of ls", []string{"ls", "x"}, notDone, `unexpected argument "x"`},
		{"report of nothing", []string{"report"}, notDone, "no image is named"},
		{"report of two images", []string{"report", "a", "b"}, notDone, `unexpected argument "b"`},
		{"report without rows", []string{"report", "--rows", "0", "a"}, notDone, "--rows 0"},
		{"blame of nothing", []string{"blame"}, notDone, "no image is named"},
		{"blame without paths", []string{"blame", "a"}, notDone, "no path is named"},
		{"blame of all and a path", []string{"blame", "--all", "a", "/b"}, notDone, `unexpected argument "/b"`},
		{"export to nowhere", []string{"export", "a"}, notDone, "one of -o FILE, --store REF and --push REF"},
		{"export to two places", []string{"export", "-o", "f", "--store", "r", "a"}, notDone, "one of -o FILE"},
		{"export of an unknown type", []string{"export", "-o", "f", "--type", "zip", "a"}, notDone, `--type "zip"`},
		{"type without a file", []string{"export", "--store", "r", "--type", "oci-dir", "a"}, notDone, "--type and --name go with -o FILE"},
		{"directory to standard output", []string{"export", "-o", "-", "--type", "oci-dir", "a"}, notDone, "a directory cannot go to standard output"},
		{"argument of fsck", []string{"fsck", "image"}, notDone, `unexpected argument "image"`},
		{"unknown format", []string{"fsck", "--format", "xml"}, notDone, `--format "xml": must be table or json`},
		{"rate that is no number", []string{"fsck", "--rate", "fast"}, notDone, `"fast"`},
		{"negative rate", []string{"fsck", "--rate=-1"}, notDone, "--rate -1: must be"},
		{"rate that overflows", []string{"fsck", "--rate", "9223372036855"}, notDone, "must be a number of megabytes per second from 0 to 9223372036854"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, stdout, stderr := execute(t, c.args...)
			if code != c.code {
				t.Errorf("got exit code %d, want %d", code, c.code)
			}
			if !strings.Contains(stdout+stderr, c.want) {
				t.Errorf("got output %q%q, want it to contain %q", stdout, stderr, c.want)
			}
			if c.code != 0 && stdout != "" {
				t.Errorf("an error was written to standard output: %q", stdout)
			}
			if c.code == 0 && stderr != "" {
				t.Errorf("without an error, %q was written to standard error", stderr)
			}
		})
	}
}

// What a shell's completion script asks, which must be the real program: the library looks at its own arguments.
func TestCompletion(t *testing.T) {
	program := filepath.Join(t.TempDir(), "squashctl")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for want, args := range map[string][]string{
		"fsck":     {"--generate-shell-completion"},
		"--repair": {"fsck", "--", "--generate-shell-completion"},
	} {
		out, err := exec.Command(program, args...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%q: got %q, %v, want it to contain %s", args, out, err, want)
		}
	}
}

func TestDefaultAddressIsThatOfTheDaemon(t *testing.T) {
	if want := service.DefaultConfig().Address; defaultAddress != want {
		t.Errorf("got %s, want %s", defaultAddress, want)
	}
}

func TestNameInAnExportedFile(t *testing.T) {
	for image, want := range map[string]string{
		"registry.example/a:1":                  "registry.example/a:1-squashed",
		"registry.example:5000/a":               "registry.example:5000/a:squashed",
		"registry.example:5000/a:1@sha256:0123": "registry.example:5000/a:1-squashed",
		"registry.example/a@sha256:0123":        "registry.example/a:squashed",
	} {
		command := exportCommand()
		var got string
		command.Action = func(_ context.Context, cmd *cli.Command) error {
			got = nameInFile(cmd)
			return nil
		}
		if err := command.Run(t.Context(), []string{"export", image}); err != nil || got != want {
			t.Errorf("%s: got %s, %v, want %s", image, got, err, want)
		}
		if err := command.Run(t.Context(), []string{"export", "--name", "other", image}); err != nil || got != "other" {
			t.Errorf("%s with a name: got %s, %v", image, got, err)
		}
	}
}
