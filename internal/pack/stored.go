// SPDX-License-Identifier: Apache-2.0

package pack

// Stored calls f for every placement or shared cluster of the index, in no
// order: its first block, and the bytes of the pack that it takes up. A cluster
// that several contents share is told several times.
func (s *Store) Stored(f func(block uint32, bytes int64)) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, x := range s.files {
		for r := range x.all() {
			f(r.place.Block, int64(r.place.Stored)*BlockSize)
		}
	}
}
