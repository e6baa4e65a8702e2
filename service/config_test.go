// SPDX-License-Identifier: Apache-2.0

package service

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEmptyConfigIsTheDefaults(t *testing.T) {
	got, err := LoadConfig(writeConfig(t, "# nothing\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got != DefaultConfig() {
		t.Errorf("got %+v, want %+v", got, DefaultConfig())
	}
	if err := got.Validate(); err != nil {
		t.Errorf("the defaults are not valid: %v", err)
	}
}

func TestConfigSetsEveryKey(t *testing.T) {
	got, err := LoadConfig(writeConfig(t, `
address = "/a/sock"
root = "/b"
state = "/c"
containerd_address = "/d/sock"
mount = "loop"
durability = "sync"
shadowed = "keep"
compression = "zstd:9"
reuse_layers = false
[log]
level = "debug"
format = "json"
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Address: "/a/sock", Root: "/b", State: "/c", ContainerdAddress: "/d/sock",
		Mount: "loop", Durability: "sync", Shadowed: "keep", Compression: "zstd:9", LogLevel: "debug", LogFormat: "json",
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// Every field of Config must have a key, or an operator could not set it and Validate would not see it.
func TestEveryFieldHasASetting(t *testing.T) {
	var cfg Config
	settings := cfg.settings()
	for _, s := range settings.values() {
		*s.value = "set"
	}
	*settings.ReuseLayers = true
	fields := reflect.ValueOf(cfg)
	for i := range fields.NumField() {
		if f := fields.Field(i); f.Kind() == reflect.Bool && !f.Bool() || f.Kind() != reflect.Bool && f.String() != "set" {
			t.Errorf("no setting reaches Config.%s", fields.Type().Field(i).Name)
		}
	}
}

func TestConfigErrorsNamePlaceAndRemedy(t *testing.T) {
	for _, c := range []struct {
		name, text string
		line       string
		want       []string
	}{
		{"unknown key", "root = \"/r\"\n\nsnapshotter = \"x\"\n", ":3: ", []string{`unknown key "snapshotter"`, "known here are address, root, state, containerd_address, mount, durability, shadowed, compression, reuse_layers, log"}},
		{"unknown key of a table", "[log]\nfile = \"x\"\n", ":2: ", []string{`unknown key "log.file"`, "known here are level, format"}},
		{"unknown table", "\n[metrics]\naddress = \"x\"\n", ":2: ", []string{`unknown key "metrics"`}},
		{"two unknown keys", "a = 1\nb = 2\n", ":2: ", []string{`unknown key "a"`, `unknown key "b"`}},
		{"bad choice", "\n\nmount = \"fuse\"\n", ":3: ", []string{`mount = "fuse": must be one of "auto", "file", "loop"`}},
		{"bad choice of a table", "[log]\nformat = \"text\"\nlevel = \"loud\"\n", ":3: ", []string{`log.level = "loud": must be one of "trace", "debug"`}},
		{"bad shadowed", "shadowed = \"free\"\n", ":1: ", []string{`shadowed = "free": must be one of "free-if-restorable", "keep"`}},
		{"bad durability", "durability = \"\"\n", ":1: ", []string{`durability = "": must be one of "background", "sync"`}},
		{"relative path", "address = \"/a\"\nroot = \"lib\"\n", ":2: ", []string{`root = "lib": must be an absolute path`}},
		{"socket path too long", "address = \"/" + strings.Repeat("x", 107) + "\"\n", ":1: ", []string{"at most 107 bytes"}},
		{"number for a string", "\nmount = 3\n", ":2: ", []string{`mount: must be a string: one of "auto", "file", "loop"`}},
		{"text for a boolean", "\nreuse_layers = \"yes\"\n", ":2: ", []string{"reuse_layers: must be true or false"}},
		{"boolean in a table", "[log]\nlevel = true\n", ":2: ", []string{`log.level: must be a string: one of "trace"`}},
		{"value for a table", "log = \"debug\"\n", ":1: ", []string{"log: must be a table"}},
		{"key given twice", "root = \"/a\"\nroot = \"/b\"\n", ":2: ", []string{"already defined"}},
		{"no TOML", "root = /a\n", ":1: ", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := writeConfig(t, c.text)
			_, err := LoadConfig(path)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range append(c.want, path+c.line) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want it to contain %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "struct field") {
				t.Errorf("got %q, which speaks of Go types", err)
			}
		})
	}
}

func TestMissingConfigIsNotExist(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.toml")
	if _, err := LoadConfig(path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, want fs.ErrNotExist naming %s", err, path)
	}
}
