// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
)

// contentLabel begins the labels by which a manifest keeps its blobs from being collected; their values are digests.
const contentLabel = "containerd.io/gc.ref.content"

// Kept returns the blobs of ctx's namespace that are there and that another blob, such as a manifest, refers to. The
// layers of an image that was pulled to be unpacked and then dropped (CRI's discard_unpacked_layers) are there for a
// while, but nothing refers to them.
func (s *ContentSource) Kept(ctx context.Context) (map[digest.Digest]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	list, err := s.contents.List(ctx, &contentapi.ListContentRequest{})
	if err != nil {
		return nil, fmt.Errorf("list content: %w", errgrpc.ToNative(err))
	}
	there, referred := map[digest.Digest]bool{}, map[digest.Digest]bool{}
	for {
		reply, err := list.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("list content: %w", errgrpc.ToNative(err))
		}
		for _, blob := range reply.Info {
			there[digest.Digest(blob.Digest)] = true
			for label, value := range blob.Labels {
				if strings.HasPrefix(label, contentLabel) {
					referred[digest.Digest(value)] = true
				}
			}
		}
	}
	for d := range there {
		if !referred[d] {
			delete(there, d)
		}
	}
	return there, nil
}
