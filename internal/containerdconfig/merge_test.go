// SPDX-License-Identifier: Apache-2.0

package containerdconfig

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

func want(version string, kubernetes bool) Want {
	return Want{
		Address:    "/run/containerd-squash-grpc/containerd-squash-grpc.sock",
		Root:       "/var/lib/containerd-squash-grpc",
		Containerd: version,
		Kubernetes: kubernetes,
	}
}

func merge(t *testing.T, text []byte, w Want, imports ...File) *Plan {
	t.Helper()
	plan, err := Merge(File{"/etc/containerd/config.toml", text}, imports, w)
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

func decode(t *testing.T, text []byte) map[string]any {
	t.Helper()
	values := map[string]any{}
	if err := toml.Unmarshal(text, &values); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return values
}

// What users are told to copy, and what is merged into an empty file, is the same.
func TestAnEmptyFileBecomesTheExample(t *testing.T) {
	for example, version := range map[string]string{"config-2.toml": "2.4.2", "config-1.7.toml": "1.7.27"} {
		text, err := os.ReadFile("../../contrib/containerd/" + example)
		if err != nil {
			t.Fatal(err)
		}
		with := decode(t, text)
		without := decode(t, regexp.MustCompile(`(?s)# Kubernetes: every.*`).ReplaceAll(text, nil))
		if reflect.DeepEqual(with, without) {
			t.Fatalf("%s: the part for Kubernetes was not found", example)
		}
		if got := decode(t, merge(t, nil, want(version, true)).Text); !reflect.DeepEqual(got, with) {
			t.Errorf("%s: got %v, want %v", example, got, with)
		}
		if got := decode(t, merge(t, nil, want(version, false)).Text); !reflect.DeepEqual(got, without) {
			t.Errorf("%s without Kubernetes: got %v, want %v", example, got, without)
		}
	}
}

// containerd 1.6 panics when it meets a plugin of type "diff".
func TestOldContainerdGetsNoDiffer(t *testing.T) {
	for _, version := range []string{"1.6.38", "1.7.5", "v1.6.20~ds1"} {
		if text := merge(t, nil, want(version, true)).Text; bytes.Contains(text, []byte("diff")) || !bytes.Contains(text, []byte("[proxy_plugins.squash]")) {
			t.Errorf("%s: got\n%s", version, text)
		}
	}
}

func TestRealFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/*.toml")
	if err != nil || len(files) < 4 {
		t.Fatalf("got %v, %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		version := "2.4.2"
		if strings.Contains(file, "1.7") {
			version = "1.7.27"
		}
		for _, kubernetes := range []bool{false, true} {
			first := merge(t, text, want(version, kubernetes))
			for _, i := range first.Items {
				if i.ByHand != "" && i.Key != "disabled_plugins" {
					t.Errorf("%s: %s was left: %s", file, i.Key, i.ByHand)
				}
			}
			checkMerge(t, text, first, want(version, kubernetes))
			decoded := decode(t, first.Text)
			list := texts(decoded["plugins"].(map[string]any)[diffPlugin].(map[string]any)["default"])
			if at := strings.Join(list, " "); !strings.Contains(at, "squash-diff walking") {
				t.Errorf("%s: the differs are %q", file, at)
			}
		}
	}
}

// checkMerge checks what must be so for every file.
func checkMerge(t *testing.T, old []byte, plan *Plan, w Want) {
	t.Helper()
	was, is := decode(t, old), decode(t, plan.Text)
	if !w.Kubernetes {
		if !keeps(was, is, nil) {
			t.Errorf("something was changed in\n%s\nwhich became\n%s", old, plan.Text)
		}
		if !subsequence(old, plan.Text) {
			t.Errorf("bytes are missing of\n%s\nin\n%s", old, plan.Text)
		}
	}
	again := merge(t, plan.Text, w)
	if !bytes.Equal(again.Text, plan.Text) {
		t.Errorf("merged twice, got\n%s\nafter\n%s", again.Text, plan.Text)
	}
	for _, i := range again.Items {
		if i.ByHand == "" {
			t.Errorf("%s is still missing", i.Key)
		}
	}
}

func subsequence(part, whole []byte) bool {
	for _, c := range part {
		n := bytes.IndexByte(whole, c)
		if n < 0 {
			return false
		}
		whole = whole[n+1:]
	}
	return true
}

func TestWhatIsLeftToThePerson(t *testing.T) {
	imported := func(text string) []File { return []File{{"/etc/containerd/conf.d/a.toml", []byte(text)}} }
	for _, c := range []struct {
		name, text string
		imports    []File
		key, why   string
	}{
		{"inline tables", "version = 3\nproxy_plugins = {}\n", nil, "proxy_plugins.squash", "cannot edit the form"},
		{"inline list", "version = 3\n[plugins.\"" + transferPlugin + "\"]\nunpack_config = [{snapshotter = 'overlayfs'}]\n", nil, "plugins.\"" + transferPlugin + "\".unpack_config", "cannot edit the form"},
		{"another root", "version = 3\n[proxy_plugins.squash]\ntype='snapshot'\naddress='/run/containerd-squash-grpc/containerd-squash-grpc.sock'\nexports.root = '/old'\n", nil, "proxy_plugins.squash.exports.root", `it is "/old" now`},
		{"walking first", "version = 3\n[plugins.\"" + diffPlugin + "\"]\ndefault = ['walking', 'squash-diff']\n", nil, "plugins.\"" + diffPlugin + "\".default", "stands behind"},
		{"imported list", "version = 3\n", imported("version = 3\n[plugins.\"" + diffPlugin + "\"]\ndefault = ['walking']\n"), "plugins.\"" + diffPlugin + "\".default", "/etc/containerd/conf.d/a.toml, which is imported"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, i := range merge(t, []byte(c.text), want("2.4.2", false), c.imports...).Items {
				if i.Key == c.key {
					if !strings.Contains(i.ByHand, c.why) || i.Lines == "" {
						t.Errorf("got %+v, want it to say %q", i, c.why)
					}
					return
				}
			}
			t.Errorf("%s was not found", c.key)
		})
	}
}

// What an imported file has is not missing.
func TestImports(t *testing.T) {
	all := merge(t, nil, want("2.4.2", true)).Text
	main := File{"/etc/containerd/config.toml", []byte("version = 3\nimports = ['conf.d/*.toml', '/x.toml']\n")}
	if plan := merge(t, main.Text, want("2.4.2", true), File{"a.toml", all}); len(plan.Items) != 0 || !bytes.Equal(plan.Text, main.Text) {
		t.Errorf("got %+v", plan.Items)
	}
	if got, err := Imports(main); err != nil || !reflect.DeepEqual(got, []string{"/etc/containerd/conf.d/*.toml", "/x.toml"}) {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestDiff(t *testing.T) {
	old := []byte("1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\n")
	now := []byte("1\n2\n3\n4\n5\nx\n6\n7\n8\n9\n10\n11\n12\ny")
	want := "--- f\n+++ f\n@@ -3,6 +3,7 @@\n 3\n 4\n 5\n+x\n 6\n 7\n 8\n@@ -10,3 +11,4 @@\n 10\n 11\n 12\n+y\n\\ No newline at end of file\n"
	if got := Diff("f", old, now); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := Diff("f", old, old); got != "" {
		t.Errorf("got %q", got)
	}
}

func FuzzMerge(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.toml")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, true)
	}
	f.Add([]byte("version = 3\n[proxy_plugins.squash]\ncapabilities = [ ]"), false)
	f.Fuzz(func(t *testing.T, text []byte, kubernetes bool) {
		w := want("2.4.2", kubernetes)
		plan, err := Merge(File{"f", text}, nil, w)
		if err != nil {
			return
		}
		checkMerge(t, text, plan, w)
	})
}
