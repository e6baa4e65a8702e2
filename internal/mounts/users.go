// SPDX-License-Identifier: Apache-2.0

package mounts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Users lists the mount points, other than target itself, that show the image
// mounted at target: binds of it, and overlays that have it as a lower layer.
// The kernel calls neither of them a use, and lets target be unmounted below
// them. Mount namespaces of other processes, such as a container in which a
// builder runs, are looked at too.
func Users(target string) ([]string, error) {
	own, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	i := slices.IndexFunc(own, func(m *mountinfo.Info) bool { return m.Mountpoint == target && m.FSType == "erofs" })
	uses := func(m *mountinfo.Info) bool {
		switch m.FSType {
		case "erofs":
			return i >= 0 && m.Major == own[i].Major && m.Minor == own[i].Minor
		case "overlay":
			return hasLower(m.VFSOptions, target)
		}
		return false
	}
	var users []string
	for _, m := range own {
		if m.Mountpoint != target && uses(m) {
			users = append(users, m.Mountpoint)
		}
	}
	others, err := otherNamespaces()
	if err != nil {
		return nil, err
	}
	for _, path := range others {
		infos, err := readMountinfo(path)
		if err != nil {
			return nil, err
		}
		for _, m := range infos {
			// Namespaces are born with copies of all mounts there are, the one
			// at target too: it counts only if it is used elsewhere.
			if m.Mountpoint != target && uses(m) && !slices.Contains(users, m.Mountpoint) {
				users = append(users, m.Mountpoint)
			}
		}
	}
	return users, nil
}

// otherNamespaces returns a mountinfo file for each mount namespace but our own
// in which some process lives.
func otherNamespaces() ([]string, error) {
	seen := map[string]bool{}
	if own, err := os.Readlink("/proc/self/ns/mnt"); err == nil {
		seen[own] = true
	}
	links, err := filepath.Glob("/proc/[0-9]*/ns/mnt")
	if err != nil {
		return nil, err
	}
	var files []string
	for _, link := range links {
		ns, err := os.Readlink(link)
		if err != nil || seen[ns] {
			continue // the process has ended
		}
		seen[ns] = true
		files = append(files, filepath.Join(filepath.Dir(filepath.Dir(link)), "mountinfo"))
	}
	return files, nil
}

// readMountinfo reads a process's mountinfo; nothing if the process has ended.
func readMountinfo(path string) ([]*mountinfo.Info, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	defer f.Close()
	infos, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("read mountinfo %s: %w", path, err)
	}
	return infos, nil
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
