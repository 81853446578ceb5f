package main

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var (
	convergeLine = regexp.MustCompile(`^BenchmarkConverge/instances=(\d+)(?:-\d+)?\s+\d+\s+(.*)$`)
	metric       = regexp.MustCompile(`([0-9.e+]+)\s+(\S+)`)
)

// benchScale runs the reconciler's own benchmark: the real loops on an in-memory host, in real time.
func benchScale(ctx context.Context, b *bench) error {
	only := ""
	if b.quick {
		only = "/instances=1000$"
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	cmd := command(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkConverge$"+only, "-benchtime", "1x", "-count", strconv.Itoa(max(1, min(3, b.n/7))), "-timeout", "15m", "./reconcile")
	cmd.Dir = filepath.Clean(b.repo)
	out, err := outputOf(cmd)
	if err != nil {
		return err
	}
	results, sizes := parseConverge(out)
	if len(sizes) == 0 {
		return fmt.Errorf("no result in:\n%s", out)
	}
	b.note("20 instances an environment, 3 components; head moved in every environment at once, then in one; in-memory host and ledger")
	smallest := results[sizes[0]]
	for _, n := range sizes {
		r := results[n]
		b.row(fmt.Sprintf("%s instances in %d environments, from nothing", number(float64(n)), n/20), r["s/from-nothing"].rate("s"), "", 0, linear(smallest, r, "s/from-nothing", n, sizes[0]))
		b.row("  one environment changed", fmt.Sprintf("%s ms", number(r["s/one-change"].p50()*1000)), "", 0, target{})
		b.row("  all environments changed", r["s/all-change"].rate("s"), "", 0, linear(smallest, r, "s/all-change", n, sizes[0]))
		b.row("  live heap", r["MB"].rate("MB"), "", 0, linear(smallest, r, "MB", n, sizes[0]))
	}
	return nil
}

// linear holds the cost of an instance against that at the smallest size: it may not grow by more than a third.
func linear(smallest, now map[string]sample, what string, n, of int) target {
	if n == of {
		return target{}
	}
	growth := now[what].p50() / float64(n) / (smallest[what].p50() / float64(of))
	return target{fmt.Sprintf("%.2f × of the smallest an instance, ≤ 1.33 ×", growth), growth <= 1.33}
}

// parseConverge reads the benchmark's lines: by number of instances, the values of each metric.
func parseConverge(out string) (map[int]map[string]sample, []int) {
	results := map[int]map[string]sample{}
	var sizes []int
	for line := range strings.Lines(out) {
		m := convergeLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		n, _ := strconv.Atoi(m[1])
		if results[n] == nil {
			results[n] = map[string]sample{}
			sizes = append(sizes, n)
		}
		for _, f := range metric.FindAllStringSubmatch(m[2], -1) {
			value, _ := strconv.ParseFloat(f[1], 64)
			results[n][f[2]] = append(results[n][f[2]], value)
		}
	}
	return results, sizes
}
