// SPDX-License-Identifier: Apache-2.0

package mounts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/squash-snapshotter/squash/internal/erofs"
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
	if err := ctx.Err(); err != nil {
		return Capabilities{}, err
	}
	caps := Capabilities{FileBacked: fileErr == nil, Loop: loopErr == nil}
	if fileErr != nil {
		caps.FileBackedReason = fileBackedReason(fileErr, dir)
	}
	if loopErr != nil {
		caps.LoopReason = loopErr.Error()
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

const (
	probeFile = "data"
	// probeBlock is where the pack of a probe holds its content: not block 0, at which any file that
	// was taken for the pack by mistake would begin.
	probeBlock = 1
)

// probeImages are two images with one file each, its content in the image or on the extra device.
type probeImages struct {
	inline, packed, pack *backing
	inlineData, packData []byte
}

func newProbeImages(dir string) (_ *probeImages, err error) {
	p := &probeImages{
		inlineData: []byte("content inside the image\n"),
		packData:   bytes.Repeat([]byte("on the device"), erofs.BlockSize)[:erofs.BlockSize],
	}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	var image bytes.Buffer
	err = writeProbeImage(&image, erofs.Options{}, erofs.Inode{
		Mode: unix.S_IFREG | 0o444, Size: int64(len(p.inlineData)), Inline: p.inlineData,
	})
	if err != nil {
		return nil, err
	}
	if p.inline, err = unnamedFile(dir, image.Bytes()); err != nil {
		return nil, err
	}

	image.Reset()
	err = writeProbeImage(&image, erofs.Options{
		Devices: []erofs.Device{{Tag: "probe", Blocks: probeBlock + 1, UnifiedAddr: 1 << 20}},
	}, erofs.Inode{
		Mode: unix.S_IFREG | 0o444, Size: erofs.BlockSize,
		Extents: []erofs.Extent{{Device: 1, Block: probeBlock, Length: erofs.BlockSize}},
	})
	if err != nil {
		return nil, err
	}
	if p.packed, err = unnamedFile(dir, image.Bytes()); err != nil {
		return nil, err
	}
	p.pack, err = unnamedFile(dir, append(make([]byte, probeBlock*erofs.BlockSize), p.packData...))
	return p, err
}

// writeProbeImage writes an image whose root directory has one entry, probeFile.
func writeProbeImage(out io.Writer, opts erofs.Options, file erofs.Inode) error {
	w, err := erofs.NewWriter(opts, erofs.Inode{Mode: unix.S_IFDIR | 0o755})
	if err != nil {
		return fmt.Errorf("write probe image: %w", err)
	}
	ino, err := w.Add(file)
	if err != nil {
		return fmt.Errorf("write probe image: %w", err)
	}
	if err := w.Link(erofs.RootIno, probeFile, ino); err != nil {
		return fmt.Errorf("write probe image: %w", err)
	}
	if _, err := w.WriteTo(out); err != nil {
		return fmt.Errorf("write probe image: %w", err)
	}
	return nil
}

// unnamedFile puts data into a file on dir's file system that no directory lists.
func unnamedFile(dir string, data []byte) (*backing, error) {
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) { // some network and older overlay file systems
		f, err = removedFile(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("create probe file: %w", err)
	}
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, fmt.Errorf("write probe file: %w", err)
	}
	return &backing{file: f, param: descriptorPath(f)}, nil
}

// removedFile is unnamedFile for file systems without O_TMPFILE; its file has a name for a moment.
func removedFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// try mounts both images and reads their files.
func (p *probeImages) try(ctx context.Context, create createFunc) error {
	if err := tryMount(ctx, create, p.inline, nil, p.inlineData); err != nil {
		return fmt.Errorf("image without device: %w", err)
	}
	if err := tryMount(ctx, create, p.packed, p.pack, p.packData); err != nil {
		return fmt.Errorf("image with extra device: %w", err)
	}
	return nil
}

func tryMount(ctx context.Context, create createFunc, image, pack *backing, want []byte) error {
	mnt, err := create(ctx, image, pack)
	if err != nil {
		return err
	}
	defer mnt.Close()
	fd, err := unix.Openat(int(mnt.Fd()), probeFile, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "openat", Path: probeFile, Err: err}
	}
	f := os.NewFile(uintptr(fd), probeFile)
	defer f.Close()
	got, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s has %d bytes that are not those written", probeFile, len(got))
	}
	return nil
}

func (p *probeImages) Close() {
	for _, b := range []*backing{p.inline, p.packed, p.pack} {
		if b != nil {
			b.Close()
		}
	}
}
