// SPDX-License-Identifier: Apache-2.0

package service

import (
	"bytes"
	"context"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"
	"google.golang.org/grpc"
)

// fakeContainerd serves what this package asks containerd for: containerd's own content service over its own
// metadata, so namespaces, leases and filters are real, and small images, leases, introspection and events services.
type fakeContainerd struct {
	introspectionapi.UnimplementedIntrospectionServer
	eventsapi.UnimplementedEventsServer

	address string
	store   content.Store
	db      *metadata.DB
	images  images.Store
	leases  leases.Manager
	service contentapi.ContentServer

	mu          sync.Mutex
	server      *grpc.Server
	plugins     []*introspectionapi.Plugin
	subscribers map[chan *types.Envelope][]string // filters
	subscribed  chan struct{}                     // receives once for each new subscriber
	asked       map[string]int                    // calls by full method
	listed      int                               // blobs sent by List
	reads       func(*contentapi.ReadContentRequest, contentapi.Content_ReadServer) error
}

func newFakeContainerd(t *testing.T) *fakeContainerd {
	t.Helper()
	dir := t.TempDir()
	blobs, err := local.NewStore(filepath.Join(dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	bolt, err := bbolt.Open(filepath.Join(dir, "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bolt.Close() })
	db := metadata.NewDB(bolt, blobs, nil)
	if err := db.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	f := &fakeContainerd{
		address:     filepath.Join(dir, "containerd.sock"),
		store:       db.ContentStore(),
		db:          db,
		images:      metadata.NewImageStore(db),
		leases:      metadata.NewLeaseManager(db),
		plugins:     []*introspectionapi.Plugin{{Type: "io.containerd.content.v1", ID: "content", Exports: map[string]string{"root": filepath.Join(dir, "content")}}},
		subscribers: map[chan *types.Envelope][]string{},
		subscribed:  make(chan struct{}, 100),
		asked:       map[string]int{},
	}
	f.service = contentserver.New(f.store)
	f.start(t)
	t.Cleanup(f.stop)
	return f
}

func (f *fakeContainerd) start(t *testing.T) {
	t.Helper()
	l, err := net.Listen("unix", f.address)
	if err != nil {
		t.Fatal(err)
	}
	count := func(method string) {
		f.mu.Lock()
		f.asked[method]++
		f.mu.Unlock()
	}
	server := grpc.NewServer(
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			count(info.FullMethod)
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			count(info.FullMethod)
			return next(srv, ss)
		}))
	contentapi.RegisterContentServer(server, contentService{f.service, f})
	introspectionapi.RegisterIntrospectionServer(server, f)
	eventsapi.RegisterEventsServer(server, f)
	imagesapi.RegisterImagesServer(server, imageService{store: f.images})
	leasesapi.RegisterLeasesServer(server, leaseService{manager: f.leases})
	namespacesapi.RegisterNamespacesServer(server, namespaceService{db: f.db})
	containersapi.RegisterContainersServer(server, containerService{store: metadata.NewContainerStore(f.db)})
	f.mu.Lock()
	f.server = server
	f.mu.Unlock()
	go server.Serve(l)
}

// stop is a containerd that dies; start brings it back with all its data.
func (f *fakeContainerd) stop() { f.server.Stop() }

func (f *fakeContainerd) calls(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[method]
}

func (f *fakeContainerd) setPlugins(plugins ...*introspectionapi.Plugin) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.plugins = plugins
}

func (f *fakeContainerd) Plugins(_ context.Context, req *introspectionapi.PluginsRequest) (*introspectionapi.PluginsResponse, error) {
	wanted, err := filters.ParseAll(req.Filters...)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var found []*introspectionapi.Plugin
	for _, p := range f.plugins {
		if wanted.Match(filters.AdapterFunc(func(path []string) (string, bool) { return p.Type, path[0] == "type" })) {
			found = append(found, p)
		}
	}
	return &introspectionapi.PluginsResponse{Plugins: found}, nil
}

func (f *fakeContainerd) Subscribe(req *eventsapi.SubscribeRequest, stream eventsapi.Events_SubscribeServer) error {
	events := make(chan *types.Envelope, 10)
	f.mu.Lock()
	f.subscribers[events] = req.Filters
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.subscribers, events)
		f.mu.Unlock()
	}()
	f.subscribed <- struct{}{}
	for {
		select {
		case e := <-events:
			if err := stream.Send(e); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// publish sends an event to those subscribers whose filters take it.
func (f *fakeContainerd) publish(t *testing.T, namespace, topic string) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for events, wanted := range maps.All(f.subscribers) {
		filter, err := filters.ParseAll(wanted...)
		if err != nil {
			t.Fatal(err)
		}
		if filter.Match(filters.AdapterFunc(func(path []string) (string, bool) { return topic, slices.Equal(path, []string{"topic"}) })) {
			events <- &types.Envelope{Namespace: namespace, Topic: topic}
		}
	}
}

// write stores a blob in a namespace.
func (f *fakeContainerd) write(t *testing.T, namespace string, data []byte, labels map[string]string) ocispec.Descriptor {
	t.Helper()
	ctx := namespaces.WithNamespace(t.Context(), namespace)
	desc := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := content.WriteBlob(ctx, f.store, desc.Digest.String(), bytes.NewReader(data), desc, content.WithLabels(labels)); err != nil {
		t.Fatal(err)
	}
	return desc
}

// contentService is containerd's, with an eye on List and a way to have Read fail.
type contentService struct {
	contentapi.ContentServer
	f *fakeContainerd
}

func (c contentService) List(req *contentapi.ListContentRequest, stream contentapi.Content_ListServer) error {
	return c.ContentServer.List(req, countingList{stream, c.f})
}

func (c contentService) Read(req *contentapi.ReadContentRequest, stream contentapi.Content_ReadServer) error {
	if c.f.reads != nil {
		return c.f.reads(req, stream)
	}
	return c.ContentServer.Read(req, stream)
}

// imageService serves what is asked of containerd's own image store.
type imageService struct {
	imagesapi.UnimplementedImagesServer
	store images.Store
}

func (s imageService) List(ctx context.Context, req *imagesapi.ListImagesRequest) (*imagesapi.ListImagesResponse, error) {
	list, err := s.store.List(ctx, req.Filters...)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	reply := &imagesapi.ListImagesResponse{}
	for _, image := range list {
		reply.Images = append(reply.Images, imageMessage(image))
	}
	return reply, nil
}

func (s imageService) Get(ctx context.Context, req *imagesapi.GetImageRequest) (*imagesapi.GetImageResponse, error) {
	image, err := s.store.Get(ctx, req.Name)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &imagesapi.GetImageResponse{Image: imageMessage(image)}, nil
}

func imageMessage(image images.Image) *imagesapi.Image {
	target := &types.Descriptor{MediaType: image.Target.MediaType, Digest: image.Target.Digest.String(), Size: image.Target.Size}
	return &imagesapi.Image{Name: image.Name, Target: target}
}

// namespaceService serves what is asked of containerd's own namespaces.
type namespaceService struct {
	namespacesapi.UnimplementedNamespacesServer
	db *metadata.DB
}

func (s namespaceService) List(ctx context.Context, _ *namespacesapi.ListNamespacesRequest) (*namespacesapi.ListNamespacesResponse, error) {
	reply := &namespacesapi.ListNamespacesResponse{}
	err := s.db.View(func(tx *bbolt.Tx) error {
		names, err := metadata.NewNamespaceStore(tx).List(ctx)
		for _, name := range names {
			reply.Namespaces = append(reply.Namespaces, &namespacesapi.Namespace{Name: name})
		}
		return err
	})
	return reply, errgrpc.ToGRPC(err)
}

// containerService serves what is asked of containerd's own container store.
type containerService struct {
	containersapi.UnimplementedContainersServer
	store containers.Store
}

func (s containerService) List(ctx context.Context, req *containersapi.ListContainersRequest) (*containersapi.ListContainersResponse, error) {
	list, err := s.store.List(ctx, req.Filters...)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	reply := &containersapi.ListContainersResponse{}
	for _, c := range list {
		reply.Containers = append(reply.Containers, &containersapi.Container{ID: c.ID, Image: c.Image, Snapshotter: c.Snapshotter})
	}
	return reply, nil
}

// leaseService serves what is asked of containerd's own leases.
type leaseService struct {
	leasesapi.UnimplementedLeasesServer
	manager leases.Manager
}

func (s leaseService) Create(ctx context.Context, req *leasesapi.CreateRequest) (*leasesapi.CreateResponse, error) {
	lease, err := s.manager.Create(ctx, func(l *leases.Lease) error {
		l.ID, l.Labels = req.ID, req.Labels
		return nil
	})
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &leasesapi.CreateResponse{Lease: &leasesapi.Lease{ID: lease.ID, Labels: lease.Labels}}, nil
}

type countingList struct {
	contentapi.Content_ListServer
	f *fakeContainerd
}

func (c countingList) Send(reply *contentapi.ListContentResponse) error {
	c.f.mu.Lock()
	c.f.listed += len(reply.Info)
	c.f.mu.Unlock()
	return c.Content_ListServer.Send(reply)
}

// dial returns a connection to the fake as the daemon makes it.
func (f *fakeContainerd) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := dialContainerd(f.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}
