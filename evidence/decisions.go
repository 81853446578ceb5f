package evidence

import (
	"errors"
	"fmt"
	"slices"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/policy"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// compiled is a policy of a definition, by what identifies it.
type compiled struct {
	digest digest.Digest
	err    error
}

// bundleOf returns the digest of the bundle that a policy of the definition in force compiles to.
func (a *auditor) bundleOf(p platform.Policy) (digest.Digest, error) {
	key, err := digest.OfValue(p.Files)
	if err != nil {
		return "", err
	}
	c, ok := a.compiled[key]
	if !ok {
		b, err := policy.Compile(p.Name, p.Source())
		if c = (compiled{err: err}); err == nil {
			c.digest = b.Digest()
		}
		a.compiled[key] = c
	}
	return c.digest, c.err
}

// decision checks a policy's decision: that it was made with the policy and the exceptions in force, at its time, and that it comes out
// the same again.
func (a *auditor) decision(d state.PolicyDecision) {
	out := Decided{Index: a.index, Entry: a.entry, Data: d}
	rules, _ := a.definition()
	err := a.inForce(rules, d)
	if raw, ok := a.blobs(d.Decision); ok && err == nil {
		if out.Decision, err = policy.Decode(raw); err == nil {
			err = a.soundly(rules, d, out.Decision)
		}
	} // a body that is missing where it should be here was found already
	a.check("policy", err)
	a.Decisions = append(a.Decisions, out)
	env := a.entry.Env
	a.decided[env] = append(a.decided[env], len(a.Decisions)-1)
	a.tell(d, out.Decision)
}

// inForce checks that the decision's bundle is that of the policy in force.
func (a *auditor) inForce(rules platform.Definition, d state.PolicyDecision) error {
	i := slices.IndexFunc(rules.PoliciesOf(a.entry.Env), func(p platform.Policy) bool { return p.Name == d.Policy })
	if i < 0 {
		return fmt.Errorf("policy %q was not in force for %s", d.Policy, a.entry.Env)
	}
	want, err := a.bundleOf(rules.PoliciesOf(a.entry.Env)[i])
	if err != nil {
		return err
	}
	if want != d.Bundle {
		return fmt.Errorf("it was decided by bundle %s; policy %q in force was %s", d.Bundle.Short(), d.Policy, want.Short())
	}
	return nil
}

// soundly checks the decision itself.
func (a *auditor) soundly(rules platform.Definition, d state.PolicyDecision, got policy.Decision) error {
	if got.Bundle != d.Bundle || got.Input != d.Input || got.Allowed != d.Allowed {
		return errors.New("the entry says otherwise than the decision that is its body")
	}
	if apart := a.entry.Time.Sub(got.At).Abs(); apart > change.MaxSkew {
		return fmt.Errorf("it was decided for %s, and recorded %s apart from that", got.At.Format(timeFormat), apart)
	}
	for _, e := range got.Exceptions {
		if err := a.excepted(rules, d.Policy, e); err != nil {
			return err
		}
	}
	return a.replay(d, got)
}

const timeFormat = "2006-01-02T15:04:05Z07:00"

// excepted checks an exception against the definition in force.
func (a *auditor) excepted(rules platform.Definition, name string, e policy.Exception) error {
	i := slices.IndexFunc(rules.ExceptionsOf(name, a.entry.Env), func(p platform.Exception) bool { return p.Name == e.ID })
	if i < 0 {
		return fmt.Errorf("exception %q was not in force", e.ID)
	}
	p := rules.ExceptionsOf(name, a.entry.Env)[i]
	if p.Rule != e.Rule || p.Ticket != e.Ticket || p.Reason != e.Reason || !p.Expires.Equal(e.Expires) {
		return fmt.Errorf("exception %q is another one than that in force, which expires at %s", e.ID, p.Expires.Format(timeFormat))
	}
	return nil
}

// replay comes to the decision again, where its bundle and input are here.
func (a *auditor) replay(d state.PolicyDecision, got policy.Decision) error {
	bundle, okBundle := a.blobs(d.Bundle)
	raw, okInput := a.blobs(d.Input)
	if !okBundle || !okInput {
		if a.Scope.has(a.index, a.entry.Env) && !a.erased[d.Input] {
			return fmt.Errorf("its bundle %s or its input %s is missing, and no entry says that it was erased", d.Bundle.Short(), d.Input.Short())
		}
		return nil
	}
	in, err := policy.DecodeInput(raw)
	if err != nil {
		return err
	}
	if in.Environment.Name != a.entry.Env || in.Phase == policy.PhasePlan {
		return fmt.Errorf("its input is about %s of %s", in.Phase, in.Environment.Name)
	}
	if in.Plan != nil {
		if p, err := in.Plan.Digest(); err != nil || p != d.Plan {
			return fmt.Errorf("its input has plan %s, the entry says %s", p.Short(), d.Plan.Short())
		}
	}
	err = policy.Replay(a.ctx, got, bundle, raw)
	if fault.KindOf(err) == fault.Unavailable {
		a.find(Gap, "policy", "%v", err)
		return nil
	}
	return err
}

// tell notes what an auditor wants to know of a decision.
func (a *auditor) tell(d state.PolicyDecision, got policy.Decision) {
	if !d.Allowed {
		a.find(Notice, "policy", "policy %s refused", d.Policy)
	}
	for _, r := range got.Results {
		for _, id := range r.Expired {
			a.find(Gap, "policy", "exception %s has expired, and was still needed: rule %s says: %s", id, r.Rule, r.Message)
		}
		if r.Exempted != "" {
			a.find(Notice, "policy", "exception %s let pass what rule %s refuses: %s", r.Exempted, r.Rule, r.Message)
		}
	}
}

// policies checks that every policy in force judged the move at hand, and let it pass.
func (a *auditor) policies(rules platform.Definition, kind state.MoveKind, d digest.Digest, g state.Governed, plan digest.Digest) {
	for _, p := range rules.PoliciesOf(a.entry.Env) {
		a.check("judged", a.judgedBy(p.Name, d, g, plan))
	}
}

func (a *auditor) judgedBy(name string, d digest.Digest, g state.Governed, plan digest.Digest) error {
	env := a.entry.Env
	var last *Decided
	for _, i := range a.decided[env] {
		if got := &a.Decisions[i]; got.Data.Policy == name && got.Data.Phase == state.PhaseApply && got.Data.Change == g.Change {
			last = got
		}
	}
	switch {
	case last == nil:
		return fmt.Errorf("the head moved, and policy %q in force had not judged it", name)
	case plan != "" && last.Data.Plan != plan:
		return fmt.Errorf("policy %q judged plan %s (entry %d), and another was carried out: %s", name, last.Data.Plan.Short(), last.Index, plan.Short())
	case a.entry.Time.Sub(last.Entry.Time) > change.MaxSkew:
		return fmt.Errorf("policy %q judged it at %s (entry %d), and not when it was carried out", name, last.Entry.Time.Format(timeFormat), last.Index)
	case !last.Data.Allowed && !g.Emergency:
		return fmt.Errorf("the head moved although policy %q refused it (entry %d)", name, last.Index)
	case !last.Data.Allowed:
		a.find(Notice, "policy", "the emergency was against policy %s", name)
	}
	return a.about(last, env, d)
}

// about checks that a decision is on the release that the move brings, where its input is here.
func (a *auditor) about(last *Decided, env spec.EnvName, d digest.Digest) error {
	raw, ok := a.blobs(last.Data.Input)
	if !ok {
		return nil
	}
	in, err := policy.DecodeInput(raw)
	if err != nil {
		return nil // found at the decision's own entry
	}
	var after digest.Digest
	if in.After != nil {
		if after, err = in.After.Digest(); err != nil {
			return err
		}
	}
	if base := a.environment(env).Head.Number; after != d || in.Environment.Generation != base {
		return fmt.Errorf("policy %q judged release %s over generation %d (entry %d), and the head moved to %s over %d",
			last.Data.Policy, after.Short(), in.Environment.Generation, last.Index, d.Short(), base)
	}
	return nil
}
