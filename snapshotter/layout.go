// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/failpoint"
	"github.com/squash-snapshotter/squash/internal/flatten"
)

// formatVersion is the version of everything below the root.
const formatVersion = 1

const tmpSuffix = ".tmp"

// layout knows every path of the store. Only IDs that the metastore gave and
// digests that were computed here become names.
//
//	<root>/version, boot, reserve, metadata.db, pack, index/      (pack and index: package pack)
//	       layers/<id>/{toc,source,durable,lost}
//	       images/<chain>{,-<layers>}.{erofs,refs}
//	       snapshots/<id>/{fs,work,extract,staged,skeleton.erofs}
//	<state>/mnt/<chain>{,-<layers>}, skeletons/<id>  mount points
type layout struct{ root, state string }

func makeLayout(root, state string) (layout, error) {
	l := layout{}
	for _, d := range []struct {
		to         *string
		name, path string
	}{{&l.root, "root", root}, {&l.state, "state", state}} {
		abs, err := filepath.Abs(d.path)
		if err != nil || d.path == "" {
			return l, fmt.Errorf("%s directory %q: not a path: %w", d.name, d.path, errdefs.ErrInvalidArgument)
		}
		if err := checkPath(abs); err != nil {
			return l, fmt.Errorf("%s directory: %w", d.name, err)
		}
		if err := os.MkdirAll(abs, 0o700); err != nil {
			return l, fmt.Errorf("%s directory: %w", d.name, err)
		}
		// The kernel lists mounts by their real paths.
		real, err := filepath.EvalSymlinks(abs)
		if err == nil {
			err = checkPath(real)
		}
		if err != nil {
			return l, fmt.Errorf("%s directory: %w", d.name, err)
		}
		*d.to = real
	}
	if err := l.checkVersion(); err != nil {
		return l, err
	}
	for _, dir := range []string{l.layersDir(), l.imagesDir(), l.snapshotsDir(), l.imageMounts(), l.skeletonMounts()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return l, err
		}
	}
	failpoint.Hit("layout.mkdir")
	// What the state directory holds is reached by clients' mounts as root
	// only, but its own path must be open to the daemon's user alone.
	return l, errors.Join(os.Chmod(l.root, 0o700), syncDir(l.root))
}

// checkPath refuses paths that overlay options, containerd's parsing of them or
// the kernel's list of mounts would split or escape.
func checkPath(path string) error {
	if strings.ContainsAny(path, ",:\\ \t\n") {
		return fmt.Errorf("%q: overlayfs takes no path with a comma, colon, backslash or blank: %w", path, errdefs.ErrInvalidArgument)
	}
	return nil
}

// checkVersion refuses a store of a newer format and marks a new one.
func (l layout) checkVersion() error {
	path := filepath.Join(l.root, "version")
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) || err == nil && len(b) == 0 { // empty: a power cut came before it was written
		err = writeFile(path, true, func(w io.Writer) error { _, err := fmt.Fprintln(w, formatVersion); return err })
		return errors.Join(err, syncDir(l.root))
	}
	if err != nil {
		return err
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return fmt.Errorf("%s: %q is no version; is %s a squash root?: %w", path, b, l.root, errdefs.ErrFailedPrecondition)
	}
	if v > formatVersion {
		return fmt.Errorf("%s was written by a newer squash (format %d, known here up to %d): upgrade, or use another root: %w", l.root, v, formatVersion, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func (l layout) boot() string         { return filepath.Join(l.root, "boot") }
func (l layout) metadata() string     { return filepath.Join(l.root, "metadata.db") }
func (l layout) layersDir() string    { return filepath.Join(l.root, "layers") }
func (l layout) imagesDir() string    { return filepath.Join(l.root, "images") }
func (l layout) snapshotsDir() string { return filepath.Join(l.root, "snapshots") }

func (l layout) layer(id string) string { return filepath.Join(l.layersDir(), id) }
func (l layout) toc(id string) string   { return filepath.Join(l.layer(id), "toc") }

// durable marks a layer that a power cut cannot harm any more, lost one that
// was harmed beyond repair.
func (l layout) durable(id string) string { return filepath.Join(l.layer(id), "durable") }
func (l layout) lost(id string) string    { return filepath.Join(l.layer(id), "lost") }

func (l layout) source(id string) string { return filepath.Join(l.layer(id), "source") }

func (l layout) snapshot(id string) string { return filepath.Join(l.snapshotsDir(), id) }
func (l layout) upper(id string) string    { return filepath.Join(l.snapshot(id), "fs") }
func (l layout) workdir(id string) string  { return filepath.Join(l.snapshot(id), "work") }

// emptyLower is the lower directory of an unpack that has no parent.
func (l layout) emptyLower(id string) string { return filepath.Join(l.snapshot(id), "lower") }

// extractMark tells that a snapshot was prepared for a layer to be unpacked.
func (l layout) extractMark(id string) string { return filepath.Join(l.snapshot(id), "extract") }

// stagedMark tells that this snapshot got a layer that the node had already.
func (l layout) stagedMark(id string) string { return filepath.Join(l.snapshot(id), stagedMark) }

const stagedMark = "staged"

func (l layout) skeleton(id string) string { return filepath.Join(l.snapshot(id), "skeleton.erofs") }

const (
	imageSuffix = ".erofs"
	refsSuffix  = ".refs"
)

func (l layout) image(i imageName) string {
	return filepath.Join(l.imagesDir(), i.String()+imageSuffix)
}
func (l layout) refs(i imageName) string { return filepath.Join(l.imagesDir(), i.String()+refsSuffix) }

// Mount points. Overlays are never mounted below imageMounts: containerd's ID
// mapping clones what is there.
func (l layout) imageMounts() string           { return filepath.Join(l.state, "mnt") }
func (l layout) imageMount(i imageName) string { return filepath.Join(l.imageMounts(), i.String()) }

// imageRoot is the directory that shows what is in an image.
func (l layout) imageRoot(i imageName) string {
	return filepath.Join(l.imageMount(i), flatten.RootName)
}

func (l layout) skeletonMounts() string         { return filepath.Join(l.state, "skeletons") }
func (l layout) skeletonMount(id string) string { return filepath.Join(l.skeletonMounts(), id) }

// upperID tells which snapshot an upper directory belongs to.
func (l layout) upperID(path string) (id string, ok bool) {
	dir, ok := strings.CutPrefix(path, l.snapshotsDir()+"/")
	if !ok {
		return "", false
	}
	id, ok = strings.CutSuffix(dir, "/fs")
	return id, ok && isID(id)
}

// isID tells whether a name can be a metastore's ID.
func isID(s string) bool {
	n, err := strconv.ParseUint(s, 10, 64)
	return err == nil && strconv.FormatUint(n, 10) == s
}

// mountable tells whether a path is that of a file of which mounts are made.
func (l layout) mountable(path string) bool {
	if path == filepath.Join(l.root, "pack") || filepath.Dir(path) == l.imagesDir() {
		return true
	}
	id := filepath.Base(filepath.Dir(path))
	return isID(id) && path == l.skeleton(id)
}

// exists tells whether there is anything at path; trouble counts as yes.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !os.IsNotExist(err)
}
