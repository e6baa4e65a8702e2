// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/testutil"
	"golang.org/x/sys/unix"
)

// What showDirectory says of several directories is what overlayfs over them
// shows; symlinks lead nowhere.
func TestShowDirectorySeesWhatOverlayShows(t *testing.T) {
	testutil.RequiresRoot(t)
	dir := t.TempDir()
	var roots []string
	for layer, entries := range []string{ // d directory, o opaque one, w whiteout, f file, l symlink to /etc
		"d pure\nd merged\nd merged/new\no opaque\nw gone\nf file\nl link\nd over",
		"d merged\nd opaque\nd opaque/hidden\nd gone\nd file\nd link\nd link/ssl\no middle\nw over",
		"d merged\nd merged/low\nd middle\nd middle/hidden\nd low\nd over\nd over/hidden\nl self",
	} {
		root := filepath.Join(dir, string(rune('a'+layer)))
		must(t, os.Mkdir(root, 0o755))
		roots = append(roots, root)
		for line := range strings.SplitSeq(entries, "\n") {
			kind, p := line[:1], filepath.Join(root, line[2:])
			switch kind {
			case "d", "o":
				must(t, os.Mkdir(p, 0o755))
				if kind == "o" {
					must(t, unix.Setxattr(p, "trusted.overlay.opaque", []byte("y"), 0))
				}
			case "w":
				must(t, unix.Mknod(p, unix.S_IFCHR, 0))
			case "f":
				must(t, os.WriteFile(p, nil, 0o600))
			case "l":
				must(t, os.Symlink("/etc", p))
			}
		}
	}
	merged := filepath.Join(dir, "merged")
	must(t, os.Mkdir(merged, 0o755))
	must(t, unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(roots, ":")))
	defer unix.Unmount(merged, 0)
	for _, p := range []string{
		"pure", "merged", "merged/new", "merged/low", "merged/none", "opaque", "opaque/hidden", "gone", "file", "file/x", "link", "link/ssl",
		"middle", "middle/hidden", "low", "low/x/y", "over", "over/hidden", "self", "self/ssl", "none", "none/x",
	} {
		names := strings.Split(p, "/")
		want := true
		for i := range names {
			st, err := os.Lstat(filepath.Join(merged, filepath.Join(names[:i+1]...)))
			want = want && err == nil && st.IsDir()
		}
		if got, err := showDirectory(roots, names); err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", p, got, err, want)
		}
	}
	if _, err := showDirectory([]string{filepath.Join(dir, "not there")}, []string{"x"}); err == nil {
		t.Error("an image that is not there shows nothing, without an error")
	}
}
