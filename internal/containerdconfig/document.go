// SPDX-License-Identifier: Apache-2.0

package containerdconfig

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// document is a TOML file, with the places of its tables and keys. Tables that are written as values, { … }, have no
// place of their own: what would have to go into one is not edited.
type document struct {
	text   []byte
	values map[string]any
	tables []table
	keys   []keyValue
}

type table struct {
	path   []string
	array  bool // [[…]]
	end    int  // of the line of its last key, or of its header
	indent string
}

type keyValue struct {
	path       []string // from the top, and so with its table's
	start, end int      // of the value
	isArray    bool
	elements   []element
}

// element of an array. Those that are arrays or tables have no known place.
type element struct {
	text       string
	start, end int
}

// parse reads a file. name is for errors alone.
func parse(name string, text []byte) (*document, error) {
	d := &document{text: text, values: map[string]any{}}
	if err := toml.Unmarshal(text, &d.values); err != nil {
		if bad, ok := err.(*toml.DecodeError); ok {
			line, _ := bad.Position()
			return nil, fmt.Errorf("%s:%d: %s", name, line, strings.TrimPrefix(bad.Error(), "toml: "))
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	var p unstable.Parser
	p.Reset(text)
	for p.NextExpression() {
		switch e := p.Expression(); e.Kind {
		case unstable.Table, unstable.ArrayTable:
			path, first, last := keyPath(e)
			d.tables = append(d.tables, table{
				path: path, array: e.Kind == unstable.ArrayTable, end: d.lineEnd(last), indent: d.indentAt(first) + "  ",
			})
		case unstable.KeyValue:
			d.addKey(e)
		}
	}
	if err := p.Error(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return d, nil
}

func (d *document) addKey(e *unstable.Node) {
	path, first, last := keyPath(e)
	end := int(e.Raw.Offset + e.Raw.Length)
	start := last + bytes.IndexByte(d.text[last:end], '=') + 1
	for start < end && (d.text[start] == ' ' || d.text[start] == '\t') {
		start++
	}
	k := keyValue{path: path, start: start, end: end}
	if n := len(d.tables); n > 0 {
		t := &d.tables[n-1]
		t.end, t.indent = d.lineEnd(end), d.indentAt(first)
		k.path = append(slices.Clone(t.path), path...)
	}
	if value := e.Value(); value.Kind == unstable.Array {
		k.isArray = true
		for it := value.Children(); it.Next(); {
			n := it.Node()
			at := element{text: string(n.Data)}
			if n.Kind == unstable.String {
				at.start, at.end = int(n.Raw.Offset), int(n.Raw.Offset+n.Raw.Length)
			}
			k.elements = append(k.elements, at)
		}
	}
	d.keys = append(d.keys, k)
}

// keyPath returns the parts of a key, where the first begins and the last ends.
func keyPath(e *unstable.Node) (path []string, start, end int) {
	for it := e.Key(); it.Next(); {
		n := it.Node()
		if path == nil {
			start = int(n.Raw.Offset)
		}
		path, end = append(path, string(n.Data)), int(n.Raw.Offset+n.Raw.Length)
	}
	return path, start, end
}

// lineEnd is where the line after that of at begins.
func (d *document) lineEnd(at int) int {
	if n := bytes.IndexByte(d.text[at:], '\n'); n >= 0 {
		return at + n + 1
	}
	return len(d.text)
}

// indentAt is the white space at the beginning of the line of at.
func (d *document) indentAt(at int) string {
	line := d.text[bytes.LastIndexByte(d.text[:at], '\n')+1 : at]
	return string(line[:len(line)-len(bytes.TrimLeft(line, " \t"))])
}

// at returns the value of a key.
func (d *document) at(path ...string) (any, bool) {
	var v any = d.values
	for _, key := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		if v, ok = m[key]; !ok {
			return nil, false
		}
	}
	return v, true
}

// key returns the place of a key, or nil.
func (d *document) key(path ...string) *keyValue {
	for i := range d.keys {
		if slices.Equal(d.keys[i].path, path) {
			return &d.keys[i]
		}
	}
	return nil
}

// insert returns the text with more in it; lines of it end as those of the file.
func (d *document) insert(at int, more string) []byte {
	if bytes.Contains(d.text, []byte("\r\n")) {
		more = strings.ReplaceAll(more, "\n", "\r\n")
	}
	return slices.Concat(d.text[:at], []byte(more), d.text[at:])
}

// insertLines is insert of whole lines at the beginning of one.
func (d *document) insertLines(at int, lines string) []byte {
	if at > 0 && d.text[at-1] != '\n' {
		lines = "\n" + lines
	}
	return d.insert(at, lines)
}

// appendLines puts lines, which begin with the header of a table, at the end.
func (d *document) appendLines(lines string) []byte {
	if len(d.text) > 0 {
		lines = "\n" + lines
	}
	return d.insertLines(len(d.text), lines)
}

// set adds a key to its table, which is made if it is not there.
func (d *document) set(path []string, value string) []byte {
	in, key := path[:len(path)-1], quoteKey(path[len(path)-1])
	for _, t := range d.tables {
		if !t.array && slices.Equal(t.path, in) {
			return d.insertLines(t.end, t.indent+key+" = "+value+"\n")
		}
	}
	return d.appendLines(header(in) + "  " + key + " = " + value + "\n")
}

// insertElement puts an element before the one with number n of an array of strings, or at its end. It returns nil for
// an array that it cannot edit.
func (d *document) insertElement(k *keyValue, n int, value string) []byte {
	switch {
	case k == nil || !k.isArray:
		return nil
	case len(k.elements) == 0:
		return d.insert(k.start+1, value)
	case n < len(k.elements):
		if at := k.elements[n]; at.end > 0 {
			return d.insert(at.start, value+", ")
		}
	default:
		if last := k.elements[len(k.elements)-1]; last.end > 0 {
			return d.insert(last.end, ", "+value)
		}
	}
	return nil
}

// replace returns the text with another value of k, or nil if k is not there.
func (d *document) replace(k *keyValue, value string) []byte {
	if k == nil {
		return nil
	}
	return slices.Concat(d.text[:k.start], []byte(value), d.text[k.end:])
}

func header(path []string) string { return "[" + joinKeys(path) + "]\n" }

func joinKeys(path []string) string {
	keys := make([]string, len(path))
	for i, key := range path {
		keys[i] = quoteKey(key)
	}
	return strings.Join(keys, ".")
}

var bareKey = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func quoteKey(key string) string {
	if bareKey.MatchString(key) {
		return key
	}
	return quote(key)
}

// quote writes a TOML string. What Go escapes otherwise than TOML is no text of a path or name, and escaped as TOML has it.
func quote(text string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case strconv.IsPrint(r):
			b.WriteRune(r)
		default:
			fmt.Fprintf(&b, `\U%08X`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
