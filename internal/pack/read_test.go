// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"testing"

	"github.com/containerd/errdefs"
)

func TestCopyGivesTheBytesOfEveryKindOfContent(t *testing.T) {
	s := openCompressed(t, t.TempDir(), LZ4, 0)
	all := compressible()
	ds := store(t, s, all...)
	w := s.Begin()
	defer w.Close()
	v := s.Verifier(nil)
	defer v.Close()
	for i, d := range ds {
		p, err := w.Lookup(d)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := v.Copy(t.Context(), &got, d, p); err != nil || !bytes.Equal(got.Bytes(), all[i]) {
			t.Errorf("content of %d bytes, %v: %d bytes come back, %v", len(all[i]), p.Encoding, got.Len(), err)
		}
	}
}

type brokenWriter struct{ error }

func (b brokenWriter) Write([]byte) (int, error) { return 0, b.error }

func TestCopyTellsDamageFromTroubleWithWriting(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	w := s.Begin()
	defer w.Close()
	content := noise(1, 100_000)
	if _, err := w.Put(bytes.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
	if err := w.Publish(false); err != nil {
		t.Fatal(err)
	}
	d := Digest(sha256.Sum256(content))
	p, err := w.Lookup(d)
	if err != nil {
		t.Fatal(err)
	}
	v := s.Verifier(nil)
	defer v.Close()
	full := errors.New("full")
	if err := v.Copy(t.Context(), brokenWriter{full}, d, p); !errors.Is(err, full) || errdefs.IsDataLoss(err) {
		t.Errorf("got %v, want the writer's error", err)
	}
	f, err := os.OpenFile(s.Path(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const at = 70_000
	overwrite := func(b []byte) {
		if _, err := f.WriteAt(b, int64(p.Block)*BlockSize+at); err != nil {
			t.Fatal(err)
		}
	}
	overwrite([]byte("damage"))
	defer overwrite(content[at : at+6])
	if err := v.Copy(t.Context(), new(bytes.Buffer), d, p); !errdefs.IsDataLoss(err) {
		t.Errorf("got %v, want ErrDataLoss", err)
	}
}
