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

// EncodingStats counts the contents of one encoding.
type EncodingStats struct {
	Contents uint64
	Bytes    uint64 // of the contents
	Stored   uint64 // bytes of the pack that they take up
}

// ByEncoding adds up the index by how contents are stored: "plain", or the name
// of the algorithm.
func (s *Store) ByEncoding() map[string]EncodingStats {
	s.mu.RLock()
	defer s.mu.RUnlock()
	sums := map[string]EncodingStats{}
	var counted blockSet
	for _, x := range s.files {
		for r := range x.all() {
			name := "plain"
			if r.place.Algorithm != Stored {
				name = r.place.Algorithm.String()
			}
			st := sums[name]
			st.Contents++
			st.Bytes += r.place.Size
			if block := uint64(r.place.Block); r.place.Encoding != EncodingShared || !counted.has(block) {
				counted.setRange(block, 1)
				st.Stored += uint64(r.place.Stored) * BlockSize
			}
			sums[name] = st
		}
	}
	return sums
}

// Members is how many contents lie in the blocks of the placement.
func (p Placement) Members() uint64 {
	if p.Encoding == EncodingShared {
		return uint64(p.members)
	}
	return 1
}
