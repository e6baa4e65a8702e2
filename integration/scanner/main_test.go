// SPDX-License-Identifier: Apache-2.0

// Package scanner tests that squash hides nothing from those who scan images: a scanner finds in the root file system
// that containers see what it finds in the layers of the registry. It is apart from the other tests with containerd
// because the scanner is a library of many hundred packages, which would make them build more slowly.
package scanner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/squash-snapshotter/squash/integration/binaries"
	"github.com/squash-snapshotter/squash/integration/images"
	"github.com/squash-snapshotter/squash/integration/node"
)

// shared is what all tests use: programs, blobs, a registry and a node.
var shared struct {
	guest    []byte
	store    *images.Store
	registry *images.Registry
	node     *node.Node
	remove   func() error
}

func TestMain(m *testing.M) {
	node.Reap()
	if err := setUp(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "set-up:", errors.Join(err, tearDown()))
		os.Exit(1)
	}
	code := m.Run()
	if code != 0 {
		fmt.Fprintln(os.Stderr, shared.node.Logs(40))
	}
	if err := tearDown(); err != nil {
		fmt.Fprintln(os.Stderr, "tear-down:", err)
		code = 1
	}
	os.Exit(code)
}

func setUp(ctx context.Context) error {
	if os.Getuid() != 0 {
		return errors.New("these tests mount: they need root")
	}
	programs, err := binaries.Build(ctx, func(string) {})
	if err != nil {
		return err
	}
	dir, remove, err := node.TempDir()
	if err != nil {
		return err
	}
	shared.remove = remove
	if err := programs.BuildDaemon(ctx, dir); err != nil {
		return err
	}
	if shared.guest, err = os.ReadFile(programs.Guest); err != nil {
		return err
	}
	if shared.store, err = images.OpenStore(filepath.Join(programs.Repo, "bin", "images")); err != nil {
		return err
	}
	if shared.registry, err = shared.store.Serve(); err != nil {
		return err
	}
	shared.node, err = node.Start(ctx, node.Options{Tools: programs.Tools, Daemon: programs.Daemon})
	return err
}

func tearDown() error {
	var errs []error
	if shared.node != nil {
		errs = append(errs, shared.node.Close())
	}
	if shared.registry != nil {
		errs = append(errs, shared.registry.Close())
	}
	if shared.remove != nil {
		errs = append(errs, shared.remove())
	}
	return errors.Join(errs...)
}
