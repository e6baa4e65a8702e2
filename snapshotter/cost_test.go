// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

var costLayers = flag.String("cost-layers", "", "numbers of layers for TestCostTable, with commas between them; 1000 need 25 GB of disk")

const (
	costFiles  = 5000 // in each layer, with distinct contents
	costSize   = 1200 // bytes of each, at least: they are in the pack
	costHeight = 10   // layers of an image

	costDir  = "SQUASH_TEST_COST_DIR"
	costStep = "SQUASH_TEST_COST_STEP"
)

// costSteps are what the table tells about, in the order in which they are done.
// Each is done by a process of its own, so that its memory is its own, too.
var costSteps = []struct {
	name   string
	before func(l layout) error // makes the store what the step is to find
	kept   bool                 // containerd has the layers' blobs
	// do is done after a start; without it the start is what is measured.
	do func(ctx context.Context, s *Snapshotter) error
}{
	{name: "start", kept: true},
	{name: "start, nothing cached", kept: true, before: forgetFiles},
	{name: "start, machine went down", kept: true, before: anotherBoot},
	{name: "sweep, nothing to free", kept: true, do: sweepAll},
	{name: "sweep, no blobs", do: sweepAll},
	{name: "usage of all", kept: true, do: usageOfAll},
	{name: "quick check", kept: true, do: func(ctx context.Context, s *Snapshotter) error {
		sum, err := s.Check(ctx, CheckOptions{Quick: true}, func(f Finding) { fmt.Fprintf(os.Stderr, "%+v\n", f) })
		if err == nil && sum.Findings > 0 {
			err = errors.New("the store is damaged")
		}
		return err
	}},
	{name: "remove an image", kept: true, do: func(ctx context.Context, s *Snapshotter) error {
		return errors.Join(removeImage(ctx, s, 0), s.Cleanup(ctx))
	}},
}

// cost is what one step took.
type cost struct {
	Time               time.Duration
	Peak, Anon, Mapped int64 // KiB: most that was resident; most anonymous memory; pages of files at the end
	Heap               uint64
}

// TestCostTable prints what the daemon's work costs, by the number of layers:
//
//	go test ./snapshotter -test.root -run TestCostTable -cost-layers 10,100,1000 -timeout 1h -v
func TestCostTable(t *testing.T) {
	if *costLayers == "" {
		t.Skip("it measures and checks nothing; -cost-layers says for how many layers")
	}
	table := "\nlayers  files    step                      time       peak RSS   anonymous  mapped     heap\n"
	for _, field := range strings.Split(*costLayers, ",") {
		layers, err := strconv.Atoi(field)
		must(t, err)
		n := newNode(t, "")
		n.close()
		n.cfg.Content = &costSource{}
		n.open()
		began := time.Now()
		fillStore(t, n, layers)
		n.close()
		t.Logf("%d layers are made in %v", layers, time.Since(began).Round(time.Second))
		for i, step := range costSteps {
			if step.before != nil {
				must(t, step.before(n.newLayout(t)))
			}
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), costDir+"="+n.dir, costStep+"="+strconv.Itoa(i))
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			must(t, err)
			var c cost
			must(t, json.Unmarshal(out, &c))
			table += fmt.Sprintf("%-7d %-8d %-25s %-10v %-10s %-10s %-10s %s\n", layers, layers*costFiles, step.name,
				c.Time.Round(100*time.Microsecond), mib(c.Peak<<10), mib(c.Anon<<10), mib(c.Mapped<<10), mib(int64(c.Heap)))
		}
	}
	t.Log(table)
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// newLayout is the layout of the store of a closed node.
func (n *node) newLayout(t *testing.T) layout {
	l, err := makeLayout(n.cfg.Root, n.cfg.State)
	must(t, err)
	return l
}

// fillStore makes images of new layers on new layers, each with its flat image.
func fillStore(t *testing.T, n *node, layers int) {
	ctx := context.Background()
	must(t, log.SetLevel("warn"))
	source := n.cfg.Content.(*costSource)
	name := ""
	for i := range layers {
		if i%costHeight == 0 {
			name = ""
		}
		desc := source.next(uint64(i))
		key := fmt.Sprintf("ns/%d/extract-%d", i/costHeight, i)
		m, err := n.Prepare(ctx, key, name, snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": key}))
		must(t, err)
		_, err = n.Apply(ctx, desc, m)
		must(t, err)
		name = fmt.Sprintf("ns/%d/layer-%d", i/costHeight, i)
		must(t, n.Commit(ctx, name, key))
		if (i+1)%costHeight == 0 {
			must(t, n.Flatten(ctx, name))
		}
	}
}

// costSource has the blob of one layer at a time, and says of all that were made
// that containerd has them; or has none.
type costSource struct {
	mu    sync.Mutex
	layer []byte
	kept  map[digest.Digest]bool
}

// next makes a layer.
func (c *costSource) next(seed uint64) ocispec.Descriptor {
	rng := rand.NewChaCha8([32]byte{0: 1, 1: byte(seed), 2: byte(seed >> 8)})
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	body := make([]byte, 2*costSize)
	for i := range costFiles {
		content := body[:costSize+i%500]
		rng.Read(content)
		binary.LittleEndian.PutUint64(content, seed)
		w.WriteHeader(&tar.Header{Name: fmt.Sprintf("layer-%d/dir-%d/file-%d", seed, i/100, i), Mode: 0o644, Size: int64(len(content)), ModTime: time.Unix(1_700_000_000, 0)})
		w.Write(content)
	}
	w.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.layer = b.Bytes()
	d := digest.FromBytes(c.layer)
	if c.kept == nil {
		c.kept = map[digest.Digest]bool{}
	}
	c.kept[d] = true
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(c.layer))}
}

// Open implements ContentSource.
func (c *costSource) Open(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return io.NopCloser(bytes.NewReader(c.layer)), nil
}

// Kept implements ContentSource.
func (c *costSource) Kept(context.Context) (map[digest.Digest]bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := map[digest.Digest]bool{}
	for d := range c.kept {
		kept[d] = true
	}
	return kept, nil
}

// ImagesOf implements ContentSource.
func (c *costSource) ImagesOf(context.Context, digest.Digest) ([]string, error) {
	return nil, errdefs.ErrNotFound
}

// forgetFiles has the next reading of every file come from the disk.
func forgetFiles(l layout) error {
	return filepath.WalkDir(l.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}

// anotherBoot makes it look as if the machine had gone down with the daemon at
// work.
func anotherBoot(l layout) error { return os.WriteFile(l.boot(), []byte("another boot\n"), 0o600) }

func sweepAll(ctx context.Context, s *Snapshotter) error { return s.collect(ctx, true, nil) }

func usageOfAll(ctx context.Context, s *Snapshotter) error {
	_, err := s.countUsages(ctx)
	return err
}

// liveForCost is the process that does a step and tells what it took.
func liveForCost(dir, number string) error {
	if err := log.SetLevel("warn"); err != nil {
		return err
	}
	i, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	step, ctx := costSteps[i], context.Background()
	content := &costSource{kept: map[digest.Digest]bool{}}
	cfg := Config{Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Content: content}
	sources, err := filepath.Glob(filepath.Join(cfg.Root, "layers", "*", "source"))
	if err != nil {
		return err
	}
	for _, path := range sources {
		var src source
		if b, err := os.ReadFile(path); err != nil || json.Unmarshal(b, &src) != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if step.kept {
			content.kept[src.Blob.Digest] = true
		}
	}
	runtime.GC()
	var c cost
	anon := watchAnonymous()
	began := time.Now()
	s, err := New(ctx, cfg)
	c.Time = time.Since(began)
	if err != nil {
		return err
	}
	if step.do != nil {
		for s.sweepDue.Load() {
			time.Sleep(time.Millisecond) // the sweep of the start is not what is measured
		}
		s.collecting.Lock()
		began = time.Now()
		s.collecting.Unlock()
		if err := step.do(ctx, s); err != nil {
			return err
		}
		c.Time = time.Since(began)
	}
	c.Anon = anon()
	c.Peak, c.Mapped = status("VmHWM"), status("RssFile")
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	c.Heap = m.HeapAlloc
	if err := s.Close(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(c)
}

// watchAnonymous samples the anonymous memory of this process, of which the
// kernel keeps no peak, until the function is called that it returns.
func watchAnonymous() (most func() int64) {
	stop, peak := make(chan struct{}), make(chan int64)
	go func() {
		most := int64(0)
		for {
			most = max(most, status("RssAnon"))
			select {
			case <-stop:
				peak <- most
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() int64 { close(stop); return <-peak }
}

// status reads a number of KiB about this process.
func status(field string) int64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	m := regexp.MustCompile(`(?m)^` + field + `:\s+(\d+) kB$`).FindSubmatch(b)
	if m == nil {
		return 0
	}
	n, _ := strconv.ParseInt(string(m[1]), 10, 64)
	return n
}
