// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/node"
	"github.com/squash-snapshotter/squash/integration/tree"
)

// pushIndex puts an index into the registry as repository:tag and returns its reference.
func pushIndex(t *testing.T, tag string, index v1.ImageIndex) string {
	t.Helper()
	host, _, _ := strings.Cut(push(t, image(t, images.OCI)), "/")
	ref, err := name.ParseReference(host+"/"+tag, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	return ref.Name()
}

// pushAs is push under a name that does not depend on the image's digest.
func pushAs(t *testing.T, tag string, img v1.Image) string {
	t.Helper()
	ref, err := shared.registry.Push(t.Context(), tag, img)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// forPlatforms is an index of an image for each of the architectures.
func forPlatforms(t *testing.T, make func(architecture string) v1.Image, architectures ...string) v1.ImageIndex {
	t.Helper()
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, architecture := range architectures {
		img := make(architecture)
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		config = config.DeepCopy()
		config.Architecture = architecture
		one, err := mutate.ConfigFile(img, config)
		if err != nil {
			t.Fatal(err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: one, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: architecture}}})
	}
	return index
}

// listed runs ls, and leaves of names what the test chose, and of the gaps between columns one blank.
func listed(t *testing.T, n *node.Node, args ...string) string {
	t.Helper()
	out, _ := squashctl(t, n, 0, append(args, "ls")...)
	out = regexp.MustCompile(`127\.0\.0\.1:\d+/`).ReplaceAllString(out, "")
	out = strings.ReplaceAll(out, "linux/"+runtime.GOARCH, "linux/this")
	return regexp.MustCompile(` +`).ReplaceAllString(out, " ")
}

// A node with images of two names, for several platforms, partly unpacked, of other snapshotters and namespaces, in use.
func TestSquashctlListsImages(t *testing.T) {
	n := startNode(t, squash)
	img := told(t)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	whole := pushAs(t, "test-whole:1", img)
	pull(t, n, squash, whole)
	ctr(t, n, "image", "tag", whole, "example.com/second-name:1")
	index := pushIndex(t, "test-platforms:2", forPlatforms(t, func(string) v1.Image { return image(t, images.OCI, layers[1]) }, runtime.GOARCH, "riscv64"))
	// Of the other platform containerd has the manifest, and the layers are the same.
	ctr(t, n, "image", "pull", "--plain-http", "--snapshotter", node.Squash, "--platform", "linux/"+runtime.GOARCH, index)
	// Its two lowest layers are there for the first image.
	partly := pushAs(t, "test-partly:1", image(t, images.OCI, layers[0], layers[1], layers[0]))
	pull(t, n, overlayfs, partly)
	pull(t, n, overlayfs, pushAs(t, "test-foreign:1", image(t, images.OCI, layers[2])))
	other := pushAs(t, "test-other:1", image(t, images.OCI, layers[2]))
	if _, err := n.CtrIn(t.Context(), "other", "image", "pull", "--plain-http", "--snapshotter", node.Squash, other); err != nil {
		t.Fatal(err)
	}
	ctr(t, n, "container", "create", "--snapshotter", node.Squash, whole, "c1")
	ctr(t, n, "container", "create", "--snapshotter", node.Squash, whole, "c2")
	ctr(t, n, "container", "create", "--snapshotter", node.Overlayfs, partly, "c3")
	// A report makes its image flat, which happens some time after the pull without it.
	squashctl(t, n, 0, "report", index)
	squashctl(t, n, 0, "--namespace", "other", "report", other)

	before := listed(t, n)
	golden(t, "ls-states.txt", before)
	golden(t, "ls-other.txt", listed(t, n, "--namespace", "other"))
	if err := n.StopDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := n.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := listed(t, n); after != before {
		t.Errorf("after a restart, printed\n%s\nbefore\n%s", after, before)
	}
	ctr(t, n, "container", "rm", "c1", "c2")
	if out := listed(t, n); strings.Contains(out, "in use") {
		t.Errorf("without a container, printed\n%s", out)
	}
}

// Of an index, some platforms are unpacked; containerd has the manifests of all.
func TestSquashctlTellsPlatformsApart(t *testing.T) {
	n := startNode(t, squash)
	ref := pushIndex(t, "test-platforms:3", forPlatforms(t, func(architecture string) v1.Image {
		return image(t, images.OCI, layer(t, func(w *images.LayerWriter) error { return w.File("etc-"+architecture, 0o644, nil) }))
	}, runtime.GOARCH, "riscv64"))
	here, other := "linux/"+runtime.GOARCH, "linux/riscv64"
	says := func(want string, args ...string) {
		t.Helper()
		if out, _ := squashctl(t, n, 0, append(args, ref)...); !strings.Contains(out, want) {
			t.Errorf("%q: printed\n%s", args, out)
		}
	}
	ctr(t, n, "image", "pull", "--plain-http", "--snapshotter", node.Squash, "--platform", other, ref)
	says("  "+other+"  1 layer, 1 file, flat\n", "report") // what is there, although it is not this machine's
	if _, errs := squashctl(t, n, 4, "report", "--platform", here, ref); !strings.Contains(errs, "for "+here+" is not unpacked with squash: unpack it with `ctr -n default image pull --snapshotter squash "+ref+"`") {
		t.Errorf("said %q", errs)
	}
	ctr(t, n, "image", "pull", "--plain-http", "--snapshotter", node.Squash, ref)
	says("  "+here+"  1 layer, 1 file, flat\n", "report")
	says("/etc-riscv64\"", "blame", "--all", "--platform", other)
	if out := listed(t, n); !strings.Contains(out, "test-platforms:3 linux/this 1 ") || !strings.Contains(out, "test-platforms:3 linux/riscv64 1 ") {
		t.Errorf("ls printed\n%s", out)
	}
}

// Layers that hide whole directories, a file that comes back, and a name that would harm a terminal.
func TestSquashctlBlamesWhoHidADirectory(t *testing.T) {
	n := startNode(t, squash)
	file := func(w *images.LayerWriter, name string, seed uint64) error {
		return w.File(name, 0o644, images.Noise(seed, 2000))
	}
	ref := push(t, image(t, images.OCI,
		layer(t, func(w *images.LayerWriter) error {
			return first(w.Dir("srv", 0o755), w.Dir("srv/app", 0o755), w.Dir("srv/app/lib", 0o755), file(w, "srv/app/lib/a", 1), file(w, "srv/app/b", 2), file(w, "srv/app/\x1b]0;evil\a", 3))
		}),
		layer(t, func(w *images.LayerWriter) error {
			return first(w.Dir("srv/app", 0o755), w.Opaque("srv/app"), file(w, "srv/app/b", 4), file(w, "srv/app/new", 5))
		}),
		layer(t, func(w *images.LayerWriter) error { return w.Whiteout("srv/app/new") }),
		layer(t, func(w *images.LayerWriter) error {
			return first(w.Dir("srv/app/lib", 0o755), file(w, "srv/app/lib/a", 1))
		})))
	pull(t, n, squash, ref)
	out, _ := squashctl(t, n, 0, "blame", ref, "/srv/app/lib/a", "/srv/app/b", "/srv/app/new", "/srv/app", "/srv/app/\x1b]0;evil\a")
	golden(t, "blame-opaque.txt", out)
	out, _ = squashctl(t, n, 0, "report", ref)
	golden(t, "report-opaque.txt", out)
}

// What blame calls visible is what the kernel shows, entry by entry.
func TestBlameOfAllPathsIsWhatTheKernelShows(t *testing.T) {
	n := startNode(t, squash)
	ref := push(t, smallImage(t, images.OCI, images.Gzip))
	pull(t, n, squash, ref)
	target := mountPoint(t)
	ctr(t, n, "image", "mount", "--snapshotter", node.Squash, ref, target)
	want := kernelShows(t, target)
	ctr(t, n, "image", "unmount", "--snapshotter", node.Squash, "--rm", target)

	out, _ := squashctl(t, n, 0, "blame", "--all", ref)
	var got []string
	hidden := 0
	for _, line := range lines(out)[1:] {
		var said struct {
			Path struct {
				Path     string
				Versions []struct {
					Fate, Type, Digest, Target string
					Mode, UID, GID             uint32
					Mtime, Size                int64
					Nsec                       uint32 `json:"mtime_nsec"`
				}
			}
		}
		if err := json.Unmarshal([]byte(line), &said); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		for _, v := range said.Path.Versions {
			if v.Fate != "visible" {
				hidden++
				continue
			}
			text := fmt.Sprintf("%q %s %04o %d:%d %d.%09d", said.Path.Path, v.Type, v.Mode, v.UID, v.GID, v.Mtime, v.Nsec)
			switch v.Type {
			case "file":
				text += fmt.Sprintf(" %d %s", v.Size, v.Digest)
			case "symlink":
				text += " -> " + v.Target
			}
			got = append(got, text)
		}
	}
	slices.Sort(got)
	if diff := tree.Diff(want, got, 20); len(diff) > 0 {
		t.Errorf("- the kernel, + blame:\n%s", strings.Join(diff, "\n"))
	}
	if len(want) < 400 || hidden < 10 {
		t.Errorf("%d names and %d hidden versions: this test proves little", len(want), hidden)
	}
}

// kernelShows describes all that is below a directory, sorted.
func kernelShows(t *testing.T, target string) (all []string) {
	t.Helper()
	kinds := map[uint32]string{unix.S_IFDIR: "directory", unix.S_IFREG: "file", unix.S_IFLNK: "symlink", unix.S_IFCHR: "char", unix.S_IFBLK: "block", unix.S_IFIFO: "fifo", unix.S_IFSOCK: "socket"}
	err := filepath.WalkDir(target, func(p string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(p, &st)
		}
		if err != nil {
			return err
		}
		kind := kinds[st.Mode&unix.S_IFMT]
		text := fmt.Sprintf("%q %s %04o %d:%d %d.%09d", "/"+strings.TrimPrefix(strings.TrimPrefix(p, target), "/"), kind, st.Mode&0o7777, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch kind {
		case "file":
			content, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %d sha256:%x", len(content), sha256.Sum256(content))
		case "symlink":
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			text += " -> " + to
		}
		all = append(all, text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}
