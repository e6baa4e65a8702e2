// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/squash-snapshotter/squash/service"
)

func TestDefaultRootIsThatOfTheDaemon(t *testing.T) {
	if want := service.DefaultConfig().Root; defaultRoot != want {
		t.Errorf("got %s, want %s", defaultRoot, want)
	}
}

// fakeContainerd is first in PATH; as config dump it does what the shell says.
func fakeContainerd(t *testing.T, dump string) {
	t.Helper()
	dir := t.TempDir()
	script := "#!/bin/sh\nif [ \"$1\" = --version ]; then echo containerd example.com/containerd v2.4.2 0; exit; fi\n" + dump + "\n"
	if err := os.WriteFile(filepath.Join(dir, "containerd"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestInstallConfig(t *testing.T) {
	fakeContainerd(t, "exit 0")
	dir := t.TempDir()
	file, link := filepath.Join(dir, "real.toml"), filepath.Join(dir, "config.toml")
	const old = "# mine\nversion = 3\n"
	if err := os.WriteFile(file, []byte(old), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real.toml", link); err != nil {
		t.Fatal(err)
	}
	args := []string{"--address", filepath.Join(dir, "none.sock"), "install-config", "--config", link}

	code, out, _ := execute(t, args...)
	if now, err := os.ReadFile(file); err != nil || string(now) != old {
		t.Errorf("without --write, the file became %q, %v", now, err)
	}
	if code != isMissing || !strings.Contains(out, "\n+[proxy_plugins.squash]\n") {
		t.Errorf("got exit code %d and %q", code, out)
	}

	code, out, errs := execute(t, append(args, "--write")...)
	if code != 0 || !strings.Contains(out, "systemctl restart containerd") {
		t.Fatalf("got exit code %d, %q%q", code, out, errs)
	}
	now, err := os.ReadFile(file)
	if err != nil || !strings.HasPrefix(string(now), old) || !strings.Contains(string(now), "none.sock") {
		t.Errorf("the file became %q, %v", now, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o640 {
		t.Errorf("got mode %v, %v", info.Mode(), err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Errorf("the symlink became %v, %v", info, err)
	}
	backups, _ := filepath.Glob(file + ".squash-backup-*")
	if len(backups) != 1 {
		t.Fatalf("got backups %q", backups)
	}
	if kept, err := os.ReadFile(backups[0]); err != nil || string(kept) != old {
		t.Errorf("the backup has %q, %v", kept, err)
	}

	if code, out, _ = execute(t, args...); code != 0 || !strings.Contains(out, "nothing is missing") {
		t.Errorf("afterwards, got exit code %d and %q", code, out)
	}
}

func TestInstallConfigLeavesTheFile(t *testing.T) {
	for _, c := range []struct{ name, text, dump, want string }{
		{"containerd refuses it", "version = 3\n", "echo no such plugin >&2; exit 1", "no such plugin"},
		{"another program writes it", "# Generated. DO NOT EDIT.\nversion = 3\n", "exit 0", "is written by another program"},
		{"it is no TOML", "version = \n", "exit 0", "config.toml:1:"},
		{"an import is missing", "version = 3\nimports = ['none.toml']\n", "exit 0", "none.toml"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fakeContainerd(t, c.dump)
			dir := t.TempDir()
			file := filepath.Join(dir, "config.toml")
			if err := os.WriteFile(file, []byte(c.text), 0o644); err != nil {
				t.Fatal(err)
			}
			code, _, errs := execute(t, "--address", filepath.Join(dir, "none.sock"), "install-config", "--write", "--config", file)
			if code != notDone || !strings.Contains(errs, c.want) {
				t.Errorf("got exit code %d and %q, want %q", code, errs, c.want)
			}
			if now, err := os.ReadFile(file); err != nil || string(now) != c.text {
				t.Errorf("the file became %q, %v", now, err)
			}
			if left, _ := os.ReadDir(dir); len(left) != 1 {
				t.Errorf("%v are left", left)
			}
		})
	}
}
