// SPDX-License-Identifier: Apache-2.0

package mounts

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"golang.org/x/sys/unix"

	"github.com/squash-snapshotter/squash/internal/erofs"
	"github.com/squash-snapshotter/squash/internal/kmsgtest"
)

func checkEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) > 0 {
		t.Errorf("left in %s: %v", dir, entries)
	}
}

func TestProbeOnDisk(t *testing.T) {
	root := newRoot(t)
	caps, err := Probe(t.Context(), root)
	must(t, err)
	want := Capabilities{FileBacked: true, Loop: true, LZ4: true, Zstd: true, Fragments: true}
	if caps != want {
		t.Errorf("got %+v, want %+v", caps, want)
	}
	checkEmpty(t, root)
}

// These hold loop images and pack, but no image of a file-backed mount.
func TestProbeOnFileSystemsWithoutFileBackedMounts(t *testing.T) {
	root := newRoot(t)
	tmpfs := mkdir(t, root, "tmpfs")
	mountNew(t, "tmpfs", tmpfs, "")
	overlay := mkdir(t, root, "overlay")
	mountNew(t, "overlay", overlay,
		"lowerdir="+mkdir(t, root, "lower")+",upperdir="+mkdir(t, root, "upper")+",workdir="+mkdir(t, root, "work"))
	for fstype, dir := range map[string]string{"tmpfs": tmpfs, "overlayfs": overlay} {
		t.Run(fstype, func(t *testing.T) {
			caps, err := Probe(t.Context(), dir)
			must(t, err)
			if caps.FileBacked || !strings.Contains(caps.FileBackedReason, dir+" is on "+fstype) {
				t.Errorf("file-backed: got %t with reason %q", caps.FileBacked, caps.FileBackedReason)
			}
			if !caps.Loop || caps.LoopReason != "" {
				t.Errorf("loop: got %t with reason %q", caps.Loop, caps.LoopReason)
			}
			if !caps.LZ4 || !caps.Zstd || !caps.Fragments {
				t.Errorf("clusters, which loop devices can read: got %+v", caps)
			}
			checkEmpty(t, dir)

			m, err := New(caps, ModeAuto)
			must(t, err)
			f := newFixture(t, dir, "a.erofs", "pack")
			target := mkdir(t, root, "target of "+fstype)
			mount(t, m, f.image, f.pack, target)
			f.check(t, target)
			// Not at the end of the parent test, where its file systems are unmounted.
			must(t, m.Unmount(target))
			waitFor(t, "loop devices to be freed", func() error {
				if len(loopDevices(t, dir)) > 0 {
					return errors.New("still bound")
				}
				return nil
			})
			if _, err := New(caps, ModeFile); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), fstype) {
				t.Errorf("file mode forced: %v", err)
			}
		})
	}
}

func TestProbeWithoutLoopDevices(t *testing.T) {
	root := newRoot(t)
	var caps Capabilities
	must(t, inPrivateNamespace(func() error {
		err := unix.Mount("tmpfs", "/dev", "tmpfs", 0, "")
		if err == nil {
			caps, err = Probe(t.Context(), root)
		}
		return err
	}))
	if !caps.FileBacked || caps.Loop || !strings.Contains(caps.LoopReason, loopControl) {
		t.Errorf("got %+v", caps)
	}
	if !caps.LZ4 || !caps.Zstd || !caps.Fragments {
		t.Errorf("clusters, which file-backed mounts can read: got %+v", caps)
	}
	checkEmpty(t, root)
}

// Without any way of mounting there is nothing that the kernel reads.
func TestProbeWithoutAnyMode(t *testing.T) {
	newRoot(t)
	var caps Capabilities
	must(t, inPrivateNamespace(func() error {
		err := unix.Mount("tmpfs", "/dev", "tmpfs", 0, "")
		if err == nil {
			caps, err = Probe(t.Context(), "/dev")
		}
		return err
	}))
	const none = "no way of mounting works"
	if caps.LZ4 || caps.Zstd || caps.Fragments || caps.LZ4Reason != none || caps.ZstdReason != none || caps.FragmentsReason != none {
		t.Errorf("got %+v", caps)
	}
	if _, err := New(caps, ModeAuto); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("New: %v, want a failed precondition", err)
	}
}

func TestProbeClustersDecodeToTheirData(t *testing.T) {
	decoder, err := zstd.NewReader(nil)
	must(t, err)
	defer decoder.Close()
	if got, err := decoder.DecodeAll([]byte(zstdCluster), nil); err != nil || string(got) != clusterData {
		t.Errorf("zstd: %d bytes, %v", len(got), err)
	}
	got := make([]byte, len(clusterData))
	if n, err := lz4.UncompressBlock([]byte(lz4Cluster), got); err != nil || string(got[:n]) != clusterData {
		t.Errorf("LZ4: %d bytes, %v", n, err)
	}
}

// Stands in for kernels that lack one of the features: what they cannot read looks like damage.
func TestProbeFeatureThatCannotBeReadSaysSo(t *testing.T) {
	kmsgtest.Noisy(t)
	root := newRoot(t)
	file, loop := newMounter(t, ModeFile), newMounter(t, ModeLoop)
	for name, block := range map[string]int64{"fragment": probeBlock, "lz4": lz4Block, "zstd": zstdBlock} {
		p, err := newProbeImages(root)
		must(t, err)
		_, err = p.pack.file.WriteAt(bytes.Repeat([]byte{0xee}, erofs.BlockSize), block*erofs.BlockSize)
		must(t, err)
		for image, probe := range map[string]probeImage{"fragment": p.fragment, "lz4": p.lz4, "zstd": p.zstd} {
			for _, modes := range [][]*Mounter{{file}, {loop}, {file, loop}} {
				ok, reason := p.reads(t.Context(), modes, probe, "a newer kernel")
				if image != name && (!ok || reason != "") {
					t.Errorf("%s with a bad %s: %q", image, name, reason)
				}
				if want := string(modes[0].mode) + " mode: "; image == name &&
					(ok || !strings.HasPrefix(reason, want) || !strings.HasSuffix(reason, "a newer kernel is needed")) {
					t.Errorf("bad %s: %t, %q", name, ok, reason)
				}
			}
		}
		// One mode alone that cannot is enough.
		broken := &Mounter{mode: ModeLoop, create: func(context.Context, *backing, *backing) (*os.File, error) {
			return nil, unix.EOPNOTSUPP
		}}
		if ok, reason := p.reads(t.Context(), []*Mounter{file, broken}, p.inline, "x"); ok || !strings.HasPrefix(reason, "loop mode: ") {
			t.Errorf("one of two modes fails: %t, %q", ok, reason)
		}
		p.Close()
	}
}

func TestProbeWithoutRootSaysSo(t *testing.T) {
	root := newRoot(t)
	err := onLostThread(func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&header, &data[0]); err != nil {
			return err
		}
		data[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
		if err := unix.Capset(&header, &data[0]); err != nil {
			return err
		}
		_, err := Probe(t.Context(), root)
		return err
	})
	if !errdefs.IsFailedPrecondition(err) || !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), needsRoot) {
		t.Errorf("got %v, want FailedPrecondition with the remedy", err)
	}
	checkEmpty(t, root)
}

const probeOnceEnv = "MOUNTS_TEST_PROBE_ONCE"

// Root of a user namespace is granted the context of a mount, but not the mount.
func TestProbeAsRootOfUserNamespaceSaysSo(t *testing.T) {
	if dir := os.Getenv(probeOnceEnv); dir != "" {
		caps, err := Probe(t.Context(), dir)
		fmt.Printf("failed precondition: %t; %+v, %v\n", errdefs.IsFailedPrecondition(err), caps, err)
		return
	}
	root := newRoot(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestProbeAsRootOfUserNamespaceSaysSo$")
	cmd.Env = append(os.Environ(), probeOnceEnv+"="+root)
	self := []syscall.SysProcIDMap{{Size: 1}} // 0 is 0
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS, UidMappings: self, GidMappings: self,
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("run in a user namespace: %v\n%s", err, out)
	}
	for _, text := range []string{"failed precondition: true", needsRoot} {
		if !strings.Contains(string(out), text) {
			t.Errorf("output lacks %q: %s", text, out)
		}
	}
	checkEmpty(t, root)
}

func TestProbeInMissingDirectory(t *testing.T) {
	root := newRoot(t)
	if _, err := Probe(t.Context(), root+"/none"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), root+"/none") {
		t.Errorf("got %v", err)
	}
}

func TestProbeCancelledAtAnyPointLeavesNothing(t *testing.T) {
	root := newRoot(t)
	for k := 0; ; k++ {
		left := k
		_, err := Probe(cancelAfter{t.Context(), &left}, root)
		checkEmpty(t, root)
		checkNothingLeft(t, root)
		if err == nil {
			if k < 12 {
				t.Errorf("the context was looked at %d times only", k)
			}
			return
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled after %d looks: %v", k, err)
		}
	}
}

// Stands in for a file system without O_TMPFILE.
func TestRemovedFileHasNoName(t *testing.T) {
	dir := t.TempDir()
	f, err := removedFile(dir)
	must(t, err)
	defer f.Close()
	checkEmpty(t, dir)
	want := []byte("content")
	_, err = f.Write(want)
	must(t, err)
	if got, err := os.ReadFile(descriptorPath(f)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %q, %v", got, err)
	}
}

const probeForeverEnv = "MOUNTS_TEST_PROBE_FOREVER"

func TestProbeKilledLeavesNothing(t *testing.T) {
	if dir := os.Getenv(probeForeverEnv); dir != "" {
		for {
			if _, err := Probe(t.Context(), dir); err != nil {
				t.Fatal(err)
			}
			os.Stderr.WriteString("probed\n")
		}
	}
	root := newRoot(t)
	for n := range 8 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestProbeKilledLeavesNothing$")
		cmd.Env = append(os.Environ(), probeForeverEnv+"="+root)
		lines, err := cmd.StderrPipe()
		must(t, err)
		must(t, cmd.Start())
		scanner := bufio.NewScanner(lines)
		for range n + 1 {
			if !scanner.Scan() {
				t.Error("the probing process ended early")
				break
			}
		}
		must(t, cmd.Process.Kill())
		_ = cmd.Wait() // killed, as intended
		checkEmpty(t, root)
		checkNothingLeft(t, root)
	}
}
