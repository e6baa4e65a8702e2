// SPDX-License-Identifier: Apache-2.0

// Package images owns the container images of the demo and of the tests: it writes their layers by code,
// keeps the blobs in a directory between runs, serves them from a loopback registry, and says from the layers
// alone what a container must see and which file bytes no container can see.
//
//	recipe ──LayerWriter──▶ tar ──▶ blob file + digests ──Image──▶ manifest ──Registry──▶ containerd
//	                                     └──Replay──▶ visible tree, savings
//
// Same recipe, same bytes: times are fixed and names are sorted, so digests do not change between runs.
// Nothing here reads a container's mount; that makes Replay an independent witness for DESIGN invariant 1.
package images

import (
	"archive/tar"
	"compress/flate"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Compression is how a layer blob is packed.
type Compression string

// The three encodings that OCI registries serve, gzip in two levels: the fastest, and the one that image builders use.
const (
	Gzip        Compression = "gzip"
	GzipDefault Compression = "gzip-default"
	Zstd        Compression = "zstd"
	None        Compression = "none"
)

// Store is a directory of blobs. Two processes may share one: blobs are written aside and renamed.
type Store struct {
	dir string
}

// OpenStore opens the store in dir and creates what is missing.
func OpenStore(dir string) (*Store, error) {
	for _, d := range []string{filepath.Join(dir, "blobs", "sha256"), filepath.Join(dir, "recipes")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	return &Store{dir: dir}, nil
}

// Layer gives the layer that write makes. When a layer was stored under the same key and compression before,
// write is not called: the key must name everything that goes into the bytes. An empty key always writes.
func (s *Store) Layer(key string, c Compression, write func(*LayerWriter) error) (v1.Layer, error) {
	record := s.record(key, c)
	if key != "" {
		if l, err := s.known(record); err == nil {
			return l, nil
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	l, err := s.build(c, write)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", key, err)
	}
	if key == "" {
		return l, nil
	}
	data, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	return l, replaceFile(record, data)
}

// known reads a record and checks that its blob is still there.
func (s *Store) known(record string) (*layer, error) {
	data, err := os.ReadFile(record)
	if err != nil {
		return nil, err
	}
	l := &layer{store: s}
	if err := json.Unmarshal(data, l); err != nil {
		return nil, fmt.Errorf("image store: %s: %w", record, err)
	}
	st, err := os.Stat(s.path(l.Blob))
	if err != nil {
		return nil, err
	}
	if st.Size() != l.Bytes {
		return nil, fmt.Errorf("image store: blob %s has %d bytes, want %d; remove it", l.Blob, st.Size(), l.Bytes)
	}
	return l, nil
}

// Has tells whether Layer would find key without a call of write.
func (s *Store) Has(key string, c Compression) bool {
	_, err := s.known(s.record(key, c))
	return err == nil
}

func (s *Store) record(key string, c Compression) string {
	sum := sha256.Sum256([]byte(string(c) + "\x00" + key))
	return filepath.Join(s.dir, "recipes", hex.EncodeToString(sum[:])+".json")
}

func (s *Store) build(c Compression, write func(*LayerWriter) error) (_ *layer, err error) {
	f, err := os.CreateTemp(s.dir, "layer-*")
	if err != nil {
		return nil, err
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	blob := &counted{to: f, sum: sha256.New()}
	packer, err := c.writer(blob)
	if err != nil {
		return nil, err
	}
	diff := &counted{to: packer, sum: sha256.New()}
	w := &LayerWriter{tar: tar.NewWriter(diff)}
	if err := write(w); err != nil {
		return nil, err
	}
	if err := w.tar.Close(); err != nil {
		return nil, err
	}
	if err := packer.Close(); err != nil {
		return nil, err
	}
	if err := f.Chmod(0o644); err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	l := &layer{store: s, Blob: blob.hash(), Bytes: blob.n, Diff: diff.hash(), Packing: c}
	return l, os.Rename(f.Name(), s.path(l.Blob))
}

func (s *Store) path(h v1.Hash) string {
	return filepath.Join(s.dir, "blobs", h.Algorithm, h.Hex)
}

func (c Compression) writer(w io.Writer) (io.WriteCloser, error) {
	switch c {
	case Gzip:
		return gzip.NewWriterLevel(w, flate.BestSpeed)
	case GzipDefault:
		return gzip.NewWriterLevel(w, flate.DefaultCompression)
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	case None:
		return nopCloser{w}, nil
	}
	return nil, fmt.Errorf("compression %q is not one of %q, %q, %q, %q", c, Gzip, GzipDefault, Zstd, None)
}

func (c Compression) reader(r io.Reader) (io.ReadCloser, error) {
	switch c {
	case Gzip, GzipDefault:
		return gzip.NewReader(r)
	case Zstd:
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}

// layer is a blob of the store; its exported fields are the record on disk.
type layer struct {
	store   *Store
	Blob    v1.Hash     `json:"blob"`
	Bytes   int64       `json:"bytes"`
	Diff    v1.Hash     `json:"diff"`
	Packing Compression `json:"packing"`
}

var _ v1.Layer = (*layer)(nil)

func (l *layer) Digest() (v1.Hash, error) { return l.Blob, nil }
func (l *layer) DiffID() (v1.Hash, error) { return l.Diff, nil }
func (l *layer) Size() (int64, error)     { return l.Bytes, nil }

func (l *layer) Compressed() (io.ReadCloser, error) { return os.Open(l.store.path(l.Blob)) }

func (l *layer) Uncompressed() (io.ReadCloser, error) {
	f, err := os.Open(l.store.path(l.Blob))
	if err != nil {
		return nil, err
	}
	r, err := l.Packing.reader(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return bothClosers{r, f}, nil
}

func (l *layer) MediaType() (types.MediaType, error) {
	switch l.Packing {
	case Zstd:
		return types.OCILayerZStd, nil
	case None:
		return types.OCIUncompressedLayer, nil
	}
	return types.OCILayer, nil
}

// replaceFile writes data beside path and renames it there, so that a reader sees all of it or nothing.
func replaceFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// counted passes bytes on and remembers their number and digest.
type counted struct {
	to  io.Writer
	sum hash.Hash
	n   int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.sum.Write(p[:n])
	c.n += int64(n)
	return n, err
}

func (c *counted) hash() v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(c.sum.Sum(nil))}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// bothClosers reads from the first and closes the first, then the second.
type bothClosers struct {
	io.ReadCloser
	under io.Closer
}

func (b bothClosers) Close() error { return errors.Join(b.ReadCloser.Close(), b.under.Close()) }
