package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/fault"
)

// accepted follows the rollout of a head that has moved, and ends as it ends.
func (a *app) accepted(ctx context.Context, cl *client.Client, acc api.Accepted, detach bool) error {
	if !acc.Changed {
		fmt.Fprintf(a.Stderr, "%s: nothing to change; generation %d already is release %s\n", acc.Env, acc.Generation, acc.Release.Short())
	}
	if detach || !acc.Changed {
		if a.output == "json" {
			return a.json(acc)
		}
		return nil
	}
	w := &watch{app: a, client: cl, acc: acc, started: time.Now(), live: isTerminal(a.Stderr) && a.output != "json"}
	err := w.run(ctx)
	if a.output == "json" && w.env.Name != "" {
		if jerr := a.json(w.env); err == nil {
			err = jerr
		}
	}
	return err
}

// watch follows one rollout: as a table that is drawn again where stderr is a terminal, else line by line.
type watch struct {
	*app
	client  *client.Client
	acc     api.Accepted
	started time.Time
	live    bool

	env   api.Environment // as last read
	drawn int             // lines on the screen
}

// run returns when the rollout has ended. It rides out a server that goes away for a while: the rollout,
// the instances and the traffic go on.
func (w *watch) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	since := w.acc.Entry
	for ev, err := range w.client.Events(ctx, client.EventsQuery{Env: w.acc.Env, Since: &since}) {
		if err != nil {
			return fault.WithHint(err, "the rollout goes on without this command: invar status %s", w.acc.Env)
		}
		if w.live {
			if done, err := w.look(ctx); done || unlessAway(err) != nil {
				return err
			}
			continue
		}
		if ev.Entry == nil {
			continue
		}
		w.line(*ev.Entry)
		if !ends(ev.Entry.Kind) {
			continue
		}
		if done, err := w.look(ctx); done || unlessAway(err) != nil {
			return err
		}
	}
	return ctx.Err()
}

// unlessAway drops the error of a server that is not there: the stream of events waits for it.
func unlessAway(err error) error {
	if errors.Is(err, fault.Unavailable) {
		return nil
	}
	return err
}

// ends tells whether an entry of the kind can end a rollout.
func ends(kind string) bool { return strings.HasPrefix(kind, "deploy.") || kind == "instance.gone" }

// look reads the environment, draws it, and tells whether the rollout has ended, and how.
func (w *watch) look(ctx context.Context) (done bool, err error) {
	env, err := w.client.Environment(ctx, w.acc.Env)
	if err != nil {
		return false, err
	}
	w.env = env
	w.draw()
	if env.State == api.Rolling {
		return false, nil
	}
	if env.Generation == w.acc.Generation {
		return true, w.ended(env)
	}
	return w.movedOn(ctx)
}

// ended is the result when no other head came since.
func (w *watch) ended(env api.Environment) error {
	w.tail()
	if env.State == api.Failed {
		return fault.WithHint(fmt.Errorf("generation %d failed: %s", env.Generation, env.Cause),
			"invar logs %s/COMPONENT shows what the instances wrote; invar rollback %s goes back", env.Name, env.Name)
	}
	took := time.Since(w.started).Round(10 * time.Millisecond)
	fmt.Fprintf(w.Stderr, "%s %s is generation %d, release %s, after %s\n", w.style().good("done:"), env.Name, env.Generation, orDash(env.Release.Short()), took)
	for _, r := range env.Routes {
		fmt.Fprintf(w.Stderr, "  %s\n", r.URL)
	}
	return nil
}

// movedOn is the result when the head has moved since: by a revert, or by someone else.
func (w *watch) movedOn(ctx context.Context) (bool, error) {
	h, err := w.client.History(ctx, w.acc.Env)
	if err != nil {
		return false, err
	}
	w.tail()
	for _, g := range h {
		if g.Number != w.acc.Generation {
			continue
		}
		if g.Outcome == api.Failed {
			return true, exit(ExitReverted, fault.WithHint(
				fmt.Errorf("generation %d failed and was reverted: %s", g.Number, g.Cause),
				"invar logs %s/COMPONENT shows what the instances wrote; %s runs generation %d", w.acc.Env, w.acc.Env, w.env.Generation))
		}
		return true, fault.Errorf(fault.Conflict, "generation %d was %s: another change came before it ended; %s is generation %d now", g.Number, g.Outcome, w.acc.Env, w.env.Generation)
	}
	return true, fault.Errorf(fault.Conflict, "%s is generation %d now", w.acc.Env, w.env.Generation)
}

// draw draws the table of instances over the one drawn before.
func (w *watch) draw() {
	if !w.live {
		return
	}
	var b strings.Builder
	renderEnvironment(&b, w.style(), w.env)
	fmt.Fprintf(&b, "%s\n", w.style().dim(time.Since(w.started).Round(100*time.Millisecond).String()))
	if w.drawn > 0 {
		fmt.Fprintf(w.Stderr, "\x1b[%dA\x1b[J", w.drawn)
	}
	io.WriteString(w.Stderr, b.String())
	w.drawn = strings.Count(b.String(), "\n")
}

// tail ends the table: what is printed next stands under it.
func (w *watch) tail() { w.drawn = 0 }

// line prints an entry where stderr is no terminal.
func (w *watch) line(e api.Entry) {
	text := describe(e)
	if text == "" {
		return
	}
	fmt.Fprintf(w.Stderr, "%s  %s\n", e.Time.Local().Format("15:04:05.000"), text)
}

// stepData is what entries of rollouts carry.
type stepData struct {
	Instance *struct {
		ID string `json:"id"`
	} `json:"instance"`
	ID        string `json:"id"`
	Component string `json:"component"`
	Shares    []struct {
		Version string `json:"version"`
		Percent int    `json:"percent"`
	} `json:"shares"`
	Generation int    `json:"generation"`
	ExitCode   int    `json:"exit_code"`
	OOM        bool   `json:"oom"`
	Cause      string `json:"cause"`
}

// describe says what an entry of a rollout means, in one line.
func describe(e api.Entry) string {
	var d stepData
	if len(e.Data) > 0 && json.Unmarshal(e.Data, &d) != nil {
		return e.Kind
	}
	if d.Instance != nil && d.ID == "" {
		d.ID = d.Instance.ID
	}
	because := ""
	if d.Cause != "" {
		because = ": " + d.Cause
	}
	switch e.Kind {
	case "instance.create":
		return "start    " + d.ID + because
	case "instance.healthy":
		return "healthy  " + d.ID
	case "instance.failing":
		return "failing  " + d.ID + because
	case "instance.exit":
		if d.OOM {
			return fmt.Sprintf("exited   %s: out of memory (status %d)", d.ID, d.ExitCode)
		}
		return fmt.Sprintf("exited   %s: status %d", d.ID, d.ExitCode)
	case "instance.retire":
		return "retire   " + d.ID + because
	case "instance.gone":
		return "gone     " + d.ID
	case "traffic.shift":
		var parts []string
		for _, s := range d.Shares {
			parts = append(parts, fmt.Sprintf("%d%% %s", s.Percent, short(s.Version)))
		}
		return "traffic  " + d.Component + " → " + strings.Join(parts, ", ")
	case "deploy.complete":
		return fmt.Sprintf("complete generation %d", d.Generation)
	case "deploy.fail":
		return fmt.Sprintf("failed   generation %d%s", d.Generation, because)
	case "deploy.revert":
		return fmt.Sprintf("revert   as generation %d%s", d.Generation, because)
	}
	return e.Kind
}

func short(d string) string {
	d = strings.TrimPrefix(d, "sha256:")
	return d[:min(12, len(d))]
}
