package evidence

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/invarhq/invar/attest"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// measured checks what the server attests of a measurement, and notes what that found, and how long there was none.
func (a *auditor) measured(d state.Verify) {
	if !a.system() { // which does it as the rules have it
		a.check("permission", a.may(platform.Verify))
	}
	if payload := a.attested(d.Result != ""); payload != nil {
		a.check("attestation", a.verification(d, payload))
	}
	if d.Result == attest.NotMeasured {
		a.find(Gap, "verify", "not all of what ran in %s could be measured", a.entry.Env)
		return
	}
	a.unmeasured(a.entry.Env, a.entry.Time)
	a.seen[a.entry.Env] = a.entry.Time
	if len(d.Differ) > 0 {
		a.find(Gap, "verify", "%d of %d instances did not run what their release says, or could not be measured, as %s", len(d.Differ)+d.More, d.Instances, d.Differ[0])
	}
}

// unmeasured finds that what an environment ran was not measured for more than a week until then, or for twice as long as a rule in force says.
func (a *auditor) unmeasured(env spec.EnvName, until time.Time) {
	limit := platform.MaxVerify // a week, whatever the rules say (PCI DSS 11.5.2)
	rules, _ := a.definition()
	if every, ok := rules.VerifyRule(env); ok {
		limit = min(limit, 2*every)
	}
	since, runs := a.seen[env]
	if runs && until.Sub(since) > limit {
		a.find(Gap, "verify", "what runs in %s was not measured from %s to %s: invar verify %s does", env, since.Format(timeFormat), until.Format(timeFormat), env)
	}
}

// attested returns the statement that the entry at hand has as body, if the log's key signed it. A body that is not here is for the
// check of bodies to find.
func (a *auditor) attested(want bool) []byte {
	if !want || a.entry.Body == nil {
		return nil
	}
	raw, ok := a.blobs(a.entry.Body.Digest)
	if !ok {
		return nil
	}
	payload, err := openEnvelope(raw, a.key)
	if err != nil {
		a.check("attestation", fmt.Errorf("the statement in its body: %w", err))
		return nil
	}
	return payload
}

// verification says in what a statement of a measurement differs from its entry, and from the release that was in force; or nil.
func (a *auditor) verification(d state.Verify, payload []byte) error {
	s, err := attest.Decode[attest.Verification](payload, attest.VerificationPredicate)
	if err != nil {
		return err
	}
	v, env := s.Predicate, a.environment(a.entry.Env)
	bad := v.Bad()
	var named []instance.ID
	if n := min(len(bad), state.MaxDiffer); n > 0 {
		named = bad[:n]
	}
	switch {
	case v.Env != a.entry.Env:
		return saysOtherwise("it is of environment", v.Env, a.entry.Env)
	case v.Generation != d.Generation:
		return saysOtherwise("it is of generation", v.Generation, d.Generation)
	case v.Generation != env.Head.Number || v.Release != env.Head.Release:
		return fmt.Errorf("it is of generation %d with release %s; generation %d with release %s was in force", v.Generation, v.Release.Short(), env.Head.Number, env.Head.Release.Short())
	case v.Result != d.Result:
		return saysOtherwise("the result is", v.Result, d.Result)
	case len(v.Instances) != d.Instances || !slices.Equal(named, d.Differ) || len(bad)-len(named) != d.More:
		return fmt.Errorf("the statement says that %d of %d instances differ, as %v, and the entry that %d of %d do, as %v",
			len(bad), len(v.Instances), named, len(d.Differ)+d.More, d.Instances, d.Differ)
	case v.Who != a.entry.Actor.Who():
		return saysOtherwise("it was asked for by", v.Who, a.entry.Actor.Who())
	case v.By != a.state.Log().Origin:
		return saysOtherwise("it is of ledger", v.By, a.state.Log().Origin)
	case v.To.Before(v.From) || v.To.After(a.entry.Time.Add(moment)):
		return fmt.Errorf("it was measured from %s to %s, and recorded at %s", v.From.Format(timeFormat), v.To.Format(timeFormat), a.entry.Time.Format(timeFormat))
	}
	if err := attest.Check(s); err != nil {
		return err
	}
	return a.measuredParts(v, env)
}

func saysOtherwise(what string, statement, entry any) error {
	return fmt.Errorf("%s %v, says the statement, and %v, says the entry", what, statement, entry)
}

// measuredParts says in what the components and instances of a statement are not those of the ledger, or nil.
func (a *auditor) measuredParts(v attest.Verification, env state.Environment) error {
	placed := env.Head.Record.Components
	if len(v.Components) != len(placed) {
		return fmt.Errorf("it has %d components, the release has %d", len(v.Components), len(placed))
	}
	for n, c := range v.Components {
		p := placed[n]
		if c.Name != p.Component.Name || c.Digest != env.Head.Digests[c.Name] || c.Root != p.Component.Root || c.Replicas != p.Replicas {
			return fmt.Errorf("component %s is not as the release has it", c.Name)
		}
	}
	for _, i := range v.Instances {
		recorded, known := env.Instances[i.ID]
		if !known {
			continue // it was retired meanwhile, or nobody knows it
		}
		if i.State == attest.Unknown || i.Digest != recorded.Digest || i.Expected != env.Components[recorded.Digest].Root {
			return fmt.Errorf("instance %s is not what the ledger says of it", i.ID)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(env.Instances)) {
		i := env.Instances[id]
		if i.Healthy() && i.HealthAt.Before(v.From) && !slices.ContainsFunc(v.Instances, func(m attest.Instance) bool { return m.ID == id }) && v.Detail == "" {
			return fmt.Errorf("instance %s ran, and the statement does not have it", id)
		}
	}
	return nil
}

// reproduced checks what the server attests of a release that somebody says to have made again.
func (a *auditor) reproduced(d state.AttestReproduced) {
	a.check("permission", a.may(platform.Verify))
	payload := a.attested(true)
	if payload == nil {
		return
	}
	var s struct {
		PredicateType string           `json:"predicateType"`
		Subject       []attest.Subject `json:"subject"`
		Predicate     struct {
			Result  string        `json:"result"`
			Release digest.Digest `json:"release"`
			Bundle  digest.Digest `json:"bundle"`
			Who     string        `json:"who"`
		} `json:"predicate"`
	}
	err := json.Unmarshal(payload, &s)
	p := s.Predicate
	switch {
	case err != nil:
		err = fault.Errorf(fault.Corrupt, "reading the statement: %w", err)
	case p.Result != d.Result:
		err = saysOtherwise("the result is", p.Result, d.Result)
	case p.Release != d.Release || p.Bundle != d.Bundle:
		err = saysOtherwise("it is of release", p.Release.Short(), d.Release.Short())
	case p.Who != a.entry.Actor.Who():
		err = saysOtherwise("it is the word of", p.Who, a.entry.Actor.Who())
	}
	a.check("attestation", err)
}
