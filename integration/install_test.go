// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// make install puts everything below DESTDIR, where the programs' own paths say it is to be, and nothing elsewhere.
func TestMakeInstall(t *testing.T) {
	dest := t.TempDir()
	mk := exec.Command("make", "-s", "install", "DESTDIR="+dest, "PREFIX=/usr")
	mk.Dir = ".."
	if out, err := mk.CombinedOutput(); err != nil {
		t.Fatalf("make install: %v\n%s", err, out)
	}
	modes := map[string]fs.FileMode{}
	err := filepath.WalkDir(dest, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if info.Size() == 0 {
			t.Errorf("%s is empty", path)
		}
		modes[strings.TrimPrefix(path, dest)] = info.Mode()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"/usr/lib/systemd/system/containerd-squash-grpc.service",
		"/usr/lib/systemd/system/containerd-squash-grpc.socket",
		"/usr/share/bash-completion/completions/squashctl",
		"/usr/share/fish/vendor_completions.d/squashctl.fish",
		"/usr/share/zsh/site-functions/_squashctl",
	}
	pages, err := filepath.Glob("../contrib/man/*.8")
	if err != nil || len(pages) == 0 {
		t.Fatalf("man pages: %q, %v", pages, err)
	}
	for _, p := range pages {
		want = append(want, "/usr/share/man/man8/"+filepath.Base(p))
	}
	for _, p := range want {
		if modes[p] != 0o644 {
			t.Errorf("%s: mode %v, want 0644", p, modes[p])
		}
	}
	for _, p := range []string{"/usr/bin/containerd-squash-grpc", "/usr/bin/squashctl"} {
		if modes[p] != 0o755 {
			t.Errorf("%s: mode %v, want 0755", p, modes[p])
		}
		want = append(want, p)
	}
	for p := range modes {
		if !slices.Contains(want, p) {
			t.Errorf("%s was installed as well", p)
		}
	}
	unit, err := os.ReadFile(dest + "/usr/lib/systemd/system/containerd-squash-grpc.service")
	if err != nil || !strings.Contains(string(unit), "ExecStart=/usr/bin/containerd-squash-grpc\n") {
		t.Errorf("the unit starts another program: %v\n%s", err, unit)
	}
}
