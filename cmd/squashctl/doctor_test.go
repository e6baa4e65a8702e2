// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

func TestDoctorWithoutADaemon(t *testing.T) {
	fakeContainerd(t, "exit 0")
	dir := t.TempDir()
	code, out, errs := execute(t, "--address", filepath.Join(dir, "none.sock"), "doctor", "--config", filepath.Join(dir, "config.toml"))
	if code != hasProblems || errs != "" {
		t.Errorf("got exit code %d, %q", code, errs)
	}
	if os.Geteuid() == 0 && !strings.Contains(out, "kernel: file-backed") && !strings.Contains(out, "kernel: loop") {
		t.Errorf("the kernel was not probed:\n%s", out)
	}
	for _, want := range []string{"the daemon is not running", "[proxy_plugins.squash]", "not checked", "install-config --write"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
}

func TestDoctorLooksAtContainerd(t *testing.T) {
	snapshotter := &adminapi.Plugin{Type: "io.containerd.snapshotter.v1", Id: "squash", Capabilities: []string{"rebase"}, Root: "/root-of-it"}
	differ := &adminapi.Plugin{Type: "io.containerd.differ.v1", Id: "squash-diff"}
	for _, c := range []struct {
		name, state, detail string
		daemon              *adminapi.InspectResponse
	}{
		{"fine", isFine, "loaded", &adminapi.InspectResponse{ContainerdVersion: "v2.4.2", Root: "/root-of-it", Plugins: []*adminapi.Plugin{snapshotter, differ}}},
		{"down", isProblem, "gone", &adminapi.InspectResponse{ContainerdError: "gone"}},
		{"old", isWarning, "does not know squash's differ", &adminapi.InspectResponse{ContainerdVersion: "1.7.5", Plugins: []*adminapi.Plugin{snapshotter}}},
		{"no plugins", isProblem, "no snapshotter", &adminapi.InspectResponse{ContainerdVersion: "v2.4.2"}},
		{"rebase alone", isProblem, "rebase", &adminapi.InspectResponse{ContainerdVersion: "v2.4.2", Plugins: []*adminapi.Plugin{snapshotter}}},
		{"another root", isWarning, "wrong file system", &adminapi.InspectResponse{ContainerdVersion: "v2.4.2", Root: "/b", Plugins: []*adminapi.Plugin{snapshotter, differ}}},
	} {
		found := checkContainerd(c.daemon)
		if !slices.ContainsFunc(found, func(d diagnosis) bool { return d.State == c.state && strings.Contains(d.Detail, c.detail) }) {
			t.Errorf("%s: got %+v", c.name, found)
		}
	}
}

func TestDoctorLooksAtTheUnit(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	if found := checkUnit(t.Context(), filepath.Join(dir, "none")); found != nil {
		t.Errorf("without systemd: got %+v", found)
	}
	for script, want := range map[string]string{"exit 0": isFine, "echo disabled; exit 1": isWarning} {
		script = "#!/bin/sh\n[ \"$*\" = \"is-enabled containerd-squash-grpc.socket\" ] || exit 9\n" + script + "\n"
		if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		found := checkUnit(t.Context(), dir)
		if len(found) != 1 || found[0].State != want || want == isWarning && !strings.Contains(found[0].Detail, "reboot: disabled") {
			t.Errorf("got %+v, want %s", found, want)
		}
	}
}

func TestDoctorLooksAtTheState(t *testing.T) {
	if d := checkState("/dev/shm"); d.State != isFine {
		t.Errorf("on a tmpfs: got %+v", d)
	}
	if d := checkState("/proc"); d.State != isWarning || d.Remedy == "" {
		t.Errorf("on no tmpfs: got %+v", d)
	}
	if d := checkState(filepath.Join(t.TempDir(), "none")); d.State != notChecked {
		t.Errorf("where nothing is: got %+v", d)
	}
}
