// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"os"
	"path/filepath"
	"testing"
)

// unsynced counts the contents that a power cut may have damaged.
func unsynced(s *Store) (n int) {
	s.Unsynced(func(Digest, Placement) { n++ })
	return n
}

func TestContentsAreUnsyncedUntilASync(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	store(t, s, noise(1, 5000))
	if n := unsynced(s); n != 1 {
		t.Errorf("%d contents are unsynced after a publication, want 1", n)
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	if n := unsynced(s); n != 0 {
		t.Errorf("%d contents are unsynced after a sync", n)
	}
	store(t, s, noise(2, 5000), noise(3, 5000))
	w := s.Begin()
	put(t, w, noise(4, 5000))
	if err := w.Publish(true); err != nil {
		t.Fatal(err)
	}
	closeWriter(t, w)
	if n := unsynced(s); n != 0 {
		t.Errorf("%d contents are unsynced after a durable publication", n)
	}
	store(t, s, noise(5, 5000))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s = open(t, dir); unsynced(s) != 1 {
		t.Errorf("%d contents are unsynced in the opened store, want 1", unsynced(s))
	}
}

// A lost note makes work, a lost index must not make trust.
func TestWhatIsNotKnownToBeSyncedIsNot(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	store(t, s, noise(1, 5000))
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "index", syncedName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if s = open(t, dir); unsynced(s) != 1 {
		t.Error("contents count as synced without a note of it")
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "index", "00000000-00000000.0")); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	store(t, s, noise(2, 5000))
	if unsynced(s) != 1 {
		t.Error("a new content has the number of a synced one that was lost")
	}
}
