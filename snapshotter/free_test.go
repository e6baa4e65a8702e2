// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/testutil"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/squash-snapshotter/squash/internal/pack"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// bytesOf is content of n bytes that nothing else has.
func bytesOf(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

func has(t *testing.T, s *Snapshotter, content string) bool {
	t.Helper()
	_, err := s.pack.Lookup(pack.Digest(sha256.Sum256([]byte(content))))
	if err != nil && !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil
}

// An image of two layers: the upper one replaces, deletes and hides.
var (
	replaced = bytesOf(1, 300_000)
	deleted  = bytesOf(2, 3_000_000)
	hidden   = bytesOf(3, 50_000)
	kept     = bytesOf(4, 200_000)
	newer    = bytesOf(5, 100_000)

	baseLayer = treetest.Layer(
		treetest.File("etc/replaced", replaced), treetest.File("usr/deleted", deleted), treetest.File("usr/again", kept),
		treetest.Dir("opt"), treetest.File("opt/hidden", hidden), treetest.File("keep", kept))
	topLayer = treetest.Layer(
		treetest.File("etc/replaced", newer), treetest.Whiteout("usr/deleted"), treetest.Opaque("opt"))
)

// flattened unpacks an image and flattens it, as the daemon does when
// containerd says that its unpack is complete.
func flattened(t *testing.T, s *Snapshotter, blobs *blobs, layers ...[]byte) string {
	t.Helper()
	top := unpack(t, s, blobs, layers, s)
	if err := s.Flatten(context.Background(), top); err != nil {
		t.Fatal(err)
	}
	if err := s.Cleanup(context.Background()); err != nil {
		t.Fatal(err)
	}
	return top
}

func TestShadowedContentIsFreed(t *testing.T) {
	testutil.RequiresRoot(t)
	blobs := newBlobs()
	s := open(t, blobs)
	top := flattened(t, s, blobs, baseLayer, topLayer)
	for name, content := range map[string]string{"replaced": replaced, "deleted": deleted, "hidden": hidden} {
		if has(t, s, content) {
			t.Errorf("%s content is still there", name)
		}
	}
	if st := s.pack.Stats(); st.Bytes != uint64(len(kept)+len(newer)) {
		t.Errorf("the pack holds %d bytes of content, the image shows %d", st.Bytes, len(kept)+len(newer))
	}
	treetest.Check(t, [][]byte{baseLayer, topLayer}, view(t, s, top), treetest.Options{ImpliedMtime: true})
}

func TestShadowedContentStaysWhereItCouldNotComeBack(t *testing.T) {
	testutil.RequiresRoot(t)
	t.Run("its blob is gone", func(t *testing.T) {
		blobs := newBlobs()
		s := open(t, blobs)
		top := unpack(t, s, blobs, [][]byte{baseLayer, topLayer}, s)
		blobs.remove(baseLayer)
		if err := s.Flatten(context.Background(), top); err != nil {
			t.Fatal(err)
		}
		if err := s.Cleanup(context.Background()); err != nil {
			t.Fatal(err)
		}
		if !has(t, s, replaced) || !has(t, s, deleted) {
			t.Error("content was freed that nothing can bring back")
		}
	})
	t.Run("the configuration says keep", func(t *testing.T) {
		blobs := newBlobs()
		s := openConfig(t, Config{Content: blobs, Shadowed: ShadowedKeep})
		flattened(t, s, blobs, baseLayer, topLayer)
		if !has(t, s, replaced) || !has(t, s, deleted) {
			t.Error("content was freed")
		}
	})
	t.Run("its layer is in no flattened chain", func(t *testing.T) {
		blobs := newBlobs()
		s := open(t, blobs)
		unpack(t, s, blobs, [][]byte{baseLayer, topLayer}, s)
		s.askSweep()
		if err := s.Cleanup(context.Background()); err != nil {
			t.Fatal(err)
		}
		if !has(t, s, replaced) || !has(t, s, deleted) {
			t.Error("content was freed before it was known what the image shows")
		}
	})
}

// A second image stands on the first one's base and shows what was freed.
func TestFreedContentIsRestoredFromItsBlob(t *testing.T) {
	testutil.RequiresRoot(t)
	blobs := newBlobs()
	s := open(t, blobs)
	flattened(t, s, blobs, baseLayer, topLayer)
	if has(t, s, deleted) {
		t.Fatal("nothing was freed: this test would prove nothing")
	}
	other := treetest.Layer(treetest.File("other", newer))
	blobs.opened = nil
	base := t.Name() + " layer 0"
	top := unpackOn(t, s, blobs, base, [][]byte{other}, s)
	treetest.Check(t, [][]byte{baseLayer, other}, view(t, s, top), treetest.Options{ImpliedMtime: true})
	if n := blobs.timesOpened(baseLayer); n != 1 {
		t.Errorf("the base layer was read %d times, once is enough", n)
	}
}

func TestRestoreWithoutBlobSaysHowToMend(t *testing.T) {
	testutil.RequiresRoot(t)
	blobs := newBlobs()
	s := open(t, blobs)
	first := flattened(t, s, blobs, baseLayer, topLayer)
	blobs.remove(baseLayer)
	other := treetest.Layer(treetest.File("other", newer))
	top := unpackOn(t, s, blobs, t.Name()+" layer 0", [][]byte{other}, s)
	_, err := s.View(context.Background(), "view", top)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "no image there names") {
		t.Fatalf("View: %v; want ErrFailedPrecondition with the news that no image has the blob", err)
	}
	blobs.name(nil, "registry.example/one:1", "registry.example/two:1")
	_, err = s.View(context.Background(), "view", top)
	for _, want := range []string{
		digest.FromBytes(baseLayer).String(), "of image registry.example/one:1, registry.example/two:1:",
		" content fetch registry.example/one:1`",
	} {
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("View: %v; want ErrFailedPrecondition with %q", err, want)
		}
	}
	blobs.name(errors.New("a broken manifest"))
	_, err = s.View(context.Background(), "view", top)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "a broken manifest") || !strings.Contains(err.Error(), "content fetch") {
		t.Errorf("View: %v; want ErrFailedPrecondition with why no image is named, and the command", err)
	}
	treetest.Check(t, [][]byte{baseLayer, topLayer}, view(t, s, first), treetest.Options{ImpliedMtime: true})
	blobs.add(baseLayer)
	treetest.Check(t, [][]byte{baseLayer, other}, view(t, s, top), treetest.Options{ImpliedMtime: true})
}

// What comes back must be what went: a blob that is another one under the same
// name is refused.
func TestRestoreRefusesAnotherBlob(t *testing.T) {
	testutil.RequiresRoot(t)
	blobs := newBlobs()
	s := open(t, blobs)
	flattened(t, s, blobs, baseLayer, topLayer)
	blobs.replace(baseLayer, bytes.Replace(baseLayer, []byte(deleted[:100]), []byte(bytesOf(9, 100)), 1))
	top := unpackOn(t, s, blobs, t.Name()+" layer 0", [][]byte{treetest.Layer(treetest.File("other", newer))}, s)
	if _, err := s.View(context.Background(), "view", top); !errdefs.IsDataLoss(err) {
		t.Fatalf("View: %v; want ErrDataLoss", err)
	}
	if has(t, s, bytesOf(9, 100)+deleted[100:]) {
		t.Error("the other blob's content was published")
	}
}

// Content that a sweep is about to free may be what the next layer brings.
func TestFreedContentThatComesAgainIsStoredAgain(t *testing.T) {
	testutil.RequiresRoot(t)
	blobs := newBlobs()
	s := open(t, blobs)
	flattened(t, s, blobs, baseLayer, topLayer)
	again := treetest.Layer(treetest.File("again", deleted))
	t.Run("another image", func(t *testing.T) {
		top := unpack(t, s, blobs, [][]byte{again}, s)
		treetest.Check(t, [][]byte{again}, view(t, s, top), treetest.Options{ImpliedMtime: true})
		if !has(t, s, deleted) {
			t.Error("content is shown and not in the pack")
		}
	})
}
