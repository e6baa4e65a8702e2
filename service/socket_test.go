// SPDX-License-Identifier: Apache-2.0

package service

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSocketIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "squash", "s.sock")
	l, err := listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]fs.FileMode{
		path:               fs.ModeSocket | 0o600,
		filepath.Dir(path): fs.ModeDir | 0o711,
	} {
		info, err := os.Lstat(file)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", file, info.Mode(), want)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket stays after Close: %v", err)
	}
}

// staleSocket leaves a socket at path as a killed process does.
func staleSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("no stale socket: %v", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	staleSocket(t, path)
	l, err := listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestSocketInUseStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	first, err := listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if second, err := listen(t.Context(), path); err == nil {
		second.Close()
		t.Fatal("a socket that answers was replaced")
	} else if want := "another process serves on socket " + path; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the first listener is gone: %v", err)
	}
	conn.Close()
}

func TestWhatIsNotASocketIsNeverRemoved(t *testing.T) {
	for name, occupy := range map[string]func(path string) error{
		"file":            func(path string) error { return os.WriteFile(path, []byte("precious"), 0o600) },
		"empty directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"directory":       func(path string) error { return os.MkdirAll(filepath.Join(path, "precious"), 0o700) },
		"symlink":         func(path string) error { return os.Symlink("/nowhere", path) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s.sock")
			if err := occupy(path); err != nil {
				t.Fatal(err)
			}
			before, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			l, err := listen(t.Context(), path)
			if err == nil {
				l.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "not a socket") {
				t.Errorf("got %q, want it to name %s and the reason", err, path)
			}
			after, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			if !os.SameFile(before, after) {
				t.Error("the file was replaced")
			}
		})
	}
}
