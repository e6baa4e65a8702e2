// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// Mender writes contents again where they are: whoever refers to their blocks
// need not know. Not safe for concurrent use.
type Mender struct {
	s      *Store
	codecs map[[2]uint8]*codec // by algorithm and level
	shared map[uint32]*mending // by first block
	buf    []byte
}

// mending is a shared cluster that is being put together again.
type mending struct {
	place   Placement
	plain   []byte
	missing map[Digest]Placement
	given   bool // some content was Put
}

// Mend starts to write contents again. wanted are those whose bytes have to be
// Put: the ones that are bad, and others that share a cluster with them and
// cannot be read either.
func (s *Store) Mend(ctx context.Context, bad []Digest) (m *Mender, wanted []Digest, err error) {
	m = &Mender{s: s, codecs: map[[2]uint8]*codec{}, shared: map[uint32]*mending{}, buf: make([]byte, encodeBuffer)}
	for _, d := range bad {
		p, err := s.Lookup(d)
		switch {
		case err != nil: // freed meanwhile
		case p.Encoding == EncodingShared:
			m.shared[p.Block] = &mending{place: p, plain: make([]byte, p.Decoded()), missing: map[Digest]Placement{}}
		default:
			wanted = append(wanted, d)
		}
	}
	if len(m.shared) == 0 {
		return m, wanted, nil
	}
	v := s.Verifier(nil)
	defer v.Close()
	s.Each(func(d Digest, p Placement) bool {
		c := m.shared[p.Block]
		if c == nil || p.Encoding != EncodingShared {
			return true
		}
		if v.verify(ctx, d, p) == nil {
			copy(c.plain[p.Offset:], v.shared[p.Offset:][:p.Size])
		} else {
			c.missing[d] = p
			wanted = append(wanted, d)
		}
		return true
	})
	return m, wanted, ctx.Err()
}

// Put writes a content again, from r. Those that share a cluster are written
// by Close. The bytes must be those of the digest, or they are not what was
// meant to be there either: ErrDataLoss.
func (m *Mender) Put(d Digest, r io.Reader) error {
	p, err := m.s.Lookup(d)
	if err == nil {
		sum := sha256.New()
		if err = m.put(d, p, io.TeeReader(io.LimitReader(r, int64(p.Size)), sum)); err == nil && Digest(sum.Sum(nil)) != d {
			err = fmt.Errorf("what was given has other bytes: %w", errdefs.ErrDataLoss)
		}
	}
	if err != nil {
		return fmt.Errorf("mend content sha256:%x: %w", d[:], err)
	}
	return nil
}

func (m *Mender) put(d Digest, p Placement, r io.Reader) error {
	switch p.Encoding {
	case EncodingShared:
		c := m.shared[p.Block]
		if c == nil {
			return fmt.Errorf("it is not being mended: %w", errdefs.ErrFailedPrecondition)
		}
		b := make([]byte, p.Size)
		if _, err := io.ReadFull(r, b); err != nil {
			return unexpected(err)
		}
		if sha256.Sum256(b) == d { // or Put refuses it
			copy(c.plain[p.Offset:], b)
			delete(c.missing, d)
			c.given = true
		}
	case EncodingClusters:
		b := make([]byte, ClusterSize)
		for c := range p.Clusters() {
			if _, err := io.ReadFull(r, b[:c.Length]); err != nil {
				return unexpected(err)
			}
			if err := m.write(c, p.level, b[:c.Length]); err != nil {
				return err
			}
		}
	default:
		b := make([]byte, smallContent)
		for done := uint64(0); done < p.Size; {
			b := b[:min(p.Size-done, smallContent)]
			if _, err := io.ReadFull(r, b); err != nil {
				return unexpected(err)
			}
			done += uint64(len(b))
			at := int64(p.Block)*BlockSize + int64(done) - int64(len(b))
			b = append(b, zeros[:-len(b)&(BlockSize-1)]...)
			if _, err := m.s.file.WriteAt(b, at); err != nil {
				return err
			}
		}
	}
	return nil
}

// Close writes the shared clusters. What nobody had for them is zeros now, and
// as bad as it was.
func (m *Mender) Close() error {
	var errs error
	for block, c := range m.shared {
		if c.given {
			if err := m.write(c.place.SharedCluster(), c.place.level, c.plain); err != nil {
				errs = errors.Join(errs, fmt.Errorf("mend the cluster at block %d: %w", block, err))
			}
		}
	}
	return errs
}

// write compresses a cluster again, into the blocks that it has.
func (m *Mender) write(c Cluster, level uint8, plain []byte) error {
	coded := make([]byte, int(c.Blocks)*BlockSize)
	if c.Algorithm == Stored {
		copy(coded, plain)
	} else if coded = m.encode(c, level, plain); coded == nil {
		return fmt.Errorf("its compressed form no longer fits its %d blocks: %w", c.Blocks, errdefs.ErrFailedPrecondition)
	}
	_, err := m.s.file.WriteAt(coded, int64(c.Block)*BlockSize)
	return err
}

// encode compresses into exactly the blocks of a cluster, which the encoder that
// made it does at once, unless it is another version by now. Nil: it could not.
func (m *Mender) encode(c Cluster, level uint8, plain []byte) []byte {
	levels := []uint8{level}
	if c.Algorithm == Zstd {
		levels = append(levels, 1, defaultZstdLevel, 7, 11)
	}
	for _, level := range levels {
		key := [2]uint8{uint8(c.Algorithm), level}
		if m.codecs[key] == nil {
			made, err := newCodec(c.Algorithm, int(level))
			if err != nil {
				return nil
			}
			m.codecs[key] = made
		}
		coded := m.codecs[key].encode(plain, m.buf)
		if len(coded) == int(c.Blocks)*BlockSize {
			return bytes.Clone(coded)
		}
		if c.Algorithm == Zstd && coded != nil {
			if coded = stretch(coded, int(c.Blocks)); coded != nil {
				return coded
			}
		}
	}
	return nil
}
