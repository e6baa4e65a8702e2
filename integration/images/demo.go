// SPDX-License-Identifier: Apache-2.0

package images

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// GuestPath is where every image has the guest program.
const GuestPath = "/bin/guest"

// Volatile are the directories of our images that a runtime mounts over.
var Volatile = []string{"dev", "proc", "run", "sys"}

// demoRecipe changes whenever the layers below change, so that a store forgets the old ones.
const demoRecipe = "demo 2"

// toolchain is where the demo image has the Go toolchain.
const toolchain = "usr/local/go"

// Titled is one layer of an image and what it stands for.
type Titled struct {
	Title string
	Layer v1.Layer
}

// Demo makes the image of the demo from the guest program and the Go toolchain in goroot, the way images of
// CI runners grow: a base, a toolchain, its files once more with another owner, an upgrade of some of them,
// a clean-up that deletes others, and an application that brings copies of files that are already there.
// Progress is told to tell, one call before each layer.
func Demo(s *Store, guest []byte, goroot string, tell func(title string)) ([]Titled, error) {
	version, err := os.ReadFile(filepath.Join(goroot, "VERSION"))
	if err != nil {
		return nil, fmt.Errorf("demo image: %w", err)
	}
	src := filepath.Join(goroot, "src")
	steps := []struct {
		title string
		write func(*LayerWriter) error
	}{
		{"base: a static program and /etc", func(w *LayerWriter) error { return WriteBase(w, guest) }},
		{"install: the Go toolchain", func(w *LayerWriter) error {
			return writeToolchain(w, goroot, Owner(0, 0))
		}},
		{"chown -R: every file once more, for uid 1000", func(w *LayerWriter) error {
			return writeToolchain(w, goroot, Owner(1000, 1000))
		}},
		{"upgrade: changed source files", func(w *LayerWriter) error { return writeUpgrade(w, goroot) }},
		{"clean up: rm -r of what is not needed", func(w *LayerWriter) error { return writeCleanup(w, goroot) }},
		{"app: with vendored copies", func(w *LayerWriter) error { return writeApp(w, src) }},
	}
	var out []Titled
	for i, step := range steps {
		key := fmt.Sprintf("%s layer %d go %s guest %x", demoRecipe, i+1, version, sha256.Sum256(guest))
		tell(step.title)
		l, err := s.Layer(key, Gzip, step.write)
		if err != nil {
			return nil, fmt.Errorf("demo image: %w", err)
		}
		out = append(out, Titled{step.title, l})
	}
	return out, nil
}

// WriteBase writes what every image of ours starts with: the guest program, /etc, and mount points for a runtime.
func WriteBase(w *LayerWriter, guest []byte) error {
	for _, d := range []string{"bin", "dev", "etc", "home", "proc", "root", "run", "sys", "usr", "usr/local", "var"} {
		if err := w.Dir(d, 0o755); err != nil {
			return err
		}
	}
	if err := w.Dir("tmp", 0o1777); err != nil {
		return err
	}
	files := []struct {
		name, content string
		mode          int64
	}{
		{"bin/guest", string(guest), 0o755},
		{"etc/group", "root:x:0:\nbuilder:x:1000:\n", 0o644},
		{"etc/hosts", "127.0.0.1 localhost\n", 0o644},
		{"etc/os-release", "ID=squash-demo\nNAME=\"squash demo\"\n", 0o644},
		{"etc/passwd", "root:x:0:0::/root:/bin/guest\nbuilder:x:1000:1000::/home:/bin/guest\n", 0o644},
		{"etc/shadow", "root:*:::::::\n", 0o600},
	}
	for _, f := range files {
		if err := w.File(f.name, f.mode, []byte(f.content)); err != nil {
			return err
		}
	}
	return nil
}

// statePath writes the directories above the toolchain, as image builders do: where a layer leaves them out,
// their times depend on when it is unpacked, and Replay could not know them.
func statePath(w *LayerWriter) error {
	return all(w.Dir("usr", 0o755), w.Dir("usr/local", 0o755))
}

// writeToolchain takes all of goroot but build caches, which some installations keep there.
func writeToolchain(w *LayerWriter, goroot string, owner Attr) error {
	return all(statePath(w), w.CopyTree(toolchain, goroot, Copy{
		Attrs: []Attr{owner},
		Keep:  func(rel string, _ bool) bool { return !below(rel, "pkg/obj") && rel != ".git" },
	}))
}

// upgraded are the parts of the standard library that the upgrade layer changes.
var upgraded = []string{"src/crypto", "src/encoding", "src/go", "src/internal", "src/net", "src/runtime"}

func writeUpgrade(w *LayerWriter, goroot string) error {
	return all(statePath(w), w.CopyTree(toolchain, goroot, Copy{
		Attrs: []Attr{Owner(1000, 1000)},
		Keep: func(rel string, dir bool) bool {
			if dir && rel == "src" {
				return true
			}
			in := slices.ContainsFunc(upgraded, func(part string) bool { return below(rel, part) })
			return in && (dir || strings.HasSuffix(rel, ".go"))
		},
		Edit: func(_ string, content []byte) []byte { return append(content, "// upgraded\n"...) },
	}))
}

func writeCleanup(w *LayerWriter, goroot string) error {
	if err := all(statePath(w), w.Dir(toolchain, 0o755, Owner(1000, 1000))); err != nil {
		return err
	}
	for _, name := range []string{"api", "doc", "misc", "test"} {
		if _, err := os.Stat(filepath.Join(goroot, name)); err != nil {
			continue // a toolchain from the module cache comes without some of these
		}
		if err := w.Whiteout(toolchain + "/" + name); err != nil {
			return err
		}
	}
	if err := w.Dir(toolchain+"/src", 0o755, Owner(1000, 1000)); err != nil {
		return err
	}
	return w.Whiteout(toolchain + "/src/cmd")
}

func writeApp(w *LayerWriter, src string) error {
	if err := w.Dir("app", 0o755); err != nil {
		return err
	}
	if err := w.File("app/README", 0o644, []byte("an application with its dependencies\n")); err != nil {
		return err
	}
	if err := w.Dir("app/vendor", 0o755); err != nil {
		return err
	}
	for _, part := range []string{"compress", "image", "math", "net", "text", "vendor"} {
		if err := w.CopyTree("app/vendor/"+part, filepath.Join(src, part), Copy{}); err != nil {
			return err
		}
	}
	return nil
}
