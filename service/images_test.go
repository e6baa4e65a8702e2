// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
)

func snapshotPlugin(id, address string) *introspectionapi.Plugin {
	return &introspectionapi.Plugin{Type: "io.containerd.snapshotter.v1", ID: id, Exports: map[string]string{"address": address}}
}

// writeImages stores two images of "default", one unpacked here and one elsewhere, one of "other", and blobs that are
// no configs.
func writeImages(t *testing.T, fake *fakeContainerd) {
	t.Helper()
	fake.write(t, "default", []byte("config 1"), map[string]string{unpackedLabel + "squash": chainID("1"), "containerd.io/gc.ref.content.0": chainID("blob")})
	fake.write(t, "default", []byte("config 2"), map[string]string{unpackedLabel + "overlayfs": chainID("2")})
	fake.write(t, "default", []byte("layer"), map[string]string{"containerd.io/distribution.source.example.org": "x"})
	fake.write(t, "default", []byte("bare"), nil)
	fake.write(t, "other", []byte("config 3"), map[string]string{unpackedLabel + "squash": chainID("3")})
}

func unpackedIn(t *testing.T, w *imageWatch, namespace string) []string {
	t.Helper()
	tops, err := w.unpacked(t.Context(), namespace)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(maps.Keys(tops))
}

func TestContainerdSendsOnlyImagesOfThisDaemon(t *testing.T) {
	fake := newFakeContainerd(t)
	writeImages(t, fake)
	fake.setPlugins(
		&introspectionapi.Plugin{Type: "io.containerd.snapshotter.v1", ID: "overlayfs"},
		snapshotPlugin("squash", "/run/squash.sock"),
		snapshotPlugin("stargz", "/run/stargz.sock"))
	w := newImageWatch(fake.dial(t), "/run/squash.sock")
	if got, want := unpackedIn(t, w, "default"), []string{chainID("1")}; !slices.Equal(got, want) {
		t.Errorf("default: got %v, want %v", got, want)
	}
	if fake.listed != 1 {
		t.Errorf("containerd sent %d blobs, want only the one config", fake.listed)
	}
	if got, want := unpackedIn(t, w, "other"), []string{chainID("3")}; !slices.Equal(got, want) {
		t.Errorf("other: got %v, want %v", got, want)
	}
	if got := unpackedIn(t, w, "third"); len(got) != 0 {
		t.Errorf("third: got %v, want nothing", got)
	}
}

// Old versions of containerd do not tell the address of a proxy plugin.
func TestUnpackedImagesAreFoundWithoutKnowingOnesName(t *testing.T) {
	fake := newFakeContainerd(t)
	writeImages(t, fake)
	fake.setPlugins(&introspectionapi.Plugin{Type: "io.containerd.snapshotter.v1", ID: "squash"})
	got := unpackedIn(t, newImageWatch(fake.dial(t), "/run/squash.sock"), "default")
	if !slices.Contains(got, chainID("1")) || slices.Contains(got, chainID("3")) {
		t.Errorf("got %v, want the chain of config 1 and nothing of another namespace", got)
	}
}

func TestEventsAreHeardAcrossARestart(t *testing.T) {
	fake := newFakeContainerd(t)
	heard := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		newImageWatch(fake.dial(t), "/run/squash.sock").follow(ctx, func(namespace string) { heard <- namespace })
	}()
	for range 2 {
		<-fake.subscribed
		if got := <-heard; got != "" {
			t.Errorf("a new subscription was announced as %q, want all namespaces", got)
		}
		for _, topic := range []string{"/tasks/create", "/images/create", "/images/update", "/images/delete", "/snapshot/commit"} {
			fake.publish(t, topic, topic) // the namespace says which event it was
		}
		for _, want := range []string{"/images/create", "/images/update", "/snapshot/commit"} {
			if got := <-heard; got != want {
				t.Errorf("heard %q, want %q", got, want)
			}
		}
		fake.stop()
		fake.start(t)
	}
	cancel()
	<-ended
}

// From the callback of the snapshotter to Flatten, with the events and labels of a real pull, and a containerd that
// restarts in between.
func TestDaemonFlattensWhatWasPulled(t *testing.T) {
	fake := newFakeContainerd(t)
	cfg := testConfig(t)
	cfg.ContainerdAddress = fake.address
	fake.setPlugins(snapshotPlugin("squash", cfg.Address))
	flattened := make(chan string, 1)
	backend := &fakeBackend{flatten: func(ctx context.Context, name string) error {
		if namespace, _ := namespaces.Namespace(ctx); namespace != "default" {
			t.Errorf("flatten in namespace %q", namespace)
		}
		flattened <- name
		return nil
	}}
	d := startDaemon(t, cfg, backend, patient)
	<-fake.subscribed
	for i, chain := range []string{"first", "second"} {
		backend.committed(backendName("default", 2*i, "below "+chain))
		backend.committed(backendName("default", 2*i+1, chain))
		fake.write(t, "default", []byte("config of "+chain), map[string]string{unpackedLabel + "squash": chainID(chain)})
		fake.publish(t, "default", "/images/create")
		select {
		case got := <-flattened:
			if want := backendName("default", 2*i+1, chain); got != want {
				t.Errorf("flattened %q, want %q", got, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("the image with chain %q was not flattened", chain)
		}
		fake.stop()
		fake.start(t)
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

func TestStopDoesNotWaitForFlattenOrContainerd(t *testing.T) {
	fake := newFakeContainerd(t)
	cfg := testConfig(t)
	cfg.ContainerdAddress = fake.address
	began := make(chan struct{})
	backend := &fakeBackend{flatten: func(ctx context.Context, _ string) error {
		close(began)
		<-ctx.Done()
		return ctx.Err()
	}}
	d := startDaemon(t, cfg, backend, patient)
	fake.write(t, "default", []byte("config"), map[string]string{unpackedLabel + "squash": chainID("top")})
	backend.committed(backendName("default", 1, "top"))
	<-began
	fake.stop()
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}
