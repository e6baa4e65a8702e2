// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// The example file is the documentation of the keys and their defaults.
func TestExampleConfigShowsTheDefaults(t *testing.T) {
	path := "../contrib/config.toml"
	got, err := LoadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != DefaultConfig() {
		t.Errorf("got %+v, want the defaults %+v", got, DefaultConfig())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var doc document[*string]
	if err := toml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	for i, value := range doc.values() {
		if *value == nil {
			var cfg Config
			settings := cfg.settings()
			t.Errorf("key %q is missing in %s", settings.values()[i].key, path)
		}
	}
}

// What is told to containerd and to systemd must fit the daemon's defaults.
func TestExamplesAgreeOnPaths(t *testing.T) {
	defaults := DefaultConfig()
	files, err := filepath.Glob("../contrib/containerd/*.toml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples for containerd (%v)", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			ProxyPlugins map[string]struct {
				Address string
				Exports map[string]string
			} `toml:"proxy_plugins"`
		}
		if err := toml.Unmarshal(text, &doc); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if len(doc.ProxyPlugins) == 0 {
			t.Errorf("%s: no proxy plugins", file)
		}
		for name, plugin := range doc.ProxyPlugins {
			if plugin.Address != defaults.Address {
				t.Errorf("%s: %s has address %q, want %q", file, name, plugin.Address, defaults.Address)
			}
			if root, ok := plugin.Exports["root"]; ok && root != defaults.Root {
				t.Errorf("%s: %s has root %q, want %q", file, name, root, defaults.Root)
			}
		}
	}
	for file, line := range map[string]string{
		"containerd-squash-grpc.socket":  "ListenStream=" + defaults.Address,
		"containerd-squash-grpc.service": "RequiresMountsFor=" + defaults.Root,
	} {
		text, err := os.ReadFile(filepath.Join("../contrib/systemd", file))
		if err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(fmt.Sprintf("(?m)^%s$", regexp.QuoteMeta(line))).Match(text) {
			t.Errorf("%s: no line %q", file, line)
		}
	}
}

// With a mount namespace of its own, or a state directory that is emptied, containers would see nothing or lose
// what they see.
func TestUnitKeepsMountsVisible(t *testing.T) {
	text, err := os.ReadFile("../contrib/systemd/containerd-squash-grpc.service")
	if err != nil {
		t.Fatal(err)
	}
	hides := regexp.MustCompile(`(?m)^(Private\w*|Protect\w*|Read(Write|Only)Paths|InaccessiblePaths|BindPaths|BindReadOnlyPaths|TemporaryFileSystem|MountFlags|Root\w*|RuntimeDirectory|StateDirectory|DynamicUser|User)=`)
	if found := hides.FindAllString(string(text), -1); len(found) > 0 {
		t.Errorf("the unit sets %v", found)
	}
}
