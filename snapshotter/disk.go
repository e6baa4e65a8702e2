// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// blameDisk gives an error that the disk is the cause of the kind that clients
// know, and says what a person can do.
func (l layout) blameDisk(err *error) {
	switch {
	case errors.Is(*err, unix.ENOSPC), errors.Is(*err, unix.EDQUOT):
		*err = fmt.Errorf("%w; remove images or make room otherwise, then try again: %w", *err, errdefs.ErrResourceExhausted)
	case errors.Is(*err, unix.EROFS):
		*err = fmt.Errorf("%w; find out why the file system of %s is read-only (the kernel's log may tell), mend it and mount it writable: %w", *err, l.root, errdefs.ErrFailedPrecondition)
	}
}
