// SPDX-License-Identifier: Apache-2.0

package mounts

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Capabilities is what the kernel was seen to do. For what it does not do, the reason names the failure
// and the remedy; the reason of a present capability is empty.
type Capabilities struct {
	// FileBacked: EROFS reads image and extra device from regular files.
	FileBacked       bool
	FileBackedReason string
	// Loop: EROFS reads image and extra device through loop devices.
	Loop       bool
	LoopReason string

	// What EROFS reads on an extra device beside plain blocks, in every mode that works.
	//
	// LZ4 and Zstd: compressed clusters.
	LZ4        bool
	LZ4Reason  string
	Zstd       bool
	ZstdReason string
	// Fragments: small contents that lie in the packed inode.
	Fragments       bool
	FragmentsReason string
}

// Capability is one of them, by its name.
type Capability struct {
	Name    string
	Present bool
	Reason  string // why not, and what helps
}

// All lists them.
func (c Capabilities) All() []Capability {
	return []Capability{
		{"file-backed", c.FileBacked, c.FileBackedReason},
		{"loop", c.Loop, c.LoopReason},
		{"lz4", c.LZ4, c.LZ4Reason},
		{"zstd", c.Zstd, c.ZstdReason},
		{"fragments", c.Fragments, c.FragmentsReason},
	}
}

// Probe finds out by trying which mounts work for images in dir, an existing directory on the file system
// that is to hold them. It mounts tiny images and reads them back. Its files have no names and its mounts
// are attached nowhere, so that nothing of it stays, however it ends.
//
// A kernel without EROFS and a process that may not mount are errors with the remedy in their text
// (errdefs.ErrFailedPrecondition). That one way of mounting does not work is none; see [New].
func Probe(ctx context.Context, dir string) (Capabilities, error) {
	caps, err := probe(ctx, dir)
	if err != nil {
		return Capabilities{}, fmt.Errorf("probe EROFS mounts in %s: %w", dir, err)
	}
	return caps, nil
}

func probe(ctx context.Context, dir string) (Capabilities, error) {
	if err := ctx.Err(); err != nil {
		return Capabilities{}, err
	}
	fsctx, err := openContext()
	if err != nil {
		return Capabilities{}, err
	}
	fsctx.Close()

	images, err := newProbeImages(dir)
	if err != nil {
		return Capabilities{}, err
	}
	defer images.Close()

	fileErr := images.try(ctx, createFileBacked)
	// The context was granted and the mount was not: root of a user namespace.
	if errors.Is(fileErr, unix.EPERM) {
		return Capabilities{}, fmt.Errorf("%w: %s: %w", fileErr, needsRoot, errdefs.ErrFailedPrecondition)
	}
	loopErr := images.try(ctx, createLoop)
	caps := Capabilities{FileBacked: fileErr == nil, Loop: loopErr == nil}
	var modes []*Mounter
	if fileErr != nil {
		caps.FileBackedReason = fileBackedReason(fileErr, dir)
	} else {
		modes = append(modes, &Mounter{mode: ModeFile, create: createFileBacked})
	}
	if loopErr != nil {
		caps.LoopReason = loopErr.Error()
	} else {
		modes = append(modes, &Mounter{mode: ModeLoop, create: createLoop})
	}
	caps.LZ4, caps.LZ4Reason = images.reads(ctx, modes, images.lz4, "CONFIG_EROFS_FS_ZIP")
	caps.Zstd, caps.ZstdReason = images.reads(ctx, modes, images.zstd, "Linux 6.10 or newer with CONFIG_EROFS_FS_ZIP_ZSTD")
	caps.Fragments, caps.FragmentsReason = images.reads(ctx, modes, images.fragment, "Linux 6.1 or newer with CONFIG_EROFS_FS_ZIP")
	if err := ctx.Err(); err != nil {
		return Capabilities{}, err
	}
	return caps, nil
}

// fileBackedReason adds the remedy to the failure of a file-backed mount.
func fileBackedReason(err error, dir string) string {
	if !errors.Is(err, unix.ENOTBLK) {
		return err.Error()
	}
	// ENOTBLK has two causes that the kernel does not tell apart. Of these file systems it is known
	// that it refuses images on them.
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) == nil {
		switch int64(st.Type) {
		case unix.TMPFS_MAGIC:
			return fmt.Sprintf("%v: %s is on tmpfs, which cannot hold file-backed images: use a disk file system", err, dir)
		case unix.OVERLAYFS_SUPER_MAGIC:
			return fmt.Sprintf("%v: %s is on overlayfs, which cannot hold file-backed images: use a disk file system", err, dir)
		}
	}
	return fmt.Sprintf("%v: Linux 6.12 or newer with CONFIG_EROFS_FS_BACKED_BY_FILE is needed, and a disk file system for %s", err, dir)
}
