package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/spec"
)

func (a *app) driftCommand() *cobra.Command {
	var open bool
	var since string
	c := &cobra.Command{
		Use:   "drift [ENV]",
		Short: "Show what was found to differ from its release, and what came of it",
		Long: `Drift lists what was measured and differed: in ENV, or in every environment that you may read and on the machine beside them. The
newest comes last, with what differs, what follows by the environment's rule (on_drift), how it was resolved, and the entries of
the ledger. It exits with 2 when something is not resolved.

To measure now: invar verify ENV.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			from, err := parseSince(since, time.Now())
			if err != nil {
				return err
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			list, err := cl.Drifts(c.Context(), strings.Join(args, ""), open, from)
			if err != nil {
				return err
			}
			if a.output == "json" {
				err = a.json(api.Drifts{Drifts: list})
			} else {
				err = a.renderDrifts(list)
			}
			if err == nil && unresolved(list) > 0 {
				return exit(ExitDiffers, nil)
			}
			return err
		},
	}
	c.Flags().BoolVar(&open, "open", false, "only what is not resolved")
	c.Flags().StringVar(&since, "since", "", "only what was open since then: 24h, 2026-11-25, or a time as in RFC 3339")
	return c
}

// parseSince reads how long ago, or a time; "" is the zero time.
func parseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	d, err := spec.ParseDuration(text)
	if err != nil {
		return time.Time{}, fault.WithHint(fault.Errorf(fault.Invalid, "--since %q: neither a duration nor a time", text), "write it as 24h, 2026-11-25 or 2026-11-25T10:00:00Z")
	}
	return now.Add(-d), nil
}

func unresolved(list []api.Drift) int {
	n := 0
	for _, d := range list {
		if d.Resolved == nil {
			n++
		}
	}
	return n
}

func (a *app) renderDrifts(list []api.Drift) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(a.Stdout, "nothing differed")
		return err
	}
	var rows [][]string
	for _, d := range list {
		entries := make([]string, 0, len(d.Entries)+1)
		for _, n := range d.Entries {
			entries = append(entries, fmt.Sprint(n))
		}
		if d.Frozen > 0 {
			entries = append(entries, fmt.Sprint(d.Frozen))
		}
		how := "OPEN"
		if r := d.Resolved; r != nil {
			how = r.How + " after " + r.At.Sub(d.At).Round(time.Millisecond).String()
			if len(r.Successors) > 0 {
				how += " by " + strings.Join(r.Successors, ", ")
			}
			entries = append(entries, fmt.Sprint(r.Entry))
		}
		rows = append(rows, []string{d.At.UTC().Format(time.RFC3339), orDash(d.Env), orDash(d.Instance), strings.Join(d.Causes, "; "), d.Response, how, strings.Join(entries, ",")})
	}
	return table(a.Stdout, "TIME ENVIRONMENT INSTANCE DIFFERS RESPONSE RESOLVED ENTRIES", rows)
}
