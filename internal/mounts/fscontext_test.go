// SPDX-License-Identifier: Apache-2.0

package mounts

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestContextErrorNamesTheRemedy(t *testing.T) {
	for errno, remedy := range map[unix.Errno]string{
		unix.EPERM:  "needs root",
		unix.ENODEV: "CONFIG_EROFS_FS",
		unix.ENOSYS: "5.16",
	} {
		err := contextError(errno)
		if !errdefs.IsFailedPrecondition(err) || !errors.Is(err, errno) || !strings.Contains(err.Error(), remedy) {
			t.Errorf("%d: got %v, want FailedPrecondition with %q", errno, err, remedy)
		}
	}
	if err := contextError(unix.EMFILE); errdefs.IsFailedPrecondition(err) || !errors.Is(err, unix.EMFILE) {
		t.Errorf("EMFILE: got %v", err)
	}
}

// The one message that every kernel is known to write to the context of an EROFS mount.
func TestContextMessagesComeOut(t *testing.T) {
	newRoot(t)
	fsctx, err := openContext()
	must(t, err)
	defer fsctx.Close()
	if err := unix.FsconfigSetString(int(fsctx.Fd()), "nonsense", "1"); !errors.Is(err, unix.EINVAL) {
		t.Fatalf("got %v, want EINVAL", err)
	}
	got := contextMessages(fsctx)
	if !slices.ContainsFunc(got, func(m string) bool { return strings.Contains(m, "nonsense") && !strings.HasPrefix(m, "e ") }) {
		t.Errorf("got %q, want one message about nonsense", got)
	}
	if again := contextMessages(fsctx); len(again) != 0 {
		t.Errorf("read again: %q", again)
	}
}

func TestErofsMessage(t *testing.T) {
	for _, c := range []struct{ record, want string }{
		{"3,711,1038595053,-;erofs (device erofs): extra devices don't match (ondisk 1, given 2)\n",
			"erofs (device erofs): extra devices don't match (ondisk 1, given 2)"},
		{"3,712,1038,c;erofs: (device loop0): cannot find valid erofs superblock\n SUBSYSTEM=block\n DEVICE=b7:0\n",
			"erofs: (device loop0): cannot find valid erofs superblock"},
		{"6,710,1038,-;erofs (device erofs): mounted with root inode @ nid 36.\n", ""},
		{"6,710,1038,-;loop0: detected capacity change from 0 to 16\n", ""},
		{"6,710,1038,-;process erofs (device x)\n", ""},
		{"no semicolon", ""},
		{"", ""},
	} {
		got, ok := erofsMessage(c.record)
		if got != c.want || ok != (c.want != "") {
			t.Errorf("%q: got %q, %t, want %q", c.record, got, ok, c.want)
		}
	}
}
