// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Registry serves a store on a loopback port. Manifests live in memory, blobs in the store's directory.
type Registry struct {
	store  *Store
	server *http.Server
	addr   string
}

// Serve starts a registry on a free port of the loopback interface.
func (s *Store) Serve() (*Registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	quiet := log.New(io.Discard, "", 0)
	r := &Registry{
		store:  s,
		addr:   l.Addr().String(),
		server: &http.Server{Handler: registry.New(registry.WithBlobHandler(blobs{s}), registry.Logger(quiet))},
	}
	go r.server.Serve(l) // returns when Close is called
	return r, nil
}

// Close ends the registry and drops its connections. Blobs stay.
func (r *Registry) Close() error { return r.server.Close() }

// Push stores img as repository:tag ("demo:1") and returns the reference to pull it by.
func (r *Registry) Push(ctx context.Context, tag string, img v1.Image) (string, error) {
	ref, err := name.ParseReference(r.addr+"/"+tag, name.Insecure)
	if err != nil {
		return "", fmt.Errorf("push %s: %w", tag, err)
	}
	if err := remote.Write(ref, img, remote.WithContext(ctx)); err != nil {
		return "", fmt.Errorf("push %s: %w", tag, err)
	}
	return ref.Name(), nil
}

// blobs lets the registry read and write the store. The layers of the store are there before they are pushed,
// so in practice only image configs are written.
type blobs struct{ store *Store }

var (
	_ registry.BlobHandler     = blobs{}
	_ registry.BlobStatHandler = blobs{}
	_ registry.BlobPutHandler  = blobs{}
)

func (b blobs) Stat(_ context.Context, _ string, h v1.Hash) (int64, error) {
	st, err := os.Stat(b.store.path(h))
	if errors.Is(err, os.ErrNotExist) {
		return 0, registry.ErrNotFound
	}
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (b blobs) Get(_ context.Context, _ string, h v1.Hash) (io.ReadCloser, error) {
	f, err := os.Open(b.store.path(h))
	if errors.Is(err, os.ErrNotExist) {
		return nil, registry.ErrNotFound
	}
	return f, err
}

func (b blobs) Put(_ context.Context, _ string, h v1.Hash, r io.ReadCloser) error {
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return replaceFile(b.store.path(h), data)
}
