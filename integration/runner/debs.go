// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/squash-snapshotter/squash/integration/rootfs"
)

// remedy ends the errors of programs that want the network.
const remedy = "the large image is made of downloaded packages: see that this machine's apt, npm and go can reach " +
	"their archives, or copy the cache directory of a machine where they can"

// apt asks the archives that this machine's apt is configured for. Its lists and caches are its own, and it believes
// that nothing is installed.
type apt struct{ dir, debs string }

func (c *Cache) apt() (*apt, error) {
	a := &apt{dir: filepath.Join(c.dir, "apt"), debs: filepath.Join(c.dir, "debs")}
	for _, d := range []string{filepath.Join(a.dir, "lists", "partial"), filepath.Join(a.dir, "cache", "archives", "partial"), a.debs} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	for _, program := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%w: the large image can be made on Debian and its derivatives, and its cache directory copied from there", err)
		}
	}
	return a, os.WriteFile(a.status(), nil, 0o644)
}

func (a *apt) status() string { return filepath.Join(a.dir, "status") }

func (a *apt) run(ctx context.Context, program string, args ...string) (string, error) {
	args = append([]string{
		"-q=2", "-o", "Dir::State::lists=" + filepath.Join(a.dir, "lists"), "-o", "Dir::State::status=" + a.status(),
		"-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"), "-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1",
		"-o", "Acquire::Retries=3",
	}, args...)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = a.debs
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args[12:], " "), err, errs.String())
	}
	return out.String(), nil
}

// update gets the lists of packages. Of several archives one may be out of reach.
func (a *apt) update(ctx context.Context) error {
	if _, err := a.run(ctx, "apt-get", "update"); err != nil {
		if found, _ := filepath.Glob(filepath.Join(a.dir, "lists", "*_Packages*")); len(found) == 0 {
			return fmt.Errorf("%w\n%s", err, remedy)
		}
	}
	return nil
}

// closure gives the packages that an installation of some on an empty system brings, at their newest versions.
func (a *apt) closure(ctx context.Context, names []string) ([]deb, error) {
	args := append([]string{"install", "--yes", "--no-install-recommends", "--print-uris"}, names...)
	out, err := a.run(ctx, "apt-get", args...)
	if err != nil {
		return nil, err
	}
	return parseURIs(out)
}

// parseURIs reads what apt-get --print-uris says: 'URI' FILE SIZE HASH. The file is NAME_VERSION_ARCHITECTURE.deb.
func parseURIs(out string) ([]deb, error) {
	var list []deb
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 3 || !strings.HasPrefix(f[0], "'") {
			continue
		}
		parts := strings.Split(strings.TrimSuffix(f[1], ".deb"), "_")
		if len(parts) != 3 {
			return nil, fmt.Errorf("apt names a file %q, which is not of the form NAME_VERSION_ARCHITECTURE.deb", f[1])
		}
		version, err := url.PathUnescape(parts[1])
		if err != nil {
			return nil, fmt.Errorf("apt names a file %q: %w", f[1], err)
		}
		list = append(list, deb{Name: parts[0], Version: version, File: f[1]})
	}
	slices.SortFunc(list, func(a, b deb) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// older gives for every package of a list that the archives have in an older version, too, the newest of the older.
func (a *apt) older(ctx context.Context, list []deb) (map[string]deb, error) {
	args := []string{"madison"}
	for _, d := range list {
		args = append(args, d.Name)
	}
	out, err := a.run(ctx, "apt-cache", args...)
	if err != nil {
		return nil, err
	}
	var wanted []string
	for _, d := range list {
		for _, version := range madison(out, d.Name) {
			if version != d.Version {
				wanted = append(wanted, d.Name+"="+version)
				break
			}
		}
	}
	found := make(map[string]deb)
	if len(wanted) == 0 {
		return found, nil
	}
	uris, err := a.run(ctx, "apt-get", append([]string{"download", "--print-uris"}, wanted...)...)
	if err != nil {
		return nil, err
	}
	old, err := parseURIs(uris)
	for _, d := range old {
		found[d.Name] = d
	}
	return found, err
}

// madison gives the versions of a package in what apt-cache madison says, newest first.
func madison(out, name string) []string {
	var versions []string
	for line := range strings.Lines(out) {
		f := strings.Split(line, "|")
		if len(f) < 3 || strings.TrimSpace(f[0]) != name || strings.Contains(f[2], "Sources") {
			continue
		}
		if v := strings.TrimSpace(f[1]); !slices.Contains(versions, v) {
			versions = append(versions, v)
		}
	}
	return versions
}

// download gets what is missing and sets the digests, or compares them with those that are set.
func (a *apt) download(ctx context.Context, list []deb) error {
	const batch = 100 // keeps the command line short
	var missing []string
	for _, d := range list {
		if _, err := os.Stat(filepath.Join(a.debs, d.File)); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, d.Name+"="+d.Version)
		} else if err != nil {
			return err
		}
	}
	for part := range slices.Chunk(missing, batch) {
		if _, err := a.run(ctx, "apt-get", append([]string{"download"}, part...)...); err != nil {
			return fmt.Errorf("%w\n%s; if the archive no longer has these versions, delete lock.json there", err, remedy)
		}
	}
	for i := range list {
		sum, err := fileDigest(filepath.Join(a.debs, list[i].File))
		if err != nil {
			return fmt.Errorf("downloaded package: %w", err)
		}
		if list[i].SHA256 == "" {
			list[i].SHA256 = sum
		} else if list[i].SHA256 != sum {
			return fmt.Errorf("%s in %s has changed: delete it, or lock.json beside that directory", list[i].File, a.debs)
		}
	}
	return nil
}

func fileDigest(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// unpackDeb lays the files of a package over the tree, and notes it where dpkg does. Its scripts are not run.
func unpackDeb(ctx context.Context, t *rootfs.Tree, file string) error {
	control, err := exec.CommandContext(ctx, "dpkg-deb", "--field", file).Output()
	if err != nil {
		return fmt.Errorf("dpkg-deb --field %s: %w", file, err)
	}
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", file)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	stream, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("dpkg-deb: %w", err)
	}
	in := bufio.NewReaderSize(stream, 1<<16)
	unpacked := t.Unpack(in)
	_, drained := io.Copy(io.Discard, in)
	if err := errors.Join(unpacked, drained, cmd.Wait()); err != nil {
		return fmt.Errorf("dpkg-deb --fsys-tarfile %s: %w\n%s", file, err, errs.String())
	}
	return t.Append("var/lib/dpkg/status", string(control)+"\n")
}
