// SPDX-License-Identifier: Apache-2.0

// Package arrows checks which package of the project may know which. It has no code of its own.
package arrows

import (
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/squash-snapshotter/squash"

// rules say what a package must not reach, directly or through others. Tests may import what they like. Paths are
// relative to the module; "" stands for any package of the project, and a path stands for all below it as well.
var rules = []struct {
	from, to string
	why      string
}{
	{"internal/erofs", "", "the image writer knows the disk format alone, so that it can be judged by fsck.erofs and the kernel alone"},
	{"internal/pack", "", "the content store knows digests and bytes, not where they come from or who shows them"},
	{"internal/layer", "internal/pack", "reading a layer must not depend on how contents are stored: it hands them to an interface"},
	{"internal/layer", "internal/flatten", "a layer is read before anybody knows to which images it belongs"},
	{"internal/flatten", "snapshotter", "flattening is a function of TOCs and placements; snapshots and their life are above it"},
	{"internal/flatten", "internal/mounts", "a flat image is bytes; who mounts it is decided above"},
	{"internal", "snapshotter", "what is internal is below the snapshotter"},
	{"internal", "service", "what is internal is below the service"},
	{"snapshotter", "service", "the snapshotter also runs inside containerd, without this daemon's sockets and configuration"},
	{"api", "", "other projects may speak the API, and need nothing of how it is served"},
	{"cmd/squashctl", "snapshotter", "the operator's tool asks the daemon and does not touch the store beside it"},
	{"cmd/squashctl", "service", "the operator's tool needs the API alone"},
	{"service", "internal/reportpage", "the operator's tool makes the page, from what the API says"},
	{"", "cmd", "commands hold flags and signals; what others need belongs into a package"},
	{"internal/failpoint", "", "it is called from everywhere"},
	{"", "internal/treetest", "test support must not get into what is shipped"},
	{"", "internal/kmsgtest", "test support must not get into what is shipped"},
	{"", "internal/testreport", "it reads test results for make and nothing else"},
}

func TestImportsFollowTheArrows(t *testing.T) {
	direct := projectImports(t)
	for _, want := range []string{"internal/erofs", "internal/layer", "internal/pack", "internal/flatten", "snapshotter", "service", "api/admin/v1", "cmd/containerd-squash-grpc", "cmd/squashctl"} {
		if _, found := direct[want]; !found {
			t.Errorf("package %s is not there: was it renamed? The rules here would pass for nothing", want)
		}
	}
	for pkg, to := range direct {
		// Calls of it are marks for a test and no code in what is shipped.
		direct[pkg] = slices.DeleteFunc(to, func(to string) bool { return to == "internal/failpoint" })
	}
	for _, rule := range rules {
		for _, from := range slices.Sorted(maps.Keys(direct)) {
			if !below(from, rule.from) {
				continue
			}
			if way := wayTo(direct, from, rule.to); way != nil {
				t.Errorf("%s: not allowed, because %s", strings.Join(way, " imports "), rule.why)
			}
		}
	}
}

func below(pkg, parent string) bool {
	return parent == "" || pkg == parent || strings.HasPrefix(pkg, parent+"/")
}

// wayTo returns the packages on a shortest way of imports from a package to one at or below to, or nil.
func wayTo(direct map[string][]string, from, to string) []string {
	ways := [][]string{{from}}
	seen := map[string]bool{from: true}
	for len(ways) > 0 {
		way := ways[0]
		ways = ways[1:]
		for _, next := range direct[way[len(way)-1]] {
			if seen[next] {
				continue
			}
			seen[next] = true
			longer := append(slices.Clone(way), next)
			if below(next, to) {
				return longer
			}
			ways = append(ways, longer)
		}
	}
	return nil
}

// projectImports returns which package of the module imports which, without tests.
func projectImports(t *testing.T) map[string][]string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	imports := map[string]map[string]bool{}
	err = filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if file != root && isOtherModule(file) || strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata" {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		dir, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(dir)
		if imports[pkg] == nil {
			imports[pkg] = map[string]bool{}
		}
		for _, spec := range parsed.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if strings.HasPrefix(name, module+"/") {
				imports[pkg][path.Clean(strings.TrimPrefix(name, module+"/"))] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	direct := map[string][]string{}
	for pkg, to := range imports {
		direct[pkg] = slices.Sorted(maps.Keys(to))
	}
	return direct
}

func isOtherModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

// A rule that cannot fail is none.
func TestWayToFindsDetours(t *testing.T) {
	direct := map[string][]string{"a": {"b", "c"}, "b": {"c"}, "c": {"d/e"}, "d/e": {"a"}, "dx": nil}
	if got := wayTo(direct, "a", "d"); !slices.Equal(got, []string{"a", "c", "d/e"}) {
		t.Errorf("got %v, want the way through c", got)
	}
	if got := wayTo(direct, "a", "dx"); got != nil {
		t.Errorf("got %v, want no way", got)
	}
	if got := wayTo(direct, "dx", ""); got != nil {
		t.Errorf("got %v, want no way out of a package without imports", got)
	}
}
