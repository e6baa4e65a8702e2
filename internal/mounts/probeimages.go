// SPDX-License-Identifier: Apache-2.0

package mounts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/squash-snapshotter/squash/internal/erofs"
)

const (
	probeFile = "data"
	// probeBlock is where the pack of a probe holds its content: not block 0, at which any file that
	// was taken for the pack by mistake would begin. Behind it are the two clusters.
	probeBlock = 1
	lz4Block   = 2
	zstdBlock  = 3
)

// A cluster's content and what it is compressed to: an LZ4 block and a zstd frame, made once, so that the
// probe needs no encoder.
var (
	clusterData = strings.Repeat("one cluster of content\n", 500)[:10000]
	lz4Cluster  = "\xff\x08one cluster of content\n\x17\x00" + strings.Repeat("\xff", 38) + "\xf8\x00\xe7&\x00\xe7&\xc0uster of con"
	zstdCluster = "(\xb5/\xfd`\x10&\r\x01\x00t\x01one cluster of content\n\x01T\x13\x041\xed\x8d\x06"
)

// probeImage is an image with one file, named probeFile.
type probeImage struct {
	*backing
	onPack bool // it has the pack as its device
	want   []byte
}

// probeImages are images of all forms of content, and the pack of those that are not inline.
type probeImages struct {
	inline, packed, lz4, zstd, fragment probeImage

	pack *backing
}

func newProbeImages(dir string) (_ *probeImages, err error) {
	p := &probeImages{}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	pack := append(make([]byte, probeBlock*erofs.BlockSize), bytes.Repeat([]byte("on the device"), erofs.BlockSize)[:erofs.BlockSize]...)
	for _, cluster := range []string{lz4Cluster, zstdCluster} { // flush with the end of their blocks
		pack = append(append(pack, make([]byte, erofs.BlockSize-len(cluster))...), cluster...)
	}
	if p.pack, err = unnamedFile(dir, pack); err != nil {
		return nil, err
	}

	opts := erofs.Options{Devices: []erofs.Device{{
		Tag: "probe", Blocks: uint32(len(pack) / erofs.BlockSize), UnifiedAddr: 1 << 20,
	}}}
	data := pack[probeBlock*erofs.BlockSize:][:erofs.BlockSize]
	cluster := func(a erofs.Algorithm, block uint32) erofs.Inode {
		return erofs.Inode{Device: 1, Clusters: []erofs.Cluster{{Algorithm: a, Blocks: 1, Block: block, Length: uint32(len(clusterData))}}}
	}
	const fragmentAt, fragmentSize = 100, 1000
	inline := []byte("content inside the image\n")
	for _, c := range []struct {
		image   *probeImage
		content []byte
		opts    erofs.Options
		inode   erofs.Inode
	}{
		{&p.inline, inline, erofs.Options{}, erofs.Inode{Inline: inline}},
		{&p.packed, data, opts, erofs.Inode{
			Extents: []erofs.Extent{{Device: 1, Block: probeBlock, Length: erofs.BlockSize}},
		}},
		{&p.lz4, []byte(clusterData), opts, cluster(erofs.LZ4, lz4Block)},
		{&p.zstd, []byte(clusterData), opts, cluster(erofs.Zstd, zstdBlock)},
		{&p.fragment, data[fragmentAt:][:fragmentSize], opts, erofs.Inode{Packed: true, PackedAt: fragmentAt}},
	} {
		c.inode.Mode, c.inode.Size = unix.S_IFREG|0o444, int64(len(c.content))
		var image bytes.Buffer
		if err := writeProbeImage(&image, c.opts, c.inode); err != nil {
			return nil, err
		}
		file, err := unnamedFile(dir, image.Bytes())
		if err != nil {
			return nil, err
		}
		*c.image = probeImage{file, len(c.opts.Devices) > 0, c.content}
	}
	return p, nil
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
	if file.Packed { // in a cluster that every kernel with clusters can read
		stored := erofs.Cluster{Blocks: 1, Block: probeBlock, Length: erofs.BlockSize}
		if err := w.SetPacked(1, []erofs.Cluster{stored}); err != nil {
			return fmt.Errorf("write probe image: %w", err)
		}
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

// try mounts the two images without clusters and reads their files.
func (p *probeImages) try(ctx context.Context, create createFunc) error {
	if err := p.tryImage(ctx, create, p.inline); err != nil {
		return fmt.Errorf("image without device: %w", err)
	}
	if err := p.tryImage(ctx, create, p.packed); err != nil {
		return fmt.Errorf("image with extra device: %w", err)
	}
	return nil
}

// reads tells whether the file of image can be read in all of the modes, and if not, why not. needs is
// what a kernel must have for it.
func (p *probeImages) reads(ctx context.Context, modes []*Mounter, image probeImage, needs string) (ok bool, reason string) {
	if len(modes) == 0 {
		return false, "no way of mounting works"
	}
	for _, m := range modes {
		if err := p.tryImage(ctx, m.create, image); err != nil {
			return false, fmt.Sprintf("%s mode: %v: %s is needed", m.mode, err, needs)
		}
	}
	return true, ""
}

func (p *probeImages) tryImage(ctx context.Context, create createFunc, image probeImage) error {
	var pack *backing
	if image.onPack {
		pack = p.pack
	}
	mnt, err := create(ctx, image.backing, pack)
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
	if !bytes.Equal(got, image.want) {
		return fmt.Errorf("%s has %d bytes that are not those written", probeFile, len(got))
	}
	return nil
}

func (p *probeImages) Close() {
	for _, b := range []*backing{p.inline.backing, p.packed.backing, p.lz4.backing, p.zstd.backing, p.fragment.backing, p.pack} {
		if b != nil {
			b.Close()
		}
	}
}
