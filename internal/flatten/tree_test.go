// SPDX-License-Identifier: Apache-2.0

package flatten

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"testing"

	"github.com/squash-snapshotter/squash/internal/layer"
	"golang.org/x/sys/unix"
)

// entries reads a layer from text, an entry per line:
//
//	d path      directory           f path =text   regular file
//	l path ->t  symlink             h path ->t     hardlink
//	c path 1:3  char device         b path 8:1     block device
//	p path      fifo                s path         socket
//	w path      whiteout            o path         opaque marker
//
// followed by any of mode=755 own=1:2 at=time user.a=value (an extended
// attribute), and for files size=n, which makes them contents of the pack.
// Directories have mode 755 without it, other things 644; the root is ".".
func entries(t testing.TB, text string) []layer.Entry {
	t.Helper()
	var all []layer.Entry
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		kind, p := f[0], strings.TrimPrefix(f[1], ".")
		e := layer.Entry{Path: p, Mode: 0o644, Type: map[string]layer.Type{"d": layer.TypeDir, "f": layer.TypeReg, "l": layer.TypeSymlink,
			"h": layer.TypeHardlink, "c": layer.TypeChar, "b": layer.TypeBlock, "p": layer.TypeFifo, "s": layer.TypeSocket,
			"w": layer.TypeWhiteout, "o": layer.TypeOpaque}[kind]}
		if f[1] != "." {
			e.Path = f[1]
		}
		if kind == "d" {
			e.Mode = 0o755
		}
		for _, a := range f[2:] {
			key, value, _ := strings.Cut(a, "=")
			var err error
			switch {
			case strings.HasPrefix(a, "->"):
				e.Target = a[2:]
			case strings.HasPrefix(a, "="):
				e.Inline, e.Size = []byte(value), int64(len(value))
			case a[0] >= '0' && a[0] <= '9':
				_, err = fmt.Sscanf(a, "%d:%d", &e.Major, &e.Minor)
			case key == "mode":
				_, err = fmt.Sscanf(value, "%o", &e.Mode)
			case key == "own":
				_, err = fmt.Sscanf(value, "%d:%d", &e.UID, &e.GID)
			case key == "at":
				e.Mtime, err = strconv.ParseInt(value, 10, 64)
			case key == "size":
				e.Size, err = strconv.ParseInt(value, 10, 64)
				e.Digest = sha256.Sum256([]byte(e.Path + value))
			case strings.Contains(key, "."):
				value, err = strconv.Unquote(`"` + value + `"`)
				e.Xattrs = append(e.Xattrs, layer.Xattr{Name: key, Value: []byte(value)})
			default:
				err = errors.New("what is this?")
			}
			if err != nil {
				t.Fatalf("%q in %q: %v", a, line, err)
			}
		}
		all = append(all, e)
	}
	return all
}

// layerOf writes a TOC.
func layerOf(t testing.TB, all []layer.Entry) Layer {
	t.Helper()
	var b bytes.Buffer
	w, err := layer.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	for i := range all {
		if err := w.Add(&all[i]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil }
}

// merge merges layers given as text, the bottom one first.
func merge(t testing.TB, layers ...string) (*Tree, error) {
	t.Helper()
	var open []Layer
	for _, l := range layers {
		open = append(open, layerOf(t, entries(t, l)))
	}
	return Merge(context.Background(), open)
}

// show is the text of what a tree shows; names of one inode are hardlinks of
// the first one.
func show(t *Tree) string {
	var b strings.Builder
	first := map[*node]string{}
	var visit func(dirs []*node, p string)
	line := func(n *node, p string) {
		if at, ok := first[n]; ok {
			fmt.Fprintf(&b, "h %s ->%s\n", p, at)
			return
		}
		first[n] = p
		fmt.Fprintf(&b, "%s %s", [...]string{"?", "d", "f", "l", "h", "c", "b", "p", "s", "w", "o"}[n.typ], p)
		switch n.typ {
		case layer.TypeReg:
			if n.size <= layer.InlineMax {
				fmt.Fprintf(&b, " =%s", n.inline)
			} else {
				fmt.Fprintf(&b, " size=%d", n.size)
			}
		case layer.TypeSymlink:
			fmt.Fprintf(&b, " ->%s", n.target)
		case layer.TypeChar, layer.TypeBlock:
			fmt.Fprintf(&b, " %d:%d", unix.Major(n.rdev), unix.Minor(n.rdev))
		}
		switch {
		case n.isDir() && n.mode != 0o755, n.typ == layer.TypeSymlink && n.mode != 0o777, !n.isDir() && n.typ != layer.TypeSymlink && n.mode != 0o644:
			fmt.Fprintf(&b, " mode=%o", n.mode)
		}
		if n.uid|n.gid != 0 {
			fmt.Fprintf(&b, " own=%d:%d", n.uid, n.gid)
		}
		if n.mtime != 0 {
			fmt.Fprintf(&b, " at=%d", n.mtime)
		}
		for _, x := range n.xattrs {
			fmt.Fprintf(&b, " %s=%s", x.Name, text(x.Value))
		}
		b.WriteByte('\n')
	}
	visit = func(dirs []*node, p string) {
		for _, e := range list(dirs) {
			line(e.nodes[0], path.Join(p, e.name))
			if e.nodes[0].isDir() {
				visit(e.nodes, path.Join(p, e.name))
			}
		}
	}
	if root := t.layers[0]; root.mode != 0o755 || root.uid|root.gid != 0 || root.mtime != 0 || len(root.xattrs) > 0 {
		line(root, ".")
	}
	visit(t.layers, "")
	return b.String()
}

// text is a value in the form in which entries takes it.
func text(b []byte) string {
	return strings.ReplaceAll(strings.Trim(strconv.QuoteToASCII(string(b)), `"`), " ", `\x20`)
}

// tidy makes texts comparable.
func tidy(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 0 {
			b.WriteString(strings.Join(f, " ") + "\n")
		}
	}
	return b.String()
}
