// SPDX-License-Identifier: Apache-2.0

package containerdconfig

import (
	"fmt"
	"slices"
	"strings"
)

// Diff shows how a text changes, as diff -u does; empty if it does not. What Merge makes is short: lines are compared each
// with each, between the first and the last that differ.
func Diff(name string, old, new []byte) string {
	if slices.Equal(old, new) {
		return ""
	}
	a, b := splitLines(old), splitLines(new)
	var out strings.Builder
	fmt.Fprintf(&out, "--- %s\n+++ %s\n", name, name)
	steps := compare(a, b)
	const context = 3
	for i := 0; i < len(steps); {
		if steps[i].kind == ' ' {
			i++
			continue
		}
		// A hunk goes on while the next change is close enough for their contexts to meet.
		first, last := i, i
		for j := i; j < len(steps) && j-last <= 2*context; j++ {
			if steps[j].kind != ' ' {
				last = j
			}
		}
		from, to := max(first-context, 0), min(last+context+1, len(steps))
		writeHunk(&out, a, b, steps[from:to])
		i = last + 1
	}
	return out.String()
}

// step is one line of a comparison: of a for '-', of b for '+', of both for ' '. a and b are the lines before it.
type step struct {
	kind byte
	a, b int
}

func compare(a, b []string) (steps []step) {
	start := 0
	for start < len(a) && start < len(b) && a[start] == b[start] {
		steps = append(steps, step{' ', start, start})
		start++
	}
	endA, endB := len(a), len(b)
	for endA > start && endB > start && a[endA-1] == b[endB-1] {
		endA, endB = endA-1, endB-1
	}
	// longest[i][j] is the number of lines that a from start+i and b from start+j have in common.
	longest := make([][]int, endA-start+1)
	for i := range longest {
		longest[i] = make([]int, endB-start+1)
	}
	for i := endA - start - 1; i >= 0; i-- {
		for j := endB - start - 1; j >= 0; j-- {
			if a[start+i] == b[start+j] {
				longest[i][j] = longest[i+1][j+1] + 1
			} else {
				longest[i][j] = max(longest[i+1][j], longest[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for start+i < endA || start+j < endB {
		at := step{' ', start + i, start + j}
		switch {
		case start+i < endA && start+j < endB && a[start+i] == b[start+j]:
			i, j = i+1, j+1
		case start+i < endA && (start+j == endB || longest[i+1][j] >= longest[i][j+1]):
			at.kind = '-'
			i++
		default:
			at.kind = '+'
			j++
		}
		steps = append(steps, at)
	}
	for ; endA < len(a); endA, endB = endA+1, endB+1 {
		steps = append(steps, step{' ', endA, endB})
	}
	return steps
}

func writeHunk(out *strings.Builder, a, b []string, steps []step) {
	old, new := 0, 0
	for _, s := range steps {
		if s.kind != '+' {
			old++
		}
		if s.kind != '-' {
			new++
		}
	}
	span := func(before, n int) string {
		if n == 0 {
			return fmt.Sprintf("%d,0", before)
		}
		return fmt.Sprintf("%d,%d", before+1, n)
	}
	fmt.Fprintf(out, "@@ -%s +%s @@\n", span(steps[0].a, old), span(steps[0].b, new))
	for _, s := range steps {
		line := ""
		if s.kind == '+' {
			line = b[s.b]
		} else {
			line = a[s.a]
		}
		out.WriteByte(s.kind)
		out.WriteString(line)
		if !strings.HasSuffix(line, "\n") {
			out.WriteString("\n\\ No newline at end of file\n")
		}
	}
}

func splitLines(text []byte) []string {
	lines := strings.SplitAfter(string(text), "\n")
	return lines[:len(lines)-1+min(1, len(lines[len(lines)-1]))]
}
