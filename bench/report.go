package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"text/tabwriter"
	"time"
)

// sample is what one variant took, round by round.
type sample []float64

func (s *sample) add(v float64)          { *s = append(*s, v) }
func (s *sample) took(d time.Duration)   { s.add(float64(d) / float64(time.Millisecond)) }
func (s *sample) since(began time.Time)  { s.took(time.Since(began)) }
func (s sample) p50() float64            { return s.at(0.50) }
func (s sample) p95() float64            { return s.at(0.95) }
func (s sample) ms() string              { return fmt.Sprintf("%s/%s ms", number(s.p50()), number(s.p95())) }
func (s sample) rate(unit string) string { return fmt.Sprintf("%s %s", number(s.p50()), unit) }
func (s sample) values(unit string) string {
	return fmt.Sprintf("%s/%s %s", number(s.p50()), number(s.p95()), unit)
}

// at returns the value at a quantile: of n values sorted, the one at ceil(q·n).
func (s sample) at(q float64) float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// ratios are those of the rounds: what ran one after the other had about the same machine.
func ratios(a, b sample) sample {
	var out sample
	for i := range min(len(a), len(b)) {
		out.add(a[i] / b[i])
	}
	return out
}

// number prints three significant digits, and whole numbers from 100 on.
func number(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "-"
	case a >= 1e6:
		return fmt.Sprintf("%.2fM", v/1e6)
	case a >= 1e4:
		return fmt.Sprintf("%.1fk", v/1e3)
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// row is one line of a section's table.
type row struct {
	what, ours, peer, ratio, target, verdict string
}

// target is what a row is held to; the zero target is none.
type target struct {
	text string
	met  bool
}

// atMost and atLeast hold a value against a limit.
func atMost(got, limit float64, unit string) target {
	return target{fmt.Sprintf("≤ %v%s", limit, unit), got <= limit}
}

func atLeast(got, limit float64, unit string) target {
	return target{fmt.Sprintf("≥ %v%s", limit, unit), got >= limit}
}

// row adds a line. Where ratio is 0, there is none.
func (b *bench) row(what, ours, peer string, ratio float64, t target) {
	r := row{what: what, ours: cmp.Or(ours, "-"), peer: cmp.Or(peer, "-"), ratio: "-", target: cmp.Or(t.text, "-"), verdict: "-"}
	if ratio != 0 {
		r.ratio = number(ratio) + " ×"
	}
	if t.text != "" {
		r.verdict = "NOT met"
		if t.met {
			r.verdict = "met"
		}
	}
	b.rows = append(b.rows, r)
}

// print writes the table.
func (b *bench) print() {
	if len(b.rows) == 0 {
		return
	}
	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tinvar\tpeer\tratio\ttarget\t")
	for _, r := range b.rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.what, r.ours, r.peer, r.ratio, r.target, r.verdict)
	}
	w.Flush()
}
