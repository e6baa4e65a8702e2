// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"testing"

	"github.com/squash-snapshotter/squash/internal/manual/manualtest"
)

func TestManualIsUpToDate(t *testing.T) {
	cmd := newCommand(nil, io.Discard, io.Discard)
	manualtest.UpToDate(t, cmd.Name, cmd, "squashctl")
}
