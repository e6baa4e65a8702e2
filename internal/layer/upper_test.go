// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// takeUpper reads an upper directory.
func takeUpper(t testing.TB, ctx context.Context, dir string, root bool, store ContentStore) ([]Entry, Summary, error) {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	if err := FromUpper(ctx, dir, root, w, store); err != nil {
		return nil, Summary{}, err
	}
	sum, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	all, err := decode(b.Bytes())
	if err != nil {
		t.Fatalf("the TOC does not read back: %v", err)
	}
	return all, sum, nil
}

// must fails the test on an error of setting it up.
func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("set up (this test needs root): %v", err)
	}
}

func setTime(t testing.TB, path string, sec, nsec int64) {
	t.Helper()
	ts := []unix.Timespec{{Sec: sec, Nsec: nsec}, {Sec: sec, Nsec: nsec}}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW))
}

// makeUpper fills a directory with all that an upper one can hold.
func makeUpper(t testing.TB, dir string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	large := bytes.Repeat([]byte("large"), 1000)
	must(t,
		os.Mkdir(at("dir"), 0o700), os.Chmod(at("dir"), 0o1770|os.ModeSticky), os.Chown(at("dir"), 5, 6),
		os.WriteFile(at("dir/small"), []byte("hello"), 0o600),
		os.WriteFile(at("dir/empty"), nil, 0o600),
		os.WriteFile(at("dir/large"), large, 0o600), unix.Chmod(at("dir/large"), 0o4755),
		os.Link(at("dir/large"), at("alias")), os.Link(at("dir/large"), at("zlast")),
		os.Symlink("../outside", at("link")), os.Lchown(at("link"), 7, 8), os.Link(at("link"), at("link2")),
		unix.Mknod(at("char"), unix.S_IFCHR, int(unix.Mkdev(1, 3))), unix.Chmod(at("char"), 0o620),
		unix.Mknod(at("block"), unix.S_IFBLK|0o600, int(unix.Mkdev(0, 0))),
		unix.Mknod(at("fifo"), unix.S_IFIFO|0o600, 0),
		unix.Mknod(at("socket"), unix.S_IFSOCK|0o600, 0),
		unix.Mknod(at("gone"), unix.S_IFCHR, 0),
		unix.Mknod(at("linked-whiteout"), unix.S_IFCHR, 0), os.Link(at("linked-whiteout"), at("another-whiteout")),
		os.WriteFile(at("xattr-whiteout"), nil, 0o600), unix.Setxattr(at("xattr-whiteout"), "trusted.overlay.whiteout", nil, 0),
		os.Mkdir(at("opaque"), 0o755), unix.Setxattr(at("opaque"), "trusted.overlay.opaque", []byte("y"), 0),
		unix.Setxattr(at("opaque"), "user.kept", []byte("1"), 0), unix.Setxattr(at("opaque"), "trusted.kept", []byte("2"), 0),
		os.Mkdir(at("impure"), 0o755), unix.Setxattr(at("impure"), "trusted.overlay.impure", []byte("y"), 0),
		unix.Setxattr(at("impure"), "trusted.overlay.opaque", []byte("x"), 0),
		unix.Setxattr(at("impure"), "user.large", bytes.Repeat([]byte("v"), 1000), 0),
		os.WriteFile(at("\xffodd\n"), []byte("odd"), 0o644),
		unix.Setxattr(dir, "user.root", []byte("r"), 0), os.Chmod(dir, 0o711),
	)
	must(t, filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		setTime(t, p, 1_600_000_000, 123_456_789)
		return err
	}))
	setTime(t, at("fifo"), -7, 5)
}

func TestUpperDirectoryWithEverything(t *testing.T) {
	dir := t.TempDir()
	makeUpper(t, dir)
	store := &memoryStore{}
	got, sum, err := takeUpper(t, t.Context(), dir, true, store)
	if err != nil {
		t.Fatal(err)
	}
	const stamp = " 1600000000.123456789"
	want := []string{
		`dir "" 711 0:0` + stamp + ` user.root="r"`,
		`reg "alias" size 5000 4755 0:0` + stamp,
		`whiteout "another-whiteout"`,
		`block "block" 0:0 600 0:0` + stamp,
		`char "char" 1:3 620 0:0` + stamp,
		`dir "dir" 1770 5:6` + stamp,
		`reg "dir/empty" size 0 600 0:0` + stamp,
		`hardlink "dir/large" to "alias" 4755 0:0` + stamp,
		`reg "dir/small" size 5 600 0:0` + stamp,
		`fifo "fifo" 600 0:0 -7.5`,
		`whiteout "gone"`,
		`dir "impure" 755 0:0` + stamp + ` user.large="` + strings.Repeat("v", 1000) + `"`,
		`symlink "link" to "../outside" 777 7:8` + stamp,
		`hardlink "link2" to "link" 777 7:8` + stamp,
		`whiteout "linked-whiteout"`,
		`dir "opaque" 755 0:0` + stamp + ` trusted.kept="2" user.kept="1"`,
		`opaque "opaque"`,
		`socket "socket" 600 0:0` + stamp,
		`whiteout "xattr-whiteout"`,
		`hardlink "zlast" to "alias" 4755 0:0` + stamp,
		`reg "\xffodd\n" size 3 644 0:0` + stamp,
	}
	var have []string
	for _, e := range got {
		have = append(have, brief(e))
	}
	if !slices.Equal(have, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
	large := sha256.Sum256(bytes.Repeat([]byte("large"), 1000))
	if len(store.contents) != 1 || store.contents[large] == nil {
		t.Errorf("%d contents in the store", len(store.contents))
	}

	again, sum2, err := takeUpper(t, t.Context(), dir, true, &memoryStore{})
	if err != nil || sum2 != sum || !equal(again, got) {
		t.Errorf("taken in again: %+v, %v; first %+v", sum2, err, sum)
	}
	without, _, err := takeUpper(t, t.Context(), dir, false, &memoryStore{})
	if err != nil || !equal(without, got[1:]) {
		t.Errorf("without the root: %d entries, %v", len(without), err)
	}
	// Another directory with the same in it, made in another order.
	other := t.TempDir()
	must(t, os.WriteFile(filepath.Join(other, "zzz"), nil, 0o600))
	makeUpper(t, other)
	must(t, os.Remove(filepath.Join(other, "zzz")))
	setTime(t, other, 1_600_000_000, 123_456_789)
	if _, sum3, err := takeUpper(t, t.Context(), other, true, &memoryStore{}); err != nil || sum3 != sum {
		t.Errorf("same directory made again: %+v, %v; first %+v", sum3, err, sum)
	}
}

func TestOpaqueRootOfAnUpperDirectory(t *testing.T) {
	dir := t.TempDir()
	must(t, unix.Setxattr(dir, "trusted.overlay.opaque", []byte("y"), 0))
	got, _, err := takeUpper(t, t.Context(), dir, false, &memoryStore{})
	if err != nil || len(got) != 1 || brief(got[0]) != `opaque ""` {
		t.Errorf("%v, %v", got, err)
	}
}

func TestDeepUpperDirectory(t *testing.T) {
	dir := t.TempDir()
	const depth = 60
	must(t, os.Chdir(dir))
	t.Cleanup(func() { os.Chdir("/") })
	name := strings.Repeat("d", 100) // paths of 6 KiB: no system call takes one
	for range depth {
		must(t, os.Mkdir(name, 0o755), os.Chdir(name))
	}
	must(t, os.WriteFile("file", []byte("deep"), 0o600), os.Chdir("/"))
	got, _, err := takeUpper(t, t.Context(), dir, false, &memoryStore{})
	if err != nil || len(got) != depth+1 || len(got[depth].Path) != depth*101+4 {
		t.Errorf("%d entries, %v", len(got), err)
	}
}

// While files are read, a directory and a file are swapped for symlinks that
// lead outside: nothing from there may come in (invariant 6).
func TestSwappedNamesDoNotLeadOutside(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	secret := bytes.Repeat([]byte("secret"), 1000)
	own := func(c string) []byte { return bytes.Repeat([]byte(c), 2000) }
	must(t,
		os.WriteFile(filepath.Join(outside, "b"), secret, 0o600), os.Mkdir(filepath.Join(outside, "e"), 0o700),
		os.WriteFile(filepath.Join(outside, "e", "f"), secret, 0o600),
		os.Mkdir(filepath.Join(dir, "d"), 0o700),
		os.WriteFile(filepath.Join(dir, "d", "a"), own("a"), 0o600), os.WriteFile(filepath.Join(dir, "d", "b"), own("b"), 0o600),
		os.WriteFile(filepath.Join(dir, "d", "c"), own("c"), 0o600), os.Mkdir(filepath.Join(dir, "d", "e"), 0o700),
		os.WriteFile(filepath.Join(dir, "d", "e", "f"), own("f"), 0o600),
	)
	store := &memoryStore{}
	first := true
	got, _, err := takeUpper(t, t.Context(), dir, false, putFunc(func(r io.Reader, size int64) (Digest, error) {
		if first { // d/a is being read
			first = false
			must(t,
				os.Remove(filepath.Join(dir, "d", "c")), os.Symlink(filepath.Join(outside, "b"), filepath.Join(dir, "d", "c")),
				os.RemoveAll(filepath.Join(dir, "d", "e")), os.Symlink(filepath.Join(outside, "e"), filepath.Join(dir, "d", "e")),
				os.Rename(filepath.Join(dir, "d"), filepath.Join(dir, "moved")), os.Symlink(outside, filepath.Join(dir, "d")))
		}
		return store.Put(r, size)
	}))
	if err != nil {
		t.Logf("refused: %v", err)
	}
	if store.contents[sha256.Sum256(secret)] != nil {
		t.Error("a file from outside was taken in")
	}
	if err == nil {
		var have []string
		for _, e := range got {
			have = append(have, e.Path+" "+e.Target)
		}
		want := []string{"d ", "d/a ", "d/b ", "d/c " + outside + "/b", "d/e " + outside + "/e"}
		if !slices.Equal(have, want) {
			t.Errorf("got %q, want %q", have, want)
		}
	}
}

func TestUpperErrors(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "f"), make([]byte, 5000), 0o600), os.Symlink(dir, filepath.Join(dir, "link")))
	full := errors.New("disk full")
	_, _, err := takeUpper(t, t.Context(), dir, false, putFunc(func(io.Reader, int64) (Digest, error) { return Digest{}, full }))
	if !errors.Is(err, full) || !strings.Contains(err.Error(), `"f"`) {
		t.Errorf("store fails: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := takeUpper(t, ctx, dir, false, &memoryStore{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, _, err := takeUpper(t, t.Context(), filepath.Join(dir, "missing"), false, &memoryStore{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if _, _, err := takeUpper(t, t.Context(), filepath.Join(dir, "link"), false, &memoryStore{}); err == nil {
		t.Error("symlink to a directory: no error")
	}
	if _, _, err := takeUpper(t, t.Context(), filepath.Join(dir, "f"), false, &memoryStore{}); err == nil {
		t.Error("file: no error")
	}
	// A file that shrinks while it is read.
	_, _, err = takeUpper(t, t.Context(), dir, false, putFunc(func(r io.Reader, size int64) (Digest, error) {
		must(t, os.Truncate(filepath.Join(dir, "f"), 100))
		return (&memoryStore{}).Put(r, size)
	}))
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("file shrinks: %v", err)
	}
}
