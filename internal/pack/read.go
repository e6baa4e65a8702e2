// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// Verifier reads contents and compares them with their digests. It is quick for
// those that follow each other in the pack. Not safe for concurrent use.
type Verifier struct {
	s        *Store
	throttle func(io.Reader) io.Reader
	decoder
	coded, plain []byte // a cluster, on both sides of the decoder

	// shared holds the bytes of the cluster sharing, for the next content in it;
	// nil: none.
	shared, spare []byte
	sharing       Cluster
}

// Verifier returns a verifier that reads through throttle, which may be nil.
func (s *Store) Verifier(throttle func(io.Reader) io.Reader) *Verifier {
	return &Verifier{s: s, throttle: throttle, coded: make([]byte, ClusterSize),
		plain: make([]byte, ClusterSize), spare: make([]byte, ClusterSize)}
}

// Verify reads a content and compares it with its digest.
//
// ErrNotFound: the pack does not have it. ErrDataLoss: its bytes are others.
func (v *Verifier) Verify(ctx context.Context, d Digest) error {
	p, err := v.s.Lookup(d)
	if err != nil {
		return err
	}
	fresh := v.shared == nil || v.sharing != p.SharedCluster()
	err = v.verify(ctx, d, p)
	if errdefs.IsDataLoss(err) && p.Encoding == EncodingShared && !fresh {
		v.shared = nil // its blocks may have become others'
		err = v.verify(ctx, d, p)
	}
	return err
}

func (v *Verifier) verify(ctx context.Context, d Digest, p Placement) error {
	h := sha256.New()
	if err := v.read(ctx, p, func(b []byte) { h.Write(b) }); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("content sha256:%x at block %d: read: %w: %w", d[:], p.Block, err, errdefs.ErrDataLoss)
	}
	if Digest(h.Sum(nil)) != d {
		return fmt.Errorf("content sha256:%x at block %d has other bytes: %w", d[:], p.Block, errdefs.ErrDataLoss)
	}
	return nil
}

// Copy writes a content to w, and compares it with its digest on the way. p is
// where a Writer that is still open looked it up: sweeps leave it alone.
//
// ErrDataLoss: what was written are other bytes.
func (v *Verifier) Copy(ctx context.Context, w io.Writer, d Digest, p Placement) error {
	h := sha256.New()
	var werr error
	err := v.read(ctx, p, func(b []byte) {
		h.Write(b)
		if werr == nil {
			_, werr = w.Write(b)
		}
	})
	switch {
	case werr != nil:
		return werr
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("content sha256:%x at block %d: read: %w: %w", d[:], p.Block, err, errdefs.ErrDataLoss)
	case Digest(h.Sum(nil)) != d:
		return fmt.Errorf("content sha256:%x at block %d has other bytes: %w", d[:], p.Block, errdefs.ErrDataLoss)
	}
	return nil
}

// read hands the bytes of a content to f, piece by piece.
func (v *Verifier) read(ctx context.Context, p Placement, f func([]byte)) error {
	switch p.Encoding {
	case EncodingShared:
		if c := p.SharedCluster(); v.shared == nil || v.sharing != c {
			v.shared = nil
			b, err := v.cluster(ctx, c)
			if err != nil {
				return err
			}
			v.shared, v.sharing = b, c
			v.plain, v.spare = v.spare, v.plain
		}
		f(v.shared[p.Offset:][:p.Size])
	case EncodingClusters:
		for c := range p.Clusters() {
			b, err := v.cluster(ctx, c)
			if err != nil {
				return err
			}
			f(b)
		}
	default:
		r := v.section(ctx, p.Block, p.Size)
		for left := p.Size; left > 0; {
			b := v.plain[:min(left, ClusterSize)]
			if _, err := io.ReadFull(r, b); err != nil {
				return unexpected(err)
			}
			f(b)
			left -= uint64(len(b))
		}
	}
	return nil
}

// cluster decodes a cluster into v.plain.
func (v *Verifier) cluster(ctx context.Context, c Cluster) ([]byte, error) {
	coded := v.coded[:int(c.Blocks)*BlockSize]
	if _, err := io.ReadFull(v.section(ctx, c.Block, uint64(len(coded))), coded); err != nil {
		return nil, unexpected(err)
	}
	plain := v.plain[:c.Length]
	if err := v.decode(c.Algorithm, coded, plain); err != nil {
		return nil, fmt.Errorf("cluster of %d blocks at %d: %w", c.Blocks, c.Block, err)
	}
	return plain, nil
}

func (v *Verifier) section(ctx context.Context, block uint32, size uint64) io.Reader {
	var r io.Reader = io.NewSectionReader(v.s.file, int64(block)*BlockSize, int64(size))
	if v.throttle != nil {
		r = v.throttle(r)
	}
	return contextReader{ctx, r}
}

// Close gives back what the verifier holds.
func (v *Verifier) Close() {
	if v.zstd != nil {
		v.zstd.Close()
	}
}

// contextReader ends with the context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// unexpected turns the end of a stream that should have gone on into an error
// that nobody mistakes for a good end.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
