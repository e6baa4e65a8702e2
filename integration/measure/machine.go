// SPDX-License-Identifier: Apache-2.0

// Package measure owns what the demo and the benchmark measure and how: ways to set up a node, the steps of a run on
// it, and what many runs come to.
//
//	Setup ──▶ node ──Run──▶ Sample (metric ▶ number) ──Results──▶ medians, ratios ──▶ table, Markdown, JSON, SVG
package measure

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DropCaches writes what is dirty and drops clean pages, dentries and inodes of the whole machine.
func DropCaches() error {
	// Inodes that a first round lets go of give their pages to a second one.
	for range 2 {
		syscall.Sync()
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
			return fmt.Errorf("drop caches: %w", err)
		}
	}
	return nil
}

// pageCache is the memory of the machine that holds pages of files and block devices.
func pageCache() (int64, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	var sum int64
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == 3 && (f[0] == "Cached:" || f[0] == "Buffers:") {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("meminfo: %w", err)
			}
			sum += kib << 10
		}
	}
	return sum, nil
}

// MkfsVariable names the mkfs.erofs to use instead of the one in PATH.
const MkfsVariable = "MKFS_EROFS"

// Mkfs finds the mkfs.erofs that containerd's erofs differ can use, and says why there is none.
func Mkfs(ctx context.Context) (path, version, missing string) {
	path = os.Getenv(MkfsVariable)
	if path == "" {
		var err error
		if path, err = exec.LookPath("mkfs.erofs"); err != nil {
			return "", "", "mkfs.erofs is not installed"
		}
	} else if filepath.Base(path) != "mkfs.erofs" {
		return "", "", "containerd runs a program of the name mkfs.erofs, and " + MkfsVariable + " has another one"
	}
	out, err := exec.CommandContext(ctx, path, "-V").CombinedOutput()
	if err != nil && len(out) == 0 {
		return "", "", fmt.Sprintf("%s -V: %v", path, err)
	}
	found := regexp.MustCompile(`(\d+)\.(\d+)(\.\d+)?`).FindStringSubmatch(string(out))
	if found == nil {
		return "", "", "mkfs.erofs does not tell its version"
	}
	major, _ := strconv.Atoi(found[1]) // digits, by the expression
	minor, _ := strconv.Atoi(found[2])
	if major < 1 || major == 1 && minor < 7 {
		return "", "", fmt.Sprintf("mkfs.erofs is %s, containerd needs one that reads tar streams (1.7 or newer)", found[0])
	}
	return path, found[0], ""
}

// Machine is where and when something was measured.
type Machine struct {
	Date       string            `json:"date"`
	CPU        string            `json:"cpu"`
	CPUs       int               `json:"cpus"`
	Memory     int64             `json:"memory_bytes"`
	Kernel     string            `json:"kernel"`
	FileSystem string            `json:"file_system"`
	Load       string            `json:"load_average_at_start"`
	Versions   map[string]string `json:"versions"`
}

// ThisMachine describes the machine; dir is where the nodes lie.
func ThisMachine(dir string) (Machine, error) {
	m := Machine{Date: time.Now().UTC().Format(time.DateOnly), CPUs: runtime.NumCPU(), CPU: runtime.GOARCH, Versions: make(map[string]string)}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return m, fmt.Errorf("kernel version: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(uts.Release[:])
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return m, fmt.Errorf("memory: %w", err)
	}
	m.Memory = int64(info.Totalram) * int64(info.Unit)
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load = strings.Join(strings.Fields(string(load))[:3], " ")
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return m, fmt.Errorf("file system of %s: %w", dir, err)
	}
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
	}
	if m.FileSystem = names[int64(fs.Type)]; m.FileSystem == "" {
		m.FileSystem = fmt.Sprintf("%#x", fs.Type)
	}
	return m, nil
}

// Gunzip names the program that containerd, and squash, have decompress layers.
func Gunzip() string {
	for _, name := range []string{"igzip", "unpigz"} {
		if _, err := exec.LookPath(name); err == nil {
			return name
		}
	}
	return "none, decompression is in process"
}

// MiB gives bytes as text.
func MiB(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// Seconds gives a duration as text.
func Seconds(t time.Duration) string { return fmt.Sprintf("%.2f s", t.Seconds()) }
