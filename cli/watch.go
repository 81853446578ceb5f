package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/fault"
)

// accepted follows the rollout of a head that has moved, and ends as it ends.
func (a *app) accepted(ctx context.Context, cl *client.Client, acc api.Accepted, detach bool) error {
	if acc.Waiting {
		return a.waiting(acc)
	}
	if !acc.Changed {
		fmt.Fprintf(a.Stderr, "%s: nothing to change; generation %d already is release %s\n", acc.Env, acc.Generation, acc.Release.Short())
	}
	if detach || !acc.Changed {
		if a.output == "json" {
			return a.json(acc)
		}
		return nil
	}
	w := &watch{app: a, client: cl, acc: acc, started: time.Now(), live: a.live(), screen: screen{out: a.Stderr}}
	err := w.run(ctx)
	if a.output == "json" && w.env.Name != "" {
		if jerr := a.json(w.env); err == nil {
			err = jerr
		}
	}
	return err
}

// waiting says that a change waits for approvals, which has an exit status of its own.
func (a *app) waiting(acc api.Accepted) error {
	if a.output == "json" {
		return exit(ExitWaits, a.json(acc))
	}
	fmt.Fprintf(a.Stderr, "change %d waits for approval: invar change show %d\n", acc.Change, acc.Change)
	return exit(ExitWaits, nil)
}

// watch follows one rollout: as a table that is drawn again where stderr is a terminal, else line by line.
type watch struct {
	*app
	client  *client.Client
	acc     api.Accepted
	started time.Time
	live    bool
	screen  screen

	env    api.Environment        // as last read
	failed atomic.Pointer[string] // the last instance that failed
}

// run returns when the rollout has ended. It rides out a server that goes away for a while: the rollout,
// the instances and the traffic go on.
func (w *watch) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if w.live {
		return w.runLive(ctx)
	}
	missed := false // the server went away when it was asked how the rollout ended: ask again, though no entry may follow
	for ev, err := range w.events(ctx) {
		if err != nil {
			return w.lost(err)
		}
		if ev.Entry != nil {
			w.remember(*ev.Entry)
			w.line(*ev.Entry)
		}
		if !missed && (ev.Entry == nil || !ends(ev.Entry.Kind)) {
			continue
		}
		done, err := w.look(ctx)
		if done || unlessAway(err) != nil {
			return err
		}
		missed = err != nil
	}
	return ctx.Err()
}

func (w *watch) events(ctx context.Context) iter.Seq2[api.Event, error] {
	since := w.acc.Entry
	return w.client.Events(ctx, client.EventsQuery{Env: w.acc.Env, Since: &since})
}

func (w *watch) lost(err error) error {
	return fault.WithHint(err, "the rollout goes on without this command: invar status %s", w.acc.Env)
}

// runLive looks when something happened, at most once every redrawEvery, and every second for the ages.
func (w *watch) runLive(ctx context.Context) error {
	happened, broke := make(chan struct{}, 1), make(chan error, 1)
	var reader sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer reader.Wait()
	defer cancel()
	reader.Go(func() {
		for ev, err := range w.events(ctx) {
			if err != nil {
				broke <- err
				return
			}
			if ev.Entry != nil {
				w.remember(*ev.Entry)
			}
			select {
			case happened <- struct{}{}:
			default: // a look is due already
			}
		}
	})
	for {
		if done, err := w.look(ctx); done || unlessAway(err) != nil {
			return err
		}
		time.Sleep(redrawEvery)
		select {
		case <-happened:
		case <-time.After(time.Second):
		case err := <-broke:
			w.screen.leave()
			return w.lost(err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// remember keeps the instance that failed last.
func (w *watch) remember(e api.Entry) {
	var d stepData
	if (e.Kind == "instance.failing" || e.Kind == "instance.exit") && json.Unmarshal(e.Data, &d) == nil && d.ID != "" {
		w.failed.Store(&d.ID)
	}
}

// logs is the command that shows what the instance that failed last wrote.
func (w *watch) logs() string {
	id := w.failed.Load()
	if id == nil {
		return "invar logs " + w.acc.Env + "/COMPONENT"
	}
	component := *id
	if cut := strings.LastIndex(component, "-"); cut > 0 {
		component = component[:cut]
	}
	return fmt.Sprintf("invar logs %s/%s --instance %s", w.acc.Env, component, *id)
}

// unlessAway drops the error of a server that is not there: the stream of events waits for it.
func unlessAway(err error) error {
	if errors.Is(err, fault.Unavailable) {
		return nil
	}
	return err
}

// ends tells whether an entry of the kind can end a rollout.
func ends(kind string) bool { return strings.HasPrefix(kind, "deploy.") }

// look reads the environment, draws it, and tells whether the rollout has ended, and how.
func (w *watch) look(ctx context.Context) (done bool, err error) {
	env, err := w.client.Environment(ctx, w.acc.Env)
	if errors.Is(err, fault.Unavailable) && w.env.Name != "" {
		w.draw("the server is away; what runs goes on")
	}
	if err != nil {
		return false, err
	}
	w.env = env
	w.draw("")
	if env.State == api.Rolling {
		return false, nil
	}
	if env.Generation == w.acc.Generation {
		return true, w.ended(ctx, env)
	}
	return w.movedOn(ctx)
}

// ended is the result when no other head came since.
func (w *watch) ended(ctx context.Context, env api.Environment) error {
	w.screen.leave()
	if env.State == api.Failed {
		return fault.WithHint(fmt.Errorf("generation %d failed: %s", env.Generation, env.Cause),
			"%s shows what it wrote; invar rollback %s goes back", w.logs(), env.Name)
	}
	took := time.Since(w.started).Round(10 * time.Millisecond)
	what := "release " + env.Release.Short()
	if env.Release == "" {
		what = "which runs nothing"
	}
	fmt.Fprintf(w.Stderr, "%s %s is generation %d, %s, after %s\n", w.style().good("done:"), env.Name, env.Generation, what, took)
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
	w.screen.leave()
	for _, g := range h {
		if g.Number != w.acc.Generation {
			continue
		}
		if g.Outcome == api.Failed {
			return true, exit(ExitReverted, fault.WithHint(
				fmt.Errorf("generation %d failed and was reverted: %s", g.Number, g.Cause),
				"%s shows what it wrote; %s runs generation %d", w.logs(), w.acc.Env, w.env.Generation))
		}
		return true, fault.Errorf(fault.Conflict, "generation %d was %s: another change came before it ended; %s is generation %d now", g.Number, g.Outcome, w.acc.Env, w.env.Generation)
	}
	return true, fault.Errorf(fault.Conflict, "%s is generation %d now", w.acc.Env, w.env.Generation)
}

// draw draws the table of instances over the one drawn before; where the terminal is too low for it, one of versions.
func (w *watch) draw(note string) {
	if !w.live {
		return
	}
	took := w.style().dim(strings.TrimSpace(time.Since(w.started).Round(100*time.Millisecond).String() + "  " + note))
	_, height := w.screen.size()
	lines := append(environmentLines(w.style(), w.env, renderInstances), took)
	if len(lines) >= height {
		lines = append(environmentLines(w.style(), w.env, renderVersions), took)
	}
	w.screen.draw(lines)
}

func environmentLines(st style, env api.Environment, details func(io.Writer, api.Environment)) []string {
	var b strings.Builder
	renderHead(&b, st, env)
	details(&b, env)
	return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
}

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
	Erasure   int    `json:"erasure"`
	Digest    string `json:"digest"`
	Authority string `json:"authority"`
	Alarm     string `json:"alarm"`
	Witness   string `json:"witness"`

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
	To         int    `json:"to"`
	Release    string `json:"release"`
	Volumes    bool   `json:"volumes"`
	ExitCode   int    `json:"exit_code"`
	OOM        bool   `json:"oom"`
	Cause      string `json:"cause"`

	Change    int    `json:"change"`
	Move      string `json:"move"`
	Operation string `json:"operation"`
	Policy    string `json:"policy"`
	Allowed   bool   `json:"allowed"`
	Phase     string `json:"phase"`
	Verdict   string `json:"verdict"`
	Result    string `json:"result"`
	Override  string `json:"override"`
	Emergency bool   `json:"emergency"`
	Repeated  int    `json:"repeated"`

	Response string   `json:"response"`
	Keys     []string `json:"keys"`
	How      string   `json:"how"`

	From           string    `json:"from"`
	FromGeneration int       `json:"from_generation"`
	ExpiresAt      time.Time `json:"expires_at"`
}

// special is what was unusual about a move.
func (d stepData) special() string {
	out := ""
	if d.Change != 0 {
		out += fmt.Sprintf(", of change %d", d.Change)
	}
	if d.Emergency {
		out += ", in an emergency"
	}
	if d.Override != "" {
		out += ", in spite of freeze " + d.Override
	}
	return out
}

// ofFork says where a fork's release comes from.
func ofFork(d stepData) string {
	if d.FromGeneration == 0 {
		return ", a preview for " + d.From
	}
	return fmt.Sprintf(" of %s@%d", d.From, d.FromGeneration)
}

// describe says what an entry of a rollout means, in one line.
func describe(e api.Entry) string {
	if e.Kind == "environment.verify" {
		return "measured " + e.Outcome
	}
	if e.Kind == "evidence.export" {
		var x struct{ From, To int64 }
		_ = json.Unmarshal(e.Data, &x) // zeros are shown of what can't be read
		return fmt.Sprintf("export   entries %d up to %d as evidence", x.From, x.To-1)
	}
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
	case "change.apply":
		return fmt.Sprintf("apply    generation %d, release %s", d.Generation, short(d.Release)) + d.special()
	case "change.fork":
		return fmt.Sprintf("fork     generation %d, release %s%s, until %s", d.Generation, short(d.Release), ofFork(d), d.ExpiresAt.Local().Format(time.DateTime)) + d.special()
	case "change.rollback":
		return fmt.Sprintf("rollback generation %d, release %s of generation %d", d.Generation, short(d.Release), d.To) + d.special()
	case "change.destroy":
		return fmt.Sprintf("destroy  generation %d%s", d.Generation, map[bool]string{true: ", with its volumes"}[d.Volumes]) + d.special()
	case "volume.copy", "volume.copied", "volume.fail", "volume.switch", "volume.deleted":
		return describeCopy(e, because)
	case "volume.delete":
		var v struct {
			Component, Volume string
			Version, Snapshot int
		}
		_ = json.Unmarshal(e.Data, &v) // zeros are shown of what can't be read
		return fmt.Sprintf("delete   %s of volume %s/%s", placeName(v.Version, v.Snapshot), v.Component, v.Volume)
	case "volume.destroy":
		return "deleted  volumes"
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
	case "instance.taint":
		return "tainted  " + d.ID + because
	case "instance.retire":
		return "retire   " + d.ID + because
	case "instance.gone":
		return "gone     " + d.ID
	case "traffic.shift":
		var parts []string
		for _, s := range d.Shares {
			parts = append(parts, fmt.Sprintf("%d%% %s", s.Percent, short(s.Version)))
		}
		if len(parts) == 0 {
			parts = []string{"none"}
		}
		return "traffic  " + d.Component + " → " + strings.Join(parts, ", ")
	case "deploy.complete":
		return fmt.Sprintf("complete generation %d", d.Generation)
	case "deploy.fail":
		return fmt.Sprintf("failed   generation %d%s", d.Generation, because)
	case "deploy.revert":
		return fmt.Sprintf("revert   as generation %d%s", d.Generation, because)
	}
	return describeGovernance(e, d, because)
}

// describeCopy says what an entry about a copy of a volume means.
func describeCopy(e api.Entry, because string) string {
	type place struct {
		Env      string
		Version  int
		Snapshot int
	}
	var d struct {
		Copy struct {
			Component, Volume string
			From              *place
			To                place
			Content           *struct {
				Bytes   int64
				Files   int
				Changed int
			}
		}
	}
	_ = json.Unmarshal(e.Data, &d) // zeros are shown of what can't be read
	c := d.Copy
	to := fmt.Sprintf("volume %s/%s, %s", c.Component, c.Volume, placeName(c.To.Version, c.To.Snapshot))
	switch e.Kind {
	case "volume.copy":
		from := ""
		if c.From != nil {
			from = " from " + placeName(c.From.Version, c.From.Snapshot)
			if c.From.Env != "" {
				from += " of " + c.From.Env
			}
		}
		return "copy     " + to + from
	case "volume.copied":
		text := "copied   " + to
		if c.Content != nil {
			text += fmt.Sprintf(": %s, %s", size(c.Content.Bytes), plural(c.Content.Files, "file"))
			if c.Content.Changed > 0 {
				text += fmt.Sprintf("; %s still changed", plural(c.Content.Changed, "file"))
			}
		}
		return text
	case "volume.switch":
		return "switch   " + to
	case "volume.deleted":
		return "deleted  " + to
	}
	return "failed   copy to " + to + because
}

func placeName(version, snapshot int) string {
	if snapshot > 0 {
		return fmt.Sprint("snapshot ", snapshot)
	}
	return fmt.Sprint("version ", version)
}

// describeGovernance says what an entry about a change, or about access, means.
func describeGovernance(e api.Entry, d stepData, because string) string {
	switch e.Kind {
	case "change.request":
		return fmt.Sprintf("propose  change %d: %s, release %s", d.Change, d.Move, short(d.Release))
	case "change.approve", "change.reject", "change.withdraw", "change.void":
		return fmt.Sprintf("%-8s change %d%s", strings.TrimPrefix(e.Kind, "change."), d.Change, because)
	case "change.confirm":
		return fmt.Sprintf("confirm  generation %d", d.Generation)
	case "change.review":
		return fmt.Sprintf("review   generation %d: %s", d.Generation, d.Verdict)
	case "policy.decision":
		verdict := map[bool]string{true: "allows", false: "refuses"}[d.Allowed]
		if d.Change != 0 {
			return fmt.Sprintf("policy   %s %s change %d (%s)", d.Policy, verdict, d.Change, d.Phase)
		}
		return fmt.Sprintf("policy   %s %s", d.Policy, verdict)
	case "erasure.request":
		return fmt.Sprintf("propose  erasure %d of %s, by %s", d.Erasure, short(d.Digest), d.Authority)
	case "erasure.approve":
		return fmt.Sprintf("approve  erasure %d", d.Erasure)
	case "erasure":
		return fmt.Sprintf("erase    %s", short(d.Digest))
	case "witness.alarm":
		return fmt.Sprintf("alarm    %s %s%s", d.Alarm, d.Witness, because)
	case "host.drift":
		return fmt.Sprintf("drift    of the machine%s (%s)", because, d.Response)
	case "host.resolved":
		return fmt.Sprintf("resolved %s: %s", strings.Join(d.Keys, ", "), d.How)
	case "attest.reproduced":
		return fmt.Sprintf("attest   release %s, made again: %s", short(d.Release), d.Result)
	case "release.revoke":
		return "revoke   release " + short(d.Release)
	case "access.denied":
		text := "denied   " + d.Operation + because
		if d.Repeated > 0 {
			text += fmt.Sprintf(" (%d more times)", d.Repeated)
		}
		return text
	}
	return e.Kind
}

func short(d string) string {
	d = strings.TrimPrefix(d, "sha256:")
	return d[:min(12, len(d))]
}
