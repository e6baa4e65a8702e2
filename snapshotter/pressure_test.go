// SPDX-License-Identifier: Apache-2.0

package snapshotter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/squash-snapshotter/squash/internal/kmsgtest"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/internal/treetest"
)

// What a process that reads under pressure is told by its environment.
const pressureRoot = "SQUASH_TEST_PRESSURE_ROOT" // the image that it reads

func init() {
	if root := os.Getenv(pressureRoot); root != "" {
		if err := readUnderPressure(root); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// readUnderPressure reads the files of an image, from the moment that standard
// input says so until it ends: at random offsets, through mappings, and by running
// a program.
func readUnderPressure(root string) error {
	in := bufio.NewReader(os.Stdin)
	if _, err := in.ReadString('\n'); err != nil {
		return err
	}
	var paths []string
	err := filepath.WalkDir(filepath.Join(root, "d"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	var group sync.WaitGroup
	errs := make(chan error, 3)
	each := func(seed uint64, f func(path string, c fileContent, rng *rand.Rand) error) {
		group.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(os.Getpid()), seed))
			n := 0
			for ; ctx.Err() == nil; n++ {
				path := paths[rng.IntN(len(paths))]
				c, err := parseContent(filepath.Base(path))
				if err == nil {
					err = f(path, c, rng)
				}
				if err != nil {
					cancel()
					errs <- err
					return
				}
			}
			fmt.Println(n)
		})
	}
	each(1, readHereAndThere)
	each(2, readMapped)
	each(3, func(string, fileContent, *rand.Rand) error {
		out, err := exec.Command(filepath.Join(root, "shell"), "-c", "for i in 1 2 3; do echo $i; done").CombinedOutput()
		if err != nil || string(out) != "1\n2\n3\n" {
			return fmt.Errorf("a program of the image: %q, %w", out, err)
		}
		return nil
	})
	group.Wait()
	close(errs)
	var all error
	for err := range errs {
		all = errors.Join(all, err)
	}
	return all
}

// Readers that have next to no memory, so that all of the image is read again
// and again, while the blocks beside those of the image are freed and used
// again: they never see other bytes.
func TestReadersUnderMemoryPressure(t *testing.T) {
	const (
		readers = 2
		limit   = 80 << 20 // bytes, for all readers; they need half of it for themselves, and the image has some 65 MiB
	)
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		t.Skip("the race detector needs memory without a bound that is known: make test runs this in a build without it, too")
	}
	for _, mode := range []mounts.Mode{mounts.ModeFile, mounts.ModeLoop} {
		t.Run(string(mode), func(t *testing.T) {
			n := nodeOf(t, mode, Compression{})
			ctx := context.Background()
			files := pressureFiles()
			self, err := os.Executable()
			must(t, err)
			shell, err := exec.LookPath("bash") // larger than others
			must(t, err)
			program, err := os.ReadFile(shell)
			must(t, err)
			top := n.pull("ns/1", image{layerOf(files[:len(files)/2]...), layerOf(files[len(files)/2:]...),
				treetest.Layer(treetest.File("shell", string(program), treetest.Mode(0o755)))})
			_, root, _ := n.run(top)
			device := "erofs"
			if mode == mounts.ModeLoop {
				device = loopOf(t, n.image(n.flatImage(top)))
			}
			cgroup := memoryCgroup(t, limit)
			log := kmsgtest.Listen(t)

			var group sync.WaitGroup
			var starts []io.Closer
			outputs := make([]strings.Builder, readers)
			done := make(chan struct{}, readers)
			for i := range readers {
				cmd := exec.Command(self)
				cmd.Env = append(os.Environ(), pressureRoot+"="+root, "GOMAXPROCS=2", "GOMEMLIMIT=8MiB", "GOGC=20")
				cmd.Stdout, cmd.Stderr = &outputs[i], &outputs[i]
				in, err := cmd.StdinPipe()
				must(t, err)
				must(t, cmd.Start())
				must(t, cgroup.join(cmd.Process.Pid))
				_, err = io.WriteString(in, "go\n")
				must(t, err)
				starts = append(starts, in)
				group.Go(func() {
					if err := cmd.Wait(); err != nil {
						t.Errorf("reader %d: %v: %s", i, err, outputs[i].String())
					}
					done <- struct{}{}
				})
			}
			end := time.Now().Add(2 * time.Second)
			rounds := 0
			for ; time.Now().Before(end) && len(done) == 0; rounds++ {
				other := image{layerOf(neighbours(uint64(rounds))...), layerOf(neighbours(uint64(rounds + 5000))[:20]...), treetest.Layer(treetest.Opaque("d"))}
				otherTop := n.pull("ns/2", other[:2+rounds%2])
				must(t, n.Flatten(ctx, otherTop))
				must(t, n.Cleanup(ctx))
				n.removed("ns/2", other[:2+rounds%2], func() {})
				must(t, n.Cleanup(ctx))
			}
			for _, in := range starts {
				_ = in.Close() // a reader that failed has closed it
			}
			group.Wait()
			if !cgroup.pressed() {
				t.Error("the readers had memory enough: this test proves nothing")
			}
			t.Logf("%d rounds beside the readers; what they did: %q", rounds, fmt.Sprint(outputs[0].String(), outputs[1].String()))
			for _, message := range log.Said(device) {
				if mode == mounts.ModeLoop {
					t.Errorf("the kernel says: %s", message)
				} else {
					t.Logf("the kernel says of this or another mount: %s", message)
				}
			}
			root, undo := n.view(top)
			n.reads(root, files...)
			undo()
		})
	}
}

// pressureFiles are thousands of files of mixed sizes.
func pressureFiles() (files []fileContent) {
	for i := range uint64(3000) {
		files = append(files, fileContent{contentKinds[i%uint64(len(contentKinds))], i, int64(1 + i*i%30_000)})
	}
	for i := range uint64(60) {
		files = append(files, fileContent{contentKinds[i%uint64(len(contentKinds))], i, int64(100_000 + i*i*200)})
	}
	return files
}

// neighbours are contents that come and go.
func neighbours(round uint64) (files []fileContent) {
	for i := range uint64(60) {
		files = append(files, fileContent{contentKinds[i%3], 1<<32 + round*100 + i, int64(1 + i*i*i%400_000)})
	}
	return append(files, fileContent{"textnoise", 1<<33 + round, 2 << 20})
}

// cgroup is the directory of a group of processes that have a limit of memory
// together.
type cgroup string

// memoryCgroup makes a group for so many bytes.
func memoryCgroup(t *testing.T, limit int) cgroup {
	t.Helper()
	base, file := "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
	if _, err := os.Stat(filepath.Join(base, file)); err != nil {
		base, file = "/sys/fs/cgroup", "memory.max"
		if controllers, err := os.ReadFile(base + "/cgroup.subtree_control"); err != nil || !strings.Contains(string(controllers), "memory") {
			t.Skipf("no memory cgroup can be made here: %q of %s, %v", controllers, base, err)
		}
	}
	dir, err := os.MkdirTemp(base, "squash-test-")
	if err != nil {
		t.Skipf("no memory cgroup can be made here: %v", err)
	}
	t.Cleanup(func() {
		waitFor(t, "the cgroup to be empty", func() error { return os.Remove(dir) })
	})
	must(t, os.WriteFile(filepath.Join(dir, file), []byte(strconv.Itoa(limit)), 0))
	return cgroup(dir)
}

func (c cgroup) join(pid int) error {
	return os.WriteFile(filepath.Join(string(c), "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
}

// pressed tells whether the limit was ever in the way.
func (c cgroup) pressed() bool {
	failed, _ := os.ReadFile(filepath.Join(string(c), "memory.failcnt"))
	events, _ := os.ReadFile(filepath.Join(string(c), "memory.events"))
	var max int
	for line := range strings.Lines(string(events)) {
		_, _ = fmt.Sscanf(line, "max %d", &max)
	}
	return max > 0 || len(failed) > 0 && strings.TrimSpace(string(failed)) != "0"
}

// loopOf names the loop device that is bound to a file.
func loopOf(t *testing.T, file string) string {
	t.Helper()
	states, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must(t, err)
	for _, state := range states {
		if bound, err := os.ReadFile(state); err == nil && strings.TrimSpace(string(bound)) == file {
			return strings.Split(state, "/")[3]
		}
	}
	t.Fatalf("no loop device is bound to %s", file)
	return ""
}
