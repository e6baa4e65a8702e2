// SPDX-License-Identifier: Apache-2.0

package containerdconfig

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Names of plugins of containerd.
const (
	transferPlugin = "io.containerd.transfer.v1.local"
	diffPlugin     = "io.containerd.service.v1.diff-service"
	criPlugin      = "io.containerd.grpc.v1.cri"
	imagesPlugin   = "io.containerd.cri.v1.images"
)

// run looks for everything that is wanted, in the order in which it is to stand in an empty file.
func (m *merger) run() *Plan {
	m.version()
	plan := &Plan{Snapshotter: m.proxy("snapshot", "squash", "containerd finds squash as a snapshotter", m.snapshotterKeys())}
	if m.containerd.atLeast(1, 7, 6) {
		plan.Differ = m.proxy("diff", "squash-diff", "layers go straight into squash's store, in one pass", nil)
		m.diffService(plan.Differ)
		// containerd 1.7 knows plugins of a file of version 1 by half of their names, and this half is ambiguous.
		if m.containerd.atLeast(2, 0, 0) || m.format > 1 {
			m.unpackConfig(plan.Snapshotter, plan.Differ)
		}
	}
	if m.containerd.atLeast(2, 2, 0) {
		m.unpacks()
	}
	if m.want.Kubernetes {
		m.kubernetes(plan.Snapshotter)
	}
	plan.Items = m.items
	return plan
}

// version is for an empty file alone: in another one, plugins are called as its version has it.
func (m *merger) version() {
	if len(m.main.values) > 0 {
		return
	}
	m.format = 2
	if m.containerd.atLeast(2, 0, 0) {
		m.format = 3
	}
	line := fmt.Sprintf("version = %d\n", m.format)
	m.add(Item{Key: "version", Why: "names of plugins are those of this version of the file", Lines: line}, -1, "", nil,
		func(d *document) []byte { return d.insertLines(len(d.text), line) })
}

// proxyKey is a key of a proxy plugin beside type and address.
type proxyKey struct {
	path  []string
	value string // of a text, or the element that an array must have
	array bool
	why   string
}

func (m *merger) snapshotterKeys() (keys []proxyKey) {
	if m.containerd.atLeast(2, 0, 0) {
		keys = append(keys, proxyKey{[]string{"capabilities"}, "rebase", true, "layers may be unpacked side by side (containerd 2.2 and later)"})
	}
	if m.containerd.atLeast(1, 7, 6) {
		keys = append(keys, proxyKey{[]string{"exports", "root"}, m.want.Root, false, "Kubernetes' kubelet watches the free space of this file system"})
	}
	return keys
}

func (k proxyKey) literal() string {
	if k.array {
		return "[" + quote(k.value) + "]"
	}
	return quote(k.value)
}

// proxy wants a proxy plugin that leads to the daemon, and returns its name. One that does so under another name will do.
func (m *merger) proxy(kind, name, why string, keys []proxyKey) string {
	name = m.proxyName(kind, name)
	path := []string{"proxy_plugins", name}
	known, file := m.lookup(path...)
	if known == nil {
		lines := header(path) + "  type = " + quote(kind) + "\n  address = " + quote(m.want.Address) + "\n"
		var tables string
		for _, k := range keys {
			line := quoteKey(k.path[len(k.path)-1]) + " = " + k.literal() + "\n"
			if len(k.path) == 1 {
				lines += "  " + line
			} else {
				tables += "  " + header(append(slices.Clone(path), k.path[:len(k.path)-1]...)) + "    " + line
			}
		}
		lines += tables
		m.add(Item{Key: joinKeys(path), Why: why, Lines: lines}, file, "", nil, func(d *document) []byte { return d.appendLines(lines) })
		return name
	}
	for _, k := range append([]proxyKey{
		{[]string{"type"}, kind, false, "it is a plugin of this kind"},
		{[]string{"address"}, m.want.Address, false, "the daemon serves there"},
	}, keys...) {
		m.proxyKey(path, k)
	}
	return name
}

// proxyName finds the proxy plugin of a kind at the daemon's address; usual is its name if there is none.
func (m *merger) proxyName(kind, usual string) string {
	names := map[string]bool{}
	for _, d := range append([]*document{m.main}, m.imports...) {
		all, _ := d.at("proxy_plugins")
		plugins, _ := all.(map[string]any)
		for name := range plugins {
			if is, _ := m.lookup("proxy_plugins", name, "type"); is != kind {
				continue
			}
			address, _ := m.lookup("proxy_plugins", name, "address")
			if text, _ := address.(string); samePath(text, m.want.Address) {
				names[name] = true
			}
		}
	}
	if names[usual] || len(names) == 0 {
		return usual
	}
	return slices.Min(slices.Collect(maps.Keys(names)))
}

func samePath(a, b string) bool {
	return strings.TrimPrefix(a, "unix://") == strings.TrimPrefix(b, "unix://")
}

func (m *merger) proxyKey(plugin []string, k proxyKey) {
	path := append(slices.Clone(plugin), k.path...)
	value, file := m.lookup(path...)
	item := Item{Key: joinKeys(path), Why: k.why, Lines: header(path[:len(path)-1]) + "  " + quoteKey(path[len(path)-1]) + " = " + k.literal() + "\n"}
	switch text, isText := value.(string); {
	case value == nil:
		m.add(item, file, "", nil, func(d *document) []byte { return d.set(path, k.literal()) })
	case k.array && slices.Contains(texts(value), k.value),
		!k.array && (text == k.value || len(k.path) == 1 && k.path[0] == "address" && samePath(text, k.value)):
	case k.array:
		m.add(item, file, "", nil, func(d *document) []byte {
			place := d.key(path...)
			if place == nil {
				return nil
			}
			return d.insertElement(place, len(place.elements), quote(k.value))
		})
	case isText:
		m.add(item, file, fmt.Sprintf("it is %s now, and somebody may rely on that", quote(text)), nil)
	default:
		m.add(item, file, "it is no text now", nil)
	}
}

// diffService wants squash's differ to be asked first.
func (m *merger) diffService(differ string) {
	names := [][]string{{"plugins", diffPlugin, "default"}}
	if m.format == 1 {
		// containerd 1.x knows the short name alone, 2.x both.
		short := []string{"plugins", "diff-service", "default"}
		if names = append([][]string{short}, names...); !m.containerd.atLeast(2, 0, 0) {
			names = [][]string{short}
		}
	}
	value, file, path := m.lookupAny(names...)
	const walking = "walking"
	list := texts(value)
	at, before := slices.Index(list, differ), slices.Index(list, walking)
	item := Item{
		Key:   joinKeys(path),
		Why:   fmt.Sprintf("for clients that unpack images themselves; %s takes the layers of squash's snapshots alone, %q, containerd's own differ, all others", differ, walking),
		Lines: header(path[:len(path)-1]) + "  default = [" + quote(differ) + `, "` + walking + "\"]\n",
	}
	switch {
	case value == nil:
		m.add(item, file, "", nil, func(d *document) []byte { return d.set(path, "["+quote(differ)+`, "`+walking+`"]`) })
	case at < 0:
		m.add(item, file, "", nil, func(d *document) []byte { return d.insertElement(d.key(path...), max(before, 0), quote(differ)) })
	case before >= 0 && before < at:
		m.add(item, file, fmt.Sprintf("%s stands behind %q, which takes all layers", differ, walking), nil)
	}
}

// unpackConfig wants an entry for squash. containerd has a list of its own unless it is told one, so overlayfs is repeated.
func (m *merger) unpackConfig(snapshotter, differ string) {
	path := []string{"plugins", transferPlugin, "unpack_config"}
	value, file := m.lookup(path...)
	entry := func(snapshotter, differ string) string {
		return "[" + strings.TrimSuffix(header(path), "\n") + "]\n  platform = \"linux\"\n  snapshotter = " + quote(snapshotter) + "\n  differ = " + quote(differ) + "\n"
	}
	item := Item{
		Key:   joinKeys(path),
		Why:   "for pulls by containerd itself: ctr image pull, Kubernetes since containerd 2.1",
		Lines: entry(snapshotter, differ),
	}
	if !m.containerd.atLeast(2, 0, 0) {
		item.Why = "for ctr image pull --local=false"
	}
	if value == nil {
		item.Lines = entry("overlayfs", "walking") + item.Lines
		item.Why += "; this list replaces containerd's own, so overlayfs is repeated"
	}
	list, isList := value.([]any)
	for _, e := range list {
		e, _ := e.(map[string]any)
		if e["snapshotter"] != snapshotter {
			continue
		}
		if e["differ"] != differ {
			m.add(item, file, fmt.Sprintf("the entry of %s has another differ: write differ = %s there", snapshotter, quote(differ)), nil)
		}
		return
	}
	if value != nil && !isList {
		m.add(item, file, "it is no list now", nil)
		return
	}
	m.add(item, file, "", nil, func(d *document) []byte { return d.appendLines(item.Lines) })
}

// unpacks advises to unpack several layers at once, unless somebody has decided about it.
func (m *merger) unpacks() {
	path := []string{"plugins", transferPlugin, "max_concurrent_unpacks"}
	if value, file := m.lookup(path...); value == nil {
		m.add(Item{
			Key:    joinKeys(path),
			Why:    "pulls are faster; one layer at a time is unpacked unless it is said",
			Lines:  header(path[:len(path)-1]) + "  max_concurrent_unpacks = 3\n",
			Advice: true,
		}, file, "", nil, func(d *document) []byte { return d.set(path, "3") })
	}
}

// kubernetes wants every pod's images in squash.
func (m *merger) kubernetes(snapshotter string) {
	names := [][]string{{"plugins", criPlugin, "containerd", "snapshotter"}}
	switch m.format {
	case 1:
		names = append([][]string{{"plugins", criPlugin, "containerd", "snapshotter"}}, []string{"plugins", "cri", "containerd", "snapshotter"})
		if !m.containerd.atLeast(2, 0, 0) {
			names = names[1:]
		}
	case 2:
	default:
		names = [][]string{{"plugins", imagesPlugin, "snapshotter"}}
	}
	disabled, file := m.lookup("disabled_plugins")
	for _, plugin := range texts(disabled) {
		if slices.Contains([]string{"cri", criPlugin, imagesPlugin}, plugin) {
			m.add(Item{
				Key: "disabled_plugins", Why: "Kubernetes needs containerd's CRI plugin",
				Lines: "# without " + quote(plugin) + "\n",
			}, file, "squashctl turns no plugins on: take it out of the list if this node runs Kubernetes", nil)
		}
	}
	value, file, path := m.lookupAny(names...)
	text, _ := value.(string)
	item := Item{
		Key: joinKeys(path), Why: "every pod's images are in squash",
		Lines: header(path[:len(path)-1]) + "  snapshotter = " + quote(snapshotter) + "\n",
	}
	switch {
	case text == snapshotter:
	case value == nil:
		m.add(item, file, "", nil, func(d *document) []byte { return d.set(path, quote(snapshotter)) })
	default:
		item.Why += fmt.Sprintf(", instead of in %s", cmp.Or(text, "containerd's default"))
		m.add(item, file, "", path, func(d *document) []byte { return d.replace(d.key(path...), quote(snapshotter)) })
	}
}
