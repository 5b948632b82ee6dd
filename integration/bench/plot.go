package main

import (
	"fmt"
	"image/color"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// met, missed and plain are the colours of the bars.
var (
	met    = color.NRGBA{R: 0x2e, G: 0x7d, B: 0x32, A: 0xff}
	missed = color.NRGBA{R: 0xc6, G: 0x28, B: 0x28, A: 0xff}
	plain  = color.NRGBA{R: 0x60, G: 0x7d, B: 0x8b, A: 0xff}
)

// plotRows draws the ratios of all rows that have one, on a logarithmic axis
// around 1, where both cost the same.
func plotRows(path string, rows []row) error {
	var with []row
	for i := len(rows) - 1; i >= 0; i-- { // the first at the top
		if rows[i].Ratio > 0 {
			with = append(with, rows[i])
		}
	}
	if len(with) == 0 {
		return nil
	}
	p := plot.New()
	p.Title.Text = "nftfw by yardstick, the median of the rounds"
	p.X.Label.Text = "ratio"
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	low, high := 0.5, 2.0
	var names []string
	for i, r := range with {
		c := plain
		if r.Met != nil {
			c = missed
			if *r.Met {
				c = met
			}
		}
		bar, err := plotter.NewLine(plotter.XYs{{X: 1, Y: float64(i)}, {X: r.Ratio, Y: float64(i)}})
		if err != nil {
			return fmt.Errorf("plot %s: %w", r.What, err)
		}
		bar.Width, bar.Color = vg.Points(9), c
		p.Add(bar)
		names = append(names, fmt.Sprintf("%s / %s: %.2f", r.What, r.Than, r.Ratio))
		low, high = math.Min(low, r.Ratio/1.5), math.Max(high, r.Ratio*1.5)
	}
	p.X.Min, p.X.Max = low, high
	p.Y.Min, p.Y.Max = -0.7, float64(len(with))-0.3
	p.NominalY(names...)
	one, err := plotter.NewLine(plotter.XYs{{X: 1, Y: -0.7}, {X: 1, Y: float64(len(with)) - 0.3}})
	if err != nil {
		return fmt.Errorf("plot: %w", err)
	}
	p.Add(one)
	return p.Save(vg.Points(900), vg.Points(60+18*float64(len(with))), path)
}
