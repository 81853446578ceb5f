package state

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

// ForkOf says what an environment is a fork of, and what it has of its own.
type ForkOf struct {
	From           spec.EnvName `json:"from"`                      // the environment
	FromGeneration int          `json:"from_generation,omitempty"` // of it; unset: a preview, whose release was no head there
	Of             spec.EnvName `json:"of"`                        // environment that the release was evaluated for: From, unless that is a fork itself
	Domain         string       `json:"domain"`                    // routes are at ROUTE.ENV.DOMAIN
	Secrets        release.Pins `json:"secrets,omitempty"`         // versions of this environment's secrets that take the place of the release's
	Snapshot       bool         `json:"snapshot,omitempty"`        // reserved: no server ever wrote it
	TTLMS          int64        `json:"ttl_ms"`                    // it is destroyed so many milliseconds after the head moved
	Owner          string       `json:"owner"`                     // who asked for it

	Restore []deploy.Restore `json:"restore,omitempty"` // volumes that begin as copies of From's, by name; others begin empty
}

// Fork moves the head to a release that was evaluated for another environment. The entry's body is the plan.
type Fork struct {
	App        spec.AppName  `json:"app"`
	Generation int           `json:"generation"`     // the new one
	Base       int           `json:"base,omitempty"` // the one before
	Release    digest.Digest `json:"release"`
	Bundle     digest.Digest `json:"bundle"`
	Plan       digest.Digest `json:"plan"`
	ForkOf
	ExpiresAt time.Time `json:"expires_at"`
	Governed
}

// Forked is what is known of a fork.
type Forked struct {
	ForkOf
	ExpiresAt time.Time `json:"expires_at"`
}

// EntryKind returns the kind.
func (Fork) EntryKind() Kind { return KindFork }

func (d Fork) check(e Entry) error {
	if e.Body == nil || e.Body.Digest != d.Plan {
		return errors.New("want the plan as body")
	}
	if want := e.Time.Add(time.Duration(d.TTLMS) * time.Millisecond); !d.ExpiresAt.Equal(want) {
		return fmt.Errorf("it expires at %s, not %s", d.ExpiresAt.Format(time.RFC3339Nano), want.Format(time.RFC3339Nano))
	}
	return errors.Join(somewhere(e), checkMove(d.App, d.Generation, d.Base), d.ForkOf.check(), d.Governed.check(), required(d.Release, d.Bundle, d.Plan))
}

// MaxForkTTL is the longest time that a fork can be given.
const MaxForkTTL = 90 * 24 * time.Hour

func (d ForkOf) check() error {
	switch {
	case d.FromGeneration < 0:
		return fmt.Errorf("generation %d", d.FromGeneration)
	case d.TTLMS < 1 || d.TTLMS > MaxForkTTL.Milliseconds():
		return fmt.Errorf("a time of %d ms", d.TTLMS)
	case d.Domain == "" || d.Owner == "":
		return errors.New("want a domain and an owner")
	}
	errs := []error{spec.CheckName(string(d.From)), spec.CheckName(string(d.Of)), checkRestores(d.Restore, d.From)}
	for name, version := range d.Secrets {
		errs = append(errs, spec.CheckName(name), required(version))
	}
	return errors.Join(errs...)
}

// same reports whether a change proposed this fork. Both are nil for other moves.
func (d *ForkOf) same(g *Forked) bool {
	if d == nil || g == nil {
		return d == nil && g == nil
	}
	a, b := *d, g.ForkOf
	equal := maps.Equal(a.Secrets, b.Secrets) && slices.Equal(a.Restore, b.Restore)
	a.Secrets, b.Secrets = nil, nil
	return equal && a.From == b.From && a.FromGeneration == b.FromGeneration && a.Of == b.Of && a.Domain == b.Domain && a.Snapshot == b.Snapshot &&
		a.TTLMS == b.TTLMS && a.Owner == b.Owner
}

// Over returns a release as a fork of that name has it.
func (d ForkOf) Over(name spec.EnvName, r release.Record) release.Record {
	return release.Overlay{Env: name, Domain: d.Domain, Secrets: d.Secrets}.Over(r)
}

// overlay is what the fork puts over its releases.
func (d *Forked) overlay(name spec.EnvName) *release.Overlay {
	return &release.Overlay{Env: name, Domain: d.Domain, Secrets: d.Secrets}
}

// Live reports whether the environment is a fork that was not destroyed.
func (e Environment) Live() bool { return e.Fork != nil && !e.Destroyed() }

// becomes says whether the environment can have such a head. A fork stays one until it is destroyed: it takes releases of
// what it is a fork of, and has no life after.
func (e Environment) becomes(g Generation) error {
	destroyFirst := func(err error) error { return fault.WithHint(err, "first: invar destroy %s", e.Name) }
	switch {
	case g.Kind == MovedByApply && e.Live():
		return destroyFirst(fault.Errorf(fault.Conflict, "environment %s is a fork of %s until %s", e.Name, e.Fork.From, e.Fork.ExpiresAt.Format(time.RFC3339)))
	case g.Kind == MovedByRollback && e.Fork != nil && e.Destroyed():
		return fault.WithHint(fault.Errorf(fault.Conflict, "environment %s was a fork, which has ended", e.Name), "make another: invar fork %s %s", e.Fork.From, e.Name)
	case g.Kind != MovedByFork:
		return nil
	case g.Fork.From == e.Name:
		return fault.Errorf(fault.Invalid, "an environment can't be a fork of itself")
	case e.Head.Release != "" && e.Fork == nil:
		return destroyFirst(fault.Errorf(fault.Conflict, "environment %s runs app %s, and is no fork", e.Name, e.App))
	case e.Live() && (e.Fork.From != g.Fork.From || e.Fork.Of != g.Fork.Of || e.Fork.Domain != g.Fork.Domain):
		return destroyFirst(fault.Errorf(fault.Conflict, "environment %s is a fork of %s, not of %s", e.Name, e.Fork.From, g.Fork.From))
	case e.Live() && len(g.Fork.Restore) > 0:
		return destroyFirst(fault.Errorf(fault.Conflict, "environment %s is a fork already: its volumes can't begin anew", e.Name))
	case !e.Live() && e.Volumes:
		return fault.WithHint(fault.Errorf(fault.Conflict, "environment %s still has the volumes of app %s", e.Name, e.App),
			"delete them first: invar destroy %s --volumes", e.Name)
	}
	return nil
}

// Becomes says whether the environment can have a head of that kind, a fork with these particulars.
func (e Environment) Becomes(kind MoveKind, fork *ForkOf) error {
	g := Generation{Kind: kind}
	if fork != nil {
		g.Fork = &Forked{ForkOf: *fork}
	}
	return e.becomes(g)
}

func (f *fold) fork(e Entry, d Fork) error {
	if d.FromGeneration > 0 {
		had := get[Generation](f.tx, tableGenerations, "id", generationKey(d.From, d.FromGeneration))
		if had == nil || had.Release != d.Release {
			return fault.Errorf(fault.Conflict, "generation %d of environment %s had not release %s", d.FromGeneration, d.From, d.Release)
		}
	}
	return f.move(e, Generation{Number: d.Generation, Kind: MovedByFork, App: d.App, Release: d.Release, Bundle: d.Bundle, Plan: d.Plan, Restore: d.Restore,
		Fork: &Forked{d.ForkOf, d.ExpiresAt}}, d.Base, d.Governed)
}

// revokeInForks keeps the rollouts of forks from falling back to a release.
func (f *fold) revokeInForks(of spec.EnvName, d digest.Digest) error {
	for _, env := range slices.Collect(all[Environment](f.tx, tableEnvironments, "")) {
		if env.Fork == nil || env.Fork.Of != of || env.Head.Release != d && env.Previous.Release != d {
			continue
		}
		env.Environment, env.Entry = env.Revoke(d), f.log.Size
		f.put(tableEnvironments, &env)
	}
	return nil
}
