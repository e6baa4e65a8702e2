// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"fmt"
	"image/color"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// plotted are the metrics that say most.
var plotted = []string{"pull", "pull CPU", "disk", "second disk", "first start", "cold walk", "cold read", "warm read", "rm"}

// palette has colours that people with colour blindness can tell apart.
var palette = []color.RGBA{
	{0, 0, 0, 255}, {120, 120, 120, 255}, {230, 159, 0, 255}, {240, 200, 110, 255},
	{86, 180, 233, 255}, {0, 114, 178, 255}, {0, 158, 115, 255}, {213, 94, 0, 255}, {204, 121, 167, 255},
}

// Plots writes an SVG for each image to dir: medians of each setup, in per cent of the first.
func (r *Results) Plots(dir string) error {
	for _, subject := range r.Subjects {
		setups := r.measured(subject)
		if len(setups) == 0 {
			continue
		}
		names := slices.DeleteFunc(slices.Clone(plotted), func(m string) bool {
			base := r.values(subject, setups[0], m)
			return len(base) == 0 || Median(base) == 0
		})
		p := plot.New()
		p.Title.Text = fmt.Sprintf("%s: medians of %d, %% of %s, less is better", subject, len(r.Samples[Key(subject, setups[0])]), setups[0])
		p.Y.Min = 0
		size := vg.Points(90 * float64(len(names)))
		// Text is right of its colour: how wide it is depends on the reader's fonts.
		p.Legend.Top, p.Legend.Left, p.Legend.XOffs = true, true, size-vg.Points(220)
		p.X.Max = float64(len(names)) - 0.4
		p.NominalX(names...)
		width := vg.Points(60 / float64(len(setups)))
		for i, s := range setups {
			values := make(plotter.Values, len(names))
			for j, m := range names {
				if list := r.values(subject, s, m); len(list) > 0 {
					values[j] = 100 * Median(list) / Median(r.values(subject, setups[0], m))
				}
			}
			bars, err := plotter.NewBarChart(values, width)
			if err != nil {
				return fmt.Errorf("plot %s: %w", s, err)
			}
			bars.Color, bars.LineStyle.Width = palette[i%len(palette)], 0
			bars.Offset = width * vg.Length(float64(i)-float64(len(setups)-1)/2)
			p.Add(bars)
			p.Legend.Add(s, bars)
		}
		p.Y.Max *= 1.25 // room for the legend
		if err := p.Save(size, vg.Points(360), filepath.Join(dir, subject+".svg")); err != nil {
			return fmt.Errorf("plot: %w", err)
		}
	}
	return nil
}
