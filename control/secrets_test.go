package control_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/secret"
	"github.com/invarhq/invar/state"
)

// secrets keeps values in memory.
type secrets struct {
	mu     sync.Mutex
	values map[digest.Digest]string
	made   int
}

func (s *secrets) Put(r secret.Ref, value []byte) (digest.Digest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made++
	d := digest.Of(fmt.Appendf(nil, "ciphertext %d of %s", s.made, r))
	s.values[d] = string(value)
	return d, nil
}

func (s *secrets) Has(d digest.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.values[d]
	return ok
}

var password = secret.Ref{Env: "prod", Name: "db-password"}

func withSecret(c *release.Component) {
	c.Secrets = []release.Secret{{Path: "/run/secrets/db", Name: "db-password", Mode: 0o400}}
}

// guarded is an app with a secret.
func guarded(version string) app {
	return app{Name: "shop", Components: []release.Placed{web(version, withSecret)}}
}

func (d *desk) set(r secret.Ref, value string) state.KnownSecret {
	d.t.Helper()
	made, err := d.SetSecret(d.t.Context(), alice, r, []byte(value), "because")
	if err != nil {
		d.t.Fatal(err)
	}
	return made
}

// pin is the version that the head of prod has.
func (d *desk) pin() digest.Digest {
	d.t.Helper()
	return release.PinsOf(d.env("prod").Head.Record)["db-password"]
}

func TestVersionsOfSecretsAreEntries(t *testing.T) {
	d := newDesk(t)
	first := d.set(password, "hunter2")
	second := d.set(password, "hunter2")
	d.set(secret.Ref{Env: "prod", Name: "db"}, "other") // a name that begins the other
	d.set(secret.Ref{Env: "prod-eu", Name: "db-password"}, "other")
	d.crash()
	var got []digest.Digest
	for v := range d.State().SecretVersions("prod", "db-password") {
		if v.Actor != alice || v.Reason != "because" || v.At.IsZero() {
			t.Errorf("version %+v", v)
		}
		got = append(got, v.Version)
	}
	if len(got) != 2 || got[0] != first.Version || got[1] != second.Version {
		t.Errorf("versions %v, want %s and %s", got, first.Version, second.Version)
	}
	if pins := d.State().Pins("prod"); len(pins) != 2 || pins["db-password"] != second.Version {
		t.Errorf("pins %v", pins)
	}
	for e, err := range d.Entries(t.Context(), 0, d.State().Size()) {
		if err != nil || strings.Contains(string(e.Leaf), "hunter2") {
			t.Errorf("entry %d: %v: %s", e.Index, err, e.Leaf)
		}
	}
	d.audit()
}

func TestReleasePinsTheNewestVersion(t *testing.T) {
	d := newDesk(t)
	if _, err := d.propose("prod", guarded("1")); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "db-password") {
		t.Errorf("without a version: %v, want invalid, with the secret's name", err)
	}
	d.set(secret.Ref{Env: "staging", Name: "db-password"}, "another environment's")
	if _, err := d.propose("prod", guarded("1")); !errors.Is(err, fault.Invalid) {
		t.Errorf("with a version of another environment: %v, want invalid", err)
	}
	first := d.set(password, "one")
	d.apply("prod", guarded("1"))
	second := d.set(password, "two")
	if d.pin() != first.Version {
		t.Errorf("setting a secret changed the head")
	}
	moved := d.apply("prod", guarded("1"))
	if d.pin() != second.Version || moved.Generation != 2 {
		t.Errorf("the same sources, applied again: %+v pins %s, want %s", moved, d.pin(), second.Version)
	}
	d.audit()
}

// What was evaluated before a secret was set does not hold after it, whoever remembers it.
func TestPlanIsStaleOnceASecretIsSet(t *testing.T) {
	d := newDesk(t)
	d.set(password, "one")
	saved, err := d.propose("prod", guarded("1"))
	if err != nil {
		t.Fatal(err)
	}
	d.set(password, "two")
	stale := func(when string, err error) {
		t.Helper()
		if !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "secret db-password has a newer version") || !strings.Contains(fault.Hint(err), "invar plan prod") {
			t.Errorf("%s: %v (hint %q), want a conflict that names the secret", when, err, fault.Hint(err))
		}
	}
	_, err = d.Apply(t.Context(), alice, saved)
	stale("at the same server", err)
	d.crash()
	_, err = d.Apply(t.Context(), alice, saved)
	if !errors.Is(err, fault.Invalid) {
		t.Errorf("at the next one, which never saw the release: %v, want invalid", err)
	}
	r, err := d.evaluated(saved.Bundle, saved.Release)
	if err != nil {
		t.Fatal(err)
	}
	d.blobs.put(t, r) // as a client does before it plans
	_, err = d.Apply(t.Context(), alice, saved)
	stale("at the next one", err)
	_, err = d.Plan(t.Context(), saved.Proposal)
	stale("a plan of what the client evaluated before", err)
	if _, err := d.State().Environment("prod"); err == nil {
		t.Error("a stale plan moved the head")
	}
}

// evaluated is what a client has: the record with this digest, by any pins that there ever were.
func (d *desk) evaluated(bundle, want digest.Digest) ([]byte, error) {
	d.t.Helper()
	for v := range d.State().Secrets("prod") {
		r := release.Record{V: 1, App: "shop", Env: "prod", Bundle: bundle, Components: guarded("1").Components, Routes: []release.Route{},
			Rollout: release.Rollout{MaxParallel: 1, AutoRevert: true, HealthyDeadlineMillis: 1000, ProgressDeadlineMillis: 2000}}
		r.Components[0].Component.Secrets[0].Version = v.Version
		if b, err := release.Encode(r); err != nil || digest.Of(b) == want {
			return b, err
		}
	}
	return nil, fmt.Errorf("no pins give release %s", want)
}

func TestSecretSetWhileAnApplyIsDecidedMakesItStale(t *testing.T) {
	d := newDesk(t)
	d.set(password, "one")
	saved, err := d.propose("prod", guarded("1"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var applied, set error
	wg.Go(func() { _, applied = d.Apply(t.Context(), alice, saved) })
	wg.Go(func() { _, set = d.SetSecret(t.Context(), alice, password, []byte("two"), "") })
	wg.Wait()
	if set != nil || applied != nil && !errors.Is(applied, fault.Conflict) {
		t.Fatalf("set: %v, applied: %v; want none, or a conflict", set, applied)
	}
	var order []state.Kind // with the pins of the entries before it
	for _, k := range d.kinds(0) {
		if k == state.KindSecretVersion || k == state.KindApply {
			order = append(order, k)
		}
	}
	if len(order) == 3 && order[2] == state.KindApply {
		t.Errorf("a head moved to a version that was not the newest: %v", order)
	}
	d.audit()
}

func TestRollbackGoesBackToTheOldVersion(t *testing.T) {
	d := newDesk(t)
	first := d.set(password, "one")
	d.apply("prod", guarded("1"))
	d.complete("prod")
	d.set(password, "two")
	d.apply("prod", guarded("1"))
	d.complete("prod")
	if _, err := d.Rollback(t.Context(), alice, "prod", 1, "", control.How{}); err != nil {
		t.Fatal(err)
	}
	if d.pin() != first.Version {
		t.Errorf("rolled back to %s, want %s", d.pin(), first.Version)
	}
	delete(d.secrets.values, first.Version)
	d.set(password, "three")
	d.apply("prod", guarded("2"))
	if _, err := d.Rollback(t.Context(), alice, "prod", 1, "", control.How{}); !errors.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "db-password") {
		t.Errorf("to a version that is gone: %v, want not found", err)
	}
	d.audit()
}

// A head's bundle can be planned again without its sources: that is how a secret is rotated.
func TestRotationNeedsNoSources(t *testing.T) {
	d := newDesk(t)
	d.set(password, "one")
	d.apply("prod", guarded("1"))
	bundle := release.PinsOf(d.env("prod").Head.Record)
	second := d.set(password, "two")
	planned, err := d.Plan(t.Context(), control.Proposal{Env: "prod", Bundle: d.env("prod").Head.Record.Bundle})
	if err != nil {
		t.Fatal(err)
	}
	if len(planned.Plan.Items) != 1 || len(planned.Plan.Items[0].Causes) != 1 || planned.Plan.Items[0].Causes[0].Field != "secret db-password version" {
		t.Errorf("plan %+v, want one cause: the version", planned.Plan.Items)
	}
	_, err = d.Apply(t.Context(), alice, control.Move{Proposal: control.Proposal{Env: "prod", Bundle: planned.Plan.Bundle, Release: planned.Plan.Release}, Base: 1, Plan: planned.Digest})
	if err != nil || d.pin() != second.Version || d.pin() == bundle["db-password"] {
		t.Errorf("applied: %v, pins %s", err, d.pin())
	}
	d.audit()
}

// An entry that can't be written leaves a ciphertext that nothing names, and no version.
func TestSecretWithoutAnEntryIsNoVersion(t *testing.T) {
	d := newDesk(t)
	d.disk.Crash()
	if _, err := d.SetSecret(t.Context(), alice, password, []byte("hunter2"), ""); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v, want an error without the value", err)
	}
	d.crash()
	if pins := d.State().Pins("prod"); len(pins) != 0 {
		t.Errorf("pins %v, want none", pins)
	}
	d.audit()
}

func TestSecretsWithBadNamesAreRefused(t *testing.T) {
	d := newDesk(t)
	size := d.State().Size()
	for _, r := range []secret.Ref{{}, {Env: "prod"}, {Env: "prod", Name: "A"}, {Env: "../x", Name: "a"}} {
		if _, err := d.SetSecret(t.Context(), alice, r, []byte("x"), ""); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want invalid", r, err)
		}
	}
	if d.State().Size() != size {
		t.Error("a refused secret made an entry")
	}
}
