// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/squash-snapshotter/squash/integration/images"
)

// CacheVariable names another directory for what is downloaded and built.
const CacheVariable = "SQUASH_BENCH_CACHE"

// Cache is the directory that keeps downloads and layers between runs, and the versions of what is in them:
//
//	lock.json  which versions; who deletes it gets the newest ones
//	debs/      packages           npm/  trees of npm packages
//	apt/       apt's own lists and caches, so that those of the machine stay as they are
//	images/    layers as registries have them
type Cache struct {
	dir   string
	Store *images.Store
}

// OpenCache opens $SQUASH_BENCH_CACHE or the folder squash-bench of the user's cache directory, and makes what is
// missing.
func OpenCache() (*Cache, error) {
	dir := os.Getenv(CacheVariable)
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("no place for the cache, set %s: %w", CacheVariable, err)
		}
		dir = filepath.Join(base, "squash-bench")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	store, err := images.OpenStore(filepath.Join(dir, "images"))
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	return &Cache{dir: dir, Store: store}, nil
}

// Dir is where everything lies.
func (c *Cache) Dir() string { return c.dir }

// lock says which versions an image is made of. Together with the recipe it determines every byte of the layers.
type lock struct {
	Recipe string              `json:"recipe"`
	Debs   map[string][]deb    `json:"debs"` // by step
	Npm    map[string]npmState `json:"npm"`  // by step
	Go     string              `json:"go"`
}

// deb is one package in one version.
type deb struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	File    string `json:"file"` // as apt names it in a directory of downloads
	SHA256  string `json:"sha256,omitempty"`
}

// npmState is a tree of npm packages, by the lock file that npm wrote for it.
type npmState struct {
	Dependencies map[string]string `json:"dependencies"`
	Lock         json.RawMessage   `json:"lock"`
}

func (c *Cache) lockFile() string { return filepath.Join(c.dir, "lock.json") }

// lock gives the versions of earlier runs, or nil if there are none for this recipe.
func (c *Cache) lock() (*lock, error) {
	data, err := os.ReadFile(c.lockFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var l lock
	if err := json.Unmarshal(data, &l); err != nil {
		return nil, fmt.Errorf("%s: %w; delete it", c.lockFile(), err)
	}
	if l.Recipe != recipe {
		return nil, nil
	}
	for name, s := range l.Npm {
		if s.Lock, err = compact(s.Lock); err != nil {
			return nil, fmt.Errorf("%s: %w; delete it", c.lockFile(), err)
		}
		l.Npm[name] = s
	}
	return &l, nil
}

func (c *Cache) writeLock(l *lock) error {
	data, err := json.MarshalIndent(l, "", " ")
	if err != nil {
		return err
	}
	aside := c.lockFile() + ".new"
	if err := os.WriteFile(aside, append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(aside, c.lockFile())
}

// digest names what the lock says, whatever its form on disk.
func (l *lock) digest() (string, error) {
	data, err := json.Marshal(l)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), nil
}
