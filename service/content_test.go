// SPDX-License-Identifier: Apache-2.0

package service

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/connectivity"
)

const (
	infoMethod    = "/containerd.services.content.v1.Content/Info"
	readMethod    = "/containerd.services.content.v1.Content/Read"
	listMethod    = "/containerd.services.content.v1.Content/List"
	pluginsMethod = "/containerd.services.introspection.v1.Introspection/Plugins"
)

// randomBytes returns n bytes that do not repeat, so a piece in the wrong place shows.
func randomBytes(n int) []byte {
	data := make([]byte, n)
	random := rand.NewChaCha8([32]byte{1})
	random.Read(data)
	return data
}

// mustRead opens a blob in namespace "default", reads it and compares it with want.
func mustRead(t *testing.T, source *ContentSource, desc ocispec.Descriptor, want []byte) (isFile bool) {
	t.Helper()
	blob, err := source.Open(namespaces.WithNamespace(t.Context(), "default"), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	got, err := io.ReadAll(blob)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("got %d other bytes, want %d", len(got), len(want))
	}
	_, isFile = blob.(*os.File)
	return isFile
}

func contentPlugin(root string) *introspectionapi.Plugin {
	return &introspectionapi.Plugin{Type: "io.containerd.content.v1", ID: "content", Exports: map[string]string{"root": root}}
}

func TestBlobIsReadFromItsFile(t *testing.T) {
	fake := newFakeContainerd(t)
	data := randomBytes(3 << 20)
	desc := fake.write(t, "default", data, nil)
	source := NewContentSource(fake.dial(t))
	for range 3 {
		if !mustRead(t, source, desc, data) {
			t.Error("not read from the file")
		}
	}
	if n := fake.calls(readMethod); n != 0 {
		t.Errorf("%d Read calls, want none", n)
	}
	if n := fake.calls(pluginsMethod); n != 1 {
		t.Errorf("asked %d times for the content store's root, want once", n)
	}
	if n := fake.calls(infoMethod); n != 3 {
		t.Errorf("asked %d times whether the namespace may read the blob, want 3", n)
	}
}

func TestBlobIsStreamedWhenItsFileIsOutOfReach(t *testing.T) {
	for name, plugins := range map[string][]*introspectionapi.Plugin{
		"proxy content store": {{Type: "io.containerd.content.v1", ID: "content"}},
		"no content plugin":   {},
		"another mount view":  {contentPlugin("/nonexistent")},
		"another plugin":      {{Type: "io.containerd.content.v1", ID: "other", Exports: map[string]string{"root": "/"}}},
	} {
		t.Run(name, func(t *testing.T) {
			fake := newFakeContainerd(t)
			fake.setPlugins(plugins...)
			data := randomBytes(5<<20 + 17)
			desc := fake.write(t, "default", data, nil)
			if mustRead(t, NewContentSource(fake.dial(t)), desc, data) {
				t.Error("read from a file")
			}
			if n := fake.calls(readMethod); n != 1 {
				t.Errorf("%d Read calls, want one for the whole blob", n)
			}
		})
	}
}

func TestEmptyBlob(t *testing.T) {
	fake := newFakeContainerd(t)
	fake.setPlugins()
	desc := fake.write(t, "default", nil, nil)
	mustRead(t, NewContentSource(fake.dial(t)), desc, nil)
}

// A file of another size is not the blob that containerd means.
func TestFileOfAnotherSizeIsNotTaken(t *testing.T) {
	fake := newFakeContainerd(t)
	data := randomBytes(1 << 20)
	desc := fake.write(t, "default", data, nil)
	elsewhere := t.TempDir()
	path := filepath.Join(elsewhere, "blobs", "sha256", desc.Digest.Encoded())
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data[:1000], 0o600); err != nil {
		t.Fatal(err)
	}
	fake.setPlugins(contentPlugin(elsewhere))
	if mustRead(t, NewContentSource(fake.dial(t)), desc, data) {
		t.Error("read from a file")
	}
}

func TestContentStoreThatMovedIsFoundAgain(t *testing.T) {
	fake := newFakeContainerd(t)
	real := fake.plugins
	data := randomBytes(1000)
	desc := fake.write(t, "default", data, nil)
	source := NewContentSource(fake.dial(t))
	fake.setPlugins(contentPlugin(t.TempDir()))
	if mustRead(t, source, desc, data) {
		t.Fatal("read from a file that is not there")
	}
	fake.setPlugins(real...)
	if !mustRead(t, source, desc, data) {
		t.Error("the new root was not used")
	}
}

func TestNamespacesAreKeptApart(t *testing.T) {
	fake := newFakeContainerd(t)
	desc := fake.write(t, "other", randomBytes(1000), nil)
	source := NewContentSource(fake.dial(t))
	if blob, err := source.Open(namespaces.WithNamespace(t.Context(), "default"), desc); err == nil {
		blob.Close()
		t.Error("read a blob of another namespace")
	} else if !errdefs.IsNotFound(err) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	if _, err := source.Open(t.Context(), desc); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without a namespace: got %v, want ErrFailedPrecondition", err)
	}
}

func TestDigestThatIsNoDigestIsRefused(t *testing.T) {
	fake := newFakeContainerd(t)
	source := NewContentSource(fake.dial(t))
	for _, d := range []digest.Digest{"", "sha256:../../etc/passwd", "../x:abc", "sha256:abc"} {
		if _, err := source.Open(namespaces.WithNamespace(t.Context(), "default"), ocispec.Descriptor{Digest: d}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got %v, want ErrInvalidArgument", d, err)
		}
	}
	if n := fake.calls(infoMethod); n != 0 {
		t.Errorf("containerd was asked %d times", n)
	}
}

func TestStreamThatEndsEarlyIsAnError(t *testing.T) {
	fake := newFakeContainerd(t)
	fake.setPlugins()
	data := randomBytes(100_000)
	desc := fake.write(t, "default", data, nil)
	for name, c := range map[string]struct {
		sent []byte
		want error
	}{
		"shorter": {data[:99_999], io.ErrUnexpectedEOF},
		"longer":  {append(data[:100_000:100_000], 1), errdefs.ErrOutOfRange},
	} {
		t.Run(name, func(t *testing.T) {
			fake.reads = func(_ *contentapi.ReadContentRequest, stream contentapi.Content_ReadServer) error {
				return stream.Send(&contentapi.ReadContentResponse{Data: c.sent})
			}
			blob, err := NewContentSource(fake.dial(t)).Open(namespaces.WithNamespace(t.Context(), "default"), desc)
			if err != nil {
				t.Fatal(err)
			}
			defer blob.Close()
			for range 2 { // errors stick
				if _, err := io.ReadAll(blob); !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
			}
		})
	}
}

func TestCancelledCallerStopsTheStream(t *testing.T) {
	fake := newFakeContainerd(t)
	fake.setPlugins()
	began, ended := make(chan struct{}), make(chan struct{})
	fake.reads = func(_ *contentapi.ReadContentRequest, stream contentapi.Content_ReadServer) error {
		close(began)
		defer close(ended)
		<-stream.Context().Done()
		return stream.Context().Err()
	}
	desc := fake.write(t, "default", randomBytes(1000), nil)
	ctx, cancel := context.WithCancel(namespaces.WithNamespace(t.Context(), "default"))
	blob, err := NewContentSource(fake.dial(t)).Open(ctx, desc)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	<-began
	cancel()
	if _, err := io.ReadAll(blob); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	<-ended
}

func TestCloseEndsTheCall(t *testing.T) {
	fake := newFakeContainerd(t)
	fake.setPlugins()
	began, ended := make(chan struct{}), make(chan struct{})
	fake.reads = func(_ *contentapi.ReadContentRequest, stream contentapi.Content_ReadServer) error {
		close(began)
		defer close(ended)
		<-stream.Context().Done()
		return nil
	}
	desc := fake.write(t, "default", randomBytes(1000), nil)
	blob, err := NewContentSource(fake.dial(t)).Open(namespaces.WithNamespace(t.Context(), "default"), desc)
	if err != nil {
		t.Fatal(err)
	}
	<-began
	if err := blob.Close(); err != nil {
		t.Fatal(err)
	}
	<-ended
	if _, err := blob.Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read after Close: got %v, want os.ErrClosed", err)
	}
}

// containerd calls the daemon as soon as it is back, when the daemon's own connection still waits to be made again.
func TestContainerdMayRestart(t *testing.T) {
	fake := newFakeContainerd(t)
	data := randomBytes(1000)
	desc := fake.write(t, "default", data, nil)
	conn := fake.dial(t)
	source := NewContentSource(conn)
	mustRead(t, source, desc, data)
	fake.stop()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(t.Context(), "default"), 200*time.Millisecond)
	defer cancel()
	if _, err := source.Open(ctx, desc); !errors.Is(err, context.DeadlineExceeded) && !errdefs.IsUnavailable(err) {
		t.Errorf("containerd is down: got %v, want DeadlineExceeded or ErrUnavailable", err)
	}
	opened := make(chan error, 1)
	go func() {
		blob, err := source.Open(namespaces.WithNamespace(t.Context(), "default"), desc)
		if err == nil {
			err = blob.Close()
		}
		opened <- err
	}()
	for state := conn.GetState(); state != connectivity.TransientFailure; state = conn.GetState() {
		conn.WaitForStateChange(t.Context(), state)
	}
	fake.start(t)
	if err := <-opened; err != nil {
		t.Errorf("containerd is back: %v", err)
	}
	mustRead(t, source, desc, data)
}
