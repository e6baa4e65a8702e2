// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestFsckAcceptsTheImages asks fsck.erofs, the third judge. --extract without a
// directory makes it read all content.
func TestFsckAcceptsTheImages(t *testing.T) {
	fsck, err := exec.LookPath("fsck.erofs")
	if err != nil {
		t.Skip("fsck.erofs is not installed (package erofs-utils): its judgement is missing")
	}
	version, _ := exec.Command(fsck, "-V").CombinedOutput()
	t.Logf("%s: %s", fsck, version)
	for _, tc := range trees {
		t.Run(tc.name, func(t *testing.T) {
			m := tc.build()
			for _, in := range m.inodes {
				if in.Size > 1<<30 {
					t.Skip("holds a file above 1 GiB, which fsck.erofs would write out")
				}
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
			if out, err := exec.Command(fsck, args...).CombinedOutput(); err != nil {
				t.Errorf("%v: %v\n%s", args, err, out)
			}
		})
	}
}
