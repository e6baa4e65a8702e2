// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"
)

// progress shows how far something has come: a bar on a terminal, which other output must clear first, and a line for
// each step and each tenth of a step elsewhere. What cannot be written is left out.
type progress struct {
	w     io.Writer // nil: nothing is shown
	doing string    // such as "checking"
	shown bool      // there is a bar
	step  string    // of the last line
	tenth int       // of the last line
}

// barLength is that of a full bar.
const barLength = 40

// progressOf is the progress of a command, for people.
func progressOf(cmd *cli.Command, doing string) *progress {
	if asJSON(cmd) {
		return &progress{}
	}
	return &progress{w: cmd.Root().ErrWriter, doing: doing}
}

// report shows that done of total is done of a step; amount names either. total may be 0 if it is not known.
func (p *progress) report(step string, done, total uint64, amount func(uint64) string) {
	if p.w == nil {
		return
	}
	step = printable(step)
	share := 0.0
	text := amount(done)
	if total > 0 {
		share = min(1, float64(done)/float64(total))
		text = fmt.Sprintf("%3d %%  %s of %s", int(share*100), amount(done), amount(total))
	}
	if columns := terminalColumns(p.w); columns > 0 {
		fmt.Fprint(p.w, "\r\x1b[K", drawBar(step, text, share, columns))
		p.shown = true
		return
	}
	if tenth := int(share * 10); step != p.step || tenth != p.tenth {
		p.step, p.tenth = step, tenth
		fmt.Fprintf(p.w, "%s %s: %s\n", p.doing, step, strings.TrimSpace(text))
	}
}

// clear makes room for other output.
func (p *progress) clear() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}

// drawBar returns one line that leaves the last column free, since some terminals go on to the next line there.
func drawBar(step, text string, share float64, columns int) string {
	line := fmt.Sprintf("%-8s ", step)
	if length := min(barLength, columns-1-utf8.RuneCountInString(line+text)-3); length >= 10 {
		full := int(math.Round(share * float64(length)))
		line += "[" + strings.Repeat("#", full) + strings.Repeat("-", length-full) + "] "
	}
	runes := []rune(line + text)
	return string(runes[:min(len(runes), columns-1)])
}

// terminalColumns returns the width of the terminal behind w, 0 if it is none that a bar can be drawn on.
func terminalColumns(w io.Writer) int {
	file, ok := w.(interface{ Fd() uintptr })
	if !ok || os.Getenv("TERM") == "dumb" {
		return 0
	}
	window, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	if window.Col == 0 {
		return 80 // a terminal that does not know, such as a serial line
	}
	return int(window.Col)
}
