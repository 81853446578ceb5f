package control_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/reconcile"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/runtimetest"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// road is a gateway that takes every table.
type road struct {
	mu    sync.Mutex
	table gateway.Sealed
}

func (r *road) Changed() <-chan struct{} { return nil }

func (r *road) Renew(context.Context) error { return nil }

func (r *road) Replace(_ context.Context, t gateway.Sealed, _ digest.Digest) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.table = t
	return nil
}

func (r *road) Status(context.Context) (gateway.Status, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return gateway.Status{Serial: r.table.Serial, Digest: r.table.Digest}, nil
}

// serve runs the reconciler on the desk until the function that it returns is called.
func (d *desk) serve(host runtime.Host, r *road) (stop func()) {
	ctx, cancel := context.WithCancel(d.t.Context())
	loops := reconcile.New(reconcile.Config{Source: d.Rollouts(), Recorder: d.Service, Host: host, Traffic: r})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = loops.Run(ctx) // it ends with ctx
	}()
	return func() { cancel(); <-done }
}

// TestRolloutsThroughTheLedger drives the real loops through the ledger: apply, a change, a bad release that reverts, a
// rollback, a destroy; with the server killed in the middle of each. The host lives on.
func TestRolloutsThroughTheLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		d.config.SnapshotEvery = 5
		host, r := runtimetest.New(runtimetest.Config{Behave: behave}), &road{}
		move := func(want deploy.Outcome, do func()) {
			t.Helper()
			stop := d.serve(host, r)
			do()
			time.Sleep(20 * time.Millisecond) // in the middle of it
			stop()
			d.crash()
			d.audit()
			stop = d.serve(host, r)
			time.Sleep(time.Minute)
			stop()
			d.audit()
			if got := d.env("prod").Head; got.Outcome != want {
				t.Fatalf("generation %d: %s (%s), want %s", got.Number, got.Outcome, got.Cause, want)
			}
		}
		apply := func(version string) func() { return func() { d.apply("prod", shop(version)) } }

		move(deploy.Completed, apply("1"))
		first := d.env("prod").Head.Release
		move(deploy.Completed, apply("2"))
		second := d.env("prod").Head.Release
		move(deploy.Completed, apply("bad"))
		if e := d.env("prod"); e.Head.Number != 4 || e.Head.Release != second {
			t.Fatalf("the bad release was not reverted: generation %d", e.Head.Number)
		}
		if n := host.Passing(); n != 2 {
			t.Errorf("%d instances pass, want 2", n)
		}
		move(deploy.Completed, func() {
			if _, err := d.Rollback(t.Context(), alice, "prod", 1, "back", control.How{}); err != nil {
				t.Fatal(err)
			}
		})
		if e := d.env("prod"); e.Head.Release != first {
			t.Errorf("rolled back to %s", e.Head.Release)
		}
		move(deploy.Completed, func() {
			if _, err := d.Destroy(t.Context(), alice, "prod", false, "done", control.How{}); err != nil {
				t.Fatal(err)
			}
		})
		if host.Len() != 0 || len(d.env("prod").Instances) != 0 {
			t.Errorf("%d instances are left on the host, %d in the ledger", host.Len(), len(d.env("prod").Instances))
		}
		wantMoves(t, d, "prod", state.MovedByApply, state.MovedByApply, state.MovedByApply, state.MovedByRevert, state.MovedByRollback, state.MovedByDestroy)
		if err := d.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// behave makes version "bad" exit at once.
func behave(s runtime.Spec) runtimetest.Behaviour {
	for _, kv := range s.Env {
		if kv == "VERSION=bad" {
			return runtimetest.Behaviour{Ready: time.Second, ExitAfter: 10 * time.Millisecond, ExitCode: 1}
		}
	}
	return runtimetest.Behaviour{CreateTakes: 10 * time.Millisecond, Ready: 50 * time.Millisecond, StopTakes: 10 * time.Millisecond}
}

func wantMoves(t *testing.T, d *desk, env spec.EnvName, want ...state.MoveKind) {
	t.Helper()
	var got []state.MoveKind
	for g := range d.State().History(env) {
		got = append(got, g.Kind)
	}
	if len(got) != len(want) {
		t.Fatalf("moves %v, want %v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("moves %v, want %v", got, want)
		}
	}
}
