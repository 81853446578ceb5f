package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// forkDomain is where forks have their routes: names under it lead to the machine itself (RFC 6761).
const forkDomain = "localhost"

// How the volumes of a fork begin.
const (
	VolumesEmpty    = ""
	VolumesSnapshot = "snapshot" // as copies of the newest snapshots: of one moment, when nobody wrote
	VolumesCopy     = "copy"     // as copies of what is there, which is being written to
)

// Fork asks for an environment that runs the release of another.
type Fork struct {
	Env        spec.EnvName // the new one
	From       spec.EnvName
	Generation int           // of From; 0: its head
	Bundle     digest.Digest // a preview: not a generation's release, but what this evaluates to for From; "": none
	Release    digest.Digest // of a preview, what the client evaluated; "": whatever the server gets
	Volumes    string        // how they begin
	TTL        time.Duration
	Reason     string
	How        How
}

// forked is a release that is to be run as a fork.
type forked struct {
	release    digest.Digest
	bundle     digest.Digest
	record     release.Record // as it was evaluated
	generation int            // of the source; 0: a preview
	known      []state.Entry  // that make it known, where it is not
}

// Fork moves the head of an environment to a release of another, which stays as it is. It fails with fault.Invalid when the
// environment lacks a secret that the release names: it has its own, or none. It fails with fault.Conflict when the environment
// runs something that is no fork, or one of another environment.
func (s *Service) Fork(ctx context.Context, by Actor, f Fork) (Moved, error) {
	moved, err := again(func() (Moved, error) { return s.fork(ctx, by, f) })
	if err != nil {
		return Moved{}, fmt.Errorf("forking environment %s into %s: %w", f.From, f.Env, err)
	}
	return moved, nil
}

func (s *Service) fork(ctx context.Context, by Actor, f Fork) (Moved, error) {
	if err := errors.Join(spec.CheckName(string(f.Env)), s.health()); err != nil {
		return Moved{}, err
	}
	switch {
	case f.From == platform.Env || f.Env == platform.Env:
		return Moved{}, fault.Errorf(fault.Invalid, "the platform's own environment has no forks, and is none")
	case f.TTL < time.Millisecond || f.TTL > state.MaxForkTTL:
		return Moved{}, fault.WithHint(fault.Errorf(fault.Invalid, "a fork lives for a while, at most %d days", int(state.MaxForkTTL.Hours()/24)), "--ttl 24h")
	}
	now := s.State()
	source, err := s.source(ctx, now, by, f)
	if err != nil {
		return Moved{}, err
	}
	in, err := s.forkIntent(now, by, f, source)
	if err != nil {
		return Moved{}, err
	}
	if err := s.put(ctx, in.planned.Digest, in.planned.encoded); err != nil {
		return Moved{}, fmt.Errorf("storing plan %s: %w", in.planned.Digest, err)
	}
	if env := environment(now, f.Env); unchanged(env, source.release) {
		return stays(env), nil
	}
	return s.decideMove(ctx, by, in)
}

// source finds the release that a fork is to run.
func (s *Service) source(ctx context.Context, now state.State, by Actor, f Fork) (forked, error) {
	if f.Bundle != "" {
		return s.preview(ctx, now, by, f)
	}
	from, err := now.Environment(f.From)
	if err != nil {
		return forked{}, err
	}
	n := f.Generation
	if n == 0 {
		n = from.Head.Number
	}
	g, err := now.Generation(f.From, n)
	if err != nil {
		return forked{}, err
	}
	if g.Release == "" {
		return forked{}, fault.WithHint(fault.Errorf(fault.Conflict, "generation %d of environment %s runs nothing", n, f.From), "choose one of invar history %s", f.From)
	}
	record, err := s.records.get(g.Release)
	if err != nil {
		return forked{}, err
	}
	return forked{release: g.Release, bundle: g.Bundle, record: record, generation: n}, nil
}

// preview evaluates a bundle for the source, as if it were to be applied there.
func (s *Service) preview(ctx context.Context, now state.State, by Actor, f Fork) (forked, error) {
	if _, err := now.Environment(f.From); err != nil {
		return forked{}, err
	}
	p := Proposal{Env: f.From, Bundle: f.Bundle, Release: f.Release}
	rel, err := s.evaluate(ctx, p)
	if err != nil {
		return forked{}, err
	}
	if err := s.put(ctx, rel.digest, rel.encoded); err != nil {
		return forked{}, fmt.Errorf("storing release %s: %w", rel.digest, err)
	}
	s.records.add(rel.digest, rel.record)
	return forked{release: rel.digest, bundle: f.Bundle, record: rel.record, known: s.knownEntries(now, by, Move{Proposal: p}, rel)}, nil
}

// forkIntent returns the move that makes the fork, with its plan.
func (s *Service) forkIntent(now state.State, by Actor, f Fork, source forked) (intent, error) {
	env := environment(now, f.Env)
	secrets, err := ownSecrets(f.Env, source.record, now.Pins(f.Env))
	if err != nil {
		return intent{}, err
	}
	copies, err := copiesOf(environment(now, f.From).Environment, f.Volumes, source.record)
	if err != nil {
		return intent{}, err
	}
	of := &state.ForkOf{From: f.From, FromGeneration: source.generation, Of: source.record.Env, Domain: forkDomain, Secrets: secrets, Restore: copies,
		TTLMS: f.TTL.Milliseconds(), Owner: by.Who()}
	record := of.Over(f.Env, source.record)
	if err := errors.Join(env.Becomes(state.MovedByFork, of), allowed(now, env, record), notRevoked(now, source.release),
		s.lasting(source.record), s.presentAll(source.record)); err != nil {
		return intent{}, err
	}
	planned, err := planTo(env, change.Proposed{Digest: source.release, Record: record})
	return intent{env: f.Env, kind: state.MovedByFork, app: record.App, base: env.Head.Number, release: source.release, bundle: source.bundle,
		record: record, planned: planned, reason: f.Reason, how: f.How, known: source.known, fork: of}, err
}

// ownSecrets returns the versions of the fork's own secrets that take the place of those that the release names.
func ownSecrets(env spec.EnvName, r release.Record, have release.Pins) (release.Pins, error) {
	own := release.Pins{}
	var missing []string
	for _, p := range r.Components {
		for _, v := range p.Component.Secrets {
			if own[v.Name] = have[v.Name]; have[v.Name] == "" && !slices.Contains(missing, v.Name) {
				missing = append(missing, v.Name)
			}
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return nil, fault.WithHint(fault.Errorf(fault.Invalid, "a fork never gets the secrets of what it is a fork of, and environment %s has none of its own named %s",
			env, strings.Join(missing, ", ")), "give it a value to try with: --secret %s=@FILE", missing[0])
	}
	if len(own) == 0 {
		return nil, nil
	}
	return own, nil
}

// endFork destroys a fork whose time has come, and its volumes. No approval is asked for: the end was part of what was.
func (s *Service) endFork(ctx context.Context, name spec.EnvName) error {
	_, err := s.move(ctx, name, func(_ state.State, env state.Environment) ([]state.Entry, error) {
		e := s.entry(operator, name, state.Destroy{App: env.App, Generation: env.Head.Number + 1, Base: env.Head.Number, Volumes: true})
		if !env.Live() || e.Time.Before(env.Fork.ExpiresAt) {
			return nil, nil
		}
		e.Reason = "the fork's time ended at " + env.Fork.ExpiresAt.Format(time.RFC3339)
		e.Subject = []state.Subject{{Name: string(env.App), Digest: env.Head.Release}}
		return []state.Entry{e}, nil
	})
	if err != nil {
		return fmt.Errorf("ending fork %s: %w", name, err)
	}
	return nil
}

// copiesOf returns what the volumes of a release begin with in a fork. A volume that the source never had begins empty.
func copiesOf(from deploy.Environment, how string, r release.Record) ([]deploy.Restore, error) {
	var list []deploy.Restore
	var missing []string
	for _, p := range r.Components {
		for _, vol := range p.Component.Volumes {
			v := from.Data[deploy.IDOf(p.Component.Name, vol.Name)]
			c := deploy.Restore{Component: p.Component.Name, Volume: vol.Name, From: deploy.Place{Env: from.Name, Version: v.Current}, Live: true}
			if v.Current == 0 || how == VolumesEmpty {
				continue
			}
			if how == VolumesSnapshot {
				k, ok := v.Newest()
				if !ok {
					missing = append(missing, string(deploy.IDOf(p.Component.Name, vol.Name)))
				}
				c.From, c.Live = deploy.Place{Env: from.Name, Snapshot: k.Number}, false
			}
			list = append(list, c)
		}
	}
	if missing != nil {
		return nil, fault.WithHint(fault.Errorf(fault.NotFound, "environment %s has no snapshot of %s", from.Name, strings.Join(missing, ", ")),
			"a volume with snapshot = \"before-change\" has one after its first change; --volumes copy takes what is there now")
	}
	slices.SortFunc(list, func(a, b deploy.Restore) int {
		return strings.Compare(string(deploy.IDOf(a.Component, a.Volume)), string(deploy.IDOf(b.Component, b.Volume)))
	})
	return list, nil
}
