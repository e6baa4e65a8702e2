// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// File-backed mounts read the pack through the page cache: what lies beside the
// blocks that a container needs is read ahead, and cold reads take two thirds of
// the time that they take with direct I/O. But then memory holds the pack's bytes
// beside what they were decoded to. So they are dropped again soon after.
const (
	trimEvery   = time.Second
	trimFrom    = 32 << 20 // bytes; less is not worth it
	trimSettled = 5 * time.Second
)

// trimmer keeps the page cache of the pack small. Loop devices do not use it.
func (s *Snapshotter) trimmer(ctx context.Context) {
	ticker := time.NewTicker(trimEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		_, err := s.pack.TrimPages(trimFrom, s.cfg.settled)
		if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
			log.G(ctx).WithError(err).Info("the kernel does not tell what it caches: what containers read is held twice until memory is short")
			return
		}
		if err != nil {
			log.G(ctx).WithError(err).Warn("could not drop cached pages of the pack")
		}
	}
}
