// SPDX-License-Identifier: Apache-2.0

package reportpage

import (
	"fmt"
	"strings"

	adminapi "github.com/squash-snapshotter/squash/api/admin/v1"
	"github.com/squash-snapshotter/squash/internal/legible"
)

// cell is a directory on the map. The page's script reads it as JSON: names are short, for there are many.
type cell struct {
	Name string `json:"n"`
	// What layers have here: what containers see and what is hidden from them. The cell's area.
	Area  uint64 `json:"a"`
	Size  string `json:"s"`
	Share string `json:"p"` // of the whole image
	Waste int    `json:"w"` // class of the colour
	What  string `json:"d"` // the numbers, for people
	// No directory, but what is in its directory beside the other cells.
	Rest bool `json:"r,omitempty"`

	Cells []*cell `json:"c,omitempty"`
}

// wasteLimits are the borders between classes of colour: shares of a cell's area that an image could do without.
var wasteLimits = []float64{0.02, 0.1, 0.25, 0.5, 0.75}

func wasteClass(share float64) int {
	for class, limit := range wasteLimits {
		if share < limit {
			return class
		}
	}
	return len(wasteLimits)
}

// newCell returns the cell of a directory, and those of all below it.
func newCell(d *adminapi.Directory, whole uint64) *cell {
	c := describe(d, whole)
	c.Name = legible.Name(string(d.GetName()))
	rest := &adminapi.Directory{Bytes: d.GetBytes(), Files: d.GetFiles(), DuplicateBytes: d.GetDuplicateBytes(), ShadowedBytes: d.GetShadowedBytes()}
	for _, sub := range d.GetDirectories() {
		if sub.GetBytes()+sub.GetShadowedBytes() == 0 {
			continue
		}
		c.Cells = append(c.Cells, newCell(sub, whole))
		rest.Bytes -= min(rest.Bytes, sub.GetBytes())
		rest.Files -= min(rest.Files, sub.GetFiles())
		rest.DuplicateBytes -= min(rest.DuplicateBytes, sub.GetDuplicateBytes())
		rest.ShadowedBytes -= min(rest.ShadowedBytes, sub.GetShadowedBytes())
	}
	if len(c.Cells) > 0 && rest.Bytes+rest.ShadowedBytes > 0 {
		last := describe(rest, whole)
		last.Name, last.Rest = "files and small directories", true
		c.Cells = append(c.Cells, last)
	}
	return c
}

// describe returns a cell with the numbers of a directory alone.
func describe(d *adminapi.Directory, whole uint64) *cell {
	area := d.GetBytes() + d.GetShadowedBytes()
	c := &cell{Area: area, Size: legible.Size(area), Share: legible.Percent(float64(area), float64(whole))}
	needless := d.GetDuplicateBytes() + d.GetShadowedBytes()
	if area > 0 {
		c.Waste = wasteClass(float64(needless) / float64(area))
	}
	parts := []string{fmt.Sprintf("containers see %s in %s", legible.Size(d.GetBytes()), files(d.GetFiles()))}
	if d.GetDuplicateBytes() > 0 {
		parts = append(parts, legible.Size(d.GetDuplicateBytes())+" of it is elsewhere in the image as well")
	}
	if d.GetShadowedBytes() > 0 {
		parts = append(parts, legible.Size(d.GetShadowedBytes())+" was overwritten or deleted")
	}
	if needless > 0 {
		parts = append(parts, legible.Percent(float64(needless), float64(area))+" wasted")
	}
	c.What = strings.Join(parts, "; ")
	return c
}

func files(n uint64) string {
	if n == 1 {
		return "1 file"
	}
	return grouped(n) + " files"
}
