package control_test

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// staged has a version run healthy in staging, and returns what is to be brought to prod.
func (o *office) staged(version string, healthyFor time.Duration) control.Move {
	o.t.Helper()
	a := shop(version)
	a.Routes = nil
	o.apply("staging", a)
	for _, id := range []string{"web-aaaaaaaaaa", "web-bbbbbbbbbb"} {
		if _, there := o.env("staging").Instances[o.create("staging", id).Instance.ID]; there {
			o.must(o.record("staging", deploy.Step{Kind: deploy.Gone, ID: o.create("staging", id).Instance.ID}))
		}
		o.must(o.record("staging", o.create("staging", id)))
		o.must(o.record("staging", deploy.Step{Kind: deploy.Healthy, ID: o.create("staging", id).Instance.ID}))
	}
	o.complete("staging")
	m, err := o.propose("prod", a)
	o.must(err)
	m.From = &state.Promoted{From: "staging", Generation: o.env("staging").Head.Number, HealthyForMS: healthyFor.Milliseconds()}
	return m
}

// disturb has one of staging's instances fail, and be well again.
func (o *office) disturb() {
	o.t.Helper()
	o.must(o.record("staging", deploy.Step{Kind: deploy.Failing, ID: "web-aaaaaaaaaa", Cause: "500"}))
	o.must(o.record("staging", deploy.Step{Kind: deploy.Healthy, ID: "web-aaaaaaaaaa"}))
}

func (o *office) promote(m control.Move) error {
	o.t.Helper()
	_, err := o.Apply(o.t.Context(), as("alice"), m)
	return err
}

func TestAPromotionIsCheckedWhenTheHeadMoves(t *testing.T) {
	for name, c := range map[string]struct {
		meanwhile func(o *office)
		want      string // "" when it is not refused
	}{
		"nothing":          {func(*office) {}, ""},
		"the head moved":   {func(o *office) { o.apply("staging", app{Name: "shop", Components: []release.Placed{web("9")}}) }, "environment staging is at generation 2; what was to be promoted is generation 1"},
		"it was disturbed": {func(o *office) { o.disturb() }, "has run healthy for 0s"},
		"an instance fails": {func(o *office) {
			o.must(o.record("staging", deploy.Step{Kind: deploy.Failing, ID: "web-aaaaaaaaaa", Cause: "500"}))
		}, "component web of generation 1 is not healthy now"},
		"it was destroyed": {func(o *office) { o.must(o.gone()) }, "environment staging is at generation 2"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := newOffice(t, "")
				m := o.staged("1", time.Hour)
				o.wantKind("at once", o.promote(m), fault.Denied, "1h0m0s is asked for")
				time.Sleep(time.Hour)
				c.meanwhile(o)
				size := o.State().Size()
				err := o.promote(m)
				if c.want != "" {
					o.wantKind(name, err, fault.Denied, c.want)
					if o.State().Size() != size {
						t.Errorf("a refused promotion left %v", o.kinds(size))
					}
					return
				}
				o.must(err)
				g, err := o.State().Generation("prod", 1)
				o.must(err)
				calm := o.env("staging").Calm
				if want := (state.Promoted{From: "staging", Generation: 1, HealthyForMS: 3_600_000, Completed: calm.Completed, Newest: calm.Newest}); g.Promoted == nil || *g.Promoted != want {
					t.Errorf("got %+v, want %+v", g.Promoted, want)
				}
				if e, err := o.Entry(t.Context(), calm.Completed); err != nil || e.Entry.Kind() != state.Kind(deploy.Done) {
					t.Errorf("it completed by a %s, %v", e.Entry.Kind(), err)
				}
				o.audit()
			})
		})
	}
}

func (o *office) gone() error {
	_, err := o.Destroy(o.t.Context(), as("alice"), "staging", false, "", control.How{})
	return err
}

// What waits for approvals has to be healthy when it is carried out, not only when it was proposed.
func TestAPromotionThatWaitedIsCheckedWhenItIsCarriedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, "1 of group.managers")
		m := o.staged("1", time.Hour)
		o.wantKind("proposing at once", o.promote(m), fault.Denied, "1h0m0s is asked for")
		time.Sleep(time.Hour)
		moved, err := o.Apply(t.Context(), as("alice"), m)
		o.must(err)
		if p := o.find(moved.Change).Promoted; !moved.Waiting || p == nil || p.Completed == 0 {
			t.Fatalf("%+v, %+v", moved, p)
		}
		o.must(o.approve(moved.Change, "bob"))
		o.disturb()
		o.wantKind("carrying out", o.carry(moved.Change, "dave"), fault.Denied, "has run healthy for 0s")
		if c := o.find(moved.Change); c.Status != state.ChangeOpen {
			t.Errorf("it is %s", c.Status)
		}
		time.Sleep(time.Hour)
		o.must(o.carry(moved.Change, "dave"))
		g, err := o.State().Generation("prod", 1)
		o.must(err)
		if calm := o.env("staging").Calm; g.Promoted == nil || g.Promoted.Newest != calm.Newest {
			t.Errorf("the entry proves it by %+v; it is by %+v", g.Promoted, calm)
		}
		o.complete("prod")

		m = o.staged("2", 0)
		moved, err = o.Apply(t.Context(), as("alice"), m)
		o.must(err)
		o.must(o.approve(moved.Change, "bob"))
		o.staged("3", 0) // staging goes on
		o.wantKind("carrying out what runs there no more", o.carry(moved.Change, "dave"), fault.Denied, "what was to be promoted is generation 2")
		o.audit()
	})
}

// What differs from its release is not healthy, also where the rule is to alert alone.
func TestNothingIsPromotedFromWhereAnInstanceDiffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, "")
		m := o.staged("1", time.Hour)
		time.Sleep(time.Hour)
		odd := instance.Finding{Kind: "port", Field: "0.0.0.0:4444", Found: "listening"}
		o.must(o.record("staging", deploy.Step{Kind: deploy.Drifted, ID: "web-aaaaaaaaaa", Findings: []instance.Finding{odd}, Response: spec.Alert, Cause: "a test"}))
		o.wantKind("while it differs", o.promote(m), fault.Denied, "not healthy now")
		o.must(o.record("staging", deploy.Step{Kind: deploy.Settled, ID: "web-aaaaaaaaaa", Resolution: deploy.Ceased, Keys: []string{odd.Key()}, Cause: "a test"}))
		o.wantKind("right after", o.promote(m), fault.Denied, "has run healthy for 0s")
		time.Sleep(time.Hour)
		o.must(o.promote(m))
	})
}

// promote_from holds for a change that waits, and for an emergency, as for any.
func TestPromoteFromHoldsForEveryApply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, "1 of group.managers", func(d *platform.Definition) {
			d.BreakGlass = []platform.BreakGlass{{Name: "night", Environments: []platform.Pattern{"prod"}, ReviewMillis: 1000, SessionMillis: 1}}
		})
		a := shop("1")
		a.Routes, a.From = nil, "staging"
		proposal := control.Proposal{Env: "prod", Bundle: o.push(a)}
		size := o.State().Size()
		for name, how := range map[string]control.How{"a change": {}, "an emergency": {Emergency: true}} {
			_, err := o.Apply(t.Context(), as("alice"), control.Move{Proposal: proposal, Reason: "it burns", How: how})
			o.wantKind(name, err, fault.Denied, "takes only what ran healthy in staging")
		}
		if o.State().Size() != size {
			t.Errorf("a refused apply left %v", o.kinds(size))
		}
		o.apply("staging", a)
		o.complete("staging")
		moved, err := o.Apply(t.Context(), as("alice"), control.Move{Proposal: proposal})
		o.must(err)
		o.must(errors.Join(o.approve(moved.Change, "bob"), o.carry(moved.Change, "dave")))
		if !slices.Contains(o.kinds(size), state.Kind("change.apply")) {
			t.Errorf("got %v", o.kinds(size))
		}
	})
}
