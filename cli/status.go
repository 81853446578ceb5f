package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/attest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/release"
)

func (a *app) client() (*client.Client, error) {
	return client.New(a.server, client.Options{Credentials: a.bearer, Version: a.Version})
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status [ENV]",
		Short: "Show environments, or one environment's instances",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return a.statusAll(c.Context(), cl)
			}
			env, err := cl.Environment(c.Context(), args[0])
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(env)
			}
			renderEnvironment(a.Stdout, a.outStyle(), env)
			return nil
		},
	}
}

func (a *app) statusAll(ctx context.Context, cl *client.Client) error {
	list, err := cl.Environments(ctx)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.json(list)
	}
	if len(list) == 0 {
		fmt.Fprintln(a.Stdout, "no environments yet: invar apply ENV makes the first")
		return nil
	}
	var rows [][]string
	for _, e := range list {
		state := e.State
		if e.Tainted > 0 {
			state += fmt.Sprintf(", %d tainted", e.Tainted)
		}
		for _, n := range e.Notices {
			if n.Kind != api.NoticeChange && n.Kind != api.NoticeConfirm {
				state += ", " + n.Kind
			}
		}
		rows = append(rows, []string{e.Name, orDash(e.App), strconv.Itoa(e.Generation), state,
			fmt.Sprintf("%d/%d", e.Healthy, e.Wanted), orDash(e.Release.Short()), age(e.At) + " ago", orDash(e.By)})
	}
	defer a.warnMachine(ctx, cl)
	defer a.warnUnverified(list)
	if len(list) == 1 && list[0].Name == string(platform.Env) {
		defer fmt.Fprintln(a.Stderr, "no app runs yet: invar apply ENV brings the first")
	}
	return table(a.Stdout, "ENVIRONMENT APP GENERATION STATE HEALTHY RELEASE SINCE BY", rows)
}

// warnMachine tells what is odd on the machine beside the environments, to those who may know.
func (a *app) warnMachine(ctx context.Context, cl *client.Client) {
	open, err := cl.Drifts(ctx, "", true, time.Time{})
	if err != nil {
		return // an older server; the environments are what was asked for
	}
	for _, d := range open {
		if d.Env == "" {
			fmt.Fprintf(a.Stderr, "the machine: %s (%s, since %s ago; invar drift --open)\n", strings.Join(d.Causes, "; "), d.Response, age(d.At))
		}
	}
}

// warnUnverified tells which environments nobody measured for too long.
func (a *app) warnUnverified(list []api.EnvironmentSummary) {
	for _, e := range list {
		for _, n := range e.Notices {
			if n.Kind == api.NoticeUnverified {
				fmt.Fprintf(a.Stderr, "%s: %s\n", e.Name, n.Text)
			}
		}
	}
}

// renderEnvironment writes one environment for people.
func renderEnvironment(w io.Writer, st style, env api.Environment) {
	renderHead(w, st, env)
	renderInstances(w, env)
}

func renderHead(w io.Writer, st style, env api.Environment) {
	fmt.Fprintf(w, "%s  %s  generation %d  %s  %d/%d healthy%s\n", st.bold(env.Name), orDash(env.App), env.Generation, stateWord(st, env.State), env.Healthy, env.Wanted,
		taintedWord(st, env.Tainted))
	if env.Cause != "" {
		fmt.Fprintf(w, "  %s\n", env.Cause)
	}
	if env.Release != "" {
		fmt.Fprintf(w, "  release %s  by %s, %s ago", env.Release.Short(), orDash(env.By), age(env.At))
		if env.Reason != "" {
			fmt.Fprintf(w, ": %s", env.Reason)
		}
		fmt.Fprintln(w)
	} else {
		fmt.Fprintf(w, "  destroyed by %s, %s ago; invar rollback %s brings the last release back\n", orDash(env.By), age(env.At), env.Name)
	}
	if f := env.Fork; f != nil {
		fmt.Fprintf(w, "  %s of %s%s, owned by %s, until %s\n", forkWord(f), f.From, atGeneration(f.Generation), f.Owner, f.ExpiresAt.Local().Format(time.DateTime))
	}
	if env.OnDrift != "" {
		fmt.Fprintf(w, "  on drift: %s\n", env.OnDrift)
	}
	if v := env.Verified; v != nil {
		fmt.Fprintf(w, "  verified %s ago: %s\n", age(v.At), verifiedWord(st, *v))
	}
	for _, c := range env.Copies {
		fmt.Fprintf(w, "  copying volume %s/%s to %s: %s of %s\n", c.Component, c.Volume, c.To, size(c.Done), size(c.Total))
	}
	for _, n := range env.Notices {
		fmt.Fprintf(w, "  %s %s\n", st.warn(n.Kind+":"), n.Text)
	}
	for _, r := range env.Routes {
		to := r.Component + "." + r.Port
		if !r.Healthy {
			to += "  no healthy instance"
		}
		if r.Trouble != "" {
			to += "  " + r.Trouble
		}
		fmt.Fprintf(w, "  %s  → %s\n", r.URL, to)
	}
}

// verifiedWord is what a measurement found.
func verifiedWord(st style, v api.Verified) string {
	of := fmt.Sprintf("of %d instances (entry %d)", v.Instances, v.Entry)
	switch v.Result {
	case attest.AsReleased:
		return fmt.Sprintf("%s, all %s", st.good("as released"), of)
	case attest.NotMeasured:
		return fmt.Sprintf("%s, %d %s", st.warn("not measured"), v.Bad, of)
	}
	return fmt.Sprintf("%s, %d %s", st.bad("differs"), v.Bad, of)
}

// forkWord is what a fork is called.
func forkWord(f *api.Fork) string {
	if f.Generation == 0 {
		return "preview"
	}
	return "fork"
}

func atGeneration(n int) string {
	if n == 0 {
		return ""
	}
	return "@" + strconv.Itoa(n)
}

// renderInstances writes a line for each instance. Its name begins with its component's.
func renderInstances(w io.Writer, env api.Environment) {
	rows := instanceRows(env)
	if len(rows) == 0 {
		return
	}
	fmt.Fprintln(w)
	table(w, "INSTANCE VERSION GENERATION STATE HEALTH TRAFFIC AGE", rows)
	for _, i := range env.Instances {
		if i.Detail != "" && i.Phase != "gone" {
			fmt.Fprintf(w, "  %s: %s\n", i.ID, i.Detail)
		}
		if i.Tainted != nil && i.Phase != "gone" {
			fmt.Fprintf(w, "  %s: tainted %s ago: %s%s\n", i.ID, age(i.Tainted.Since), i.Tainted.Cause, untilWord(i.Tainted))
		}
	}
}

// renderVersions writes a line for each version of each component.
func renderVersions(w io.Writer, env api.Environment) {
	var rows [][]string
	for _, c := range env.Components {
		for _, v := range c.Versions {
			rows = append(rows, []string{c.Name, v.Digest.Short(), fmt.Sprintf("%d/%d", v.Healthy, max(v.Wanted, v.Total)),
				strconv.Itoa(v.Percent) + "%", v.Trouble})
		}
	}
	fmt.Fprintln(w)
	table(w, "COMPONENT VERSION HEALTHY TRAFFIC TROUBLE", rows)
}

func instanceRows(env api.Environment) [][]string {
	percent := map[string]int{}
	for _, c := range env.Components {
		for _, v := range c.Versions {
			percent[c.Name+string(v.Digest)] = v.Percent
		}
	}
	var rows [][]string
	for _, i := range env.Instances {
		if i.Phase == "gone" {
			continue
		}
		rows = append(rows, []string{i.ID, i.Digest.Short(), strconv.Itoa(i.Generation), instanceState(i), i.Health,
			trafficOf(i, percent[i.Component+string(i.Digest)]), seconds(time.Duration(i.AgeSeconds) * time.Second)})
	}
	return rows
}

// taintedWord tells of tainted instances, where there are any.
func taintedWord(st style, n int) string {
	if n == 0 {
		return ""
	}
	return "  " + st.bad(fmt.Sprintf("%d tainted", n))
}

// untilWord tells when a tainted instance is replaced, where that is not at once.
func untilWord(t *api.Taint) string {
	if t.Until == nil || !t.Until.After(time.Now()) {
		return "; it is being replaced"
	}
	return fmt.Sprintf("; replaced in %s at the latest", seconds(time.Until(*t.Until)))
}

// trafficOf is what the instance has of the traffic: its version's share, which its healthy instances have among them.
func trafficOf(i api.Instance, percent int) string {
	switch {
	case i.Phase == "retiring":
		return "draining"
	case percent == 0 && !i.Head:
		return "warm"
	case percent > 0 && i.Health != "passing":
		return "none"
	}
	return strconv.Itoa(percent) + "%"
}

// instanceState is what the host sees of the instance, unless the ledger knows better what becomes of it.
func instanceState(i api.Instance) string {
	state := i.State
	if i.Phase == "retiring" && i.State != "exited" {
		state = i.Phase
	}
	if i.Tainted != nil {
		state += ", tainted"
	}
	return state
}

func stateWord(st style, s string) string {
	switch s {
	case api.Completed:
		return st.good(s)
	case api.Failed:
		return st.bad(s)
	}
	return st.warn(s)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func age(t time.Time) string { return seconds(time.Since(t)) }

// seconds writes a duration in one unit, as people say it.
func seconds(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return strconv.Itoa(int(d.Seconds())) + "s"
	case d < 2*time.Hour:
		return strconv.Itoa(int(d.Minutes())) + "m"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d.Hours())) + "h"
	}
	return strconv.Itoa(int(d.Hours()/24)) + "d"
}

func (a *app) historyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "history ENV",
		Short: "Show the releases that an environment ran, newest first",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			h, err := cl.History(c.Context(), args[0])
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(h)
			}
			var rows [][]string
			for _, g := range h {
				why := g.Reason
				if g.Cause != "" {
					why = strings.TrimPrefix(why+"; "+g.Cause, "; ")
				}
				if g.Emergency {
					why = strings.TrimSuffix("emergency: "+why, ": ")
				}
				if g.Of != 0 {
					why = strings.TrimSuffix(fmt.Sprintf("change %d: %s", g.Of, why), ": ")
				}
				rows = append(rows, []string{strconv.Itoa(g.Number), g.Kind, g.Outcome, orDash(g.Release.Short()),
					g.At.Local().Format(time.DateTime), g.By, why})
			}
			return table(a.Stdout, "GENERATION KIND OUTCOME RELEASE AT BY REASON", rows)
		},
	}
}

func (a *app) showCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show ENV[@GENERATION]|DIGEST",
		Short: "Show a release: every component fully resolved",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			ref, err := api.ParseRef(args[0])
			if err != nil {
				return err
			}
			r, err := cl.Release(c.Context(), ref)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(r)
			}
			return renderRelease(a.Stdout, a.outStyle(), r)
		},
	}
}

func renderRelease(w io.Writer, st style, r api.Release) error {
	fmt.Fprintf(w, "%s %s  release %s\n", st.bold(r.App), st.bold(r.Env), r.Digest)
	fmt.Fprintf(w, "  bundle %s\n", r.Bundle)
	for _, h := range r.Heads {
		now := ""
		if h.Current {
			now = "  (now)"
		}
		fmt.Fprintf(w, "  head of %s@%d%s\n", h.Env, h.Generation, now)
	}
	fmt.Fprintln(w)
	if r.Env == string(platform.Env) {
		return renderDefinition(w, st, r)
	}
	var rows [][]string
	for _, c := range r.Components {
		rows = append(rows, []string{c.Name, strconv.Itoa(c.Replicas), c.Digest.Short(), c.Image.Short(), c.Root.Short()})
	}
	return table(w, "COMPONENT REPLICAS DIGEST IMAGE ROOT", rows)
}

// renderDefinition writes the platform's definition, block by block.
func renderDefinition(w io.Writer, st style, r api.Release) error {
	var rec release.Record
	if err := json.Unmarshal(r.Record, &rec); err != nil {
		return fmt.Errorf("reading release %s: %w", r.Digest, err)
	}
	for _, c := range release.Compare(release.Record{}, rec).Platform {
		fmt.Fprintf(w, "%s %s\n", c.Kind, st.bold(c.Name))
		for _, f := range c.Causes {
			value := *f.New
			if f.Diff != "" {
				value = plural(f.Added, "line")
			}
			fmt.Fprintf(w, "  %s  %s\n", f.Field, value)
		}
	}
	return nil
}

func (a *app) diffCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "diff A B",
		Short: "Show how two releases differ, down to the field and the line",
		Long: `Diff compares two releases, each named as ENV, ENV@GENERATION or a digest. It exits with 2 when they
differ.`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			ra, err := api.ParseRef(args[0])
			if err != nil {
				return err
			}
			rb, err := api.ParseRef(args[1])
			if err != nil {
				return err
			}
			d, err := cl.Diff(c.Context(), ra, rb)
			if err != nil {
				return err
			}
			if a.output == "json" {
				err = a.json(d)
			} else {
				renderDiff(a.Stdout, a.outStyle(), d)
			}
			if err == nil && d.A != d.B {
				return exit(ExitDiffers, nil)
			}
			return err
		},
	}
}

func renderDiff(w io.Writer, st style, d api.Diff) {
	if d.A == d.B {
		fmt.Fprintf(w, "both are release %s\n", d.A.Short())
		return
	}
	fmt.Fprintf(w, "%s %s\n%s %s\n\n", st.bad("-"), d.A, st.good("+"), d.B)
	if slices.ContainsFunc(d.Changes, ofPlatform) {
		for _, c := range d.Changes {
			renderChange(w, st, c)
		}
		return
	}
	last := ""
	for _, x := range d.Differences {
		if x.Component != last {
			last = x.Component
			fmt.Fprintf(w, "component %s\n", st.bold(last))
		}
		renderDifference(w, st, x)
	}
}

// ofPlatform reports whether a change is of the platform's definition.
func ofPlatform(c api.Change) bool {
	return c.Kind != "component" && c.Kind != "route" && c.Kind != "rollout"
}

func (a *app) rollbackCommand() *cobra.Command {
	var to int
	var reason string
	var yes, detach, withData bool
	var how func() (api.How, error)
	c := &cobra.Command{
		Use:   "rollback ENV",
		Short: "Move the environment back to an earlier release",
		Long: `Rollback makes a new generation with the release of an earlier one: of --to, else of the last that
completed before the head. While the old instances are warm, only the traffic switches. Configuration,
images and topology go back together, since a release holds them all; volumes keep their data.

With --with-data the volumes get what that generation left in them, from the snapshots that were taken before a change. What was written
since is not seen any more, and is kept as the old version of the volume. It shows of each volume from when its data are, asks for the
environment's name, and is refused where nothing is kept.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if withData {
				cl, err := a.client()
				if err != nil {
					return err
				}
				special, err := how()
				if err != nil {
					return err
				}
				return a.rollbackWithData(c.Context(), cl, args[0], to, yes, detach, api.RollbackRequest{To: to, Reason: reason, How: special})
			}
			if !yes {
				if err := a.confirm("Roll "+args[0]+" back?", "invar rollback "+args[0]+" --yes"); err != nil {
					return err
				}
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			special, err := how()
			if err != nil {
				return err
			}
			acc, err := cl.Rollback(c.Context(), args[0], api.RollbackRequest{To: to, Reason: reason, How: special})
			if err != nil {
				return err
			}
			return a.accepted(c.Context(), cl, acc, detach)
		},
	}
	c.Flags().IntVar(&to, "to", 0, "`GENERATION` to go back to")
	c.Flags().BoolVar(&withData, "with-data", false, "take the data of its volumes back as well; what was written since is kept, and not seen any more")
	c.Flags().StringVar(&reason, "reason", "", "why; recorded in the ledger")
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&detach, "detach", false, "do not wait for the rollout")
	how = howFlags(c, true)
	return c
}

func (a *app) destroyCommand() *cobra.Command {
	var reason string
	var yes, detach, volumes bool
	var how func() (api.How, error)
	c := &cobra.Command{
		Use:   "destroy ENV",
		Short: "Retire all that an environment runs",
		Long: `Destroy makes a new generation that runs nothing. The history stays, and "invar rollback ENV" brings the
environment back. Volumes stay as well unless --volumes is given; then their data is gone for good.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if !yes {
				question := "Retire everything in " + args[0] + "?"
				if volumes {
					question = "Retire everything in " + args[0] + " and delete its volumes for good?"
				}
				if err := a.confirm(question, "invar destroy "+args[0]+" --yes"); err != nil {
					return err
				}
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			special, err := how()
			if err != nil {
				return err
			}
			acc, err := cl.Destroy(c.Context(), args[0], api.DestroyRequest{Reason: reason, Volumes: volumes, How: special})
			if err != nil {
				return err
			}
			return a.accepted(c.Context(), cl, acc, detach)
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why; recorded in the ledger")
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&detach, "detach", false, "do not wait")
	c.Flags().BoolVar(&volumes, "volumes", false, "delete the environment's volumes as well")
	how = howFlags(c, false)
	return c
}

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	var tail int
	var id string
	c := &cobra.Command{
		Use:   "logs ENV/COMPONENT",
		Short: "Show what a component's instances wrote",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			env, component, ok := strings.Cut(args[0], "/")
			if !ok || env == "" || component == "" {
				return fault.WithHint(fault.Errorf(fault.Invalid, "%q names no component", args[0]), "invar logs ENV/COMPONENT")
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			q := client.LogsQuery{Env: env, Component: component, Instance: id, Tail: tail, Follow: follow}
			err = cl.Logs(c.Context(), q, a.Stdout)
			if follow && errors.Is(err, context.Canceled) {
				return nil // that is how following ends
			}
			return err
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on as more is written")
	c.Flags().IntVarP(&tail, "tail", "n", -1, "only the last `LINES` of each instance")
	c.Flags().StringVar(&id, "instance", "", "only the `INSTANCE`")
	return c
}
