package cli

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/attest"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
)

func (a *app) verifyCommand() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "verify ENV",
		Short: "Measure what runs, and compare it with the release",
		Long: `Verify reads again what every instance of ENV runs on, from the first byte to the last, and compares its digest with
the release's. It also looks at each from outside: mounts, rights, namespaces, limits, listeners, files, and what it was
started with. Instances that the ledger says run and do not, and those that run and it does not know, differ.

The server signs what it found: an in-toto statement in a DSSE envelope, which the entry in the ledger has as its body.
--out writes it to a file, for other tools to verify with the ledger's key.

It exits with 6 when an instance differs or could not be measured.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.verify(c.Context(), args[0], out)
		},
	}
	c.Flags().StringVar(&out, "out", "", "write the signed statement to this `file`")
	return c
}

func (a *app) verify(ctx context.Context, env, out string) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	m, err := cl.Measure(ctx, env)
	if err != nil {
		return err
	}
	if got := digest.Of([]byte(m.Envelope)); got != m.Statement {
		return fault.Errorf(fault.Corrupt, "the server says that it signed statement %s, and gave %s", m.Statement, got)
	}
	if out != "" {
		if err := os.WriteFile(out, []byte(m.Envelope), 0o644); err != nil {
			return fmt.Errorf("writing the statement: %w", err)
		}
	}
	m.Envelope = "" // --out is for it
	if a.output == "json" {
		err = a.json(m)
	} else {
		err = a.renderMeasured(m)
	}
	if err == nil && !m.OK {
		return exit(ExitUntrue, notAsReleased(m))
	}
	return err
}

func notAsReleased(m api.Measured) error {
	if m.Result == attest.NotMeasured {
		return fault.Errorf(fault.Corrupt, "not all of what runs in %s could be measured", m.Env)
	}
	return fault.Errorf(fault.Corrupt, "what runs in %s is not what its release says", m.Env)
}

func (a *app) renderMeasured(m api.Measured) error {
	var rows [][]string
	for _, i := range m.Instances {
		rows = append(rows, []string{i.Component, i.ID, orDash(i.Expected.Short()), foundOf(i)})
	}
	var err error
	switch {
	case m.Detail != "":
		_, err = fmt.Fprintf(a.Stdout, "NOT MEASURED: %s\n", m.Detail)
	case len(rows) == 0:
		_, err = fmt.Fprintf(a.Stdout, "nothing runs in %s\n", m.Env)
	default:
		err = table(a.Stdout, "COMPONENT INSTANCE ROOT RESULT", rows)
	}
	if err == nil {
		_, err = fmt.Fprintf(a.Stdout, "entry %d, signed statement %s\n", m.Entry, m.Statement)
	}
	return err
}

// foundOf says what an instance was found to be, on one line.
func foundOf(i api.MeasuredInstance) string {
	switch {
	case i.OK:
		return "as released"
	case i.State == attest.Missing || i.State == attest.Unknown:
		return "DIFFERS: " + i.Detail
	case i.Found != "" && i.Found != i.Expected:
		return "DIFFERS: found " + i.Found.Short()
	case len(i.Findings) > 0 && i.More > 0:
		return fmt.Sprintf("DIFFERS: %s; and %d more", differences(i.Findings), i.More)
	case len(i.Findings) > 0:
		return "DIFFERS: " + differences(i.Findings)
	}
	return "NOT MEASURED: " + i.Detail
}

// differences says how an instance differs, on one line.
func differences(findings []api.Finding) string {
	var parts []string
	for _, f := range findings {
		parts = append(parts, instance.Finding{Kind: f.Kind, Field: f.Field, Expected: f.Expected, Found: f.Found}.String())
	}
	return strings.Join(parts, "; ")
}
