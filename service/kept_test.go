// SPDX-License-Identifier: Apache-2.0

package service

import (
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
)

func TestOnlyBlobsThatSomethingRefersToAreKept(t *testing.T) {
	fake := newFakeContainerd(t)
	kept := fake.write(t, "default", []byte("layer of an image"), nil)
	dropped := fake.write(t, "default", []byte("layer that only a lease holds"), nil)
	gone := digest.FromString("layer that was collected")
	elsewhere := fake.write(t, "other", []byte("layer of another namespace"), nil)
	fake.write(t, "default", []byte("manifest"), map[string]string{
		"containerd.io/gc.ref.content.config": digest.FromString("config").String(),
		"containerd.io/gc.ref.content.l.0":    kept.Digest.String(),
		"containerd.io/gc.ref.content.l.1":    gone.String(),
		"containerd.io/gc.ref.content.l.2":    elsewhere.Digest.String(),
		"containerd.io/distribution.source":   dropped.Digest.String(),
	})
	got, err := NewContentSource(fake.dial(t)).Kept(namespaces.WithNamespace(t.Context(), "default"))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || !got[kept.Digest] {
		t.Errorf("kept: %v, want only %s", got, kept.Digest)
	}
	fake.stop()
	if _, err := NewContentSource(fake.dial(t)).Kept(namespaces.WithNamespace(t.Context(), "default")); err == nil {
		t.Error("no error from a containerd that is down")
	}
}
