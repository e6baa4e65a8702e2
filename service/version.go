// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"fmt"

	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// containerdClient is the Containerd at the other end of a connection.
type containerdClient struct {
	*ContentSource
	version versionapi.VersionClient
}

// Version implements Containerd. It is asked every time: containerd may be upgraded while this process goes on.
func (c containerdClient) Version(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	reply, err := c.version.Version(ctx, &emptypb.Empty{})
	if err != nil {
		return "", fmt.Errorf("ask containerd for its version: %w", errgrpc.ToNative(err))
	}
	return reply.Version, nil
}
