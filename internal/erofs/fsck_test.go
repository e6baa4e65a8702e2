// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// fsck.erofs is the third judge: the one on the path, or the one that the
// environment names in FSCK_EROFS. What an old one does not know is skipped.

type fsck struct{ path, version string }

// is tells whether it is of a release, such as 1.5.
func (f fsck) is(release string) bool {
	return regexp.MustCompile(`\d+\.\d+`).FindString(f.version) == release
}

func findFsck(t *testing.T) fsck {
	t.Helper()
	path, err := exec.LookPath(cmp.Or(os.Getenv("FSCK_EROFS"), "fsck.erofs"))
	if err != nil {
		t.Skipf("fsck.erofs is not installed (package erofs-utils), its judgement is missing: %v", err)
	}
	version, _ := exec.Command(path, "-V").CombinedOutput()
	t.Logf("%s: %s", path, version)
	return fsck{path, string(version)}
}

// cannot tells why this fsck cannot judge an image, or nothing.
func (f fsck) cannot(image []byte) string {
	super := image[1024:]
	configs := binary.LittleEndian.Uint32(super[80:])&0x2 != 0
	switch {
	case binary.LittleEndian.Uint32(super[80:])&0x20 != 0 && f.is("1.5"):
		return "fsck.erofs 1.5 knows no packed inode"
	case configs && binary.LittleEndian.Uint16(super[84:])&(1<<3) != 0 && !strings.Contains(f.version, "zstd"):
		return "this fsck.erofs knows no zstd"
	}
	return ""
}

// run wants the image to pass. With --extract, fsck.erofs reads all content too.
func (f fsck) run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(f.path, args...).CombinedOutput(); bytes.Contains(out, []byte("path is too long")) {
		t.Skip("this fsck.erofs takes no path above 4096 bytes")
	} else if err != nil {
		t.Errorf("%v: %v\n%s", args, err, out)
	}
}

func TestFsckAcceptsTheImages(t *testing.T) {
	fsck := findFsck(t)
	for _, tc := range trees {
		t.Run(tc.name, func(t *testing.T) {
			m := tc.build()
			for _, in := range m.inodes {
				if in.Size > 1<<30 {
					t.Skip("holds a file above 1 GiB, which fsck.erofs would write out")
				}
			}
			if m.hasClusters() {
				fsck.extract(t, m)
				return
			}
			dir := t.TempDir()
			image := filepath.Join(dir, "image")
			if err := os.WriteFile(image, m.image(t), 0o600); err != nil {
				t.Fatal(err)
			}
			args := []string{"--extract", image}
			for i := range m.opts.Devices {
				args = append(args, "--device="+m.writePack(t, dir, uint16(i+1)))
			}
			fsck.run(t, args...)
		})
	}
}

// extract checks an image all content of which is in clusters, and compares what
// fsck.erofs extracts. It finds no unified address on a device, so that it gets
// one file with all in place, and a superblock without devices.
func (f fsck) extract(t *testing.T, m *model) {
	t.Helper()
	if f.is("1.5") {
		t.Logf("fsck.erofs 1.5 looks beyond the end of files that end with a compressed block: %d are left out", m.dropLastBlocks())
	}
	image := m.image(t)
	if reason := f.cannot(image); reason != "" {
		t.Skip(reason)
	}
	super := image[1024:]
	le := binary.LittleEndian
	le.PutUint32(super[4:], 0)                           // checksum
	le.PutUint32(super[80:], le.Uint32(super[80:])&^0x8) // devices
	le.PutUint32(super[86:], 0)
	sealFirstBlock(image[:BlockSize])

	dir := t.TempDir()
	flat, out := filepath.Join(dir, "flat"), filepath.Join(dir, "out")
	m.writeFlat(t, flat, image)
	if m.packed != nil && f.is("1.9") {
		t.Log("fsck.erofs 1.9 checks images with a packed inode, but does not extract them: contents are not compared")
		f.run(t, "--extract", flat)
		return
	}
	f.run(t, "--extract="+out, flat)
	for _, l := range m.regularFiles() {
		got, err := os.ReadFile(filepath.Join(out, l.name))
		if want := m.content(l.child, 0, m.inodes[l.child].Size); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v, content differs: %s", l.name, err, firstDifference(got, want))
		}
	}
}

// dropLastBlocks makes the files empty whose last cluster is a compressed block,
// and returns their number.
func (m *model) dropLastBlocks() (n int) {
	for i := range m.inodes {
		in := &m.inodes[i]
		if k := len(in.Clusters); k > 0 && in.Clusters[k-1].Algorithm != Stored && in.Clusters[k-1].Length <= BlockSize {
			in.Size, in.Clusters = 0, nil
			n++
		}
	}
	return n
}

func TestFsckExtractsClusters(t *testing.T) {
	fsck := findFsck(t)
	for _, a := range []Algorithm{Stored, LZ4, Zstd} {
		for _, size := range []int{64 << 10, 128 << 10} {
			for name, m := range map[string]func(Algorithm, int) *model{
				"sizes": clustersOfSizes, "shared": clustersShared,
				"packed": func(a Algorithm, size int) *model { return clustersPacked(size, a) },
				"mixed": func(a Algorithm, size int) *model {
					return clustersPacked(size, slices.Compact([]Algorithm{a, Zstd, LZ4})...)
				},
			} {
				t.Run(fmt.Sprint(algorithmNames[a], " ", size>>10, " ", name), func(t *testing.T) { fsck.extract(t, m(a, size)) })
			}
		}
	}
}
