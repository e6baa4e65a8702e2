// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/squash-snapshotter/squash/integration/rootfs"
)

// install has npm bring the packages of s, and gives the directory node_modules. If s has no lock file yet, npm chooses
// the versions of what the packages depend on, and s gets the lock file. Scripts of packages are not run.
func (c *Cache) install(ctx context.Context, s *npmState) (string, error) {
	manifest, err := json.MarshalIndent(map[string]any{
		"name": "tools", "version": "1.0.0", "private": true, "dependencies": s.Dependencies,
	}, "", "  ")
	if err != nil {
		return "", err
	}
	dir := filepath.Join(c.dir, "npm", fmt.Sprintf("%x", sha256.Sum256(append(manifest, s.Lock...))))
	modules := filepath.Join(dir, "node_modules")
	if _, err := os.Stat(modules); s.Lock != nil && err == nil {
		return modules, nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if _, err := exec.LookPath("npm"); err != nil {
		return "", fmt.Errorf("%w: the large image has npm packages; install npm (package npm or nodejs)", err)
	}
	if err := os.MkdirAll(filepath.Join(c.dir, "npm"), 0o755); err != nil {
		return "", err
	}
	aside, err := os.MkdirTemp(filepath.Join(c.dir, "npm"), "new-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(aside)
	verb := "install"
	if s.Lock != nil {
		verb = "ci"
		if err := os.WriteFile(filepath.Join(aside, "package-lock.json"), s.Lock, 0o644); err != nil {
			return "", err
		}
	}
	if err := os.WriteFile(filepath.Join(aside, "package.json"), manifest, 0o644); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "npm", verb, "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--omit-lockfile-registry-resolved")
	cmd.Dir = aside
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("npm %s: %w\n%s\n%s", verb, err, out, remedy)
	}
	if s.Lock == nil {
		text, err := os.ReadFile(filepath.Join(aside, "package-lock.json"))
		if err != nil {
			return "", err
		}
		if s.Lock, err = compact(text); err != nil {
			return "", fmt.Errorf("package-lock.json: %w", err)
		}
		modules = filepath.Join(c.dir, "npm", fmt.Sprintf("%x", sha256.Sum256(append(manifest, s.Lock...))), "node_modules")
	}
	if err := os.RemoveAll(filepath.Dir(modules)); err != nil {
		return "", err
	}
	return modules, os.Rename(aside, filepath.Dir(modules))
}

// compact gives JSON the form that it has in the lock, whoever wrote it.
func compact(text []byte) (json.RawMessage, error) {
	var value any
	if err := json.Unmarshal(text, &value); err != nil {
		return nil, err
	}
	return json.Marshal(value)
}

// copyModules puts a directory node_modules into the tree.
func copyModules(t *rootfs.Tree, name, modules string) error {
	return t.Copy(name, modules, func(rel string) bool { return rel != ".package-lock.json" && rel != ".cache" },
		func(_ string, mode fs.FileMode) bool { return mode&0o100 != 0 })
}
