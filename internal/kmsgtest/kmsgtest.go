// SPDX-License-Identifier: Apache-2.0

// Package kmsgtest gives tests the kernel's log for what EROFS says there.
// Tests of several packages run at once and there is one log, in which
// file-backed mounts all have one name: those that make EROFS complain keep
// away from those that want it quiet.
package kmsgtest

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const device = "/dev/kmsg"

// Noisy announces that EROFS is going to complain until the test ends.
func Noisy(t *testing.T) { t.Cleanup(lock(t, unix.LOCK_SH)) }

// Quiet wants EROFS to log nothing while body runs, apart from mounts: some
// failures heal on a retry and show nowhere else. body returns the name of its
// mount in the log.
func Quiet(t *testing.T, body func() (mount string)) {
	t.Helper()
	defer lock(t, unix.LOCK_EX)()
	log := Listen(t)
	if said := log.Said(body()); len(said) > 0 {
		t.Errorf("the kernel says: %s", strings.Join(said[:min(5, len(said))], "\n"))
	}
}

// Log is the kernel's log from some moment on.
type Log struct{ fd int }

// Listen returns the log from now on, until the test ends.
func Listen(t *testing.T) Log {
	t.Helper()
	fd := open(t)
	t.Cleanup(func() { unix.Close(fd) })
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		t.Fatal(err)
	}
	return Log{fd}
}

func open(t *testing.T) int {
	t.Helper()
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open the kernel log: %v", err)
	}
	return fd
}

func lock(t *testing.T, how int) (unlock func()) {
	t.Helper()
	fd := open(t)
	for {
		err := unix.Flock(fd, how)
		if err == nil {
			return func() { unix.Close(fd) }
		}
		if !errors.Is(err, unix.EINTR) {
			t.Fatalf("lock the kernel log: %v", err)
		}
	}
}

// Said returns what EROFS has logged about a mount since it was asked last, apart
// from that it was mounted.
func (l Log) Said(mount string) (said []string) {
	record := make([]byte, 8192)
	for {
		n, err := unix.Read(l.fd, record)
		if errors.Is(err, unix.EPIPE) { // records were overwritten
			continue
		}
		if err != nil || n <= 0 {
			return said
		}
		_, text, _ := strings.Cut(string(record[:n]), ";")
		text, _, _ = strings.Cut(text, "\n")
		if strings.HasPrefix(text, "erofs (device "+mount+")") && !strings.Contains(text, "mounted with root inode") {
			said = append(said, text)
		}
	}
}
