// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSecondDaemonOnARootIsRefused(t *testing.T) {
	root := filepath.Join(t.TempDir(), "deep", "root")
	held, err := lockRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(root)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 {
		t.Errorf("root has mode %v, want 0700", info.Mode().Perm())
	}
	second, err := lockRoot(root)
	if err == nil {
		second.Close()
		t.Fatal("a second lock was granted")
	}
	for _, want := range []string{root, fmt.Sprintf("pid %d", os.Getpid())} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want it to contain %q", err, want)
		}
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	third, err := lockRoot(root)
	if err != nil {
		t.Fatalf("the lock does not end with its holder: %v", err)
	}
	third.Close()
}

// The pid of an earlier holder must not shine through a shorter one.
func TestLockForgetsEarlierHolder(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "lock")
	if err := os.WriteFile(path, []byte("12345678901234567890\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	held, err := lockRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%d\n", os.Getpid()); string(got) != want {
		t.Errorf("lock holds %q, want %q", got, want)
	}
}

func TestARootOnAReadOnlyFileSystemIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a file system")
	}
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(root, 0)
	_, err := lockRoot(root)
	if text := fmt.Sprint(err); !strings.Contains(text, root) || !strings.Contains(text, "read-only") || !strings.Contains(text, "mount it writable") {
		t.Errorf("got %v", err)
	}
}
