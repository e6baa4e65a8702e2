// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"runtime"
	"strings"
)

// disabled are plugins that cost start-up time or touch the machine outside of the node's directory, and that
// no test here needs.
var disabled = []string{
	"io.containerd.cri.v1.images",
	"io.containerd.cri.v1.runtime",
	"io.containerd.grpc.v1.cri",
	"io.containerd.internal.v1.opt",
	"io.containerd.internal.v1.tracing",
	"io.containerd.nri.v1.nri",
	"io.containerd.podsandbox.controller.v1.podsandbox",
	"io.containerd.snapshotter.v1.blockfile",
	"io.containerd.snapshotter.v1.btrfs",
	"io.containerd.snapshotter.v1.devmapper",
	"io.containerd.snapshotter.v1.zfs",
	"io.containerd.tracing.processor.v1.otlp",
}

// containerdConfig writes the configuration that squash's documentation tells users to write, on top of private
// paths. Version 3 is read by every containerd 2.x.
//
// Each unpack_config names its differ: containerd would otherwise choose one and warn. Naming any of them
// replaces containerd's own list, so overlayfs and erofs are repeated.
func (n *Node) containerdConfig() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("version = 3")
	p("root = %q", n.containerdRoot())
	p("state = %q", n.containerdState())
	p("disabled_plugins = [%s]", quoted(disabled))
	p("[grpc]")
	p("  address = %q", n.containerdSocket())
	p("[debug]")
	p("  level = %q", n.logLevel())
	if n.opts.Unpacks > 0 {
		p("[plugins.%q]", "io.containerd.transfer.v1.local")
		p("  max_concurrent_unpacks = %d", n.opts.Unpacks)
	}
	if len(n.opts.MkfsOptions) > 0 {
		p("[plugins.%q]", "io.containerd.differ.v1.erofs")
		p("  mkfs_options = [%s]", quoted(n.opts.MkfsOptions))
	}
	if n.opts.PlainContainerd {
		return b.String()
	}
	unpack := func(platform, snapshotter, differ string, optional bool) {
		p("[[plugins.%q.unpack_config]]", "io.containerd.transfer.v1.local")
		p("  platform = %q", platform)
		p("  snapshotter = %q", snapshotter)
		p("  differ = %q", differ)
		p("  optional = %v", optional)
	}
	unpack("linux/"+runtime.GOARCH, Overlayfs, "walking", false)
	unpack("linux(+erofs)/"+runtime.GOARCH, Erofs, "erofs", true)
	if n.opts.Daemon == "" {
		return b.String()
	}
	differ := "squash-diff"
	if n.opts.SnapshotOnly {
		differ = "walking"
	}
	unpack("linux/"+runtime.GOARCH, Squash, differ, false)
	p("[proxy_plugins.squash]")
	p("  type = \"snapshot\"")
	p("  address = %q", n.daemonSocket())
	if !n.opts.SnapshotOnly {
		p("  capabilities = [\"rebase\"]")
	}
	p("  [proxy_plugins.squash.exports]")
	p("    root = %q", n.DaemonRoot())
	if !n.opts.SnapshotOnly {
		p("[proxy_plugins.squash-diff]")
		p("  type = \"diff\"")
		p("  address = %q", n.daemonSocket())
		p("[plugins.%q]", "io.containerd.service.v1.diff-service")
		p("  default = [\"squash-diff\", \"walking\"]")
	}
	return b.String()
}

func quoted(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = fmt.Sprintf("%q", s)
	}
	return strings.Join(out, ", ")
}
