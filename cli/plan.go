package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
)

func (a *app) planCommand() *cobra.Command {
	var out string
	var detailed bool
	c := &cobra.Command{
		Use:   "plan ENV",
		Short: "Show what applying the app would do",
		Long: `Plan builds the app's images, evaluates the configuration for ENV, and shows what an apply would do.
It changes nothing.

  +    starts
  -    is retired
  +/-  starts beside (or, with a volume, after) what it replaces, which is then retired

Nothing is ever modified in place, and every line has its cause. --out saves the plan: "invar apply
ENV FILE" then does exactly that, or refuses.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			p, err := a.plan(c.Context(), spec.EnvName(args[0]))
			if err != nil {
				return err
			}
			if out != "" {
				if err := savePlan(out, p); err != nil {
					return err
				}
				fmt.Fprintf(a.Stderr, "saved to %s\n", out)
			}
			if a.output == "json" {
				err = a.json(p)
			} else {
				a.renderPlan(a.Stdout, a.outStyle(), p)
			}
			if err == nil && detailed && len(p.Changes) > 0 {
				return exit(ExitDiffers, nil)
			}
			return err
		},
	}
	c.Flags().StringVar(&out, "out", "", "save the plan to `FILE`")
	c.Flags().BoolVar(&detailed, "detailed-exitcode", false, "exit with 2 when there are changes")
	return c
}

func (a *app) applyCommand() *cobra.Command {
	var yes, detach bool
	var reason, preview string
	var fork forkFlags
	var how func() (api.How, error)
	c := &cobra.Command{
		Use:   "apply ENV [PLAN]",
		Short: "Make a release of the app, and move the environment to it",
		Long: `Apply plans, asks, and moves the environment's head to the new release. New instances start beside the
old ones and take the traffic when they are healthy; the old ones stay warm for a while to go back to.
It ends when the rollout has: 0 when it completed, 3 when it failed and was reverted.

With PLAN, a file that "invar plan --out" wrote, it applies exactly that plan, and refuses it when the
environment has moved on since.

Where the platform's definition asks for approvals it proposes a change, which waits, and exits with 5:
see "invar change --help".

With --preview it leaves ENV as it is: what would be applied runs as a fork of ENV, in the environment NAME and for a
while; see "invar fork --help". Given again, it moves that fork to what the directory has then.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			ctx, env := c.Context(), args[0]
			special, err := how()
			if err != nil {
				return err
			}
			if preview != "" {
				if len(args) == 2 {
					return fault.Errorf(fault.Invalid, "a saved plan has no preview: it is for %s", env)
				}
				fork.reason, fork.detach = reason, detach
				return a.preview(ctx, spec.EnvName(env), preview, special, fork)
			}
			var p api.Plan
			if len(args) == 2 {
				p, err = loadPlan(args[1], env)
			} else {
				p, err = a.plan(ctx, spec.EnvName(env))
			}
			if err != nil {
				return err
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			return a.applyPlan(ctx, cl, p, move{yes: yes || len(args) == 2, detach: detach, reason: reason, how: special, unattended: "invar apply " + env + " --yes"})
		},
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&detach, "detach", false, "do not wait for the rollout")
	c.Flags().StringVar(&reason, "reason", "", "why; recorded in the ledger")
	c.Flags().StringVar(&preview, "preview", "", "run it as a fork of ENV in the environment `NAME` instead")
	fork.own(c, "with --preview: ")
	how = howFlags(c, true)
	return c
}

// move is how a plan is to be applied.
type move struct {
	yes, detach bool
	reason      string
	how         api.How
	unattended  string // the command that does not ask
	promoted    *api.PromotedFrom
}

// applyPlan shows a plan, asks, applies it, and follows the rollout.
func (a *app) applyPlan(ctx context.Context, cl *client.Client, p api.Plan, m move) error {
	if a.output != "json" {
		a.renderPlan(a.Stderr, a.style(), p)
	}
	if len(p.Changes) == 0 {
		return a.nothing(p)
	}
	if !m.yes {
		if err := a.confirm(fmt.Sprintf("Apply this to %s?", p.Env), m.unattended); err != nil {
			return err
		}
	}
	acc, err := cl.Apply(ctx, p.Env, api.ApplyRequest{
		Bundle: p.Bundle, Release: p.Release, BaseGeneration: p.BaseGeneration, PlanDigest: p.Digest, Reason: m.reason, How: m.how, Promoted: m.promoted,
	})
	if err != nil {
		return err
	}
	return a.accepted(ctx, cl, acc, m.detach)
}

func (a *app) nothing(p api.Plan) error {
	if a.output == "json" {
		return a.json(api.Accepted{Env: p.Env, Generation: p.BaseGeneration, Release: p.BaseRelease})
	}
	return nil
}

// confirm asks a question on the terminal. Without a terminal it refuses, and says how to go on.
func (a *app) confirm(question, unattended string) error {
	if !isTerminal(a.Stderr) || a.output == "json" {
		return fault.WithHint(fault.Errorf(fault.Invalid, "there is no terminal to ask on"), "%s", unattended)
	}
	fmt.Fprintf(a.Stderr, "%s [y/N] ", a.style().bold(question))
	line, err := bufio.NewReader(a.Stdin).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return fault.Errorf(fault.Invalid, "not confirmed: nothing was changed")
}

// savedPlan is a plan on disk. Its version is raised when an older program could misread it.
type savedPlan struct {
	V    int      `json:"invar_plan"`
	Plan api.Plan `json:"plan"`
}

const savedPlanVersion = 1

func savePlan(file string, p api.Plan) error {
	b, err := json.MarshalIndent(savedPlan{savedPlanVersion, p}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("saving the plan: %w", err)
	}
	return nil
}

func loadPlan(file, env string) (api.Plan, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return api.Plan{}, fault.As(fault.Invalid, fmt.Errorf("reading the plan: %w", err))
	}
	var s savedPlan
	if err := json.Unmarshal(b, &s); err != nil || s.V == 0 {
		return api.Plan{}, fault.WithHint(fault.Errorf(fault.Invalid, "%s is not a saved plan", file), "invar plan %s --out %s", env, file)
	}
	if s.V != savedPlanVersion {
		return api.Plan{}, fault.Errorf(fault.Invalid, "%s is a plan of format %d; this program reads format %d", file, s.V, savedPlanVersion)
	}
	if s.Plan.Env != env {
		return api.Plan{}, fault.Errorf(fault.Invalid, "%s is a plan for %s, not for %s", file, s.Plan.Env, env)
	}
	return s.Plan, nil
}

// renderPlan writes the plan for people.
func (a *app) renderPlan(w io.Writer, st style, p api.Plan) {
	if len(p.Changes)+len(p.Volumes) == 0 {
		fmt.Fprintf(w, "%s: nothing to change; generation %d already is release %s\n", p.Env, p.BaseGeneration, p.BaseRelease.Short())
		return
	}
	fmt.Fprintf(w, "%s %s  generation %d → %d  release %s\n\n", st.bold(p.App), st.bold(p.Env), p.BaseGeneration, p.BaseGeneration+1, p.Release.Short())
	for _, ch := range p.Changes {
		renderChange(w, st, ch)
	}
	renderPlanVolumes(w, st, p.Volumes, time.Now())
	if p.Env == string(platform.Env) {
		fmt.Fprintf(w, "\n%d to add (+), %d to replace (+/-), %d to remove (-).\n", p.Adds, p.Replaces, p.Removes)
	} else {
		fmt.Fprintf(w, "\n%d to start (+), %d to replace (+/-), %d to retire (-). Nothing is modified in place.\n", p.Adds, p.Replaces, p.Removes)
	}
	a.renderDecisions(w, st, p.Decisions)
	if p.Governed {
		fmt.Fprintf(w, "%s asks for approvals: applying this proposes a change that waits.\n", p.Env)
	}
}

func renderChange(w io.Writer, st style, ch api.Change) {
	fmt.Fprintf(w, "%s %s %s", action(st, ch.Action), ch.Kind, st.bold(ch.Name))
	if n := counts(ch); n != "" {
		fmt.Fprintf(w, "  %s", n)
	}
	if ch.How != "" {
		fmt.Fprintf(w, "  %s", st.dim("("+ch.How+")"))
	}
	fmt.Fprintln(w)
	for _, d := range ch.Causes {
		renderDifference(w, st, d)
	}
}

func action(st style, s string) string {
	padded := fmt.Sprintf("%-3s", s)
	switch s {
	case api.ActionAdd:
		return st.good(padded)
	case api.ActionRemove:
		return st.bad(padded)
	}
	return st.warn(padded)
}

func counts(ch api.Change) string {
	switch {
	case ch.Starts > 0 && ch.Stops > 0:
		return fmt.Sprintf("%s for %d", plural(ch.Starts, "new instance"), ch.Stops)
	case ch.Starts > 0:
		return plural(ch.Starts, "new instance")
	case ch.Stops > 0:
		return plural(ch.Stops, "instance") + " retired"
	}
	return ""
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func renderDifference(w io.Writer, st style, d api.Difference) {
	switch {
	case len(d.Lines) > 0:
		fmt.Fprintf(w, "      %s\n", d.Path)
		for _, l := range d.Lines {
			fmt.Fprintf(w, "        %s\n", diffLine(st, l))
		}
	case d.Added:
		fmt.Fprintf(w, "      %s  %s\n", d.Path, st.good("+ "+d.After))
	case d.Removed:
		fmt.Fprintf(w, "      %s  %s\n", d.Path, st.bad("- "+d.Before))
	case d.Before == "" && d.After == "":
		fmt.Fprintf(w, "      %s\n", d.Path)
	default:
		fmt.Fprintf(w, "      %s  %s → %s\n", d.Path, shortVersion(d, d.Before), shortVersion(d, d.After))
	}
}

// shortVersion shortens the digest that names a version of a secret.
func shortVersion(d api.Difference, text string) string {
	if !strings.HasPrefix(d.Path, "secret ") || !strings.HasSuffix(d.Path, " version") {
		return text
	}
	return digest.Digest(strings.Trim(text, `"`)).Short()
}

func diffLine(st style, l string) string {
	switch {
	case strings.HasPrefix(l, "+"):
		return st.good(l)
	case strings.HasPrefix(l, "-"):
		return st.bad(l)
	}
	return st.dim(l)
}
