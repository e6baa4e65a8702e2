// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"google.golang.org/grpc"
)

// unpackedLabel, followed by the name that containerd's configuration gives a snapshotter, is the label by which an
// image's config blob keeps the image's unpacked chain from being collected. Its value is the chain ID.
const unpackedLabel = "containerd.io/gc.ref.snapshot."

// imageWatch asks containerd about unpacked images.
type imageWatch struct {
	contents contentapi.ContentClient
	plugins  introspectionapi.IntrospectionClient
	events   eventsapi.EventsClient
	address  string // of this daemon's socket
}

func newImageWatch(conn grpc.ClientConnInterface, address string) *imageWatch {
	return &imageWatch{
		contents: contentapi.NewContentClient(conn),
		plugins:  introspectionapi.NewIntrospectionClient(conn),
		events:   eventsapi.NewEventsClient(conn),
		address:  address,
	}
}

// unpacked returns the chain IDs of all images that are unpacked in namespace. Images that only another snapshotter
// unpacked may be among them.
func (i *imageWatch) unpacked(ctx context.Context, namespace string) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, namespace), answerTimeout)
	defer cancel()
	filters, err := i.filters(ctx)
	if err != nil {
		return nil, err
	}
	blobs, err := i.contents.List(ctx, &contentapi.ListContentRequest{Filters: filters})
	if err != nil {
		return nil, fmt.Errorf("list content: %w", errgrpc.ToNative(err))
	}
	chains := map[string]bool{}
	for {
		reply, err := blobs.Recv()
		if errors.Is(err, io.EOF) {
			return chains, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list content: %w", errgrpc.ToNative(err))
		}
		for _, blob := range reply.Info {
			for label, value := range blob.Labels {
				if strings.HasPrefix(label, unpackedLabel) {
					chains[value] = true
				}
			}
		}
	}
}

// filters returns filters for the config blobs of images that this daemon unpacked, so that containerd does not send
// every blob it has. There are none if containerd does not tell under which names it knows this daemon.
func (i *imageWatch) filters(ctx context.Context) ([]string, error) {
	names, err := i.names(ctx)
	if err != nil {
		return nil, err
	}
	var filters []string
	for _, name := range names {
		filters = append(filters, "labels."+strconv.Quote(unpackedLabel+name))
	}
	return filters, nil
}

// names are those of the snapshotters of containerd that lead to this daemon.
func (i *imageWatch) names(ctx context.Context) (names []string, err error) {
	reply, err := i.plugins.Plugins(ctx, &introspectionapi.PluginsRequest{
		Filters: []string{"type==io.containerd.snapshotter.v1"},
	})
	if err != nil {
		return nil, fmt.Errorf("list snapshotters: %w", errgrpc.ToNative(err))
	}
	for _, p := range reply.Plugins {
		if address, ok := p.Exports["address"]; ok && samePath(address, i.address) {
			names = append(names, p.ID)
		}
	}
	return names, nil
}

// samePath tells whether two socket addresses lead to the same file, as /run and /var/run do.
func samePath(a, b string) bool {
	a, b = strings.TrimPrefix(a, "unix://"), strings.TrimPrefix(b, "unix://")
	if a == b {
		return true
	}
	realA, errA := filepath.EvalSymlinks(a)
	realB, errB := filepath.EvalSymlinks(b)
	return errA == nil && errB == nil && realA == realB
}

// follow calls heard with the namespace of every event that may mean "an image is complete", and with "" whenever
// events may have been missed, until ctx ends.
func (i *imageWatch) follow(ctx context.Context, heard func(namespace string)) {
	for ctx.Err() == nil {
		err := i.subscribe(ctx, heard)
		log.G(ctx).WithError(err).Debug("containerd's events ended, will subscribe again")
		select {
		case <-ctx.Done():
		case <-time.After(time.Second): // a containerd that refuses is not to be asked all the time
		}
	}
}

func (i *imageWatch) subscribe(ctx context.Context, heard func(namespace string)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// While containerd is down, waiting for it is left to the connection.
	events, err := i.events.Subscribe(ctx, &eventsapi.SubscribeRequest{Filters: []string{
		`topic=="/images/create"`,
		`topic=="/images/update"`,
		`topic=="/snapshot/commit"`,
	}}, grpc.WaitForReady(true))
	if err != nil {
		return errgrpc.ToNative(err)
	}
	heard("")
	for {
		event, err := events.Recv()
		if err != nil {
			return errgrpc.ToNative(err)
		}
		heard(event.Namespace)
	}
}
