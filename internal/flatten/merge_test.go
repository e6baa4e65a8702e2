// SPDX-License-Identifier: Apache-2.0

package flatten

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/squash-snapshotter/squash/internal/layer"
)

// acl is the text of an ACL's value, of pairs of tag and permissions.
func acl(pairs ...uint16) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for i := 0; i < len(pairs); i += 2 {
		b = binary.LittleEndian.AppendUint16(b, pairs[i])
		b = binary.LittleEndian.AppendUint16(b, pairs[i+1])
		b = binary.LittleEndian.AppendUint32(b, 1<<32-1)
	}
	return text(b)
}

func TestMergedTree(t *testing.T) {
	for _, c := range []struct {
		name   string
		layers []string
		want   string
	}{
		{"no layer at all", nil, ""},
		{"a file of the upper layer replaces the lower one's", []string{"f a =old at=1", "f a =new at=2"}, "f a =new at=2"},
		{"directories merge, and the upper one's metadata counts",
			[]string{"d a mode=700 own=1:1 at=1 user.low=1\nf a/x =1", "d a at=2 user.up=2\nf a/y =2"},
			"d a at=2 user.up=2\nf a/x =1\nf a/y =2"},
		{"names come in byte order", []string{"f b =\nf a.b =\nd a\nf a/x =\nf a0 ="}, "d a\nf a/x =\nf a.b =\nf a0 =\nf b ="},
		{"the last of two entries with one name counts", []string{"f a =1 mode=600\nf a =2 at=3"}, "f a =2 at=3"},
		{"a directory stated twice keeps xattrs and children", []string{"d a mode=700 user.a=1\nf a/x =\nd a at=2 user.b=2"}, "d a at=2 user.a=1 user.b=2\nf a/x ="},

		{"a whiteout hides a file", []string{"f a =\nf b =", "w a"}, "f b ="},
		{"a whiteout hides a directory with all below", []string{"d a\nd a/b\nf a/b/c =", "w a"}, ""},
		{"a whiteout of nothing does nothing", []string{"f a =", "w b\nw c/d"}, "f a =\nd c"},
		{"a whiteout in the lowest layer is not shown", []string{"w a\nf b ="}, "f b ="},
		{"a name that comes back after a whiteout is new", []string{"d a own=5:5 user.x=1\nf a/x =", "w a", "d a\nf a/y ="}, "d a\nf a/y ="},
		{"whiteout and file in one layer: the file", []string{"f a =1", "w a\nf a =2"}, "f a =2"},
		{"whiteout, then directory in one layer: they merge", []string{"d a\nf a/x =1", "w a\nd a at=2"}, "d a at=2\nf a/x =1"},
		{"directory, then whiteout in one layer: it is opaque", []string{"d a\nf a/x =1", "d a at=2\nf a/y =\nw a"}, "d a at=2\nf a/y ="},
		{"file, then whiteout in one layer: the file", []string{"f a =1", "f a =2\nw a"}, "f a =2"},
		{"a char device 0:0 is a whiteout", []string{"f a =1", "c a 0:0"}, ""},
		{"a block device 0:0 is none", []string{"f a =1", "b a 0:0"}, "b a 0:0"},
		{"a file below a lower file makes an opaque directory", []string{"f a =1", "w a\nf a/x ="}, "d a\nf a/x ="},

		{"an opaque directory hides what is below", []string{"d a\nf a/x =1\nd a/d\nf a/d/z =", "d a\no a\nf a/y ="}, "d a\nf a/y ="},
		{"the marker may come last", []string{"d a\nf a/x =1", "d a\nf a/y =\no a"}, "d a\nf a/y ="},
		{"the marker may come first", []string{"d a\nf a/x =1", "o a\nd a at=2\nf a/y ="}, "d a at=2\nf a/y ="},
		{"a marker alone implies the directory", []string{"d a own=3:4 mode=750 at=9\nf a/x =1", "o a"}, "d a mode=750 own=3:4 at=9"},
		{"an opaque directory in the middle stops the merge", []string{"d a\nf a/x =1", "d a\no a\nf a/y =2", "d a\nf a/z =3"}, "d a\nf a/y =2\nf a/z =3"},
		{"below an opaque directory lower subdirectories are hidden", []string{"d a\nd a/b\nf a/b/x =", "d a\no a", "d a\nd a/b\nf a/b/y ="}, "d a\nd a/b\nf a/b/y ="},
		{"an opaque root hides nothing", []string{"f a =", "o .\nf b ="}, "f a =\nf b ="},
		{"an opaque directory that becomes a file and a directory again merges", []string{"d a\nf a/x =1", "d a\no a\nf a =\nd a"}, "d a\nf a/x =1"},

		{"a file replaces a directory", []string{"d a\nf a/x =", "f a =1"}, "f a =1"},
		{"a directory replaces a file and does not merge farther down", []string{"d a\nf a/x =", "f a =1", "d a\nf a/y ="}, "d a\nf a/y ="},
		{"a symlink replaces a directory", []string{"d a\nf a/x =\nd b", "l a ->b"}, "l a ->b\nd b"},
		{"a directory replaces a symlink", []string{"l a ->b\nd b", "d a\nf a/x ="}, "d a\nf a/x =\nd b"},
		{"a file that replaces a directory in the same layer takes its children", []string{"d a\nf a/x =\nf a =1\nd a\nf a/y ="}, "d a\nf a/y ="},

		{"an implied directory is like the one below", []string{"d a mode=2750 own=1:2 at=3 user.x=y\nd a/b own=4:5", "f a/b/f ="},
			"d a mode=2750 own=1:2 at=3 user.x=y\nd a/b own=4:5\nf a/b/f ="},
		{"an implied directory of no layer is root's", []string{"f a/b/f ="}, "d a\nd a/b\nf a/b/f ="},
		{"an implied directory below a setgid one has its group once", []string{"d a mode=2755 own=0:7\nf a/b/c/f ="}, "d a mode=2755 own=0:7\nd a/b own=0:7\nd a/b/c\nf a/b/c/f ="},
		{"an implied directory looks through an opaque one", []string{"d a\nd a/b own=6:6", "d a\no a", "f a/b/f ="}, "d a\nd a/b own=6:6\nf a/b/f ="},
		{"an implied directory stops at a whiteout", []string{"d a own=6:6", "w a", "f a/f ="}, "d a\nf a/f ="},
		{"an implied directory follows symlinks of the lower layer for its looks", []string{"d real own=6:6\nl a ->real", "f a/f ="}, "d a own=6:6\nf a/f =\nd real own=6:6"},
		{"stated late, an implied directory keeps the xattrs from below", []string{"d a user.low=1 own=5:5", "f a/f =\nd a user.up=2"}, "d a user.low=1 user.up=2\nf a/f ="},
		{"stated first, a directory has its own xattrs only", []string{"d a user.low=1 own=5:5", "d a user.up=2\nf a/f ="}, "d a user.up=2\nf a/f ="},
		{"the host's xattrs are not copied", []string{"d a trusted.x=1 user.y=2", "f a/f ="}, "d a user.y=2\nf a/f ="},

		{"names of one inode are a group", []string{"f a =1 mode=600\nh b ->a mode=640 at=5\nh c ->b mode=644 at=6"}, "f a =1 at=6\nh b ->a\nh c ->a"},
		{"a link's header adds xattrs and drops capabilities", []string{"f a =1 security.capability=c user.a=1\nh b ->a user.b=2"}, "f a =1 user.a=1 user.b=2\nh b ->a"},
		{"a link's header may have the capability", []string{"f a =1 security.capability=old\nh b ->a security.capability=new"}, "f a =1 security.capability=new\nh b ->a"},
		{"hiding one name leaves the others", []string{"f a =1\nh b ->a\nh c ->a", "w a"}, "f b =1\nh c ->b"},
		{"replacing one name leaves the others", []string{"f a =1\nh b ->a", "f a =2"}, "f a =2\nf b =1"},
		{"a link to a symlink is the symlink", []string{"l a ->nowhere\nh b ->a own=1:1"}, "l a ->nowhere own=1:1\nh b ->a"},
		{"a link to a device", []string{"c a 1:3\nh b ->a"}, "c a 1:3\nh b ->a"},
		{"a link to a whiteout is another whiteout", []string{"f a =\nf b =", "c a 0:0\nh b ->a"}, ""},
		{"a link's parents are implied", []string{"f a =1\nh x/y ->a"}, "f a =1\nd x\nh x/y ->a"},
		{"a link through a symlinked parent of its target", []string{"d real\nf real/f =1\nl via ->real\nh b ->via/f"}, "f b =1\nd real\nh real/f ->b\nl via ->real"},
		{"a link to a lower file owns both names", []string{"d d own=9:9\nf d/a =1 user.x=1 mode=600\nf z =", "h b ->d/a mode=640 own=2:2"}, "f b =1 mode=640 own=2:2 user.x=1\nd d own=9:9\nh d/a ->b\nf z ="},
		{"a link to a lower file leaves that file's other names", []string{"f a =1\nh c ->a", "h b ->a at=7"}, "f a =1 at=7\nh b ->a\nf c =1"},
		{"a link to a lower file leaves the xattrs of that file's other names", []string{"f a =1 user.c=1 user.d=1 user.e=1\nh c ->a", "h b ->a user.b=2 user.d=2"},
			"f a =1 user.b=2 user.c=1 user.d=2 user.e=1\nh b ->a\nf c =1 user.c=1 user.d=1 user.e=1"},
		{"a link to a lower file leaves the values of that file's other names", []string{"f a =1 user.d=1\nh c ->a", "h b ->a user.d=2"}, "f a =1 user.d=2\nh b ->a\nf c =1 user.d=1"},
		{"a link replaces a directory", []string{"d d\nf d/x =", "f a =1\nh d ->a"}, "f a =1\nh d ->a"},
		{"an inode that two layers have is two", []string{"f a =1\nh b ->a", "f a =1"}, "f a =1\nf b =1"},

		{"a parent that is a symlink of the same layer is followed", []string{"d real\nl via ->real\nf via/f ="}, "d real\nf real/f =\nl via ->real"},
		{"an absolute symlink leads to the layer's root", []string{"d real\nl via ->/real\nf via/f ="}, "d real\nf real/f =\nl via ->/real"},
		{"an absolute symlink farther down leads to the layer's root, too", []string{"d d\nd real\nl d/via ->/real\nf d/via/f ="}, "d d\nl d/via ->/real\nd real\nf real/f ="},
		{"a symlink that is replaced through itself leads nowhere any more", []string{"l via ->.\nd via/via\nf via/x ="}, "d via\nf via/x ="},
		{"the same by a hardlink", []string{"f z =\nl via ->.\nh via/via ->z\nf via/x ="}, "d via\nf via/x =\nf z ="},
		{"symlinks lead nowhere outside", []string{"l via ->../../../real\nf via/f ="}, "d real\nf real/f =\nl via ->../../../real"},
		{"a dangling symlink's target is implied", []string{"l via ->x/y\nf via/f ="}, "l via ->x/y\nd x\nd x/y\nf x/y/f ="},
		{"a symlink to its own directory", []string{"l a ->.\nf a/a/a/x ="}, "l a ->.\nf x ="},
		{"a chain of symlinks", []string{"d real\nl one ->real\nl two ->one\nf two/f ="}, "l one ->real\nd real\nf real/f =\nl two ->one"},
		{"a symlink of a lower layer is not followed", []string{"d real\nl via ->real", "f via/f ="}, "d real\nd via\nf via/f ="},
		{"a name is remembered only while it leads there", []string{"d a\nf a/x =\nl b ->a\nf b/y =\nd c\nl b ->c\nf b/z ="}, "d a\nf a/x =\nf a/y =\nl b ->c\nd c\nf c/z ="},

		{"a directory's time survives its children", []string{"d a at=5\nf a/x =\nw a/y"}, "d a at=5\nf a/x ="},
		{"the last of a directory's times counts", []string{"d a at=5\nd a at=6"}, "d a at=6"},
		{"a directory that became a file gives it its time", []string{"d a at=5\nf a =1 at=6"}, "f a =1 at=5"},
		{"a directory that became a symlink gives its target the time", []string{"d b at=1\nd a at=5\nl a ->b at=6"}, "l a ->b at=6\nd b at=5"},

		{"owner -1 keeps what was there", []string{"d a own=5:6\nd a own=4294967295:4294967295\nf f own=4294967295:4294967295 ="}, "d a own=5:6\nf f ="},
		{"owner -1 below a setgid directory has its group", []string{"d a mode=2755 own=0:7\nf a/f own=4294967295:4294967295 ="}, "d a mode=2755 own=0:7\nf a/f = own=0:7"},
		{"a symlink's mode is 777", []string{"l a ->b mode=600"}, "l a ->b"},
		{"user xattrs of symlinks and devices are dropped", []string{"l a ->b user.x=1 security.y=2\nc c 1:3 user.x=1\np p user.x=1"}, "l a ->b security.y=2\nc c 1:3\np p"},
		{"an ACL follows the mode", []string{"f a = mode=640 system.posix_acl_access=" + acl(1, 7, 2, 7, 4, 7, 0x10, 7, 0x20, 7)},
			"f a = mode=640 system.posix_acl_access=" + acl(1, 6, 2, 7, 4, 7, 0x10, 4, 0x20, 0)},
		{"an ACL that says what the mode says is none", []string{"f a = mode=640 system.posix_acl_access=" + acl(1, 7, 4, 7, 0x20, 7)}, "f a = mode=640"},
		{"a later mode changes the ACL again", []string{"f a = mode=640 system.posix_acl_access=" + acl(1, 7, 2, 7, 4, 7, 0x10, 7, 0x20, 7) + "\nh b ->a mode=777"},
			"f a = mode=777 system.posix_acl_access=" + acl(1, 7, 2, 7, 4, 7, 0x10, 7, 0x20, 7) + "\nh b ->a"},
		{"ACLs where they cannot be", []string{"l a ->b system.posix_acl_access=" + acl(1, 7, 2, 7, 4, 7, 0x10, 7, 0x20, 7) + "\nf f = system.posix_acl_default=" + acl(1, 7, 4, 7, 0x20, 7)}, "l a ->b\nf f ="},

		{"the root's metadata, when a layer states it", []string{"d . mode=711 own=1:1 at=4\nf a =", "f b ="}, "d . mode=711 own=1:1 at=4\nf a =\nf b ="},
		{"all types", []string{"c c 1:3\nb b 8:1\np p mode=600\ns s\nl l ->x\nf f size=5000"}, "b b 8:1\nc c 1:3\nf f size=5000\nl l ->x\np p mode=600\ns s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree, err := merge(t, c.layers...)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := tidy(show(tree)), tidy(c.want); got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
			if _, _, err := image(t, tree); err != nil {
				t.Errorf("image: %v", err)
			}
		})
	}
}

func TestLinksThatLeadNowhere(t *testing.T) {
	for name, layers := range map[string][]string{
		"to no file":                {"h b ->a"},
		"to a hidden file":          {"f a =", "w a", "h b ->a"},
		"to a file below a file":    {"f a =", "h b ->a/x"},
		"to a directory":            {"d a\nh b ->a"},
		"to a lower directory":      {"d a", "h b ->a"},
		"through a lower symlink":   {"d a\nf a/x =\nl via ->a", "h b ->via/x"},
		"through an opaque one":     {"d a\nf a/x =", "d a\no a", "h b ->a/x"},
		"to a file that was a file": {"f a =\nd a\nh b ->a"},
	} {
		if tree, err := merge(t, layers...); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: error %v, want ErrFailedPrecondition", name, err)
			if err == nil {
				t.Log(show(tree))
			}
		}
	}
}

// Symlinks that lead round and round, or too far, are an error, and soon.
func TestEndlessSymlinks(t *testing.T) {
	for _, l := range []string{"l a ->a\nf a/x =", "l a ->b\nl b ->a\nf a/b/c =", "l a ->a/a/a\nf a/a/a/x =",
		"l a ->" + strings.Repeat("a/", 100) + "a\nf a/x =\nd a/y\nh z ->a/x"} {
		if _, err := merge(t, l); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%.20q: error %v, want ErrInvalidArgument", l, err)
		}
	}
}

func TestErrorsOfLayersPassThrough(t *testing.T) {
	gone := errors.New("gone")
	_, err := Merge(t.Context(), []Layer{layerOf(t, nil), func() (io.ReadCloser, error) { return nil, gone }})
	if !errors.Is(err, gone) || !strings.Contains(err.Error(), "layer 2 of 2") {
		t.Errorf("open fails: %v", err)
	}
	_, err = Merge(t.Context(), []Layer{func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("no TOC")), nil }})
	if !errors.Is(err, layer.ErrDamaged) {
		t.Errorf("damaged: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Merge(ctx, []Layer{layerOf(t, entries(t, "f a ="))}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestTOCsAreClosed(t *testing.T) {
	closed := 0
	open := layerOf(t, entries(t, "f a ="))
	counted := func() (io.ReadCloser, error) {
		r, err := open()
		return struct {
			io.Reader
			io.Closer
		}{r, closer(func() error { closed++; return nil })}, err
	}
	if _, err := Merge(t.Context(), []Layer{counted, counted}); err != nil || closed != 2 {
		t.Errorf("%d closed, %v", closed, err)
	}
}

type closer func() error

func (c closer) Close() error { return c() }
