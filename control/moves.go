package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// Proposal names a release that an environment is to have. Bundle, sources and images are in the blobs.
type Proposal struct {
	Env     spec.EnvName
	Bundle  digest.Digest
	Release digest.Digest // what the client evaluated; "": whatever the server gets
}

// Planned is a plan and its digest.
type Planned struct {
	Plan   change.Plan
	Digest digest.Digest

	encoded []byte // what the digest is of
}

// Move asks to move a head to a planned release.
type Move struct {
	Proposal
	Base   int             // the generation that the plan was made against
	Plan   digest.Digest   // of the plan that was looked at; "": any
	From   *state.Promoted // of which generation the bundle is promoted, and how long that has to have run healthy; nil: of none
	Reason string
	How    How
}

// Moved says where a head is.
type Moved struct {
	Env        spec.EnvName
	Generation int
	Release    digest.Digest // "": destroyed
	Entry      int64         // index of the entry that moved the head
	Changed    bool          // false: the head did not move: it was this release already, or a change waits

	Change  state.ChangeNumber // the change that waits, or that was carried out; 0: none was needed
	Waiting bool               // the head did not move: Change waits for approvals
}

// stays says that a head is what was asked for already.
func stays(env state.Environment) Moved {
	return Moved{Env: env.Name, Generation: env.Head.Number, Release: env.Head.Release, Entry: env.HeadEntry}
}

// Plan returns what applying the proposal would do now. It evaluates the bundle again, and fails with fault.Invalid,
// naming both digests, when that gives another release than the client's; with fault.NotFound when something that
// the release needs is not in the blobs; and with fault.Conflict when the environment runs another app or a route is taken.
func (s *Service) Plan(ctx context.Context, p Proposal) (Planned, error) {
	planned, _, err := s.planRelease(ctx, p)
	return planned, err
}

// planRelease is Plan, with the release that the plan is of.
func (s *Service) planRelease(ctx context.Context, p Proposal) (Planned, evaluated, error) {
	rel, err := s.evaluate(ctx, p)
	if err != nil {
		return Planned{}, rel, fmt.Errorf("planning for environment %s: %w", p.Env, err)
	}
	planned, err := plan(s.State(), p.Env, rel)
	if err != nil {
		return Planned{}, rel, fmt.Errorf("planning for environment %s: %w", p.Env, err)
	}
	return planned, rel, nil
}

// plan makes the plan on a state, after checking that the state allows it.
func plan(now state.State, name spec.EnvName, rel evaluated) (Planned, error) {
	env := environment(now, name)
	if err := errors.Join(env.Becomes(state.MovedByApply, nil), allowed(now, env, rel.record)); err != nil {
		return Planned{}, err
	}
	if err := promotable(now, env, rel); err != nil {
		return Planned{}, err
	}
	if err := notRevoked(now, rel.digest); err != nil {
		return Planned{}, err
	}
	return planTo(env, change.Proposed{Digest: rel.digest, Record: rel.record})
}

// planTo makes the plan from what the environment has to what is proposed.
func planTo(env state.Environment, next change.Proposed) (Planned, error) {
	current := change.Current{Base: change.Base{Generation: env.Head.Number, Release: env.Head.Release}, Record: env.Head.Record, Failed: env.Head.Outcome == deploy.Broken}
	p := change.MakePlan(current, next)
	encoded, err := digest.Canonical(p)
	if err != nil {
		return Planned{}, err
	}
	return Planned{p, digest.Of(encoded), encoded}, nil
}

// environment returns the environment, or one that never had a head.
func environment(now state.State, name spec.EnvName) state.Environment {
	env, err := now.Environment(name)
	if err != nil {
		return state.Environment{Environment: deploy.Environment{Name: name}}
	}
	return env
}

// Apply moves the head as planned. It fails as Plan does, and with fault.Conflict when the environment is at
// another generation than Move.Base, or when the plan would be another one now. Applying the release that the head
// has already, completed or under way, changes nothing and is no error.
func (s *Service) Apply(ctx context.Context, by Actor, m Move) (Moved, error) {
	moved, err := s.apply(ctx, by, m)
	if err != nil {
		return Moved{}, fmt.Errorf("applying to environment %s: %w", m.Env, err)
	}
	return moved, nil
}

func (s *Service) apply(ctx context.Context, by Actor, m Move) (Moved, error) {
	rel, err := s.evaluate(ctx, m.Proposal)
	if err != nil {
		return Moved{}, err
	}
	// The plan follows from the release and the base. The base is compared again where it can't move any more.
	if err := atBase(environment(s.State(), m.Env), m.Base); err != nil {
		return Moved{}, err
	}
	planned, err := plan(s.State(), m.Env, rel)
	if err != nil {
		return Moved{}, err
	}
	if m.Plan != "" && m.Plan != planned.Digest {
		return Moved{}, fault.WithHint(fault.Errorf(fault.Conflict, "saved plan is stale: it is %s, the plan now would be %s", m.Plan.Short(), planned.Digest.Short()),
			"look at a new one: invar plan %s", m.Env)
	}
	if err := s.keep(ctx, rel, planned); err != nil {
		return Moved{}, err
	}
	now := s.State()
	if env := environment(now, m.Env); unchanged(env, rel.digest) && env.Head.Number == m.Base {
		return stays(env), nil
	}
	return s.decideMove(ctx, by, intent{
		env: m.Env, kind: state.MovedByApply, app: rel.record.App, base: m.Base, release: rel.digest, bundle: m.Bundle, record: rel.record,
		planned: planned, reason: m.Reason, how: m.How, known: s.knownEntries(now, by, m, rel), promoted: m.From,
	})
}

func atBase(env state.Environment, base int) error {
	if env.Head.Number == base {
		return nil
	}
	return fault.WithHint(fault.Errorf(fault.Conflict, "saved plan is stale: it was made against generation %d, the environment is at %d now", base, env.Head.Number),
		"look at a new one: invar plan %s", env.Name)
}

// unchanged reports whether the head is the release already, and not given up.
func unchanged(env state.Environment, d digest.Digest) bool {
	return env.Head.Number > 0 && env.Head.Release == d && env.Head.Outcome != deploy.Broken
}

// knownEntries returns what makes the bundle and the release known, where they are not.
func (s *Service) knownEntries(now state.State, by Actor, m Move, rel evaluated) []state.Entry {
	app := rel.record.App
	var out []state.Entry
	if _, err := now.Bundle(m.Bundle); err != nil {
		e := s.entry(by, "", state.Bundle{App: app, Bundle: m.Bundle, Source: rel.bundle.Source})
		e.Body = &state.Body{Digest: m.Bundle, Size: rel.bundleSize, Type: release.TypeBundle}
		e.Subject = []state.Subject{{Name: string(app), Digest: m.Bundle}}
		out = append(out, e)
	}
	if _, err := now.Release(rel.digest); err != nil {
		e := s.entry(by, m.Env, state.Release{App: app, Bundle: m.Bundle, Release: rel.digest})
		e.Body = &state.Body{Digest: rel.digest, Size: int64(len(rel.encoded)), Type: release.TypeRecord}
		e.Subject = []state.Subject{{Name: string(app), Digest: rel.digest}}
		out = append(out, e)
	}
	return out
}

// lacking leaves out what has become known meanwhile.
func lacking(now state.State, known []state.Entry) []state.Entry {
	return slices.DeleteFunc(slices.Clone(known), func(e state.Entry) bool {
		var err error
		switch d := e.Data.(type) {
		case state.Bundle:
			_, err = now.Bundle(d.Bundle)
		case state.Release:
			_, err = now.Release(d.Release)
		}
		return err == nil
	})
}

// allowed says whether the environment may have the release, whatever it runs now.
func allowed(now state.State, env state.Environment, r release.Record) error {
	switch {
	case env.App != "" && env.App != r.App && env.Head.Release != "":
		return fault.WithHint(fault.Errorf(fault.Conflict, "environment %s runs app %s, not %s", env.Name, env.App, r.App),
			"give %s an environment of its own, or first: invar destroy %s", r.App, env.Name)
	case env.VolumesDue:
		return fault.WithHint(fault.Errorf(fault.Conflict, "environment %s is being destroyed with its volumes", env.Name), "retry when that is done")
	case env.App != "" && env.App != r.App && env.Volumes:
		return fault.WithHint(fault.Errorf(fault.Conflict, "environment %s still has the volumes of app %s", env.Name, env.App),
			"delete them first: invar destroy %s --volumes", env.Name)
	}
	return routesFree(now, env.Name, r)
}

// promotable refuses a bundle that has not completed in the environment that it has to come from. What completed there once
// stays promotable, whatever runs there now.
func promotable(now state.State, env state.Environment, rel evaluated) error {
	if rel.from == "" || env.Head.Release == rel.digest {
		return nil
	}
	for g := range now.History(rel.from) {
		if g.Bundle == rel.record.Bundle && g.Outcome == deploy.Completed {
			return nil
		}
	}
	return fault.WithHint(fault.Errorf(fault.Denied, "environment %s takes only what ran healthy in %s; bundle %s has not", env.Name, rel.from, rel.record.Bundle.Short()),
		"first: invar apply %s", rel.from)
}

// routesFree refuses a route that another environment has.
func routesFree(now state.State, name spec.EnvName, r release.Record) error {
	if len(r.Routes) == 0 {
		return nil
	}
	want := map[string]spec.RouteName{}
	for _, route := range r.Routes {
		want[place(route)] = route.Name
	}
	for other := range now.Environments() {
		if other.Name == name {
			continue
		}
		for _, taken := range other.Head.Record.Routes {
			if mine, ok := want[place(taken)]; ok {
				return fault.WithHint(fault.Errorf(fault.Conflict, "route %s: %s belongs to route %s of environment %s", mine, place(taken), taken.Name, other.Name),
					"give the route another host or path in environment %s", name)
			}
		}
	}
	return nil
}

// place is what only one route may have.
func place(r release.Route) string {
	if r.TCP != "" {
		return "tcp " + r.TCP
	}
	path := strings.TrimRight(r.Path, "/")
	return strings.ToLower(r.Host) + path + "/"
}

// move decides on the newest state of an environment, and says where its head is then.
func (s *Service) move(ctx context.Context, name spec.EnvName, decide func(state.State, state.Environment) ([]state.Entry, error)) (Moved, error) {
	var moved Moved
	_, err := s.append(ctx, func(now state.State) ([]state.Entry, error) {
		env := environment(now, name)
		entries, err := decide(now, env)
		if n := len(entries); n > 0 {
			moved = Moved{Env: name, Changed: true}
		} else {
			moved = Moved{Env: name, Generation: env.Head.Number, Release: env.Head.Release, Entry: env.HeadEntry}
		}
		for i, e := range entries {
			moved.target(e, now.Size()+int64(i))
		}
		moved.Changed = moved.Changed && moved.Generation > env.Head.Number
		return entries, err
	})
	return moved, err
}

// target notes where the entry moves the head to.
func (m *Moved) target(e state.Entry, at int64) {
	switch d := e.Data.(type) {
	case state.ChangeRequest:
		m.Generation, m.Release, m.Change, m.Waiting = d.Base, d.Release, d.Change, true
	case state.Bundle, state.Release, state.PolicyDecision:
		return
	case state.Apply:
		m.Generation, m.Release, m.Change = d.Generation, d.Release, d.Change
	case state.Fork:
		m.Generation, m.Release, m.Change = d.Generation, d.Release, d.Change
	case state.Rollback:
		m.Generation, m.Release, m.Change = d.Generation, d.Release, d.Change
	case state.Destroy:
		m.Generation, m.Release, m.Change = d.Generation, "", d.Change
	}
	m.Entry = at
}

// Rollback moves the head to the release of generation to, or with 0 to that of the last generation before the head
// that completed with another release. It fails with fault.NotFound when there is no such generation. Going back to what
// the head is already changes nothing.
func (s *Service) Rollback(ctx context.Context, by Actor, name spec.EnvName, to int, reason string, how How) (Moved, error) {
	return s.GoBack(ctx, by, Back{Env: name, To: to, Reason: reason, How: how})
}

func (s *Service) rollback(ctx context.Context, by Actor, b Back) (Moved, error) {
	now := s.State()
	env := environment(now, b.Env)
	target, err := rollbackTarget(now, env, b.To)
	if err != nil {
		return Moved{}, err
	}
	if unchanged(env, target.Release) && !b.WithData {
		return stays(env), nil
	}
	if err := s.present(target.Release); err != nil {
		return Moved{}, err
	}
	in, err := s.rollbackIntent(now, env, target, b)
	if err != nil {
		return Moved{}, err
	}
	if unchanged(env, target.Release) && len(in.restore) == 0 {
		return stays(env), nil
	}
	if b.Plan != "" && b.Plan != in.planned.Digest {
		return Moved{}, fault.WithHint(fault.Errorf(fault.Conflict, "the plan is stale: it is %s, the plan now would be %s", b.Plan.Short(), in.planned.Digest.Short()), "look at a new one")
	}
	if err := s.put(ctx, in.planned.Digest, in.planned.encoded); err != nil {
		return Moved{}, fmt.Errorf("storing plan %s: %w", in.planned.Digest, err)
	}
	return s.decideMove(ctx, by, in)
}

// rollbackIntent returns the move back to a generation, with its plan.
func (s *Service) rollbackIntent(now state.State, env state.Environment, target state.Generation, b Back) (intent, error) {
	record, err := s.records.get(target.Release)
	if err != nil {
		return intent{}, err
	}
	if env.Live() {
		record = env.Fork.Over(env.Name, record)
	}
	if err := errors.Join(env.Becomes(state.MovedByRollback, nil), s.lasting(record), allowed(now, env, record)); err != nil {
		return intent{}, err
	}
	in := intent{env: env.Name, kind: state.MovedByRollback, app: target.App, base: env.Head.Number, release: target.Release, bundle: target.Bundle,
		to: target.Number, record: record, reason: b.Reason, how: b.How}
	next := change.Proposed{Digest: target.Release, Record: record}
	if b.WithData {
		if in.restore, next.Volumes, err = restores(env.Environment, target.Number, record); err != nil {
			return in, err
		}
	}
	in.planned, err = planTo(env, next)
	return in, err
}

func rollbackTarget(now state.State, env state.Environment, to int) (state.Generation, error) {
	if env.Head.Number == 0 {
		_, err := now.Environment(env.Name)
		return state.Generation{}, err
	}
	if to != 0 {
		g, err := now.Generation(env.Name, to)
		if err == nil && g.Release == "" {
			err = fault.WithHint(fault.Errorf(fault.Invalid, "generation %d has no release: the environment was destroyed by it", to), "use: invar destroy %s", env.Name)
		}
		return g, err
	}
	for _, h := range slices.Backward(env.History) {
		if h.Outcome == deploy.Completed && h.Release != "" && h.Release != env.Head.Release {
			return now.Generation(env.Name, h.Number)
		}
	}
	return state.Generation{}, fault.WithHint(fault.Errorf(fault.NotFound, "no earlier generation completed with another release"),
		"choose one of invar history %s with --to", env.Name)
}

// Destroy moves the head to nothing, and with volumes has the environment's volumes deleted when its last instance
// is gone. To destroy what is destroyed changes nothing. It fails with fault.NotFound for an unknown environment.
func (s *Service) Destroy(ctx context.Context, by Actor, name spec.EnvName, volumes bool, reason string, how How) (Moved, error) {
	moved, err := again(func() (Moved, error) { return s.destroy(ctx, by, name, volumes, reason, how) })
	if err != nil {
		return Moved{}, fmt.Errorf("destroying environment %s: %w", name, err)
	}
	return moved, nil
}

func (s *Service) destroy(ctx context.Context, by Actor, name spec.EnvName, volumes bool, reason string, how How) (Moved, error) {
	if err := s.health(); err != nil {
		return Moved{}, err
	}
	env, err := s.State().Environment(name)
	if err != nil {
		return Moved{}, err
	}
	if name == platform.Env {
		return Moved{}, errNoEnd
	}
	volumes = volumes || env.Fork != nil // what a fork has goes with it
	if more := volumes && env.Volumes && !env.VolumesDue; env.Destroyed() && !more {
		return stays(env), nil
	}
	planned, err := planTo(env, change.Proposed{Record: release.Record{App: env.App, Env: name, Rollout: env.Head.Record.Rollout}})
	if err != nil {
		return Moved{}, err
	}
	if err := s.put(ctx, planned.Digest, planned.encoded); err != nil {
		return Moved{}, fmt.Errorf("storing plan %s: %w", planned.Digest, err)
	}
	return s.decideMove(ctx, by, intent{env: name, kind: state.MovedByDestroy, app: env.App, base: env.Head.Number, volumes: volumes,
		planned: planned, reason: reason, how: how})
}

// reconciler is the actor of what follows from a head.
var reconciler = Actor{Kind: state.ActorSystem, Name: "reconcile"}

// Record appends the steps of one turn of a rollout, all or none, as decided on the environment with this Seq. It
// fails with fault.Conflict when the environment has moved on since.
func (s *Service) Record(ctx context.Context, name spec.EnvName, seen uint64, steps []deploy.Step) error {
	_, err := s.append(ctx, func(now state.State) ([]state.Entry, error) {
		env, err := now.Environment(name)
		if err != nil {
			return nil, err
		}
		if env.Seq != seen {
			return nil, fault.Errorf(fault.Conflict, "decided at %d, the environment is at %d", seen, env.Seq)
		}
		at := state.Millis(s.config.Now())
		entries := make([]state.Entry, len(steps))
		for i, step := range steps {
			e := s.entry(reconciler, name, state.Step{Step: step})
			e.Time, e.Subject, e.Outcome = at, subjects(env, step), outcome(step)
			if step.Evidence != "" {
				e.Body = &state.Body{Digest: step.Evidence, Size: step.Bytes, Type: runtime.TypeEvidence}
			}
			entries[i] = e
		}
		return entries, nil
	})
	if err != nil {
		return fmt.Errorf("recording %d steps of environment %s: %w", len(steps), name, err)
	}
	return nil
}

func outcome(step deploy.Step) string {
	switch step.Kind {
	case deploy.Done:
		return string(deploy.Completed)
	case deploy.Failed:
		return string(deploy.Broken)
	}
	return ""
}

// subjects is what a step is about, with the digest that ties it to a component or release.
func subjects(env state.Environment, step deploy.Step) []state.Subject {
	switch {
	case step.Instance != nil:
		return []state.Subject{{Name: string(step.Instance.ID), Digest: step.Instance.Digest}}
	case step.ID != "":
		return []state.Subject{{Name: string(step.ID), Digest: env.Instances[step.ID].Digest}}
	case step.Component != "":
		return []state.Subject{{Name: string(step.Component)}}
	case step.Release != "":
		return []state.Subject{{Name: string(env.App), Digest: step.Release}}
	case env.App != "":
		return []state.Subject{{Name: string(env.App), Digest: env.Head.Release}}
	}
	return nil
}

// VolumesDestroyed records that the environment's volumes are deleted, as state.Environment.VolumesDue asked. The
// deletion comes first: it can be repeated, and until this entry it is.
func (s *Service) VolumesDestroyed(ctx context.Context, name spec.EnvName) error {
	_, err := s.append(ctx, func(now state.State) ([]state.Entry, error) {
		env, err := now.Environment(name)
		if err != nil {
			return nil, err
		}
		return []state.Entry{s.entry(reconciler, name, state.VolumeDestroy{Generation: env.Head.Number})}, nil
	})
	if err != nil {
		return fmt.Errorf("recording that the volumes of environment %s are deleted: %w", name, err)
	}
	return nil
}
