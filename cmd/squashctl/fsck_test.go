// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

func reported(step string, done, total uint64) *adminapi.CheckResponse {
	return &adminapi.CheckResponse{Message: &adminapi.CheckResponse_Progress{Progress: &adminapi.Progress{Step: step, Done: done, Total: total}}}
}

func found(f *adminapi.Finding) *adminapi.CheckResponse {
	return &adminapi.CheckResponse{Message: &adminapi.CheckResponse_Finding{Finding: f}}
}

func summed(s *adminapi.Summary) *adminapi.CheckResponse {
	return &adminapi.CheckResponse{Message: &adminapi.CheckResponse_Summary{Summary: s}}
}

// answer is a daemon that sends messages and ends with err.
func answer(t *testing.T, err error, messages ...*adminapi.CheckResponse) (address string) {
	t.Helper()
	return fakeFsck(t, func(_ *adminapi.CheckRequest, stream grpc.ServerStreamingServer[adminapi.CheckResponse]) error {
		for _, m := range messages {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		return err
	})
}

// damaged is what a check with repair says that found three things and could repair one.
var damaged = []*adminapi.CheckResponse{
	reported("index", 0, 2),
	reported("index", 2, 2),
	found(&adminapi.Finding{Kind: "image", Object: "/root/images/a.erofs", Detail: "checksum differs", Repaired: true}),
	reported("contents", 0, 2_300_000_000),
	reported("contents", 200_000_000, 2_300_000_000),
	reported("contents", 1_150_000_000, 2_300_000_000),
	found(&adminapi.Finding{Kind: "content", Object: "sha256:0123", Detail: "bytes differ & <blob> is gone", Remedy: "ctr images pull example.com/a"}),
	found(&adminapi.Finding{Kind: "orphan", Object: "evil\x1b[2J", Remedy: "remove it"}),
	summed(&adminapi.Summary{Layers: 1, Images: 3, Contents: 4021, Bytes: 2_299_960_000, Findings: 3, Repaired: 1}),
}

const damagedTable = `KIND     STATE        WHAT
image    repaired     /root/images/a.erofs: checksum differs
content  not repaired sha256:0123: bytes differ & <blob> is gone
                      remedy: ctr images pull example.com/a
orphan   not repaired "evil\x1b[2J"
                      remedy: remove it

1 layer, 3 images, 4021 contents (2.3 GB) checked: 3 findings, 1 repaired, 2 left
`

const damagedLines = `{"finding":{"kind":"image","object":"/root/images/a.erofs","detail":"checksum differs","repaired":true,"remedy":""}}
{"finding":{"kind":"content","object":"sha256:0123","detail":"bytes differ & <blob> is gone","repaired":false,"remedy":"ctr images pull example.com/a"}}
{"finding":{"kind":"orphan","object":"evil\u001b[2J","detail":"","repaired":false,"remedy":"remove it"}}
{"summary":{"layers":1,"images":3,"contents":4021,"bytes":2299960000,"findings":3,"repaired":1}}
`

const plainProgress = `checking index: 0 %  0 of 2
checking index: 100 %  2 of 2
checking contents: 0 %  0 B of 2.3 GB
checking contents: 50 %  1.1 GB of 2.3 GB
`

func TestWhatFsckPrints(t *testing.T) {
	clean := []*adminapi.CheckResponse{reported("layers", 1, 0), summed(&adminapi.Summary{Layers: 2, Images: 1, Contents: 1, Bytes: 999})}
	for _, c := range []struct {
		name     string
		messages []*adminapi.CheckResponse
		args     []string
		code     int
		stdout   string
		stderr   string
	}{
		{"damage left", damaged, []string{"--repair"}, damageLeft, damagedTable, plainProgress},
		{"damage without repair", damaged, nil, damageLeft, damagedTable + "squashctl fsck --repair mends what can be mended\n", plainProgress},
		{"damage as JSON", damaged, []string{"--format", "json"}, damageLeft, damagedLines, ""},
		{"nothing", clean, nil, 0, "2 layers, 1 image, 1 content (999 B) checked: nothing is damaged\n", "checking layers: 1\n"},
		{"nothing in a quick check", clean, []string{"--quick"}, 0, "2 layers, 1 image, no contents checked: nothing is damaged\n", "checking layers: 1\n"},
		{"nothing as JSON", clean, []string{"--format=json"}, 0, `{"summary":{"layers":2,"images":1,"contents":1,"bytes":999,"findings":0,"repaired":0}}` + "\n", ""},
		{"all repaired", []*adminapi.CheckResponse{
			found(&adminapi.Finding{Kind: "layer", Object: "ns/1/sha256:1", Repaired: true}),
			summed(&adminapi.Summary{Findings: 1, Repaired: 1}),
		}, []string{"--repair"}, allRepaired, `KIND     STATE        WHAT
layer    repaired     ns/1/sha256:1

0 layers, 0 images, 0 contents (0 B) checked: 1 finding, 1 repaired, 0 left
`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append([]string{"--address", answer(t, nil, c.messages...), "fsck"}, c.args...)
			code, stdout, stderr := execute(t, args...)
			if code != c.code {
				t.Errorf("got exit code %d, want %d", code, c.code)
			}
			if stdout != c.stdout {
				t.Errorf("printed\n%s\nwant\n%s", stdout, c.stdout)
			}
			if stderr != c.stderr {
				t.Errorf("said\n%s\nwant\n%s", stderr, c.stderr)
			}
		})
	}
}

func TestFsckAsksForWhatItIsTold(t *testing.T) {
	var got *adminapi.CheckRequest
	address := fakeFsck(t, func(req *adminapi.CheckRequest, stream grpc.ServerStreamingServer[adminapi.CheckResponse]) error {
		got = req
		return stream.Send(summed(&adminapi.Summary{}))
	})
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "false false 0"},
		{[]string{"--quick"}, "true false 0"},
		{[]string{"--repair", "--rate", "50"}, "false true 50000000"},
	} {
		if code, _, stderr := execute(t, append([]string{"fsck", "--address", address}, c.args...)...); code != 0 {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		if asked := fmt.Sprint(got.Quick, got.Repair, got.RateBytesPerSecond); asked != c.want {
			t.Errorf("%q asked for %s, want %s", c.args, asked, c.want)
		}
	}
}

func TestFsckThatCannotBeDone(t *testing.T) {
	finding := found(&adminapi.Finding{Kind: "layer", Object: "ns/1/sha256:1"})
	for _, c := range []struct {
		name     string
		err      error
		messages []*adminapi.CheckResponse
		want     []string
	}{
		{"another check", status.Error(codes.Unavailable, "another check is under way: unavailable"), nil, []string{"fsck: another check is under way", "journalctl"}},
		{"a daemon without checks", status.Error(codes.Unimplemented, "unknown method Check"), nil, []string{"unknown method Check", "upgrade"}},
		{"a panic", status.Error(codes.Internal, "panic in Check"), nil, []string{"the daemon failed: panic in Check", "journalctl"}},
		{"a reason with control characters", status.Error(codes.FailedPrecondition, "open \x1b[2J"), nil, []string{`"open \x1b[2J"`}},
		{"an error half-way", status.Error(codes.Unknown, "disk on fire"), []*adminapi.CheckResponse{finding}, []string{"disk on fire"}},
		{"an end without summary", nil, []*adminapi.CheckResponse{finding}, []string{"without a summary"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, stdout, stderr := execute(t, "--address", answer(t, c.err, c.messages...), "fsck")
			if code != notDone {
				t.Errorf("got exit code %d, want %d", code, notDone)
			}
			for _, want := range c.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("got %q, want it to contain %q", stderr, want)
				}
			}
			if len(c.messages) > 0 && !strings.Contains(stdout, "ns/1/sha256:1") {
				t.Errorf("what was found before is not printed: %q", stdout)
			}
		})
	}
}

func TestFsckIsInterrupted(t *testing.T) {
	ended := make(chan error, 1)
	ctx, interrupt := context.WithCancel(t.Context())
	address := fakeFsck(t, func(_ *adminapi.CheckRequest, stream grpc.ServerStreamingServer[adminapi.CheckResponse]) error {
		interrupt()
		<-stream.Context().Done()
		ended <- stream.Context().Err()
		return stream.Context().Err()
	})
	var stderr strings.Builder
	if code := run(ctx, []string{"squashctl", "--address", address, "fsck"}, io.Discard, &stderr); code != notDone {
		t.Errorf("got exit code %d, want %d", code, notDone)
	}
	if stderr.String() != "squashctl: interrupted\n" {
		t.Errorf("said %q", &stderr)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the daemon saw %v, want that the check was cancelled", err)
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, unix.ENOSPC }

// Nobody must take half a report for a whole one.
func TestFsckThatCannotPrint(t *testing.T) {
	for _, format := range []string{"table", "json"} {
		for what, messages := range map[string][]*adminapi.CheckResponse{
			"a finding":   damaged,
			"the summary": {summed(&adminapi.Summary{})},
		} {
			var stderr strings.Builder
			args := []string{"squashctl", "--address", answer(t, nil, messages...), "fsck", "--format", format}
			if code := run(t.Context(), args, fullDisk{}, &stderr); code != notDone || !strings.Contains(stderr.String(), "no space left on device") {
				t.Errorf("%s as %s: exit code %d, said %q", what, format, code, &stderr)
			}
		}
	}
}

// openTerminal returns the two ends of a new terminal: what is written to inner, a program's end, can be read from outer
// until inner is closed.
func openTerminal(t *testing.T, columns uint16) (outer, inner *os.File) {
	t.Helper()
	outer, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { outer.Close() })
	if err := unix.IoctlSetPointerInt(int(outer.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(outer.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(outer.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}); err != nil {
		t.Fatal(err)
	}
	inner, err = os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inner.Close() })
	return outer, inner
}

// onTerminal runs fsck with standard error on a terminal and returns what both were written.
func onTerminal(t *testing.T, columns uint16, args ...string) (stdout, stderr string) {
	t.Helper()
	outer, inner := openTerminal(t, columns)
	shown := make(chan string)
	go func() {
		text, err := io.ReadAll(outer)
		if err != nil && !errors.Is(err, unix.EIO) { // which is how its end is told
			t.Error(err)
		}
		shown <- string(text)
	}()
	var out strings.Builder
	run(t.Context(), append([]string{"squashctl", "--address", answer(t, nil, damaged...), "fsck", "--repair"}, args...), &out, inner)
	inner.Close()
	return out.String(), <-shown
}

func TestProgressOnATerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	stdout, stderr := onTerminal(t, 80)
	if stdout != damagedTable {
		t.Errorf("printed\n%s", stdout)
	}
	const back = "\r\x1b[K"
	want := back + "index    [----------------------------------------]   0 %  0 of 2" +
		back + "index    [########################################] 100 %  2 of 2" +
		back + // for the finding
		back + "contents [----------------------------------------]   0 %  0 B of 2.3 GB" +
		back + "contents [###-------------------------------------]   8 %  200.0 MB of 2.3 GB" +
		back + "contents [####################--------------------]  50 %  1.1 GB of 2.3 GB" +
		back
	if stderr != want {
		t.Errorf("showed\n%q, want\n%q", stderr, want)
	}
	if _, stderr := onTerminal(t, 80, "--format", "json"); stderr != "" {
		t.Errorf("with JSON, showed %q", stderr)
	}
	// A terminal that may not know what clearing a line is.
	t.Setenv("TERM", "dumb")
	if _, stderr := onTerminal(t, 80); stderr != strings.ReplaceAll(plainProgress, "\n", "\r\n") {
		t.Errorf("on a dumb terminal, showed %q", stderr)
	}
}

func TestBarFitsTheTerminal(t *testing.T) {
	for columns, want := range map[int]string{
		200: "contents [" + strings.Repeat("#", 20) + strings.Repeat("-", 20) + "]  50 %  1 of 2",
		40:  "contents [#######-------]  50 %  1 of 2",
		30:  "contents  50 %  1 of 2",
		12:  "contents  5",
		1:   "",
	} {
		if got := drawBar("contents", " 50 %  1 of 2", 0.5, columns); got != want {
			t.Errorf("%d columns: got %q, want %q", columns, got, want)
		}
	}
}

// Bytes that are no UTF-8 may be commands to a terminal: 0x9b begins one.
func TestPrintableNames(t *testing.T) {
	for name, want := range map[string]string{
		"/usr/bin/café": "/usr/bin/café", "a\x9b31m": `"a\x9b31m"`, "a\x1b[2J": `"a\x1b[2J"`, "\u202egnp": `"\u202egnp"`, "\uFFFD": "\uFFFD",
	} {
		if got := printable(name); got != want {
			t.Errorf("%q: got %s, want %s", name, got, want)
		}
	}
}

func TestSizes(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_949: "999.9 kB", 999_950: "1.0 MB", 1 << 40: "1.1 TB", 1<<64 - 1: "18.4 EB",
	} {
		if got := size(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}
