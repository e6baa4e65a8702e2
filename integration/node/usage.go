// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Usage is what daemons have used.
type Usage struct {
	CPU    time.Duration // containerd, the squash daemon, and the programs that either ran and that have ended
	Memory int64         // most bytes that the squash daemon had resident; without one, containerd
}

// Usage gives the CPU time since the daemons' start, and the peak of memory since the last call of ResetPeak.
func (n *Node) Usage() (u Usage, err error) {
	for _, p := range []*process{n.containerd, n.daemon} {
		if p == nil {
			continue
		}
		cpu, err := cpuTime(p.cmd.Process.Pid)
		if err != nil {
			return u, fmt.Errorf("usage of %s: %w", p.name, err)
		}
		u.CPU += cpu
		// The daemon comes last.
		if u.Memory, err = peakMemory(p.cmd.Process.Pid); err != nil {
			return u, fmt.Errorf("usage of %s: %w", p.name, err)
		}
	}
	return u, nil
}

// ResetPeak makes Usage tell of memory from now on.
func (n *Node) ResetPeak() error {
	for _, p := range []*process{n.containerd, n.daemon} {
		if p == nil {
			continue
		}
		// 5: set VmHWM to what is resident now.
		if err := os.WriteFile(procFile(p.cmd.Process.Pid, "clear_refs"), []byte("5"), 0); err != nil {
			return fmt.Errorf("peak memory of %s: %w", p.name, err)
		}
	}
	return nil
}

func procFile(pid int, name string) string { return filepath.Join("/proc", strconv.Itoa(pid), name) }

// cpuTime adds up user and system time of a process and of its children that it has waited for.
func cpuTime(pid int) (time.Duration, error) {
	const tick = 10 * time.Millisecond // USER_HZ is 100 wherever Go runs
	data, err := os.ReadFile(procFile(pid, "stat"))
	if err != nil {
		return 0, err
	}
	// The second field, the program's name, may hold blanks and ends with the last ")". utime is field 14.
	_, rest, ok := strings.Cut(string(data[strings.LastIndexByte(string(data), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 15 {
		return 0, errors.New("stat is not understood")
	}
	var sum time.Duration
	for _, f := range fields[14-3 : 18-3] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

func peakMemory(pid int) (int64, error) {
	data, err := os.ReadFile(procFile(pid, "status"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("no VmHWM")
}

// ContentStore is where containerd keeps blobs.
func (n *Node) ContentStore() string {
	return filepath.Join(n.containerdRoot(), "io.containerd.content.v1.content")
}
