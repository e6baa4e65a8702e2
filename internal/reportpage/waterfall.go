// SPDX-License-Identifier: Apache-2.0

package reportpage

import (
	"fmt"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
	"github.com/squash-snapshotter/squash/internal/legible"
)

// bar is a part of a line, in thousandths of its length.
type bar struct{ From, Length string }

// barOf is from where to where a bar goes if the whole line stands for so many bytes.
func barOf(from, to, whole uint64) bar {
	if whole == 0 {
		return bar{"0", "0"}
	}
	at := func(bytes uint64) float64 { return 1000 * min(1, float64(bytes)/float64(whole)) }
	return bar{fmt.Sprintf("%.1f", at(from)), fmt.Sprintf("%.1f", at(to)-at(from))}
}

// step is one line on the way from the size as layers to that on the disk.
type step struct {
	Title, What string
	Kind        string // "sum", "wasted" by the image, "spared" by squash, or "more" than without it
	Bytes       string
	Share       string
	Files       string
	Bar         bar
}

// causes says what people call a cause, and what it is.
var causes = map[string][2]string{
	"overwritten": {"Overwritten", "in a layer, and replaced by a later one"},
	"deleted":     {"Deleted", "in a layer, and removed by a later one"},
	"duplicate":   {"Duplicate", "seen by containers under several paths"},
	"shared":      {"Shared", "on the disk for another image as well"},
	"compression": {"Compression", "less than the files’ bytes on the disk"},
}

// steps follows the bytes of the layers to the disk. Each step begins where the one before ended.
func steps(r *adminapi.ReportResponse) []step {
	whole := max(r.GetLayerBytes(), r.GetOwnBytes())
	share := func(bytes float64) string { return legible.Percent(bytes, float64(r.GetLayerBytes())) }
	list := []step{{
		Title: "In layers", What: "regular files of all layers", Kind: "sum", Bytes: legible.Size(r.GetLayerBytes()),
		Share: share(float64(r.GetLayerBytes())), Bar: barOf(0, r.GetLayerBytes(), whole),
	}}
	at := r.GetLayerBytes()
	for _, w := range r.GetWaste() {
		s := step{Title: legible.Name(w.GetCause()), Share: share(abs(w.GetBytes()))}
		if known, ok := causes[w.GetCause()]; ok {
			s.Title, s.What = known[0], known[1]
		}
		if w.GetBytes() >= 0 {
			bytes := uint64(w.GetBytes())
			next := at - min(at, bytes)
			s.Kind, s.Bytes, s.Bar = "wasted", legible.Size(bytes), barOf(next, at, whole)
			if w.GetCause() == "shared" || w.GetCause() == "compression" {
				s.Kind = "spared"
			}
			if bytes > 0 {
				s.Bytes, s.Share = "−"+s.Bytes, "−"+s.Share
			}
			at = next
		} else {
			bytes := -uint64(w.GetBytes())
			s.Kind, s.Bytes, s.Bar = "more", "+"+legible.Size(bytes), barOf(at, at+bytes, whole)
			s.Share = "+" + s.Share
			at += bytes
			if w.GetCause() == "compression" {
				s.What = "files fill whole blocks, which costs more than it saves here"
			}
		}
		if w.GetFiles() > 0 {
			s.Files = grouped(w.GetFiles())
		}
		list = append(list, s)
	}
	return append(list, step{
		Title: "On disk", What: "for this image alone", Kind: "sum", Bytes: legible.Size(r.GetOwnBytes()),
		Share: share(float64(r.GetOwnBytes())), Bar: barOf(0, r.GetOwnBytes(), whole),
	})
}

func abs(n int64) float64 {
	if n < 0 {
		return -float64(n)
	}
	return float64(n)
}
