// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"go.etcd.io/bbolt"
)

// pulledAndClosed is a store with images, at rest; nothing of it is mounted.
func pulledAndClosed(t *testing.T) *node {
	t.Helper()
	n := newNode(t, mounts.ModeAuto)
	for i := range uint64(3) {
		must(t, n.Flatten(context.Background(), n.pull(fmt.Sprint("ns/", i), sample(i))))
	}
	must(t, n.Cleanup(context.Background()))
	n.close()
	for _, m := range mountsBelow(t, n.dir) {
		must(t, unmount(m.Mountpoint))
	}
	return n
}

// refusesAndKeeps starts a store that must not start, and compares its files.
func (n *node) refusesAndKeeps(t *testing.T, texts ...string) {
	t.Helper()
	before := n.files(t)
	s, err := New(context.Background(), n.cfg)
	if err == nil {
		s.Close()
		t.Error("it has started")
	} else if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("not FailedPrecondition: %v", err)
	}
	for _, text := range texts {
		if !strings.Contains(fmt.Sprint(err), text) {
			t.Errorf("%q is not in the error: %v", text, err)
		}
	}
	if after := n.files(t); !maps.Equal(before, after) {
		t.Errorf("files before: %v\nafter: %v", before, after)
	}
}

// files are the store's files and their contents; the reserve holds nothing.
func (n *node) files(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	must(t, filepath.WalkDir(n.cfg.Root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() == "reserve" {
			return err
		}
		all[path] = ""
		if e.Type().IsRegular() {
			b, err := os.ReadFile(path)
			all[path] = sha256Hex(string(b))
			return err
		}
		return nil
	}))
	return all
}

func TestADamagedMetastoreIsRefusedAndCostsNothing(t *testing.T) {
	t.Parallel()
	n := pulledAndClosed(t)
	path := filepath.Join(n.cfg.Root, "metadata.db")
	whole, err := os.ReadFile(path)
	must(t, err)
	r := rand.New(rand.NewPCG(1, 1))
	garbage := func(b []byte) []byte {
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	const page = 4096
	for name, damaged := range map[string]func(b []byte) []byte{
		"empty":                 func([]byte) []byte { return nil },
		"zeroed":                func(b []byte) []byte { clear(b); return b },
		"one byte":              func(b []byte) []byte { return b[:1] },
		"without its end":       func(b []byte) []byte { return b[:2*page+100] },
		"zeroed behind the top": func(b []byte) []byte { clear(b[2*page:]); return b },
		"garbage":               garbage,
		"garbage behind the top": func(b []byte) []byte {
			garbage(b[2*page:])
			return b
		},
		"no bolt file": func([]byte) []byte { return []byte(strings.Repeat("text\n", 5000)) },
		"an empty one": func([]byte) []byte {
			other := filepath.Join(t.TempDir(), "db")
			db, err := bbolt.Open(other, 0o600, nil)
			must(t, err)
			must(t, db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("other")); return err }))
			must(t, db.Close())
			b, err := os.ReadFile(other)
			must(t, err)
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			must(t, os.WriteFile(path, damaged(append([]byte(nil), whole...)), 0o600))
			n.refusesAndKeeps(t, path, "delete the file", "pull")
		})
	}
	// Any page: either nothing depends on it, or it is refused.
	t.Run("a page", func(t *testing.T) {
		refused := 0
		for at := 0; at+page <= len(whole); at += page {
			b := append([]byte(nil), whole...)
			garbage(b[at : at+page])
			must(t, os.WriteFile(path, b, 0o600))
			before := n.files(t)
			s, err := New(context.Background(), n.cfg)
			if err != nil {
				refused++
				if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), path) || !maps.Equal(before, n.files(t)) {
					t.Errorf("page %d: %v", at/page, err)
				}
				continue
			}
			n.Snapshotter = s
			if got := len(n.all()); got != 9 {
				t.Errorf("page %d: %d snapshots are left", at/page, got)
			}
			n.close()
		}
		if refused < 3 {
			t.Errorf("%d pages were missed", refused)
		}
	})
	// What the error says.
	must(t, os.Remove(path))
	n.open()
	n.expectNothingLeft()
	top := n.pull("ns/0", sample(0))
	n.shows(top, n.tree(top))
	if findings, _ := n.checked(CheckOptions{}); len(findings) > 0 {
		t.Errorf("check: %+v", findings)
	}
}
