// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sweep removes everything that a node has on the machine: processes, mounts, loop devices, shim sockets,
// cgroups and files, in that order, since each keeps the next one busy. It works from the machine's own tables
// and not from what the node remembers, so it also cleans up after a node that died. What needed force is
// returned as an error after it is gone.
func sweep(dir string) error {
	return errors.Join(
		sweepProcesses(dir),
		sweepMounts(dir),
		sweepLoops(dir),
		sweepSockets(dir),
		sweepCgroups(filepath.Base(dir)),
		removeAll(dir),
	)
}

const sweepLimit = 20 * time.Second

// ours are the programs that run on behalf of a node; only these are judged by their command line.
var ours = []string{"containerd", "containerd-shim-runc-v2", "containerd-squash-grpc", "ctr", "runc"}

func sweepProcesses(dir string) error {
	err := Await(context.Background(), sweepLimit, func() error {
		pids, err := processes(dir)
		if err != nil {
			return err
		}
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL) // it may have ended in the meantime
		}
		if len(pids) > 0 {
			return fmt.Errorf("processes %v", pids)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("end processes of %s: %w", dir, err)
	}
	return nil
}

// processes finds our programs that were started with a path below dir, and processes in other mount namespaces
// whose root file system comes from below dir.
func processes(dir string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// Any of these reads fails when the process ends meanwhile; then it is not ours to end.
		ns, err := os.Readlink(filepath.Join("/proc", e.Name(), "ns/mnt"))
		if err != nil {
			continue
		}
		if ns != own {
			if table, err := mountTable(e.Name()); err == nil && slices.ContainsFunc(table, func(m Mount) bool {
				return m.Target == "/" && strings.Contains(m.Source+","+m.Options, dir+"/")
			}) {
				out = append(out, pid)
				continue
			}
		}
		exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if err != nil || !slices.Contains(ours, strings.TrimSuffix(filepath.Base(exe), " (deleted)")) {
			continue
		}
		args, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && strings.Contains(string(args), dir+"/") {
			out = append(out, pid)
		}
	}
	return out, nil
}

// sweepMounts unmounts from the newest to the oldest. A mount that stays busy is detached lazily and reported.
func sweepMounts(dir string) error {
	left, err := unmountOnce(dir, 0)
	if err != nil || len(left) == 0 {
		return err
	}
	// A process that was killed a moment ago may hold its mounts until the kernel has taken it apart.
	err = Await(context.Background(), 5*time.Second, func() error {
		if left, err = unmountOnce(dir, 0); err != nil {
			return err
		}
		if len(left) > 0 {
			return errors.New("busy")
		}
		return nil
	})
	if err == nil {
		return nil
	}
	_, detach := unmountOnce(dir, unix.MNT_DETACH)
	return errors.Join(fmt.Errorf("leaked mounts, detached by force: %q", left), detach)
}

func unmountOnce(dir string, flags int) (left []string, err error) {
	list, err := Mounts(dir)
	if err != nil {
		return nil, err
	}
	for _, m := range slices.Backward(list) {
		if err := unix.Unmount(m.Target, flags|unix.UMOUNT_NOFOLLOW); err != nil {
			left = append(left, m.Target+" ("+err.Error()+")")
		}
	}
	return left, nil
}

// sweepLoops expects that loop devices go with their mounts (autoclear); one that does not is a leak.
func sweepLoops(dir string) error {
	var left map[string]string
	err := Await(context.Background(), 5*time.Second, func() (err error) {
		if left, err = LoopDevices(dir); err == nil && len(left) > 0 {
			err = errors.New("attached")
		}
		return err
	})
	if err == nil {
		return nil
	}
	errs := []error{fmt.Errorf("leaked loop devices, cleared by force: %v", left)}
	for device := range left {
		f, err := os.OpenFile(device, os.O_RDWR, 0)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil && err != unix.ENXIO {
			errs = append(errs, fmt.Errorf("clear %s: %w", device, err))
		}
		f.Close()
	}
	return errors.Join(errs...)
}

// sweepSockets removes the sockets of shims that were killed; their bundles say where they are.
func sweepSockets(dir string) error {
	bundles, err := filepath.Glob(filepath.Join(dir, "run", "io.containerd.runtime.v2.task", "*", "*", "bootstrap.json"))
	if err != nil {
		return err
	}
	for _, path := range bundles {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var bootstrap struct {
			Address string `json:"address"`
		}
		if err := json.Unmarshal(data, &bootstrap); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if socket, ok := strings.CutPrefix(bootstrap.Address, "unix://"); ok {
			if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// sweepCgroups removes the node's cgroup parent from every hierarchy, v1 and v2.
func sweepCgroups(name string) error {
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup/" + name, "/sys/fs/cgroup/*/" + name} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, top := range found {
			var dirs []string
			err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return err
			})
			if err != nil {
				errs = append(errs, err)
			}
			for _, d := range slices.Backward(dirs) {
				if err := Await(context.Background(), 5*time.Second, func() error { return unix.Rmdir(d) }); err != nil {
					errs = append(errs, fmt.Errorf("remove cgroup %s: %w", d, err))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// removeAll deletes the directory, but never reaches into something that is still mounted there.
func removeAll(dir string) error {
	left, err := Mounts(dir)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("%s is kept: %d mounts could not be removed", dir, len(left))
	}
	return os.RemoveAll(dir)
}
