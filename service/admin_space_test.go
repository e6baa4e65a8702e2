// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
	"github.com/squash-snapshotter/squash/snapshotter"
)

// keepingBackend is a backend of which only the housekeeping is ever called.
type keepingBackend struct {
	*fakeBackend
	collect func(ctx context.Context, dryRun bool) (snapshotter.Collection, error)
}

func (keepingBackend) DiskUsage(context.Context) (snapshotter.DiskUsage, error) {
	return snapshotter.DiskUsage{
		Root: "/r", FileSystem: 1, Free: 2, Bytes: 3, LayerBytes: 4,
		Parts:     []snapshotter.UsagePart{{Name: "contents", Count: 5, Bytes: -6, What: "\xff"}},
		Contents:  []snapshotter.UsagePart{{Name: "visible", Count: 7, Bytes: 8}},
		Encodings: []snapshotter.EncodingUsage{{Encoding: "zstd", Contents: 9, Bytes: 10, Stored: 11}},
	}, nil
}

func (b keepingBackend) Collect(ctx context.Context, dryRun bool) (snapshotter.Collection, error) {
	return b.collect(ctx, dryRun)
}

func TestHousekeepingIsServed(t *testing.T) {
	var dry []bool
	client, _ := serveBackend(t, keepingBackend{collect: func(_ context.Context, dryRun bool) (snapshotter.Collection, error) {
		dry = append(dry, dryRun)
		return snapshotter.Collection{
			Garbage: []snapshotter.Garbage{{Kind: "layer", Object: "1", Why: "w", Bytes: 2}, {Kind: "contents", Count: 3, Bytes: 4}},
			Kept:    []snapshotter.Garbage{{Kind: "image", Object: "i\xff", Bytes: 50}},
		}, nil
	}})
	usage, err := client.DiskUsage(t.Context(), &adminapi.DiskUsageRequest{})
	if want := (&adminapi.DiskUsageResponse{
		Root: "/r", FilesystemBytes: 1, FreeBytes: 2, Bytes: 3, LayerBytes: 4,
		Parts:     []*adminapi.UsagePart{{Name: "contents", Count: 5, Bytes: -6, What: "\uFFFD"}},
		Contents:  []*adminapi.UsagePart{{Name: "visible", Count: 7, Bytes: 8}},
		Encodings: []*adminapi.EncodingUsage{{Encoding: "zstd", Contents: 9, Bytes: 10, StoredBytes: 11}},
	}); err != nil || !proto.Equal(usage, want) {
		t.Errorf("got %v, %v, want %v", usage, err, want)
	}
	for _, dryRun := range []bool{true, false} {
		c, err := client.Collect(t.Context(), &adminapi.CollectRequest{DryRun: dryRun})
		if want := (&adminapi.CollectResponse{
			Garbage: []*adminapi.Garbage{{Kind: "layer", Object: "1", Why: "w", Bytes: 2}, {Kind: "contents", Count: 3, Bytes: 4}},
			Bytes:   6,
			Kept:    []*adminapi.Garbage{{Kind: "image", Object: "i\uFFFD", Bytes: 50}},
		}); err != nil || !proto.Equal(c, want) {
			t.Errorf("got %v, %v, want %v", c, err, want)
		}
	}
	if len(dry) != 2 || !dry[0] || dry[1] {
		t.Errorf("dry runs: %v", dry)
	}
}

func TestAStopEndsACollection(t *testing.T) {
	began := make(chan struct{})
	client, stop := serveBackend(t, keepingBackend{collect: func(ctx context.Context, _ bool) (snapshotter.Collection, error) {
		close(began)
		<-ctx.Done()
		return snapshotter.Collection{}, ctx.Err()
	}})
	got := make(chan error, 1)
	go func() {
		_, err := client.Collect(context.Background(), &adminapi.CollectRequest{})
		got <- err
	}()
	<-began
	stop()
	if err := <-got; status.Code(err) != codes.Unavailable {
		t.Errorf("got %v, want Unavailable", err)
	}
}

func TestABackendThatKeepsNoHouse(t *testing.T) {
	client, _ := serveBackend(t, &fakeBackend{})
	if _, err := client.DiskUsage(t.Context(), &adminapi.DiskUsageRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("disk usage: got %v", err)
	}
	if _, err := client.Collect(t.Context(), &adminapi.CollectRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("collect: got %v", err)
	}
}
