// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// TrimPages drops what the page cache holds of the pack if it is at least min
// bytes, and tells how many there were. For a while after the pack was changed
// (settled) nothing is dropped: what came in just now is read next, or is not on
// the disk yet.
//
// Who reads the pack through a mount of an image has the decoded bytes in pages
// of that mount's own, so those of the pack are held for nothing. They are of use
// for a moment, though: the neighbours of what was read are read ahead into them.
func (s *Store) TrimPages(min int64, settled time.Duration) (dropped int64, err error) {
	fd := int(s.file.Fd())
	var held unix.Cachestat_t
	if err := unix.Cachestat(uint(fd), &unix.CachestatRange{}, &held, 0); err != nil {
		return 0, fmt.Errorf("pack: ask for cached pages: %w", err)
	}
	pages := int64(unix.Getpagesize())
	if clean := int64(held.Cache-held.Dirty-held.Writeback) * pages; clean < min {
		return 0, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("pack: %w", err)
	}
	if time.Since(time.Unix(st.Mtim.Unix())) < settled {
		return 0, nil
	}
	if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
		return 0, fmt.Errorf("pack: drop cached pages: %w", err)
	}
	return int64(held.Cache) * pages, nil
}
