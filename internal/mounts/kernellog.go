// SPDX-License-Identifier: Apache-2.0

package mounts

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// maxKernelMessages bounds what one error quotes from the kernel log.
const maxKernelMessages = 4

// kernelLog is a position in the kernel log. EROFS explains a refused mount there and hardly ever in the
// fs context. It is an aid for people, so a log that cannot be read (nil) just has no messages. The log
// is shared by the whole machine: a message may stem from another mount that failed at the same moment.
type kernelLog struct{ fd int }

// openKernelLog returns the present end of the kernel log.
func openKernelLog() *kernelLog {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		unix.Close(fd)
		return nil
	}
	return &kernelLog{fd: fd}
}

func (l *kernelLog) Close() {
	if l != nil {
		unix.Close(l.fd)
	}
}

// erofsMessages returns what EROFS has logged since the position, successful mounts left out.
func (l *kernelLog) erofsMessages() []string {
	if l == nil {
		return nil
	}
	var messages []string
	record := make([]byte, 8192) // the kernel's limit for one record
	for len(messages) < maxKernelMessages {
		n, err := unix.Read(l.fd, record)
		if errors.Is(err, unix.EPIPE) { // records were overwritten meanwhile; the next read goes on after them
			continue
		}
		if err != nil || n <= 0 {
			break
		}
		if text, ok := erofsMessage(string(record[:n])); ok {
			messages = append(messages, text)
		}
	}
	return messages
}

// erofsMessage returns the text of a /dev/kmsg record, "level,sequence,time,flags;text\n key=value…", if
// EROFS wrote it about something else than a mount that succeeded.
func erofsMessage(record string) (string, bool) {
	_, text, ok := strings.Cut(record, ";")
	if !ok {
		return "", false
	}
	text, _, _ = strings.Cut(text, "\n")
	if !strings.HasPrefix(text, "erofs") || strings.Contains(text, "mounted with root inode") {
		return "", false
	}
	return text, true
}
