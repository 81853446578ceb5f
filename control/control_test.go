package control_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
	"github.com/invarhq/invar/store"
	"github.com/invarhq/invar/store/storetest"
)

func TestALedgerIsMadeOnlyWhenAskedFor(t *testing.T) {
	d := newDesk(t)
	if err := d.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.disk.Crash()
	if err := d.tryOpen(true); !errors.Is(err, fault.Conflict) {
		t.Errorf("asked for a new ledger where one is: %v", err)
	}
	d.disk.Crash()
	d.open(false)
	if diff := cmp.Diff(d.kinds(0), []state.Kind{state.KindGenesis, state.KindLogStart, state.KindLogStop, state.KindLogStart}); diff != "" {
		t.Error(diff)
	}
	d.disk = storetest.NewDisk()
	if err := d.tryOpen(false); !errors.Is(err, fault.NotFound) {
		t.Errorf("an empty store was taken for a ledger: %v", err)
	}
}

func TestApplyMovesTheHead(t *testing.T) {
	d := newDesk(t)
	moved := d.apply("prod", shop("1"))
	if want := (control.Moved{Env: "prod", Generation: 1, Release: d.env("prod").Head.Release, Entry: 4, Changed: true}); moved != want {
		t.Errorf("got %+v, want %+v", moved, want)
	}
	if diff := cmp.Diff(d.kinds(2), []state.Kind{state.KindBundle, state.KindRelease, state.KindApply}); diff != "" {
		t.Error(diff)
	}
	e, err := d.Entry(t.Context(), moved.Entry)
	if err != nil {
		t.Fatal(err)
	}
	if e.Entry.Actor != alice || e.Entry.Reason != "a reason" || e.Entry.Env != "prod" {
		t.Errorf("entry %+v", e.Entry)
	}
	plan, err := change.Decode(append(d.blobs.content[e.Entry.Body.Digest], '\n'))
	if err != nil || plan.Release != moved.Release {
		t.Errorf("the entry's body is not the plan: %+v, %v", plan, err)
	}
	d.audit()
}

func TestApplyOfWhatRunsChangesNothing(t *testing.T) {
	d := newDesk(t)
	d.apply("prod", shop("1"))
	d.complete("prod")
	size := d.State().Size()
	m, err := d.propose("prod", shop("1"))
	if err != nil {
		t.Fatal(err)
	}
	moved, err := d.Apply(t.Context(), alice, m)
	if err != nil || moved.Changed || moved.Generation != 1 || moved.Entry != 4 {
		t.Errorf("got %+v, %v", moved, err)
	}
	if d.State().Size() != size {
		t.Error("an entry was written")
	}
	// After a failure, the same release is worth another try.
	d.apply("prod", shop("2"))
	if err := d.record("prod", deploy.Step{Kind: deploy.Failed, Generation: 2}); err != nil {
		t.Fatal(err)
	}
	if m, err := d.propose("prod", shop("2")); err != nil {
		t.Fatal(err)
	} else if p, err := d.Plan(t.Context(), m.Proposal); err != nil || p.Plan.Empty() {
		t.Errorf("the plan of another try is empty (%v)", err)
	}
	if moved := d.apply("prod", shop("2")); !moved.Changed || moved.Generation != 3 {
		t.Errorf("got %+v", moved)
	}
}

func TestTheServerEvaluatesAgain(t *testing.T) {
	d := newDesk(t)
	claimed := digest.Of([]byte("something else"))
	p := control.Proposal{Env: "prod", Bundle: d.push(shop("1")), Release: claimed}
	_, err := d.Plan(t.Context(), p)
	real, _ := d.propose("prod", shop("1"))
	if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), string(claimed)) || !strings.Contains(err.Error(), string(real.Release)) {
		t.Errorf("got %v, want both digests", err)
	}
	if _, err := d.Apply(t.Context(), alice, control.Move{Proposal: p}); !errors.Is(err, fault.Invalid) {
		t.Errorf("apply: %v", err)
	}
	if diff := cmp.Diff(d.kinds(0), []state.Kind{state.KindGenesis, state.KindLogStart}); diff != "" {
		t.Error(diff)
	}
}

func TestWhatIsNotThereIsNamed(t *testing.T) {
	for _, what := range []string{"image", "root"} {
		t.Run(what, func(t *testing.T) {
			d := newDesk(t)
			m, err := d.propose("prod", shop("1"))
			if err != nil {
				t.Fatal(err)
			}
			delete(d.blobs.content, map[string]digest.Digest{"image": digest.Of(manifest), "root": digest.Of([]byte("root"))}[what])
			_, err = d.Apply(t.Context(), alice, m)
			if !errors.Is(err, fault.NotFound) || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "web") {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("bundle", func(t *testing.T) {
		d := newDesk(t)
		if _, err := d.Plan(t.Context(), control.Proposal{Env: "prod", Bundle: digest.Of(nil)}); !errors.Is(err, fault.NotFound) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("source", func(t *testing.T) {
		d := newDesk(t)
		bundle := d.push(shop("1"))
		b, _ := release.DecodeBundle(d.blobs.content[bundle])
		delete(d.blobs.content, b.Source)
		if _, err := d.Plan(t.Context(), control.Proposal{Env: "prod", Bundle: bundle}); !errors.Is(err, fault.NotFound) {
			t.Errorf("got %v", err)
		}
	})
}

func TestStalePlanIsRefused(t *testing.T) {
	d := newDesk(t)
	stale, err := d.propose("prod", shop("1"))
	if err != nil {
		t.Fatal(err)
	}
	d.apply("prod", shop("2"))
	_, err = d.Apply(t.Context(), alice, stale)
	if !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "saved plan is stale") || !strings.Contains(fault.Hint(err), "invar plan prod") {
		t.Errorf("got %v (hint %q)", err, fault.Hint(err))
	}
	other, err := d.propose("prod", shop("3"))
	if err != nil {
		t.Fatal(err)
	}
	other.Plan = digest.Of([]byte("another plan"))
	if _, err = d.Apply(t.Context(), alice, other); !errors.Is(err, fault.Conflict) {
		t.Errorf("an apply by another plan: %v", err)
	}
	if g := d.env("prod").Head.Number; g != 1 {
		t.Errorf("the head is generation %d", g)
	}
}

func TestRouteBelongsToOneEnvironment(t *testing.T) {
	d := newDesk(t)
	d.apply("prod", shop("1"))
	_, err := d.propose("staging", shop("1"))
	if !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "environment prod") {
		t.Errorf("plan: got %v", err)
	}
	a := shop("1")
	a.Routes = []release.Route{at("staging.localhost")}
	staging := d.apply("staging", a)
	if !staging.Changed {
		t.Error("another host was refused")
	}
	a.Routes[0].Path = "/api"
	a.Routes[0].Host = "shop.localhost"
	if _, err := d.propose("staging", a); err != nil {
		t.Errorf("another path of the same host was refused: %v", err)
	}
	if _, err := d.Destroy(t.Context(), alice, "prod", false, "", control.How{}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.propose("staging", shop("1")); err != nil {
		t.Errorf("the route of a destroyed environment is still taken: %v", err)
	}
}

func TestRollbackRouteTakenMeanwhile(t *testing.T) {
	d := newDesk(t)
	d.apply("prod", shop("1"))
	d.complete("prod")
	a := shop("2")
	a.Routes = nil
	d.apply("prod", a)
	d.complete("prod")
	d.apply("staging", shop("1")) // takes what prod gave up
	if _, err := d.Rollback(t.Context(), alice, "prod", 0, "", control.How{}); !errors.Is(err, fault.Conflict) {
		t.Errorf("got %v", err)
	}
}

func TestEnvironmentBelongsToOneApp(t *testing.T) {
	d := newDesk(t)
	d.apply("prod", app{Name: "shop", Components: []release.Placed{web("1", withVolume)}})
	wiki := app{Name: "wiki", Components: []release.Placed{web("1")}}
	if _, err := d.propose("prod", wiki); !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "runs app shop") {
		t.Errorf("got %v", err)
	}
	if _, err := d.Destroy(t.Context(), alice, "prod", false, "moving", control.How{}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.propose("prod", wiki); !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "volumes") {
		t.Errorf("wiki could read the volumes of shop: %v", err)
	}
	if moved, err := d.Destroy(t.Context(), alice, "prod", true, "volumes too", control.How{}); err != nil || !moved.Changed {
		t.Fatalf("got %+v, %v", moved, err)
	}
	if _, err := d.propose("prod", wiki); !errors.Is(err, fault.Conflict) {
		t.Errorf("applied while volumes are being deleted: %v", err)
	}
	if err := d.VolumesDestroyed(t.Context(), "prod"); err != nil {
		t.Fatal(err)
	}
	if moved := d.apply("prod", wiki); moved.Generation != 4 {
		t.Errorf("got %+v", moved)
	}
	d.audit()
}

func TestRollbackFindsTheLastThatCompleted(t *testing.T) {
	d := newDesk(t)
	first := d.apply("prod", shop("1"))
	d.complete("prod")
	d.apply("prod", shop("2"))
	if err := d.record("prod", deploy.Step{Kind: deploy.Failed, Generation: 2}); err != nil {
		t.Fatal(err)
	}
	d.apply("prod", shop("3"))
	d.complete("prod")
	moved, err := d.Rollback(t.Context(), alice, "prod", 0, "3 is slow", control.How{})
	if err != nil || moved.Generation != 4 || moved.Release != first.Release || !moved.Changed {
		t.Errorf("got %+v, %v", moved, err)
	}
	g, err := d.State().Generation("prod", 4)
	if err != nil || g.Kind != state.MovedByRollback || g.To != 1 || g.Reason != "3 is slow" {
		t.Errorf("got %+v, %v", g, err)
	}
	// Again is nothing; forward is a rollback as well; a failed one can be asked for by number.
	if moved, err := d.Rollback(t.Context(), alice, "prod", 1, "", control.How{}); err != nil || moved.Changed {
		t.Errorf("back to what it is: %+v, %v", moved, err)
	}
	d.complete("prod")
	if moved, err := d.Rollback(t.Context(), alice, "prod", 0, "", control.How{}); err != nil || moved.Generation != 5 || d.env("prod").Head.Release == first.Release {
		t.Errorf("forward: %+v, %v", moved, err)
	}
	if moved, err := d.Rollback(t.Context(), alice, "prod", 2, "", control.How{}); err != nil || moved.Generation != 6 {
		t.Errorf("by number: %+v, %v", moved, err)
	}
	for to, env := range map[int]spec.EnvName{9: "prod", 0: "unknown"} {
		if _, err := d.Rollback(t.Context(), alice, env, to, "", control.How{}); !errors.Is(err, fault.NotFound) {
			t.Errorf("%s to %d: %v", env, to, err)
		}
	}
	d.audit()
}

func TestRollbackBringsBackWhatWasDestroyed(t *testing.T) {
	d := newDesk(t)
	first := d.apply("prod", shop("1"))
	d.complete("prod")
	moved, err := d.Destroy(t.Context(), alice, "prod", false, "", control.How{})
	if err != nil || moved.Release != "" || moved.Generation != 2 {
		t.Fatalf("got %+v, %v", moved, err)
	}
	if moved, err := d.Destroy(t.Context(), alice, "prod", false, "", control.How{}); err != nil || moved.Changed {
		t.Errorf("destroyed twice: %+v, %v", moved, err)
	}
	if moved, err = d.Rollback(t.Context(), alice, "prod", 0, "", control.How{}); err != nil || moved.Release != first.Release {
		t.Errorf("got %+v, %v", moved, err)
	}
	if _, err := d.Rollback(t.Context(), alice, "prod", 2, "", control.How{}); !errors.Is(err, fault.Invalid) {
		t.Errorf("rolled back to nothing: %v", err)
	}
	if _, err := d.Destroy(t.Context(), alice, "unknown", false, "", control.How{}); !errors.Is(err, fault.NotFound) {
		t.Errorf("got %v", err)
	}
}

func TestRecordIsAllOrNothingAndCompareAndSwap(t *testing.T) {
	d := newDesk(t)
	d.apply("prod", shop("1"))
	seen := d.env("prod").Seq
	steps := []deploy.Step{d.create("prod", "web-aaaaaaaaaa"), d.create("prod", "web-bbbbbbbbbb")}
	if err := d.Record(t.Context(), "prod", seen, steps); err != nil {
		t.Fatal(err)
	}
	if n := len(d.env("prod").Instances); n != 2 {
		t.Errorf("%d instances", n)
	}
	size := d.State().Size()
	if err := d.Record(t.Context(), "prod", seen, []deploy.Step{d.create("prod", "web-cccccccccc")}); !errors.Is(err, fault.Conflict) {
		t.Errorf("recorded on a stale view: %v", err)
	}
	illegal := []deploy.Step{d.create("prod", "web-cccccccccc"), {Kind: deploy.Healthy, ID: "web-zzzzzzzzzz"}}
	if err := d.record("prod", illegal...); err == nil {
		t.Error("an illegal step was recorded")
	}
	if d.State().Size() != size || len(d.env("prod").Instances) != 2 {
		t.Error("a part was recorded")
	}
	e, err := d.Entry(t.Context(), size-1)
	if err != nil || e.Entry.Actor.Kind != state.ActorSystem || len(e.Entry.Subject) != 1 || e.Entry.Subject[0].Digest != d.env("prod").Head.Digests["web"] {
		t.Errorf("got %+v, %v", e.Entry, err)
	}
}

func TestRevertIsANewGeneration(t *testing.T) {
	d := newDesk(t)
	first := d.apply("prod", shop("1"))
	d.complete("prod")
	d.apply("prod", shop("2"))
	err := d.record("prod", deploy.Step{Kind: deploy.Failed, Generation: 2, Cause: "web exits at once"},
		deploy.Step{Kind: deploy.Revert, Generation: 3, Release: first.Release, Cause: "generation 2 failed: web exits at once"})
	if err != nil {
		t.Fatal(err)
	}
	g, err := d.State().Generation("prod", 3)
	if err != nil || g.Kind != state.MovedByRevert || g.Release != first.Release || g.Actor.Kind != state.ActorSystem {
		t.Errorf("got %+v, %v", g, err)
	}
	if g, _ := d.State().Generation("prod", 2); g.Outcome != deploy.Broken || g.Cause != "web exits at once" {
		t.Errorf("got %+v", g)
	}
	d.audit()
}

func TestConcurrentAppliesOneWins(t *testing.T) {
	d := newDesk(t)
	const n = 16
	var moves []control.Move
	for i := range n {
		m, err := d.propose("prod", shop(fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		moves = append(moves, m)
	}
	var won, lost atomic.Int32
	var wg sync.WaitGroup
	for _, m := range moves {
		wg.Go(func() {
			switch _, err := d.Apply(t.Context(), alice, m); {
			case err == nil:
				won.Add(1)
			case errors.Is(err, fault.Conflict):
				lost.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || lost.Load() != n-1 {
		t.Errorf("%d won, %d lost", won.Load(), lost.Load())
	}
	d.audit()
}

// Environments that take each other's route at the same time: the decision is made where nothing comes between.
func TestConcurrentAppliesToOneRouteOneWins(t *testing.T) {
	d := newDesk(t)
	envs := []spec.EnvName{"a", "b", "c", "d"}
	var moves []control.Move
	for _, env := range envs {
		m, err := d.propose(env, shop("1"))
		if err != nil {
			t.Fatal(err)
		}
		moves = append(moves, m)
	}
	var won atomic.Int32
	var wg sync.WaitGroup
	for _, m := range moves {
		wg.Go(func() {
			if _, err := d.Apply(t.Context(), alice, m); err == nil {
				won.Add(1)
			} else if !errors.Is(err, fault.Conflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d won", won.Load())
	}
	d.audit()
}

// Every commit of a change fails in every way that a store can, and the ledger is whole after it.
func TestFailedCommitsLeaveNoTrace(t *testing.T) {
	for _, f := range []storetest.Fault{storetest.Fail, storetest.FailAfter, storetest.Crash, storetest.CrashAfter} {
		for n := 1; n <= 4; n++ {
			t.Run(fmt.Sprintf("fault %d of commit %d", f, n), func(t *testing.T) {
				d := newDesk(t)
				d.disk.SetFaults(storetest.Nth(storetest.OpAppend, n, f))
				id := ids(0)
				steps := []func() error{
					func() error {
						m, err := d.propose("prod", shop("1"))
						if err == nil {
							_, err = d.Apply(t.Context(), alice, m)
						}
						return err
					},
					func() error { return d.record("prod", d.create("prod", id())) },
					func() error { return d.record("prod", deploy.Step{Kind: deploy.Done, Generation: 1}) },
					func() error { _, err := d.Destroy(t.Context(), alice, "prod", false, "", control.How{}); return err },
				}
				for i, step := range steps {
					size := d.State().Size()
					err := step()
					if (err != nil) != (i+1 == n && f != storetest.FailAfter) {
						t.Fatalf("step %d: %v", i, err)
					}
					if err == nil {
						continue
					}
					if d.State().Size() != size {
						t.Fatalf("step %d failed and changed the state", i)
					}
					if f == storetest.Crash || f == storetest.CrashAfter {
						d.crash()
					}
					if d.State().Size() <= size+1 { // it was not durable: the same again works
						if err := step(); err != nil {
							t.Fatalf("step %d again: %v", i, err)
						}
					}
				}
				if e := d.env("prod"); !e.Destroyed() || e.Head.Number != 2 {
					t.Errorf("the head is %d", e.Head.Number)
				}
				d.audit()
			})
		}
	}
}

func TestRestartFindsTheSameState(t *testing.T) {
	d := newDesk(t)
	d.config.SnapshotEvery = 3
	id := ids(0)
	for i := range 5 {
		d.apply("prod", shop(fmt.Sprint(i)))
		if err := d.record("prod", d.create("prod", id())); err != nil {
			t.Fatal(err)
		}
		d.complete("prod")
		want := d.env("prod")
		if i%2 == 0 {
			if err := d.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		d.crash()
		if got := d.env("prod"); got.Seq != want.Seq || got.Head.Release != want.Head.Release || len(got.Instances) != len(want.Instances) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		d.audit()
	}
}

// A snapshot that anybody has touched is not believed.
func TestEditedSnapshotIsNotUsed(t *testing.T) {
	d := newDesk(t)
	d.apply("prod", shop("1"))
	if err := d.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	snap, err := d.config.Store.Snapshot(t.Context())
	if err != nil || !strings.Contains(string(snap.State), `"app":"shop"`) {
		t.Fatalf("no snapshot at close: %v", err)
	}
	edited := strings.ReplaceAll(string(snap.State), `"alice"`, `"mallory"`)
	if err := d.config.Store.PutSnapshot(t.Context(), store.Snapshot{Size: snap.Size, State: []byte(edited)}); err != nil {
		t.Fatal(err)
	}
	d.disk.Crash()
	d.open(false)
	if g, err := d.State().Generation("prod", 1); err != nil || g.Actor != alice {
		t.Errorf("got %+v, %v", g, err)
	}
	d.audit()
}

func TestTokens(t *testing.T) {
	d := newDesk(t)
	tok, secret, err := d.CreateToken(t.Context(), control.Caller{Actor: alice}, "ci", control.Scope{})
	if err != nil {
		t.Fatal(err)
	}
	for e, err := range d.Entries(t.Context(), 0, d.State().Size()) {
		if err != nil || strings.Contains(string(e.Leaf), secret) {
			t.Fatalf("entry %d has the secret (%v)", e.Index, err)
		}
	}
	if by, err := d.IdentifyToken(secret); err != nil || by.Actor.String() != "token:ci" {
		t.Errorf("got %v, %v", by, err)
	}
	for _, bad := range []string{"", "invar_", secret + "x", secret[:len(secret)-1], string(tok.ID), string(tok.Secret)} {
		if _, err := d.IdentifyToken(bad); !errors.Is(err, fault.Denied) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	d.crash()
	if err := d.RevokeToken(t.Context(), alice, tok.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := d.IdentifyToken(secret); !errors.Is(err, fault.Denied) {
		t.Errorf("revoked: %v", err)
	}
	if err := d.RevokeToken(t.Context(), alice, tok.ID); !errors.Is(err, fault.Conflict) {
		t.Errorf("revoked twice: %v", err)
	}
	if err := d.RevokeToken(t.Context(), alice, "aaaaaaaa"); !errors.Is(err, fault.NotFound) {
		t.Errorf("unknown: %v", err)
	}
	if _, _, err := d.CreateToken(t.Context(), control.Caller{Actor: alice}, "No Name", control.Scope{}); !errors.Is(err, fault.Invalid) {
		t.Errorf("bad name: %v", err)
	}
	d.audit()
}

func TestWatchGoesOnWithWhatComes(t *testing.T) {
	d := newDesk(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []state.Kind
	done := make(chan struct{})
	started := make(chan struct{})
	go func() {
		defer close(done)
		for e, err := range d.Watch(ctx, 1) {
			if err != nil {
				t.Error(err)
				return
			}
			if got = append(got, e.Entry.Kind()); len(got) == 1 {
				close(started)
			}
			if e.Entry.Kind() == state.Kind(deploy.Done) {
				return
			}
		}
	}()
	within(t, "first entry", started)
	d.apply("prod", shop("1"))
	d.complete("prod")
	within(t, "last entry", done)
	want := []state.Kind{state.KindLogStart, state.KindBundle, state.KindRelease, state.KindApply, state.Kind(deploy.Done)}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Error(diff)
	}
}

// What somebody else appends is never taken for the state: the service stops deciding.
func TestForeignEntriesStopTheService(t *testing.T) {
	d := newDesk(t)
	if _, err := d.Ledger().Append(t.Context(), func(int64) ([][]byte, error) { return [][]byte{[]byte("{}")}, nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Destroy(t.Context(), alice, "prod", false, "", control.How{}); !errors.Is(err, fault.Corrupt) {
		t.Errorf("got %v", err)
	}
	d.disk.Crash()
	if err := d.tryOpen(false); !errors.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), "entry 2") {
		t.Errorf("got %v, want the entry", err)
	}
}

func TestReads(t *testing.T) {
	d := newDesk(t)
	a := d.apply("prod", shop("1")).Release
	b := d.apply("prod", shop("2")).Release
	changes, err := d.Diff(t.Context(), a, b)
	if err != nil || len(changes.Components) != 1 || len(changes.Components[0].Causes) != 1 || changes.Components[0].Causes[0].Field != "env VERSION" {
		t.Errorf("got %+v, %v", changes, err)
	}
	for gen, want := range map[int]digest.Digest{0: b, 1: a, 2: b} {
		if got, err := d.ReleaseOf("prod", gen); err != nil || got != want {
			t.Errorf("generation %d: %s, %v", gen, got, err)
		}
	}
	if _, err := d.Release(t.Context(), digest.Of(nil)); !errors.Is(err, fault.NotFound) {
		t.Errorf("got %v", err)
	}
	var refs []digest.Digest
	for r, err := range d.References(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, r)
	}
	for _, want := range []digest.Digest{a, b, d.push(shop("1")), digest.Of(manifest), digest.Of([]byte("root")), digest.Of([]byte("layer")), digest.Of([]byte("config")), digest.Of([]byte("attached"))} {
		if !slices.Contains(refs, want) {
			t.Errorf("%s is not referred to", want)
		}
	}
	rollouts := d.Rollouts()
	if e, ok := rollouts.Environment("prod"); !ok || e.Head.Release != b {
		t.Errorf("got %+v, %v", e.Head, ok)
	}
	if _, ok := rollouts.Environment("unknown"); ok || len(rollouts.Environments()) != 1 {
		t.Error("environments that there are not")
	}
}

func TestPlanShowsWhatWouldHappen(t *testing.T) {
	d := newDesk(t)
	d.apply("prod", shop("1"))
	d.complete("prod")
	m, err := d.propose("prod", shop("2"))
	if err != nil {
		t.Fatal(err)
	}
	planned, err := d.Plan(t.Context(), m.Proposal)
	if err != nil {
		t.Fatal(err)
	}
	if planned.Digest != m.Plan {
		t.Error("planned twice, planned differently")
	}
	i := planned.Plan.Items[0]
	if i.Action != change.Replace || i.How != change.Beside || i.Starts != 2 || i.Stops != 2 || planned.Plan.Base.Generation != 1 {
		t.Errorf("got %+v", i)
	}
}

func TestPromotionTakesOnlyWhatCompletedThere(t *testing.T) {
	d := newDesk(t)
	a := shop("1")
	a.Routes, a.From = nil, "staging"
	refused := func(when string) {
		t.Helper()
		if _, err := d.propose("prod", a); !errors.Is(err, fault.Denied) || fault.Hint(err) != "first: invar apply staging" {
			t.Errorf("%s: got %v, hint %q", when, err, fault.Hint(err))
		}
	}
	refused("never ran in staging")
	d.apply("staging", a)
	refused("under way in staging")
	d.complete("staging")
	if moved := d.apply("prod", a); !moved.Changed {
		t.Error("what completed in staging is refused in prod")
	}
	a.Components = []release.Placed{web("2")}
	refused("another bundle")
}
