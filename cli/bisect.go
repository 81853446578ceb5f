package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/bisect"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/spec"
)

// What bisect waits for.
const (
	bisectPoll  = 100 * time.Millisecond // between two looks at a fork
	bisectClean = time.Minute            // for a fork to be gone, also after an interrupt
	bisectMost  = 16                     // forks beside each other
	exitSkip    = 125                    // of the check: this generation can't be judged, as in git bisect run
)

// bisection is what the flags of "invar bisect" say.
type bisection struct {
	good, bad, parallel int
	forkFlags
	check []string
}

func (a *app) bisectCommand() *cobra.Command {
	var b bisection
	c := &cobra.Command{
		Use:   "bisect ENV --good G --bad B -- CHECK [ARG...]",
		Short: "Find the generation that broke something, by running them again",
		Long: `Bisect forks releases from ENV's history, runs CHECK against each, and finds the first bad one by binary search: a hundred
generations take seven runs. ENV stays as it is. CHECK says by its exit status what a generation is: 0 good, 125 not to be
judged, anything else bad. A generation that does not start is not judged either.

CHECK has in its environment INVAR_BISECT_ENV, INVAR_BISECT_GENERATION, INVAR_BISECT_RELEASE, INVAR_BISECT_URL (of the
first route) and INVAR_URL_ROUTE for each route. The forks are bisect-ENV, bisect-ENV-2 …; each is destroyed after its
run, also on an interrupt, and at the latest when its --ttl is over. With --parallel several run beside each other.

G is trusted to be good, and B to be bad. It exits with 0 when it has found the first bad one, and with 1 when
skipped ones leave a doubt.`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			b.check = args[1:]
			if b.good < 1 || b.bad <= b.good {
				return fault.WithHint(fault.Errorf(fault.Invalid, "want a good generation and a bad one after it"), "invar history %s", args[0])
			}
			if b.parallel < 1 || b.parallel > bisectMost {
				return fault.Errorf(fault.Invalid, "--parallel %d: want 1 to %d", b.parallel, bisectMost)
			}
			return a.bisect(c.Context(), args[0], b)
		},
	}
	c.Flags().IntVar(&b.good, "good", 0, "`GENERATION` that is good")
	c.Flags().IntVar(&b.bad, "bad", 0, "`GENERATION` after it that is bad")
	c.Flags().IntVar(&b.parallel, "parallel", 1, "run up to `N` generations beside each other")
	b.own(c, "")
	must(c.Flags().Set("ttl", "1h"))
	c.Flags().Lookup("ttl").DefValue = "1h"
	return c
}

// tried is what became of a generation.
type tried struct {
	Generation int            `json:"generation"`
	Release    digest.Digest  `json:"release"`
	Verdict    bisect.Verdict `json:"verdict"`
	Detail     string         `json:"detail"`
}

// bisected is what a bisection found.
type bisected struct {
	Env   string           `json:"env"`
	Runs  []tried          `json:"runs"`
	First []api.Generation `json:"first_bad"` // one; or several of which it is one
	Diff  *api.Diff        `json:"diff,omitempty"`
}

func (a *app) bisect(ctx context.Context, env string, b bisection) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	row, err := bisectRow(ctx, cl, env, b)
	if err != nil {
		return err
	}
	t := &trial{app: a, client: cl, env: env, bisection: b}
	if t.ttl, err = b.life(); err != nil {
		return err
	}
	if t.values, err = a.readSecrets(b.secrets); err != nil {
		return err
	}
	defer clearSecrets(t.values)
	search, runs, err := t.search(ctx, row)
	if err != nil {
		return err
	}
	out := bisected{Env: env, Runs: runs}
	found := search.Candidates()
	for _, i := range found {
		out.First = append(out.First, row[i])
	}
	d, err := cl.Diff(ctx, api.Ref{Digest: row[found[0]-1].Release}, api.Ref{Digest: row[found[len(found)-1]].Release})
	if err != nil {
		return err
	}
	out.Diff = &d
	return a.bisected(out)
}

// bisectRow returns the generations from the good one to the bad one that have a release.
func bisectRow(ctx context.Context, cl *client.Client, env string, b bisection) ([]api.Generation, error) {
	history, err := cl.History(ctx, env)
	if err != nil {
		return nil, err
	}
	var row []api.Generation
	for i := len(history) - 1; i >= 0; i-- {
		if g := history[i]; g.Number >= b.good && g.Number <= b.bad && g.Release != "" {
			row = append(row, g)
		}
	}
	if len(row) < 2 || row[0].Number != b.good || row[len(row)-1].Number != b.bad {
		return nil, fault.WithHint(fault.Errorf(fault.NotFound, "environment %s has no generations %d and %d with a release each", env, b.good, b.bad), "invar history %s", env)
	}
	if row[0].Release == row[len(row)-1].Release {
		return nil, fault.Errorf(fault.Invalid, "generations %d and %d have the same release: it can't be both good and bad", b.good, b.bad)
	}
	return row, nil
}

// trial runs generations as forks.
type trial struct {
	*app
	client *client.Client
	env    string
	bisection
	ttl    time.Duration
	values []givenSecret
}

// search searches the row. A release that was judged once is not run again.
func (t *trial) search(ctx context.Context, row []api.Generation) (bisect.Search, []tried, error) {
	s := bisect.New(len(row))
	known := map[digest.Digest]bisect.Verdict{row[0].Release: bisect.Good, row[len(row)-1].Release: bisect.Bad}
	var runs []tried
	for points := s.Points(t.parallel); len(points) > 0; points = s.Points(t.parallel) {
		results := make([]tried, len(points))
		errs := make([]error, len(points))
		var group sync.WaitGroup
		for k, i := range points {
			if verdict, ok := known[row[i].Release]; ok {
				results[k] = tried{row[i].Number, row[i].Release, verdict, "the same release as one before"}
				continue
			}
			group.Go(func() { results[k], errs[k] = t.try(ctx, t.slot(k), row[i]) })
		}
		group.Wait()
		if err := errors.Join(errs...); err != nil {
			return s, runs, err
		}
		for k, r := range results {
			s = s.Mark(points[k], r.Verdict)
			known[r.Release] = r.Verdict
			runs = append(runs, r)
			fmt.Fprintf(t.Stderr, "generation %d: %s, %s\n", r.Generation, r.Verdict, r.Detail)
		}
	}
	return s, runs, nil
}

// slot names the fork of one of the trials beside each other.
func (t *trial) slot(k int) string {
	name := "bisect-" + t.env
	if k > 0 {
		name += "-" + strconv.Itoa(k+1)
	}
	return name
}

// try runs a generation as a fork, checks it, and destroys the fork again.
func (t *trial) try(ctx context.Context, fork string, g api.Generation) (out tried, err error) {
	out = tried{Generation: g.Number, Release: g.Release}
	if err := t.setSecrets(ctx, t.client, fork, t.values); err != nil {
		return out, err
	}
	acc, err := t.begin(ctx, fork, g)
	if err != nil {
		return out, fmt.Errorf("trying generation %d: %w", g.Number, err)
	}
	defer func() { err = errors.Join(err, t.end(ctx, fork)) }()
	env, err := t.settled(ctx, acc)
	if err != nil {
		return out, fmt.Errorf("trying generation %d: %w", g.Number, err)
	}
	if env.State != api.Completed {
		out.Verdict, out.Detail = bisect.Skip, "it does not start: "+env.Cause
		return out, nil
	}
	out.Verdict, out.Detail, err = t.judge(ctx, env, g)
	return out, err
}

// begin makes the fork, once what was there before it is gone.
func (t *trial) begin(ctx context.Context, fork string, g api.Generation) (api.Accepted, error) {
	if old, err := t.client.Environment(ctx, fork); err == nil && old.Release != "" {
		return api.Accepted{}, fault.WithHint(fault.Errorf(fault.Conflict, "environment %s is there already", fork), "if no other bisection is under way: invar destroy %s", fork)
	}
	req := api.ForkRequest{From: t.env, Generation: g.Number, Volumes: api.VolumesEmpty, TTLMS: t.ttl.Milliseconds(), Reason: fmt.Sprintf("bisecting %s between %d and %d", t.env, t.good, t.bad)}
	ctx, cancel := context.WithTimeout(ctx, bisectClean)
	defer cancel()
	for {
		acc, err := t.client.Fork(ctx, fork, req)
		switch {
		case acc.Waiting:
			return acc, fault.WithHint(fault.Errorf(fault.Denied, "environment %s asks for approvals, and every generation would", fork), "have the approval rules leave bisect-* out; and: invar change withdraw %d", acc.Change)
		case errors.Is(err, fault.Conflict) && pause(ctx): // the volumes of the one before are being deleted
			continue
		}
		return acc, err
	}
}

// pause waits a little, and reports whether there is still time.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(bisectPoll):
		return true
	}
}

// settled returns the environment when the rollout has ended.
func (t *trial) settled(ctx context.Context, acc api.Accepted) (api.Environment, error) {
	for {
		env, err := t.client.Environment(ctx, acc.Env)
		switch {
		case err != nil:
			return env, err
		case env.Generation != acc.Generation:
			return env, fault.Errorf(fault.Conflict, "another change came in between: %s is generation %d now", acc.Env, env.Generation)
		case env.State != api.Rolling:
			return env, nil
		case !pause(ctx):
			return env, ctx.Err()
		}
	}
}

// end destroys a fork and sees it gone, also when ctx has ended.
func (t *trial) end(ctx context.Context, fork string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bisectClean)
	defer cancel()
	acc, err := t.client.Destroy(ctx, fork, api.DestroyRequest{Volumes: true, Reason: "bisected"})
	if err == nil && !acc.Waiting {
		_, err = t.settled(ctx, acc)
	}
	if err != nil {
		return fault.WithHint(fmt.Errorf("destroying %s: %w", fork, err), "it ends by itself when its time is over; or: invar destroy %s", fork)
	}
	return nil
}

// judge runs the check against a fork.
func (t *trial) judge(ctx context.Context, env api.Environment, g api.Generation) (bisect.Verdict, string, error) {
	c := exec.CommandContext(ctx, t.check[0], t.check[1:]...)
	c.Env = append(os.Environ(), "INVAR_BISECT_ENV="+env.Name, "INVAR_BISECT_GENERATION="+strconv.Itoa(g.Number), "INVAR_BISECT_RELEASE="+string(g.Release))
	for i, r := range env.Routes {
		if i == 0 {
			c.Env = append(c.Env, "INVAR_BISECT_URL="+r.URL)
		}
		c.Env = append(c.Env, "INVAR_URL_"+strings.ToUpper(strings.ReplaceAll(r.Name, "-", "_"))+"="+r.URL)
	}
	c.Stdout, c.Stderr = t.Stderr, t.Stderr
	c.Cancel, c.WaitDelay = func() error { return c.Process.Signal(syscall.SIGTERM) }, 5*time.Second
	err := c.Run()
	if ctx.Err() != nil {
		return "", "", ctx.Err()
	}
	ended, exited := errors.AsType[*exec.ExitError](err)
	switch {
	case err == nil:
		return bisect.Good, "the check passed", nil
	case !exited:
		return "", "", fault.As(fault.Invalid, fmt.Errorf("running the check: %w", err))
	case ended.ExitCode() == exitSkip:
		return bisect.Skip, "the check can't tell", nil
	}
	return bisect.Bad, "the check failed: " + ended.String(), nil
}

// bisected shows what was found.
func (a *app) bisected(out bisected) error {
	doubt := len(out.First) > 1
	if a.output == "json" {
		if err := a.json(out); err != nil || !doubt {
			return err
		}
		return exit(ExitFailed, nil)
	}
	st := a.outStyle()
	if doubt {
		fmt.Fprintf(a.Stdout, "the first bad generation of %s is one of these: those before the last were skipped\n", out.Env)
	}
	for _, g := range out.First {
		what := "is the first bad generation of " + out.Env
		if doubt {
			what = "may be the first bad one"
		}
		fmt.Fprintf(a.Stdout, "%s %s: %s by %s at %s, entry %d\n", st.bold("generation "+strconv.Itoa(g.Number)), what, g.Kind, g.By, g.At.Local().Format(time.DateTime), g.Entry)
		if g.Of != 0 {
			fmt.Fprintf(a.Stdout, "  change %d\n", g.Of)
		}
		if g.Reason != "" {
			fmt.Fprintf(a.Stdout, "  %s\n", g.Reason)
		}
	}
	fmt.Fprintf(a.Stderr, "%s\n", plural(len(out.Runs), "run"))
	renderDiff(a.Stdout, st, *out.Diff)
	if doubt {
		return exit(ExitFailed, nil)
	}
	return nil
}

// life is how long a fork lives.
func (f *forkFlags) life() (time.Duration, error) {
	ttl, err := spec.ParseDuration(f.ttl)
	if err != nil || ttl <= 0 {
		return 0, fault.Errorf(fault.Invalid, "--ttl %q is no duration", f.ttl)
	}
	return ttl, nil
}
