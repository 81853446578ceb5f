package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/secret"
	"github.com/invarhq/invar/spec"
)

// serverPins asks the server for the newest versions of an environment's secrets, for an app that has secrets: another needs no leave
// to list them.
func serverPins(cl *client.Client, env spec.EnvName) pinner {
	return func(ctx context.Context, app spec.App) (release.Pins, error) {
		if !slices.ContainsFunc(app.Components, func(c spec.Component) bool { return len(c.Secrets) > 0 }) {
			return nil, nil
		}
		list, err := cl.Secrets(ctx, string(env))
		if err != nil {
			return nil, err
		}
		pins := release.Pins{}
		for _, s := range list {
			pins[s.Name] = s.Version
		}
		return pins, nil
	}
}

// anyPins gives every secret a version that there is not, for a release that is only looked at, without a server.
func anyPins(_ context.Context, app spec.App) (release.Pins, error) {
	pins := release.Pins{}
	for _, c := range app.Components {
		for _, s := range c.Secrets {
			pins[s.Name] = digest.Of([]byte(s.Name))
		}
	}
	return pins, nil
}

func (a *app) secretCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "secret",
		Short: "Manage the secrets of environments",
		Long: `A secret belongs to an environment: ENV/NAME. It has versions, which never change and whose values are never shown
again. A release pins a version; a new version is used by what is planned and applied after it.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.secretSetCommand(), a.secretListCommand(), a.secretHistoryCommand())
	return c
}

// secretSet is what the flags of "invar secret set" say.
type secretSet struct {
	file               string
	reason             string
	apply, yes, detach bool
}

func (a *app) secretSetCommand() *cobra.Command {
	var f secretSet
	c := &cobra.Command{
		Use:   "set ENV/NAME",
		Short: "Make a new version of a secret",
		Long: `Set reads a value and makes a version of it. On a terminal it asks, and shows nothing of what is typed. Else it reads standard
input, without the line end at its end, or with --from-file a file as it is. A value is never an argument: other users can
see those.

Nothing uses the new version yet. "invar apply ENV" pins it, and so does --apply, which needs no sources: it plans
the release that the environment runs again, with the newest versions, and replaces the components that get the secret.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return a.secretSet(c.Context(), args[0], f) },
	}
	c.Flags().StringVar(&f.file, "from-file", "", "take the value from `FILE`")
	c.Flags().StringVar(&f.reason, "reason", "", "why; recorded in the ledger")
	c.Flags().BoolVar(&f.apply, "apply", false, "move the environment to the new version")
	c.Flags().BoolVarP(&f.yes, "yes", "y", false, "with --apply: do not ask")
	c.Flags().BoolVar(&f.detach, "detach", false, "with --apply: do not wait for the rollout")
	return c
}

func (a *app) secretSet(ctx context.Context, name string, f secretSet) error {
	ref, err := secret.Parse(name)
	if err != nil {
		return err
	}
	if f.apply && !f.yes && !a.canAsk(f) {
		return fault.WithHint(fault.Errorf(fault.Invalid, "there is no terminal to ask on"), "invar secret set %s --apply --yes", ref)
	}
	cl, err := a.client()
	if err != nil {
		return err
	}
	value, err := a.readValue(ref, f.file)
	if err != nil {
		return err
	}
	defer clear(value)
	made, err := cl.SetSecret(ctx, string(ref.Env), ref.Name, api.SecretRequest{Value: value, Reason: f.reason})
	if err != nil {
		return err
	}
	if f.apply {
		fmt.Fprintf(a.Stderr, "%s: version %s\n", ref, made.Version.Short())
		return a.rotate(ctx, cl, ref, f)
	}
	if a.output == "json" {
		return a.json(made)
	}
	_, err = fmt.Fprintf(a.Stdout, "%s: version %s, not in use yet: invar apply %s\n", ref, made.Version.Short(), ref.Env)
	return err
}

// canAsk reports whether a question can be answered: standard input is a terminal, or not what the value is read from.
func (a *app) canAsk(f secretSet) bool {
	return isTerminal(a.Stderr) && (f.file != "" || isTerminalInput(a.Stdin))
}

func isTerminalInput(r io.Reader) bool {
	f, ok := r.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// readValue reads the value of a secret, which the caller clears.
func (a *app) readValue(ref secret.Ref, file string) ([]byte, error) {
	value, err := a.valueFrom(ref, file)
	switch {
	case err != nil:
		return nil, fault.As(fault.Invalid, fmt.Errorf("reading the value of %s: %w", ref, err))
	case len(value) == 0:
		return nil, fault.Errorf(fault.Invalid, "the value of %s is empty", ref)
	case len(value) > secret.MaxBytes:
		clear(value)
		return nil, fault.Errorf(fault.Invalid, "the value of %s is longer than %s", ref, spec.FormatSize(secret.MaxBytes))
	}
	return value, nil
}

func (a *app) valueFrom(ref secret.Ref, file string) ([]byte, error) {
	switch {
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return io.ReadAll(io.LimitReader(f, secret.MaxBytes+1))
	case isTerminalInput(a.Stdin):
		fmt.Fprintf(a.Stderr, "value of %s (not shown): ", ref)
		defer fmt.Fprintln(a.Stderr)
		return term.ReadPassword(int(a.Stdin.(*os.File).Fd()))
	}
	value, err := io.ReadAll(io.LimitReader(a.Stdin, secret.MaxBytes+2))
	return bytes.TrimSuffix(bytes.TrimSuffix(value, []byte("\n")), []byte("\r")), err
}

// rotate moves the environment to the newest versions of its secrets: it plans the head's bundle again, which is on the server.
func (a *app) rotate(ctx context.Context, cl *client.Client, ref secret.Ref, f secretSet) error {
	env, err := cl.Environment(ctx, string(ref.Env))
	if err != nil {
		return err
	}
	if env.Bundle == "" {
		return fault.WithHint(fault.Errorf(fault.Conflict, "environment %s runs nothing", ref.Env), "invar apply %s", ref.Env)
	}
	p, err := cl.Plan(ctx, string(ref.Env), api.PlanRequest{Bundle: env.Bundle})
	if err != nil {
		return err
	}
	return a.applyPlan(ctx, cl, p, move{yes: f.yes, detach: f.detach, reason: f.reason, unattended: "invar apply " + p.Env})
}

func (a *app) secretListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list ENV",
		Short: "List the secrets of an environment: names and versions, never a value",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			list, err := cl.Secrets(c.Context(), args[0])
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(list)
			}
			if len(list) == 0 {
				_, err := fmt.Fprintf(a.Stdout, "%s has no secrets: invar secret set %s/NAME makes the first\n", args[0], args[0])
				return err
			}
			var rows [][]string
			for _, s := range list {
				rows = append(rows, []string{s.Name, s.Version.Short(), strconv.Itoa(s.Versions), age(s.At) + " ago", s.By, orDash(strings.Join(s.UsedBy, ",")), inUse(s)})
			}
			return table(a.Stdout, "NAME VERSION VERSIONS SINCE BY USED-BY IN-USE", rows)
		},
	}
}

// inUse says which version the head has.
func inUse(s api.Secret) string {
	switch s.Head {
	case "":
		return "-"
	case s.Version:
		return "newest"
	}
	return "older: " + s.Head.Short()
}

func (a *app) secretHistoryCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "history ENV/NAME",
		Short: "List the versions of a secret, newest first",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ref, err := secret.Parse(args[0])
			if err != nil {
				return err
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			list, err := cl.SecretHistory(c.Context(), string(ref.Env), ref.Name)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(list)
			}
			var rows [][]string
			for _, v := range list {
				head := ""
				if v.Head {
					head = "in use"
				}
				rows = append(rows, []string{v.Version.Short(), v.At.Local().Format(time.DateTime), v.By, strconv.FormatUint(v.Entry, 10), orDash(head), v.Reason})
			}
			return table(a.Stdout, "VERSION AT BY ENTRY HEAD REASON", rows)
		},
	}
}
