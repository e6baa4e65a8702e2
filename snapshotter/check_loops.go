// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"fmt"
	"maps"
	"slices"

	"github.com/squash-snapshotter/squash/internal/mounts"
)

// loops looks for loop devices of the store's files that no mount uses. No
// start removes them, and they keep deleted files' blocks.
func (c *check) loops() error {
	leaked, err := mounts.LeakedLoops(c.s.mountable)
	if err != nil {
		return err
	}
	for _, device := range slices.Sorted(maps.Keys(leaked)) {
		file := leaked[device]
		f := Finding{Kind: FindingOrphan, Object: device, Detail: fmt.Sprintf("a loop device of %s that nobody uses", file), Remedy: "detach it with --repair, or with `losetup --detach " + device + "`"}
		if c.opts.Repair {
			if err := mounts.DetachLoop(device, file); err == nil {
				f.Repaired = true
			} else {
				f.Remedy = err.Error()
			}
		}
		c.report(f)
	}
	return nil
}
