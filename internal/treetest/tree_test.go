// SPDX-License-Identifier: Apache-2.0

package treetest

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
)

func sum(content string) string {
	h := sha256.Sum256([]byte(content))
	return hex.EncodeToString(h[:])
}

// Each single difference between two images is found, and nothing else is.
func TestDiffFindsEachKindOfDifference(t *testing.T) {
	base := func() []Step {
		return []Step{
			Dir("d", Mtime(5, 5)), File("f", "content", Mode(0o640), Owner(1, 2), Mtime(3, 4), Xattr("user.a", "1")),
			Hardlink("g", "f", Mode(0o640), Owner(1, 2), Mtime(3, 4)), Symlink("s", "target"), Char("c", 5, 6), File("h", ""), File("lone", "x"),
		}
	}
	meta := func(name string, opt Opt) func([]Step) []Step {
		return func(steps []Step) []Step {
			for i := range steps {
				if steps[i].hdr.Name == name {
					opt(&steps[i].hdr)
				}
			}
			return steps
		}
	}
	replace := func(name string, with ...Step) func([]Step) []Step {
		return func(steps []Step) []Step {
			i := slices.IndexFunc(steps, func(s Step) bool { return s.hdr.Name == name })
			return slices.Replace(steps, i, i+1, with...)
		}
	}
	want, err := Read(Overlay(t, [][]byte{Layer(base()...)}))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func([]Step) []Step
		lines  []string
	}{
		{"nothing", func(s []Step) []Step { return s }, nil},
		{"root mtime", func(s []Step) []Step { return append(s, Whiteout("none")) }, nil},
		{"mode", meta("lone", Mode(0o645)), []string{`"/lone": mode: got 0645, want 0644`}},
		{"setuid", meta("lone", Mode(0o4644)), []string{`"/lone": mode: got 4644, want 0644`}},
		{"uid", meta("lone", Owner(9, 0)), []string{`"/lone": uid: got 9, want 0`}},
		{"gid", meta("lone", Owner(0, 9)), []string{`"/lone": gid: got 9, want 0`}},
		{"mtime", meta("lone", Mtime(defaultMtime, 1)), []string{`"/lone": mtime: got 1600000000.000000001, want 1600000000.000000000`}},
		{"mtime of a directory", meta("d", Mtime(5, 6)), []string{`"/d": mtime: got 5.000000006, want 5.000000005`}},
		{"mtime of a symlink", meta("s", Mtime(5, 6)), []string{`"/s": mtime: got 5.000000006, want 1600000000.000000000`}},
		{"more xattrs", meta("lone", Xattr("user.b", "")), []string{`"/lone": xattr user.b: got "", want none`}},
		{"other xattr", meta("g", Xattr("user.a", "2")), []string{
			`"/f": xattr user.a: got "2", want "1"`, `"/g": xattr user.a: got "2", want "1"`}},
		{"content", replace("lone", File("lone", "y")), []string{
			`"/lone": content: got sha256 ` + sum("y") + `, want sha256 ` + sum("x")}},
		{"size", replace("lone", File("lone", "xx")), []string{
			`"/lone": size: got 2, want 1`, `"/lone": content: got sha256 ` + sum("xx") + `, want sha256 ` + sum("x")}},
		{"link group broken", replace("g", File("g", "content", Mode(0o640), Owner(1, 2), Mtime(3, 4), Xattr("user.a", "1"))), []string{
			`"/f": names of the inode: got this one only, want "/f" "/g"`, `"/g": names of the inode: got this one only, want "/f" "/g"`}},
		{"link group made", replace("h", File("h", ""), Hardlink("i", "h")), []string{
			`"/h": names of the inode: got "/h" "/i", want this one only`, `"/i": is there as file, want nothing`}},
		{"missing", replace("lone"), []string{`"/lone": missing, want file`}},
		{"extra", func(s []Step) []Step { return append(s, Fifo("p")) }, []string{`"/p": is there as fifo, want nothing`}},
		{"device", replace("c", Char("c", 5, 7)), []string{`"/c": device: got 5:7, want 5:6`}},
		{"type", replace("c", Block("c", 5, 6)), []string{`"/c": type: got block device, want character device`}},
		{"target", replace("s", Symlink("s", "garget")), []string{`"/s": target: got "garget", want "target"`}},
		{"ghost", func(s []Step) []Step { return append(s, Whiteout("d/ghost")) }, []string{
			`"/d/ghost": readdir lists it, lookup does not find it`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Read(Overlay(t, [][]byte{Layer(c.change(base())...)}))
			if err != nil {
				t.Fatal(err)
			}
			lines := Diff(want, got, Options{})
			if !slices.Equal(lines, c.lines) {
				t.Errorf("got:\n%s\nwant:\n%s", strings.Join(lines, "\n"), strings.Join(c.lines, "\n"))
			}
		})
	}
}

// Only the mtime of a directory that the reference implies is tolerated.
func TestDiffToleratesTheMtimeOfImpliedDirectoriesOnly(t *testing.T) {
	lower := Layer(Dir("d", Mtime(5, 5)), Dir("e", Mtime(5, 5)))
	want, err := Read(Overlay(t, [][]byte{lower, Layer(File("d/f", ""), Dir("e", Mtime(6, 6)), File("e/f", ""))}))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Read(Overlay(t, [][]byte{lower, Layer(Dir("d", Mtime(7, 7)), File("d/f", ""), Dir("e", Mtime(8, 8)), File("e/f", ""))}))
	if err != nil {
		t.Fatal(err)
	}
	e := `"/e": mtime: got 8.000000008, want 6.000000006`
	if lines := Diff(want, got, Options{}); !slices.Equal(lines, []string{e}) {
		t.Errorf("got %q, want %q", lines, e)
	}
	d := `"/d": mtime: got 7.000000007, want 5.000000005`
	if lines := Diff(want, got, Options{ImpliedMtime: true}); !slices.Equal(lines, []string{d, e}) {
		t.Errorf("strict: got %q, want %q and %q", lines, d, e)
	}
}
