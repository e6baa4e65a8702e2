// SPDX-License-Identifier: Apache-2.0

// Package manualtest checks that the man pages in contrib/man are those of the programs, and writes them with -update.
package manualtest

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/urfave/cli/v3"

	"github.com/squash-snapshotter/squash/internal/manual"
)

var update = flag.Bool("update", false, "write the man pages anew")

// dir is seen from the directory of a program's package.
const dir = "../../contrib/man"

// UpToDate compares the page of a command with what the manual makes of it, and has groff look for mistakes.
func UpToDate(t *testing.T, name string, cmd *cli.Command, seeAlso ...string) {
	t.Helper()
	var page bytes.Buffer
	if err := manual.Write(&page, name, cmd, seeAlso...); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, name+".8")
	if *update {
		if err := os.WriteFile(file, page.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; run make man", err)
	}
	if !bytes.Equal(got, page.Bytes()) {
		t.Errorf("%s is not what the program says; run make man", file)
	}
	if _, err := exec.LookPath("groff"); err != nil {
		t.Skipf("whether troff takes %s is not checked: %v", file, err)
	}
	groff := exec.Command("groff", "-man", "-wall", "-z", file)
	if out, err := groff.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("groff: %v\n%s", err, out)
	}
}
