// SPDX-License-Identifier: Apache-2.0

package rootfs

import (
	"archive/tar"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/squash-snapshotter/squash/integration/images"
)

// WriteLayer writes as a layer what makes after out of before: entries for what was written, and the directories above
// them; whiteouts for what is gone. Names are sorted, so the same trees give the same layer. A nil before is empty.
func WriteLayer(w *images.LayerWriter, before, after *Tree) error {
	d := differ{out: w, spool: after.spool, first: make(map[*inode]string)}
	var old *node
	if before != nil {
		old = before.root
	}
	return d.children("", old, after.root)
}

type differ struct {
	out   *images.LayerWriter
	spool *Spool
	first map[*inode]string // the name under which this layer has an inode already
}

// dir writes a directory if it or something below it changed.
func (d *differ) dir(name string, old, now *node) error {
	if !changed(old, now) {
		return nil
	}
	if err := d.entry(name, now.ino); err != nil {
		return err
	}
	return d.children(name, old, now)
}

func (d *differ) children(name string, old, now *node) error {
	if old != nil {
		for _, child := range slices.Sorted(maps.Keys(old.children)) {
			if now.children[child] == nil {
				if err := d.out.Whiteout(path.Join(name, child)); err != nil {
					return err
				}
			}
		}
	}
	for _, child := range slices.Sorted(maps.Keys(now.children)) {
		var was *node
		if old != nil {
			was = old.children[child]
		}
		is, to := now.children[child], path.Join(name, child)
		var err error
		if is.children != nil {
			err = d.dir(to, was, is)
		} else if was == nil || was.ino != is.ino {
			err = d.entry(to, is.ino)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// changed tells whether a layer has to say something of a directory. One whose names changed has another inode.
func changed(old, now *node) bool {
	if old == nil || old.ino != now.ino {
		return true
	}
	for name, is := range now.children {
		if was := old.children[name]; was.ino != is.ino || is.children != nil && changed(was, is) {
			return true
		}
	}
	return false
}

func (d *differ) entry(name string, ino *inode) error {
	h := ino.header
	h.Name = name
	if h.Typeflag == tar.TypeDir {
		h.Name += "/"
		return d.out.Entry(&h, strings.NewReader(""))
	}
	if first, ok := d.first[ino]; ok {
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		return d.out.Entry(&h, strings.NewReader(""))
	}
	d.first[ino] = name
	var content io.Reader = strings.NewReader("")
	if h.Typeflag == tar.TypeReg {
		content = d.spool.open(ino.content)
	}
	return d.out.Entry(&h, content)
}
