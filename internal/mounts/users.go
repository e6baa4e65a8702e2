// SPDX-License-Identifier: Apache-2.0

package mounts

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Users lists the mount points of this mount namespace, other than target
// itself, that show the image mounted at target: binds of it, and overlays that
// have it as a lower layer. The kernel calls neither of them a use, and lets
// target be unmounted below them.
func Users(target string) ([]string, error) {
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	i := slices.IndexFunc(all, func(m *mountinfo.Info) bool { return m.Mountpoint == target && m.FSType == "erofs" })
	var users []string
	for _, m := range all {
		switch {
		case m.Mountpoint == target:
		case m.FSType == "erofs" && i >= 0 && m.Major == all[i].Major && m.Minor == all[i].Minor,
			m.FSType == "overlay" && hasLower(m.VFSOptions, target):
			users = append(users, m.Mountpoint)
		}
	}
	return users, nil
}

// hasLower tells whether an overlay's options name a lower directory at or
// below dir.
func hasLower(options, dir string) bool {
	for o := range strings.SplitSeq(options, ",") {
		v, ok := strings.CutPrefix(o, "lowerdir=")
		if !ok {
			v, ok = strings.CutPrefix(o, "lowerdir+=")
		}
		if !ok {
			continue
		}
		for lower := range strings.SplitSeq(v, ":") {
			if _, ok := below(dir, lower); ok {
				return true
			}
		}
	}
	return false
}
