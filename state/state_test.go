package state_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

var start = time.Date(2026, 11, 22, 23, 0, 0, 0, time.UTC)

// world writes entries as a server would, with releases that it keeps in memory.
type world struct {
	now     state.State
	records map[digest.Digest]release.Record
	at      time.Time
	serial  int
	entries []state.Entry
	t       testing.TB
}

func newWorld() *world {
	w := &world{records: map[digest.Digest]release.Record{}, at: start}
	w.now = state.New(w.lookup)
	return w
}

func (w *world) lookup(d digest.Digest) (release.Record, error) {
	r, ok := w.records[d]
	if !ok {
		return r, fault.Errorf(fault.NotFound, "release %s", d)
	}
	return r, nil
}

func (w *world) entry(env spec.EnvName, data state.Data) state.Entry {
	w.serial++
	w.at = w.at.Add(time.Duration(w.serial%3) * time.Millisecond)
	return state.Entry{
		ID:   state.EntryID(fmt.Sprintf("01936f2e-0000-7000-8000-%012x", w.serial)),
		Time: w.at, Actor: state.Actor{Kind: state.ActorLocal, Name: "alice"}, Env: env, Data: data,
	}
}

// try applies an entry and keeps it when it is legal.
func (w *world) try(e state.Entry) error {
	next, err := w.now.Apply(w.now.Size(), e)
	if err == nil {
		w.now = next
		w.entries = append(w.entries, e)
	}
	return err
}

func (w *world) must(t testing.TB, env spec.EnvName, data state.Data) {
	t.Helper()
	if err := w.try(w.entry(env, data)); err != nil {
		t.Fatalf("%s: %v", data.EntryKind(), err)
	}
}

func component(name, version string, volumes ...release.Volume) release.Component {
	return release.Component{Name: spec.ComponentName(name), Image: digest.Of([]byte("image")), Root: digest.Of([]byte("root")),
		Args: []string{"/app"}, Env: map[string]string{"VERSION": version}, Volumes: volumes}
}

// known puts a release of app into the ledger and returns it.
func (w *world) known(t testing.TB, app spec.AppName, env spec.EnvName, components ...release.Component) (bundle, rel digest.Digest) {
	t.Helper()
	bundle = digest.Of(fmt.Append(nil, app, env, components))
	r := release.Record{V: 1, App: app, Env: env, Bundle: bundle}
	for _, c := range components {
		r.Components = append(r.Components, release.Placed{Component: c, Replicas: 1})
	}
	rel, err := r.Digest()
	if err != nil {
		t.Fatal(err)
	}
	w.records[rel] = r
	if _, err := w.now.Bundle(bundle); err != nil {
		e := w.entry("", state.Bundle{App: app, Bundle: bundle, Source: digest.Of([]byte("source"))})
		e.Body = &state.Body{Digest: bundle, Size: 1, Type: release.TypeBundle}
		if err := w.try(e); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.now.Release(rel); err != nil {
		e := w.entry(env, state.Release{App: app, Bundle: bundle, Release: rel})
		e.Body = &state.Body{Digest: rel, Size: 1, Type: release.TypeRecord}
		if err := w.try(e); err != nil {
			t.Fatal(err)
		}
	}
	return bundle, rel
}

func (w *world) apply(t testing.TB, app spec.AppName, env spec.EnvName, components ...release.Component) error {
	t.Helper()
	bundle, rel := w.known(t, app, env, components...)
	e, _ := w.now.Environment(env)
	return w.try(w.applied(env, state.Apply{App: app, Generation: e.Head.Number + 1, Base: e.Head.Number, Release: rel, Bundle: bundle, Plan: digest.Of([]byte("plan"))}))
}

// applied is the entry of an apply, with a body.
func (w *world) applied(env spec.EnvName, a state.Apply) state.Entry {
	e := w.entry(env, a)
	e.Body = &state.Body{Digest: a.Plan, Size: 1, Type: "application/json"}
	return e
}

func (w *world) step(env spec.EnvName, s deploy.Step) error {
	return w.try(w.entry(env, state.Step{Step: s}))
}

func (w *world) env(t testing.TB, name spec.EnvName) state.Environment {
	t.Helper()
	e, err := w.now.Environment(name)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func begun(t testing.TB) *world {
	w := newWorld()
	w.must(t, "", state.Genesis{Origin: "example.com/ledger", VKey: "example.com/ledger+0+x"})
	return w
}

func TestHistoryTellsHowEveryHeadCameToBe(t *testing.T) {
	w := begun(t)
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(w.apply(t, "shop", "prod", component("web", "1")))
	do(w.step("prod", deploy.Step{Kind: deploy.Done, Generation: 1}))
	do(w.apply(t, "shop", "prod", component("web", "2")))
	do(w.step("prod", deploy.Step{Kind: deploy.Failed, Generation: 2, Cause: "web exits at once"}))
	first, err := w.now.Generation("prod", 1)
	do(err)
	do(w.step("prod", deploy.Step{Kind: deploy.Revert, Generation: 3, Release: first.Release, Cause: "generation 2 failed"}))
	do(w.apply(t, "shop", "prod", component("web", "3")))
	do(w.try(w.entry("prod", state.Rollback{App: "shop", Generation: 5, Base: 4, To: 1, Release: first.Release, Bundle: first.Bundle})))
	do(w.step("prod", deploy.Step{Kind: deploy.Done, Generation: 5}))
	do(w.try(w.entry("prod", state.Destroy{App: "shop", Generation: 6, Base: 5})))

	type line struct {
		Kind    state.MoveKind
		Outcome deploy.Outcome
		Cause   string
	}
	var got []line
	for g := range w.now.History("prod") {
		got = append(got, line{g.Kind, g.Outcome, g.Cause})
		if e := w.entries[g.Entry]; e.ID != g.Change {
			t.Errorf("generation %d: entry %d is %s, not %s", g.Number, g.Entry, e.ID, g.Change)
		}
	}
	want := []line{
		{state.MovedByApply, deploy.Completed, ""},
		{state.MovedByApply, deploy.Broken, "web exits at once"},
		{state.MovedByRevert, deploy.Superseded, ""},
		{state.MovedByApply, deploy.Superseded, ""},
		{state.MovedByRollback, deploy.Completed, ""},
		{state.MovedByDestroy, deploy.Rolling, ""},
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Error(diff)
	}
	if n := len(slices.Collect(w.now.Heads(first.Release))); n != 3 {
		t.Errorf("release of generation 1 has %d heads, want 3", n)
	}
}

func TestIllegalEntriesAreRefused(t *testing.T) {
	for _, tc := range []struct {
		name string
		kind fault.Kind
		data func(w *world) state.Entry
	}{
		{"second genesis", fault.Conflict, func(w *world) state.Entry { return w.entry("", state.Genesis{Origin: "a", VKey: "b"}) }},
		{"unknown release", fault.Conflict, func(w *world) state.Entry {
			d := digest.Of([]byte("unknown"))
			return w.applied("prod", state.Apply{App: "shop", Generation: 2, Base: 1, Release: d, Bundle: d, Plan: d})
		}},
		{"stale base", fault.Conflict, func(w *world) state.Entry {
			g, _ := w.now.Generation("prod", 1)
			return w.applied("prod", state.Apply{App: "shop", Generation: 1, Release: g.Release, Bundle: g.Bundle, Plan: g.Release})
		}},
		{"release of another environment", fault.Conflict, func(w *world) state.Entry {
			g, _ := w.now.Generation("prod", 1)
			return w.applied("staging", state.Apply{App: "shop", Generation: 1, Release: g.Release, Bundle: g.Bundle, Plan: g.Release})
		}},
		{"rollback to what never was", fault.Conflict, func(w *world) state.Entry {
			d := digest.Of([]byte("unknown"))
			return w.entry("prod", state.Rollback{App: "shop", Generation: 2, Base: 1, To: 1, Release: d, Bundle: d})
		}},
		{"destroy of nothing", fault.Conflict, func(w *world) state.Entry {
			return w.entry("staging", state.Destroy{App: "shop", Generation: 1})
		}},
		{"volumes while running", fault.Conflict, func(w *world) state.Entry { return w.entry("prod", state.VolumeDestroy{Generation: 1}) }},
		{"step of an unknown instance", fault.Conflict, func(w *world) state.Entry {
			return w.entry("prod", state.Step{Step: deploy.Step{Kind: deploy.Healthy, ID: "web-aaaaaaaaaa"}})
		}},
		{"step where there is no environment", fault.Conflict, func(w *world) state.Entry {
			return w.entry("staging", state.Step{Step: deploy.Step{Kind: deploy.Shift, Component: "web"}})
		}},
		{"unknown token", fault.NotFound, func(w *world) state.Entry { return w.entry("", state.TokenRevoke{Token: "aaaaaaaaaa"}) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := begun(t)
			if err := w.apply(t, "shop", "prod", component("web", "1")); err != nil {
				t.Fatal(err)
			}
			before, _ := w.now.Encode()
			if err := w.try(tc.data(w)); !errors.Is(err, tc.kind) {
				t.Errorf("got %v, want %s", err, tc.kind)
			}
			if after, _ := w.now.Encode(); !bytes.Equal(before, after) {
				t.Error("the state has changed")
			}
		})
	}
}

func TestAnotherAppTakesAnEnvironmentOnlyOnceDestroyed(t *testing.T) {
	w := begun(t)
	if err := w.apply(t, "shop", "prod", component("web", "1")); err != nil {
		t.Fatal(err)
	}
	if err := w.apply(t, "wiki", "prod", component("web", "1")); !errors.Is(err, fault.Conflict) {
		t.Errorf("got %v, want a conflict", err)
	}
	w.must(t, "prod", state.Destroy{App: "shop", Generation: 2, Base: 1})
	if err := w.apply(t, "wiki", "prod", component("web", "1")); err != nil {
		t.Error(err)
	}
}

func TestVolumesAreDueUntilDestroyed(t *testing.T) {
	w := begun(t)
	if err := w.apply(t, "shop", "prod", component("db", "1", release.Volume{Name: "data", Path: "/data"})); err != nil {
		t.Fatal(err)
	}
	w.must(t, "prod", state.Destroy{App: "shop", Generation: 2, Base: 1, Volumes: true})
	if e := w.env(t, "prod"); !e.Volumes || !e.VolumesDue {
		t.Errorf("volumes %v, due %v; want both", e.Volumes, e.VolumesDue)
	}
	if err := w.apply(t, "shop", "prod", component("db", "2")); !errors.Is(err, fault.Conflict) {
		t.Errorf("a release came while volumes were being destroyed: %v", err)
	}
	w.must(t, "prod", state.VolumeDestroy{Generation: 2})
	if e := w.env(t, "prod"); e.Volumes || e.VolumesDue {
		t.Errorf("volumes %v, due %v; want neither", e.Volumes, e.VolumesDue)
	}
}

// move draws an entry that may or may not be legal.
func (w *world) move(rt *rapid.T) error {
	env := rapid.SampledFrom([]spec.EnvName{"prod", "staging"}).Draw(rt, "env")
	e, _ := w.now.Environment(env)
	ids := func() instance.ID {
		for id := range e.Instances {
			return id
		}
		return "none-aaaaaaaaaa"
	}
	switch rapid.IntRange(0, 12).Draw(rt, "what") {
	case 0, 1:
		app := rapid.SampledFrom([]spec.AppName{"shop", "shop", "shop", "wiki"}).Draw(rt, "app")
		version := rapid.SampledFrom([]string{"1", "2", "3"}).Draw(rt, "version")
		var volumes []release.Volume
		if rapid.Bool().Draw(rt, "volume") {
			volumes = []release.Volume{{Name: "data", Path: "/data"}}
		}
		return w.apply(w.t, app, env, component("web", version, volumes...), component("db", "1"))
	case 2:
		to := rapid.IntRange(1, 5).Draw(rt, "to")
		g, _ := w.now.Generation(env, to)
		return w.try(w.entry(env, state.Rollback{App: g.App, Generation: e.Head.Number + 1, Base: e.Head.Number, To: to, Release: g.Release, Bundle: g.Bundle}))
	case 3:
		return w.try(w.entry(env, state.Destroy{App: e.App, Generation: e.Head.Number + 1, Base: e.Head.Number, Volumes: rapid.Bool().Draw(rt, "volumes")}))
	case 4:
		return w.try(w.entry(env, state.VolumeDestroy{Generation: e.Head.Number}))
	case 5:
		return w.step(env, deploy.Step{Kind: rapid.SampledFrom([]deploy.Kind{deploy.Done, deploy.Failed}).Draw(rt, "end"), Generation: e.Head.Number, Cause: "drawn"})
	case 6:
		return w.step(env, deploy.Step{Kind: deploy.Revert, Generation: e.Head.Number + 1, Release: e.Previous.Release})
	case 7, 8:
		for name, d := range e.Head.Digests {
			id := instance.ID(fmt.Sprintf("%s-%010d", name, w.serial))
			return w.step(env, deploy.Step{Kind: deploy.Create, Instance: &instance.Identity{ID: id, Env: env, Component: name, Digest: d, Release: e.Head.Release, Generation: e.Head.Number}})
		}
		return errors.New("nothing to create")
	case 9:
		for name, d := range e.Head.Digests {
			return w.step(env, deploy.Step{Kind: deploy.Shift, Component: name, Shares: []deploy.Share{{Version: d, Percent: 100}}})
		}
		return errors.New("nothing to shift")
	case 10, 11:
		kind := rapid.SampledFrom([]deploy.Kind{deploy.Healthy, deploy.Failing, deploy.Exited, deploy.Retire, deploy.Gone}).Draw(rt, "kind")
		return w.step(env, deploy.Step{Kind: kind, ID: ids(), ExitCode: 1, Cause: "drawn"})
	}
	id := state.TokenID(rapid.SampledFrom([]string{"aaaaaaaa", "bbbbbbbb"}).Draw(rt, "token"))
	if rapid.Bool().Draw(rt, "revoke") {
		return w.try(w.entry("", state.TokenRevoke{Token: id}))
	}
	return w.try(w.entry("", state.TokenCreate{Token: id, Name: "ci", Secret: digest.Of([]byte(id))}))
}

func TestFoldProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld()
		w.t = t
		w.must(t, "", state.Genesis{Origin: "o", VKey: "v"})
		cut, snap := 0, []byte(nil)
		for range rapid.IntRange(1, 60).Draw(rt, "length") {
			before := encode(t, w.now)
			held := w.now
			err := w.move(rt)
			if !bytes.Equal(before, encode(t, held)) {
				t.Fatalf("an entry changed the state before it (%v)", err)
			}
			if err != nil && fault.KindOf(err) == "" && err.Error()[:7] != "nothing" {
				t.Fatalf("refused without a kind: %v", err)
			}
			if rapid.IntRange(0, 9).Draw(rt, "snapshot") == 0 {
				cut, snap = len(w.entries), encode(t, w.now)
			}
		}
		want := encode(t, w.now)

		all, err := state.New(w.lookup).ApplyAll(0, w.entries)
		if err != nil {
			t.Fatalf("folding from zero: %v", err)
		}
		if diff := cmp.Diff(string(encode(t, all)), string(want)); diff != "" {
			t.Fatalf("folding from zero at once: %s", diff)
		}
		if snap != nil {
			s, err := state.DecodeState(snap, w.lookup)
			if err != nil {
				t.Fatal(err)
			}
			if s, err = s.ApplyAll(int64(cut), w.entries[cut:]); err != nil {
				t.Fatalf("folding from the snapshot: %v", err)
			}
			if diff := cmp.Diff(string(encode(t, s)), string(want)); diff != "" {
				t.Fatalf("folding from the snapshot: %s", diff)
			}
			for e := range all.Environments() {
				got, _ := s.Environment(e.Name)
				if diff := cmp.Diff(got, e, cmpopts.EquateEmpty()); diff != "" {
					t.Fatalf("environment from the snapshot: %s", diff)
				}
			}
		}
	})
}

func encode(t testing.TB, s state.State) []byte {
	t.Helper()
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLiveTellsWatchers(t *testing.T) {
	w := begun(t)
	live := state.NewLive(w.now)
	before := live.Now()
	changed, prod, staging := before.Changed(), before.EnvironmentChanged("prod"), before.EnvironmentChanged("staging")
	w.now = before
	if err := w.apply(t, "shop", "prod", component("web", "1")); err != nil {
		t.Fatal(err)
	}
	if err := live.Publish(w.now); err != nil {
		t.Fatal(err)
	}
	if err := live.Publish(w.now); !errors.Is(err, fault.Conflict) {
		t.Errorf("published twice: %v", err)
	}
	for name, ch := range map[string]<-chan struct{}{"changed": changed, "prod": prod} {
		select {
		case <-ch:
		default:
			t.Errorf("%s: not told", name)
		}
	}
	_ = staging // it may be told as well
	if _, err := before.Environment("prod"); !errors.Is(err, fault.NotFound) {
		t.Errorf("the state from before knows of the change: %v", err)
	}
	if diff := cmp.Diff(string(encode(t, live.Now())), string(encode(t, w.now))); diff != "" {
		t.Error(diff)
	}
	// A state that was decided on but not published tells nobody.
	now := live.Now()
	if _, err := now.Apply(now.Size(), w.entry("", state.LogStart{Version: "1"})); err != nil {
		t.Fatal(err)
	}
	select {
	case <-now.Changed():
		t.Error("a pending state told watchers")
	default:
	}
}

func TestDecodeStateRefusesAnotherVersion(t *testing.T) {
	b := encode(t, begun(t).now)
	for _, bad := range [][]byte{bytes.Replace(b, []byte(`{"v":`), []byte(`{"v":1`), 1), b[:len(b)-1], []byte("null"), nil} {
		if _, err := state.DecodeState(bad, newWorld().lookup); !errors.Is(err, fault.Corrupt) {
			t.Errorf("%.20q: got %v", bad, err)
		}
	}
}

// What differed is open until its resolution; in a ledger from before there were any, until the instance is gone.
func TestDriftsAreListed(t *testing.T) {
	for name, over := range map[string][]deploy.Step{
		"resolved": {
			{Kind: deploy.Settled, ID: "web-aaaaaaaaaa", Resolution: deploy.Replaced, Keys: []string{"limit pids"}, Successors: []instance.ID{"web-bbbbbbbbbb"}},
			{Kind: deploy.Gone, ID: "web-aaaaaaaaaa"},
		},
		"before there were resolutions": {{Kind: deploy.Gone, ID: "web-aaaaaaaaaa"}},
	} {
		w := begun(t)
		if err := w.apply(t, "shop", "prod", component("web", "1")); err != nil {
			t.Fatal(err)
		}
		e := w.env(t, "prod")
		must := func(s deploy.Step) {
			t.Helper()
			if err := w.step("prod", s); err != nil {
				t.Fatal(err)
			}
		}
		must(deploy.Step{Kind: deploy.Create, Instance: &instance.Identity{
			ID: "web-aaaaaaaaaa", Env: "prod", Component: "web", Digest: e.Head.Digests["web"], Release: e.Head.Release, Generation: e.Head.Number,
		}})
		first := w.now.Size()
		for _, field := range []string{"pids", "memory"} {
			must(deploy.Step{Kind: deploy.Drifted, ID: "web-aaaaaaaaaa", Response: spec.Alert, Findings: []instance.Finding{{Kind: "limit", Field: field, Found: "1"}}, Cause: field})
		}
		want := state.Drift{
			Env: "prod", Instance: "web-aaaaaaaaaa", Component: "web", Detected: []int64{first, first + 1}, Keys: []string{"limit pids", "limit memory"},
			Causes: []string{"pids", "memory"}, Response: "alert",
		}
		check := func(open bool) {
			t.Helper()
			got := slices.Collect(w.now.Drifts("prod"))
			if len(got) != 1 || got[0].Open() != open {
				t.Fatalf("%s: %+v", name, got)
			}
			if diff := cmp.Diff(want, got[0], cmpopts.IgnoreFields(state.Drift{}, "At", "ResolvedAt")); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
		check(true)
		want.Resolved, want.Resolution, want.Successors = w.now.Size(), deploy.Removed, nil
		if len(over) == 2 {
			want.Resolution, want.Successors = deploy.Replaced, []instance.ID{"web-bbbbbbbbbb"}
		}
		for _, s := range over {
			must(s)
		}
		check(false)
	}
}
