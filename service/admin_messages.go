// SPDX-License-Identifier: Apache-2.0

package service

import (
	"encoding/hex"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
	"github.com/squash-snapshotter/squash/internal/flatten"
	"github.com/squash-snapshotter/squash/internal/layer"
	"github.com/squash-snapshotter/squash/internal/report"
)

// originMessage is a path's history for the API.
func originMessage(h *flatten.PathHistory) *adminapi.PathOrigin {
	m := &adminapi.PathOrigin{Path: []byte("/" + h.Path)}
	for i := range h.Versions {
		v := &h.Versions[i]
		e := &v.Entry
		p := &adminapi.PathVersion{
			Layer: uint32(v.Layer), Fate: fateNames[v.Fate], By: uint32(v.By), Implied: v.Implied, Type: typeNames[e.Type],
			Mode: e.Mode, Uid: e.UID, Gid: e.GID, Mtime: e.Mtime, MtimeNsec: e.MtimeNsec,
		}
		switch e.Type {
		case layer.TypeReg:
			p.Size, p.Digest = uint64(e.Size), contentDigest(e)
		case layer.TypeSymlink:
			p.Target = []byte(e.Target)
		}
		if v.SameAs != "" {
			p.SameAs = []byte("/" + v.SameAs)
		}
		m.Versions = append(m.Versions, p)
	}
	return m
}

func contentDigest(e *layer.Entry) string {
	d := e.ContentDigest()
	return "sha256:" + hex.EncodeToString(d[:])
}

// reportMessage is a report for the API.
func reportMessage(r *report.Report, image *adminapi.Image, layers []*adminapi.Layer) *adminapi.ReportResponse {
	m := &adminapi.ReportResponse{
		Image:         image,
		LayerBytes:    r.LayerBytes,
		VisibleBytes:  r.VisibleBytes,
		DistinctBytes: r.DistinctBytes,
		OwnBytes:      r.OwnBytes,
		Efficiency:    r.Efficiency(),
		Tree:          directoryMessage(r.Tree),
	}
	for _, w := range []struct {
		cause string
		report.Waste
	}{{"overwritten", r.Overwritten}, {"deleted", r.Deleted}, {"duplicate", r.Duplicate}, {"shared", r.Shared}} {
		m.Waste = append(m.Waste, &adminapi.Waste{Cause: w.cause, Bytes: int64(w.Bytes), Files: w.Files})
	}
	m.Waste = append(m.Waste, &adminapi.Waste{Cause: "compression", Bytes: r.Compression})
	for _, p := range r.Paths {
		m.DuplicatePaths = append(m.DuplicatePaths, &adminapi.DuplicatePath{Path: []byte("/" + p.Path), Count: uint32(p.Count), Bytes: p.Bytes})
	}
	for _, c := range r.Contents {
		d := &adminapi.DuplicateContent{Digest: "sha256:" + hex.EncodeToString(c.Digest[:]), Size: c.Size, Count: uint32(c.Count), Bytes: c.Bytes()}
		for _, p := range c.Paths {
			d.Paths = append(d.Paths, []byte("/"+p))
		}
		m.DuplicateContents = append(m.DuplicateContents, d)
	}
	for i, l := range r.Layers {
		m.Layers = append(m.Layers, &adminapi.LayerReport{Layer: layers[i], Files: l.Files, Bytes: l.Bytes, ShadowedBytes: l.Shadowed, DuplicateBytes: l.Duplicate})
	}
	for _, a := range r.Advice {
		m.Advice = append(m.Advice, &adminapi.Advice{Layer: uint32(a.Layer), Bytes: a.Bytes, Text: a.Text})
	}
	return m
}

func directoryMessage(d *report.Directory) *adminapi.Directory {
	m := &adminapi.Directory{Name: []byte(d.Name), Bytes: d.Bytes, Files: d.Files, DuplicateBytes: d.Duplicate, ShadowedBytes: d.Shadowed}
	for _, c := range d.Directories {
		m.Directories = append(m.Directories, directoryMessage(c))
	}
	return m
}
