// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Small makes the layers of a test image: the guest program and a few hundred entries of every kind that
// matters to a file system, then two layers that change, hide, replace and repeat them. All parents are stated,
// so that Replay knows every time.
func Small(s *Store, c Compression, guest []byte) ([]v1.Layer, error) {
	var out []v1.Layer
	for i, write := range []func(*LayerWriter) error{
		func(w *LayerWriter) error { return all(WriteBase(w, guest), writeKinds(w)) },
		writeChanges,
		writeRepeats,
	} {
		l, err := s.Layer("", c, write)
		if err != nil {
			return nil, fmt.Errorf("small image, layer %d: %w", i+1, err)
		}
		out = append(out, l)
	}
	return out, nil
}

// all gives the first error; unlike errors.Join it is meant for lists of calls that were made in order.
func all(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Noise gives n bytes that do not compress, the same for the same seed.
func Noise(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1], key[2] = byte(seed), byte(seed>>8), byte(seed>>16)
	out := make([]byte, n)
	rand.NewChaCha8(key).Read(out)
	return out
}

// Prose gives n bytes that compress well, the same for the same seed.
func Prose(seed uint64, n int) []byte {
	var b bytes.Buffer
	for line := 0; b.Len() < n; line++ {
		fmt.Fprintf(&b, "%d: line %d of a text that says the same again and again\n", seed, line)
	}
	return b.Bytes()[:n]
}

// fileSizes stand at and around the borders of blocks, clusters and inline data.
var fileSizes = []int{0, 1, 63, 64, 511, 512, 513, 2000, 4031, 4032, 4095, 4096, 4097, 8192, 65535, 65536, 65537,
	131072, 131073, 300000, 1 << 20}

func writeKinds(w *LayerWriter) error {
	err := all(
		w.Dir("kinds", 0o755),
		w.Dir("kinds/size", 0o750, Owner(7, 8)),
	)
	for i, n := range fileSizes {
		err = all(err,
			w.File(fmt.Sprintf("kinds/size/noise-%d", n), 0o644, Noise(uint64(i), n)),
			w.File(fmt.Sprintf("kinds/size/prose-%d", n), 0o600, Prose(uint64(i), n), Owner(i, i+1)),
		)
	}
	long := strings.Repeat("n", 255)
	deep := "kinds/deep"
	for level := range 40 {
		err = all(err, w.Dir(deep, 0o755))
		deep += fmt.Sprintf("/level-%d", level)
	}
	err = all(err,
		w.File(deep, 0o644, []byte("bottom\n")),

		w.Dir("kinds/mode", 0o3777, Owner(65534, 65534)),
		w.File("kinds/mode/setuid", 0o4755, []byte("s")),
		w.File("kinds/mode/setgid", 0o2755, []byte("g"), Owner(0, 42)),
		w.File("kinds/mode/none", 0, []byte("secret")),
		w.File("kinds/mode/large-owner", 0o640, []byte("o"), Owner(4000000000, 4000000001)),

		w.Dir("kinds/time", 0o755, Mtime(time.Unix(1, 1))),
		w.File("kinds/time/nano", 0o644, nil, Mtime(time.Unix(1700000000, 123456789))),
		w.File("kinds/time/zero", 0o644, nil, Mtime(time.Unix(0, 0))),
		w.File("kinds/time/before", 0o644, []byte("b"), Mtime(time.Unix(-5, 0))),
		w.File("kinds/time/after-2038", 0o644, []byte("a"), Mtime(time.Unix(1<<32+7, 5))),
		w.Symlink("kinds/time/link", "nano", Mtime(time.Unix(99, 99))),

		w.Dir("kinds/link", 0o755),
		w.Symlink("kinds/link/relative", "../size/noise-64"),
		w.Symlink("kinds/link/absolute", "/etc/passwd", Owner(3, 4)),
		w.Symlink("kinds/link/dangling", "no/such/thing"),
		w.Symlink("kinds/link/long", strings.Repeat("long/", 200)),
		w.File("kinds/link/first", 0o644, Prose(9, 9000), Owner(5, 5)),
		w.Hardlink("kinds/link/second", "kinds/link/first"),
		w.Hardlink("kinds/size/third", "kinds/link/first"),

		w.Dir("kinds/device", 0o755),
		w.Device("kinds/device/null", tar.TypeChar, 0o666, 1, 3),
		w.Device("kinds/device/large", tar.TypeChar, 0o600, 300, 70000),
		w.Device("kinds/device/disk", tar.TypeBlock, 0o660, 8, 1, Owner(0, 6)),
		w.Device("kinds/device/fifo", tar.TypeFifo, 0o622, 0, 0),

		w.Dir("kinds/xattr", 0o755, Xattr("user.dir", "on a directory")),
		w.File("kinds/xattr/user", 0o644, []byte("x"), Xattr("user.a", "1"), Xattr("user.empty", ""),
			Xattr("user.long", strings.Repeat("v", 2000))),
		// Version 2 capabilities: effective, CAP_NET_BIND_SERVICE permitted.
		w.File("kinds/xattr/capability", 0o755, []byte("c"),
			Xattr("security.capability", "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")),
		// user::rw- user:1000:r-- group::r-- mask::r-- other::r--
		w.File("kinds/xattr/acl", 0o644, []byte("l"), Xattr("system.posix_acl_access",
			"\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xe8\x03\x00\x00"+
				"\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff")),

		w.Dir("kinds/name", 0o755),
		w.File("kinds/name/"+long, 0o644, []byte("long")),
		w.File("kinds/name/with space", 0o644, []byte("1")),
		w.File("kinds/name/new\nline", 0o644, []byte("2")),
		w.File("kinds/name/back\\slash, comma: colon", 0o644, []byte("3")),
		w.File("kinds/name/größe 大小", 0o644, []byte("4")),
		w.File("kinds/name/...", 0o644, []byte("5")),
		w.File("kinds/name/-rf", 0o644, []byte("6")),
		w.File("kinds/name/.wh", 0o644, []byte("7")),

		w.Dir("kinds/many", 0o755),
	)
	for i := range 300 {
		err = all(err, w.File(fmt.Sprintf("kinds/many/file-%03d", i), 0o644, fmt.Appendf(nil, "%d\n", i%50)))
	}

	// What the next layer changes.
	err = all(err,
		w.Dir("change", 0o755),
		w.File("change/overwritten", 0o644, Prose(1, 20000)),
		w.File("change/deleted", 0o644, Noise(101, 20000)),
		w.File("change/chowned", 0o644, Prose(2, 20000)),
		w.File("change/becomes-dir", 0o644, []byte("file")),
		w.Dir("change/becomes-file", 0o755),
		w.File("change/becomes-file/child", 0o644, Noise(102, 5000)),
		w.Dir("change/becomes-link", 0o755),
		w.File("change/becomes-link/child", 0o644, []byte("child")),
		w.Dir("change/deleted-dir", 0o755),
		w.Dir("change/deleted-dir/sub", 0o755),
		w.File("change/deleted-dir/sub/file", 0o644, Noise(103, 70000)),
		w.Dir("change/opaque", 0o755),
		w.File("change/opaque/old", 0o644, Noise(104, 9000)),
		w.Dir("change/opaque/old-dir", 0o755),
		w.File("change/opaque/old-dir/file", 0o644, []byte("old")),
		w.Dir("change/mode", 0o755),
		w.File("change/mode/kept", 0o644, []byte("kept")),
		w.File("change/twin-a", 0o644, Prose(3, 5000)),
		w.Hardlink("change/twin-b", "change/twin-a"),
		w.Hardlink("change/twin-c", "change/twin-a"),
		w.File("change/returns", 0o644, []byte("first life")),
	)
	return err
}

func writeChanges(w *LayerWriter) error {
	return all(
		w.Dir("change", 0o755),
		w.File("change/overwritten", 0o600, Prose(11, 21000)),
		w.Whiteout("change/deleted"),
		w.File("change/chowned", 0o644, Prose(2, 20000), Owner(1000, 1000)),
		w.Dir("change/becomes-dir", 0o700),
		w.File("change/becomes-dir/child", 0o644, []byte("now a directory")),
		w.File("change/becomes-file", 0o644, []byte("now a file")),
		w.Symlink("change/becomes-link", "opaque"),
		w.Whiteout("change/deleted-dir"),
		w.Dir("change/opaque", 0o711, Owner(1, 2)),
		w.Opaque("change/opaque"),
		w.File("change/opaque/new", 0o644, []byte("new")),
		w.Dir("change/mode", 0o500, Owner(12, 13), Xattr("user.later", "yes")),
		w.Whiteout("change/twin-b"),
		w.Whiteout("change/returns"),
		w.Whiteout("change/never-existed"),
	)
}

func writeRepeats(w *LayerWriter) error {
	return all(
		w.Dir("change", 0o755),
		w.File("change/returns", 0o644, []byte("second life")),
		w.Dir("repeat", 0o755),
		w.File("repeat/noise-300000", 0o755, Noise(19, 300000), Owner(9, 9)),
		w.File("repeat/prose-65537", 0o644, Prose(16, 65537)),
		w.File("repeat/same", 0o644, Prose(16, 65537)),
		w.Hardlink("repeat/same-again", "repeat/same"),
		w.File("repeat/was-deleted", 0o644, Noise(101, 20000)),
	)
}
