// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
	"github.com/squash-snapshotter/squash/internal/containerdconfig"
)

// defaultRoot is that of a daemon that is not told otherwise.
const defaultRoot = "/var/lib/containerd-squash-grpc"

// isMissing is install-config's exit code when something is to be added, or is left to be.
const isMissing = 1

func installConfigCommand() *cli.Command {
	return &cli.Command{
		Name:      "install-config",
		Usage:     "add to containerd's configuration what squash needs",
		UsageText: "squashctl [global options] install-config [--write] [--config FILE] [--kubernetes]",
		Description: `Shows what containerd's configuration lacks, why, and how the file would change. What the file has stays as it is, byte
for byte; --kubernetes alone changes a value, the snapshotter of Kubernetes' images. What cannot be added safely is shown
with its lines, to be added by hand.

With --write the file is replaced, after containerd itself has read the new one (if its program is in PATH), and the old one
is kept beside it as FILE.squash-backup-TIME. containerd is not restarted. The daemon tells its address and root, and
containerd's version, if it runs; otherwise they are --address, the default root, and what "containerd --version" says.

Exit codes:
   0  nothing is missing, or all of it was written
   1  something is missing: without --write it can be added, with --write it is left to be added by hand
   4  it could not be done; the file is as it was

Examples:
   squashctl install-config
      show what would change
   squashctl install-config --write && systemctl restart containerd
      change it
   squashctl install-config --kubernetes
      with all images of Kubernetes in squash`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "write", Usage: "change the file"},
			&cli.StringFlag{Name: "config", Value: "/etc/containerd/config.toml", Usage: "containerd's configuration is `FILE`"},
			&cli.BoolFlag{Name: "kubernetes", Usage: "have every pod's images in squash"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			err := installConfig(ctx, cmd)
			if _, ok := errors.AsType[result](err); ok || err == nil {
				return err
			}
			return fmt.Errorf("install-config: %w", err)
		},
	}
}

func installConfig(ctx context.Context, cmd *cli.Command) error {
	if err := noArguments(cmd); err != nil {
		return err
	}
	if asJSON(cmd) {
		return usageError{errors.New("--format json: install-config prints a diff alone")}
	}
	main, imports, err := readConfig(cmd.String("config"))
	if err != nil {
		return err
	}
	plan, err := containerdconfig.Merge(main, imports, wanted(ctx, cmd))
	if err != nil {
		return err
	}
	diff := containerdconfig.Diff(main.Name, main.Text, plan.Text)
	byHand, err := printPlan(cmd.Root().Writer, plan, diff)
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	switch {
	case len(plan.Items) == 0:
		return nil
	case !cmd.Bool("write"):
		return result(isMissing)
	case diff != "":
		if line := containerdconfig.IsGenerated(main.Text); line != "" {
			return fmt.Errorf("%s is written by another program, which would undo the change (%s): change what it is made from", main.Name, printable(line))
		}
		if err := writeConfig(ctx, cmd.Root().Writer, cmd.Root().ErrWriter, main, plan.Text); err != nil {
			return err
		}
	}
	if byHand {
		return result(isMissing)
	}
	return nil
}

// readConfig reads containerd's configuration, which may be missing, and what it imports.
func readConfig(path string) (containerdconfig.File, []containerdconfig.File, error) {
	main := containerdconfig.File{Name: path}
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return main, nil, err
	}
	main.Text = text
	var files []containerdconfig.File
	seen := map[string]bool{path: true}
	for pending := []containerdconfig.File{main}; len(pending) > 0; {
		patterns, err := containerdconfig.Imports(pending[0])
		if err != nil {
			return main, nil, err
		}
		pending = pending[1:]
		for _, pattern := range patterns {
			names := []string{pattern}
			if strings.Contains(pattern, "*") {
				if names, err = filepath.Glob(pattern); err != nil {
					return main, nil, fmt.Errorf("imports of %s: %w", path, err)
				}
			}
			for _, name := range names {
				if seen[name] {
					continue
				}
				seen[name] = true
				text, err := os.ReadFile(name)
				if err != nil {
					return main, nil, fmt.Errorf("%s imports a file that cannot be read: %w", path, err)
				}
				f := containerdconfig.File{Name: name, Text: text}
				files, pending = append(files, f), append(pending, f)
			}
		}
	}
	return main, files, nil
}

// wanted is what the daemon says, if it runs, and else what is usual.
func wanted(ctx context.Context, cmd *cli.Command) containerdconfig.Want {
	w := containerdconfig.Want{Address: strings.TrimPrefix(cmd.String("address"), "unix://"), Root: defaultRoot, Kubernetes: cmd.Bool("kubernetes")}
	daemon, err := ask(ctx, cmd.String("address"), func(ctx context.Context, daemon adminapi.AdminClient) (*adminapi.InspectResponse, error) {
		return daemon.Inspect(ctx, &adminapi.InspectRequest{})
	})
	if err != nil {
		fmt.Fprintf(cmd.Root().ErrWriter, "squashctl: the daemon's root is taken to be %s: %v\n", w.Root, err)
	} else {
		w.Root, w.Containerd = daemon.Root, daemon.ContainerdVersion
	}
	if w.Containerd == "" {
		w.Containerd = programVersion(ctx)
	}
	return w
}

// programVersion asks the program containerd for its version; empty if there is none.
func programVersion(ctx context.Context) string {
	// containerd github.com/containerd/containerd/v2 v2.4.2 <revision>
	said, err := exec.CommandContext(ctx, "containerd", "--version").Output()
	if fields := strings.Fields(string(said)); err == nil && len(fields) > 2 {
		return fields[2]
	}
	return ""
}

// printPlan tells what is missing, how the file changes, and whether something is left to a person.
func printPlan(w io.Writer, plan *containerdconfig.Plan, diff string) (byHand bool, err error) {
	var text strings.Builder
	if len(plan.Items) == 0 {
		text.WriteString("nothing is missing in containerd's configuration\n")
	}
	for _, i := range plan.Items {
		kind := "missing"
		if i.Advice {
			kind = "advised"
		}
		fmt.Fprintf(&text, "%s: %s\n   %s\n", kind, i.Key, i.Why)
		if i.ByHand != "" {
			byHand = true
			fmt.Fprintf(&text, "   to be done by hand: %s\n      %s\n", i.ByHand, strings.ReplaceAll(strings.TrimSuffix(i.Lines, "\n"), "\n", "\n      "))
		}
	}
	if diff != "" {
		text.WriteString("\n" + diff)
	}
	_, err = io.WriteString(w, text.String())
	return byHand, err
}

// writeConfig replaces the file, unless containerd cannot read what is to be in it. A symlink stays: its target is replaced.
func writeConfig(ctx context.Context, out, errs io.Writer, main containerdconfig.File, text []byte) (err error) {
	path := main.Name
	mode, uid, gid := fs.FileMode(0o644), 0, 0
	target, err := filepath.EvalSymlinks(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		path = target
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return fmt.Errorf("stat %s: %w", path, err)
		}
		mode, uid, gid = fs.FileMode(st.Mode&0o777), int(st.Uid), int(st.Gid)
	}
	// Beside the old file, so that relative imports are found.
	f, err := os.CreateTemp(filepath.Dir(path), ".squash-*.new")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	err = cmp.Or(err, f.Chown(uid, gid), f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := validate(ctx, errs, f.Name()); err != nil {
		return err
	}
	backup := ""
	if target != "" {
		backup = path + ".squash-backup-" + time.Now().UTC().Format("20060102T150405Z")
		if now, err := os.ReadFile(path); err != nil || string(now) != string(main.Text) {
			return fmt.Errorf("%s was changed meanwhile: try again (%w)", path, cmp.Or(err, errors.New("it was read before")))
		}
		// A link never replaces a file that is there.
		if err := os.Link(path, backup); err != nil {
			return fmt.Errorf("keep the old file: %w", err)
		}
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return err
	}
	if now, err := os.ReadFile(path); err != nil || string(now) != string(text) {
		return fmt.Errorf("%s does not have what was written: %w", path, cmp.Or(err, errors.New("somebody else writes it")))
	}
	done := "\n" + path + " was written"
	if backup != "" {
		done += "; the old one is " + backup
	}
	_, err = io.WriteString(out, done+"\nNow: systemctl restart containerd\n")
	return err
}

// validate has containerd read a file, if its program is there.
func validate(ctx context.Context, errs io.Writer, path string) error {
	program, err := exec.LookPath("containerd")
	if err != nil {
		fmt.Fprintln(errs, "squashctl: the new file is not tried out: there is no containerd in PATH")
		return nil
	}
	if said, err := exec.CommandContext(ctx, program, "--config", path, "config", "dump").CombinedOutput(); err != nil {
		return fmt.Errorf("containerd does not read the new file, and nothing was changed: %w: %s", err, printable(strings.TrimSpace(string(said))))
	}
	return nil
}
