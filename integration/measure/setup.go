// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/squash-snapshotter/squash/integration/binaries"
	"github.com/squash-snapshotter/squash/integration/node"
)

// Setup is a way to set up a node.
type Setup struct {
	Name        string
	Snapshotter string
	Options     node.Options
	Missing     string // why it cannot be had here
}

// SetupForms says what NewSetup takes.
const SetupForms = "overlayfs, native, erofs, erofs-lz4, erofs-zstd, squash, squash-COMPRESSION (the daemon's setting), " +
	"each also with -parallel behind it"

// Unpacks is how many layers a parallel setup unpacks at once.
const Unpacks = 4

// mkfsOptions of the erofs setups; "" is mkfs.erofs as it comes.
var mkfsOptions = map[string][]string{"": nil, "lz4": {"-zlz4", "-C65536"}, "zstd": {"-zzstd,level=3", "-C65536"}}

// NewSetup makes the setup that a name stands for.
func NewSetup(ctx context.Context, bin *binaries.Set, name string) (Setup, error) {
	s := Setup{Name: name, Options: node.Options{Tools: bin.Tools, Limit: 10 * time.Minute}}
	rest, parallel := strings.CutSuffix(name, "-parallel")
	if parallel {
		s.Options.Unpacks = Unpacks
	}
	snapshotter, variant, _ := strings.Cut(rest, "-")
	s.Snapshotter = snapshotter
	options, known := mkfsOptions[variant]
	switch {
	case slices.Contains([]string{node.Overlayfs, "native"}, snapshotter) && variant == "":
		return s, nil
	case snapshotter == node.Erofs && known:
		path, _, missing := Mkfs(ctx)
		s.Missing, s.Options.MkfsOptions, s.Options.Path = missing, options, filepath.Dir(path)
		return s, nil
	case snapshotter == node.Squash:
		s.Options.Daemon = bin.Daemon
		if variant != "" {
			s.Options.DaemonConfig = fmt.Sprintf("compression = %q\n", variant)
		}
		return s, nil
	}
	return s, fmt.Errorf("setup %q is not one of %s", name, SetupForms)
}

// Try starts a node and closes it. A node that does not start makes the setup one that cannot be had here.
func (s *Setup) Try(ctx context.Context) error {
	if s.Missing != "" {
		return nil
	}
	n, err := node.Start(ctx, s.Options)
	if err == nil {
		return n.Close()
	}
	if ctx.Err() != nil {
		return err
	}
	s.Missing = "a node does not start"
	for line := range strings.Lines(err.Error()) {
		if strings.Contains(line, "compression") {
			s.Missing = strings.TrimSpace(line)
			break
		}
	}
	return nil
}
