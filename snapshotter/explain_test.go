// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"crypto/sha256"
	"math"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/testutil"
	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// Repacking drops idle images for a moment and builds them again; not one that somebody tells about.
func TestAnImageStaysWhileItIsExplained(t *testing.T) {
	testutil.RequiresRoot(t)
	blobs := newBlobs()
	s := open(t, blobs)
	top := unpack(t, s, blobs, verifiedImage(), s)
	places, err := s.Places(t.Context(), top)
	if err != nil {
		t.Fatal(err)
	}
	tocs, err := s.summaries(t.Context(), layerIDs(t, s, top))
	if err != nil {
		t.Fatal(err)
	}
	image := flatImage(chainOf(tocs))
	if err := s.dropImage(image, math.MaxUint64); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("dropped: %v", err)
	}
	places.Close()
	if err := s.dropImage(image, math.MaxUint64); err != nil {
		t.Errorf("not dropped afterwards: %v", err)
	}
}

func TestSizesAndPlaces(t *testing.T) {
	testutil.RequiresRoot(t)
	blobs := newBlobs()
	s := openConfig(t, Config{Content: blobs, Compression: Compression{Algorithm: "none"}})
	common, own := strings.Repeat("common ", 3000), strings.Repeat("own ", 3000)
	first := unpack(t, s, blobs, [][]byte{treetest.Layer(treetest.File("a", common), treetest.File("b", own)), treetest.Layer(treetest.Whiteout("x"), treetest.File("c", "tiny"))}, s)
	if z := sizes(t, s, first); z.Flat || z.LayerBytes != uint64(len(common)+len(own)+4) {
		t.Errorf("before it is flat: got %+v", z)
	}
	places, err := s.Places(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	places.Close()
	alone := sizes(t, s, first)
	if !alone.Flat || alone.Files != 3 || alone.Shared != 0 || alone.Own < uint64(len(common)+len(own)) {
		t.Errorf("alone: got %+v", alone)
	}
	second := unpackOn(t, s, blobs, first, [][]byte{treetest.Layer(treetest.Whiteout("b"))}, s)
	if err := s.Flatten(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	both := sizes(t, s, first)
	if both.Shared == 0 || both.Own+both.Shared != alone.Own {
		t.Errorf("with another image: got %+v, alone %+v", both, alone)
	}
	if places, err = s.Places(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	defer places.Close()
	for content, want := range map[string]bool{common: true, own: false} {
		_, bytes, shared, err := places.Place(layer.Digest(sha256.Sum256([]byte(content))))
		if err != nil || shared != want || bytes < uint64(len(content)) {
			t.Errorf("%.6s: %d bytes, shared %v, %v", content, bytes, shared, err)
		}
	}
	if _, _, _, err := places.Place(layer.Digest{1}); !errdefs.IsNotFound(err) {
		t.Errorf("what is not there: %v", err)
	}
	if z, err := s.Sizes(t.Context(), []string{"nobody"}); err != nil || !errdefs.IsNotFound(z[0].Err) {
		t.Errorf("a name that is not there: %+v, %v", z, err)
	}
}

func sizes(t *testing.T, s *Snapshotter, name string) ImageSizes {
	t.Helper()
	z, err := s.Sizes(t.Context(), []string{name})
	if err != nil || z[0].Err != nil {
		t.Fatalf("%+v, %v", z, err)
	}
	return z[0]
}
