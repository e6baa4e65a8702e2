// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/containerd/errdefs"
)

// openCompressed opens a store that compresses.
func openCompressed(t testing.TB, dir string, a Algorithm, level int) *Store {
	t.Helper()
	return open(t, dir, Compress(a, level, true))
}

// verifyAll reads everything that is in the store.
func verifyAll(t testing.TB, s *Store) {
	t.Helper()
	v := s.Verifier(nil)
	defer v.Close()
	s.Each(func(d Digest, _ Placement) bool {
		if err := v.Verify(context.Background(), d); err != nil { // at the end of a test, too
			t.Errorf("verify: %v", err)
		}
		return true
	})
}

// text yields bytes that shrink to about a quarter.
func text(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 7))
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = fmt.Appendf(b, "line %d of %d\n", rng.IntN(1000), seed)
	}
	return b[:n]
}

// compressible are contents of every size and kind that is treated in a way of
// its own.
func compressible() (all [][]byte) {
	sizes := []int{1, 1024, 4095, 4096, 4097, 8191, 8192, 8193, sharedMax - 1, sharedMax, sharedMax + 1, ClusterSize - 1, ClusterSize,
		ClusterSize + 1, ClusterSize + BlockSize, 3*ClusterSize - 1, smallContent - 1, smallContent, smallContent + 1, 3*smallContent + 12345}
	for i, n := range sizes {
		all = append(all, text(uint64(i), n), noise(uint64(i), n), make([]byte, n))
		if n > 2*ClusterSize { // zeros between, noise between
			b := text(uint64(100+i), n)
			clear(b[ClusterSize : 2*ClusterSize])
			copy(b[n-ClusterSize:], noise(uint64(i), ClusterSize))
			all = append(all, b)
			b = make([]byte, n)
			copy(b, text(uint64(200+i), 1000))
			all = append(all, b)
		}
	}
	for i := range 200 {
		all = append(all, text(uint64(1000+i), 1025+i*37))
	}
	return all
}

var algorithms = []struct {
	Algorithm
	level int
}{{LZ4, 0}, {LZ4, 9}, {Zstd, 0}, {Zstd, 1}, {Zstd, 11}}

func TestCompressedContentsComeBack(t *testing.T) {
	for _, a := range algorithms {
		t.Run(fmt.Sprintf("%s-%d", a.Algorithm, a.level), func(t *testing.T) {
			dir := t.TempDir()
			s := openCompressed(t, dir, a.Algorithm, a.level)
			all := compressible()
			ds := store(t, s, all...)
			v := s.Verifier(nil)
			defer v.Close()
			for i, d := range ds {
				var got bytes.Buffer
				p, err := s.Lookup(d)
				if err != nil {
					t.Fatal(err)
				}
				if err := p.check(); err != nil {
					t.Errorf("content %d: %+v: %v", i, p, err)
				}
				if err := v.read(t.Context(), p, func(b []byte) { got.Write(b) }); err != nil {
					t.Fatalf("content %d of %d bytes: %+v: %v", i, len(all[i]), p, err)
				}
				if !bytes.Equal(got.Bytes(), all[i]) {
					t.Fatalf("content %d of %d bytes: other bytes", i, len(all[i]))
				}
			}
			before := s.Stats()
			if before.Stored > before.Bytes*2/3 {
				t.Errorf("%+v: hardly smaller", before)
			}
			// Known contents are not stored again, large ones neither.
			if store(t, s, all...); s.Stats() != before {
				t.Errorf("the same again: %+v, before %+v", s.Stats(), before)
			}
			s.Close()
			s = openCompressed(t, dir, Stored, 0)
			if s.Stats() != before {
				t.Errorf("opened again: %+v, before %+v", s.Stats(), before)
			}
		})
	}
}

func TestTheSameContentsGiveTheSamePack(t *testing.T) {
	var want []byte
	for range 3 {
		dir := t.TempDir()
		s := openCompressed(t, dir, Zstd, 0)
		store(t, s, compressible()...)
		got, err := os.ReadFile(s.Path())
		if err != nil {
			t.Fatal(err)
		}
		if want == nil {
			want = got
		}
		if !bytes.Equal(got, want) {
			t.Fatal("two packs of the same contents differ")
		}
	}
}

// Every damaged content is mended in place: the pack is what it was.
func TestMendedClustersAreWhatTheyWere(t *testing.T) {
	for _, a := range algorithms {
		t.Run(fmt.Sprintf("%s-%d", a.Algorithm, a.level), func(t *testing.T) {
			s := openCompressed(t, t.TempDir(), a.Algorithm, a.level)
			all := map[Digest][]byte{}
			var bad []Digest
			for _, b := range compressible() {
				all[sha256.Sum256(b)] = b
			}
			for i, d := range store(t, s, compressible()...) {
				if i%3 == 0 {
					bad = append(bad, d)
				}
			}
			want, err := os.ReadFile(s.Path())
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range bad {
				p, _ := s.Lookup(d)
				if _, err := s.file.WriteAt(noise(9, int(p.Blocks)*BlockSize), int64(p.Block)*BlockSize); err != nil {
					t.Fatal(err)
				}
				v := s.Verifier(nil)
				if err := v.Verify(t.Context(), d); !errdefs.IsDataLoss(err) {
					t.Errorf("damaged content %x: %v", d[:4], err)
				}
				v.Close()
			}
			mend(t, s, bad, all)
			got, err := os.ReadFile(s.Path())
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Error("the mended pack has other bytes")
			}
			verifyAll(t, s)
		})
	}
}

func mend(t *testing.T, s *Store, bad []Digest, all map[Digest][]byte) {
	t.Helper()
	m, wanted, err := s.Mend(t.Context(), bad)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range wanted {
		if b, ok := all[d]; ok {
			if err := m.Put(d, bytes.NewReader(b)); err != nil {
				t.Error(err)
			}
		}
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// A shared cluster whose other contents nobody has any more is mended with
// zeros in their place, though it is smaller then.
func TestASharedClusterIsMendedInPart(t *testing.T) {
	s := openCompressed(t, t.TempDir(), Zstd, 0)
	var all [][]byte
	for i := range 6 {
		all = append(all, text(uint64(i), sharedMax-100))
	}
	ds := store(t, s, all...)
	p, _ := s.Lookup(ds[0])
	if _, err := s.file.WriteAt(noise(9, int(p.Blocks)*BlockSize), int64(p.Block)*BlockSize); err != nil {
		t.Fatal(err)
	}
	mend(t, s, ds[:1], map[Digest][]byte{ds[0]: all[0]})
	v := s.Verifier(nil)
	if err := v.Verify(t.Context(), ds[0]); err != nil {
		t.Error(err)
	}
	for _, d := range ds[1:] {
		if err := v.Verify(t.Context(), d); !errdefs.IsDataLoss(err) {
			t.Errorf("a content that was not given: %v", err)
		}
	}
	v.Close()
	mend(t, s, ds[1:], map[Digest][]byte{ds[1]: all[1], ds[2]: all[2], ds[3]: all[3], ds[4]: all[4], ds[5]: all[5]})
}

// One content of a cluster keeps the others.
func TestContentsThatShareAClusterLiveTogether(t *testing.T) {
	s := openCompressed(t, t.TempDir(), Zstd, 0)
	var all [][]byte
	for i := range 40 {
		all = append(all, text(uint64(i), sharedMax-100))
	}
	ds := store(t, s, all...)
	sweep := func(keep ...Digest) {
		t.Helper()
		m, err := s.BeginMark()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range keep {
			m.Keep(d)
		}
		if _, err := m.Sweep(); err != nil {
			t.Fatal(err)
		}
	}
	sweep(ds[0], ds[39])
	verifyAll(t, s)
	for i, d := range ds {
		p, err := s.Lookup(d)
		first, _ := s.Lookup(ds[0])
		last, _ := s.Lookup(ds[39])
		if kept := i == 0 || i == 39 || err == nil && (p.Block == first.Block || p.Block == last.Block); kept != (err == nil) {
			t.Errorf("content %d: %v", i, err)
		}
	}
	store(t, s, all...)
	verifyAll(t, s)
	sweep()
	if st := s.Stats(); st.Stored != 0 || st.Size != 0 {
		t.Errorf("after the last sweep: %+v", st)
	}
}

func TestALevelThatIsNotThereIsRefused(t *testing.T) {
	for a, level := range map[Algorithm]int{LZ4: 10, Zstd: 23, Zstd + 1: 0} {
		if s, err := Open(t.Context(), t.TempDir(), Compress(a, level, true)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s level %d: %v, %v", a, level, s, err)
		}
	}
}

func BenchmarkPutCompressed(b *testing.B) {
	for _, a := range algorithms {
		b.Run(fmt.Sprintf("%s-%d", a.Algorithm, a.level), func(b *testing.B) {
			content := text(1, 8<<20)
			b.SetBytes(int64(len(content)))
			for i := range b.N {
				s, err := Open(b.Context(), b.TempDir(), Compress(a.Algorithm, a.level, true))
				if err != nil {
					b.Fatal(err)
				}
				content[0] = byte(i)
				w := s.Begin()
				if _, err := w.Put(io.MultiReader(bytes.NewReader(content)), int64(len(content))); err != nil {
					b.Fatal(err)
				}
				if err := w.Publish(false); err != nil {
					b.Fatal(err)
				}
				w.Close()
				s.Close()
			}
		})
	}
}
