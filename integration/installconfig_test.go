// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"regexp"
	"strings"
	"testing"

	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/node"
)

// A containerd that knows nothing of squash is told by squashctl, and then pulls with it.
func TestInstallConfigTellsContainerd(t *testing.T) {
	if shared.noDaemon != nil {
		t.Fatal(shared.noDaemon)
	}
	n, err := node.Start(t.Context(), node.Options{Tools: shared.bin.Tools, Daemon: shared.bin.Daemon, PlainContainerd: true, Debug: true})
	if err != nil {
		t.Fatalf("start node: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(n.Logs(120))
		}
		if err := n.Close(); err != nil {
			t.Errorf("close node: %v", err)
		}
	})
	ref := push(t, smallImage(t, images.OCI, images.Gzip))
	if err := n.Pull(t.Context(), node.Squash, ref); err == nil {
		t.Fatal("containerd has squash without being told")
	}
	doctor := []string{"doctor", "--config", n.ContainerdConfigFile()}
	before, _ := squashctl(t, n, 2, doctor...)
	golden(t, "doctor-before.txt", anyMachine(n, before))
	if out := before; !strings.Contains(out, "containerd has loaded no snapshotter") || !strings.Contains(out, "proxy_plugins.squash is missing") {
		t.Errorf("doctor does not find what is wrong\n%s", out)
	}
	args := []string{"install-config", "--config", n.ContainerdConfigFile()}
	out, _ := squashctl(t, n, 1, args...)
	if !strings.Contains(out, "+    root = \""+n.DaemonRoot()+"\"") {
		t.Errorf("the daemon's root is not in\n%s", out)
	}
	golden(t, "install-config.txt", anyMachine(n, out))
	squashctl(t, n, 0, append(args, "--write")...)
	if err := n.StopContainerd(); err != nil {
		t.Fatal(err)
	}
	if err := n.StartContainerd(t.Context()); err != nil {
		t.Fatal(err)
	}
	pull(t, n, squash, ref)
	if out, _ := squashctl(t, n, 0, "ls"); !strings.Contains(out, ref) {
		t.Errorf("the image is not in\n%s", out)
	}
	squashctl(t, n, 0, args...)
	// What else there may be to warn of is up to the machine.
	stdout, stderr, code, err := n.Squashctl(t.Context(), shared.bin.Squashctl, doctor...)
	if err != nil || code > 1 {
		t.Errorf("doctor afterwards: got exit code %d, %v, %s\n%s", code, err, stderr, stdout)
	}
	golden(t, "doctor-after.txt", anyMachine(n, stdout))
}

// anyMachine leaves out of what squashctl prints about a node what is of this machine alone.
func anyMachine(n *node.Node, out string) string {
	out = strings.ReplaceAll(out, n.Dir(), "/NODE")
	out = regexp.MustCompile(`version [^\s,]+`).ReplaceAllString(out, "version V")
	out = regexp.MustCompile(`(\S) {2,}`).ReplaceAllString(out, "$1  ") // columns are as wide as what is left out
	out = regexp.MustCompile(`pid \d+, mount \w+, compression \w+`).ReplaceAllString(out, "pid N, mount M, compression C")
	out = regexp.MustCompile(`[0-9.]+ [kMGTP]?B of [0-9.]+ [kMGTP]?B are free`).ReplaceAllString(out, "N of N are free")
	var kept []string
	skip := false
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, " ") { // else it goes with the one before
			skip = strings.HasPrefix(line, "kernel") || strings.HasPrefix(line, "state") || strings.HasPrefix(line, "unit") || strings.HasPrefix(line, "decompressor")
		}
		if !skip {
			kept = append(kept, strings.TrimRight(line, " \n")+"\n")
		}
	}
	return strings.Join(kept, "")
}
