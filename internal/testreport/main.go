// SPDX-License-Identifier: Apache-2.0

// Command testreport turns the output of one or more runs of "go test -json" into something to read: one line per
// package, all output of what failed, the reason of every skip, and the totals as the last line. It exits with code 1
// if anything failed, or if there was no test at all.
//
//	go test -json ./... | testreport
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

func main() {
	failed, err := report(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(1)
	}
	if failed {
		os.Exit(1)
	}
}

// event is a line of "go test -json"; see "go doc test2json".
type event struct {
	Action     string
	Package    string
	ImportPath string // instead of Package in events about building
	Test       string
	Elapsed    float64 // seconds
	Output     string
}

type test struct{ pkg, name string }

// lastWords is how many lines outside of tests are shown of a package that failed.
const lastWords = 100

type totals struct{ passed, failed, skipped int }

func (t totals) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", t.passed, t.failed, t.skipped)
}

// reporter holds what is not decided yet: the output of tests that still run, and counts of packages that do.
type reporter struct {
	out      io.Writer
	output   map[test][]string
	packages map[string]*totals
	sum      totals
}

// report copies what is worth reading from in to out and tells whether anything failed.
func report(in io.Reader, out io.Writer) (failed bool, err error) {
	r := &reporter{out: out, output: map[test][]string{}, packages: map[string]*totals{}}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil && e.Action != "" {
				r.take(e)
			} else {
				out.Write(line) // of the go command itself
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return true, err
		}
	}
	for pkg := range r.packages {
		fmt.Fprintf(out, "FAIL %s: the run ended before its tests did\n", pkg)
		r.sum.failed++
	}
	fmt.Fprintln(out, r.sum)
	return r.sum.failed > 0 || r.sum.passed == 0, nil
}

func (r *reporter) take(e event) {
	t := test{e.Package, e.Test}
	if e.Package != "" && r.packages[e.Package] == nil {
		r.packages[e.Package] = &totals{}
	}
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "output":
		r.output[t] = append(r.output[t], e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.endPackage(e)
		} else {
			r.endTest(t, e)
		}
		delete(r.output, t)
	}
}

func (r *reporter) endTest(t test, e event) {
	switch pkg := r.packages[e.Package]; e.Action {
	case "pass":
		pkg.passed++
	case "fail":
		pkg.failed++
		fmt.Fprintf(r.out, "FAIL %s %s\n%s", t.pkg, t.name, strings.Join(worthReading(r.output[t]), ""))
	case "skip":
		pkg.skipped++
		fmt.Fprintf(r.out, "SKIP %s %s\n%s", t.pkg, t.name, strings.Join(worthReading(r.output[t]), ""))
	}
}

// worthReading drops the lines that only say that a test runs, waits or ends.
func worthReading(output []string) []string {
	var kept []string
	for _, line := range output {
		if text := strings.TrimSpace(line); !strings.HasPrefix(text, "=== ") && !strings.HasPrefix(text, "--- ") {
			kept = append(kept, line)
		}
	}
	return kept
}

// unfinished reports the tests of a package that had something to say and no end: they ran into a panic, or out of
// time, and what they said last is the trace.
func (r *reporter) unfinished(pkg string, counts *totals) {
	for _, t := range slices.SortedFunc(maps.Keys(r.output), func(a, b test) int { return cmp.Compare(a.name, b.name) }) {
		if t.pkg != pkg || t.name == "" {
			continue
		}
		if last := worthReading(r.output[t]); len(last) > 0 {
			counts.failed++
			fmt.Fprintf(r.out, "FAIL %s %s, which did not end\n%s", t.pkg, t.name, strings.Join(last, ""))
		}
		delete(r.output, t)
	}
}

func (r *reporter) endPackage(e event) {
	counts := r.packages[e.Package]
	delete(r.packages, e.Package)
	word := "ok  "
	if e.Action == "fail" {
		word = "FAIL"
		r.unfinished(e.Package, counts)
		if counts.failed == 0 { // it did not build, or ended between tests
			counts.failed++
		}
		said := r.output[test{pkg: e.Package}] // by no test in particular: logs of goroutines, and the last words
		fmt.Fprint(r.out, strings.Join(said[max(0, len(said)-lastWords):], ""))
	}
	if *counts != (totals{}) {
		fmt.Fprintf(r.out, "%s %s: %v, %.1f s\n", word, e.Package, counts, e.Elapsed)
	}
	r.sum.passed += counts.passed
	r.sum.failed += counts.failed
	r.sum.skipped += counts.skipped
}
