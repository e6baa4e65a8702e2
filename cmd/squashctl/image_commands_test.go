// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

// tellingDaemon answers what is asked about images with what the test says, and keeps the last request.
type tellingDaemon struct {
	adminapi.UnimplementedAdminServer
	images []*adminapi.Image
	report *adminapi.ReportResponse
	blame  []*adminapi.BlameResponse
	err    error // after all that

	asked fmt.Stringer
}

func (d *tellingDaemon) ListImages(_ context.Context, req *adminapi.ListImagesRequest) (*adminapi.ListImagesResponse, error) {
	d.asked = req
	return &adminapi.ListImagesResponse{Images: d.images}, d.err
}

func (d *tellingDaemon) Report(_ context.Context, req *adminapi.ReportRequest) (*adminapi.ReportResponse, error) {
	d.asked = req
	return d.report, d.err
}

func (d *tellingDaemon) Blame(req *adminapi.BlameRequest, stream grpc.ServerStreamingServer[adminapi.BlameResponse]) error {
	d.asked = req
	for _, m := range d.blame {
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	return d.err
}

func (d *tellingDaemon) serve(t *testing.T) (address string) {
	t.Helper()
	return serveOn(t, func(s *grpc.Server) { adminapi.RegisterAdminServer(s, d) })
}

// printed runs a command on the daemon.
func (d *tellingDaemon) printed(t *testing.T, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	got, stdout, stderr := execute(t, append([]string{"--address", d.serve(t)}, args...)...)
	if got != code {
		t.Errorf("%q: got exit code %d, want %d\n%s%s", args, got, code, stdout, stderr)
	}
	return stdout, stderr
}

func TestLs(t *testing.T) {
	d := &tellingDaemon{images: []*adminapi.Image{
		{Name: "registry.example/app:1", Platform: "linux/amd64", Layers: 6, Unpacked: 6, Flat: true, Files: 82306, LayerBytes: 2_326_000_000, OwnBytes: 300_000_000, SharedBytes: 163_000_000},
		{Name: "registry.example/busy:1", Platform: "linux/amd64", Layers: 1, Unpacked: 1, Flat: true, Containers: 1, LayerBytes: 0},
		{Name: "registry.example/busier:1", Platform: "linux/arm64/v8", Layers: 1, Unpacked: 1, Containers: 12, LayerBytes: 1000},
		{Name: "registry.example/evil\x1b[2J:1", Platform: "linux/amd64", Layers: 6, Unpacked: 2, LayerBytes: 5000},
		{Name: "registry.example/bad:1", Platform: "linux/amd64", Layers: 2, Unpacked: 2, Error: "TOC is damaged"},
	}}
	const want = `IMAGE                             PLATFORM        LAYERS  FILES  AS LAYERS       OWN    SHARED   SAVED  STATE
registry.example/app:1            linux/amd64          6  82306     2.3 GB  300.0 MB  163.0 MB  80.1 %  flat
registry.example/busy:1           linux/amd64          1      0        0 B       0 B       0 B       -  flat, in use by 1 container
registry.example/busier:1         linux/arm64/v8       1      -     1.0 kB         -         -       -  layers, in use by 12 containers
"registry.example/evil\x1b[2J:1"  linux/amd64          6      -     5.0 kB         -         -       -  partial (2 of 6 layers)
registry.example/bad:1            linux/amd64          2      -          -         -         -       -  error: TOC is damaged
`
	out, errs := d.printed(t, 0, "--namespace", "k8s.io", "ls")
	if out != want || errs != "" {
		t.Errorf("printed\n%s%s\nwant\n%s", out, errs, want)
	}
	if asked := d.asked.(*adminapi.ListImagesRequest); asked.Namespace != "k8s.io" {
		t.Errorf("asked for %v", asked)
	}
	d.images = d.images[:1]
	out, _ = d.printed(t, 0, "--format", "json", "ls")
	const line = `{"name":"registry.example/app:1","digest":"","platform":"linux/amd64","manifest":"","chain_id":"","layers":6,"unpacked":6,"flat":true,"containers":0,"files":82306,"layer_bytes":2326000000,"own_bytes":300000000,"shared_bytes":163000000,"error":""}` + "\n"
	if out != line {
		t.Errorf("printed\n%s\nwant\n%s", out, line)
	}
	d.images = nil
	if out, _ := d.printed(t, 0, "ls"); strings.Count(out, "\n") != 1 {
		t.Errorf("without images, printed %q", out)
	}
}

// wasteful is a report of everything there can be, with names that an image's author made up to do harm.
func wasteful() *adminapi.ReportResponse {
	return &adminapi.ReportResponse{
		Image:      &adminapi.Image{Name: "registry.example/app:1", Platform: "linux/amd64", Layers: 3, Unpacked: 3, Flat: true, Files: 10, OwnBytes: 1_100_000, SharedBytes: 500_000},
		LayerBytes: 10_000_000, VisibleBytes: 6_000_000, DistinctBytes: 4_000_000, OwnBytes: 1_100_000, Efficiency: 0.4,
		Waste: []*adminapi.Waste{
			{Cause: "overwritten", Bytes: 3_000_000, Files: 2}, {Cause: "deleted", Bytes: 1_000_000, Files: 1}, {Cause: "duplicate", Bytes: 2_000_000, Files: 1},
			{Cause: "shared", Bytes: 3_000_000, Files: 1}, {Cause: "compression", Bytes: -100_000},
		},
		DuplicatePaths:    []*adminapi.DuplicatePath{{Path: []byte("/a\n\x1b]0;evil\a"), Count: 3, Bytes: 3_000_000}},
		DuplicateContents: []*adminapi.DuplicateContent{{Digest: "sha256:0123456789abcdef0123", Size: 2_000_000, Count: 2, Bytes: 4_000_000, Paths: [][]byte{[]byte("/b"), []byte("/c d")}}},
		Layers: []*adminapi.LayerReport{
			{Layer: &adminapi.Layer{CreatedBy: "/bin/sh -c #(nop) ADD file:1 in / "}, Files: 5, Bytes: 6_000_000, ShadowedBytes: 4_000_000},
			{Layer: &adminapi.Layer{CreatedBy: "RUN /bin/sh -c chown\t-R 1 /a\n  && echo \x1b[31m # buildkit"}, Files: 4, Bytes: 4_000_000, DuplicateBytes: 2_000_000},
			{Layer: &adminapi.Layer{}, Files: 0},
		},
		Advice: []*adminapi.Advice{{Layer: 1, Bytes: 2_000_000, Text: "Do not."}, {Layer: 2, Bytes: 1_000_000, Text: "Nor this."}},
	}
}

const wastefulTable = `registry.example/app:1  linux/amd64  3 layers, 10 files, flat

efficiency    40.0 %   of 10.0 MB in layers, containers see 4.0 MB of distinct content
on this node  1.1 MB of its own, 500.0 kB shared with other images: 84.0 % saved

Where the bytes go
                     Space    Share  Files
  in layers        10.0 MB  100.0 %
  - overwritten     3.0 MB   30.0 %      2
  - deleted         1.0 MB   10.0 %      1
  - duplicate       2.0 MB   20.0 %      1
  - shared          3.0 MB   30.0 %      1
  - compression  -100.0 kB   -1.0 %
  on disk           1.1 MB   11.0 %

Layers
  #   Added  Shadowed   Again  Files  Command
  1  6.0 MB    4.0 MB     0 B      5  ADD file:1 in /
  2  4.0 MB       0 B  2.0 MB      4  "RUN chown -R 1 /a && echo \x1b[31m"
  3     0 B       0 B     0 B      0  -
  Shadowed: overwritten or deleted by later layers. Again: content that a layer below has already.

Paths in several layers
  Count  Total Space  Path
      3       3.0 MB  "/a\n\x1b]0;evil\a"

Contents in several places
  Count  Total Space  Content              Paths
      2       4.0 MB  sha256:0123456789ab  /b /c d

What the author of the image can change
  Layer 2, up to 2.0 MB, "RUN chown -R 1 /a && echo \x1b[31m"
    Do not.
  Layer 3, up to 1.0 MB
    Nor this.
`

func TestReport(t *testing.T) {
	d := &tellingDaemon{report: wasteful()}
	out, errs := d.printed(t, 0, "report", "--rows", "7", "--platform", "linux/amd64", "registry.example/app:1")
	if out != wastefulTable || errs != "" {
		t.Errorf("printed\n%s%s\nwant\n%s", out, errs, wastefulTable)
	}
	asked := d.asked.(*adminapi.ReportRequest)
	if asked.Rows != 7 || asked.Image.Name != "registry.example/app:1" || asked.Image.Namespace != "default" || asked.Image.Platform != "linux/amd64" {
		t.Errorf("asked for %v", asked)
	}
	d.report = &adminapi.ReportResponse{Image: &adminapi.Image{Name: "registry.example/empty:1", Platform: "linux/amd64", Layers: 1, Unpacked: 1, Flat: true}, Efficiency: 1, OwnBytes: 4096, Layers: []*adminapi.LayerReport{{}}}
	out, _ = d.printed(t, 0, "report", "registry.example/empty:1")
	for _, table := range []string{"Paths in several layers", "Contents in several places", "can change"} {
		if strings.Contains(out, table) {
			t.Errorf("of an image that wastes nothing, printed\n%s", out)
		}
	}
	for _, args := range [][]string{{"report"}, {"report", "a", "b"}, {"report", "--rows", "0", "a"}, {"report", "--rows", "1001", "a"}, {"report", "--rows", "-1", "a"}} {
		if out, errs := d.printed(t, notDone, args...); out != "" || !strings.Contains(errs, "See squashctl --help.") {
			t.Errorf("%q: printed %q, said %q", args, out, errs)
		}
	}
}

// blamedPaths are a path of each fate, and one that no layer has.
func blamedPaths() []*adminapi.BlameResponse {
	file := &adminapi.PathVersion{Layer: 1, Fate: "visible", Type: "file", Mode: 0o4755, Uid: 3, Gid: 4, Mtime: 1_700_000_000, Size: 2000, Digest: "sha256:01", SameAs: []byte("/first")}
	paths := []*adminapi.PathOrigin{
		{Path: []byte("/usr/bin/a"), Asked: []byte("bin/a"), Versions: []*adminapi.PathVersion{file, {Layer: 0, Fate: "overwritten", By: 1, Type: "symlink", Mode: 0o777, Target: []byte("evil\x1b[2J")}}},
		{Path: []byte("/gone"), Asked: []byte("/gone/"), Versions: []*adminapi.PathVersion{{Layer: 0, Fate: "deleted", By: 1, Type: "directory", Mode: 0o755, Implied: true}}},
		{Path: []byte("/none"), Asked: []byte("none")},
	}
	all := []*adminapi.BlameResponse{{Message: &adminapi.BlameResponse_Layers{Layers: &adminapi.BlameLayers{Layers: []*adminapi.Layer{
		{DiffId: "sha256:d0", Blob: "sha256:b0"}, {DiffId: "sha256:d1", Blob: "sha256:b1", CreatedBy: "RUN /bin/sh -c make install # buildkit", Created: "2026-01-02T03:04:05Z"},
	}}}}}
	for _, p := range paths {
		all = append(all, &adminapi.BlameResponse{Message: &adminapi.BlameResponse_Path{Path: p}})
	}
	return all
}

const blamedTable = `/usr/bin/a (bin/a)
  from layer 2: file, mode 4755, owner 3:4, 2023-11-14T22:13:20Z, 2.0 kB, sha256:01, the same file as /first
      diff ID sha256:d1
      blob    sha256:b1
      made by RUN make install
      created 2026-01-02T03:04:05Z
  before, replaced by layer 2; layer 1 had: symlink, mode 0777, owner 0:0, 1970-01-01T00:00:00Z to "evil\x1b[2J"
      diff ID sha256:d0
      blob    sha256:b0

/gone
  deleted by layer 2; layer 1 had: directory, mode 0755, owner 0:0, 1970-01-01T00:00:00Z (after the layer below: this layer does not state it)
      diff ID sha256:d0
      blob    sha256:b0

/none
  no layer has it

`

func TestBlame(t *testing.T) {
	d := &tellingDaemon{blame: blamedPaths()}
	out, errs := d.printed(t, notInImage, "blame", "registry.example/app:1", "bin/a", "/gone/", "none")
	if out != blamedTable || errs != "" {
		t.Errorf("printed\n%s%s\nwant\n%s", out, errs, blamedTable)
	}
	asked := d.asked.(*adminapi.BlameRequest)
	if asked.All || len(asked.Paths) != 3 || string(asked.Paths[1]) != "/gone/" || asked.Image.Name != "registry.example/app:1" {
		t.Errorf("asked for %v", asked)
	}
	d.blame = d.blame[:3]
	out, _ = d.printed(t, 0, "blame", "--all", "registry.example/app:1")
	if lines := strings.Split(out, "\n"); len(lines) != 4 || !strings.HasPrefix(lines[0], `{"layers":{"layers":[{"diff_id":"sha256:d0",`) || !strings.HasPrefix(lines[2], `{"path":{"path":"/gone","asked":"/gone/","versions":[{"layer":0,"fate":"deleted","by":1,"implied":true,`) {
		t.Errorf("printed\n%s", out)
	}
	if asked := d.asked.(*adminapi.BlameRequest); !asked.All || len(asked.Paths) > 0 {
		t.Errorf("asked for %v", asked)
	}
	for _, args := range [][]string{{"blame"}, {"blame", "image"}, {"blame", "--all", "image", "path"}} {
		if out, errs := d.printed(t, notDone, args...); out != "" || !strings.Contains(errs, "See squashctl --help.") {
			t.Errorf("%q: printed %q, said %q", args, out, errs)
		}
	}
}

// What the daemon says against it is said, and nobody takes half an answer for a whole one.
func TestImageCommandsThatFail(t *testing.T) {
	for command, args := range map[string][]string{"ls": {"ls"}, "report": {"report", "image"}, "blame": {"blame", "image", "bin/a"}} {
		d := &tellingDaemon{err: status.Error(codes.NotFound, "namespace default has no image \x1b[2J")}
		if out, errs := d.printed(t, notDone, args...); out != "" || !strings.Contains(errs, command+`: "namespace default has no image \x1b[2J"`) {
			t.Errorf("%s: printed %q, said %q", command, out, errs)
		}
		for _, format := range []string{"table", "json"} {
			d = &tellingDaemon{images: []*adminapi.Image{{Name: "a"}}, report: wasteful(), blame: blamedPaths()}
			var errs strings.Builder
			all := append([]string{"squashctl", "--address", d.serve(t), "--format", format}, args...)
			if code := run(t.Context(), all, fullDisk{}, &errs); code != notDone || !strings.Contains(errs.String(), command+": print: no space left on device") {
				t.Errorf("%s as %s on a full disk: exit code %d, said %q", command, format, code, &errs)
			}
		}
	}
	d := &tellingDaemon{blame: blamedPaths()[:2], err: status.Error(codes.Unavailable, "the daemon is stopping")}
	if out, errs := d.printed(t, notDone, "blame", "--all", "image"); strings.Count(out, "\n") != 2 || !strings.Contains(errs, "the daemon is stopping") {
		t.Errorf("an answer that was cut off: printed %q, said %q", out, errs)
	}
}
