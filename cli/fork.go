package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/secret"
	"github.com/invarhq/invar/spec"
)

// forkFlags are those of what makes a fork.
type forkFlags struct {
	volumes string
	ttl     string
	secrets []string
	detach  bool
	reason  string
}

// own adds the flags that say what a fork has of its own.
func (f *forkFlags) own(c *cobra.Command, only string) {
	c.Flags().StringVar(&f.ttl, "ttl", "24h", only+"destroy the fork and its volumes after this `DURATION`")
	c.Flags().StringArrayVar(&f.secrets, "secret", nil, only+"value to try with in place of secret NAME: `NAME=@FILE`, or NAME=- for standard input; may be given again")
}

func (a *app) forkCommand() *cobra.Command {
	var f forkFlags
	var how func() (api.How, error)
	c := &cobra.Command{
		Use:   "fork ENV[@GENERATION] NEW",
		Short: "Run the release of an environment in a new one, for a while",
		Long: `Fork makes the environment NEW with the release that ENV has, the same digest, or that it had as GENERATION. Nothing in
ENV changes. The fork has routes of its own (http://ROUTE.NEW.localhost; TCP routes are left out), volumes of its own, and
secrets of its own or none: never those of ENV. It is destroyed when its time is over, or by "invar destroy NEW".

Its volumes are empty; or with --volumes snapshot copies of the newest snapshots, which were taken when nobody wrote; or with --volumes copy
copies of what is there, while ENV goes on and writes: what changes meanwhile is copied again, up to three times, and if something still
changed, it says so: then the copy is of no one moment, and a database may find it broken.

It needs the permission read in ENV and apply in NEW, for copies also exec in ENV: they show what a shell beside the data would. The rules for
NEW apply to it: grants and rules can name patterns, as fork-*.`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			from, err := api.ParseRef(args[0])
			if err != nil || from.Env == "" {
				return fault.WithHint(fault.Errorf(fault.Invalid, "%q names no environment", args[0]), "invar fork ENV[@GENERATION] NEW")
			}
			special, err := how()
			if err != nil {
				return err
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			return a.fork(c.Context(), cl, args[1], api.ForkRequest{From: from.Env, Generation: from.Generation, How: special}, f)
		},
	}
	f.own(c, "")
	c.Flags().StringVar(&f.volumes, "volumes", api.VolumesEmpty, "how its volumes begin: `empty`, or as copies: snapshot (the newest snapshots) or copy (what is there now)")
	c.Flags().BoolVar(&f.detach, "detach", false, "do not wait until it is healthy")
	c.Flags().StringVar(&f.reason, "reason", "", "why; recorded in the ledger")
	how = howFlags(c, false)
	return c
}

// fork gives the new environment its secrets, makes it, and follows its rollout.
func (a *app) fork(ctx context.Context, cl *client.Client, env string, req api.ForkRequest, f forkFlags) error {
	ttl, err := f.life()
	if err != nil {
		return err
	}
	values, err := a.readSecrets(f.secrets)
	if err != nil {
		return err
	}
	defer clearSecrets(values)
	req.TTLMS, req.Volumes, req.Reason = ttl.Milliseconds(), cmp.Or(f.volumes, api.VolumesEmpty), f.reason
	if err := a.setSecrets(ctx, cl, env, values); err != nil {
		return err
	}
	acc, err := cl.Fork(ctx, env, req)
	if err != nil {
		return err
	}
	if err := a.accepted(ctx, cl, acc, f.detach); err != nil || a.output == "json" || acc.Waiting {
		return err
	}
	made, err := cl.Environment(ctx, env)
	if err != nil {
		return err
	}
	for _, r := range made.Routes {
		fmt.Fprintln(a.Stdout, r.URL)
	}
	if req.Volumes == api.VolumesCopy {
		if err := a.warnOfUnsettled(ctx, cl, env); err != nil {
			return err
		}
	}
	if made.Fork != nil {
		fmt.Fprintf(a.Stderr, "%s is a fork of %s until %s\n", env, made.Fork.From, made.Fork.ExpiresAt.Local().Format(time.DateTime))
	}
	return nil
}

// givenSecret is a value to try with in place of a secret.
type givenSecret struct {
	name  string
	value []byte
}

// readSecrets reads the values that NAME=@FILE and NAME=- name. The caller clears them.
func (a *app) readSecrets(given []string) (out []givenSecret, err error) {
	defer func() {
		if err != nil {
			clearSecrets(out)
		}
	}()
	for _, text := range given {
		name, from, _ := strings.Cut(text, "=")
		file, isFile := strings.CutPrefix(from, "@")
		if name == "" || !isFile && from != "-" || isFile && file == "" {
			return out, fault.WithHint(fault.Errorf(fault.Invalid, "--secret %s names no file: other users can see arguments, so a value is never one", name), "--secret NAME=@FILE")
		}
		value, err := a.readValue(secret.Ref{Env: "fork", Name: name}, file)
		if err != nil {
			return out, err
		}
		out = append(out, givenSecret{name, value})
	}
	return out, nil
}

func clearSecrets(values []givenSecret) {
	for _, v := range values {
		clear(v.value)
	}
}

// setSecrets makes versions of an environment's secrets.
func (a *app) setSecrets(ctx context.Context, cl *client.Client, env string, values []givenSecret) error {
	for _, v := range values {
		if _, err := cl.SetSecret(ctx, env, v.name, api.SecretRequest{Value: v.value, Reason: "to try with, in a fork"}); err != nil {
			return err
		}
	}
	return nil
}

// preview makes the release for env of the directory as it is, and runs it as a fork of env.
func (a *app) preview(ctx context.Context, env spec.EnvName, name string, how api.How, f forkFlags) error {
	made, cl, err := a.make(ctx, env)
	if err != nil {
		return err
	}
	return a.fork(ctx, cl, name, api.ForkRequest{From: string(env), Bundle: made.bundle, Release: made.release, How: how}, f)
}

func (a *app) promoteCommand() *cobra.Command {
	var healthyFor string
	var m move
	var how func() (api.How, error)
	c := &cobra.Command{
		Use:   "promote FROM TO",
		Short: "Bring what runs in one environment to another",
		Long: `Promote plans the bundle that FROM runs for TO: the same sources and images, with TO's own inputs and secrets. It shows
exactly how the release that TO would get differs from the one that FROM has, what applying it would do, and since which
entry of the ledger FROM has run healthy. It asks, and applies it as "invar apply TO" would, approvals included.

Unless FROM's head has completed, is healthy, and has been for --healthy-for, it refuses.`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			var err error
			if m.how, err = how(); err != nil {
				return err
			}
			d, err := spec.ParseDuration(healthyFor)
			if err != nil || d < 0 {
				return fault.Errorf(fault.Invalid, "--healthy-for %q is no duration", healthyFor)
			}
			return a.promote(c.Context(), args[0], args[1], d, m)
		},
	}
	c.Flags().StringVar(&healthyFor, "healthy-for", "0s", "refuse unless FROM has run healthy for this `DURATION`")
	c.Flags().BoolVarP(&m.yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&m.detach, "detach", false, "do not wait for the rollout")
	c.Flags().StringVar(&m.reason, "reason", "", "why; recorded in the ledger, after what is promoted and the entries that prove it")
	how = howFlags(c, true)
	return c
}

func (a *app) promote(ctx context.Context, from, to string, healthyFor time.Duration, m move) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	p, err := cl.Promotion(ctx, to, api.PromotionRequest{From: from, HealthyForMS: healthyFor.Milliseconds()})
	if err != nil {
		return err
	}
	if a.output != "json" {
		fmt.Fprintf(a.Stderr, "from %s@%d: completed by entry %d, healthy for %s: no entry from %d to %d says otherwise\n",
			from, p.From.Generation, p.Proof.Completed, seconds(time.Duration(p.Proof.HealthyFor)*time.Millisecond), p.Proof.Newest+1, p.Proof.Size-1)
		renderDiff(a.Stderr, a.style(), p.Diff)
		fmt.Fprintln(a.Stderr)
	}
	reason := fmt.Sprintf("promoted from %s@%d, which completed by entry %d and was healthy from entry %d to %d", from, p.From.Generation, p.Proof.Completed, p.Proof.Newest, p.Proof.Size-1)
	if m.reason != "" {
		reason += ": " + m.reason
	}
	m.promoted = &api.PromotedFrom{From: from, Generation: p.From.Generation, HealthyForMS: healthyFor.Milliseconds()}
	m.reason, m.unattended = reason, "invar promote "+from+" "+to+" --yes"
	return a.applyPlan(ctx, cl, p.Plan, m)
}
