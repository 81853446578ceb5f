package control

import (
	"context"
	"fmt"
	"time"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// Promotion is what bringing the bundle of one environment's head to another would do.
type Promotion struct {
	From     state.Generation // the head that it is taken from
	Record   release.Record   // of its release
	Planned  Planned          // for the other environment, with that one's inputs
	Proposed release.Record   // of the release that the plan is of
	Proof    Proof
}

// Proof says since when a head has run healthy, by what the ledger has of it.
type Proof struct {
	Completed int64         // index of the entry by which its rollout completed
	Since     time.Time     // of that, or of the newest entry by which one of its environment's instances was not as it should be, or was so again
	Newest    int64         // index of the entry that Since is of
	Size      int64         // of the ledger, when it was read
	For       time.Duration // from Since until it was read
}

// Promote plans the bundle of from's head for another environment. It fails with fault.Denied unless that head completed, all its
// instances are healthy, and none was disturbed for so long.
func (s *Service) Promote(ctx context.Context, from, to spec.EnvName, healthyFor time.Duration) (Promotion, error) {
	p, err := s.promote(ctx, from, to, healthyFor)
	if err != nil {
		return Promotion{}, fmt.Errorf("promoting environment %s to %s: %w", from, to, err)
	}
	return p, nil
}

func (s *Service) promote(ctx context.Context, from, to spec.EnvName, healthyFor time.Duration) (Promotion, error) {
	now := s.State()
	env, err := now.Environment(from)
	if err != nil {
		return Promotion{}, err
	}
	head, err := now.Generation(from, env.Head.Number)
	if err != nil {
		return Promotion{}, err
	}
	switch {
	case from == to:
		return Promotion{}, fault.Errorf(fault.Invalid, "these are the same environment")
	case head.Release == "":
		return Promotion{}, fault.Errorf(fault.Conflict, "environment %s runs nothing", from)
	}
	proof, err := s.proof(ctx, now, env)
	if err != nil {
		return Promotion{}, err
	}
	if proof.For < healthyFor {
		return Promotion{}, fault.WithHint(fault.Errorf(fault.Denied, "generation %d has run healthy for %s, since entry %d, and %s is asked for", head.Number,
			proof.For.Round(time.Second), proof.Newest, healthyFor), "wait for another %s", (healthyFor - proof.For).Round(time.Second))
	}
	out := Promotion{From: head, Proof: proof}
	if out.Record, err = s.records.get(head.Release); err != nil {
		return Promotion{}, err
	}
	proposal := Proposal{Env: to, Bundle: head.Bundle}
	if out.Planned, err = s.Plan(ctx, proposal); err != nil {
		return Promotion{}, err
	}
	rel, err := s.evaluate(ctx, proposal)
	out.Proposed = rel.record
	if err == nil && rel.digest != out.Planned.Plan.Release { // a secret was set in between
		err = fault.Errorf(fault.Conflict, "the inputs of environment %s changed meanwhile", to)
	}
	return out, err
}

// proof reads how the head has run so far.
func (s *Service) proof(ctx context.Context, now state.State, env state.Environment) (Proof, error) {
	if env.Head.Outcome != deploy.Completed {
		return Proof{}, fault.WithHint(fault.Errorf(fault.Denied, "generation %d is %s, not completed", env.Head.Number, env.Head.Outcome), "invar status %s", env.Name)
	}
	if name, ok := unhealthy(env); !ok {
		return Proof{}, fault.WithHint(fault.Errorf(fault.Denied, "component %s of generation %d is not healthy now", name, env.Head.Number), "invar status %s", env.Name)
	}
	p := Proof{Completed: -1, Size: now.Size()}
	for e, err := range s.Entries(ctx, env.HeadEntry, now.Size()) {
		if err != nil {
			return Proof{}, err
		}
		step, ok := e.Entry.Data.(state.Step)
		if !ok || e.Entry.Env != env.Name {
			continue
		}
		switch step.Kind {
		case deploy.Done:
			p.Completed = e.Index
		case deploy.Healthy, deploy.Failing, deploy.Exited, deploy.Tainted:
		default:
			continue
		}
		p.Newest, p.Since = e.Index, e.Entry.Time
	}
	if p.Completed < 0 {
		return Proof{}, fault.Errorf(fault.Corrupt, "the ledger has no entry by which generation %d completed", env.Head.Number)
	}
	p.For = s.config.Now().Sub(p.Since)
	return p, nil
}

// unhealthy returns a component of which not all instances that the head asks for are healthy and untouched; ok: there is none.
func unhealthy(env state.Environment) (name spec.ComponentName, ok bool) {
	have := map[digest.Digest]int{}
	for _, i := range env.Instances {
		if i.Healthy() && len(i.Taints) == 0 {
			have[i.Digest]++
		}
	}
	for _, p := range env.Head.Record.Components {
		if have[env.Head.Digests[p.Component.Name]] < p.Replicas {
			return p.Component.Name, false
		}
	}
	return "", true
}
