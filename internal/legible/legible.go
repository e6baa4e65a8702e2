// SPDX-License-Identifier: Apache-2.0

// Package legible writes for people what programs and images say: names that may hold anything, amounts, commands.
// What it returns has only characters that can be seen, so that nothing from an image can steer a terminal or a page.
package legible

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Name returns text as it is if all of it can be seen, and quoted with escapes otherwise: control characters, marks
// that change the direction of writing, bytes that are not UTF-8.
func Name(text string) string {
	hidden := func(r rune) bool { return !unicode.IsPrint(r) }
	if !utf8.ValidString(text) || strings.ContainsFunc(text, hidden) {
		return strconv.Quote(text)
	}
	return text
}

// Size returns a number of bytes: three digits or so, and decimal units as disks have them.
func Size(bytes uint64) string {
	if bytes < 1000 {
		return fmt.Sprintf("%d B", bytes)
	}
	value, unit := float64(bytes), -1
	for value >= 999.95 {
		value /= 1000
		unit++
	}
	return fmt.Sprintf("%.1f %cB", value, "kMGTPE"[unit])
}

// SignedSize is Size for what may be less than nothing.
func SignedSize(bytes int64) string {
	if bytes < 0 {
		return "-" + Size(-uint64(bytes))
	}
	return Size(uint64(bytes))
}

// Plural returns "1 thing" or "n things", "1 entry" or "n entries".
func Plural(n uint64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	if stem, ok := strings.CutSuffix(thing, "ry"); ok {
		return fmt.Sprintf("%d %sries", n, stem)
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// Percent writes a share of a whole; "-" if there is no whole.
func Percent(part, whole float64) string {
	if whole <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*part/whole)
}

// digestLength shows as much of a digest as a person needs to find it again.
const digestLength = len("sha256:") + 12

// Digest shortens a digest.
func Digest(digest string) string {
	return Name(digest[:min(len(digest), digestLength)])
}

// Command returns an instruction of a Dockerfile as its author wrote it, in one line, from an image's history.
func Command(createdBy string) string {
	text := strings.Join(strings.Fields(createdBy), " ")
	text = strings.TrimSuffix(text, " # buildkit")
	if shell, ok := strings.CutPrefix(text, "/bin/sh -c "); ok {
		if nop, ok := strings.CutPrefix(shell, "#(nop) "); ok {
			return Name(strings.TrimSpace(nop))
		}
		text = "RUN " + shell
	}
	text = strings.Replace(text, "RUN /bin/sh -c ", "RUN ", 1)
	return Name(text)
}
