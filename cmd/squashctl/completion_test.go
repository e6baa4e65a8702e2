// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

// imageLister is a daemon that has images, and nothing else.
type imageLister struct {
	adminapi.UnimplementedAdminServer
}

func (imageLister) ListImages(_ context.Context, req *adminapi.ListImagesRequest) (*adminapi.ListImagesResponse, error) {
	if req.Namespace != "default" {
		return &adminapi.ListImagesResponse{Images: []*adminapi.Image{{Name: "elsewhere:1"}}}, nil
	}
	return &adminapi.ListImagesResponse{Images: []*adminapi.Image{
		{Name: "example.com/app:1"}, {Name: "example.com/app:2"}, {Name: "other:1"}, {Name: "$(touch here)"}, {Name: "-x"},
	}}, nil
}

// completer builds the program and returns a function that has bash complete a line.
func completer(t *testing.T) (complete func(words ...string) []string, socket string) {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "squashctl")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte(bashCompletion), 0o600); err != nil {
		t.Fatal(err)
	}
	return func(words ...string) []string {
		t.Helper()
		bash := exec.Command("bash", append([]string{"--norc", "-c", `
			. "$1"; shift
			COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _squashctl
			printf '%s\n' "${COMPREPLY[@]}"`, "bash", script, program}, words...)...)
		out, err := bash.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return strings.Fields(string(out))
	}, filepath.Join(dir, "s.sock")
}

func TestBashCompletes(t *testing.T) {
	complete, socket := completer(t)
	// Nobody listens yet: nothing is printed, errors neither.
	if got := complete("--address", socket, "report", ""); len(got) > 0 {
		t.Errorf("without a daemon: %q", got)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	adminapi.RegisterAdminServer(server, imageLister{})
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	at := []string{"--address", socket}
	for _, c := range []struct {
		words []string
		want  []string
	}{
		{[]string{"re"}, []string{"report"}},
		{[]string{"fsck", "--re"}, []string{"--repair"}},
		{append(at, "report", ""), []string{"example.com/app:1", "example.com/app:2", "other:1"}},
		{append(at, "report", "exa"), []string{"example.com/app:1", "example.com/app:2"}},
		// As bash takes it apart; what is completed is the part behind the colon.
		{append(at, "report", "example.com/app", ":", ""), []string{"1", "2"}},
		{append(at, "report", "example.com/app", ":", "2"), []string{"2"}},
		{append(at, "blame", "other", ":", "1", ""), nil},
		{append(at, "-n", "k8s.io", "blame", ""), []string{"elsewhere:1"}},
		{append(at, "ls", ""), nil},
	} {
		if got := complete(c.words...); !slices.Equal(got, c.want) {
			t.Errorf("%q: got %q, want %q", c.words, got, c.want)
		}
	}
}

func TestScriptsAreTakenByTheirShells(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		t.Run(shell, func(t *testing.T) {
			code, script, _ := execute(t, "completion", shell)
			if code != 0 || script == "" {
				t.Fatalf("exit code %d, %q", code, script)
			}
			program, err := exec.LookPath(shell)
			if err != nil {
				t.Skip(err)
			}
			cmd := exec.Command(program, "-n")
			cmd.Stdin = strings.NewReader(script)
			if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
