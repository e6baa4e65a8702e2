// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/squash-snapshotter/squash/internal/failpoint"
)

// syncedName is a file beside the index files. It holds a number in decimal:
// the contents of all generations below it are on the disk. Index files may
// reach the disk before the contents that they speak of.
const syncedName = "synced"

// readSynced returns the number; 0 if nothing is known.
func readSynced(dir string) (uint64, error) {
	b, err := os.ReadFile(filepath.Join(dir, syncedName))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("pack: %w", err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, nil // a power cut came before it was written: all is unsynced
	}
	return n, nil
}

// noteSynced writes the number down, durably. s.changing is held.
func (s *Store) noteSynced(generation uint64) error {
	if generation <= s.synced {
		return nil
	}
	path := filepath.Join(s.indexDir(), syncedName)
	f, err := os.OpenFile(path+tmpSuffix, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("pack: note what is synced: %w", err)
	}
	_, err = fmt.Fprintln(f, generation)
	failpoint.Hit("synced.write")
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(path+tmpSuffix, path)
	}
	if err != nil {
		return fmt.Errorf("pack: note what is synced: %w", errors.Join(err, os.Remove(path+tmpSuffix)))
	}
	failpoint.Hit("synced.rename")
	s.synced = generation
	return syncDir(s.indexDir())
}

// Unsynced calls f for the contents that a power cut may have damaged: those
// published since the last sync, and neighbours in their index files, in the
// order in which they lie in the pack.
func (s *Store) Unsynced(f func(Digest, Placement)) {
	s.changing.Lock()
	synced := s.synced
	s.changing.Unlock()
	s.mu.RLock()
	var records []record
	for _, x := range s.files {
		if x.last >= synced {
			for r := range x.all() {
				records = append(records, r)
			}
		}
	}
	s.mu.RUnlock()
	slices.SortFunc(records, comparePlaces)
	for _, r := range records {
		f(r.digest, r.place)
	}
}
