// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/treetest"
	"golang.org/x/sys/unix"
)

// node is a store whose snapshotter a test may close and open again. When the
// test ends nothing may be mounted below its directory but flat images, and
// once these are unmounted no loop device may be left.
type node struct {
	*Snapshotter // nil while closed
	t            *testing.T
	dir          string
	cfg          Config
	blobs        *blobs
	keys         int
}

func newNode(t *testing.T, mode mounts.Mode) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts file systems")
	}
	n := closedNode(t, t.TempDir())
	n.cfg.Mount = mode
	n.open()
	return n
}

// closedNode is a node of a directory that may have a store already.
func closedNode(t *testing.T, dir string) *node {
	n := &node{t: t, dir: dir, blobs: newBlobs()}
	n.cfg = Config{Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Content: n.blobs}
	t.Cleanup(n.end)
	return n
}

func (n *node) open() {
	n.t.Helper()
	s, err := New(context.Background(), n.cfg)
	must(n.t, err)
	n.Snapshotter = s
}

func (n *node) close() {
	n.t.Helper()
	must(n.t, n.Snapshotter.Close())
	n.Snapshotter = nil
}

func (n *node) end() {
	if n.Snapshotter != nil {
		n.close()
	}
	for _, m := range mountsBelow(n.t, n.dir) {
		if m.FSType != "erofs" || !strings.HasPrefix(m.Mountpoint, n.dir+"/state/") {
			n.t.Errorf("left mounted: %s on %s", m.FSType, m.Mountpoint)
		}
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil {
			n.t.Errorf("unmount %s: %v", m.Mountpoint, err)
		}
	}
	waitFor(n.t, "loop devices to be freed", func() error { return noLoops(n.dir) })
}

// mountsBelow lists what is mounted below dir, the last one first.
func mountsBelow(t testing.TB, dir string) []*mountinfo.Info {
	t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	must(t, err)
	for i, j := 0, len(infos)-1; i < j; i, j = i+1, j-1 {
		infos[i], infos[j] = infos[j], infos[i]
	}
	return infos
}

func noLoops(dir string) error {
	states, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, state := range states {
		if file, err := os.ReadFile(state); err == nil && strings.HasPrefix(string(file), dir+"/") {
			return fmt.Errorf("%s is bound to %s", state, file)
		}
	}
	return err
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// waitFor returns when check finds nothing wrong any more.
func waitFor(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond) // between two looks at the condition
	}
}

// image is a stack of uncompressed layers.
type image [][]byte

// names are the names that containerd's metadata store gives the layers'
// snapshots: <prefix>/<chain ID>.
func (i image) names(prefix string) []string {
	var names []string
	var chain digest.Digest
	for _, l := range i {
		d := digest.FromBytes(l)
		if chain != "" {
			d = digest.FromString(chain.String() + " " + d.String())
		}
		chain = d
		names = append(names, prefix+"/"+chain.String())
	}
	return names
}

// pull unpacks an image as containerd does for namespace and sequence prefix
// ("ns/1"), and returns the name of the top snapshot. What is there already is
// used as it is.
func (n *node) pull(prefix string, img image) string {
	n.t.Helper()
	name, err := n.tryPull(context.Background(), prefix, img)
	must(n.t, err)
	return name
}

func (n *node) tryPull(ctx context.Context, prefix string, img image) (parent string, err error) {
	for i, name := range img.names(prefix) {
		if _, err := n.Stat(ctx, name); err == nil {
			parent = name
			continue
		}
		key := fmt.Sprintf("%s/extract-%d %s", prefix, rand.Uint64(), filepath.Base(name))
		desc := n.blobs.add(img[i])
		var opts []snapshots.Opt
		if n.cfg.ContainerdVersion != nil { // containerd then says what it unpacks
			opts = append(opts, snapshots.WithLabels(map[string]string{
				snapshots.LabelSnapshotRef: filepath.Base(name), snapshots.LabelSnapshotDiffID: desc.Digest.String(),
			}))
		}
		m, err := n.Prepare(ctx, key, parent, opts...)
		if err != nil {
			return "", err
		}
		if !m[0].ReadOnly() {
			var applied ocispec.Descriptor
			if applied, err = n.Apply(ctx, desc, m); err == nil && applied.Digest != desc.Digest {
				err = fmt.Errorf("diffID %s, want %s", applied.Digest, desc.Digest)
			}
		}
		if err == nil {
			if err = n.Commit(ctx, name, key, opts...); errdefs.IsAlreadyExists(err) {
				err = n.Remove(ctx, key)
			} else if err == nil {
				parent = name
				continue
			}
		} else {
			err = errors.Join(err, n.Remove(ctx, key))
		}
		if err != nil {
			return "", err
		}
		parent = name
	}
	return parent, nil
}

// view mounts a view of a snapshot until the test ends or until undo is called.
func (n *node) view(name string) (root string, undo func()) {
	n.t.Helper()
	key := n.key("view")
	m, err := n.View(context.Background(), key, name)
	must(n.t, err)
	return n.mounted(key, m)
}

// run mounts what a container on a snapshot gets.
func (n *node) run(name string) (key, root string, undo func()) {
	n.t.Helper()
	key = n.key("container")
	m, err := n.Prepare(context.Background(), key, name)
	must(n.t, err)
	root, undo = n.mounted(key, m)
	return key, root, undo
}

func (n *node) key(what string) string {
	n.keys++
	return fmt.Sprintf("ns/%d/%s", 1000+n.keys, what)
}

// mounted mounts outside of the node's directory. undo unmounts, and removes the
// snapshot if the node is open.
func (n *node) mounted(key string, m []mount.Mount) (root string, undo func()) {
	n.t.Helper()
	root = n.t.TempDir()
	must(n.t, mount.All(m, root))
	done := false
	undo = func() {
		if done {
			return
		}
		done = true
		if err := mount.UnmountAll(root, 0); err != nil {
			n.t.Errorf("unmount: %v", err)
		}
		if n.Snapshotter != nil {
			if err := n.Remove(context.Background(), key); err != nil && !errdefs.IsNotFound(err) {
				n.t.Errorf("remove %s: %v", key, err)
			}
		}
	}
	n.t.Cleanup(undo)
	return root, undo
}

// shows compares what a view of a snapshot shows with want.
func (n *node) shows(name string, want treetest.Tree) {
	n.t.Helper()
	root, undo := n.view(name)
	defer undo()
	got, err := treetest.Read(root)
	must(n.t, err)
	sameTree(n.t, want, got)
}

func (n *node) tree(name string) treetest.Tree {
	n.t.Helper()
	root, undo := n.view(name)
	defer undo()
	got, err := treetest.Read(root)
	must(n.t, err)
	return got
}

func sameTree(t testing.TB, want, got treetest.Tree) {
	t.Helper()
	for _, line := range treetest.Diff(want, got, treetest.Options{}) {
		t.Error(line)
	}
}

// all lists the snapshots, children before their parents.
func (n *node) all() []snapshots.Info {
	n.t.Helper()
	parents := map[string]string{}
	infos := map[string]snapshots.Info{}
	must(n.t, n.Walk(context.Background(), func(_ context.Context, info snapshots.Info) error {
		parents[info.Name], infos[info.Name] = info.Parent, info
		return nil
	}))
	var order []snapshots.Info
	for len(parents) > 0 {
		inner := map[string]bool{}
		for _, p := range parents {
			inner[p] = true
		}
		for name := range parents {
			if !inner[name] {
				order = append(order, infos[name])
				delete(parents, name)
			}
		}
	}
	return order
}

func (n *node) removeAll() {
	n.t.Helper()
	for _, info := range n.all() {
		must(n.t, n.Remove(context.Background(), info.Name))
	}
}

// nothingLeft tells what a store that was emptied still has.
func (n *node) nothingLeft() error {
	var errs error
	for _, dir := range []string{n.layersDir(), n.imagesDir(), n.snapshotsDir(), n.imageMounts(), n.skeletonMounts()} {
		entries, err := os.ReadDir(dir)
		errs = errors.Join(errs, err)
		for _, e := range entries {
			errs = errors.Join(errs, fmt.Errorf("left in %s: %s", dir, e.Name()))
		}
	}
	if st := n.pack.Stats(); st.Contents != 0 || st.Stored != 0 || st.Size != 0 {
		errs = errors.Join(errs, fmt.Errorf("left in the pack: %+v", st))
	}
	if b := blocks(n.t, n.pack.Path()); b != 0 {
		errs = errors.Join(errs, fmt.Errorf("the pack takes up %d blocks of 512 bytes", b))
	}
	for _, m := range mountsBelow(n.t, n.dir) {
		errs = errors.Join(errs, fmt.Errorf("left mounted: %s", m.Mountpoint))
	}
	return errors.Join(errs, noLoops(n.dir))
}

func (n *node) expectNothingLeft() {
	n.t.Helper()
	// Loop devices are freed a moment after their mounts.
	waitFor(n.t, "the store to be empty", n.nothingLeft)
}

// blocks is what a file takes up on disk, in units of 512 bytes.
func blocks(t testing.TB, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	must(t, err)
	return st.Sys().(*syscall.Stat_t).Blocks
}

func (n *node) id(name string) string {
	n.t.Helper()
	var id string
	must(n.t, n.ms.WithTransaction(context.Background(), false, func(ctx context.Context) error {
		names, err := idsByName(ctx)
		id = names[name]
		return err
	}))
	if id == "" {
		n.t.Fatalf("no snapshot %s", name)
	}
	return id
}

// flatImage names the flat image of a committed snapshot, which need not be there.
func (n *node) flatImage(name string) imageName {
	n.t.Helper()
	var ids []string
	ctx := context.Background()
	must(n.t, n.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		ids, err = committedChain(ctx, name)
		return err
	}))
	tocs := sums(n.t, n.Snapshotter, ids)
	return flatImage(chainOf(tocs))
}

// noise returns n bytes that do not compress; another seed, other bytes.
func noise(n int, seed uint64) string {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// sample is an image of three layers with files, links, deletions and contents
// of every kind of storage; what belongs to another seed has other contents,
// but for a part that all samples have.
func sample(seed uint64) image {
	tag := fmt.Sprint(seed)
	return image{
		treetest.Layer(
			treetest.Dir("etc", treetest.Mode(0o750), treetest.Owner(3, 4)), treetest.File("etc/conf", "small "+tag),
			treetest.File("bin/tool", noise(70_000, seed*10)), treetest.File("bin/common", noise(150_000, 1<<40)),
			treetest.File("gone", noise(5000, seed*10+1)), treetest.Symlink("link", "etc/conf")),
		treetest.Layer(
			treetest.File("etc/more", noise(2000, seed*10+2), treetest.Mode(0o4755)), treetest.Hardlink("etc/same", "etc/more"),
			treetest.Whiteout("gone"), treetest.File("big", noise(1<<20+300_000, seed*10+3))),
		treetest.Layer(
			treetest.File("bin/tool", noise(70_001, seed*10+4)), treetest.File("opt/copy", noise(150_000, 1<<40)), treetest.File("opt/own", tag)),
	}
}

// gzipType and the like are the media types of layers.
const (
	plainType = ocispec.MediaTypeImageLayer
	gzipType  = ocispec.MediaTypeImageLayerGzip
	zstdType  = ocispec.MediaTypeImageLayerZstd
)

func idsByName(ctx context.Context) (map[string]string, error) {
	ids, err := knownSnapshots(ctx)
	names := map[string]string{}
	for id, info := range ids {
		names[info.Name] = id
	}
	return names, err
}

func sums(t testing.TB, s *Snapshotter, ids []string) []layer.Summary {
	t.Helper()
	tocs := make([]layer.Summary, len(ids))
	for i, id := range ids {
		var err error
		tocs[i], err = s.summary(context.Background(), id)
		must(t, err)
	}
	return tocs
}

func fadviseDontNeed(f *os.File) error {
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

func sha256Hex(s string) string { return digest.FromString(s).Encoded() }

// pipe is the reading end of a named pipe that nobody reads from.
type pipe int

const pipeSize = 4096 // bytes: the smallest there is

func smallPipe(path string) (pipe, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return 0, err
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize)
	}
	return pipe(fd), err
}

func (p pipe) full() error {
	n, err := unix.IoctlGetInt(int(p), unix.TIOCINQ)
	if err == nil && n < pipeSize {
		err = fmt.Errorf("%d bytes are in it", n)
	}
	return err
}

func (p pipe) close() { unix.Close(int(p)) }

func unmount(target string) error { return unix.Unmount(target, 0) }

func mountTmpfs(target string) error {
	return unix.Mount("tmpfs", target, "tmpfs", 0, "size=64m")
}
