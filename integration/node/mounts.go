// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Mount is one line of the mount table.
type Mount struct {
	Target  string
	Type    string
	Source  string
	Options string // of the mount, then of the file system
}

// Mounts lists what is mounted at or below dir, in the order in which it was mounted.
func Mounts(dir string) ([]Mount, error) {
	all, err := mountTable("self")
	if err != nil {
		return nil, err
	}
	var out []Mount
	for _, m := range all {
		if m.Target == dir || strings.HasPrefix(m.Target, dir+"/") {
			out = append(out, m)
		}
	}
	return out, nil
}

// mountTable reads /proc/<pid>/mountinfo.
func mountTable(pid string) ([]Mount, error) {
	data, err := os.ReadFile(filepath.Join("/proc", pid, "mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("mount table: %w", err)
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var out []Mount
	for line := range strings.Lines(string(data)) {
		// 36 35 98:0 /root /target options optional... - type source super-options
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 3 {
			return nil, fmt.Errorf("mount table: line %q is not understood", line)
		}
		out = append(out, Mount{
			Target: unescape.Replace(l[4]), Type: r[0], Source: unescape.Replace(r[1]),
			Options: l[5] + "," + unescape.Replace(r[2]),
		})
	}
	return out, nil
}

// LoopDevices maps the loop devices whose backing file lies below dir to that file. Files that are deleted but
// still in use are found too.
func LoopDevices(dir string) (map[string]string, error) {
	found, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	out := make(map[string]string)
	for _, path := range found {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // detached since the glob
		}
		if file := strings.TrimSpace(string(data)); strings.HasPrefix(file, dir+"/") {
			out["/dev/"+strings.Split(path, "/")[3]] = file
		}
	}
	return out, nil
}
