package reconcile_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/invarhq/invar/attest"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/reconcile"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/runtimetest"
	"github.com/invarhq/invar/spec"
)

// measured is a world with two instances of web that are healthy, and nobody who heals them.
func measured(t *testing.T) (*world, []instance.ID) {
	t.Helper()
	w := newWorld(t, runtimetest.Config{})
	w.book.head(t, "prod", app(fast, "web×2=a"))
	w.start(t.Context())
	time.Sleep(time.Minute)
	synctest.Wait()
	w.stop()
	var ids []instance.ID
	for _, o := range w.seen(t) {
		ids = append(ids, o.Identity.ID)
	}
	if len(ids) != 2 {
		t.Fatalf("%d instances: %s", len(ids), w.picture("prod"))
	}
	return w, ids
}

func (w *world) seen(t *testing.T) []instance.Observation {
	t.Helper()
	seen, err := w.host.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return seen
}

func (w *world) measure(t *testing.T) map[instance.ID]attest.Instance {
	t.Helper()
	found, err := reconcile.Measure(t.Context(), w.via, func() (deploy.Environment, error) { return w.env("prod"), nil })
	if err != nil {
		t.Fatal(err)
	}
	s := attest.Verified(attest.Verification{Env: "prod"}, found)
	out := map[instance.ID]attest.Instance{}
	for _, i := range s.Predicate.Instances {
		out[i.ID] = i
	}
	return out
}

func TestMeasuringTellsOfEveryInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ids := measured(t)
		for id, i := range w.measure(t) {
			if !i.OK() || i.State != attest.Running || i.Found != digest.Of(nil) || i.Digest != w.env("prod").Head.Digests["web"] {
				t.Errorf("%s: %+v", id, i)
			}
		}
		if err := w.host.Tamper(ids[0], drift.Fact{Kind: drift.Port, Field: "0.0.0.0:4444", Value: "listening"}); err != nil {
			t.Fatal(err)
		}
		got := w.measure(t)
		if i := got[ids[0]]; i.Result != attest.Differs || len(i.Findings) != 1 || len(i.Findings[0].Controls) == 0 {
			t.Errorf("tampered with: %+v", i)
		}
		if i := got[ids[1]]; len(got) != 2 || !i.OK() {
			t.Errorf("not tampered with: %+v", i)
		}
	})
}

func TestMeasuringTellsOfWhatIsMissingAndWhatNobodyKnows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ids := measured(t)
		if err := w.host.Remove(t.Context(), ids[0]); err != nil {
			t.Fatal(err)
		}
		e := w.env("prod")
		stray := instance.Identity{ID: "web-straystray", Env: "prod", Component: "web", Digest: e.Head.Digests["web"], Release: e.Head.Release, Generation: 1}
		s, err := reconcile.Spec(t.Context(), deploy.Instance{Identity: stray}, e.Head.Record.Components[0].Component, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(w.host.Create(t.Context(), s), w.host.Start(t.Context(), stray.ID)); err != nil {
			t.Fatal(err)
		}
		got := w.measure(t)
		for id, state := range map[instance.ID]string{ids[0]: attest.Missing, stray.ID: attest.Unknown} {
			if i := got[id]; i.State != state || i.Result != attest.Differs || i.Detail == "" {
				t.Errorf("%s: %+v", id, i)
			}
		}
		if !got[ids[1]].OK() || len(got) != 3 {
			t.Errorf("%+v", got)
		}
	})
}

// unreadable is a host that can't look at one of its instances, and tells somebody that it was asked.
type unreadable struct {
	runtime.Host
	id    instance.ID
	asked func()
}

func (u unreadable) Measure(ctx context.Context, id instance.ID) (runtime.Measurement, error) {
	if id != u.id {
		return u.Host.Measure(ctx, id)
	}
	u.asked()
	return runtime.Measurement{}, errors.New("the disk is away")
}

func TestWhatCantBeMeasuredIsSaidUnlessItWasRetiredMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ids := measured(t)
		u := unreadable{w.host, ids[0], func() {}}
		w.via = u
		if i := w.measure(t)[ids[0]]; i.Result != attest.NotMeasured || i.Detail != "the disk is away" {
			t.Errorf("%+v", i)
		}
		if err := w.host.Tamper(ids[0], drift.Fact{Kind: drift.Port, Field: "0.0.0.0:4444", Value: "listening"}); err != nil {
			t.Fatal(err)
		}
		if i := w.measure(t)[ids[0]]; i.Result != attest.Differs || len(i.Findings) != 1 || i.Detail != "the disk is away" {
			t.Errorf("tampered with, and not readable: %+v", i)
		}
		u.asked = func() { w.retire(t, ids[0]) }
		w.via = u
		if got := w.measure(t); len(got) != 1 || !got[ids[1]].OK() {
			t.Errorf("it was retired meanwhile: %+v", got)
		}
	})
}

func (w *world) retire(t *testing.T, id instance.ID) {
	t.Helper()
	if err := w.book.Record(t.Context(), "prod", w.env("prod").Seq, []deploy.Step{{Kind: deploy.Retire, ID: id, Cause: "a test"}}); err != nil {
		t.Error(err)
	}
}

// What came or went between two looks at the ledger is neither missing nor unknown.
func TestWhatComesAndGoesMeanwhileIsNoFinding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, ids := measured(t)
		full := w.env("prod")
		if err := w.host.Remove(t.Context(), ids[0]); err != nil {
			t.Fatal(err)
		}
		w.retire(t, ids[0])
		less := w.env("prod")
		look := func(envs ...deploy.Environment) []attest.Instance {
			n := 0
			found, err := reconcile.Measure(t.Context(), w.host, func() (deploy.Environment, error) {
				n++
				return envs[min(n, len(envs))-1], nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return found
		}
		if got := look(full, less); len(got) != 1 || got[0].ID != ids[1] {
			t.Errorf("one went: %+v", got)
		}
		if got := look(deploy.Environment{Name: spec.EnvName("prod")}, full); len(got) != 1 || got[0].State != attest.Running {
			t.Errorf("both came: %+v", got)
		}
	})
}
