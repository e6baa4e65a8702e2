// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/flatten"
	"github.com/squash-snapshotter/squash/internal/layer"
)

// chain names a stack of layers by what they hold: the digest of the bottom
// TOC, folded with those above. It has nothing to do with names that clients
// give, so two snapshots of the same layers share a flat image.
type chain [sha256.Size]byte

func (c chain) String() string { return hex.EncodeToString(c[:]) }

// chainOf folds the digests of TOCs, the bottom one first.
func chainOf(tocs []layer.Summary) (c chain) {
	if all := chainsOf(tocs); len(all) > 0 {
		c = all[len(all)-1]
	}
	return c
}

// chainsOf returns the chains of one layer, of two, and so on.
func chainsOf(tocs []layer.Summary) []chain {
	chains := make([]chain, len(tocs))
	for i, t := range tocs {
		if i == 0 {
			chains[i] = chain(t.Digest)
			continue
		}
		chains[i] = sha256.Sum256(append(slices.Clone(chains[i-1][:]), t.Digest[:]...))
	}
	return chains
}

func parseChain(name string) (c chain, err error) {
	b, err := hex.DecodeString(name)
	if err != nil || len(b) != len(c) {
		return c, fmt.Errorf("%q is no chain", name)
	}
	return chain(b), nil
}

// committedChain returns the IDs of a committed snapshot and its parents, the
// bottom one first.
func committedChain(ctx context.Context, name string) ([]string, error) {
	var ids []string
	for name != "" {
		id, info, _, err := storage.GetInfo(ctx, name)
		if err != nil {
			return nil, err
		}
		if info.Kind != snapshots.KindCommitted {
			return nil, fmt.Errorf("snapshot %s is not committed: %w", name, errdefs.ErrInvalidArgument)
		}
		ids = append(ids, id)
		name = info.Parent
	}
	slices.Reverse(ids)
	return ids, nil
}

// readChain is committedChain in a transaction of its own.
func (s *Snapshotter) readChain(ctx context.Context, name string) (ids []string, err error) {
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		ids, err = committedChain(ctx, name)
		return err
	})
	return ids, err
}

// summaries returns the trailers of the layers' TOCs.
func (s *Snapshotter) summaries(ctx context.Context, ids []string) (tocs []layer.Summary, err error) {
	tocs = make([]layer.Summary, len(ids))
	for i, id := range ids {
		if tocs[i], err = s.summary(ctx, id); err != nil {
			return nil, err
		}
	}
	return tocs, nil
}

// summary returns the trailer of a layer's TOC. A layer that was committed as
// an upper directory is taken in first. ErrFailedPrecondition: the layer has
// neither.
func (s *Snapshotter) summary(ctx context.Context, id string) (layer.Summary, error) {
	if sum, err := s.knownSummary(id); !os.IsNotExist(err) {
		return sum, err
	}
	if err := s.once(ctx, "convert "+id, func(ctx context.Context) error { return s.makeTOC(ctx, id) }); err != nil {
		return layer.Summary{}, err
	}
	return s.knownSummary(id)
}

// knownSummary is summary for a layer that has its TOC.
func (s *Snapshotter) knownSummary(id string) (layer.Summary, error) {
	s.mu.Lock()
	sum, ok := s.layers[id]
	s.mu.Unlock()
	if ok {
		return sum, nil
	}
	sum, err := readSummary(s.toc(id))
	if err != nil {
		if !os.IsNotExist(err) {
			err = fmt.Errorf("layer %s: %w", id, err)
		}
		return layer.Summary{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.layers[id] = sum
	return sum, nil
}

func readSummary(path string) (layer.Summary, error) {
	f, err := os.Open(path)
	if err != nil {
		return layer.Summary{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return layer.Summary{}, err
	}
	return layer.ReadSummary(f, st.Size())
}

func (s *Snapshotter) tocReaders(ids []string) []flatten.Layer {
	open := make([]flatten.Layer, len(ids))
	for i, id := range ids {
		open[i] = func() (io.ReadCloser, error) {
			f, err := os.Open(s.toc(id))
			if err != nil {
				return nil, err
			}
			return struct {
				io.Reader
				io.Closer
			}{bufio.NewReaderSize(f, 256<<10), f}, nil
		}
	}
	return open
}
