package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
)

const (
	benchEnv     = "staging"
	loadRate     = 2000 // requests per second
	loadWorkers  = 128
	pageEvery    = 4 // one of so many requests asks for the page, the others for /healthz of the same component
	firstHeading = "Welcome to the shop"
)

// visitors ask the shop's page at a steady rate, and note who answered when.
type visitors struct {
	asked, failed, late atomic.Int64

	mu     sync.Mutex
	first  map[string]time.Time // by headline
	last   map[string]time.Time
	causes map[string]int
	took   sample
}

// visit asks until ctx ends. The rate is kept by the clock, whatever the answers take; a request that no worker was free for counts as late.
func (v *visitors) visit(ctx context.Context, gateway string) {
	transport := &http.Transport{MaxIdleConns: loadWorkers, MaxIdleConnsPerHost: loadWorkers}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	due := make(chan bool, loadWorkers) // whether it is the page
	var workers sync.WaitGroup
	for range loadWorkers {
		workers.Go(func() {
			for page := range due {
				v.ask(c, gateway, page)
			}
		})
	}
	began, sent := time.Now(), int64(0)
	for tick := time.NewTicker(time.Millisecond); ctx.Err() == nil; {
		for want := int64(time.Since(began).Seconds() * loadRate); sent < want; sent++ {
			page := sent%pageEvery == 0
			select {
			case due <- page:
			default:
				v.late.Add(1)
				due <- page
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
		}
	}
	close(due)
	workers.Wait()
}

func (v *visitors) ask(c *http.Client, gateway string, page bool) {
	began := time.Now()
	heading, err := "", error(nil)
	if page {
		heading, err = headline(c, gateway)
	} else {
		_, err = get(c, gateway, "/healthz")
	}
	now := time.Now()
	v.asked.Add(1)
	v.mu.Lock()
	defer v.mu.Unlock()
	if err != nil {
		v.failed.Add(1)
		v.causes[err.Error()]++
		return
	}
	v.took.took(now.Sub(began))
	if !page {
		return
	}
	if _, ok := v.first[heading]; !ok {
		v.first[heading] = now
	}
	v.last[heading] = now
}

// headline asks for the shop's page and returns its <h1>, which is configuration.
func headline(c *http.Client, gateway string) (string, error) {
	body, err := get(c, gateway, "/")
	if err != nil {
		return "", err
	}
	_, rest, _ := bytes.Cut(body, []byte("<h1>"))
	heading, _, ok := bytes.Cut(rest, []byte("</h1>"))
	if !ok {
		return "", fmt.Errorf("a page without a headline")
	}
	return string(heading), nil
}

func get(c *http.Client, gateway, path string) ([]byte, error) {
	req, err := http.NewRequest(http.MethodGet, "http://"+gateway+path, nil)
	if err != nil {
		return nil, err
	}
	req.Host = "shop.localhost"
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s", resp.Status)
	}
	return body, err
}

// forget forgets what was seen of a headline, so that its next first answer counts.
func (v *visitors) forget(headings ...string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, h := range headings {
		delete(v.first, h)
	}
}

// switched waits until the new headline was seen, and the old one was not for a while. It returns when the first answer with the new
// one came, and the last with the old one.
func (v *visitors) switched(ctx context.Context, before, after string) (first, last time.Time, err error) {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		v.mu.Lock()
		first, last = v.first[after], v.last[before]
		v.mu.Unlock()
		if !first.IsZero() && time.Since(last) > 200*time.Millisecond {
			return first, last, nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return first, last, fmt.Errorf("the traffic did not move from %q to %q", before, after)
		}
	}
}

// move is what one change of the head took.
type move struct {
	accepted sample // until the API said that the head has moved
	first    sample // until the first answer of a new instance
	all      sample // until the last answer of an old one: the new instances have the traffic
	complete sample // until the rollout's end was in the ledger
	inLedger sample // from the head's entry to that of the newest shift of traffic, by their times
	switched sample // from the head's entry until the gateway began the last request that it gave to an old one
}

func benchApply(ctx context.Context, b *bench) error {
	d, err := b.newDaemon(ctx)
	if err != nil {
		return err
	}
	app, err := b.shop(`min_healthy_time = "1s"`, `min_healthy_time = "0s"`, `cpu    = 0.5`, `cpu    = 2`)
	if err != nil {
		return err
	}
	if _, err := d.run(ctx, app, "apply", benchEnv, "--yes"); err != nil {
		return err
	}
	v := &visitors{first: map[string]time.Time{}, last: map[string]time.Time{}, causes: map[string]int{}}
	visiting, stop := context.WithCancel(ctx)
	var done sync.WaitGroup
	began := time.Now()
	done.Go(func() { v.visit(visiting, d.gateway) })
	defer done.Wait()
	defer stop()
	var apply, rollback move
	var whole sample
	a := &applier{daemon: d, visitors: v, app: app, heading: firstHeading}
	for round := range b.n {
		if err := a.apply(ctx, fmt.Sprintf("Round %d by API", round), &apply); err != nil {
			return err
		}
		if err := a.rollback(ctx, &rollback); err != nil {
			return err
		}
		if err := a.command(ctx, fmt.Sprintf("Round %d by command", round), &whole); err != nil {
			return err
		}
	}
	lasted := time.Since(began)
	stop()
	done.Wait()
	b.note("examples/shop: 2 web instances, min_healthy_time 0; one of %d requests is for the page, for which web asks the catalog through its `uses` socket", pageEvery)
	b.note("load: %s requests at %s/s of the %d/s that were meant (%d began late), p50/p99 %s/%s ms; the load's own process shares the cores", number(float64(v.asked.Load())),
		number(float64(v.asked.Load())/lasted.Seconds()), loadRate, v.late.Load(), number(v.took.p50()), number(v.took.at(0.99)))
	for cause, n := range v.causes {
		b.note("%d × %s", n, cause)
	}
	b.row("apply: plan and apply asked → new instances have the traffic", apply.all.ms(), "", 0, atMost(apply.all.p50(), 150, " ms"))
	b.row("  asked → head moved", apply.accepted.ms(), "", 0, target{})
	b.row("  asked → first answer of a new instance", apply.first.ms(), "", 0, target{})
	b.row("  asked → rollout complete in the ledger", apply.complete.ms(), "", 0, target{})
	b.row("  head's entry → shift recorded in the ledger, before it is done", apply.inLedger.ms(), "", 0, target{})
	b.row("  head's entry → last request that an old instance gets, by the access log", apply.switched.ms(), "", 0, target{})
	b.row("  the whole command `invar apply`, start to exit", whole.ms(), "", 0, target{})
	b.row("rollback: head's entry → last request that a new instance gets, by the access log", rollback.switched.ms(), "", 0, atMost(rollback.switched.p50(), 10, " ms"))
	b.row("  head's entry → shift recorded in the ledger, before it is done", rollback.inLedger.ms(), "", 0, target{})
	b.row("  asked → last answer of a new instance", rollback.all.ms(), "", 0, target{})
	b.row("failed requests", fmt.Sprint(v.failed.Load()), "", 0, atMost(float64(v.failed.Load()), 0, ""))
	return nil
}

// applier moves the head.
type applier struct {
	*daemon
	*visitors
	app     string
	heading string // in the configuration and at the head
}

// plan changes the headline and returns the plan that follows; evaluation is not timed.
func (a *applier) plan(ctx context.Context, heading string) (api.Plan, error) {
	if err := edit(a.app, fmt.Sprintf("%q", a.heading), fmt.Sprintf("%q", heading)); err != nil {
		return api.Plan{}, err
	}
	out, err := a.run(ctx, a.app, "plan", benchEnv, "-o", "json")
	if err != nil {
		return api.Plan{}, err
	}
	var p api.Plan
	return p, json.Unmarshal([]byte(out), &p)
}

func (a *applier) apply(ctx context.Context, heading string, m *move) error {
	p, err := a.plan(ctx, heading)
	if err != nil {
		return err
	}
	before := a.heading
	a.heading = heading
	return a.move(ctx, m, before, heading, func() (api.Accepted, error) {
		p, err := a.client.Plan(ctx, benchEnv, api.PlanRequest{Bundle: p.Bundle, Release: p.Release})
		if err != nil {
			return api.Accepted{}, err
		}
		return a.client.Apply(ctx, benchEnv, api.ApplyRequest{Bundle: p.Bundle, Release: p.Release, BaseGeneration: p.BaseGeneration, PlanDigest: p.Digest})
	})
}

// rollback goes back to the release before and, not timed, forth to the head.
func (a *applier) rollback(ctx context.Context, m *move) error {
	history, err := a.client.History(ctx, benchEnv)
	if err != nil {
		return err
	}
	old := history[1].Number
	now := a.heading
	before, err := a.headingOf(ctx, old)
	if err != nil {
		return err
	}
	if err := a.move(ctx, m, now, before, func() (api.Accepted, error) {
		return a.client.Rollback(ctx, benchEnv, api.RollbackRequest{To: old})
	}); err != nil {
		return err
	}
	return a.move(ctx, m, before, now, func() (api.Accepted, error) {
		return a.client.Rollback(ctx, benchEnv, api.RollbackRequest{To: history[0].Number})
	})
}

// headingOf reads the headline in the release of a generation.
func (a *applier) headingOf(ctx context.Context, generation int) (string, error) {
	r, err := a.client.Release(ctx, api.Ref{Env: benchEnv, Generation: generation})
	if err != nil {
		return "", err
	}
	_, rest, _ := bytes.Cut(r.Record, []byte(`greeting\":`))
	_, rest, _ = bytes.Cut(rest, []byte(`\"`))
	heading, _, ok := bytes.Cut(rest, []byte(`\"`))
	if !ok {
		return "", fmt.Errorf("no greeting in release %s: %s", r.Digest, r.Record)
	}
	return string(heading), nil
}

// command times the whole command, from its start to its end.
func (a *applier) command(ctx context.Context, heading string, took *sample) error {
	if err := edit(a.app, fmt.Sprintf("%q", a.heading), fmt.Sprintf("%q", heading)); err != nil {
		return err
	}
	began := time.Now()
	if _, err := a.run(ctx, a.app, "apply", benchEnv, "--yes"); err != nil {
		return err
	}
	took.since(began)
	before := a.heading
	a.heading = heading
	_, _, err := a.switched(ctx, before, heading)
	return err
}

// move asks for a new head and measures what follows.
func (a *applier) move(ctx context.Context, m *move, before, after string, ask func() (api.Accepted, error)) error {
	a.forget(after)
	from := max(0, a.accessLogSize()-1<<20)
	asked := time.Now()
	accepted, err := ask()
	if err != nil {
		return err
	}
	m.accepted.since(asked)
	if err := a.completed(ctx, accepted); err != nil {
		return err
	}
	m.complete.since(asked)
	first, last, err := a.switched(ctx, before, after)
	if err != nil {
		return err
	}
	m.first.took(first.Sub(asked))
	m.all.took(last.Sub(asked))
	entries, err := a.client.Entries(ctx, client.EntriesQuery{From: accepted.Entry, Env: benchEnv, Limit: 1000})
	if err != nil {
		return err
	}
	head := entries.Entries[0].Time
	given, err := a.lastGiven(ctx, asked, from)
	if err != nil {
		return err
	}
	m.switched.took(given.Sub(head))
	for i := len(entries.Entries) - 1; i >= 0; i-- {
		if e := entries.Entries[i]; e.Kind == "traffic.shift" {
			m.inLedger.took(e.Time.Sub(head))
			break
		}
	}
	return nil
}

func (a *applier) accessLog() string { return filepath.Join(a.data, "gateway", "log", "access.log") }

func (a *applier) accessLogSize() int64 {
	info, err := os.Stat(a.accessLog())
	if err != nil {
		return 0
	}
	return info.Size()
}

// lastGiven reads in the gateway's access log, from a place on, when the last request began that went to an instance which had traffic
// before the change was asked for. It is what the switch took, whatever the answers took on a busy machine.
func (a *applier) lastGiven(ctx context.Context, asked time.Time, from int64) (last time.Time, err error) {
	select {
	case <-time.After(500 * time.Millisecond): // the log is written some tenths of a second later
	case <-ctx.Done():
		return last, ctx.Err()
	}
	if a.accessLogSize() < from {
		from = 0 // it was put aside, and begun anew
	}
	f, err := os.Open(a.accessLog())
	if err != nil {
		return last, err
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return last, err
	}
	old := map[string]bool{}
	var lines []accessLine
	for scan := bufio.NewScanner(f); scan.Scan(); {
		var l accessLine
		if json.Unmarshal(scan.Bytes(), &l) == nil && l.Instance != "" { // the first line may be half a line
			lines = append(lines, l)
		}
	}
	for _, l := range lines {
		if before := asked.Sub(l.Time); before > 0 && before < 100*time.Millisecond {
			old[l.Instance] = true
		}
	}
	for _, l := range lines {
		if old[l.Instance] && l.Time.After(last) {
			last = l.Time
		}
	}
	if len(old) == 0 {
		return last, fmt.Errorf("the access log has no request before the change")
	}
	return last, nil
}

// accessLine is what is read of a line of the access log.
type accessLine struct {
	Time     time.Time `json:"time"`
	Instance string    `json:"instance"`
}
