package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/invarhq/invar/attest"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// Measure compares every instance of an environment with its release, and tells what it found of each. It asks for the environment as
// the ledger has it as often as it needs to.
type Measure func(ctx context.Context, now func() (state.Environment, error)) ([]attest.Instance, error)

// Verified is a verification that is in the ledger.
type Verified struct {
	attest.Verification
	Entry     int64         // index of the entry
	Statement digest.Digest // of the envelope, the entry's body
	Envelope  []byte
}

// Verify measures what an environment runs, and records what it found with a statement of it. When nothing can be measured that is
// recorded too, and no error: the result says so. It fails with fault.NotFound for an unknown environment, with fault.Invalid for that of
// the platform, and with fault.Conflict for a destroyed one, and when the head moves while it measures, again and again.
func (s *Service) Verify(ctx context.Context, by Actor, name spec.EnvName) (Verified, error) {
	var v Verified
	err := errMoved
	for try := 0; try < maxTries && errors.Is(err, errMoved); try++ {
		v, err = s.verify(ctx, by, name)
	}
	if err != nil {
		return Verified{}, fmt.Errorf("verifying environment %s: %w", name, err)
	}
	return v, nil
}

func (s *Service) verify(ctx context.Context, by Actor, name spec.EnvName) (Verified, error) {
	env, err := s.State().Environment(name)
	switch {
	case err != nil:
		return Verified{}, err
	case name == platform.Env:
		return Verified{}, fault.Errorf(fault.Invalid, "the platform's own environment runs nothing")
	case env.Destroyed():
		return Verified{}, fault.Errorf(fault.Conflict, "it is destroyed: nothing is to run there")
	case s.config.Measure == nil:
		return Verified{}, fault.Errorf(fault.Invalid, "this server measures nothing")
	}
	from := s.config.Now()
	found, err := s.config.Measure(ctx, func() (state.Environment, error) { return s.State().Environment(name) })
	if ctx.Err() != nil {
		return Verified{}, ctx.Err()
	}
	v := verification(env, by, state.Millis(from), state.Millis(s.config.Now()))
	v.By, v.Server = s.config.Origin, s.config.Version
	if err != nil {
		v.Detail, found = err.Error(), nil
	}
	statement := attest.Verified(v, found)
	out := Verified{Verification: statement.Predicate}
	body, envelope, err := sign(ctx, s, statement)
	if err != nil {
		return Verified{}, err
	}
	out.Statement, out.Envelope = body.Digest, envelope
	out.Entry, err = s.append(ctx, func(now state.State) ([]state.Entry, error) {
		if at, err := now.Environment(name); err != nil || at.Head.Number != out.Generation {
			return nil, errors.Join(err, errMoved) // it is no statement of the head any more
		}
		e := s.entry(by, name, verifyData(out.Verification))
		e.Body, e.Outcome, e.Subject = body, outcomes[out.Result], []state.Subject{{Name: string(env.App), Digest: env.Head.Release}}
		return []state.Entry{e}, nil
	})
	return out, err
}

// outcomes are what entries say of results in words.
var outcomes = map[string]string{attest.AsReleased: "as released", attest.Differs: "differs", attest.NotMeasured: "not measured"}

// verification is what is known of a verification before anything is found.
func verification(env state.Environment, by Actor, from, to time.Time) attest.Verification {
	v := attest.Verification{Env: env.Name, Generation: env.Head.Number, Release: env.Head.Release, From: from, To: to, Who: by.Who(), Components: []attest.Component{}}
	v.Measured, v.Excluded = attest.Scope()
	for _, p := range env.Head.Record.Components {
		v.Components = append(v.Components, attest.Component{Name: p.Component.Name, Digest: env.Head.Digests[p.Component.Name], Root: p.Component.Root, Replicas: p.Replicas})
	}
	return v
}

// verifyData is what the entry has of a verification by field.
func verifyData(v attest.Verification) state.Verify {
	bad := v.Bad()
	d := state.Verify{Instances: len(v.Instances), Generation: v.Generation, Result: v.Result, Differ: bad}
	if n := len(bad); n > state.MaxDiffer {
		d.Differ, d.More = slices.Clip(bad[:state.MaxDiffer]), n-state.MaxDiffer
	}
	return d
}
