package control_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// keeper is an app with a volume that is copied before a change.
func keeper(version string) app {
	p := web(version, withVolume)
	p.Replicas, p.Snapshots = 1, []spec.VolumeName{"data"}
	a := shop(version)
	a.Components = []release.Placed{p}
	return a
}

// changedData is a desk at which generation 1 of prod has left its data, in a snapshot, to generation 2.
func changedData(t *testing.T) *desk {
	d := newDesk(t)
	changeData(t, d)
	return d
}

func changeData(t *testing.T, d *desk) {
	t.Helper()
	must := func(steps ...deploy.Step) {
		t.Helper()
		if err := d.record("prod", steps...); err != nil {
			t.Fatal(err)
		}
	}
	d.apply("prod", keeper("1"))
	must(d.create("prod", "web-a"))
	d.complete("prod")
	d.apply("prod", keeper("2"))
	c := deploy.Copy{Component: "web", Volume: "data", From: &deploy.Place{Version: 1}, To: deploy.Place{Snapshot: 1}, Generation: 1}
	must(deploy.Step{Kind: deploy.Retire, ID: "web-a"}, deploy.Step{Kind: deploy.Gone, ID: "web-a"}, deploy.Step{Kind: deploy.Copying, Copy: &c})
	if err := d.record("prod", d.create("prod", "web-b")); !errors.Is(err, fault.Conflict) {
		t.Errorf("an instance is created while its volume is copied: %v", err)
	}
	must(deploy.CopyEnded(c, deploy.Content{Bytes: 7, Files: 1, Digest: digest.Of(nil)}, nil))
	must(d.create("prod", "web-b"))
	d.complete("prod")
}

// TestARollbackWithDataDoesWhatItsPlanSays: it needs one, and names what is lost.
func TestARollbackWithDataDoesWhatItsPlanSays(t *testing.T) {
	d := changedData(t)
	back := control.Back{Env: "prod", To: 1, WithData: true}
	if _, err := d.GoBack(t.Context(), alice, back); !errors.Is(err, fault.Invalid) {
		t.Errorf("without a plan: %v", err)
	}
	planned, err := d.PlanRollback(back)
	if err != nil {
		t.Fatal(err)
	}
	if v := planned.Plan.Volumes; len(v) != 1 || v[0].Snapshot != 1 || v[0].Generation != 1 || v[0].Keeps != 1 || v[0].Bytes != 7 || v[0].At.IsZero() {
		t.Errorf("the plan says of volumes: %+v", v)
	}
	plain, err := d.PlanRollback(control.Back{Env: "prod", To: 1})
	if err != nil || plain.Digest == planned.Digest || plain.Plan.Volumes != nil {
		t.Errorf("a rollback without data has the plan %s %+v, %v", plain.Digest, plain.Plan.Volumes, err)
	}
	back.Plan = plain.Digest
	if _, err := d.GoBack(t.Context(), alice, back); !errors.Is(err, fault.Conflict) {
		t.Errorf("by the plan of another: %v", err)
	}
	back.Plan, back.How = planned.Digest, control.How{Confirm: 1e9}
	if _, err := d.GoBack(t.Context(), alice, back); !errors.Is(err, fault.Invalid) {
		t.Errorf("to be confirmed: %v", err)
	}
	back.How = control.How{}
	moved, err := d.GoBack(t.Context(), alice, back)
	if err != nil || moved.Generation != 3 {
		t.Fatalf("moved to %+v, %v", moved, err)
	}
	if r := d.env("prod").Head.Restores; len(r) != 1 || r[0].From != (deploy.Place{Snapshot: 1}) {
		t.Errorf("the head restores %+v", r)
	}
	d.crash()
	if r := d.env("prod").Head.Restores; len(r) != 1 {
		t.Errorf("after a crash the head restores %+v", r)
	}
	d.audit()
}

func TestARollbackWithDataIsRefusedWhereNothingIsKept(t *testing.T) {
	d := changedData(t)
	if err := d.DeleteVolume(t.Context(), alice, "prod", state.VolumeDelete{Component: "web", Volume: "data", Version: 1}, ""); !errors.Is(err, fault.Conflict) {
		t.Errorf("deleting the current version: %v", err)
	}
	if err := d.DeleteVolume(t.Context(), alice, "prod", state.VolumeDelete{Component: "web", Volume: "data", Snapshot: 1}, "space"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.PlanRollback(control.Back{Env: "prod", To: 1, WithData: true}); !errors.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "web/data") {
		t.Errorf("%v, want an error that names the volume", err)
	}
	stays, err := d.PlanRollback(control.Back{Env: "prod", To: 2, WithData: true})
	if err != nil || len(stays.Plan.Volumes) != 1 || !stays.Plan.Volumes[0].Stays {
		t.Errorf("to what runs: %+v, %v", stays.Plan.Volumes, err)
	}
	d.audit()
}

// TestAForkBeginsWithCopiesOfData and its source has no entry of it.
func TestAForkBeginsWithCopiesOfData(t *testing.T) {
	d := changedData(t)
	before := d.env("prod")
	fork := func(how string, want deploy.Restore) spec.EnvName {
		t.Helper()
		name := spec.EnvName("fork-" + how)
		d.mustFork("prod", name, func(f *control.Fork) { f.Volumes = how })
		if r := d.env(name).Head.Restores; len(r) != 1 || r[0].Restore != want {
			t.Errorf("--volumes %s restores %+v", how, r)
		}
		return name
	}
	fork(control.VolumesCopy, deploy.Restore{Component: "web", Volume: "data", From: deploy.Place{Env: "prod", Version: 1}, Live: true})
	name := fork(control.VolumesSnapshot, deploy.Restore{Component: "web", Volume: "data", From: deploy.Place{Env: "prod", Snapshot: 1}})
	if err := d.DeleteVolume(t.Context(), alice, "prod", state.VolumeDelete{Component: "web", Volume: "data", Snapshot: 1}, ""); !errors.Is(err, fault.Conflict) {
		t.Errorf("what a fork is being made from was deleted: %v", err)
	}
	if _, err := d.fork("prod", name, func(f *control.Fork) { f.Volumes, f.Generation = control.VolumesSnapshot, 1 }); !errors.Is(err, fault.Conflict) {
		t.Errorf("its volumes begin anew: %v", err)
	}
	if after := d.env("prod"); after.Seq != before.Seq {
		t.Error("the source has changed")
	}
	d.mustFork("prod", "fork-empty")
	if r := d.env("fork-empty").Head.Restores; len(r) != 0 {
		t.Errorf("an empty fork restores %+v", r)
	}
	d.audit()
}

func TestAForkOfSnapshotsNeedsSome(t *testing.T) {
	d := newDesk(t)
	d.apply("prod", keeper("1"))
	if err := d.record("prod", d.create("prod", "web-a")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.fork("prod", "fork-a", func(f *control.Fork) { f.Volumes = control.VolumesSnapshot }); !errors.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "web/data") {
		t.Errorf("%v, want an error that names the volume", err)
	}
}

// TestApproversAgreeToTheDataThatGoBack: what is restored is in the plan that they sign, and nothing else is carried out.
func TestApproversAgreeToTheDataThatGoBack(t *testing.T) {
	o := newOffice(t, "")
	changeData(t, o.desk)
	o.def.Approvals = []platform.Approval{{Name: "prod", Environments: []platform.Pattern{"prod"}, Require: "1 of group.managers", ExpiresMillis: time.Hour.Milliseconds()}}
	o.rule()
	back := control.Back{Env: "prod", To: 1, WithData: true, Reason: "the migration lost a table"}
	planned, err := o.PlanRollback(back)
	o.must(err)
	back.Plan = planned.Digest
	moved, err := o.GoBack(t.Context(), as("alice"), back)
	o.must(err)
	c := o.find(moved.Change)
	if !moved.Waiting || c.Plan != planned.Digest || len(c.Restore) != 1 {
		t.Fatalf("proposed %+v: %+v", moved, c.ChangeRequest)
	}
	shown, _, err := o.PlanOf(c)
	if err != nil || len(shown.Plan.Volumes) != 1 || shown.Plan.Volumes[0].Snapshot != 1 {
		t.Errorf("approvers see %+v, %v", shown.Plan.Volumes, err)
	}
	o.must(o.approve(moved.Change, "bob"))
	o.must(o.carry(moved.Change, "carol"))
	if r := o.env("prod").Head.Restores; len(r) != 1 || r[0].From != (deploy.Place{Snapshot: 1}) {
		t.Errorf("the head restores %+v", r)
	}
	o.audit()
}
