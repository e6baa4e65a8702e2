// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// asTar writes entries whose long contents are looked up by digest.
func asTar(t testing.TB, latest *time.Time, contents map[Digest][]byte, entries ...Entry) ([]byte, TarStats) {
	t.Helper()
	var b bytes.Buffer
	w := NewTarWriter(&b, latest)
	for _, e := range entries {
		err := w.Add(&e, func(w io.Writer) error {
			content := e.Inline
			if e.Size > InlineMax {
				content = contents[e.Digest]
			}
			_, err := w.Write(content)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), w.Stats()
}

// What is written as a tar stream is taken in as the same entries again.
func TestTarWriterSaysWhatTheEntriesSay(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	contents := map[Digest][]byte{}
	var entries []Entry
	for i := range 3000 {
		e := randomEntry(rng)
		if e.Type == TypeSocket {
			continue
		}
		e.Path = fmt.Sprintf("%d-%s", i, e.Path)
		e.Target = strings.TrimPrefix(e.Target, "/")
		switch {
		case e.Type == TypeWhiteout || e.Type == TypeOpaque:
			entries = append(entries, e)
			continue
		case e.Type == TypeReg && e.Size > InlineMax:
			content := make([]byte, InlineMax+1+rng.IntN(5000))
			content[rng.IntN(len(content))] = byte(i)
			e.Size, e.Digest = int64(len(content)), sha256.Sum256(content)
			contents[e.Digest] = content
		}
		e.Mtime = rng.Int64N(9_000_000_000) // what unpackers can set
		e.Major, e.Minor = e.Major&0xfff, e.Minor&0xfffff
		for i := range e.Xattrs {
			e.Xattrs[i].Name = fmt.Sprintf("user.%d", i)
		}
		entries = append(entries, e)
	}
	stream, stats := asTar(t, nil, contents, entries...)
	if want := (TarStats{Entries: len(entries)}); stats != want {
		t.Errorf("got %+v, want %+v", stats, want)
	}
	store := &memoryStore{}
	var toc bytes.Buffer
	w, err := NewWriter(&toc)
	if err != nil {
		t.Fatal(err)
	}
	if err := FromTar(t.Context(), bytes.NewReader(stream), w, store); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	got, err := decode(toc.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(entries) {
		t.Fatalf("%d entries, want %d", len(got), len(entries))
	}
	for i := range got {
		if !equal(got[i:i+1], entries[i:i+1]) {
			t.Errorf("got %s, want %s", brief(got[i]), brief(entries[i]))
		}
	}
	for d, content := range contents {
		if !bytes.Equal(store.contents[d], content) {
			t.Errorf("content %x has other bytes", d)
		}
	}
}

func TestTarWriterLeavesOutWhatNoLayerCanSay(t *testing.T) {
	for name, entries := range map[string][]Entry{
		"root":                       {{Type: TypeDir}, {Type: TypeOpaque}},
		"socket":                     {{Type: TypeSocket, Path: "s"}, {Type: TypeHardlink, Path: "t", Target: "s"}},
		"name of a whiteout":         {{Type: TypeReg, Path: "d/.wh.x", Size: 1, Inline: []byte("x")}, {Type: TypeHardlink, Path: "y", Target: "d/.wh.x"}},
		"name of the opaque marker":  {{Type: TypeReg, Path: "d/.wh..wh..opq"}},
		"whiteout of such a name":    {{Type: TypeWhiteout, Path: "d/.wh..opq"}},
		"directory with such a name": {{Type: TypeDir, Path: ".wh.d"}},
	} {
		t.Run(name, func(t *testing.T) {
			stream, _ := asTar(t, nil, nil, entries...)
			if h, err := tar.NewReader(bytes.NewReader(stream)).Next(); err != io.EOF {
				t.Errorf("got %+v, %v, want no entry", h, err)
			}
		})
	}
	// A name that something else takes over is a target again.
	_, stats := asTar(t, nil, nil, Entry{Type: TypeSocket, Path: "s"}, Entry{Type: TypeFifo, Path: "s"}, Entry{Type: TypeHardlink, Path: "t", Target: "s"})
	if stats != (TarStats{Entries: 2, LeftOut: 1}) {
		t.Errorf("got %+v", stats)
	}
}

func TestTarWriterLeavesOutAttributesOfTheHost(t *testing.T) {
	e := Entry{Type: TypeReg, Path: "f"}
	for _, name := range []string{"security.capability", "security.ima", "security.selinux", "security.SMACK64EXEC", "system.posix_acl_access", "trusted.x", "user.a=b", "user.x"} {
		e.Xattrs = append(e.Xattrs, Xattr{name, []byte("v")})
	}
	stream, _ := asTar(t, nil, nil, e)
	h, err := tar.NewReader(bytes.NewReader(stream)).Next()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{paxXattr + "security.capability": "v", paxXattr + "system.posix_acl_access": "v", paxXattr + "user.x": "v"}
	if fmt.Sprint(h.PAXRecords) != fmt.Sprint(want) {
		t.Errorf("got %q, want %q", h.PAXRecords, want)
	}
}

func TestTarWriterBoundsTimes(t *testing.T) {
	latest := time.Unix(1000, 5)
	stream, _ := asTar(t, &latest, nil, Entry{Type: TypeFifo, Path: "old", Mtime: 999, MtimeNsec: 7}, Entry{Type: TypeFifo, Path: "new", Mtime: 1000, MtimeNsec: 6})
	r := tar.NewReader(bytes.NewReader(stream))
	for _, want := range []time.Time{time.Unix(999, 7), latest} {
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.Equal(want) {
			t.Errorf("%s: %v, want %v", h.Name, h.ModTime, want)
		}
	}
}

// A file that has fewer bytes than its entry says must not make a layer.
func TestTarWriterRefusesShortContent(t *testing.T) {
	w := NewTarWriter(io.Discard, nil)
	err := w.Add(&Entry{Type: TypeReg, Path: "f", Size: 5}, func(w io.Writer) error {
		_, err := io.WriteString(w, "1234")
		return err
	})
	if err := errors.Join(err, w.Close()); err == nil {
		t.Error("taken")
	}
}

// A whole image's layer has the root, and what is of the host stays there: a container that was committed may have brought it.
func TestLayerOfAWholeImage(t *testing.T) {
	var b bytes.Buffer
	w := NewImageWriter(&b)
	for _, e := range []Entry{
		{Type: TypeDir, Mode: 0o700, Xattrs: []Xattr{{Name: "user.root", Value: []byte("1")}, {Name: "trusted.x", Value: []byte("1")}}},
		{Type: TypeReg, Path: "a", Mode: 0o644, Xattrs: []Xattr{{Name: "security.ima", Value: []byte("1")}, {Name: "security.capability", Value: []byte("1")}}},
	} {
		if err := w.Add(&e, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %o %v", h.Name, h.Mode, slices.Sorted(maps.Keys(h.PAXRecords))))
	}
	if want := "[./ 700 [SCHILY.xattr.user.root] a 644 [SCHILY.xattr.security.capability]]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}
