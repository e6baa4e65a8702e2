// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// sampleRecords returns n records with digests that are spread evenly.
func sampleRecords(n int) []record {
	rs := make([]record, n)
	var b [8]byte
	for i := range rs {
		binary.LittleEndian.PutUint64(b[:], uint64(i))
		rs[i] = record{sha256.Sum256(b[:]), Placement{Block: uint32(i), Blocks: 1, Stored: 1, Size: uint64(1 + i%BlockSize)}}
	}
	slices.SortFunc(rs, compareRecords)
	return rs
}

// encodedRecords returns records of every encoding: see the
// constants below.
func encodedRecords() []record {
	place := []Placement{
		{Size: 5000, Block: 1, Blocks: 2, Stored: 2},
		// One input; several: compressed, zeros, as it is, compressed; its last
		// block is the cluster of zeros.
		{Size: 40_000, Block: 3, Blocks: 4, Stored: 4, Encoding: EncodingClusters, Algorithm: LZ4, bits: 17},
		{Size: 3*ClusterSize + 5000, Block: 7, Blocks: 37, Stored: 37, Encoding: EncodingClusters, Algorithm: Zstd, level: 3, bits: 17, inputs: "\x02\x00\xa0\x82"},
		{Size: ClusterSize + 1, Block: 44, Blocks: 32, Stored: 32, Encoding: EncodingClusters, Algorithm: LZ4, level: 9, bits: 17, inputs: "\x1f\x81"},
		{Size: 1025, Block: 76, Blocks: 3, Stored: 3, Encoding: EncodingShared, Algorithm: Zstd, level: 3, Offset: 0, decoded: 8, members: 3},
		{Size: 30_000, Block: 76, Blocks: 3, Stored: 3, Encoding: EncodingShared, Algorithm: Zstd, level: 3, Offset: 1025, decoded: 8, members: 3},
		{Size: 1500, Block: 79, Blocks: 1, Stored: 1, Encoding: EncodingShared, Offset: 2000, decoded: 1, members: 2},
	}
	rs := make([]record, len(place))
	for i, p := range place {
		rs[i] = record{Digest{byte(0x20 * (i + 1)), 31: byte(i)}, p}
	}
	return rs
}

// Places of encodedRecords in the file.
const (
	plainRecord = headerSize + iota*recordSize
	oneInputRecord
	inputsRecord
	lz4InputsRecord
	sharedRecord
	lastSharedRecord
	storedSharedRecord
	inputsOfRecords
)

func encodeIndex(t testing.TB, g span, rs []record) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := writeIndex(&b, g, slices.Values(rs)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// reseal makes the checksums right again.
func reseal(b []byte) []byte {
	le := binary.LittleEndian
	le.PutUint32(b[56:], crc32.Checksum(b[headerSize:], castagnoli))
	le.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return b
}

// oddIndexes are index files that parseIndex must refuse, by what is odd. What
// is only newer must not be taken for damage.
func oddIndexes(t testing.TB) map[string]struct {
	file  []byte
	newer bool
} {
	good := func() []byte { return encodeIndex(t, span{1, 2, 3}, sampleRecords(3)) }
	le := binary.LittleEndian
	odd := map[string]struct {
		file  []byte
		newer bool
	}{}
	add := func(name string, newer bool, change func(b []byte) []byte) {
		odd[name] = struct {
			file  []byte
			newer bool
		}{change(good()), newer}
	}
	add("empty", false, func(b []byte) []byte { return nil })
	add("header-cut", false, func(b []byte) []byte { return b[:headerSize-1] })
	add("record-cut", false, func(b []byte) []byte { return b[:len(b)-1] })
	add("tail", false, func(b []byte) []byte { return append(b, 0) })
	add("tail-of-a-record", false, func(b []byte) []byte { return reseal(append(b, make([]byte, recordSize)...)) })
	add("magic", false, func(b []byte) []byte { b[0]++; return reseal(b) })
	add("header-checksum", false, func(b []byte) []byte { b[60]++; return b })
	add("records-checksum", false, func(b []byte) []byte { b[headerSize+40]++; return b })
	add("record-size", false, func(b []byte) []byte { le.PutUint32(b[12:], 128); return reseal(b) })
	add("count-short", false, func(b []byte) []byte { le.PutUint64(b[16:], 2); return reseal(b) })
	add("count-overflow", false, func(b []byte) []byte { le.PutUint64(b[16:], 1<<58+3); return reseal(b) })
	add("auxiliary-area", false, func(b []byte) []byte { le.PutUint64(b[48:], 1); return reseal(b) })
	add("span-reversed", false, func(b []byte) []byte { le.PutUint64(b[32:], 3); return reseal(b) })
	add("records-out-of-order", false, func(b []byte) []byte {
		copy(b[headerSize:], slices.Concat(b[headerSize+recordSize:headerSize+2*recordSize], b[headerSize:headerSize+recordSize]))
		return reseal(b)
	})
	add("record-twice", false, func(b []byte) []byte {
		copy(b[headerSize:], b[headerSize+recordSize:headerSize+2*recordSize])
		return reseal(b)
	})
	add("placement-behind-the-end", false, func(b []byte) []byte { le.PutUint32(b[headerSize+40:], 1<<32-1); return reseal(b) })
	add("placement-too-small", false, func(b []byte) []byte { le.PutUint64(b[headerSize+32:], BlockSize+1); return reseal(b) })
	add("placement-size-overflow", false, func(b []byte) []byte { le.PutUint64(b[headerSize+32:], 1<<64-1); return reseal(b) })
	add("placement-stores-too-much", false, func(b []byte) []byte { le.PutUint32(b[headerSize+48:], 2); return reseal(b) })
	add("reserved-bytes", false, func(b []byte) []byte { b[headerSize+53] = 1; return reseal(b) })
	add("auxiliary-offset", false, func(b []byte) []byte { b[headerSize+56] = 1; return reseal(b) })

	// Odd records of the encodings that are not plain.
	addRecord := func(name string, newer bool, change func(b []byte)) {
		b := encodeIndex(t, span{1, 2, 3}, encodedRecords())
		change(b)
		odd[name] = struct {
			file  []byte
			newer bool
		}{reseal(b), newer}
	}
	set8 := func(at int, v byte) func([]byte) { return func(b []byte) { b[at] = v } }
	set16 := func(at int, v uint16) func([]byte) { return func(b []byte) { le.PutUint16(b[at:], v) } }
	set32 := func(at int, v uint32) func([]byte) { return func(b []byte) { le.PutUint32(b[at:], v) } }
	set64 := func(at int, v uint64) func([]byte) { return func(b []byte) { le.PutUint64(b[at:], v) } }
	addRecord("plain-with-bits", false, set8(plainRecord+54, clusterBits))
	addRecord("plain-with-level", false, set8(plainRecord+55, 3))
	addRecord("plain-with-inputs", false, set64(plainRecord+56, 1))
	addRecord("plain-and-compressed", false, set8(plainRecord+53, byte(LZ4)))
	addRecord("clusters-not-compressed", false, set8(oneInputRecord+53, byte(Stored)))
	addRecord("clusters-of-nothing", false, set64(oneInputRecord+32, 0))
	addRecord("clusters-in-no-blocks", false, func(b []byte) { le.PutUint64(b[oneInputRecord+44:], 0) })
	addRecord("clusters-stored-in-more-than-their-blocks", false, set32(oneInputRecord+48, 5))
	addRecord("input-smaller-than-a-block", false, set8(oneInputRecord+54, blockBits-1))
	addRecord("input-larger-than-a-cluster", false, set8(oneInputRecord+54, clusterBits+1))
	addRecord("one-input-with-an-offset", false, set64(oneInputRecord+56, 1))
	addRecord("one-input-that-does-not-shrink", false, func(b []byte) {
		le.PutUint64(b[oneInputRecord+44:], 10<<32|10)
	})
	addRecord("a-block-of-input-in-many", false, set64(oneInputRecord+32, 4096))
	addRecord("inputs-behind-the-area", false, set64(inputsRecord+56, 7))
	addRecord("inputs-cut-by-the-area", false, set64(lz4InputsRecord+56, 5))
	addRecord("inputs-far-away", false, set64(inputsRecord+56, 1<<64-2))
	addRecord("inputs-of-two", false, func(b []byte) { // the last input of one is the first of the other
		b[inputsOfRecords+3], b[inputsOfRecords+4] = 0x1f, 0x81
		le.PutUint64(b[lz4InputsRecord+56:], 3)
		le.PutUint64(b[inputsRecord+44:], 66<<32|66)
		le.PutUint64(b[inputsRecord+32:], 4*ClusterSize)
		le.PutUint32(b[lz4InputsRecord+40:], 80)
	})
	addRecord("more-inputs-than-there-are", false, set64(inputsRecord+32, 1<<63))
	addRecord("inputs-of-no-record", false, func(b []byte) { // a plain content in place of the last one with inputs
		copy(b[lz4InputsRecord+32:][:32], b[plainRecord+32:][:32])
		le.PutUint32(b[lz4InputsRecord+40:], 44)
	})
	addRecord("clusters-end-before-their-blocks", false, set32(inputsRecord+44, 38))
	addRecord("clusters-end-behind-their-blocks", false, func(b []byte) { le.PutUint64(b[inputsRecord+44:], 36<<32|36) })
	addRecord("no-cluster-of-zeros", false, func(b []byte) { // 2+32+2 blocks and no more
		b[inputsOfRecords+1] = 0x81
	})
	addRecord("a-part-of-an-input-is-zeros", false, func(b []byte) {
		b[inputsOfRecords+3] = inputZeros
		le.PutUint64(b[inputsRecord+44:], 35<<32|35)
	})
	addRecord("input-stored-in-fewer-blocks", false, func(b []byte) {
		b[inputsOfRecords+2] = inputStored | 31
		le.PutUint64(b[inputsRecord+44:], 36<<32|36)
	})
	addRecord("input-stored-in-no-blocks", false, func(b []byte) {
		b[inputsOfRecords+2] = inputStored
		le.PutUint64(b[inputsRecord+44:], 5<<32|5)
	})
	addRecord("input-in-as-many-blocks", false, func(b []byte) {
		b[inputsOfRecords] = 32
		le.PutUint64(b[inputsRecord+44:], 67<<32|67)
	})
	addRecord("shared-with-bits", false, set8(sharedRecord+54, clusterBits))
	addRecord("shared-stored-with-level", false, set8(storedSharedRecord+55, 3))
	addRecord("shared-by-nobody", false, set16(sharedRecord+62, 0))
	addRecord("shared-cluster-of-nothing", false, func(b []byte) {
		le.PutUint64(b[sharedRecord+32:], 0)
		le.PutUint16(b[sharedRecord+60:], 0)
	})
	addRecord("shared-cluster-too-large", false, set16(sharedRecord+60, ClusterSize/BlockSize+1))
	addRecord("shared-behind-the-cluster", false, set32(lastSharedRecord+56, 2769))
	addRecord("shared-larger-than-the-cluster", false, set64(sharedRecord+32, 8*BlockSize+1))
	addRecord("shared-size-overflow", false, set64(lastSharedRecord+32, 1<<64-1))
	addRecord("shared-in-no-blocks", false, func(b []byte) { le.PutUint64(b[sharedRecord+44:], 0) })
	addRecord("shared-that-does-not-shrink", false, func(b []byte) { le.PutUint64(b[sharedRecord+44:], 8<<32|8) })
	addRecord("shared-stored-in-fewer-blocks", false, func(b []byte) {
		le.PutUint16(b[storedSharedRecord+60:], 2)
	})
	addRecord("shared-block-in-many", false, func(b []byte) { // LZ4 in more blocks than a cluster has
		b[storedSharedRecord+53] = byte(LZ4)
		le.PutUint64(b[storedSharedRecord+44:], 1000<<32|1000)
	})
	addRecord("shared-behind-the-end", false, set32(sharedRecord+40, 1<<32-1))
	addRecord("feature-not-said", false, set32(24, 0))
	addRecord("newer-algorithm", true, set8(inputsRecord+53, byte(Zstd)+1))
	addRecord("newer-algorithm-shared", true, set8(sharedRecord+53, byte(Zstd)+1))
	add("feature-not-used", false, func(b []byte) []byte { le.PutUint32(b[24:], featureClusters); return reseal(b) })

	add("newer-version", true, func(b []byte) []byte { le.PutUint32(b[8:], 2); return reseal(b) })
	add("newer-feature", true, func(b []byte) []byte { le.PutUint32(b[24:], 1<<31); return reseal(b) })
	add("newer-encoding", true, func(b []byte) []byte { b[headerSize+52] = 3; return reseal(b) })
	return odd
}

func TestOddIndexFilesAreRefused(t *testing.T) {
	if _, records, aux, err := parseIndex(encodeIndex(t, span{1, 2, 3}, encodedRecords())); err != nil || len(aux) != 6 || headerSize+len(records) != inputsOfRecords {
		t.Fatalf("%d bytes of records, %d of inputs, error %v: the file that odd ones are made of is odd itself", len(records), len(aux), err)
	}
	for name, odd := range oddIndexes(t) {
		_, _, _, err := parseIndex(odd.file)
		if err == nil || errors.Is(err, errDamaged) == odd.newer {
			t.Errorf("%s: error %v, newer: %t", name, err, odd.newer)
		}
	}
}

func TestEveryFlippedBitOfAnIndexIsFound(t *testing.T) {
	for _, rs := range [][]record{sampleRecords(4), encodedRecords()} {
		b := encodeIndex(t, span{1, 2, 3}, rs)
		if _, _, _, err := parseIndex(b); err != nil {
			t.Fatal(err)
		}
		for i := range len(b) * 8 {
			b[i/8] ^= 1 << (i % 8)
			if _, _, _, err := parseIndex(b); !errors.Is(err, errDamaged) {
				t.Errorf("byte %d, bit %d: error %v", i/8, i%8, err)
			}
			b[i/8] ^= 1 << (i % 8)
		}
	}
}

// The format: these bytes may only change together with indexVersion.
func TestIndexBytes(t *testing.T) {
	for _, c := range []struct {
		records []record
		want    string
	}{
		{[]record{
			{Digest{0x11, 31: 0x22}, Placement{Block: 0x01020304, Blocks: 0x111, Stored: 0x110, Size: 0x110fff}},
			{Digest{0x33}, Placement{Block: maxBlocks - 1, Blocks: 1, Stored: 1, Size: 1}},
		}, wantIndexBytes},
		{encodedRecords(), wantEncodedBytes},
	} {
		b := encodeIndex(t, span{1, 2, 3}, c.records)
		got := strings.Join(slices.Collect(func(yield func(string) bool) {
			for c := range slices.Chunk(b, 32) {
				yield(hex.EncodeToString(c))
			}
		}), "\n")
		if want := strings.TrimSpace(c.want); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
}

const wantIndexBytes = `
53515348494e4458010000004000000002000000000000000000000003000000
010000000000000002000000000000000000000000000000f37989ddb8b1b51f
1100000000000000000000000000000000000000000000000000000000000022
ff0f110000000000040302011101000010010000000000000000000000000000
3300000000000000000000000000000000000000000000000000000000000000
0100000000000000fdffffff0100000001000000000000000000000000000000
`

const wantEncodedBytes = `
53515348494e4458010000004000000007000000000000000100000003000000
010000000000000002000000000000000600000000000000608b0596be0c26d4
2000000000000000000000000000000000000000000000000000000000000000
8813000000000000010000000200000002000000000000000000000000000000
4000000000000000000000000000000000000000000000000000000000000001
409c000000000000030000000400000004000000010111000000000000000000
6000000000000000000000000000000000000000000000000000000000000002
8813060000000000070000002500000025000000010211030000000000000000
8000000000000000000000000000000000000000000000000000000000000003
01000200000000002c0000002000000020000000010111090400000000000000
a000000000000000000000000000000000000000000000000000000000000004
01040000000000004c0000000300000003000000020200030000000008000300
c000000000000000000000000000000000000000000000000000000000000005
30750000000000004c0000000300000003000000020200030104000008000300
e000000000000000000000000000000000000000000000000000000000000006
dc050000000000004f000000010000000100000002000000d007000001000200
0200a0821f81
`

func TestFindInIndexesOfEveryShape(t *testing.T) {
	even := sampleRecords(5000)
	clustered := slices.Clone(even) // all but a few share their first 8 bytes
	for i := range clustered {
		if i%100 != 0 {
			copy(clustered[i].digest[:8], "\x80\x00\x00\x00\x00\x00\x00\x01")
		}
	}
	slices.SortFunc(clustered, compareRecords)
	extreme := []record{{digest: Digest{}}, {digest: Digest(bytes.Repeat([]byte{0xff}, 32))}}
	for name, rs := range map[string][]record{"none": nil, "one": even[:1], "two": extreme, "nine": even[:9], "encoded": encodedRecords(), "evenly spread": even, "clustered": clustered} {
		t.Run(name, func(t *testing.T) {
			_, b, aux, err := parseIndex(encodeIndex(t, span{}, rs))
			if err != nil {
				t.Fatal(err)
			}
			x := &indexFile{records: b, aux: aux}
			for _, r := range rs {
				if p, ok := x.find(&r.digest); !ok || p != r.place {
					t.Fatalf("%x: %+v, %t; want %+v", r.digest[:9], p, ok, r.place)
				}
				for _, change := range []int{31, 8, 7, 0} {
					for _, by := range []byte{1, 255} {
						d := r.digest
						d[change] += by
						_, want := slices.BinarySearchFunc(rs, record{digest: d}, compareRecords)
						if _, ok := x.find(&d); ok != want {
							t.Fatalf("%x found: %t, want %t", d, ok, want)
						}
					}
				}
			}
		})
	}
}

func TestIndexNamesThatAreNone(t *testing.T) {
	for _, g := range []span{{}, {1, 2, 3}, {1 << 40, 1<<64 - 1, 1<<32 - 1}} {
		if got, ok := parseIndexName(indexName(g)); !ok || got != g {
			t.Errorf("%s is read as %v, %t", indexName(g), got, ok)
		}
	}
	for _, name := range []string{"", "x", "00000001-00000000.0", "00000000-00000000", "00000000-00000000.0.tmp", "0-0.0", "00000000-00000000.00",
		"00000000-00000000.-1", "00000000-00000000.0 ", "0000000A-0000000B.0", "+0000000-00000001.0"} {
		if g, ok := parseIndexName(name); ok {
			t.Errorf("%q is read as %v", name, g)
		}
	}
}

// A damaged index file costs its contents and the right to free space, and
// nothing else.
func TestDamagedIndexFile(t *testing.T) {
	for _, region := range []struct {
		name string
		at   int
	}{{"magic", 0}, {"version", 8}, {"count", 16}, {"span", 33}, {"checksum", 57}, {"digest", headerSize + 3}, {"placement", headerSize + 41}, {"last byte", -1}, {"all of it", -2}} {
		t.Run(region.name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			var ds []Digest
			for i := range 3 {
				ds = append(ds, store(t, s, noise(uint64(i), 5000), noise(uint64(i), smallContent+1))...)
			}
			size := s.Stats().Size
			bad := s.files[1].path
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(bad)
			if err != nil {
				t.Fatal(err)
			}
			switch region.at {
			case -1:
				b[len(b)-1] ^= 0x40
			case -2:
				b = nil
			default:
				b[region.at] ^= 0x40
			}
			if err := os.WriteFile(bad, b, 0o600); err != nil {
				t.Fatal(err)
			}

			s = open(t, dir)
			wantMissing(t, s, ds[2:4]...)
			wantOnly(t, s, ds[0], ds[1], ds[4], ds[5])
			if _, err := beginMark(t, s).Sweep(); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("sweep: %v, want ErrFailedPrecondition", err)
			}
			// The contents come back, and not where they may still be in use.
			again := store(t, s, noise(1, 5000), noise(1, smallContent+1))
			for _, d := range again {
				if p, err := s.Lookup(d); err != nil || uint64(p.Block)*BlockSize < size {
					t.Errorf("stored again at %+v (%v), pack had %d bytes", p, err, size)
				}
			}
			var later []Digest
			for i := range 10 { // no merge may cover the damaged file
				later = append(later, store(t, s, noise(uint64(20+i), 10))...)
			}
			check(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir)
			wantOnly(t, s, slices.Concat(ds, later)...)
			if got, err := os.ReadFile(bad); err != nil || !bytes.Equal(got, b) {
				t.Errorf("damaged file was changed: %v", err)
			}
		})
	}
}

func TestNewerIndexFileIsRefusedByName(t *testing.T) {
	for name, odd := range oddIndexes(t) {
		if !odd.newer {
			continue
		}
		dir := t.TempDir()
		store(t, open(t, dir), noise(1, 100))
		path := filepath.Join(dir, "index", indexName(span{1, 2, 3}))
		if err := os.WriteFile(path, odd.file, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), dir); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "not known") {
			t.Errorf("%s: error %v", name, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFileUnderAnothersNameIsDamaged(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, indexName(span{5, 5, 0}))
	if err := os.WriteFile(path, encodeIndex(t, span{4, 4, 0}, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openIndexFile(path); !errors.Is(err, errDamaged) {
		t.Errorf("error %v", err)
	}
}

func TestTruncatedPackFileOpens(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	ds := store(t, s, noise(1, 5000), noise(2, 3*smallContent))
	if err := errors.Join(s.Close(), os.Truncate(s.Path(), 100_000)); err != nil {
		t.Fatal(err)
	}
	again, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	p, err := again.Lookup(ds[0])
	if err != nil {
		t.Fatal(err)
	}
	checkBytes(t, again, ds[0], p)
	// No block that an image may show is handed out again.
	w := again.Begin()
	put(t, w, noise(3, 100))
	publish(t, w)
	closeWriter(t, w)
	if p, err := again.Lookup(sha256.Sum256(noise(3, 100))); err != nil || uint64(p.Block) < blocksOf(5000)+blocksOf(3*smallContent) {
		t.Errorf("placed at %+v, %v", p, err)
	}
}

func TestReferrersDecideWhetherDamageIsGivenUp(t *testing.T) {
	for _, sound := range []bool{true, false} {
		dir := t.TempDir()
		s := open(t, dir)
		kept, lost := store(t, s, noise(1, 5000)), store(t, s, noise(2, 5000))
		p, err := s.Lookup(kept[0])
		bad := s.files[1].path
		if err := errors.Join(err, s.Close(), os.WriteFile(bad, []byte("damaged"), 0o600)); err != nil {
			t.Fatal(err)
		}
		s, err = Open(t.Context(), dir, Referrers(func(begins func(uint32) bool) (bool, error) {
			if !begins(p.Block) || begins(p.Block+1) || begins(1000) {
				t.Errorf("contents begin elsewhere than at block %d", p.Block)
			}
			return sound, nil
		}))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		check(t, s)
		wantOnly(t, s, kept...)
		if _, err := os.Stat(bad); os.IsNotExist(err) != sound {
			t.Errorf("sound %t, damaged file: %v", sound, err)
		}
		_, err = beginMark(t, s).Sweep()
		if sound != (err == nil) {
			t.Errorf("sound %t: sweep: %v", sound, err)
		}
		// Blocks come into use again only if nobody refers to them.
		end := s.space.used.end()
		if again := store(t, s, noise(2, 5000)); again[0] != lost[0] {
			t.Error("another content")
		}
		if p, err := s.Lookup(lost[0]); err != nil || !sound && uint64(p.Block) < end {
			t.Errorf("sound %t: stored again at %+v, %v", sound, p, err)
		}
		check(t, s)
	}
	refused := errors.New("no idea")
	if _, err := Open(t.Context(), t.TempDir(), Referrers(func(func(uint32) bool) (bool, error) { return false, refused })); !errors.Is(err, refused) {
		t.Errorf("error of the referrers: %v", err)
	}
}
