package control_test

import (
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
	"github.com/invarhq/invar/store/storetest"
)

// TestAnyFaultAtAnyTime carries out random use cases on a store that fails and a process that dies at random, and
// holds after each: what returned without error is durable, what the state says is what the entries say, and the ledger verifies.
func TestAnyFaultAtAnyTime(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := newDesk(t)
		d.config.SnapshotEvery = rapid.Int64Range(1, 8).Draw(rt, "snapshot every")
		defer func() { d.disk.Crash(); _ = d.Ledger().Close() }()
		for turn := range rapid.IntRange(1, 12).Draw(rt, "turns") {
			op := rapid.SampledFrom([]storetest.Op{storetest.OpAppend, storetest.OpAppend, storetest.OpLoad, storetest.OpPutSnapshot}).Draw(rt, "op")
			f := storetest.Fault(rapid.IntRange(0, 4).Draw(rt, "fault"))
			d.disk.SetFaults(storetest.Nth(op, rapid.IntRange(1, 2).Draw(rt, "nth"), f))
			before := d.State().Size()
			moved, err := d.random(rt, turn)
			after := d.State().Size()
			switch {
			case err != nil && fault.KindOf(err) == "":
				rt.Fatalf("failed without a kind: %v", err)
			case err != nil && after != before:
				rt.Fatalf("failed (%v) and went from %d to %d entries", err, before, after)
			case err == nil && moved != (after > before):
				rt.Fatalf("said moved=%v, went from %d to %d entries", moved, before, after)
			}
			d.disk.SetFaults(nil)
			if f >= storetest.Crash || rapid.IntRange(0, 5).Draw(rt, "restart") == 0 {
				d.crash()
			}
			if got := d.State().Size(); got < after {
				rt.Fatalf("%d entries were told durable, %d are left", after, got)
			}
			d.audit()
		}
	})
}

// random carries out a use case, and tells whether it says to have changed anything.
func (d *desk) random(rt *rapid.T, turn int) (bool, error) {
	ctx := d.t.Context()
	env := rapid.SampledFrom([]spec.EnvName{"prod", "staging"}).Draw(rt, "env")
	e, _ := d.State().Environment(env)
	switch rapid.IntRange(0, 7).Draw(rt, "use case") {
	case 0, 1:
		m, err := d.propose(env, shop(rapid.SampledFrom([]string{"1", "2"}).Draw(rt, "version")))
		if err != nil {
			return false, err
		}
		moved, err := d.Apply(ctx, alice, m)
		return moved.Changed, err
	case 2:
		moved, err := d.Rollback(ctx, alice, env, rapid.IntRange(0, 3).Draw(rt, "to"), "", control.How{})
		return moved.Changed, err
	case 3:
		moved, err := d.Destroy(ctx, alice, env, rapid.Bool().Draw(rt, "volumes"), "", control.How{})
		return moved.Changed, err
	case 4:
		_, _, err := d.CreateToken(ctx, control.Caller{Actor: alice}, "ci", control.Scope{})
		return true, err
	case 5:
		for tok := range d.State().Tokens() {
			return true, d.RevokeToken(ctx, alice, tok.ID)
		}
		return false, nil
	}
	if e.Head.Release == "" {
		return true, d.VolumesDestroyed(ctx, env)
	}
	steps := []deploy.Step{d.create(env, fmt.Sprintf("web-%010d", turn))}
	if e.Head.Outcome == deploy.Rolling {
		kind := rapid.SampledFrom([]deploy.Kind{deploy.Done, deploy.Failed}).Draw(rt, "end")
		steps = append(steps, deploy.Step{Kind: kind, Generation: e.Head.Number})
	}
	return true, d.Record(ctx, env, e.Seq, steps)
}

// An entry of a newer version is not skipped: the server refuses to start, names it, and says what to do.
func TestNewerEntryIsNamed(t *testing.T) {
	_, err := state.Decode([]byte(`{"v":2}`))
	if !errors.Is(err, fault.Corrupt) || fault.Hint(err) == "" {
		t.Errorf("got %v (hint %q)", err, fault.Hint(err))
	}
}
