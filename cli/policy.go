package cli

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/policy"
	"github.com/invarhq/invar/policy/library"
	"github.com/invarhq/invar/spec"
)

func (a *app) policyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "policy",
		Short: "Write and test policies: Rego that says whether a change may proceed",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.policyInitCommand(), a.policyTestCommand())
	return c
}

// policyDir is the policy's directory: the argument, or "policy" in the app's directory.
func (a *app) policyDir(args []string) string {
	if len(args) > 0 {
		return args[0]
	}
	return filepath.Join(a.dir, "policy")
}

func (a *app) policyInitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "init [DIR]",
		Short: "Write the starter policy",
		Long: `Init writes rules to begin from, with their tests and settings, to DIR, or to policy in the app's directory.
It never overwrites a file.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir, written := a.policyDir(args), []string{}
			err := fs.WalkDir(library.FS(), ".", func(name string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				content, err := fs.ReadFile(library.FS(), name)
				if err != nil {
					return err
				}
				file := filepath.Join(dir, filepath.FromSlash(name))
				written = append(written, file)
				if err := writeNew(file, content); err != nil || a.output == "json" {
					return err
				}
				_, err = fmt.Fprintf(a.Stdout, "wrote %s\n", file)
				return err
			})
			if err == nil && a.output == "json" {
				return a.json(written)
			}
			return err
		},
	}
}

// policyReport is what "policy test" prints as JSON.
type policyReport struct {
	Tests    []policy.Outcome `json:"tests"`
	Decision *policy.Decision `json:"decision,omitempty"`
}

func (a *app) policyTestCommand() *cobra.Command {
	var env, input string
	c := &cobra.Command{
		Use:   "test [DIR]",
		Short: "Test a policy, and ask it about this app before anyone proposes a change",
		Long: `Test runs the tests (*_test.rego) of the policy in DIR, or in policy in the app's directory.

With --env it also builds the app, evaluates it for ENV, and decides on the release as if it were the environment's
first: the server is not asked, so the policy sees neither a release that is the head now nor SBOMs. It exits with 4
when the policy refuses. --input writes what the policy was asked about.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if input != "" && env == "" {
				return fault.Errorf(fault.Invalid, "--input is without --env")
			}
			dir := a.policyDir(args)
			files, err := readPolicy(dir)
			if err != nil {
				return err
			}
			report := policyReport{}
			if report.Tests, err = policy.Test(c.Context(), files); err != nil {
				return err
			}
			bundle, err := policy.Compile(filepath.Base(dir), files)
			if err != nil {
				return err
			}
			if env != "" {
				d, err := a.decide(c.Context(), bundle, spec.EnvName(env), input)
				if err != nil {
					return err
				}
				report.Decision = &d
			}
			return a.reportPolicy(dir, bundle, report)
		},
	}
	c.Flags().StringVar(&env, "env", "", "decide on the app's release for `ENV`, too")
	c.Flags().StringVar(&input, "input", "", "write what the policy is asked about to `FILE`")
	return c
}

func readPolicy(dir string) (policy.Files, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, fault.WithHint(fault.As(fault.NotFound, err), "invar policy init %s", dir)
	}
	return policy.ReadDir(os.DirFS(dir))
}

// decide asks a policy about the app's directory as it is now.
func (a *app) decide(ctx context.Context, b *policy.Bundle, env spec.EnvName, file string) (policy.Decision, error) {
	in, err := a.policyInput(ctx, env)
	if err != nil {
		return policy.Decision{}, err
	}
	if file != "" {
		encoded, err := policy.EncodeInput(in)
		if err != nil {
			return policy.Decision{}, err
		}
		if err := writeBeside(file, encoded); err != nil {
			return policy.Decision{}, fmt.Errorf("writing the input: %w", err)
		}
		fmt.Fprintf(a.Stderr, "wrote %s\n", file)
	}
	return b.Decide(ctx, in, nil)
}

// policyInput is what a policy would see if the app's directory were applied to an environment that has no release yet.
func (a *app) policyInput(ctx context.Context, env spec.EnvName) (policy.Input, error) {
	m, req, err := a.request(a.load)
	if err != nil {
		return policy.Input{}, err
	}
	if err := a.known(m, env); err != nil {
		return policy.Input{}, err
	}
	req.Frozen = true
	baked, err := a.bake(ctx, m, req)
	if err != nil {
		return policy.Input{}, err
	}
	made, err := a.release(ctx, env, baked, req.Store, anyPins)
	if err != nil {
		return policy.Input{}, err
	}
	plan := change.MakePlan(change.Current{}, change.Proposed{Digest: made.release, Record: made.record})
	author := a.Getenv("USER")
	if author == "" {
		author = "unknown"
	}
	return policy.Input{V: 1, Now: time.Now().UTC().Truncate(time.Millisecond), Phase: policy.PhasePlan, App: m.App(),
		Change:      policy.Change{Kind: policy.Apply, Author: policy.Author{Name: author, Kind: "local"}},
		Environment: policy.Environment{Name: env}, Plan: &plan, After: &made.record,
		Images: policy.Images(req.Images, m.Lock(), baked, nil)}, nil
}

// reportPolicy prints how tests and decision ended, and returns the exit status as an error.
func (a *app) reportPolicy(dir string, b *policy.Bundle, r policyReport) error {
	failed := 0
	for _, t := range r.Tests {
		if !t.Passed && !t.Skipped {
			failed++
		}
	}
	if a.output == "json" {
		if err := a.json(r); err != nil {
			return err
		}
	} else {
		a.renderTests(dir, r.Tests, failed)
		if r.Decision != nil {
			a.renderDecision(dir, b, *r.Decision)
		}
	}
	switch {
	case failed > 0:
		return fault.Errorf(fault.Invalid, "%s of the policy failed", plural(failed, "test"))
	case r.Decision != nil && !r.Decision.Allowed:
		return exit(ExitDenied, nil)
	}
	return nil
}

func (a *app) renderTests(dir string, tests []policy.Outcome, failed int) {
	for _, t := range tests {
		if t.Passed || t.Skipped {
			continue
		}
		fmt.Fprintf(a.Stdout, "%s %s:%d: %s\n", a.outStyle().bad("failed"), filepath.Join(dir, t.File), t.Line, t.Name)
		for _, line := range []string{t.Cause, strings.TrimRight(t.Output, "\n")} {
			if line != "" {
				fmt.Fprintf(a.Stdout, "       %s\n", strings.ReplaceAll(line, "\n", "\n       "))
			}
		}
	}
	fmt.Fprintf(a.Stdout, "%s, %d failed\n", plural(len(tests), "test"), failed)
}

func (a *app) renderDecision(dir string, b *policy.Bundle, d policy.Decision) {
	st := a.outStyle()
	for _, r := range d.Results {
		sign := st.warn(string(r.Kind))
		if r.Refuses() {
			sign = st.bad(string(r.Kind))
		}
		fmt.Fprintf(a.Stdout, "%s %s\n", sign, r.Message)
		fmt.Fprintf(a.Stdout, "     %s\n", st.dim(strings.Join(append([]string{r.Rule, inDir(dir, b.Places(r))}, r.Controls...), "  ")))
	}
	switch {
	case d.Failure != nil:
		fmt.Fprintf(a.Stdout, "%s: the policy failed (%s): %s\n", st.bad("refused"), d.Failure.Kind, d.Failure.Cause)
	case d.Allowed:
		fmt.Fprintf(a.Stdout, "%s\n", st.good("allowed"))
	default:
		fmt.Fprintf(a.Stdout, "%s by %s\n", st.bad("refused"), plural(len(d.Refusals()), "result"))
	}
}

// inDir are places in a policy's directory, as a person opens them.
func inDir(dir string, places []string) string {
	out := make([]string, len(places))
	for i, p := range places {
		out[i] = filepath.Join(dir, p)
	}
	return strings.Join(out, ", ")
}
