package control

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/secret"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// SetSecret makes a new version of a secret, and returns it. Nothing has it yet: a release that is planned from now on pins it. The
// value is encrypted and durable before the entry that names it; a crash between the two leaves a file that nothing names.
func (s *Service) SetSecret(ctx context.Context, by Actor, r secret.Ref, value []byte, reason string) (state.KnownSecret, error) {
	made, err := s.setSecret(ctx, by, r, value, reason)
	if err != nil {
		return state.KnownSecret{}, fmt.Errorf("setting secret %s: %w", r, err)
	}
	return made, nil
}

func (s *Service) setSecret(ctx context.Context, by Actor, r secret.Ref, value []byte, reason string) (state.KnownSecret, error) {
	if s.config.Secrets == nil {
		return state.KnownSecret{}, fault.Errorf(fault.Invalid, "this server keeps no secrets")
	}
	if err := errors.Join(r.Check(), secret.CheckValue(value), s.health()); err != nil {
		return state.KnownSecret{}, err
	}
	version, err := s.config.Secrets.Put(r, value)
	if err != nil {
		return state.KnownSecret{}, err
	}
	e := s.entry(by, r.Env, state.SecretVersion{Name: r.Name, Version: version})
	e.Subject, e.Reason = []state.Subject{{Name: r.String(), Digest: version}}, reason
	index, err := s.append(ctx, func(state.State) ([]state.Entry, error) { return []state.Entry{e}, nil })
	if err != nil {
		return state.KnownSecret{}, err
	}
	return state.KnownSecret{Env: r.Env, Name: r.Name, Version: version, Entry: index, Actor: by, Reason: reason, At: e.Time}, nil
}

// outdated says that what the client has was evaluated with other versions of secrets than the environment has now, if that
// is why it differs: a secret was set in between. It is nil when there is another reason.
func (s *Service) outdated(p Proposal, now release.Pins) error {
	pins, ok := s.evaluations.pinsOf(p)
	if !ok {
		r, err := s.records.get(p.Release)
		if err != nil || r.Env != p.Env || r.Bundle != p.Bundle {
			return nil
		}
		pins = release.PinsOf(r)
	}
	return pinsHold(p.Env, pins, now)
}

// pinsHold refuses pins that are not the environment's newest any more.
func pinsHold(env spec.EnvName, pins, now release.Pins) error {
	newer := pins.Newer(now)
	if len(newer) == 0 {
		return nil
	}
	name := newer[0]
	more := ""
	if len(newer) > 1 {
		more = "; so have " + strings.Join(newer[1:], ", ")
	}
	return fault.WithHint(fault.Errorf(fault.Conflict, "saved plan is stale: secret %s has a newer version, %s instead of %s%s", name, now[name].Short(), pins[name].Short(), more),
		"look at a new one: invar plan %s", env)
}
