// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"strings"
	"unicode/utf8"

	"github.com/squash-snapshotter/squash/internal/legible"
)

// table lines columns up. Those whose titles begin with a blank are aligned to the right.
type table struct {
	titles []string
	rows   [][]string
}

func newTable(titles ...string) *table { return &table{titles: titles} }

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// columnGap is between two columns.
const columnGap = "  "

// write prints the table, indented by so many blanks.
func (t *table) write(w io.Writer, indent int) error {
	widths := make([]int, len(t.titles))
	titles := make([]string, len(t.titles))
	for i, title := range t.titles {
		titles[i] = strings.TrimPrefix(title, " ")
		widths[i] = utf8.RuneCountInString(titles[i])
		for _, row := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	var b strings.Builder
	for _, row := range append([][]string{titles}, t.rows...) {
		var line strings.Builder
		line.WriteString(strings.Repeat(" ", indent))
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i > 0 {
				line.WriteString(columnGap)
			}
			if strings.HasPrefix(t.titles[i], " ") {
				line.WriteString(pad + cell)
			} else {
				line.WriteString(cell + pad)
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// percent writes a share of a whole; "-" if there is no whole.
func percent(part, whole float64) string { return legible.Percent(part, whole) }

// shorten cuts text to so many runes, dots at the end included.
func shorten(text string, runes int) string {
	if all := []rune(text); len(all) > runes {
		return string(all[:runes-1]) + "…"
	}
	return text
}

// shortDigest shows as much of a digest as a person needs to find it again.
func shortDigest(digest string) string { return legible.Digest(digest) }

// command is an instruction of a Dockerfile as its author wrote it, in one line.
func command(createdBy string) string { return legible.Command(createdBy) }
