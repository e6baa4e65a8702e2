// SPDX-License-Identifier: Apache-2.0

// Package reportpage owns the page that shows a report in a browser: one file
// that needs nothing else, not even a network.
//
//	ReportResponse ──Write──▶ HTML with its style, its script and its data
//
// Names come from images. They get into the page as text or as JSON, escaped by
// html/template, and a policy in the page lets the browser run and load nothing
// but what is written here.
package reportpage

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"strings"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
)

var (
	//go:embed page.html
	markup string
	//go:embed page.css
	css string
	//go:embed page.js
	js string
)

// Words turn what a report has into text for people.
type Words struct {
	Size    func(bytes uint64) string
	Name    func(name string) string // of files and images, which may hold anything
	Command func(createdBy string) string
	Version string // of the program that writes the page
}

// directory is a node of the treemap's data. The short names are those that the
// script knows; there are up to thousands.
type directory struct {
	Name      string      `json:"n"`
	Bytes     uint64      `json:"b"`
	Files     uint64      `json:"f"`
	Duplicate uint64      `json:"d,omitempty"`
	Shadowed  uint64      `json:"s,omitempty"`
	Below     []directory `json:"c,omitempty"`
}

func (w Words) tree(d *adminapi.Directory) directory {
	node := directory{Name: w.Name(string(d.GetName())), Bytes: d.GetBytes(), Files: d.GetFiles(), Duplicate: d.GetDuplicateBytes(), Shadowed: d.GetShadowedBytes()}
	for _, c := range d.GetDirectories() {
		node.Below = append(node.Below, w.tree(c))
	}
	return node
}

// step is a row of the way from the layers to the disk.
type step struct {
	Name, About string
	Class       string // of its bar: "all", "waste", "gain" or "left"
	Bytes       int64
	Files       uint64
	At, Length  float64 // of its bar, in hundredths of the whole
}

var about = map[string]string{
	"overwritten": "replaced by a later layer",
	"deleted":     "removed by a later layer",
	"duplicate":   "the same content under several paths",
	"shared":      "on the disk for another image as well",
	"compression": "fewer bytes on the disk than in the files",
}

// steps lines the causes up so that each bar begins where the one before ends.
func steps(r *adminapi.ReportResponse) []step {
	whole := max(float64(r.LayerBytes), 1)
	all := []step{{Name: "in layers", About: "files of all layers", Class: "all", Bytes: int64(r.LayerBytes), Length: 100}}
	left := float64(r.LayerBytes)
	for _, w := range r.Waste {
		class := "waste"
		if w.Cause == "shared" || w.Cause == "compression" {
			class = "gain"
		}
		size := min(max(float64(w.Bytes), 0), left)
		left -= size
		all = append(all, step{Name: w.Cause, About: about[w.Cause], Class: class, Bytes: w.Bytes, Files: w.Files, At: 100 * left / whole, Length: 100 * size / whole})
	}
	return append(all, step{Name: "on disk", About: "of its own, on this node", Class: "left", Bytes: int64(r.OwnBytes), Length: min(100, 100*float64(r.OwnBytes)/whole)})
}

// Write writes the page.
func Write(w io.Writer, r *adminapi.ReportResponse, words Words) error {
	most := uint64(1)
	for _, l := range r.Layers {
		most = max(most, l.Bytes)
	}
	page, err := template.New("page").Funcs(template.FuncMap{
		"size": words.Size,
		"signed": func(bytes int64) string {
			if bytes < 0 {
				return "−" + words.Size(uint64(-bytes))
			}
			return words.Size(uint64(bytes))
		},
		"name":    words.Name,
		"path":    func(p []byte) string { return words.Name(string(p)) },
		"command": words.Command,
		"percent": func(part, whole uint64) string {
			return fmt.Sprintf("%.1f %%", 100*float64(part)/max(float64(whole), 1))
		},
		"bar":    func(part, whole uint64) string { return fmt.Sprintf("%.2f", 100*float64(part)/max(float64(whole), 1)) },
		"bar2":   func(v float64) string { return fmt.Sprintf("%.2f", v) },
		"next":   func(i int) int { return i + 1 },
		"number": func(i uint32) uint32 { return i + 1 },
		"paths": func(all [][]byte) string {
			var names []string
			for _, p := range all {
				names = append(names, words.Name(string(p)))
			}
			return strings.Join(names, "  ")
		},
	}).Parse(markup)
	if err != nil {
		return fmt.Errorf("page: %w", err)
	}
	i := r.GetImage()
	disk := i.GetOwnBytes() + i.GetSharedBytes()
	err = page.Execute(w, map[string]any{
		"R": r, "I": i, "Steps": steps(r), "Tree": words.tree(r.Tree), "Most": most,
		"CSS": template.CSS(css), "JS": template.JS(js), "Version": words.Version,
		"Policy":     fmt.Sprintf("default-src 'none'; style-src '%s'; script-src '%s'; base-uri 'none'; form-action 'none'", source(css), source(js)),
		"Efficiency": fmt.Sprintf("%.1f %%", 100*r.Efficiency),
		"Saved":      fmt.Sprintf("%.1f %%", 100*(1-float64(disk)/max(float64(r.LayerBytes), 1))),
		"Disk":       disk,
	})
	if err != nil {
		return fmt.Errorf("page: %w", err)
	}
	return nil
}

// source is how a policy names a text that stands in the page.
func source(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}
