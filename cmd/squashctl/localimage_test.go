// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

// disk is one that has room for some bytes.
type disk struct{ room int }

func (d *disk) Write(p []byte) (int, error) {
	n := min(len(p), d.room)
	if d.room -= n; n < len(p) {
		return n, unix.ENOSPC
	}
	return n, nil
}

// However little of an archive is missing, it is told.
func TestArchiveOnAFullDisk(t *testing.T) {
	l, err := newLocalImage(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	add := func(mediaType, data string) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(data), Size: int64(len(data))}
		if err := content.WriteBlob(t.Context(), l.store, data, strings.NewReader(data), d); err != nil {
			t.Fatal(err)
		}
		return d
	}
	config := add(ocispec.MediaTypeImageConfig, "{}")
	manifest := add(ocispec.MediaTypeImageManifest, `{"schemaVersion":2,"config":{"mediaType":"`+config.MediaType+`","digest":"`+config.Digest.String()+`","size":2},"layers":[]}`)
	l.result = &adminapi.ExportResult{MediaType: manifest.MediaType, Digest: manifest.Digest.String(), Size: uint64(manifest.Size)}
	write := func(w io.Writer) error { return l.archive(t.Context(), w, "example.com/a:1", false) }
	var whole bytes.Buffer
	if err := write(&whole); err != nil {
		t.Fatal(err)
	}
	for room := 0; room < whole.Len(); room += 256 {
		if err := write(&disk{room}); err == nil {
			t.Errorf("%d of %d bytes were written, and nobody was told", room, whole.Len())
		}
	}
}
