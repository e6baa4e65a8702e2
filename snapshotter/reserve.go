// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// reserveSize is what the reserve takes up, in bytes.
const reserveSize = 256 << 10

// reserve is a file that holds space for what must be possible on a full disk:
// a start, and removals with the sweep after them, which write a little before
// they give back a lot.
func (l layout) reserve() string { return filepath.Join(l.root, "reserve") }

func (l layout) breakReserve() error { return removeIfThere(l.reserve()) }

// fillReserve takes the space that there is; on a full disk it may be none.
func (l layout) fillReserve() error {
	f, err := os.OpenFile(l.reserve(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("reserve space: %w", err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, reserveSize); err != nil {
		err = fmt.Errorf("reserve space: fallocate %s: %w", l.reserve(), err)
		return errors.Join(err, f.Close(), l.breakReserve())
	}
	return f.Close()
}

// withReserve runs f, and again in the space of the reserve if the disk was
// full.
func (s *Snapshotter) withReserve(f func() error) error {
	err := f()
	if !errors.Is(err, unix.ENOSPC) {
		return err
	}
	s.reserving.Lock()
	defer s.reserving.Unlock()
	if err := s.breakReserve(); err != nil {
		return err
	}
	err = f()
	_ = s.fillReserve() // it is filled again when there is space, after a removal or a start
	return err
}
