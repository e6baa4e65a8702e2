// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"archive/tar"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
)

// TarWriter writes entries as an OCI layer's tar stream: applied over the same
// layers below, it gives what the entries say. It ends by Close.
//
// What a layer has no way to say is left out: the root's own metadata, sockets,
// names that begin like a whiteout's, further names of what was left out, and
// attributes that belong to the host.
type TarWriter struct {
	tw     *tar.Writer
	whole  bool      // the layer is all of an image, root included
	latest time.Time // no entry is younger; zero: any time
	stats  TarStats
	left   map[string]bool // left out, and may be a hardlink's target
}

// TarStats counts entries.
type TarStats struct {
	Entries int // written
	LeftOut int // not written, since no layer can say them
}

// NewTarWriter starts a layer. Times after latest become latest, unless it is
// nil.
func NewTarWriter(w io.Writer, latest *time.Time) *TarWriter {
	t := &TarWriter{tw: tar.NewWriter(w), left: map[string]bool{}}
	if latest != nil {
		t.latest = *latest
	}
	return t
}

// NewImageWriter starts a layer that holds all of an image: the root's metadata
// is written, too.
func NewImageWriter(w io.Writer) *TarWriter {
	t := NewTarWriter(w, nil)
	t.whole = true
	return t
}

// Add writes an entry. content is called for regular files alone, and writes
// e.Size bytes.
func (t *TarWriter) Add(e *Entry, content func(io.Writer) error) error {
	if e.Path == "" && !t.whole {
		return nil // the root is not a layer's to describe, and an opaque one hides nothing
	}
	if t.leaveOut(e) {
		t.stats.LeftOut++
		return nil
	}
	h := t.header(e)
	if err := t.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("tar entry %q: %w", h.Name, err)
	}
	if e.Type == TypeReg && e.Size > 0 {
		if err := content(t.tw); err != nil {
			return fmt.Errorf("tar entry %q: %w", h.Name, err)
		}
	}
	t.stats.Entries++
	return nil
}

// Close ends the archive. It fails if the last entry lacks bytes.
func (t *TarWriter) Close() error {
	if err := t.tw.Close(); err != nil {
		return fmt.Errorf("end tar: %w", err)
	}
	return nil
}

// Stats tells what was added so far.
func (t *TarWriter) Stats() TarStats { return t.stats }

func (t *TarWriter) leaveOut(e *Entry) bool {
	out := e.Type == TypeSocket || e.Type == TypeHardlink && t.left[e.Target] ||
		e.Type != TypeOpaque && strings.HasPrefix(path.Base(e.Path), whiteoutPrefix)
	switch {
	case out:
		t.left[e.Path] = true
	case len(t.left) > 0:
		delete(t.left, e.Path) // the name has become something else's
	}
	return out
}

func (t *TarWriter) header(e *Entry) *tar.Header {
	switch e.Type {
	case TypeWhiteout:
		dir, base := path.Split(e.Path)
		return marker(dir + whiteoutPrefix + base)
	case TypeOpaque:
		return marker(e.Path + "/" + opaqueMarker)
	}
	h := &tar.Header{
		Name: e.Path, Mode: int64(e.Mode), Uid: int(e.UID), Gid: int(e.GID),
		ModTime: time.Unix(e.Mtime, int64(e.MtimeNsec)),
		Format:  tar.FormatPAX, // others round times to seconds
	}
	if !t.latest.IsZero() && h.ModTime.After(t.latest) {
		h.ModTime = t.latest
	}
	switch e.Type {
	case TypeDir:
		h.Typeflag, h.Name = tar.TypeDir, e.Path+"/"
		if e.Path == "" {
			h.Name = "./"
		}
	case TypeReg:
		h.Typeflag, h.Size = tar.TypeReg, e.Size
	case TypeSymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.Target
	case TypeHardlink:
		h.Typeflag, h.Linkname = tar.TypeLink, e.Target
	case TypeChar:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(e.Major), int64(e.Minor)
	case TypeBlock:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, int64(e.Major), int64(e.Minor)
	case TypeFifo:
		h.Typeflag = tar.TypeFifo
	}
	for _, x := range e.Xattrs {
		if !portable(x.Name) {
			continue
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxXattr+x.Name] = string(x.Value)
	}
	return h
}

// marker is an empty file that hides something, with the time that containerd's
// differ gives it.
func marker(name string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: time.Unix(0, 0)}
}

// ofTheHost are attributes in which the security modules of a host keep what
// means nothing, or harm, on another.
var ofTheHost = []string{"security.selinux", "security.ima", "security.evm", "security.apparmor"}

// portable tells whether an attribute can go from one host to another. A PAX
// record cannot have "=" in its key.
func portable(name string) bool {
	return !strings.HasPrefix(name, "trusted.") && !strings.HasPrefix(name, "security.SMACK64") &&
		!slices.Contains(ofTheHost, name) && !strings.Contains(name, "=")
}
