package control

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// scheduler is the actor of what is measured because it is time.
var scheduler = Actor{Kind: state.ActorSystem, Name: "schedule"}

// Times of the loop.
const (
	verifyLook  = 5 * time.Second // between two looks at what is due
	verifyRest  = 2 * time.Second // between two environments, at the least
	verifyShare = 19              // it rests that many times as long as it measured, so that it takes a twentieth of the time
	verifyAgain = time.Minute     // after a measurement that left no entry: the head moved all the time, or the ledger can't be written
)

// verifications lists the environments of which it is time to measure what they run, the longest due first. It is pure.
func verifications(s state.State, rules platform.Definition, now time.Time) []spec.EnvName {
	type due struct {
		env spec.EnvName
		at  time.Time
	}
	var all []due
	for env := range s.Environments() {
		if at := env.MeasureAt(rules.VerifyEvery(env.Name)); !at.IsZero() && !now.Before(at) {
			all = append(all, due{env.Name, at})
		}
	}
	slices.SortFunc(all, func(a, b due) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.env, b.env)) })
	var out []spec.EnvName
	for _, d := range all {
		out = append(out, d.env)
	}
	return out
}

// KeepVerified measures what every environment runs, as often as the rules say, one environment after the other. When each is due
// follows from the ledger, and so outlasts the server. It returns when ctx ends.
func (s *Service) KeepVerified(ctx context.Context) error {
	failed := map[spec.EnvName]time.Time{} // when it is tried again
	for {
		now, at := s.State(), s.config.Now()
		rules, _ := definition(now)
		due := slices.DeleteFunc(verifications(now, rules, at), func(name spec.EnvName) bool { return at.Before(failed[name]) })
		wait := verifyLook
		if len(due) > 0 {
			began := time.Now()
			delete(failed, due[0])
			if _, err := s.Verify(ctx, scheduler, due[0]); err != nil && ctx.Err() == nil {
				s.config.Log.WarnContext(ctx, "what runs can't be measured now", "env", due[0], "error", err)
				failed[due[0]] = at.Add(verifyAgain)
			}
			wait = max(verifyRest, verifyShare*time.Since(began))
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
