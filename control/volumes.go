package control

import (
	"context"
	"fmt"
	"strings"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// Back asks to move the head back.
type Back struct {
	Env      spec.EnvName
	To       int           // generation; 0: the last before the head that completed with another release
	WithData bool          // volumes get what To left in them, as new versions
	Plan     digest.Digest // that was looked at; "": any, but not with data
	Reason   string
	How      How
}

// GoBack is Rollback, with what Back says beside. With data, it fails with fault.NotFound when nothing is kept of what a volume had: the error
// names them all.
func (s *Service) GoBack(ctx context.Context, by Actor, b Back) (Moved, error) {
	if b.WithData && b.Plan == "" {
		return Moved{}, fault.WithHint(fault.Errorf(fault.Invalid, "rolling back environment %s: who takes data back has looked at what that loses", b.Env),
			"have the plan made first, and say its digest")
	}
	moved, err := again(func() (Moved, error) { return s.rollback(ctx, by, b) })
	if err != nil {
		return Moved{}, fmt.Errorf("rolling back environment %s: %w", b.Env, err)
	}
	return moved, nil
}

// PlanRollback returns what going back would do now.
func (s *Service) PlanRollback(b Back) (Planned, error) {
	now := s.State()
	env := environment(now, b.Env)
	target, err := rollbackTarget(now, env, b.To)
	if err == nil {
		var in intent
		if in, err = s.rollbackIntent(now, env, target, b); err == nil {
			return in.planned, nil
		}
	}
	return Planned{}, fmt.Errorf("planning a rollback of environment %s: %w", b.Env, err)
}

// restores returns what every volume of the record gets so that it has what the generation left, and what of that a plan shows.
func restores(env deploy.Environment, generation int, r release.Record) ([]deploy.Restore, []change.VolumeItem, error) {
	list, items, lost, err := state.DataOf(env, generation, r)
	if err == nil && lost != nil {
		err = fault.WithHint(fault.Errorf(fault.NotFound, "nothing is kept of what generation %d left in: %s", generation, strings.Join(lost, ", ")),
			"see what is: invar volume list %s; or leave the data as they are: without --with-data", env.Name)
	}
	return list, items, err
}

// DeleteVolume has a version or a snapshot of a volume deleted for good. It fails with fault.Conflict for what is in use.
func (s *Service) DeleteVolume(ctx context.Context, by Actor, name spec.EnvName, d state.VolumeDelete, reason string) error {
	_, err := s.append(ctx, func(now state.State) ([]state.Entry, error) {
		if _, err := now.Environment(name); err != nil {
			return nil, err
		}
		e := s.entry(by, name, d)
		e.Reason = reason
		e.Subject = []state.Subject{{Name: string(deploy.IDOf(d.Component, d.Volume))}}
		return []state.Entry{e}, nil
	})
	if err != nil {
		return fmt.Errorf("deleting %s of volume %s of environment %s: %w", d.Place(), deploy.IDOf(d.Component, d.Volume), name, err)
	}
	return nil
}
