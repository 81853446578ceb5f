package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
)

func (a *app) verifyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "verify ENV",
		Short: "Measure what runs, and compare it with the release",
		Long: `Verify reads again what every instance of ENV runs on, from the first byte to the last, and compares its digest with
the release's. It also looks at each from outside: mounts, rights, namespaces, limits, listeners, files, and what it was
started with. It exits with 6 when an instance differs.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			m, err := cl.Measure(c.Context(), args[0])
			if err != nil {
				return err
			}
			if a.output == "json" {
				err = a.json(m)
			} else {
				err = a.renderMeasured(m)
			}
			if err == nil && !m.OK {
				return exit(ExitUntrue, fault.Errorf(fault.Corrupt, "what runs in %s is not what its release says", m.Env))
			}
			return err
		},
	}
}

func (a *app) renderMeasured(m api.Measured) error {
	var rows [][]string
	for _, i := range m.Instances {
		result := "as released"
		switch {
		case i.Detail != "":
			result = "NOT MEASURED: " + i.Detail
		case i.Found != i.Expected:
			result = "DIFFERS: found " + i.Found.Short()
		case !i.OK:
			result = "DIFFERS: " + differences(i.Findings)
		}
		rows = append(rows, []string{i.Component, i.ID, orDash(i.Expected.Short()), result})
	}
	if len(rows) == 0 {
		_, err := fmt.Fprintf(a.Stdout, "nothing runs in %s\n", m.Env)
		return err
	}
	return table(a.Stdout, "COMPONENT INSTANCE ROOT RESULT", rows)
}

// differences says how an instance differs, on one line.
func differences(findings []api.Finding) string {
	var parts []string
	for _, f := range findings {
		parts = append(parts, instance.Finding{Kind: f.Kind, Field: f.Field, Expected: f.Expected, Found: f.Found}.String())
	}
	return strings.Join(parts, "; ")
}
