// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/errdefs/pkg/errgrpc"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
	"github.com/squash-snapshotter/squash/internal/mounts"
	"github.com/squash-snapshotter/squash/snapshotter"
)

// Inspector is what a Backend may be as well: one that tells what it found the kernel to be able to at its start.
type Inspector interface {
	Capabilities() (caps mounts.Capabilities, mode mounts.Mode, compression string)
}

var _ Inspector = (*snapshotter.Snapshotter)(nil)

// self is what the daemon knows of itself.
type self struct {
	config     Config
	version    string
	containerd func(context.Context) (string, error) // its version
}

// Inspect tells about the daemon and what it found on this machine. A containerd that does not answer is no error.
func (a *adminServer) Inspect(ctx context.Context, _ *adminapi.InspectRequest) (*adminapi.InspectResponse, error) {
	cfg := a.self.config
	reply := &adminapi.InspectResponse{
		Version:           a.self.version,
		Pid:               uint64(os.Getpid()),
		Address:           valid(a.plugins.address),
		Root:              valid(cfg.Root),
		State:             valid(cfg.State),
		ContainerdAddress: valid(cfg.ContainerdAddress),
		Mount:             cfg.Mount,
		Compression:       cfg.Compression,
	}
	if inspector, ok := a.backend.(Inspector); ok {
		caps, mode, compression := inspector.Capabilities()
		reply.Mount, reply.Compression, reply.Capabilities = string(mode), compression, capabilityMessages(caps)
	}
	// containerd decompresses gzip with the first of them that is there.
	for _, name := range []string{"igzip", "unpigz"} {
		if path, err := exec.LookPath(name); err == nil {
			reply.Decompressor = valid(path)
			break
		}
	}
	var err error
	if reply.ContainerdVersion, err = a.self.containerd(ctx); err == nil {
		reply.Plugins, err = a.plugins.leadingHere(ctx)
	}
	if err != nil {
		reply.ContainerdError = valid(err.Error())
	}
	return reply, nil
}

func capabilityMessages(caps mounts.Capabilities) []*adminapi.Capability {
	var all []*adminapi.Capability
	for _, c := range caps.All() {
		all = append(all, &adminapi.Capability{Name: c.Name, Present: c.Present, Detail: valid(c.Reason)})
	}
	return all
}

// leadingHere are the plugins of containerd that lead to this daemon.
func (i *imageWatch) leadingHere(ctx context.Context) (plugins []*adminapi.Plugin, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	reply, err := i.plugins.Plugins(ctx, &introspectionapi.PluginsRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containerd's plugins: %w", errgrpc.ToNative(err))
	}
	for _, p := range reply.Plugins {
		address, ok := p.Exports["address"]
		if !ok || !samePath(address, i.address) {
			continue
		}
		capabilities := slices.Clone(p.Capabilities)
		for n := range capabilities {
			capabilities[n] = valid(capabilities[n])
		}
		plugins = append(plugins, &adminapi.Plugin{
			Type:         valid(p.Type),
			Id:           valid(p.ID),
			Error:        valid(p.InitErr.GetMessage()),
			Capabilities: capabilities,
			Root:         valid(p.Exports["root"]),
		})
	}
	return plugins, nil
}
