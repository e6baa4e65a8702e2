// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// smallDisk mounts a file system of 8 MiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatalf("mount a tmpfs (this test needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}

func TestFullDisk(t *testing.T) {
	for _, c := range []struct {
		name string
		put  func(t *testing.T, w *Writer) error // fills the disk
	}{
		{"while a large content is written", func(t *testing.T, w *Writer) error {
			_, err := w.Put(&noiseReader{}, 20<<20)
			return err
		}},
		{"while small contents are flushed", func(t *testing.T, w *Writer) error {
			var err error
			for i := 0; i < 1000 && err == nil; i++ {
				_, err = w.Put(&noiseReader{byte(i)}, 100_000+int64(i))
			}
			return err
		}},
		{"while the segment is ended", func(t *testing.T, w *Writer) error {
			put(t, w, noise(5, 5<<20))
			put(t, w, noise(6, smallContent-BlockSize))
			fill(t, w.s.dir, 100_000)
			return w.Publish(true)
		}},
		{"while the index is written", func(t *testing.T, w *Writer) error {
			for i := range 1500 {
				put(t, w, noise(uint64(1000+i), 1))
			}
			if err := w.endSegment(); err != nil {
				t.Fatal(err)
			}
			fill(t, w.s.dir, 0)
			return w.Publish(false)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := smallDisk(t)
			s := open(t, dir)
			first := store(t, s, noise(1, 500_000))
			second := store(t, s, noise(2, 3000), noise(3, smallContent+5))
			w := s.Begin()
			err := c.put(t, w)
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("error %v, want ENOSPC", err)
			}
			if again := w.Publish(false); again == nil {
				t.Error("publish after the failure: no error")
			}
			check(t, s)
			closeWriter(t, w)
			wantOnly(t, s, append(first, second...)...)
			check(t, s)

			// Room is made, and the same works.
			unix.Unlink(dir + "/ballast")
			sweepAllBut(t, s, second...)
			again := store(t, s, noise(4, 4<<20), noise(1, 500_000))
			wantOnly(t, s, append(again, second...)...)
		})
	}
}

// A sweep of a full disk begins where it needs no room, and so makes some.
func TestSweepOfAFullDisk(t *testing.T) {
	dir := smallDisk(t)
	s := open(t, dir)
	var many [][]byte
	for i := range 500 {
		many = append(many, noise(uint64(1000+i), 10))
	}
	first := store(t, s, many...)
	store(t, s, noise(1, 100_000))
	fill(t, dir, 0)
	if st, want := sweepAllBut(t, s, first[1:]...), (SweepStats{2, (1 + blocksOf(100_000)) * BlockSize}); st != want {
		t.Errorf("swept %+v, want %+v", st, want)
	}
	wantOnly(t, s, first[1:]...)

	unix.Unlink(dir + "/ballast")
	fill(t, dir, 0)
	m := beginMark(t, s)
	for _, d := range first[2:] {
		m.Keep(d)
	}
	if _, err := m.Sweep(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("error %v, want ENOSPC", err)
	}
	wantOnly(t, s, first[1:]...)
	check(t, s)
	unix.Unlink(dir + "/ballast")
	sweepAllBut(t, s, first[2:]...)
	wantOnly(t, s, first[2:]...)
}

// fill leaves at most n bytes free.
func fill(t *testing.T, dir string, n uint64) {
	t.Helper()
	fd, err := unix.Open(dir+"/ballast", unix.O_CREAT|unix.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	free := st.Bfree * uint64(st.Bsize)
	if err := unix.Fallocate(fd, 0, 0, int64(free-min(n, free))); err != nil {
		t.Fatal(err)
	}
}

// noiseReader yields bytes that are no zeros, without end.
type noiseReader struct{ next byte }

func (r *noiseReader) Read(b []byte) (int, error) {
	for i := range b {
		r.next = r.next*37 + 11
		b[i] = r.next | 1
	}
	return len(b), nil
}
