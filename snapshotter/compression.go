// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/pack"
)

// Compression says how contents are compressed.
type Compression struct {
	Algorithm string // "auto", "zstd", "lz4" or "none"; "" is "auto"
	Level     int    // 0: the algorithm's default
}

// CompressionForms says what ParseCompression takes.
const CompressionForms = `"auto", "zstd", "lz4" or "none", or with a level "zstd:1" to "zstd:22", "lz4:1" to "lz4:9"`

var algorithms = map[string]pack.Algorithm{"zstd": pack.Zstd, "lz4": pack.LZ4, "none": pack.Stored}

// ParseCompression reads the form in which compression is configured.
// ErrInvalidArgument: it is none of CompressionForms.
func ParseCompression(text string) (Compression, error) {
	c := Compression{Algorithm: text}
	if name, level, ok := strings.Cut(text, ":"); ok {
		n, err := strconv.Atoi(level)
		if a := algorithms[name]; err != nil || n < 1 || n > a.MaxLevel() {
			return c, fmt.Errorf("compression %q: it is %s: %w", text, CompressionForms, errdefs.ErrInvalidArgument)
		}
		c = Compression{name, n}
	}
	if _, ok := algorithms[c.Algorithm]; !ok && c.Algorithm != "auto" {
		return c, fmt.Errorf("compression %q: it is %s: %w", text, CompressionForms, errdefs.ErrInvalidArgument)
	}
	return c, nil
}

// choose settles how contents are compressed: if nothing is demanded, in the
// densest form that the kernel reads. ErrFailedPrecondition: it cannot read what
// is demanded.
func (c Compression) choose(caps mounts.Capabilities) (pack.Option, pack.Algorithm, error) {
	a, ok := algorithms[c.Algorithm]
	switch {
	case ok:
	case c.Algorithm != "" && c.Algorithm != "auto":
		return nil, 0, fmt.Errorf("compression %q: it is %s: %w", c.Algorithm, CompressionForms, errdefs.ErrInvalidArgument)
	case caps.Zstd:
		a = pack.Zstd
	case caps.LZ4:
		a = pack.LZ4
	}
	for _, missing := range []struct {
		algorithm pack.Algorithm
		ok        bool
		reason    string
	}{{pack.Zstd, caps.Zstd, caps.ZstdReason}, {pack.LZ4, caps.LZ4, caps.LZ4Reason}} {
		if a == missing.algorithm && !missing.ok {
			return nil, 0, fmt.Errorf("compression %q: the kernel cannot read it: %s; choose another one, or \"auto\": %w", a, missing.reason, errdefs.ErrFailedPrecondition)
		}
	}
	return pack.Compress(a, c.Level, caps.Fragments), a, nil
}
