// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// Results is what all runs measured.
type Results struct {
	Machine  Machine             `json:"machine"`
	Command  string              `json:"command"`
	Rounds   int                 `json:"rounds"`
	Setups   []string            `json:"setups"`
	Skipped  map[string]string   `json:"skipped"`          // setup to reason
	Failed   []string            `json:"failed,omitempty"` // runs that came to no end
	Subjects []string            `json:"images"`
	About    map[string]string   `json:"about"`   // image to what it is
	Samples  map[string][]Sample `json:"samples"` // by Key
}

// Key names the samples of a setup with an image.
func Key(subject, setup string) string { return subject + " / " + setup }

// Add keeps a sample.
func (r *Results) Add(subject, setup string, s Sample) {
	if r.Samples == nil {
		r.Samples = make(map[string][]Sample)
	}
	r.Samples[Key(subject, setup)] = append(r.Samples[Key(subject, setup)], s)
}

// metric says what the numbers of a metric are.
type metric struct {
	name, about string
	scale       float64 // what a number is divided by for people
	unit        string
	digits      int
}

const mebi = 1 << 20

var metrics = []metric{
	{"pull", "ctr image pull, content store empty, blobs in the registry's memory", 1, "s", 2},
	{"pull CPU", "CPU time of containerd, the daemon and their programs for the pull, the first starts and the work after them", 1, "s", 2},
	{"peak memory", "most that the squash daemon had resident; without one, containerd", mebi, "MiB", 0},
	{"first start", "ctr run of a program that says hello, right after the pull", 1, "s", 3},
	{"start", "the same again", 1, "s", 3},
	{"disk", "blocks below the snapshotter's root when background work is done", mebi, "MiB", 1},
	{"content store", "blocks of containerd's content store", mebi, "MiB", 1},
	{"second disk", "what a second, similar image adds to the snapshotter's root", mebi, "MiB", 1},
	{"second pull", "pull of that image", 1, "s", 2},
	{"cold walk", "lstat of every entry, caches dropped", 1, "s", 3},
	{"warm walk", "the same again", 1, "s", 3},
	{"missing names", "lstat of a missing name in every directory, after the walk", 1, "s", 4},
	{"cold read", "every file read in the order of the tree, caches dropped", 1, "s", 3},
	{"warm read", "the same again", 1, "s", 3},
	{"page cache per byte read", "growth of the page cache during the cold read by the bytes read", 1, "", 3},
	{"and 3 s later", "the same, 3 s after the end of the read", 1, "", 3},
	{"cold go", "go version, caches dropped", 1e-3, "ms", 0},
	{"warm go", "the same again", 1e-3, "ms", 1},
	{"cold node", "node --version, caches dropped", 1e-3, "ms", 0},
	{"warm node", "the same again", 1e-3, "ms", 1},
	{"cold python3", "python3 that imports json, ssl, email, http, caches dropped", 1e-3, "ms", 0},
	{"warm python3", "the same again", 1e-3, "ms", 1},
	{"cold git", "git --version, caches dropped", 1e-3, "ms", 0},
	{"warm git", "the same again", 1e-3, "ms", 1},
	{"rm", "ctr image rm --sync", 1, "s", 2},
}

// Median gives the middle of a list, or the mean of its two middles.
func Median(list []float64) float64 {
	s := slices.Sorted(slices.Values(list))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// values gives what the runs of a setup with an image measured.
func (r *Results) values(subject, setup, metric string) (list []float64) {
	for _, s := range r.Samples[Key(subject, setup)] {
		if v, ok := s[metric]; ok {
			list = append(list, v)
		}
	}
	return list
}

// measured are the setups that an image was measured with.
func (r *Results) measured(subject string) (list []string) {
	for _, s := range r.Setups {
		if len(r.Samples[Key(subject, s)]) > 0 {
			list = append(list, s)
		}
	}
	return list
}

// cell is one number with its ratio to the first setup's and the range of the runs.
func (r *Results) cell(subject, setup string, m metric) (median, ratio, spread string) {
	list := r.values(subject, setup, m.name)
	if len(list) == 0 {
		return "", "", ""
	}
	format := func(v float64) string { return fmt.Sprintf("%.*f", m.digits, v/m.scale) }
	median = format(Median(list))
	if base := r.values(subject, r.measured(subject)[0], m.name); len(base) > 0 && Median(base) != 0 {
		ratio = fmt.Sprintf("%.0f %%", 100*Median(list)/Median(base))
	}
	return median, ratio, format(slices.Min(list)) + "–" + format(slices.Max(list))
}

// Table writes medians and ratios for a terminal.
func (r *Results) Table(w io.Writer) {
	for _, subject := range r.Subjects {
		setups := r.measured(subject)
		if len(setups) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n%s: %s\nmedian of %d, and in %% of %s\n\n%-30s", subject, r.About[subject], len(r.Samples[Key(subject, setups[0])]), setups[0], "")
		for _, s := range setups {
			fmt.Fprintf(w, " %19s", strings.TrimSuffix(s, "-parallel"))
		}
		fmt.Fprintf(w, "\n%-30s", "")
		for _, s := range setups {
			parallel := ""
			if strings.HasSuffix(s, "-parallel") {
				parallel = "parallel"
			}
			fmt.Fprintf(w, " %19s", parallel)
		}
		fmt.Fprintln(w)
		for _, m := range metrics {
			if len(r.values(subject, setups[0], m.name)) == 0 {
				continue
			}
			fmt.Fprintf(w, "%-30s", strings.TrimSpace(m.name+" "+m.unit))
			for _, s := range setups {
				median, ratio, _ := r.cell(subject, s, m)
				fmt.Fprintf(w, " %11s %7s", median, ratio)
			}
			fmt.Fprintln(w)
		}
	}
	for _, s := range r.Setups {
		if why := r.Skipped[s]; why != "" {
			fmt.Fprintf(w, "\n%s was skipped: %s\n", s, why)
		}
	}
}

// Markdown writes everything: medians, ranges, ratios, and what was measured where.
func (r *Results) Markdown(w io.Writer) {
	m := r.Machine
	fmt.Fprintf(w, "# Benchmark\n\nWritten by `%s` on %s: %d CPUs (%s), %.0f GiB, Linux %s, %s; load average at the start %s.\n", r.Command, m.Date,
		m.CPUs, m.CPU, float64(m.Memory)/(1<<30), m.Kernel, m.FileSystem, m.Load)
	for _, name := range slices.Sorted(maps.Keys(m.Versions)) {
		fmt.Fprintf(w, "%s %s. ", name, m.Versions[name])
	}
	fmt.Fprintf(w, "\nEach cell has the median of the runs, the range, and the median in %% of the first column's. "+
		"Every run has a fresh node; the setups take turns.\n")
	for _, subject := range r.Subjects {
		setups := r.measured(subject)
		if len(setups) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n## %s\n\n%s. Runs: %d.\n\n![%s](%s.svg)\n\n| |", subject, r.About[subject], len(r.Samples[Key(subject, setups[0])]), subject, subject)
		for _, s := range setups {
			fmt.Fprintf(w, " %s |", s)
		}
		fmt.Fprintf(w, "\n|---|%s\n", strings.Repeat("---|", len(setups)))
		for _, m := range metrics {
			if len(r.values(subject, setups[0], m.name)) == 0 {
				continue
			}
			fmt.Fprintf(w, "| %s |", strings.TrimSuffix(m.name+", "+m.unit, ", "))
			for _, s := range setups {
				median, ratio, spread := r.cell(subject, s, m)
				fmt.Fprintf(w, " **%s** (%s) %s |", cmp.Or(median, "-"), spread, ratio)
			}
			fmt.Fprintln(w)
		}
	}
	for _, s := range r.Setups {
		if why := r.Skipped[s]; why != "" {
			fmt.Fprintf(w, "\n%s was skipped: %s\n", s, why)
		}
	}
	for _, name := range r.Failed {
		fmt.Fprintf(w, "\nA run failed and has no numbers: %s\n", name)
	}
	fmt.Fprintf(w, "\n## What the rows are\n\n")
	for _, m := range metrics {
		fmt.Fprintf(w, "* **%s**: %s\n", m.name, m.about)
	}
}
