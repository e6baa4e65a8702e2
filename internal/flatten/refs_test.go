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
)

func encodeRefs(t testing.TB, blocks ...uint32) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := WriteRefs(&b, Refs{Blocks: blocks, ImageSize: 1 << 40, ImageSum: 0xfedcba98}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRefsComeBackSorted(t *testing.T) {
	for _, blocks := range [][]uint32{nil, {0}, {math.MaxUint32}, {7, 0, math.MaxUint32, 300, 7}} {
		got, err := ReadRefs(bytes.NewReader(encodeRefs(t, blocks...)))
		if want := slices.Sorted(slices.Values(blocks)); err != nil || !slices.Equal(got.Blocks, want) || got.ImageSize != 1<<40 || got.ImageSum != 0xfedcba98 {
			t.Errorf("%+v, %v; want %v", got, err, want)
		}
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
		if again, err := ReadRefs(bytes.NewReader(encodeRefs(t, got.Blocks...))); err != nil || !slices.Equal(again.Blocks, got.Blocks) {
			t.Errorf("%v comes back as %v, %v", got, again, err)
		}
	})
}
