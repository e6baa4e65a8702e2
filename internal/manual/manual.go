// SPDX-License-Identifier: Apache-2.0

// Package manual writes man pages from the commands that the programs are made of, so that help and manual say the same.
package manual

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v3"
)

// Section is the one of the manual for what only root uses.
const Section = 8

// Write writes the page of a command, whose name on the page is name, such as "squashctl-df". seeAlso are other pages.
// The same command gives the same bytes.
func Write(w io.Writer, name string, cmd *cli.Command, seeAlso ...string) error {
	var p page
	p.line(".TH " + quoted(strings.ToUpper(name)) + fmt.Sprintf(" %d", Section) + ` "" "squash" "squash manual"`)
	p.line(".SH NAME")
	p.line(escape(name) + ` \- ` + escape(cmd.Usage))
	p.line(".SH SYNOPSIS")
	p.line(".B " + escape(cmd.UsageText))
	p.line(".SH DESCRIPTION")
	p.prose(cmd.Description)
	if flags := flagsOf(cmd); len(flags) > 0 {
		// Before what the description says of exit codes and examples.
		p.insertBefore([]string{".SH EXIT STATUS", ".SH EXAMPLES"}, flags)
	}
	if commands := shown(cmd.Commands); len(commands) > 0 {
		var lines []string
		lines = append(lines, ".SH COMMANDS")
		for _, c := range commands {
			lines = append(lines, ".TP", ".BR "+escape(name+"-"+c.Name)+fmt.Sprintf(" (%d)", Section), escape(c.Usage))
		}
		p.insertBefore([]string{".SH EXIT STATUS", ".SH EXAMPLES"}, lines)
	}
	if len(seeAlso) > 0 {
		p.line(".SH SEE ALSO")
		for i, other := range seeAlso {
			comma := ","
			if i == len(seeAlso)-1 {
				comma = ""
			}
			p.line(".BR " + escape(other) + fmt.Sprintf(" (%d)", Section) + comma)
		}
	}
	_, err := io.WriteString(w, `.\" Generated from the program by make man; do not edit.`+"\n"+strings.Join(p.lines, "\n")+"\n")
	return err
}

// shown are the commands that are not hidden.
func shown(commands []*cli.Command) (visible []*cli.Command) {
	for _, c := range commands {
		if !c.Hidden {
			visible = append(visible, c)
		}
	}
	return visible
}

func flagsOf(cmd *cli.Command) (lines []string) {
	for _, f := range cmd.Flags {
		doc, ok := f.(cli.DocGenerationFlag)
		if !ok {
			continue
		}
		if len(lines) == 0 {
			lines = append(lines, ".SH OPTIONS")
		}
		value, usage := placeholder(doc.GetUsage())
		var names []string
		for _, n := range f.Names() {
			dashes := "--"
			if len(n) == 1 {
				dashes = "-"
			}
			names = append(names, `\fB`+escape(dashes+n)+`\fR`)
		}
		title := strings.Join(names, ", ")
		if doc.TakesValue() {
			title += ` \fI` + escape(value) + `\fR`
		}
		text := escape(usage)
		if d := doc.GetValue(); doc.TakesValue() && doc.IsDefaultVisible() && d != "" {
			text += " (default: " + escape(d) + ")"
		}
		lines = append(lines, ".TP", title, text)
		if env := doc.GetEnvVars(); len(env) > 0 {
			lines = append(lines, "Environment: "+escape(strings.Join(env, ", ")))
		}
	}
	return lines
}

// placeholder takes the word in backquotes out of a flag's usage: the name of its value.
func placeholder(usage string) (value, text string) {
	before, rest, ok := strings.Cut(usage, "`")
	word, after, closed := strings.Cut(rest, "`")
	if !ok || !closed {
		return "VALUE", usage
	}
	return word, before + word + after
}

// page is troff, a line each.
type page struct{ lines []string }

func (p *page) line(l string) { p.lines = append(p.lines, l) }

// insertBefore puts lines before the first of the headings that is there, or at the end.
func (p *page) insertBefore(headings, lines []string) {
	for at, l := range p.lines {
		for _, h := range headings {
			if l == h {
				p.lines = append(p.lines[:at:at], append(lines, p.lines[at:]...)...)
				return
			}
		}
	}
	p.lines = append(p.lines, lines...)
}

// headings of a description, which are lines or begin one, and become those of the page.
var headings = map[string]string{"Exit codes:": ".SH EXIT STATUS", "Examples:": ".SH EXAMPLES"}

// prose writes a description: indented lines stay as they are, others are filled.
func (p *page) prose(text string) {
	asIs, blank := false, false
	end := func() {
		if asIs {
			p.line(".fi")
			p.line(".RE")
			asIs = false
		}
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \n")
		if line == "" {
			blank = true
			continue
		}
		if after, ok := p.heading(line, end); ok {
			line, blank = after, false
			if line == "" {
				continue
			}
		}
		indented := strings.HasPrefix(line, "   ")
		switch {
		case indented && !asIs:
			p.line(".RS 3")
			p.line(".nf")
			asIs = true
		case indented && blank:
			p.line(".sp")
		case !indented && (asIs || blank):
			end()
			p.line(".PP")
		}
		blank = false
		p.line(escape(strings.TrimPrefix(line, "   ")))
	}
	end()
}

// heading begins a section if the line does, and returns the rest of the line.
func (p *page) heading(line string, end func()) (rest string, ok bool) {
	for h, section := range headings {
		if rest, ok := strings.CutPrefix(line, h); ok {
			end()
			p.line(section)
			return strings.TrimSpace(rest), true
		}
	}
	return "", false
}

func quoted(text string) string { return `"` + strings.ReplaceAll(escape(text), `"`, `\(dq`) + `"` }

// escape makes text that troff prints as it is.
func escape(text string) string {
	var b strings.Builder
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		b.WriteString(`\&`)
	}
	for _, r := range text {
		switch {
		case r == '\\':
			b.WriteString(`\e`)
		case r == '-':
			b.WriteString(`\-`)
		case r == '\'':
			b.WriteString(`\(aq`)
		case r == '`':
			b.WriteString(`\(ga`)
		case r == '^':
			b.WriteString(`\(ha`)
		case r == '~':
			b.WriteString(`\(ti`)
		case r > 126:
			fmt.Fprintf(&b, `\[u%04X]`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
