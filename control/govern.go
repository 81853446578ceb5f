package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// duty is something that the rules have the server do by itself.
type duty struct {
	env    spec.EnvName
	expire state.ChangeNumber // this change has expired
	carry  state.ChangeNumber // this change is approved, and its rules let the server carry it out
	revert bool               // the head was not confirmed in time
	end    bool               // the fork's time has ended
}

// duties returns what is due at a time, and when the next may be; zero: not before something else happens. It is pure.
func duties(s state.State, rules platform.Definition, now time.Time) (due []duty, next time.Time) {
	later := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for _, c := range s.OpenChanges("") {
		switch {
		case !c.ExpiresAt.IsZero() && !now.Before(c.ExpiresAt):
			due = append(due, duty{env: c.Env, expire: c.Change})
			continue
		case !c.ExpiresAt.IsZero():
			later(c.ExpiresAt)
		}
		if !rules.Automatic(c.Env) || len(rules.Missing(Standing(rules, c, now))) > 0 {
			continue
		}
		if f, frozen := rules.Frozen(c.Env, now, c.Case().Rollback); frozen {
			if f.Until.After(now) {
				later(f.Until)
			}
			continue
		}
		due = append(due, duty{env: c.Env, carry: c.Change})
	}
	for env := range s.Environments() {
		switch {
		case env.ConfirmBy.IsZero():
		case now.Before(env.ConfirmBy):
			later(env.ConfirmBy)
		default:
			due = append(due, duty{env: env.Name, revert: true})
		}
		switch {
		case !env.Live():
		case now.Before(env.Fork.ExpiresAt):
			later(env.Fork.ExpiresAt)
		default:
			due = append(due, duty{env: env.Name, end: true})
		}
	}
	return due, next
}

// Times of the loop.
const (
	governSpacing  = 50 * time.Millisecond // between two looks, so that a burst of entries is one look
	governRetry    = 10 * time.Second      // after a duty that could not be done; twice that each further time
	governRetryMax = 30 * time.Minute      // a policy that refuses is asked, and recorded, no more often
)

// failure is how often a duty could not be done, and when it is tried again.
type failure struct {
	times int
	again time.Time
}

// Govern does what the rules have the server do by itself: it closes changes that have expired, carries out approved ones
// where a rule says so, and reverts heads that nobody confirmed. It returns when ctx ends.
func (s *Service) Govern(ctx context.Context) error {
	failed := map[duty]failure{}
	var by digest.Digest
	for {
		now := s.State()
		rules, d := definition(now)
		if d != by { // other rules: what failed may be possible now
			clear(failed)
			by = d
		}
		at := s.config.Now()
		due, next := duties(now, rules, at)
		maps.DeleteFunc(failed, func(d duty, _ failure) bool { return !slices.Contains(due, d) })
		for _, d := range due {
			f := failed[d]
			if at.Before(f.again) {
				continue
			}
			if err := s.do(ctx, d); err != nil && ctx.Err() == nil {
				s.config.Log.WarnContext(ctx, "a duty can't be done now", "env", d.env, "change", max(d.expire, d.carry), "error", err)
			}
			failed[d] = failure{f.times + 1, at.Add(min(governRetry<<min(f.times, 10), governRetryMax))} // forgotten when it is due no more
		}
		s.flushRefusals(ctx, at)
		if err := s.sleep(ctx, now, at, due, next); err != nil {
			return err
		}
	}
}

// sleep waits until something may be due.
func (s *Service) sleep(ctx context.Context, now state.State, at time.Time, due []duty, next time.Time) error {
	wait := refusalWindow
	if len(due) > 0 {
		wait = governRetry
	}
	if !next.IsZero() {
		wait = min(wait, next.Sub(at))
	}
	timer := time.NewTimer(max(wait, 0))
	defer timer.Stop()
	select {
	case <-now.Changed():
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-time.After(governSpacing):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// do does one duty. Each decides again on the newest state, so that one that is done already changes nothing.
func (s *Service) do(ctx context.Context, d duty) error {
	switch {
	case d.expire != 0:
		return s.expire(ctx, d.expire)
	case d.end:
		return s.endFork(ctx, d.env)
	case d.carry != 0:
		_, err := s.CarryOut(ctx, operator, d.carry, false)
		return err
	}
	return s.revertUnconfirmed(ctx, d.env)
}

func (s *Service) expire(ctx context.Context, n state.ChangeNumber) error {
	_, err := s.append(ctx, func(now state.State) ([]state.Entry, error) {
		c, err := now.Change(n)
		e := s.entry(operator, c.Env, state.ChangeVoid{Change: n, Cause: "it expired at " + c.ExpiresAt.Format(time.RFC3339)})
		if err != nil || c.Status != state.ChangeOpen || c.ExpiresAt.IsZero() || e.Time.Before(c.ExpiresAt) {
			return nil, err
		}
		e.Subject = subjectOf(c)
		return []state.Entry{e}, nil
	})
	if err != nil {
		return fmt.Errorf("closing change %d: %w", n, err)
	}
	return nil
}

// revertUnconfirmed moves a head that nobody confirmed back to the newest release that completed before, or to nothing
// where there was none. No approval is asked for: it is what was approved.
func (s *Service) revertUnconfirmed(ctx context.Context, name spec.EnvName) error {
	_, err := s.move(ctx, name, func(now state.State, env state.Environment) ([]state.Entry, error) {
		e := s.entry(operator, name, nil)
		if env.ConfirmBy.IsZero() || e.Time.Before(env.ConfirmBy) {
			return nil, nil
		}
		e.Reason = fmt.Sprintf("generation %d was not confirmed by %s", env.Head.Number, env.ConfirmBy.Format(time.RFC3339))
		target, ok, err := s.wayBack(now, env)
		if err != nil {
			return nil, err
		}
		if !ok {
			if name == platform.Env {
				return nil, fault.Errorf(fault.Conflict, "environment %s has nothing to go back to", name)
			}
			e.Data = state.Destroy{App: env.App, Generation: env.Head.Number + 1, Base: env.Head.Number}
			e.Subject = []state.Subject{{Name: string(env.App), Digest: env.Head.Release}}
			return []state.Entry{e}, nil
		}
		e.Data = state.Rollback{App: target.App, Generation: env.Head.Number + 1, Base: env.Head.Number, To: target.Number,
			Release: target.Release, Bundle: target.Bundle}
		e.Subject = []state.Subject{{Name: string(target.App), Digest: target.Release}}
		return []state.Entry{e}, nil
	})
	if err != nil {
		return fmt.Errorf("reverting environment %s: %w", name, err)
	}
	return nil
}

// wayBack returns the newest good generation that the environment may have now; false when there never was a good one.
func (s *Service) wayBack(now state.State, env state.Environment) (state.Generation, bool, error) {
	var why error
	for g := range goodOnes(now, env) {
		record, err := s.records.get(g.Release)
		if err == nil {
			err = errors.Join(s.lasting(record), allowed(now, env, record))
		}
		if err == nil {
			return g, true, nil
		}
		why = errors.Join(why, fmt.Errorf("generation %d: %w", g.Number, err))
	}
	return state.Generation{}, false, why
}
