// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// pick chooses a number in [0, n). It is a random generator in property tests
// and the fuzzer's input in fuzz tests.
type pick func(n int) int

func (p pick) chance(percent int) bool { return p(100) >= 100-percent }

// growTree makes a tree of at most size inodes. Without hostile it is valid.
func growTree(p pick, size int, hostile bool) *model {
	m := newModel(Options{Epoch: int64(p(3)), EpochNsec: uint32(p(2))})
	for range p(4) {
		d := Device{Tag: strings.Repeat("t", p(65)), Blocks: uint32(1 + p(300))}
		if p.chance(50) {
			d.UnifiedAddr = uint32((len(m.opts.Devices)+1)<<20 + p(1<<19))
		}
		m.opts.Devices = append(m.opts.Devices, d)
	}
	g := &grower{pick: p, m: m, devices: slices.Clone(m.opts.Devices), hostile: hostile, dirs: []Ino{RootIno}, taken: map[string]bool{}}
	m.inodes[RootIno] = g.inode(unix.S_IFDIR)
	for range p(size) {
		g.step()
	}
	g.pack()
	if hostile {
		g.spoil()
	}
	return m
}

type grower struct {
	pick
	m       *model
	devices []Device // before clusters let them grow
	hostile bool
	dirs    []Ino
	others  []Ino
	taken   map[string]bool
	packed  int64 // size that the packed inode has to have
}

var kinds = []uint32{unix.S_IFREG, unix.S_IFREG, unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK}

func (g *grower) step() {
	dir := g.dirs[g.pick(len(g.dirs))]
	name := g.name()
	if g.taken[fmt.Sprint(dir, "/", name)] {
		return
	}
	g.taken[fmt.Sprint(dir, "/", name)] = true
	if len(g.others) > 0 && g.chance(10) {
		g.m.link(dir, name, g.others[g.pick(len(g.others))])
		return
	}
	kind := kinds[g.pick(len(kinds))]
	i := g.m.put(dir, name, g.inode(kind))
	if kind == unix.S_IFDIR {
		g.dirs = append(g.dirs, i)
	} else {
		g.others = append(g.others, i)
	}
}

func (g *grower) name() string {
	name := strings.Repeat(string(rune('a'+g.pick(3))), g.pick(12)) + fmt.Sprint(g.pick(50))
	if g.chance(10) {
		name += strings.Repeat("ü", g.pick(110))
	}
	return name
}

func (g *grower) inode(kind uint32) Inode {
	in := Inode{
		Mode:      kind | uint32(g.pick(0o10000)),
		UID:       uint32(g.pick(3) * 65535),
		GID:       uint32(g.pick(3) * 65535),
		Mtime:     int64(g.pick(4)),
		MtimeNsec: uint32(g.pick(2)),
	}
	switch kind {
	case unix.S_IFREG:
		g.content(&in)
	case unix.S_IFLNK:
		in.Target = strings.Repeat("/t", 2048)[:1+g.size(maxTargetLen-1)]
	case unix.S_IFCHR, unix.S_IFBLK:
		in.Rdev = unix.Mkdev(uint32(g.pick(4096)), uint32(g.pick(1<<20)))
	}
	if g.chance(25) {
		g.xattrs(&in)
	}
	return in
}

// size is often small, and often near the limit.
func (g *grower) size(limit int) int {
	switch g.pick(4) {
	case 0:
		return limit - g.pick(min(limit, 70))
	case 1:
		return g.pick(limit + 1)
	}
	return g.pick(min(limit, 20) + 1)
}

func (g *grower) content(in *Inode) {
	switch g.pick(5) {
	case 0:
		in.Inline = pattern(g.size(BlockSize))
		in.Size = int64(len(in.Inline))
	case 1:
		extents := 1 + g.pick(4)
		for k := range extents {
			e := Extent{Device: uint16(g.pick(1 + len(g.devices))), Length: int64(1+g.pick(8)) * BlockSize}
			if k == extents-1 {
				e.Length -= int64(g.size(BlockSize - 1))
			}
			if e.Device > 0 {
				blocks := int(g.devices[e.Device-1].Blocks)
				e.Length = min(e.Length, int64(blocks)*BlockSize)
				e.Block = uint32(g.pick(blocks - int((e.Length-1)/BlockSize)))
			}
			in.Extents = append(in.Extents, e)
			in.Size += e.Length
		}
	case 2:
		if in.Device = g.unified(); in.Device != 0 {
			for range g.pick(3) {
				in.Clusters = append(in.Clusters, g.cluster(in.Device, inputSizes[:3]))
			}
			in.Clusters = append(in.Clusters, g.cluster(in.Device, inputSizes))
			in.Size = length(in.Clusters)
		}
	case 3:
		if g.unified() != 0 {
			in.Packed, in.PackedAt = true, uint64(g.pick(300_000))
			in.Size = int64(1 + g.size(50_000))
			g.packed = max(g.packed, int64(in.PackedAt)+in.Size)
		}
	}
}

// pack gives the packed inode the size that it needs.
func (g *grower) pack() {
	g.m.packedDevice = g.unified()
	for g.packed > 0 {
		c := g.cluster(g.m.packedDevice, inputSizes[:3])
		g.m.packed = append(g.m.packed, c)
		g.packed -= int64(c.Length)
	}
}

// unified is a device with a unified address, 0 if there is none.
func (g *grower) unified() uint16 {
	for k := range g.devices {
		if d := (k + len(g.m.links)) % len(g.devices); g.devices[d].UnifiedAddr != 0 {
			return uint16(d + 1)
		}
	}
	return 0
}

// inputSizes are sizes of clusters, first those that may be followed by another.
var inputSizes = []int{MaxCluster, 2 * BlockSize, 9 * BlockSize, 1, BlockSize + 1, 3*BlockSize - 1, MaxCluster - 5}

// cluster puts one of a few clusters.
func (g *grower) cluster(device uint16, sizes []int) Cluster {
	s := samples()[sampleKey{Algorithm(g.pick(3)), sampleKinds[g.pick(len(sampleKinds))], sizes[g.pick(len(sizes))]}]
	return g.m.putCluster(device, s.algorithm, s.storedCluster)
}

var sampleKinds = []string{dataText, dataMixed, dataZero}

type sampleKey struct {
	algorithm Algorithm
	kind      string
	size      int
}

type sample struct {
	algorithm Algorithm
	storedCluster
}

// samples are all made at once: a fuzzer takes each new step of an encoder for a find.
var samples = sync.OnceValue(func() map[sampleKey]sample {
	all := map[sampleKey]sample{}
	for _, kind := range sampleKinds {
		for _, size := range inputSizes {
			data := testData(kind, 1, size)
			for _, a := range []Algorithm{Stored, LZ4, Zstd} {
				used, encoded := toBlocks(a, data)
				all[sampleKey{a, kind, size}] = sample{used, storedCluster{encoded, data}}
			}
		}
	}
	return all
})

func (g *grower) xattrs(in *Inode) {
	names := []string{"trusted.a", "security.capability", "trusted.overlay.x", "security.b", "trusted.long"}
	if kind := in.Mode & unix.S_IFMT; kind == unix.S_IFREG || kind == unix.S_IFDIR {
		names = append(names, "user.a", "user.b", "system.posix_acl_access")
		if kind == unix.S_IFDIR {
			names = append(names, "system.posix_acl_default")
		}
	}
	for _, name := range names {
		if !g.chance(30) {
			continue
		}
		value := bytes.Repeat([]byte{'v'}, g.pick(40))
		switch {
		case strings.HasPrefix(name, "system."):
			value = acl(byte(g.pick(3)))
		case name == "security.capability": // the kernel looks into it
			value = slices.Clone(capability)
			value[4] = byte(g.pick(4))
		case name == "trusted.long":
			value = bytes.Repeat([]byte{byte(g.pick(256))}, g.size(4000))
		}
		in.Xattrs = append(in.Xattrs, Xattr{name, value})
	}
}

// spoil makes some of the tree invalid; what exactly stays valid is up to the Writer.
func (g *grower) spoil() {
	m := g.m
	any := func() *Inode { return &m.inodes[g.pick(len(m.inodes))] }
	for range g.pick(4) {
		switch in := any(); g.pick(17) {
		case 0:
			in.Mode = uint32(g.pick(1 << 18))
		case 1:
			in.Size += int64(g.pick(5)) - 2
		case 2:
			in.Inline = pattern(g.pick(3 * BlockSize))
		case 3:
			in.Extents = append(in.Extents, Extent{uint16(g.pick(5)), uint32(g.pick(1 << 31)), int64(g.pick(1<<20)) - 9})
		case 4:
			in.Target = strings.Repeat("\x00x", g.pick(3))
		case 5:
			in.MtimeNsec = uint32(g.pick(1 << 31))
		case 6:
			in.Xattrs = append(in.Xattrs, Xattr{[]string{"", "user.", "user.a", "x.y", "user.\x00", "system.posix_acl_access"}[g.pick(6)], pattern(g.pick(1 << 17))})
		case 7:
			m.link(Ino(g.pick(len(m.inodes)+1)), g.name(), Ino(g.pick(len(m.inodes)+1)))
		case 8:
			m.link(Ino(g.pick(len(m.inodes))), []string{"", ".", "..", "a/b", "\x00", strings.Repeat("n", 255+g.pick(2))}[g.pick(6)], Ino(g.pick(len(m.inodes))))
		case 9:
			m.add(g.inode(kinds[g.pick(len(kinds))]))
		case 10:
			if len(m.opts.Devices) > 0 {
				d := &m.opts.Devices[g.pick(len(m.opts.Devices))]
				d.Blocks, d.UnifiedAddr = uint32(g.pick(20)), uint32(g.pick(20))
			}
		case 11:
			if len(m.links) > 0 {
				l := m.links[g.pick(len(m.links))]
				m.links[g.pick(len(m.links))] = l
			}
		case 12:
			in.Clusters = append(in.Clusters, Cluster{Algorithm(g.pick(5)), uint32(g.pick(40)), uint32(g.pick(1 << 31)), uint32(g.pick(1 << 18))})
		case 13:
			in.Device = uint16(g.pick(5))
		case 14:
			in.Packed, in.PackedAt = g.chance(50), uint64(g.pick(1<<40))<<g.pick(25)
		case 15:
			m.packed = m.packed[:g.pick(len(m.packed)+1)]
		case 16:
			m.packedDevice = uint16(g.pick(5))
		}
	}
}

// randomTree is reproduced by its seed.
func randomTree(seed uint64, size int) *model {
	return growTree(rand.New(rand.NewPCG(seed, 0)).IntN, size, false)
}

func TestRandomTreesReadBackEqual(t *testing.T) {
	for seed := range uint64(150) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			m := randomTree(seed, 300)
			image := m.image(t)
			checkReader(t, m, image)
			checkIndexes(t, m, image)
			if seed%5 == 0 {
				checkKernel(t, m)
			}
		})
	}
}
