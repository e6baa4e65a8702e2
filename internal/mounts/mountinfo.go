// SPDX-License-Identifier: Apache-2.0

package mounts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Mount is an EROFS mount as the kernel describes it.
type Mount struct {
	// Image is the image file: an absolute path, or the bare file name if the path had more than 255
	// bytes when it was mounted (and "" if the file name came near that too). In loop mode, symbolic
	// links in it are resolved.
	Image string
	// Loop is the loop device under the image, such as "/dev/loop3", and "" for a file-backed mount.
	Loop string
}

// Shows reports whether the mount is one of the image file at path, as far as the kernel tells: of an
// image with a long path, only its file name is compared.
func (m Mount) Shows(path string) bool {
	if m.Image == "" {
		return false
	}
	if !filepath.IsAbs(m.Image) {
		return m.Image == filepath.Base(path)
	}
	if abs, err := filepath.Abs(path); err == nil && abs == m.Image {
		return true
	}
	mounted, err := os.Stat(m.Image)
	if err != nil {
		return false
	}
	asked, err := os.Stat(path)
	return err == nil && os.SameFile(mounted, asked)
}

// Mounted returns the EROFS mounts of whole images at or below the directory under, by target. The
// targets begin with under made absolute, even where the kernel knows that directory by another name.
// Of mounts on top of each other it returns the upper one. Binds of parts of an image are left out.
func Mounted(under string) (map[string]Mount, error) {
	abs, err := filepath.Abs(under)
	if err != nil {
		return nil, fmt.Errorf("find EROFS mounts: %w", err)
	}
	real, err := filepath.EvalSymlinks(abs)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]Mount{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find EROFS mounts: %w", err)
	}
	infos, err := mountinfo.GetMounts(func(info *mountinfo.Info) (skip, stop bool) {
		_, ok := below(real, info.Mountpoint)
		return !ok || info.FSType != "erofs" || info.Root != "/", false
	})
	if err != nil {
		return nil, fmt.Errorf("find EROFS mounts below %s: %w", abs, err)
	}
	mounts := make(map[string]Mount, len(infos))
	for _, info := range infos {
		rel, _ := below(real, info.Mountpoint)
		mount, err := describe(info)
		if err != nil {
			return nil, fmt.Errorf("find EROFS mounts below %s: %w", abs, err)
		}
		mounts[filepath.Join(abs, rel)] = mount
	}
	return mounts, nil
}

// below returns path relative to dir if it is dir or lies below it; both are absolute and clean.
func below(dir, path string) (string, bool) {
	if path == dir {
		return "", true
	}
	return strings.CutPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

func describe(info *mountinfo.Info) (Mount, error) {
	// An anonymous device number means file-backed: there is no block device to look up.
	if info.Major == 0 {
		return Mount{Image: imageOfSource(info.Source)}, nil
	}
	// The number, unlike the source, stays true when the node was renamed. The file's path is cut
	// after one newline only: a newline of its own is legal.
	backing, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/loop/backing_file", info.Major, info.Minor))
	if errors.Is(err, fs.ErrNotExist) {
		return Mount{Image: info.Source}, nil // a disk that somebody mounted
	}
	if err != nil {
		return Mount{}, fmt.Errorf("backing file of %s: %w", info.Source, err)
	}
	return Mount{Image: withoutDeleted(strings.TrimSuffix(string(backing), "\n")), Loop: info.Source}, nil
}

// imageOfSource undoes the detour that openBacking takes for long paths.
func imageOfSource(source string) string {
	detour, ok := strings.CutPrefix(source, descriptorPrefix)
	if !ok {
		return source
	}
	_, name, _ := strings.Cut(detour, "/")
	return name
}

// withoutDeleted cuts the mark that the kernel adds to the path of an unlinked file, unless a file of
// exactly that name exists.
func withoutDeleted(path string) string {
	name, marked := strings.CutSuffix(path, " (deleted)")
	if !marked {
		return path
	}
	if _, err := os.Lstat(path); err == nil {
		return path
	}
	return name
}
