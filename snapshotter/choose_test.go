// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/pack"
)

func TestCompressionThatIsConfigured(t *testing.T) {
	for text, want := range map[string]Compression{
		"auto": {"auto", 0}, "zstd": {"zstd", 0}, "none": {"none", 0}, "lz4:9": {"lz4", 9}, "zstd:22": {"zstd", 22}, "zstd:1": {"zstd", 1},
	} {
		if got, err := ParseCompression(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "gzip", "zstd:", "zstd:0", "zstd:23", "zstd:-1", "zstd:x", "lz4:10", "none:1", "auto:1", ":3", "zstd:3:3"} {
		if got, err := ParseCompression(text); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), CompressionForms) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestCompressionIsWhatTheKernelReads(t *testing.T) {
	all := mounts.Capabilities{LZ4: true, Zstd: true, Fragments: true}
	old := mounts.Capabilities{LZ4: true, ZstdReason: "it is too old"}
	none := mounts.Capabilities{LZ4Reason: "it is without", ZstdReason: "it is without"}
	for _, c := range []struct {
		caps mounts.Capabilities
		name string
		want pack.Algorithm
	}{
		{all, "", pack.Zstd}, {all, "auto", pack.Zstd}, {all, "lz4", pack.LZ4}, {all, "none", pack.Stored},
		{old, "auto", pack.LZ4}, {old, "lz4", pack.LZ4}, {none, "auto", pack.Stored}, {none, "none", pack.Stored},
	} {
		if _, got, err := (Compression{Algorithm: c.name}).choose(c.caps); err != nil || got != c.want {
			t.Errorf("%+v: %q is %s, %v", c.caps, c.name, got, err)
		}
	}
	for name, caps := range map[string]mounts.Capabilities{"zstd": old, "lz4": none} {
		_, _, err := (Compression{Algorithm: name}).choose(caps)
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "it is ") {
			t.Errorf("%q that the kernel lacks: %v", name, err)
		}
	}
	if _, _, err := (Compression{Algorithm: "gzip"}).choose(all); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an algorithm that is not known: %v", err)
	}
}
