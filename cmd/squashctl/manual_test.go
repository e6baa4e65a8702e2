// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"testing"

	"github.com/squash-snapshotter/squash/internal/manual/manualtest"
)

func TestManualIsUpToDate(t *testing.T) {
	root := newCommand(io.Discard, io.Discard)
	t.Run(root.Name, func(t *testing.T) { manualtest.UpToDate(t, root.Name, root, "containerd-squash-grpc") })
	for _, c := range root.Commands {
		if !c.Hidden {
			name := root.Name + "-" + c.Name
			t.Run(name, func(t *testing.T) { manualtest.UpToDate(t, name, c, root.Name) })
		}
	}
}
