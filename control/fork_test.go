package control_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/secret"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

func (d *desk) fork(from, to spec.EnvName, more ...func(*control.Fork)) (control.Moved, error) {
	d.t.Helper()
	f := control.Fork{Env: to, From: from, TTL: time.Hour, Reason: "to try"}
	for _, m := range more {
		m(&f)
	}
	return d.Fork(d.t.Context(), alice, f)
}

func (d *desk) mustFork(from, to spec.EnvName, more ...func(*control.Fork)) control.Moved {
	d.t.Helper()
	moved, err := d.fork(from, to, more...)
	if err != nil {
		d.t.Fatal(err)
	}
	return moved
}

func TestAForkIsTheSameReleaseAndLeavesItsSourceAlone(t *testing.T) {
	d := newDesk(t)
	d.apply("prod", shop("1"))
	d.complete("prod")
	before := d.env("prod")
	moved := d.mustFork("prod", "fork-a")
	if moved.Release != before.Head.Release || moved.Generation != 1 || !moved.Changed {
		t.Errorf("moved %+v", moved)
	}
	fork := d.env("fork-a")
	if diff := cmp.Diff(fork.Head.Digests, before.Head.Digests); diff != "" {
		t.Errorf("its components differ: %s", diff)
	}
	if got := fork.Head.Record.Routes[0].Host; got != "site.fork-a.localhost" {
		t.Errorf("its route is at %s", got)
	}
	if diff := cmp.Diff(d.env("prod"), before); diff != "" {
		t.Errorf("the source changed: %s", diff)
	}
	d.complete("fork-a")
	d.audit()

	d.crash() // the state from the ledger and a snapshot is the same
	if got := d.env("fork-a").Head.Record.Routes[0].Host; got != "site.fork-a.localhost" {
		t.Errorf("after a restart its route is at %s", got)
	}
	d.apply("prod", shop("2"))
	if got := d.env("fork-a").Head.Release; got != moved.Release {
		t.Errorf("the fork followed its source to %s", got)
	}
	d.audit()
}

func TestAForkLeavesRoutesOfTCPToItsSource(t *testing.T) {
	d := newDesk(t)
	a := shop("1")
	a.Routes = append(a.Routes, release.Route{Name: "tcp", TCP: "127.0.0.1:5432", Component: "web", Port: "http", Number: 8080})
	d.apply("prod", a)
	d.mustFork("prod", "fork-a")
	if got := d.env("fork-a").Head.Record.Routes; len(got) != 1 || got[0].Name != "site" {
		t.Errorf("routes %+v", got)
	}
}

func TestAForkOfAnEarlierGenerationAndOfAFork(t *testing.T) {
	d := newDesk(t)
	first := d.apply("prod", shop("1")).Release
	d.apply("prod", shop("2"))
	d.mustFork("prod", "fork-a", func(f *control.Fork) { f.Generation = 1 })
	d.mustFork("fork-a", "fork-b")
	for _, name := range []spec.EnvName{"fork-a", "fork-b"} {
		if got := d.env(name).Head.Release; got != first {
			t.Errorf("%s has release %s, want %s", name, got, first)
		}
	}
	if got := d.env("fork-b").Fork; got.From != "fork-a" || got.Of != "prod" {
		t.Errorf("fork-b is a fork of %+v", got)
	}
	if _, err := d.fork("prod", "fork-c", func(f *control.Fork) { f.Generation = 9 }); !errors.Is(err, fault.NotFound) {
		t.Errorf("a generation that there is not: %v", err)
	}
	d.audit()
}

func TestAForkHasSecretsOfItsOwnOrNone(t *testing.T) {
	d := newDesk(t)
	a := shop("1")
	a.Components = []release.Placed{web("1", func(c *release.Component) {
		c.Secrets = []release.Secret{{Path: "/run/secrets/key", Name: "key", Mode: 0o400}}
	})}
	set := func(env spec.EnvName) digest.Digest {
		v, err := d.SetSecret(t.Context(), alice, secret.Ref{Env: env, Name: "key"}, []byte("value of "+string(env)), "")
		if err != nil {
			t.Fatal(err)
		}
		return v.Version
	}
	real := set("prod")
	d.apply("prod", a)
	if _, err := d.fork("prod", "fork-a"); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "none of its own named key") {
		t.Fatalf("without a secret of its own: %v", err)
	}
	own := set("fork-a")
	d.mustFork("prod", "fork-a")
	env := d.env("fork-a")
	made := env.Made(env.Components[env.Head.Digests["web"]])
	if got := made.Secrets[0].Version; got != own || got == real {
		t.Errorf("an instance gets version %s; its own is %s, production's %s", got, own, real)
	}
	if source := d.env("prod"); source.Made(source.Components[source.Head.Digests["web"]]).Secrets[0].Version != real {
		t.Error("production has lost its secret")
	}
	d.audit()
}

func TestAForkEndsWithItsVolumesWhenItsTimeIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		ctx, cancel := context.WithCancel(t.Context())
		var governs sync.WaitGroup
		governs.Go(func() { _ = d.Govern(ctx) })
		defer func() {
			cancel()
			governs.Wait()
			if err := d.Close(context.WithoutCancel(ctx)); err != nil {
				t.Error(err)
			}
		}()
		a := shop("1")
		a.Components = []release.Placed{web("1", withVolume)}
		d.apply("prod", a)
		d.mustFork("prod", "fork-a")
		time.Sleep(59 * time.Minute)
		if d.env("fork-a").Destroyed() {
			t.Fatal("it ended before its time")
		}
		time.Sleep(2 * time.Minute)
		if e := d.env("fork-a"); !e.Destroyed() || !e.VolumesDue {
			t.Errorf("destroyed %v, volumes due %v", e.Destroyed(), e.VolumesDue)
		}
		if d.env("prod").Destroyed() {
			t.Error("the source was destroyed")
		}
		if _, err := d.Rollback(t.Context(), alice, "fork-a", 1, "", control.How{}); !errors.Is(err, fault.Conflict) {
			t.Errorf("a fork that has ended came back: %v", err)
		}
		if _, err := d.fork("prod", "fork-a"); !errors.Is(err, fault.Conflict) {
			t.Errorf("a fork onto volumes that are left: %v", err)
		}
		if err := d.VolumesDestroyed(t.Context(), "fork-a"); err != nil {
			t.Fatal(err)
		}
		if moved := d.mustFork("prod", "fork-a"); moved.Generation != 3 {
			t.Errorf("another fork of that name: %+v", moved)
		}
		d.audit()
	})
}

func TestAnEnvironmentIsAForkOrItIsNot(t *testing.T) {
	d := newDesk(t)
	d.apply("prod", shop("1"))
	d.complete("prod")
	other := shop("1")
	other.Routes = nil
	d.apply("staging", other)
	d.mustFork("prod", "fork-a")
	for what, err := range map[string]error{
		"over an environment":  second(d.fork("prod", "staging")),
		"of itself":            second(d.fork("prod", "prod")),
		"of another":           second(d.fork("staging", "fork-a")),
		"apply to a fork":      second(d.propose("fork-a", other)),
		"of the platform":      second(d.fork("platform", "fork-b")),
		"of what there is not": second(d.fork("nowhere", "fork-b")),
		"without an end":       second(d.fork("prod", "fork-b", func(f *control.Fork) { f.TTL = 0 })),
		"with an end too late": second(d.fork("prod", "fork-b", func(f *control.Fork) { f.TTL = state.MaxForkTTL + 1 })),
	} {
		if err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	if got := slices.Collect(d.State().History("fork-a")); len(got) != 1 {
		t.Errorf("the fork has %d generations", len(got))
	}
	d.audit()
}

func second[T any](_ T, err error) error { return err }

func TestAPreviewRunsWhatIsNoHeadYet(t *testing.T) {
	d := newDesk(t)
	d.apply("prod", shop("1"))
	d.complete("prod")
	before := d.env("prod")
	preview := func(version string) control.Moved {
		return d.mustFork("prod", "preview-a", func(f *control.Fork) { f.Bundle = d.push(shop(version)) })
	}
	one := preview("2")
	if one.Release == before.Head.Release || d.env("preview-a").Head.Record.Components[0].Component.Env["VERSION"] != "2" {
		t.Errorf("it does not run the change: %+v", one)
	}
	d.complete("preview-a")
	two := preview("3")
	if two.Generation != 2 || two.Release == one.Release {
		t.Errorf("a second one: %+v", two)
	}
	if again := preview("3"); again.Changed {
		t.Errorf("the same again: %+v", again)
	}
	if moved, err := d.Rollback(t.Context(), alice, "preview-a", 1, "", control.How{}); err != nil || moved.Release != one.Release {
		t.Errorf("back to the first: %+v, %v", moved, err)
	}
	if got := d.env("preview-a").Head.Record.Routes[0].Host; got != "site.preview-a.localhost" {
		t.Errorf("its route is at %s", got)
	}
	if diff := cmp.Diff(d.env("prod"), before); diff != "" {
		t.Errorf("the source changed: %s", diff)
	}
	d.audit()
}

func TestAPromotionIsProvenByTheLedger(t *testing.T) {
	d := newDesk(t)
	at := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	d.config.Now = func() time.Time { return at }
	d.crash()
	a := shop("1")
	a.Routes = nil
	d.apply("staging", a)
	promote := func(healthyFor time.Duration) (control.Promotion, error) {
		return d.Promote(t.Context(), "staging", "prod", healthyFor)
	}
	if _, err := promote(0); !errors.Is(err, fault.Denied) {
		t.Errorf("while it is rolled out: %v", err)
	}
	up := func(id string) {
		t.Helper()
		if err := d.record("staging", d.create("staging", id)); err != nil {
			t.Fatal(err)
		}
		if err := d.record("staging", deploy.Step{Kind: deploy.Healthy, ID: d.create("staging", id).Instance.ID}); err != nil {
			t.Fatal(err)
		}
	}
	up("web-aaaaaaaaaa")
	d.complete("staging")
	if _, err := promote(0); !errors.Is(err, fault.Denied) {
		t.Errorf("with one instance of two: %v", err)
	}
	up("web-bbbbbbbbbb")
	newest := d.State().Size() - 1
	at = at.Add(time.Hour)
	p, err := promote(time.Hour)
	if err != nil || p.Proof.For != time.Hour || p.Proof.Newest != newest || p.Planned.Plan.Env != "prod" || p.Planned.Plan.Bundle != p.From.Bundle {
		t.Fatalf("got %+v, %v", p, err)
	}
	e, err := d.Entry(t.Context(), p.Proof.Completed)
	if err != nil || e.Entry.Kind() != state.Kind(deploy.Done) {
		t.Errorf("entry %d is %v, %v", p.Proof.Completed, e.Entry.Kind(), err)
	}
	if _, err := promote(2 * time.Hour); !errors.Is(err, fault.Denied) {
		t.Errorf("not for two hours: %v", err)
	}
	// A failure begins the time anew, though all is well again.
	if err := d.record("staging", deploy.Step{Kind: deploy.Failing, ID: "web-aaaaaaaaaa", Cause: "500"}); err != nil {
		t.Fatal(err)
	}
	if _, err := promote(0); !errors.Is(err, fault.Denied) {
		t.Errorf("while one fails: %v", err)
	}
	if err := d.record("staging", deploy.Step{Kind: deploy.Healthy, ID: "web-aaaaaaaaaa"}); err != nil {
		t.Fatal(err)
	}
	if _, err := promote(time.Minute); !errors.Is(err, fault.Denied) {
		t.Errorf("right after a failure: %v", err)
	}
	if p, err := promote(0); err != nil || p.Proof.For != 0 {
		t.Errorf("healthy again: %+v, %v", p.Proof, err)
	}
}
