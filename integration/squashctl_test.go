// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"strings"
	"testing"

	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/node"
)

// squashctl runs it on a node's daemon, and returns what it prints. The test fails if it does not exit with code.
func squashctl(t *testing.T, n *node.Node, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	stdout, stderr, got, err := n.Squashctl(t.Context(), shared.bin.Squashctl, args...)
	if err != nil {
		t.Fatal(err)
	}
	if got != code {
		t.Fatalf("squashctl %q: got exit code %d, want %d\n%s%s", args, got, code, stdout, stderr)
	}
	return stdout, stderr
}

func TestSquashctlChecksANode(t *testing.T) {
	n := startNode(t, squash)
	pull(t, n, squash, push(t, smallImage(t, images.OCI, images.Gzip)))
	if out, _ := squashctl(t, n, 0, "fsck"); !strings.Contains(out, "nothing is damaged") {
		t.Errorf("got %q", out)
	}
}
