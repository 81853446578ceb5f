package control_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/invarhq/invar/attest"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/state"
)

// measuring is a desk whose server measures what look finds, and runs generation 1 of prod.
func measuring(t *testing.T, look control.Measure) *desk {
	t.Helper()
	d := newDesk(t)
	d.config.SignStatement = func(s []byte) ([]byte, error) { return append([]byte("signed "), s...), nil }
	d.config.Measure = look
	d.crash()
	d.apply("prod", shop("1"))
	return d
}

// instanceOf is what is found of an instance that is as released.
func instanceOf(env state.Environment, id string, edit ...func(*attest.Instance)) attest.Instance {
	root := env.Head.Record.Components[0].Component.Root
	i := attest.Instance{ID: instance.ID(id), Component: "web", Digest: env.Head.Digests["web"], State: attest.Running, Expected: root, Found: root}
	for _, f := range edit {
		f(&i)
	}
	return i
}

func (d *desk) verification(v control.Verified) (state.Entry, attest.Verification) {
	d.t.Helper()
	var s attest.Statement[attest.Verification]
	if err := json.Unmarshal(d.body(v.Statement)[len("signed "):], &s); err != nil {
		d.t.Fatal(err)
	}
	if err := attest.Check(s); err != nil {
		d.t.Error(err)
	}
	for e, err := range d.Entries(d.t.Context(), v.Entry, v.Entry+1) {
		if err != nil {
			d.t.Fatal(err)
		}
		return e.Entry, s.Predicate
	}
	return state.Entry{}, s.Predicate
}

func TestAVerificationIsSignedAndInTheLedger(t *testing.T) {
	bad := false
	d := measuring(t, func(_ context.Context, now func() (state.Environment, error)) ([]attest.Instance, error) {
		env, err := now()
		return []attest.Instance{instanceOf(env, "web-b", func(i *attest.Instance) {
			if bad {
				i.Found = digest.Of([]byte("another"))
			}
		}), instanceOf(env, "web-a")}, err
	})
	head := d.env("prod").Head
	for result, outcome := range map[string]string{attest.AsReleased: "as released", attest.Differs: "differs"} {
		bad = result == attest.Differs
		v, err := d.Verify(t.Context(), alice, "prod")
		if err != nil {
			t.Fatal(err)
		}
		e, p := d.verification(v)
		data, ok := e.Data.(state.Verify)
		if !ok || data.Result != result || data.Generation != 1 || data.Instances != 2 || (len(data.Differ) == 1) != bad || e.Outcome != outcome || e.Body.Digest != v.Statement ||
			e.Actor != alice || e.Subject[0].Digest != head.Release {
			t.Errorf("entry %+v", e)
		}
		if p.Result != result || p.Who != alice.Who() || p.By != "example.com/ledger" || p.Server != "0.1.0" || p.Release != head.Release || p.Components[0].Replicas != 2 {
			t.Errorf("statement %+v", p)
		}
		if m := d.env("prod").Measured; m == nil || m.Entry != v.Entry || m.Result != result {
			t.Errorf("the environment says %+v", m)
		}
	}
	d.audit()
	d.crash()
	d.audit()
}

func TestAnEntryNamesTheFirstOfManyThatDiffer(t *testing.T) {
	d := measuring(t, func(_ context.Context, now func() (state.Environment, error)) ([]attest.Instance, error) {
		env, err := now()
		var out []attest.Instance
		for n := range 2 * state.MaxDiffer {
			out = append(out, instanceOf(env, fmt.Sprintf("web-%010d", n), func(i *attest.Instance) { i.State = attest.Missing }))
		}
		return out, err
	})
	v, err := d.Verify(t.Context(), alice, "prod")
	if err != nil {
		t.Fatal(err)
	}
	if data := verifyOf(d.verification(v)); len(data.Differ) != state.MaxDiffer || data.More != state.MaxDiffer || data.Instances != 2*state.MaxDiffer {
		t.Errorf("%d named, %d more, of %d", len(data.Differ), data.More, data.Instances)
	}
}

func verifyOf(e state.Entry, _ attest.Verification) state.Verify { return e.Data.(state.Verify) }

func TestThatNothingCouldBeMeasuredIsRecorded(t *testing.T) {
	d := measuring(t, func(context.Context, func() (state.Environment, error)) ([]attest.Instance, error) {
		return []attest.Instance{{ID: "web-a"}}, fault.Errorf(fault.Unavailable, "the host is away")
	})
	v, err := d.Verify(t.Context(), alice, "prod")
	if err != nil {
		t.Fatal(err)
	}
	e, p := d.verification(v)
	if data := e.Data.(state.Verify); data.Result != attest.NotMeasured || data.Instances != 0 || e.Outcome != "not measured" || p.Detail != "the host is away" || len(p.Instances) != 0 {
		t.Errorf("%+v, %+v", e, p)
	}
	if m := d.env("prod").Measured; m == nil || !m.WholeAt.IsZero() {
		t.Errorf("it counts as measured: %+v", m)
	}
}

// A statement is of one head: when that moves while it is measured, all is measured again.
func TestAHeadThatMovesIsMeasuredAgain(t *testing.T) {
	var d *desk
	times, always := 0, false
	d = measuring(t, func(_ context.Context, now func() (state.Environment, error)) ([]attest.Instance, error) {
		if times++; times == 1 || always {
			d.apply("prod", shop(fmt.Sprint("moved ", times)))
		}
		env, err := now()
		return []attest.Instance{instanceOf(env, "web-a")}, err
	})
	v, err := d.Verify(t.Context(), alice, "prod")
	if err != nil {
		t.Fatal(err)
	}
	if _, p := d.verification(v); times != 2 || p.Generation != 2 || p.Release != d.env("prod").Head.Release {
		t.Errorf("after %d looks: generation %d of release %s", times, p.Generation, p.Release)
	}
	always = true
	if _, err := d.Verify(t.Context(), alice, "prod"); !errors.Is(err, fault.Conflict) {
		t.Errorf("a head that never rests: %v", err)
	}
}

func TestWhatCantBeVerifiedLeavesNoEntry(t *testing.T) {
	d := measuring(t, func(ctx context.Context, _ func() (state.Environment, error)) ([]attest.Instance, error) {
		return nil, ctx.Err()
	})
	d.apply("gone", shop2("gone"))
	if _, err := d.Destroy(t.Context(), alice, "gone", false, "", control.How{}); err != nil {
		t.Fatal(err)
	}
	size := d.State().Size()
	if _, err := d.Verify(t.Context(), alice, "nowhere"); !errors.Is(err, fault.NotFound) {
		t.Errorf("an unknown environment: %v", err)
	}
	if _, err := d.Verify(t.Context(), alice, "gone"); !errors.Is(err, fault.Conflict) {
		t.Errorf("a destroyed environment: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Verify(ctx, alice, "prod"); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	d.config.SignStatement = nil
	d.crash()
	before := d.State().Size()
	if _, err := d.Verify(t.Context(), alice, "prod"); !errors.Is(err, fault.Invalid) {
		t.Errorf("a server without a key for statements: %v", err)
	}
	if before-size > 1 || d.State().Size() != before {
		t.Errorf("entries were added: %v", d.kinds(size))
	}
}

// shop2 is another app, with a route of its own.
func shop2(name string) app {
	a := shop("1")
	a.Routes[0].Host = name + ".localhost"
	return a
}
