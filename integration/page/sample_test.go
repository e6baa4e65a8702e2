// SPDX-License-Identifier: Apache-2.0

package page

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

// place is a directory of the sample, with what is in it and below: MB, how many directories it is spread over, and
// which parts of it are duplicates and shadowed.
type place struct {
	dir                 string
	megabytes, spread   int
	duplicate, shadowed float64
}

var places = []place{
	{"usr/lib/x86_64-linux-gnu", 148, 40, 0.02, 0.18},
	{"usr/lib/gcc/x86_64-linux-gnu/12", 96, 6, 0, 0.04},
	{"usr/lib/python3/dist-packages", 61, 60, 0.11, 0.09},
	{"usr/lib/jvm/java-17-openjdk-amd64/lib", 183, 18, 0, 0.02},
	{"usr/lib/node_modules/npm/node_modules", 14, 70, 0.22, 0.05},
	{"usr/share/locale", 37, 90, 0.01, 0.62},
	{"usr/share/doc", 29, 80, 0.16, 0.81},
	{"usr/share/perl", 22, 12, 0, 0.08},
	{"usr/bin", 81, 1, 0.03, 0.21},
	{"usr/include", 24, 30, 0.02, 0},
	{"usr/local/go/src", 92, 80, 0.02, 0.55},
	{"usr/local/go/pkg/tool/linux_amd64", 118, 1, 0, 0.5},
	{"usr/local/go/bin", 17, 1, 0, 0.5},
	{"usr/local/go/test", 19, 30, 0.01, 0.98},
	{"usr/local/cargo/registry", 74, 22, 0.04, 0.11},
	{"opt/hostedtoolcache/node/20.18.1/x64", 171, 45, 0.46, 0},
	{"opt/hostedtoolcache/node/22.11.0/x64", 178, 45, 0.41, 0},
	{"opt/hostedtoolcache/Python/3.12.7/x64", 139, 45, 0.31, 0.06},
	{"home/runner/work/_tool/node_modules", 87, 90, 0.72, 0.04},
	{"home/runner/.cache/pip", 63, 12, 0.05, 0.94},
	{"var/lib/apt/lists", 41, 1, 0, 1},
	{"var/cache/apt/archives", 212, 1, 0, 1},
	{"var/lib/dpkg", 46, 3, 0, 0.83},
	{"etc", 3, 20, 0.04, 0.3},
	{"root", 1, 1, 0, 0},
}

var commands = []string{
	`/bin/sh -c #(nop) ADD file:b4619a63cd7829e1338d in /`,
	`/bin/sh -c #(nop)  CMD ["bash"]`,
	`RUN /bin/sh -c apt-get update && apt-get install -y --no-install-recommends build-essential ca-certificates curl git gnupg jq locales openssh-client pkg-config python3 python3-pip python3-venv sudo unzip xz-utils zip # buildkit`,
	`COPY --from=toolchain /usr/local/go /usr/local/go # buildkit`,
	`RUN /bin/sh -c curl -fsSL https://example.com/setup_20.x | bash - && apt-get install -y nodejs # buildkit`,
	`RUN /bin/sh -c apt-get update && apt-get install -y openjdk-17-jdk-headless maven # buildkit`,
	`RUN /bin/sh -c useradd -m -u 1001 runner && echo 'runner ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/runner # buildkit`,
	`COPY toolcache /opt/hostedtoolcache # buildkit`,
	`RUN /bin/sh -c chown -R runner:runner /opt/hostedtoolcache /usr/local/go # buildkit`,
	`RUN /bin/sh -c pip install --upgrade pip setuptools wheel && pip install numpy pandas pytest requests # buildkit`,
	`ENV PATH=/usr/local/go/bin:/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin`,
	`RUN /bin/sh -c apt-get update && apt-get upgrade -y # buildkit`,
	`RUN /bin/sh -c rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb /home/runner/.cache /usr/local/go/test /usr/share/doc # buildkit`,
	`COPY --chown=1001:1001 actions /home/runner/work/_tool # buildkit`,
	"RUN /bin/sh -c printf '\x1b[1mready\x1b[0m\\n' > /etc/motd # buildkit",
}

// sample is a report such as large images of CI runners have: 15 layers, several hundred directories.
func sample() *adminapi.ReportResponse {
	random := rand.New(rand.NewPCG(1, 2))
	root := &adminapi.Directory{}
	for _, p := range places {
		grow(root, p, random)
	}
	settle(root)
	r := &adminapi.ReportResponse{
		LayerBytes: root.Bytes + root.ShadowedBytes, VisibleBytes: root.Bytes, DistinctBytes: root.Bytes - root.DuplicateBytes,
		Tree: root,
	}
	r.Efficiency = float64(r.DistinctBytes) / float64(r.LayerBytes)
	deleted := root.ShadowedBytes / 3
	shared := r.DistinctBytes / 9
	r.OwnBytes = (r.DistinctBytes - shared) * 41 / 100
	r.Waste = []*adminapi.Waste{
		{Cause: "overwritten", Bytes: int64(root.ShadowedBytes - deleted), Files: 31877},
		{Cause: "deleted", Bytes: int64(deleted), Files: 9120},
		{Cause: "duplicate", Bytes: int64(root.DuplicateBytes), Files: 15302},
		{Cause: "shared", Bytes: int64(shared), Files: 2211},
		{Cause: "compression", Bytes: int64(r.DistinctBytes - shared - r.OwnBytes)},
	}
	r.Image = &adminapi.Image{
		Name: "registry.example.com/ci/runner:2026.11", Platform: "linux/amd64",
		Digest:   "sha256:5f0e2a4c7d9b8e1f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7",
		Manifest: "sha256:0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9",
		Layers:   uint32(len(commands)), Unpacked: uint32(len(commands)), Flat: true, Containers: 3,
		Files: root.Files, LayerBytes: r.LayerBytes, OwnBytes: r.OwnBytes, SharedBytes: shared / 2,
	}
	left, leftShadowed := r.LayerBytes, root.ShadowedBytes
	weights := []uint64{8, 0, 17, 13, 9, 19, 0, 28, 46, 22, 0, 30, 0, 60, 100}
	for i, command := range commands {
		bytes := left * weights[i] / 100
		shadowed := min(bytes, leftShadowed*weights[i]/70)
		if i == len(commands)-1 {
			bytes, shadowed = 48, 0
		}
		left, leftShadowed = left-bytes, leftShadowed-shadowed
		r.Layers = append(r.Layers, &adminapi.LayerReport{
			Layer: &adminapi.Layer{
				DiffId: fmt.Sprintf("sha256:%064x", i+1), Blob: fmt.Sprintf("sha256:%x%052x", 0x9e3779b97f4a+i*7919, i), BlobBytes: bytes * 38 / 100,
				CreatedBy: command, Created: fmt.Sprintf("2026-11-%02dT08:15:00Z", i+2),
			},
			Files: bytes / 29000, Bytes: bytes, ShadowedBytes: shadowed, DuplicateBytes: bytes * uint64(i) / 60,
		})
	}
	for i, name := range []string{
		"/opt/hostedtoolcache/node/20.18.1/x64/bin/node", "/usr/local/go/pkg/tool/linux_amd64/compile", "/usr/local/go/bin/go",
		"/usr/lib/x86_64-linux-gnu/libLLVM-14.so.1", "/var/lib/dpkg/status", "/usr/bin/python3.11", "/usr/share/locale/de/LC_MESSAGES/coreutils.mo",
		"/var/cache/apt/archives/openjdk-17-jre-headless_17.0.13+11-2~deb12u1_amd64.deb", "/etc/ssl/certs/ca-certificates.crt", "/etc/ld.so.cache",
	} {
		r.DuplicatePaths = append(r.DuplicatePaths, &adminapi.DuplicatePath{Path: []byte(name), Count: uint32(2 + i%4*i), Bytes: 231_000_000 >> i})
		r.DuplicateContents = append(r.DuplicateContents, &adminapi.DuplicateContent{
			Digest: fmt.Sprintf("sha256:%016x%048x", 0x1feed5eed<<20>>i, i), Size: 98_000_000 >> i, Count: uint32(2 + i), Bytes: 98_000_000 >> i * uint64(2+i),
			Paths: [][]byte{[]byte(name), []byte(path.Join("/home/runner/work/_tool", path.Base(name)))},
		})
	}
	r.Advice = []*adminapi.Advice{
		{Layer: 8, Bytes: 641_000_000, Text: "It writes 30512 files again with the content that they already had. Changing owner or mode copies the whole file: use COPY --chown and --chmod, or do it in the instruction that makes the files."},
		{Layer: 5, Bytes: 212_000_000, Text: "Layer 13 deletes 118 files that this one adds: a layer cannot take back what is in another one. Delete them in the instruction that makes them, or build in a stage of its own and copy the result (COPY --from)."},
		{Layer: 2, Bytes: 87_400_000, Text: "Layer 12 replaces 802 files that this one adds with other content, as an upgrade does. Install the newer version here, or take a base image that has it."},
	}
	return r
}

// grow puts a place into the tree, spread over directories below it.
func grow(root *adminapi.Directory, p place, random *rand.Rand) {
	at := root
	for name := range strings.SplitSeq(p.dir, "/") {
		at = enter(at, name)
	}
	words := strings.Fields("api assets base cache cmd core data dist doc encoding esm examples ext http include internal lib locale math modules net os parser runtime scripts share src test testing tools util vendor")
	left := float64(p.megabytes) * 1e6
	for i := range p.spread {
		part := left
		if i < p.spread-1 {
			part = left * (0.03 + random.Float64()*3.2/float64(p.spread))
		}
		left -= part
		in := at
		if p.spread > 1 && i > 0 {
			in = enter(at, words[i%len(words)]+strings.Repeat("-x", i/len(words)))
			if i%3 == 0 {
				in = enter(in, words[random.IntN(len(words))])
			}
		}
		tilt := func(share float64) float64 { return min(1, share*(0.4+1.2*random.Float64())) }
		if p.duplicate+p.shadowed >= 1 {
			tilt = func(share float64) float64 { return share }
		}
		shadowed := part * tilt(p.shadowed)
		seen := part - shadowed
		in.ShadowedBytes += uint64(shadowed)
		in.Bytes += uint64(seen)
		in.DuplicateBytes += uint64(seen * tilt(p.duplicate))
		in.Files += uint64(seen/31000) + 1
	}
}

func enter(d *adminapi.Directory, name string) *adminapi.Directory {
	i := slices.IndexFunc(d.Directories, func(d *adminapi.Directory) bool { return string(d.Name) == name })
	if i < 0 {
		d.Directories = append(d.Directories, &adminapi.Directory{Name: []byte(name)})
		i = len(d.Directories) - 1
	}
	return d.Directories[i]
}

// settle adds what is below to each directory.
func settle(d *adminapi.Directory) {
	for _, sub := range d.Directories {
		settle(sub)
		d.Bytes, d.Files = d.Bytes+sub.Bytes, d.Files+sub.Files
		d.DuplicateBytes, d.ShadowedBytes = d.DuplicateBytes+sub.DuplicateBytes, d.ShadowedBytes+sub.ShadowedBytes
	}
	slices.SortFunc(d.Directories, func(x, y *adminapi.Directory) int {
		return cmp.Compare(y.Bytes+y.ShadowedBytes, x.Bytes+x.ShadowedBytes)
	})
}
