// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Allocated is the disk space in bytes that the files below dir occupy: st_blocks, each inode once, without
// what is mounted there. Buffered writes are flushed first, so that delayed allocation does not blur the result.
// Files that vanish during the walk are not counted.
func Allocated(dir string) (int64, error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, fmt.Errorf("allocated blocks: %w", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return 0, fmt.Errorf("allocated blocks: syncfs %s: %w", dir, err)
	}
	var root unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &root); err != nil {
		return 0, fmt.Errorf("allocated blocks of %s: %w", dir, err)
	}
	return allocated(dir, root.Dev, make(map[uint64]bool))
}

// Settled waits until the disk usage of dir has not changed for two seconds and returns it: squash frees space
// in the background, after a pull has returned. It gives up after a minute.
func Settled(ctx context.Context, dir string) (int64, error) {
	const quiet, limit, every = 2 * time.Second, time.Minute, 250 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	last, since := int64(-1), time.Now()
	for {
		now, err := Allocated(dir)
		if err != nil {
			return 0, err
		}
		if now != last {
			last, since = now, time.Now()
		} else if time.Since(since) >= quiet {
			return now, nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("disk usage of %s still changes after %v", dir, limit)
		case <-time.After(every):
		}
	}
}

func allocated(path string, dev uint64, seen map[uint64]bool) (int64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); errors.Is(err, unix.ENOENT) {
		return 0, nil
	} else if err != nil {
		return 0, fmt.Errorf("allocated blocks of %s: %w", path, err)
	}
	if st.Dev != dev || seen[st.Ino] {
		return 0, nil
	}
	seen[st.Ino] = true
	sum := st.Blocks * 512
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return sum, nil
	}
	entries, err := os.ReadDir(path)
	if errors.Is(err, os.ErrNotExist) {
		return sum, nil
	}
	if err != nil {
		return 0, fmt.Errorf("allocated blocks: %w", err)
	}
	for _, e := range entries {
		n, err := allocated(filepath.Join(path, e.Name()), dev, seen)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}
