// SPDX-License-Identifier: Apache-2.0

package reportpage

import (
	"fmt"
	"html/template"
	"strconv"
	"strings"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
	"github.com/squash-snapshotter/squash/internal/legible"
)

// page is what the template shows: text for people, and shapes.
type page struct {
	Policy string
	Style  template.CSS
	Script template.JS

	Name, Platform, Facts string
	NameParts             []string // where lines may break
	Digest, Manifest      string

	Efficiency, Distinct        string
	AsLayers, LayerCount        string
	OnDisk, OnDiskWhat          string
	Saved, SavedWhat            string
	AdviceCount, AdviceHeadline string

	Steps    []step
	Tree     *cell
	Paths    []duplicate
	Contents []duplicate
	Layers   []layerRow
	Advice   []adviceRow
}

// duplicate is a path in several layers, or a content under several paths.
type duplicate struct {
	Count, Total, Size string
	Content            string // its digest
	Digest             string // shortened
	Paths              []string
}

type layerRow struct {
	Number                       int
	Command                      string
	Blob, BlobSize, Created      string
	Files                        string
	Added, Shadowed, Again       string
	AddedBar, ShadowedBar        bar
	Needless                     string // for those who cannot see the bar
	HasShadowed, HasAgain, Empty bool
}

type adviceRow struct {
	Layer      int
	Bytes      string
	Text, Made string
}

func newPage(r *adminapi.ReportResponse) *page {
	i := r.GetImage()
	onDisk := i.GetOwnBytes() + i.GetSharedBytes()
	p := &page{
		Policy: policy, Style: template.CSS(pageCSS), Script: template.JS(pageJS),

		Name: legible.Name(i.GetName()), Platform: legible.Name(i.GetPlatform()),
		NameParts: strings.SplitAfter(legible.Name(i.GetName()), "/"),
		Facts:     facts(i),
		Digest:    legible.Name(i.GetDigest()), Manifest: legible.Name(i.GetManifest()),

		Efficiency: legible.Percent(r.GetEfficiency(), 1),
		Distinct:   legible.Size(r.GetDistinctBytes()),
		AsLayers:   legible.Size(r.GetLayerBytes()),
		LayerCount: legible.Plural(uint64(len(r.GetLayers())), "layer"),
		OnDisk:     legible.Size(onDisk),
		Saved:      legible.Percent(float64(r.GetLayerBytes())-float64(onDisk), float64(r.GetLayerBytes())),

		Steps: steps(r),
		Tree:  newCell(r.GetTree(), r.GetTree().GetBytes()+r.GetTree().GetShadowedBytes()),
	}
	p.OnDiskWhat = "all of it needed by this image alone"
	if shared := i.GetSharedBytes(); shared > 0 {
		p.OnDiskWhat = fmt.Sprintf("%s its own, %s also in other images", legible.Size(i.GetOwnBytes()), legible.Size(shared))
	}
	p.SavedWhat = "of its size as layers"
	if r.GetLayerBytes() > onDisk {
		p.SavedWhat = legible.Size(r.GetLayerBytes()-onDisk) + " less than as layers"
	}
	for _, d := range r.GetDuplicatePaths() {
		p.Paths = append(p.Paths, duplicate{
			Count: grouped(uint64(d.GetCount())), Total: legible.Size(d.GetBytes()), Paths: names([][]byte{d.GetPath()}),
		})
	}
	for _, d := range r.GetDuplicateContents() {
		p.Contents = append(p.Contents, duplicate{
			Count: grouped(uint64(d.GetCount())), Total: legible.Size(d.GetBytes()), Size: legible.Size(d.GetSize()),
			Content: legible.Name(d.GetDigest()), Digest: legible.Digest(d.GetDigest()), Paths: names(d.GetPaths()),
		})
	}
	p.Layers = layerRows(r.GetLayers())
	for _, a := range r.GetAdvice() {
		row := adviceRow{Layer: int(a.GetLayer()) + 1, Bytes: legible.Size(a.GetBytes()), Text: legible.Name(a.GetText())}
		if int(a.GetLayer()) < len(p.Layers) {
			row.Made = p.Layers[a.GetLayer()].Command
		}
		p.Advice = append(p.Advice, row)
	}
	if len(p.Advice) > 0 {
		p.AdviceCount = legible.Plural(uint64(len(p.Advice)), "thing")
		p.AdviceHeadline = p.Advice[0].Bytes
	}
	return p
}

func facts(i *adminapi.Image) string {
	text := grouped(i.GetFiles()) + " files"
	switch {
	case i.GetUnpacked() < i.GetLayers():
		text += fmt.Sprintf(" · %d of %s unpacked", i.GetUnpacked(), legible.Plural(uint64(i.GetLayers()), "layer"))
	case i.GetContainers() > 0:
		text += " · in use by " + legible.Plural(uint64(i.GetContainers()), "container")
	}
	return text
}

func layerRows(layers []*adminapi.LayerReport) []layerRow {
	var largest uint64
	for _, l := range layers {
		largest = max(largest, l.GetBytes())
	}
	var rows []layerRow
	for n, l := range layers {
		made := l.GetLayer()
		row := layerRow{
			Number:  n + 1,
			Command: legible.Command(made.GetCreatedBy()),
			Blob:    legible.Name(made.GetBlob()), BlobSize: legible.Size(made.GetBlobBytes()), Created: legible.Name(made.GetCreated()),
			Files: grouped(l.GetFiles()),
			Added: legible.Size(l.GetBytes()), Shadowed: legible.Size(l.GetShadowedBytes()), Again: legible.Size(l.GetDuplicateBytes()),
			AddedBar: barOf(0, l.GetBytes(), largest), ShadowedBar: barOf(l.GetBytes()-min(l.GetShadowedBytes(), l.GetBytes()), l.GetBytes(), largest),
			Needless:    legible.Percent(float64(l.GetShadowedBytes()), float64(l.GetBytes())),
			HasShadowed: l.GetShadowedBytes() > 0, HasAgain: l.GetDuplicateBytes() > 0, Empty: l.GetBytes() == 0,
		}
		if row.Command == "" {
			row.Command = legible.Name(made.GetComment())
		}
		rows = append(rows, row)
	}
	return rows
}

func names(paths [][]byte) []string {
	var list []string
	for _, p := range paths {
		list = append(list, legible.Name(string(p)))
	}
	return list
}

// grouped writes a count with commas between thousands.
func grouped(n uint64) string {
	text := strconv.FormatUint(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
