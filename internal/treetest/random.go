// SPDX-License-Identifier: Apache-2.0

package treetest

import (
	"archive/tar"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
)

// Random makes an image of one to eight layers from a seed: few names, so that
// replacements, whiteouts, hardlinks, duplicates, implied directories and
// symlinked parents meet often. The same seed gives the same image.
//
// What is valid is not modelled but asked for: each layer is applied as the
// reference does it, and a layer that is refused is drawn again from the same
// source of random numbers. Three things never occur, since the reference
// shows accidents there that are not worth following: default ACLs, symlink
// targets with "..", and hardlinks to files of lower layers.
func Random(t testing.TB, seed int64) Case {
	t.Helper()
	dir, err := os.MkdirTemp(t.TempDir(), "random")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	g := generator{Rand: rand.New(rand.NewPCG(uint64(seed), 0)), known: map[string]bool{}, flat: map[string]bool{}}
	c := Case{Name: fmt.Sprintf("seed %d", seed)}
	var lowers []string
	for range 1 + g.IntN(8) {
		layer, upper := g.acceptedLayer(t, dir, lowers)
		c.Layers = append(c.Layers, layer)
		lowers = slices.Insert(lowers, 0, upper)
		for name, typ := range g.made {
			g.known[name] = true
			if typ != tar.TypeDir && typ != implied && typ != tar.TypeSymlink {
				g.flat[name] = true
			}
		}
	}
	return c
}

// generator knows roughly what it has drawn, so as to draw little that is
// refused. Names behind symlinks and in other spellings escape it.
type generator struct {
	*rand.Rand
	known  map[string]bool // names that lower layers have made
	flat   map[string]bool // of these, what has been no directory in some layer
	made   map[string]byte // names of the layer being drawn, with their tar type
	stated map[string]bool // directories stated at some time in the layer being drawn
}

// Types of generator.made beside those of tar.
const (
	implied  = 'd'
	whiteout = 'w'
)

// acceptedLayer draws layers until the reference takes one, with fewer and
// fewer steps.
func (g *generator) acceptedLayer(t testing.TB, dir string, lowers []string) (layer []byte, upper string) {
	t.Helper()
	const most = 24 // steps
	var err error
	for try := range 1000 { // some five are usual
		layer = Layer(g.layer(1 + g.IntN(max(1, most-try)))...)
		if upper, err = unpack(dir, layer, lowers, plain); err == nil {
			return layer, upper
		}
	}
	t.Fatalf("the reference refuses whatever is drawn: %v", err)
	return nil, ""
}

func (g *generator) layer(n int) []Step {
	g.made, g.stated = map[string]byte{}, map[string]bool{}
	var steps []Step
	for len(steps) < n {
		if s, ok := g.step(); ok {
			steps = append(steps, s)
		}
	}
	return steps
}

// chance is true in p of 100 cases.
func (g *generator) chance(p int) bool { return g.IntN(100) < p }

// step draws one step. It passes over most of what the reference refuses, to
// be fast, and some of it comes through.
func (g *generator) step() (Step, bool) {
	name := g.name()
	if dir := g.lookupFails(name); dir != "" {
		name = dir
		return g.note(tar.TypeDir, name, Dir(g.spelling(name)+"/", g.metadata(tar.TypeDir)...)), true
	}
	was := g.made[name]
	if g.holdsStated(name) || was == tar.TypeDir && !g.chance(30) {
		// The reference sets the times of stated directories at the end.
		return g.note(tar.TypeDir, name, Dir(g.spelling(name)+"/", g.metadata(tar.TypeDir)...)), true
	}
	switch p := g.IntN(100); {
	case p < 34:
		return g.note(tar.TypeReg, name, File(g.spelling(name), g.content(), g.metadata(tar.TypeReg)...)), true
	case p < 54:
		return g.note(tar.TypeDir, name, Dir(g.spelling(name), g.metadata(tar.TypeDir)...)), true
	case p < 63:
		target := strings.Repeat("/", g.IntN(2)) + g.anyName()
		if strings.HasPrefix(path.Join("/", path.Dir(name), target)+"/", "/"+name+"/") || strings.HasPrefix(target+"/", "/"+name+"/") {
			return Step{}, false // a loop
		}
		return g.note(tar.TypeSymlink, name, Symlink(g.spelling(name), target, g.metadata(tar.TypeSymlink)...)), true
	case p < 75:
		target, ok := g.linkTarget()
		if !ok || target == name {
			return Step{}, false
		}
		return g.note(g.made[target], name, Hardlink(g.spelling(name), g.spelling(target), g.metadata(tar.TypeLink)...)), true
	case p < 87:
		if was != 0 {
			return Step{}, false
		}
		return g.note(whiteout, name, Whiteout(g.spelling(name), g.metadata(tar.TypeReg)...)), true
	case p < 92:
		if !g.mayHold(name) {
			return Step{}, false
		}
		if was == 0 {
			was = implied
		}
		return g.note(was, name, Opaque(g.spelling(name))), true
	case p < 95:
		return g.note(tar.TypeFifo, name, Fifo(g.spelling(name), g.metadata(tar.TypeFifo)...)), true
	case p < 97:
		return g.note(tar.TypeBlock, name, Block(g.spelling(name), int64(g.IntN(3)), int64(g.IntN(600)), g.metadata(tar.TypeBlock)...)), true
	case p < 99: // 0:0, a whiteout, among them
		return g.note(tar.TypeChar, name, Char(g.spelling(name), int64(g.IntN(2)), int64(g.IntN(2)), g.metadata(tar.TypeChar)...)), true
	}
	return Dir("./", g.metadata(tar.TypeDir)...), true
}

// note keeps in mind what the step makes of name.
func (g *generator) note(typ byte, name string, s Step) Step {
	if typ == tar.TypeDir {
		g.stated[name] = true
	} else if typ != implied {
		maps.DeleteFunc(g.made, func(other string, _ byte) bool { return strings.HasPrefix(other, name+"/") })
	}
	g.made[name] = typ
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if g.made[dir] == 0 {
			g.made[dir] = implied
		}
	}
	return s
}

// holdsStated says whether a directory was stated below name.
func (g *generator) holdsStated(name string) bool {
	for other := range g.stated {
		if strings.HasPrefix(other, name+"/") {
			return true
		}
	}
	return false
}

// lookupFails returns the first directory above name that this layer would
// imply and whose metadata the reference would look up through what is no
// directory in some lower layer; "" if there is none.
func (g *generator) lookupFails(name string) string {
	first := ""
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if g.made[dir] != 0 {
			continue
		}
		for above := path.Dir(dir); above != "."; above = path.Dir(above) {
			if g.flat[above] {
				first = dir
			}
		}
	}
	return first
}

var alphabet = []string{"a", "b", "c", "dd"}

// name draws a path of up to four components whose parents can be directories
// in this layer.
func (g *generator) name() string {
	for {
		name := g.anyName()
		if g.chance(50) && len(g.known) > 0 { // meet what is below
			name = g.oneOf(slices.Sorted(maps.Keys(g.known)))
		}
		if dir := path.Dir(name); dir == "." || g.mayHold(dir) {
			return name
		}
	}
}

func (g *generator) anyName() string {
	parts := make([]string, 1+g.IntN(4))
	for i := range parts {
		parts[i] = alphabet[g.IntN(len(alphabet))]
		if g.chance(2) {
			parts[i] = []string{".whx", "caf\xe9", "x y", "-n"}[g.IntN(4)]
		}
	}
	return path.Join(parts...)
}

// mayHold says whether dir can have entries in this layer, as far as is known.
func (g *generator) mayHold(dir string) bool {
	for ; dir != "."; dir = path.Dir(dir) {
		switch g.made[dir] {
		case 0, implied, tar.TypeDir, tar.TypeSymlink:
		default:
			return false
		}
	}
	return true
}

// linkTarget draws a name of this layer that is no directory.
func (g *generator) linkTarget() (string, bool) {
	var fit []string
	for _, name := range slices.Sorted(maps.Keys(g.made)) {
		if typ := g.made[name]; typ != tar.TypeDir && typ != implied {
			fit = append(fit, name)
		}
	}
	if len(fit) == 0 {
		return "", false
	}
	return g.oneOf(fit), true
}

func (g *generator) oneOf(names []string) string { return names[g.IntN(len(names))] }

// spelling writes name in one of the ways that mean the same.
func (g *generator) spelling(name string) string {
	switch g.IntN(12) {
	case 0:
		return "./" + name
	case 1:
		return "/" + name
	case 2:
		return "../" + strings.ReplaceAll(name, "/", "//")
	}
	return name
}

func (g *generator) content() string {
	switch g.IntN(10) {
	case 0:
		return ""
	case 1:
		return noise([]int{1, 511, 4095, 4096, 4097, 70_000}[g.IntN(6)], g.Uint64N(3))
	case 2:
		return text([]int{512, 4096, 8192, 65536, 100_000}[g.IntN(5)])
	case 3:
		return zeros([]int{1, 4096, 10_000, 200_000}[g.IntN(4)])
	}
	return fmt.Sprintf("content %d\n", g.IntN(20))
}

func (g *generator) metadata(typ byte) []Opt {
	modes := []int64{0o644, 0o755, 0o600, 0o700, 0o4755, 0o1777, 0, 0o751}
	if g.chance(15) {
		modes = []int64{0o2755, 0o2640, 0o6711}
	}
	opts := []Opt{
		Mode(modes[g.IntN(len(modes))]),
		Owner([]int{0, 0, 1000, 1001, 1<<32 - 2, 1<<32 - 1}[g.IntN(6)], []int{0, 0, 50, 1000, 70_000, 1<<32 - 1}[g.IntN(6)]),
		Mtime([]int64{0, 1, 1_500_000_000 + g.Int64N(1000), 1 << 33, -7}[g.IntN(5)], []int64{0, 1, 999_999_999, g.Int64N(1e9)}[g.IntN(4)]),
	}
	for range max(0, g.IntN(6)-3) {
		key := []string{"user.a", "user.b", "user.long.name", "security.x", "trusted.t", "unknown.u"}[g.IntN(6)]
		opts = append(opts, Xattr(key, []string{"", "1", "2", strings.Repeat("v", 300)}[g.IntN(4)]))
	}
	mayHaveACL := typ == tar.TypeReg || typ == tar.TypeDir || typ == tar.TypeLink
	if mayHaveACL && g.chance(5) {
		opts = append(opts, Xattr("system.posix_acl_access", acl(aclUserObj, 7, 0, aclUser, 5, g.Uint32N(3),
			aclGroupObj, 4, 0, aclMask, g.Uint32N(8), 0, aclOther, 1, 0)))
	}
	if (typ == tar.TypeReg || typ == tar.TypeLink) && g.chance(6) {
		opts = append(opts, Xattr("security.capability", capability()))
	}
	return opts
}
