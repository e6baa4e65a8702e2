// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
	"github.com/squash-snapshotter/squash/internal/containerdconfig"
	"github.com/squash-snapshotter/squash/internal/mounts"
)

const (
	restartContainerd = "systemctl restart containerd"
	mergeThen         = "squashctl install-config --write && " // before a restart
)

func checkDaemon(daemon *adminapi.InspectResponse, err error) diagnosis {
	if err != nil {
		return diagnosis{"daemon", isProblem, err.Error(), startIt}
	}
	if daemon.Version != shownVersion() {
		return diagnosis{"daemon", isWarning, fmt.Sprintf("it has version %s, squashctl %s", daemon.Version, shownVersion()), "systemctl restart containerd-squash-grpc"}
	}
	return diagnosis{"daemon", isFine, fmt.Sprintf("version %s, pid %d, mount %s, compression %s", daemon.Version, daemon.Pid, daemon.Mount, daemon.Compression), ""}
}

// checkSocket looks at who may talk to the daemon: whoever may is root on this node.
func checkSocket(path string) diagnosis {
	info, err := os.Stat(path)
	if err != nil {
		return diagnosis{"socket", notChecked, err.Error(), startIt}
	}
	if info.Mode().Type() != fs.ModeSocket {
		return diagnosis{"socket", isProblem, path + " is not a socket", "name the one of the daemon with --address"}
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return diagnosis{"socket", notChecked, err.Error(), ""}
	}
	if st.Uid != 0 || st.Mode&0o007 != 0 {
		return diagnosis{"socket", isProblem, fmt.Sprintf("users other than root may connect to %s (owner %d, mode %#o)", path, st.Uid, st.Mode&0o777), "chown root " + path + "; chmod 600 " + path}
	}
	dir := filepath.Dir(path)
	if err := unix.Stat(dir, &st); err != nil {
		return diagnosis{"socket", notChecked, err.Error(), ""}
	}
	if st.Uid != 0 || st.Mode&0o022 != 0 {
		return diagnosis{"socket", isProblem, fmt.Sprintf("users other than root may replace what is in %s (owner %d, mode %#o)", dir, st.Uid, st.Mode&0o777), "chown root " + dir + "; chmod go-w " + dir}
	}
	return diagnosis{"socket", isFine, path, ""}
}

// leastFree is the share of a file system below which it is worth a warning, in percent.
const leastFree = 10

func checkRoot(root string) diagnosis {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return diagnosis{"root", notChecked, fmt.Sprintf("%s: %v", root, err), ""}
	}
	free, all := st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize)
	detail := fmt.Sprintf("%s: %s of %s are free", root, size(free), size(all))
	if free < all/100*leastFree {
		return diagnosis{"root", isWarning, detail, "remove images, or enlarge the file system"}
	}
	return diagnosis{"root", isFine, detail, ""}
}

// checkState looks at whether a reboot empties the directory of mount points, as it has to.
func checkState(state string) diagnosis {
	var st unix.Statfs_t
	if err := unix.Statfs(state, &st); err != nil {
		return diagnosis{"state", notChecked, fmt.Sprintf("%s: %v", state, err), ""}
	}
	if st.Type != unix.TMPFS_MAGIC {
		return diagnosis{"state", isWarning, state + " is not on a tmpfs: nobody may empty it at a reboot", `put "state" of the daemon's configuration below /run`}
	}
	return diagnosis{"state", isFine, state, ""}
}

// socketUnit is what starts the daemon, and holds its socket while it is restarted.
const socketUnit = "containerd-squash-grpc.socket"

// checkUnit asks systemd, which runs if there is the directory running, whether it starts the daemon after a reboot.
func checkUnit(ctx context.Context, running string) []diagnosis {
	if _, err := os.Stat(running); err != nil {
		return nil // somebody else looks after the daemon
	}
	out, err := exec.CommandContext(ctx, "systemctl", "is-enabled", socketUnit).CombinedOutput()
	if state := strings.TrimSpace(string(out)); err != nil {
		return []diagnosis{{"unit", isWarning, fmt.Sprintf("%s is not started by systemd after a reboot: %s", socketUnit, cmp.Or(state, err.Error())), "systemctl enable --now " + socketUnit}}
	}
	return []diagnosis{{"unit", isFine, socketUnit + " is enabled", ""}}
}

// lost is what squash does without when the kernel lacks a capability.
var lost = map[string]string{
	"file-backed": "a loop device is under every flat image",
	"loop":        "there is no way out if file-backed mounts fail",
	"lz4":         "contents cannot be compressed with lz4",
	"zstd":        "contents are compressed less well, or not at all",
	"fragments":   "small contents take a block each",
}

func checkKernel(daemon *adminapi.InspectResponse) (found []diagnosis) {
	for _, c := range daemon.Capabilities {
		switch {
		case c.Present:
			found = append(found, diagnosis{"kernel: " + c.Name, isFine, "", ""})
		case c.Name == "loop" && daemon.Mount == "file", c.Name == "lz4" && slices.ContainsFunc(daemon.Capabilities, func(o *adminapi.Capability) bool { return o.Name == "zstd" && o.Present }):
			found = append(found, diagnosis{"kernel: " + c.Name, isFine, "not there, and not needed", ""})
		default:
			found = append(found, diagnosis{"kernel: " + c.Name, isWarning, cmp.Or(lost[c.Name], "not there"), c.Detail})
		}
	}
	return found
}

// probeKernel tries what the daemon would, on the file system of its usual root.
func probeKernel(ctx context.Context) []diagnosis {
	dir := defaultRoot
	for {
		if _, err := os.Stat(dir); err == nil || dir == "/" {
			break
		}
		dir = filepath.Dir(dir)
	}
	caps, err := mounts.Probe(ctx, dir)
	if err != nil {
		return []diagnosis{{"kernel", isProblem, err.Error(), "see the error"}}
	}
	asked := &adminapi.InspectResponse{Mount: "loop"}
	for _, c := range caps.All() {
		asked.Capabilities = append(asked.Capabilities, &adminapi.Capability{Name: c.Name, Present: c.Present, Detail: c.Reason})
		if c.Name == "file-backed" && c.Present {
			asked.Mount = "file"
		}
	}
	return checkKernel(asked)
}

// checkContainerd looks at what the running containerd has loaded.
func checkContainerd(daemon *adminapi.InspectResponse) (found []diagnosis) {
	if daemon.ContainerdError != "" {
		return []diagnosis{{"containerd", isProblem, "it does not answer at " + daemon.ContainerdAddress + ": " + daemon.ContainerdError,
			"systemctl start containerd, or correct containerd_address in the daemon's configuration"}}
	}
	abilities, err := containerdconfig.AbilitiesOf(daemon.ContainerdVersion)
	switch version := "version " + daemon.ContainerdVersion; {
	case err != nil:
		found = append(found, diagnosis{"containerd", notChecked, err.Error(), ""})
	case !abilities.Differ:
		found = append(found, diagnosis{"containerd", isWarning, version + ": layers are unpacked twice, for it does not know squash's differ", "upgrade to 1.7.6 or newer"})
	case !abilities.Rebase, !abilities.Reuse:
		found = append(found, diagnosis{"containerd", isFine, version + "; 2.2 unpacks layers side by side, 2.4 does not download layers that are there", ""})
	default:
		found = append(found, diagnosis{"containerd", isFine, version, ""})
	}
	var snapshotter, differ *adminapi.Plugin
	for _, p := range daemon.Plugins {
		if p.Error != "" {
			found = append(found, diagnosis{"plugin " + p.Id, isProblem, p.Error, restartContainerd})
		}
		switch p.Type {
		case "io.containerd.snapshotter.v1":
			snapshotter = p
		case "io.containerd.differ.v1":
			differ = p
		}
	}
	switch {
	case snapshotter == nil:
		found = append(found, diagnosis{"plugins", isProblem, "containerd has loaded no snapshotter that leads to this daemon", mergeThen + restartContainerd})
	case differ == nil && slices.Contains(snapshotter.Capabilities, "rebase"):
		found = append(found, diagnosis{"plugins", isProblem, `capability "rebase" is set without squash's differ: pulls fail`, mergeThen + restartContainerd})
	case differ == nil && abilities.Differ:
		found = append(found, diagnosis{"plugins", isWarning, "squash's differ is not loaded: layers are unpacked twice", mergeThen + restartContainerd})
	case snapshotter.Root != "" && snapshotter.Root != daemon.Root:
		found = append(found, diagnosis{"plugins", isWarning, fmt.Sprintf("containerd takes %s for the daemon's root, which is %s: the kubelet watches the wrong file system", snapshotter.Root, daemon.Root),
			"correct exports.root of proxy_plugins." + snapshotter.Id})
	default:
		found = append(found, diagnosis{"plugins", isFine, "containerd has loaded them", ""})
	}
	return found
}

func checkDecompressor(daemon *adminapi.InspectResponse) diagnosis {
	if daemon.Decompressor == "" {
		return diagnosis{"decompressor", isWarning, "there is neither igzip nor unpigz: pulls of gzip layers are slower", "install package isal or pigz, restart containerd-squash-grpc"}
	}
	return diagnosis{"decompressor", isFine, daemon.Decompressor, ""}
}

// checkConfig looks at the files that containerd reads at its next start.
func checkConfig(ctx context.Context, cmd *cli.Command, daemon *adminapi.InspectResponse) (found []diagnosis) {
	main, imports, err := readConfig(cmd.String("config"))
	var plan *containerdconfig.Plan
	if err == nil {
		want := containerdconfig.Want{Address: strings.TrimPrefix(cmd.String("address"), "unix://"), Root: cmp.Or(daemon.GetRoot(), defaultRoot),
			Containerd: cmp.Or(daemon.GetContainerdVersion(), programVersion(ctx)), Kubernetes: cmd.Bool("kubernetes")}
		plan, err = containerdconfig.Merge(main, imports, want)
	}
	if err != nil {
		return []diagnosis{{"configuration", notChecked, err.Error(), "name containerd's configuration with --config"}}
	}
	for _, i := range plan.Items {
		d := diagnosis{"configuration", isProblem, i.Key + " is missing: " + i.Why, i.Lines}
		if i.Advice {
			d.State = isWarning
		}
		if i.ByHand != "" {
			d.Detail = i.Key + ": " + i.Why + "; " + i.ByHand
		}
		found = append(found, d)
	}
	if len(found) == 0 {
		return []diagnosis{{"configuration", isFine, "nothing is missing in " + main.Name, ""}}
	}
	return append(found, diagnosis{"configuration", isWarning, main.Name + " can be completed by squashctl", mergeThen + restartContainerd})
}
