// SPDX-License-Identifier: Apache-2.0

package integration

import (
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
	if out, _ := squashctl(t, n, 2, doctor...); !strings.Contains(out, "containerd has loaded no snapshotter") || !strings.Contains(out, "proxy_plugins.squash is missing") {
		t.Errorf("doctor does not find what is wrong\n%s", out)
	}
	args := []string{"install-config", "--config", n.ContainerdConfigFile()}
	out, _ := squashctl(t, n, 1, args...)
	if !strings.Contains(out, "+    root = \""+n.DaemonRoot()+"\"") {
		t.Errorf("the daemon's root is not in\n%s", out)
	}
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
	t.Log(stdout)
}
