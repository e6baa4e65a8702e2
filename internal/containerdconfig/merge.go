// SPDX-License-Identifier: Apache-2.0

// Package containerdconfig tells what a configuration of containerd lacks for squash, and adds it.
//
//	config.toml, what it imports ─┐                      ┌─▶ what is missing, why, the lines
//	Want                         ─┴─▶ find ─▶ edit, check ┴─▶ config.toml with it
//
// It reads and writes no files. All that was in a file stays as it is, byte for byte, and so do comments and order; what
// cannot be added that way is told to the operator instead. Every edit is read again before it counts.
package containerdconfig

import (
	"bytes"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
)

// File is one file of a configuration.
type File struct {
	Name string
	Text []byte
}

// Want is what the configuration is for.
type Want struct {
	Address string // of the daemon's socket
	Root    string // of the daemon
	// Containerd is its version, as it says it. Empty: not known, which is an error unless the file tells enough.
	Containerd string
	// Kubernetes is to have its images in squash.
	Kubernetes bool
}

// Item is one thing that is missing.
type Item struct {
	// Key is its place, such as "proxy_plugins.squash".
	Key string
	Why string
	// Lines are what is missing, as they would stand in a file.
	Lines string
	// ByHand says why Plan.Text does not have it; empty if it does.
	ByHand string
	// Advice: squash works without it.
	Advice bool
}

// Plan is what is to be done to a configuration.
type Plan struct {
	Items []Item
	// Text is that of the main file with all items that could be added.
	Text []byte
	// Snapshotter is the name of squash's proxy plugin, Differ that of its differ; empty: containerd is too old for it.
	Snapshotter, Differ string
}

// Merge looks for what a configuration lacks. imports are the files that main imports, in the order in which containerd reads
// them: what they say takes precedence.
func Merge(main File, imports []File, want Want) (*Plan, error) {
	d, err := parse(main.Name, main.Text)
	if err != nil {
		return nil, err
	}
	m := &merger{main: d, want: want, name: main.Name}
	for _, f := range imports {
		i, err := parse(f.Name, f.Text)
		if err != nil {
			return nil, err
		}
		m.imports, m.names = append(m.imports, i), append(m.names, f.Name)
	}
	if err := m.settleVersions(); err != nil {
		return nil, err
	}
	plan := m.run()
	plan.Text = m.main.text
	return plan, nil
}

// Imports returns what a file imports: absolute paths, which are patterns if they have a star.
func Imports(f File) ([]string, error) {
	d, err := parse(f.Name, f.Text)
	if err != nil {
		return nil, err
	}
	list, _ := d.at("imports")
	var paths []string
	for _, path := range texts(list) {
		path = filepath.Clean(path)
		if !filepath.IsAbs(path) {
			path = filepath.Join(filepath.Dir(f.Name), path)
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// merger holds a merge while it is done.
type merger struct {
	main       *document
	name       string
	imports    []*document
	names      []string
	want       Want
	format     int     // "version" of the main file
	containerd release // that reads it
	items      []Item
}

// settleVersions finds out how the file is read.
func (m *merger) settleVersions() (err error) {
	m.format = 1
	if v, ok := m.main.at("version"); ok {
		n, ok := v.(int64)
		if !ok || n < 0 || n > newestFormat {
			return fmt.Errorf("%s: version = %v: squashctl knows the versions 1 to %d of containerd's configuration", m.name, v, newestFormat)
		}
		m.format = max(int(n), 1)
	}
	switch {
	case m.want.Containerd != "":
		m.containerd, err = parseRelease(m.want.Containerd)
		return err
	case m.format >= 3:
		m.containerd = release{2, 0, 0}
		return nil
	}
	return fmt.Errorf("%s: it is not known which version of containerd reads this file: start containerd, or have it in PATH", m.name)
}

// newestFormat of containerd's configuration is that of containerd 2.3 and later.
const newestFormat = 4

// lookup returns the value of a key as containerd sees it, and which file decides about it: its number in imports, or -1 for
// the main file, which also has what is nowhere. containerd 1.x lets an imported table of a plugin replace the whole, 2.x key by
// key; a proxy plugin is always replaced as a whole.
func (m *merger) lookup(path ...string) (value any, file int) {
	whole := path
	if path[0] == "proxy_plugins" || !m.containerd.atLeast(2, 0, 0) {
		whole = path[:min(len(path), 2)]
	}
	for file = len(m.imports) - 1; file >= 0; file-- {
		if _, ok := m.imports[file].at(whole...); ok {
			value, _ = m.imports[file].at(path...)
			return value, file
		}
	}
	value, _ = m.main.at(path...)
	return value, -1
}

// lookupAny is lookup of the first of several names of one key that is there; else the last name counts.
func (m *merger) lookupAny(names ...[]string) (value any, file int, path []string) {
	for _, path = range names {
		if value, file = m.lookup(path...); value != nil {
			break
		}
	}
	return value, file, path
}

// add notes an item and makes its edits, each of which gets the file as the ones before it left it. byHand: there is a reason
// not to. file is the one that decides, see lookup. changed is a key whose value may change.
func (m *merger) add(item Item, file int, byHand string, changed []string, edits ...func(*document) []byte) {
	item.ByHand = byHand
	if byHand == "" && file >= 0 {
		item.ByHand = m.names[file] + ", which is imported, decides about this: edit it there"
	}
	if item.ByHand == "" {
		if done := m.edited(changed, edits); done != nil {
			m.main = done
		} else {
			item.ByHand = "squashctl cannot edit the form in which " + m.name + " has " + item.Key
		}
	}
	m.items = append(m.items, item)
}

// edited returns the main file after edits, or nil if they cannot be made, or would change anything that is there.
func (m *merger) edited(changed []string, edits []func(*document) []byte) *document {
	now := m.main
	for _, edit := range edits {
		text := edit(now)
		if text == nil {
			return nil
		}
		next, err := parse(m.name, text)
		if err != nil || !keeps(now.values, next.values, changed) {
			return nil
		}
		now = next
	}
	return now
}

// keeps tells whether all values of old are in new; arrays may have more elements. The key changed may have any value.
func keeps(old, new any, changed []string) bool {
	switch old := old.(type) {
	case map[string]any:
		in, ok := new.(map[string]any)
		if !ok {
			return false
		}
		for key, value := range old {
			now, ok := in[key]
			if !ok {
				return false
			}
			var rest []string
			if len(changed) > 0 && changed[0] == key {
				if rest = changed[1:]; len(rest) == 0 {
					continue
				}
			}
			if !keeps(value, now, rest) {
				return false
			}
		}
		return true
	case []any:
		in, ok := new.([]any)
		if !ok {
			return false
		}
		for _, value := range old {
			n := 0
			for n < len(in) && !keeps(value, in[n], nil) {
				n++
			}
			if n == len(in) {
				return false
			}
			in = in[n+1:]
		}
		return true
	}
	return reflect.DeepEqual(old, new)
}

// texts are the elements of an array that are text.
func texts(list any) (all []string) {
	array, _ := list.([]any)
	for _, e := range array {
		if text, ok := e.(string); ok {
			all = append(all, text)
		}
	}
	return all
}

// IsGenerated returns the line of a file that says that some other program writes it, or "".
func IsGenerated(text []byte) string {
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if !bytes.HasPrefix(line, []byte("#")) {
			continue
		}
		if upper := strings.ToUpper(string(line)); strings.Contains(upper, "DO NOT EDIT") {
			return string(line)
		}
	}
	return ""
}
