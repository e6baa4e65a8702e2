// SPDX-License-Identifier: Apache-2.0

package flatten

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"slices"
	"testing"

	"github.com/squash-snapshotter/squash/internal/pack"
)

func encodeRefs(t testing.TB, blocks ...uint32) []byte {
	t.Helper()
	r := Refs{Blocks: blocks, ImageSize: 1 << 40, ImageSum: 0xfedcba98, Files: 0xa1b2c3d4}
	for i := range blocks {
		r.Used = append(r.Used, uint32(i*1000))
	}
	return encode(t, r)
}

func encode(t testing.TB, r Refs) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := WriteRefs(&b, r); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRefsComeBack(t *testing.T) {
	for _, blocks := range [][]uint32{nil, {0}, {math.MaxUint32}, {0, 7, 300, math.MaxUint32}} {
		got, err := ReadRefs(bytes.NewReader(encodeRefs(t, blocks...)))
		if err != nil || !slices.Equal(got.Blocks, blocks) || got.ImageSize != 1<<40 || got.ImageSum != 0xfedcba98 || got.Files != 0xa1b2c3d4 {
			t.Errorf("%+v, %v; want %v", got, err, blocks)
		}
		for i, used := range got.Used {
			if used != uint32(i*1000) {
				t.Errorf("block %d: %d bytes used", i, used)
			}
		}
	}
}

// What an image shows is noted once for each range of the pack, however many
// contents lie in it.
func TestRefsOfPlaces(t *testing.T) {
	shared := func(block, offset uint32, size uint64) pack.Placement {
		return pack.Placement{Block: block, Blocks: 2, Size: size, Encoding: pack.EncodingShared, Offset: offset}
	}
	r := NewRefs(slices.Values([]pack.Placement{
		shared(70, 0, 1500), {Block: 9, Blocks: 1, Size: 4000}, shared(7, 9000, 2000), shared(70, 1500, 11), {Block: 100, Blocks: 3, Size: 12000, Encoding: pack.EncodingClusters},
	}))
	if !slices.Equal(r.Blocks, []uint32{7, 9, 70, 100}) || !slices.Equal(r.Used, []uint32{2000, 0, 1511, 0}) {
		t.Errorf("%+v", r)
	}
}

func TestDamagedRefsAreNoticed(t *testing.T) {
	b := encodeRefs(t, 1, 200, 70_000)
	for i := range len(b) * 8 {
		b[i/8] ^= 1 << (i % 8)
		if got, err := ReadRefs(bytes.NewReader(b)); !errors.Is(err, ErrRefsDamaged) {
			t.Errorf("bit %d flipped: %v, %v", i, got, err)
		}
		b[i/8] ^= 1 << (i % 8)
	}
	for n := range len(b) {
		if _, err := ReadRefs(bytes.NewReader(b[:n])); !errors.Is(err, ErrRefsDamaged) {
			t.Errorf("%d bytes of %d: %v", n, len(b), err)
		}
	}
}

// sealRefs makes the checksum right again.
func sealRefs(b []byte) []byte {
	n := len(b) - 4
	return binary.LittleEndian.AppendUint32(b[:n:n], crc32.Checksum(b[:n], castagnoli))
}

func FuzzReadRefs(f *testing.F) {
	f.Add(encodeRefs(f))
	f.Add(encodeRefs(f, 1, 200, 70_000))
	odd := encodeRefs(f, 5, 6)
	binary.LittleEndian.PutUint32(odd[12:], math.MaxUint32) // count-huge
	f.Add(odd)
	odd = append(encodeRefs(f)[:refsHeader], 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 0, 0, 0, 0) // sum-overflow
	binary.LittleEndian.PutUint32(odd[12:], 2)
	f.Add(odd)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 4 {
			return
		}
		got, err := ReadRefs(bytes.NewReader(sealRefs(b)))
		if err != nil {
			return
		}
		if !slices.IsSorted(got.Blocks) {
			t.Errorf("not sorted: %v", got)
		}
		if again, err := ReadRefs(bytes.NewReader(encode(t, got))); err != nil || !slices.Equal(again.Blocks, got.Blocks) || !slices.Equal(again.Used, got.Used) {
			t.Errorf("%v comes back as %v, %v", got, again, err)
		}
	})
}
