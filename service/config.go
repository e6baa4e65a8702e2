// SPDX-License-Identifier: Apache-2.0

package service

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/squash-snapshotter/squash/snapshotter"
)

// DefaultConfigPath is where the daemon looks for its configuration file when none is named.
const DefaultConfigPath = "/etc/containerd-squash-grpc/config.toml"

// Config is everything an operator can choose. The file, see LoadConfig, and the flags of the daemon fill it.
type Config struct {
	// Address is the path of the unix socket on which the daemon serves containerd.
	Address string
	// Root is the directory of everything that survives a reboot.
	Root string
	// State is the directory of everything that does not: mount points of flat images.
	State string
	// ContainerdAddress is the path of containerd's own socket: layer blobs are found through it.
	ContainerdAddress string
	// Mount says how flat images are mounted: "auto", "file" or "loop".
	Mount string
	// Durability says when an applied layer is durable: "background" (soon after) or "sync" (before Apply returns).
	Durability string
	// Shadowed says what becomes of content that no image shows: "free-if-restorable" (from its layer's blob) or "keep".
	Shadowed string
	// Compression of contents that come in: "auto", "zstd", "lz4" or "none"; with a level as in "zstd:9".
	Compression string
	// ReuseLayers has layers that the node has already neither downloaded nor unpacked again.
	ReuseLayers bool
	// LogLevel is "trace", "debug", "info", "warn" or "error".
	LogLevel string
	// LogFormat is "text" or "json".
	LogFormat string
}

// DefaultConfig returns the settings of a daemon without a configuration file.
func DefaultConfig() Config {
	return Config{
		Address:           "/run/containerd-squash-grpc/containerd-squash-grpc.sock",
		Root:              "/var/lib/containerd-squash-grpc",
		State:             "/run/containerd-squash-grpc",
		ContainerdAddress: "/run/containerd/containerd.sock",
		Mount:             "auto",
		Durability:        "background",
		Shadowed:          "free-if-restorable",
		Compression:       "auto",
		ReuseLayers:       true,
		LogLevel:          "info",
		LogFormat:         "text",
	}
}

// document is the shape of the configuration file, with T in the place of every text.
type document[T any] struct {
	Address           T          `toml:"address"`
	Root              T          `toml:"root"`
	State             T          `toml:"state"`
	ContainerdAddress T          `toml:"containerd_address"`
	Mount             T          `toml:"mount"`
	Durability        T          `toml:"durability"`
	Shadowed          T          `toml:"shadowed"`
	Compression       T          `toml:"compression"`
	ReuseLayers       *bool      `toml:"reuse_layers"`
	Log               logging[T] `toml:"log"`
}

type logging[T any] struct {
	Level  T `toml:"level"`
	Format T `toml:"format"`
}

// setting ties one key of the file to its field of Config and to the values that it may take.
type setting struct {
	key   string
	value *string
	want  string
	valid func(string) bool
}

// UnmarshalText stores a value of the file, unless it is not valid.
func (s *setting) UnmarshalText(text []byte) error {
	if err := s.check(string(text)); err != nil {
		return err
	}
	*s.value = string(text)
	return nil
}

func (s *setting) check(value string) error {
	if !s.valid(value) {
		return fmt.Errorf("%s = %q: must be %s", s.key, value, s.want)
	}
	return nil
}

func (c *Config) settings() document[setting] {
	return document[setting]{
		Address:           socketPath("address", &c.Address),
		Root:              directory("root", &c.Root),
		State:             directory("state", &c.State),
		ContainerdAddress: socketPath("containerd_address", &c.ContainerdAddress),
		Mount:             choice("mount", &c.Mount, "auto", "file", "loop"),
		Durability:        choice("durability", &c.Durability, "background", "sync"),
		Shadowed:          choice("shadowed", &c.Shadowed, "free-if-restorable", "keep"),
		Compression: setting{"compression", &c.Compression, "one of " + snapshotter.CompressionForms, func(v string) bool {
			_, err := snapshotter.ParseCompression(v)
			return err == nil
		}},
		ReuseLayers: &c.ReuseLayers,
		Log: logging[setting]{
			Level:  choice("log.level", &c.LogLevel, "trace", "debug", "info", "warn", "error"),
			Format: choice("log.format", &c.LogFormat, "text", "json"),
		},
	}
}

func (d *document[T]) values() []*T {
	return []*T{&d.Address, &d.Root, &d.State, &d.ContainerdAddress, &d.Mount, &d.Durability, &d.Shadowed, &d.Compression, &d.Log.Level, &d.Log.Format}
}

func directory(key string, value *string) setting {
	return setting{key, value, "an absolute path", filepath.IsAbs}
}

// maxSocketPath is what fits into sockaddr_un with its final zero byte.
const maxSocketPath = 107

func socketPath(key string, value *string) setting {
	return setting{key, value, fmt.Sprintf("an absolute path of at most %d bytes", maxSocketPath), func(v string) bool {
		return filepath.IsAbs(v) && len(v) <= maxSocketPath
	}}
}

func choice(key string, value *string, allowed ...string) setting {
	quoted := make([]string, len(allowed))
	for i, v := range allowed {
		quoted[i] = strconv.Quote(v)
	}
	return setting{key, value, "one of " + strings.Join(quoted, ", "), func(v string) bool {
		return slices.Contains(allowed, v)
	}}
}

// Validate returns an error that names the first setting with a value it cannot take, and the values it can.
func (c Config) Validate() error {
	doc := c.settings()
	for _, s := range doc.values() {
		if err := s.check(*s.value); err != nil {
			return err
		}
	}
	return nil
}

// LoadConfig returns the defaults, overridden by the TOML file at path. Errors name the file, the line, the key and
// what is allowed there. A missing file is an error that satisfies errors.Is(err, fs.ErrNotExist).
func LoadConfig(path string) (Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	cfg := DefaultConfig()
	settings := cfg.settings()
	// The first pass settles syntax, keys and types, so that in the second pass every value is text, and one that is
	// refused carries its position.
	var plain document[string]
	for _, target := range []any{&plain, &settings} {
		if err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(target); err != nil {
			return Config{}, describe(path, err, &settings)
		}
	}
	return cfg, nil
}

// describe says what is wrong with the file at path in the words of its author.
func describe(path string, err error, settings *document[setting]) error {
	if missing, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		var all []error
		for i := range missing.Errors {
			e := &missing.Errors[i]
			line, _ := e.Position()
			all = append(all, fmt.Errorf("%s:%d: unknown key %q; known here are %s",
				path, line, strings.Join(e.Key(), "."), strings.Join(knownKeys(e.Key()), ", ")))
		}
		return errors.Join(all...)
	}
	bad, ok := errors.AsType[*toml.DecodeError](err)
	if !ok {
		return fmt.Errorf("%s: %w", path, err)
	}
	line, _ := bad.Position()
	message := strings.TrimPrefix(bad.Error(), "toml: ")
	if strings.HasPrefix(message, "cannot decode") {
		key := strings.Join(bad.Key(), ".")
		message = fmt.Sprintf("%s: must be a table", key)
		if key == "reuse_layers" {
			message = key + ": must be true or false"
		}
		for _, s := range settings.values() {
			if s.key == key {
				message = fmt.Sprintf("%s: must be a string: %s", key, s.want)
			}
		}
	}
	return fmt.Errorf("%s:%d: %s", path, line, message)
}

// knownKeys lists the keys that could stand in the place of key.
func knownKeys(key toml.Key) []string {
	table := reflect.TypeFor[document[string]]()
	if len(key) > 1 && key[0] == "log" {
		table = reflect.TypeFor[logging[string]]()
	}
	var keys []string
	for i := range table.NumField() {
		keys = append(keys, table.Field(i).Tag.Get("toml"))
	}
	return keys
}
