package handler_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/api/handler"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/store"
)

// The way of a change through the API: plan, apply, change, compare, go back, destroy.
func TestChangeGoesThroughTheAPI(t *testing.T) {
	w, ctx := newWorld(t), t.Context()

	plan, err := w.local.Plan(ctx, "staging", w.bundle("staging", "hello"))
	w.must(err)
	if plan.Adds != 2 || plan.Replaces != 0 || plan.BaseGeneration != 0 || len(plan.Changes) != 2 || plan.Changes[0].Starts != 2 {
		t.Errorf("first plan: got %+v, want a component with two instances and a route", plan)
	}
	first := w.apply("staging", "hello")
	second := w.apply("staging", "goodbye")
	if first.Generation != 1 || second.Generation != 2 || !second.Changed || second.Entry <= first.Entry {
		t.Errorf("got %+v, then %+v", first, second)
	}

	env, err := w.local.Environment(ctx, "staging")
	w.must(err)
	if env.State != api.Completed || env.Generation != 2 || env.Wanted != 2 || env.Healthy != 2 || env.Total != 2 || env.App != "shop" || env.Reason != "because goodbye" {
		t.Errorf("environment: got %+v", env.EnvironmentSummary)
	}
	if !strings.HasPrefix(env.By, "local:") {
		t.Errorf("moved by %q, want a local user", env.By)
	}
	want := []api.Route{{Name: "shop", URL: "http://staging.localhost:8080/", Host: "staging.localhost", Path: "/", Component: "web", Port: "http", Healthy: true}}
	if diff := cmp.Diff(want, env.Routes); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	if len(env.Components) != 1 || len(env.Components[0].Versions) != 1 || env.Components[0].Versions[0].Percent != 100 || !env.Components[0].Versions[0].Head {
		t.Errorf("components: got %+v, want one version with all of the traffic", env.Components)
	}
	for _, i := range env.Instances {
		if i.Phase != "started" || i.State != "running" || i.Health != "passing" || i.PID == 0 || i.Generation != 2 || !i.Head || i.CreatedAt == nil {
			t.Errorf("instance: got %+v", i)
		}
	}

	diff, err := w.local.Diff(ctx, api.Ref{Env: "staging", Generation: 1}, api.Ref{Env: "staging"})
	w.must(err)
	wantDiff := []api.Difference{
		{Component: "web", Path: "env GREETING", Before: `"hello"`, After: `"goodbye"`},
		{Component: "web", Path: "file /etc/web.conf", Lines: []string{" a", "-greeting hello", "+greeting goodbye", " b"}},
	}
	if diff.A != first.Release || diff.B != second.Release || len(diff.Changes) != 1 || diff.Changes[0].Action != api.ActionReplace {
		t.Errorf("diff: got %+v", diff)
	}
	if d := cmp.Diff(wantDiff, diff.Differences, cmp.FilterPath(func(p cmp.Path) bool {
		return strings.HasPrefix(p.Last().String(), ".Before") || strings.HasPrefix(p.Last().String(), ".After")
	}, cmp.Ignore())); d != "" {
		t.Errorf("differences (-want +got):\n%s", d)
	}

	back, err := w.local.Rollback(ctx, "staging", api.RollbackRequest{Reason: "it was fine"})
	w.must(err)
	if back.Generation != 3 || back.Release != first.Release {
		t.Errorf("rollback: got %+v, want generation 3 with the first release", back)
	}
	w.settle("staging")
	rel, err := w.local.Release(ctx, api.Ref{Digest: first.Release})
	w.must(err)
	wantHeads := []api.Head{{Env: "staging", Generation: 1}, {Env: "staging", Generation: 3, Current: true}}
	if d := cmp.Diff(wantHeads, rel.Heads); d != "" {
		t.Errorf("heads of the release (-want +got):\n%s", d)
	}

	gone, err := w.local.Destroy(ctx, "staging", api.DestroyRequest{Reason: "done"})
	w.must(err)
	w.settle("staging")
	history, err := w.local.History(ctx, "staging")
	w.must(err)
	var kinds []string
	for _, g := range history {
		kinds = append(kinds, fmt.Sprintf("%d %s %s", g.Number, g.Kind, g.Outcome))
	}
	if d := cmp.Diff([]string{"4 destroy completed", "3 rollback completed", "2 apply completed", "1 apply completed"}, kinds); d != "" || gone.Generation != 4 {
		t.Errorf("history (-want +got):\n%s", d)
	}
	envs, err := w.local.Environments(ctx)
	w.must(err)
	if len(envs) != 1 || envs[0].Release != "" || envs[0].App != "" || envs[0].Total != 0 {
		t.Errorf("environments: got %+v, want one that is destroyed", envs)
	}
}

// While the gateway is away, what is known of environments is told all the same; and the server says that it is not well.
func TestGatewayAwayIsToldAndNoFailure(t *testing.T) {
	away := errors.New("connection refused")
	w := newWorld(t, func(c *handler.Config) {
		c.Gateway = func(context.Context) (gateway.Status, error) { return gateway.Status{}, away }
		c.Healthy = func(context.Context) error { return away }
	})
	w.apply("staging", "one")
	env, err := w.local.Environment(t.Context(), "staging")
	if err != nil || env.Routes[0].URL != "http://staging.localhost/" {
		t.Errorf("got %+v, %v", env.Routes, err)
	}
	srv, err := w.local.Server(t.Context())
	if err != nil || srv.Gateway.Failures["gateway"] != "connection refused" {
		t.Errorf("got %+v, %v", srv.Gateway, err)
	}
	if _, err := w.local.Healthy(t.Context()); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("health: got %v, want it unavailable", err)
	}
}

// A route that the gateway can't serve says why.
func TestRouteTellsWhatTheGatewayCouldNotDo(t *testing.T) {
	w := newWorld(t, func(c *handler.Config) {
		c.Gateway = func(context.Context) (gateway.Status, error) {
			return gateway.Status{Failures: map[string]string{"route shop of staging": "no HTTPS listener", "tcp/": "of no route"}}, nil
		}
	})
	w.apply("staging", "one")
	env, err := w.local.Environment(t.Context(), "staging")
	if err != nil || env.Routes[0].Trouble != "no HTTPS listener" {
		t.Errorf("got %+v, %v", env.Routes, err)
	}
}

// A plan that was saved before the head moved is refused, and nothing happens.
func TestStalePlanIsRefused(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.apply("staging", "one")
	old, err := w.local.Plan(ctx, "staging", w.bundle("staging", "two"))
	w.must(err)
	w.apply("staging", "three")
	size := w.control.State().Size()
	_, err = w.local.Apply(ctx, "staging", applyOf(old, ""))
	if fault.KindOf(err) != fault.Conflict || fault.Hint(err) == "" {
		t.Errorf("got %v, want a conflict with a hint", err)
	}
	forged := applyOf(old, "")
	forged.BaseGeneration = 2
	if _, err = w.local.Apply(ctx, "staging", forged); fault.KindOf(err) != fault.Conflict {
		t.Errorf("plan of another base: got %v, want a conflict", err)
	}
	if got := w.control.State().Size(); got != size {
		t.Errorf("the ledger grew from %d to %d entries", size, got)
	}
}

// Of many who apply to one environment at once by plans on the same base, one wins and the others are told.
func TestConcurrentAppliesOneWins(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	const n = 8
	requests := make([]api.ApplyRequest, n)
	for i := range requests {
		p, err := w.local.Plan(ctx, "staging", w.bundle("staging", fmt.Sprint("v", i)))
		w.must(err)
		requests[i] = applyOf(p, "")
	}
	errs := make(chan error, n)
	for _, r := range requests {
		go func() {
			_, err := w.local.Apply(ctx, "staging", r)
			errs <- err
		}()
	}
	won := 0
	for range n {
		switch err := <-errs; {
		case err == nil:
			won++
		case fault.KindOf(err) != fault.Conflict:
			t.Errorf("got %v, want a conflict", err)
		}
	}
	if e, err := w.local.Environment(ctx, "staging"); won != 1 || err != nil || e.Generation != 1 {
		t.Errorf("%d applies won, generation %d, %v; want one, generation 1", won, e.Generation, err)
	}
}

// Everything that is not there, or not right, is a problem of its kind.
func TestErrorsHaveKinds(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.apply("staging", "one")
	bad := w.bundle("staging", "two")
	bad.Release = w.bundle("staging", "three").Release
	missing := bad
	missing.Bundle = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	tests := map[string]struct {
		do   func() error
		kind fault.Kind
	}{
		"environment":            {func() error { _, err := w.local.Environment(ctx, "nope"); return err }, fault.NotFound},
		"environment name":       {func() error { _, err := w.local.Environment(ctx, "../x"); return err }, fault.Invalid},
		"history":                {func() error { _, err := w.local.History(ctx, "nope"); return err }, fault.NotFound},
		"release":                {func() error { _, err := w.local.Release(ctx, api.Ref{Digest: missing.Bundle}); return err }, fault.NotFound},
		"generation":             {func() error { _, err := w.local.Release(ctx, api.Ref{Env: "staging", Generation: 9}); return err }, fault.NotFound},
		"release not reproduced": {func() error { _, err := w.local.Plan(ctx, "staging", bad); return err }, fault.Invalid},
		"bundle not pushed":      {func() error { _, err := w.local.Plan(ctx, "staging", missing); return err }, fault.NotFound},
		"digest": {func() error {
			_, err := w.local.Plan(ctx, "staging", api.PlanRequest{Bundle: "sha256:0", Release: "x"})
			return err
		}, fault.Invalid},
		"rollback": {func() error { _, err := w.local.Rollback(ctx, "staging", api.RollbackRequest{To: 7}); return err }, fault.NotFound},
		"entry":    {func() error { _, err := w.local.Entry(ctx, 1<<40); return err }, fault.NotFound},
		"component": {func() error {
			return w.local.Logs(ctx, client.LogsQuery{Env: "staging", Component: "nope"}, io.Discard)
		}, fault.NotFound},
		"instance": {func() error {
			return w.local.Logs(ctx, client.LogsQuery{Env: "staging", Component: "web", Instance: "web-zzzzzzzzzz"}, io.Discard)
		}, fault.NotFound},
		"instance of another": {func() error {
			return w.local.Logs(ctx, client.LogsQuery{Env: "staging", Component: "web", Instance: "db-zzzzzzzzzz"}, io.Discard)
		}, fault.Invalid},
		"token":      {func() error { return w.local.DeleteToken(ctx, "nope") }, fault.NotFound},
		"token name": {func() error { _, err := w.local.CreateToken(ctx, api.TokenRequest{Name: "No Name"}); return err }, fault.Invalid},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := tt.do(); fault.KindOf(err) != tt.kind {
				t.Errorf("got %v (kind %q), want kind %q", err, fault.KindOf(err), tt.kind)
			}
		})
	}
}

// The ledger can be read, proven and checked through the API, and by tlog-tiles alone.
func TestLedgerCanBeChecked(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	acc := w.apply("staging", "one")
	srv, err := w.local.Server(ctx)
	w.must(err)
	verifier, err := ledger.ParseVerifierKey(srv.Ledger.VKey)
	w.must(err)

	proof, err := w.local.Entry(ctx, acc.Entry)
	w.must(err)
	index, _, err := ledger.CheckProof([]byte(proof.TLogProof), proof.Entry.Leaf, verifier)
	if err != nil || uint64(index) != acc.Entry {
		t.Errorf("checking the proof: index %d, %v", index, err)
	}
	if _, err := ledger.ParseCheckpoint([]byte(proof.Checkpoint), verifier); err != nil {
		t.Errorf("the proof's checkpoint: %v", err)
	}
	if proof.Entry.Kind != "change.apply" || proof.Entry.Reason != "because one" || proof.Entry.Env != "staging" {
		t.Errorf("entry: got %+v", proof.Entry)
	}

	c, err := w.local.Checkpoint(ctx)
	w.must(err)
	parsed, err := ledger.ParseCheckpoint([]byte(c.Note), verifier)
	if err != nil || uint64(parsed.Size) != c.Size || base64.StdEncoding.EncodeToString(c.RootHash) != base64.StdEncoding.EncodeToString(parsed.Root[:]) {
		t.Errorf("checkpoint: got %+v, %v", c, err)
	}
	v, err := w.local.Verify(ctx)
	if err != nil || !v.OK || v.Size != c.Size || !bytes.Equal(v.RootHash, c.RootHash) {
		t.Errorf("verify: got %+v, %v", v, err)
	}

	all, err := w.local.Entries(ctx, client.EntriesQuery{})
	w.must(err)
	if all.Next != all.Size || uint64(len(all.Entries)) != all.Size || all.Entries[0].Kind != "genesis" {
		t.Errorf("entries: got %d of %d, next %d", len(all.Entries), all.Size, all.Next)
	}
	some, err := w.local.Entries(ctx, client.EntriesQuery{From: 1, Env: "staging", Kind: "instance.", Limit: 1})
	w.must(err)
	if len(some.Entries) != 1 || some.Entries[0].Kind != "instance.create" || some.Next >= some.Size {
		t.Errorf("filtered: got %+v, next %d of %d", some.Entries, some.Next, some.Size)
	}
}

// A ledger that was tampered with does not verify, and the answer names the entry.
func TestVerifyNamesTheBadEntry(t *testing.T) {
	w := newWorld(t)
	w.apply("staging", "one")
	w.disk.Edit(func(entries *[][]byte, _ *[]tlog.Hash, _ *[]store.Head) {
		changed := bytes.Clone((*entries)[3])
		changed[len(changed)/2] ^= 1
		(*entries)[3] = changed
	})
	v, err := w.local.Verify(t.Context())
	if err != nil || v.OK || v.Problem == nil || v.Problem.Index == nil || *v.Problem.Index != 3 {
		t.Errorf("got %+v (%+v), %v; want entry 3 to be bad", v, v.Problem, err)
	}
}

func TestTilesMayBeCachedForEver(t *testing.T) {
	w := newWorld(t)
	w.apply("staging", "one")
	size := w.control.State().Size()
	tests := []struct {
		path, cache string
		status      int
	}{
		{"checkpoint", "no-cache", 200},
		{fmt.Sprintf("tile/0/000.p/%d", size), "public, max-age=31536000, immutable", 200},
		{fmt.Sprintf("tile/entries/000.p/%d", size), "public, max-age=31536000, immutable", 200},
		{"tile/0/000", "no-store", 404},
		{"tile/0/garbage", "no-store", 404},
		{"nothing", "no-store", 404},
	}
	for _, tt := range tests {
		resp := w.get(api.PathTiles + tt.path)
		if resp.StatusCode != tt.status || resp.Header.Get("Cache-Control") != tt.cache {
			t.Errorf("%s: got %d, %q, want %d, %q", tt.path, resp.StatusCode, resp.Header.Get("Cache-Control"), tt.status, tt.cache)
		}
	}
}

// get asks over the unix socket, and reads the whole answer.
func (w *world) get(path string) *http.Response {
	w.t.Helper()
	resp, err := (&http.Client{Transport: w.local.Transport()}).Get(w.local.Base().String() + path)
	w.must(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	w.must(err)
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp
}

// A client that follows sees the entries of a rollout in order, once each, and its instances come and go; and who
// connects again goes on where it was.
func TestEventsShowARollout(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	began := make(chan struct{})
	done := make(chan []string)
	go func() {
		defer close(done)
		var seen []string
		var next uint64
		for e, err := range w.local.Events(ctx, client.EventsQuery{Env: "staging"}) {
			switch {
			case err != nil:
				t.Error(err)
				return
			case e.Heartbeat != nil && next == 0:
				next = e.Heartbeat.Size
				close(began)
			case e.Instance != nil:
				seen = append(seen, e.Instance.Phase)
			case e.Entry != nil:
				if e.Entry.Index < next || e.Entry.Env != "staging" {
					t.Errorf("got entry %d of %q after %d", e.Entry.Index, e.Entry.Env, next)
				}
				next = e.Entry.Index + 1
				seen = append(seen, e.Entry.Kind)
			}
			if slices.Contains(seen, "deploy.complete") && slices.Contains(seen, "started") {
				done <- seen
				return
			}
		}
	}()
	<-began
	acc := w.apply("staging", "one")
	seen := strings.Join(<-done, " ")
	for _, want := range []string{"change.apply", "instance.create", "instance.healthy", "traffic.shift"} {
		if !strings.Contains(seen, want) {
			t.Errorf("got %s, want %s in it", seen, want)
		}
	}

	since := acc.Entry
	for e, err := range w.local.Events(ctx, client.EventsQuery{Since: &since}) {
		w.must(err)
		if e.Entry != nil {
			if e.Entry.Index != acc.Entry {
				t.Errorf("resumed at %d, want %d", e.Entry.Index, acc.Entry)
			}
			break
		}
	}
}

// Browsers say where they were in a header of their own.
func TestEventsResumeByLastEventID(t *testing.T) {
	w := newWorld(t)
	acc := w.apply("staging", "one")
	req, err := http.NewRequestWithContext(t.Context(), "GET", w.local.Base().String()+api.PathEvents+"?since=0", nil)
	w.must(err)
	req.Header.Set("Last-Event-ID", fmt.Sprint(acc.Entry))
	resp, err := w.local.Transport().RoundTrip(req)
	w.must(err)
	defer resp.Body.Close()
	buf := make([]byte, 64<<10)
	n, err := io.ReadAtLeast(resp.Body, buf, 400)
	w.must(err)
	text := string(buf[:n])
	if !strings.Contains(text, fmt.Sprintf("\nid: %d\n", acc.Entry+1)) || strings.Contains(text, fmt.Sprintf("id: %d\n", acc.Entry)) {
		t.Errorf("after entry %d got\n%s", acc.Entry, text)
	}
}

func TestEventsSinceBeyondTheEndAreRefused(t *testing.T) {
	w := newWorld(t)
	since := uint64(1000)
	for _, err := range w.local.Events(t.Context(), client.EventsQuery{Since: &since}) {
		if fault.KindOf(err) != fault.Invalid {
			t.Errorf("got %v, want it invalid", err)
		}
	}
}

// A server that shuts down ends streams; the client takes them up again.
func TestShutdownEndsStreams(t *testing.T) {
	w := newWorld(t) // its cleanup fails when a stream holds the shutdown up
	resp, err := (&http.Client{Transport: w.local.Transport()}).Get(w.local.Base().String() + api.PathEvents)
	w.must(err)
	t.Cleanup(func() { resp.Body.Close() })
}

func TestLogs(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.apply("staging", "one")
	list, err := w.host.List(ctx)
	w.must(err)
	a, b := list[0].Identity.ID, list[1].Identity.ID
	w.must(w.host.Say(a, "first"))
	w.must(w.host.Say(b, "second"))
	w.must(w.host.Say(a, "third"))
	read := func(q client.LogsQuery) string {
		t.Helper()
		q.Env, q.Component = "staging", "web"
		var out bytes.Buffer
		w.must(w.local.Logs(ctx, q, &out))
		return out.String()
	}
	own := func(id instance.ID, lines ...string) (out string) {
		for _, l := range lines {
			out += string(id) + " " + l + "\n"
		}
		return out
	}
	if got, want := read(client.LogsQuery{Tail: -1}), own(a, "created", "started", "first", "third")+own(b, "created", "started", "second"); got != want {
		t.Errorf("component: got %q, want %q", got, want)
	}
	if got, want := read(client.LogsQuery{Tail: 1}), own(a, "third")+own(b, "second"); got != want {
		t.Errorf("tail: got %q, want %q", got, want)
	}
	if got, want := read(client.LogsQuery{Tail: -1, Instance: string(a)}), "created\nstarted\nfirst\nthird\n"; got != want {
		t.Errorf("instance: got %q, want %q", got, want)
	}
}

// Who follows a component's log also gets the lines of instances that come later.
func TestLogsFollow(t *testing.T) {
	w := newWorld(t)
	w.apply("staging", "one")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, pipe := io.Pipe()
	go func() {
		pipe.CloseWithError(w.local.Logs(ctx, client.LogsQuery{Env: "staging", Component: "web", Tail: 0, Follow: true}, pipe))
	}()
	w.apply("staging", "two")
	list, err := w.host.List(ctx)
	w.must(err)
	id := list[len(list)-1].Identity.ID
	w.must(w.host.Say(id, "hello"))
	var got []string
	for lines := bufio.NewScanner(r); lines.Scan(); {
		if got = append(got, lines.Text()); lines.Text() == string(id)+" hello" {
			return
		}
	}
	t.Errorf("got %q, want hello of %s", got, id)
}
