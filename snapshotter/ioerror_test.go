// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// The pack loses its end, or a range of it, under a running daemon and a
// running container: the daemon goes on, a check names what is damaged, and a
// repair mends it where it is.
func TestThePackIsDamagedUnderTheDaemon(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, pack string, size int64){
		"truncated":   func(t *testing.T, pack string, _ int64) { must(t, os.Truncate(pack, 8192)) },
		"empty":       func(t *testing.T, pack string, _ int64) { must(t, os.Truncate(pack, 0)) },
		"overwritten": func(t *testing.T, pack string, size int64) { overwrite(t, pack, 4096, make([]byte, size-8192)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, mounts.ModeAuto)
			ctx := context.Background()
			top := n.pull("ns/1", checkedImage())
			_, root, _ := n.run(top)
			want, err := treetest.Read(root)
			must(t, err)
			must(t, n.Cleanup(ctx))
			st, err := os.Stat(n.pack.Path())
			must(t, err)
			damage(t, n.pack.Path(), st.Size())
			must(t, forgetCachedPages())

			got, err := os.ReadFile(filepath.Join(root, "d/big"))
			if err == nil && string(got) == checkedContent {
				t.Error("the container reads what is no longer there")
			}
			// Others are pulled meanwhile. What they have in common with the
			// damaged ones cannot be known; what they bring is right.
			other := n.pull("ns/2", crashImage(1))
			v, undo := n.view(other)
			must(t, checkContent(v, 1))
			undo()

			bad := 0
			findings, _ := n.checked(CheckOptions{})
			for _, f := range findings {
				if f.Kind == FindingContent && !f.Repaired && f.Remedy != "" {
					bad++
				}
			}
			if bad < 2 || bad != len(findings) {
				t.Errorf("check: %+v", findings)
			}
			findings, _ = n.checked(CheckOptions{Repair: true})
			for _, f := range findings {
				if !f.Repaired {
					t.Errorf("not repaired: %+v", f)
				}
			}
			if findings, _ := n.checked(CheckOptions{}); len(findings) > 0 {
				t.Errorf("after the repair: %+v", findings)
			}
			now, err := treetest.Read(root)
			must(t, err)
			sameTree(t, want, now)
			n.close()
			n.open()
			n.shows(top, want)
			if findings, _ := n.checked(CheckOptions{}); len(findings) > 0 {
				t.Errorf("after a restart: %+v", findings)
			}
		})
	}
}
