package control

import (
	"context"
	"fmt"
	"time"

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
	state.Calm
	Size int64         // of the ledger, when it was read
	For  time.Duration // since Calm.Since, until it was read
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
	at := state.Millis(s.config.Now())
	asked := state.Promoted{From: from, Generation: head.Number, HealthyForMS: healthyFor.Milliseconds()}
	if _, err := now.Promote(asked, head.Bundle, at); err != nil {
		return Promotion{}, err
	}
	proof := Proof{Calm: env.Calm, Size: now.Size(), For: at.Sub(env.Calm.Since)}
	out := Promotion{From: head, Proof: proof}
	if out.Record, err = s.records.get(head.Release); err != nil {
		return Promotion{}, err
	}
	planned, rel, err := s.planRelease(ctx, Proposal{Env: to, Bundle: head.Bundle})
	if err != nil {
		return Promotion{}, err
	}
	out.Planned, out.Proposed = planned, rel.record
	return out, nil
}

// promoted checks again, where nothing can come between, that what an intent brings from another environment still runs healthy there.
func (s *Service) promoted(now state.State, in *intent) error {
	if in.promoted == nil {
		return nil
	}
	p, err := now.Promote(*in.promoted, in.bundle, state.Millis(s.config.Now()))
	if err != nil {
		return fmt.Errorf("promoting from %s@%d: %w", in.promoted.From, in.promoted.Generation, err)
	}
	in.promoted = &p
	return nil
}
