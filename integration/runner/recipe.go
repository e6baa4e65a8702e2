// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/squash-snapshotter/squash/integration/rootfs"
)

// recipe changes whenever what is made from the same versions changes.
const recipe = "runner 1"

// goVersion is that of the toolchain in the image.
const goVersion = "go1.26.6"

// Where the image has things.
const (
	goDir    = "usr/local/go"
	toolsDir = "opt/tools"
	workDir  = "home/runner/work"
	archives = "var/cache/apt/archives"
)

// The user that CI jobs run as.
const runnerID = 1001

// Variant tells the two images apart: the second is the first, rebuilt a week later with other packages in one layer.
type Variant int

// The images.
const (
	First Variant = iota
	Second
)

func (v Variant) built() time.Time {
	return time.Date(2026, time.March, 2+7*int(v), 4, 5, 6, 0, time.UTC)
}

// debSteps are the installations, by name. The order is that of the layers. Only one of the services is in an image.
var debSteps = []struct {
	name  string
	debs  []string
	title string
}{
	{"base", []string{"base-files", "base-passwd", "bash", "bsdutils", "coreutils", "dash", "debianutils", "diffutils", "dpkg",
		"findutils", "grep", "gzip", "hostname", "init-system-helpers", "libc-bin", "login", "mount", "ncurses-base", "ncurses-bin",
		"passwd", "perl-base", "sed", "sysvinit-utils", "tar", "util-linux", "apt", "ca-certificates", "tzdata"},
		"base: a small Debian"},
	{"build", []string{"gcc", "g++", "make", "cmake", "binutils", "libc6-dev", "autoconf", "pkg-config", "gdb"},
		"apt-get install: compilers"},
	{"cli", []string{"git", "openssh-client", "curl", "wget", "jq", "unzip", "zip", "rsync", "gnupg", "sudo", "xz-utils"},
		"apt-get install: command line tools, archives left behind"},
	{"python", []string{"python3", "python3-pip", "python3-venv", "python3-dev", "python3-numpy"},
		"apt-get install: Python"},
	{"node", []string{"nodejs"},
		"apt-get install: Node"},
	{"services 1", []string{"postgresql"},
		"apt-get install: services"},
	{"services 2", []string{"mariadb-client", "redis-server", "php-cli", "ruby"},
		"apt-get install: services"},
}

// reinstalled are packages that the upgrade installs once more even if there is no newer version.
var reinstalled = []string{"cpp-12", "g++-12", "libstdc++-12-dev", "libpython3.11-stdlib", "cmake-data"}

// npmSteps are the tools, and the same somewhat later.
var npmSteps = map[string]map[string]string{
	"tools": {
		"@babel/core": "7.24.5", "@babel/preset-env": "7.24.5", "eslint": "8.57.0", "jest": "29.7.0", "npm": "10.7.0",
		"pnpm": "9.1.0", "prettier": "3.2.5", "react": "18.3.1", "react-dom": "18.3.1", "typescript": "5.4.5",
		"webpack": "5.91.0", "webpack-cli": "5.1.4", "yarn": "1.22.22",
	},
	"upgrade": {"npm": "10.8.1", "prettier": "3.3.0", "typescript": "5.5.2"},
}

// step is one layer.
type step struct {
	title string
	do    func(context.Context, *kitchen, *rootfs.Tree) error
}

// kitchen is what the steps are made of.
type kitchen struct {
	debs      string            // directory of packages
	old, new  map[string][]deb  // of each installation: what it installs, and what an upgrade makes of it
	npm       map[string]string // directories node_modules
	toolchain string            // directory of the Go toolchain
	variant   Variant
	built     time.Time
}

func steps(v Variant) []step {
	var list []step
	install := func(name string) {
		for _, s := range debSteps {
			if s.name == name {
				list = append(list, step{s.title, func(ctx context.Context, k *kitchen, t *rootfs.Tree) error {
					return k.install(ctx, t, name)
				}})
			}
		}
	}
	for _, name := range []string{"base", "build", "cli", "python", "node"} {
		install(name)
	}
	list = append(list,
		step{"tar -C /usr/local: the Go toolchain", goToolchain},
		step{"npm install: tools", func(_ context.Context, k *kitchen, t *rootfs.Tree) error {
			return copyModules(t, toolsDir+"/node_modules", k.npm["tools"])
		}},
	)
	install(fmt.Sprintf("services %d", v+1))
	return append(list,
		step{"chown -R: Go and tools for the runner", chown},
		step{"apt-get upgrade, and some installed once more", upgrade},
		step{"npm install: newer versions of some tools", upgradeTools},
		step{"chmod -R g+w, touch", chmod},
		step{"rm: archives, documentation, translations, tests", cleanUp},
		step{"git clone: a project with vendored copies", project},
	)
}

// install unpacks the packages of a step in their older versions, as they were when the step was first built.
func (k *kitchen) install(ctx context.Context, t *rootfs.Tree, name string) error {
	if name == "base" {
		if err := skeleton(t); err != nil {
			return err
		}
	}
	for _, d := range k.old[name] {
		if err := k.unpack(ctx, t, d); err != nil {
			return err
		}
		if name == "cli" {
			keep := func(rel string) bool { return rel == "." || rel == d.File }
			if err := t.Copy(archives, k.debs, keep, neverExecutable); err != nil {
				return err
			}
		}
	}
	return nil
}

// skeleton has what packages expect and scripts of packages would make.
func skeleton(t *rootfs.Tree) error {
	for _, name := range []string{"bin", "lib", "lib64", "sbin"} {
		if err := first(t.Dir("usr/"+name, 0o755), t.Symlink(name, "usr/"+name)); err != nil {
			return err
		}
	}
	return first(
		t.File("etc/passwd", 0o644, "root:x:0:0::/root:/bin/bash\nrunner:x:1001:1001::/home/runner:/bin/bash\n"),
		t.File("etc/group", 0o644, "root:x:0:\nrunner:x:1001:\n"),
		t.File("etc/hosts", 0o644, "127.0.0.1 localhost\n"),
		t.Dir("home/runner", 0o755),
		t.Chown("home/runner", runnerID, runnerID),
	)
}

func (k *kitchen) unpack(ctx context.Context, t *rootfs.Tree, d deb) error {
	if err := unpackDeb(ctx, t, filepath.Join(k.debs, d.File)); err != nil {
		return err
	}
	return t.Append("var/log/dpkg.log", fmt.Sprintf("%s install %s %s\n", t.Now.Format(time.DateTime), d.Name, d.Version))
}

func goToolchain(_ context.Context, k *kitchen, t *rootfs.Tree) error {
	// The module cache has no executable files.
	return t.Copy(goDir, k.toolchain, nil, func(rel string, _ fs.FileMode) bool {
		return strings.HasPrefix(rel, "bin/") || strings.HasPrefix(rel, "pkg/tool/")
	})
}

func chown(_ context.Context, _ *kitchen, t *rootfs.Tree) error {
	return first(t.Chown(goDir, runnerID, runnerID), t.Chown(toolsDir, runnerID, runnerID))
}

func upgrade(ctx context.Context, k *kitchen, t *rootfs.Tree) error {
	for _, s := range debSteps {
		for i, d := range k.new[s.name] {
			if old := k.old[s.name]; i >= len(old) || old[i] == d && !slices.Contains(reinstalled, d.Name) {
				continue
			}
			if strings.HasPrefix(s.name, "services") && s.name != fmt.Sprintf("services %d", k.variant+1) {
				continue
			}
			if err := k.unpack(ctx, t, d); err != nil {
				return err
			}
		}
	}
	return nil
}

func upgradeTools(_ context.Context, k *kitchen, t *rootfs.Tree) error {
	for name := range npmSteps["upgrade"] {
		dir := path.Join(toolsDir, "node_modules", name)
		if err := t.Remove(dir); err != nil {
			return err
		}
		all := func(rel string) bool { return true }
		err := t.Copy(dir, filepath.Join(k.npm["upgrade"], name), all, func(_ string, mode fs.FileMode) bool { return mode&0o100 != 0 })
		if err := first(err, t.Chown(dir, runnerID, runnerID)); err != nil {
			return err
		}
	}
	return nil
}

func chmod(_ context.Context, _ *kitchen, t *rootfs.Tree) error {
	return first(
		t.Chmod(toolsDir+"/node_modules/typescript", func(mode int64) int64 { return mode | 0o020 }),
		t.Chmod("usr/share/perl", func(mode int64) int64 { return mode | 0o020 }),
		t.Touch("usr/lib/git-core"),
	)
}

// cleanUp deletes as rm -rf does: what is not there does not matter.
func cleanUp(_ context.Context, _ *kitchen, t *rootfs.Tree) error {
	for _, pattern := range []string{
		archives + "/*.deb", "usr/share/doc/*", "usr/share/man/*", "usr/share/locale/*", "usr/share/info/*",
		goDir + "/src/cmd", goDir + "/src/*/testdata", goDir + "/src/*/*/testdata", toolsDir + "/node_modules/*/docs",
		toolsDir + "/node_modules/react-dom/umd", "usr/lib/python3/dist-packages/numpy/*/tests",
	} {
		if err := t.Remove(pattern); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// project is a checkout whose directory of dependencies repeats what is in the image already.
func project(_ context.Context, k *kitchen, t *rootfs.Tree) error {
	err := first(
		t.File(workDir+"/README.md", 0o644, "# A project\n\nBuilt "+t.Now.Format(time.DateOnly)+".\n"),
		copyModules(t, workDir+"/node_modules/typescript", filepath.Join(k.npm["upgrade"], "typescript")),
	)
	for _, part := range []string{"compress", "crypto", "encoding", "go", "image", "net", "runtime"} {
		err = first(err, t.Copy(workDir+"/vendor/"+part, filepath.Join(k.toolchain, "src", part), nil, neverExecutable))
	}
	return first(err, t.Chown(workDir, runnerID, runnerID))
}

func neverExecutable(string, fs.FileMode) bool { return false }

// first gives the first error of calls that were made in order.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
