package control

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/policy"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// Images describes the images of a bundle, as evaluated for an environment, as policies see them. It depends on nothing
// but the bundle and what is attached to its images.
type Images func(ctx context.Context, bundle digest.Digest, env spec.EnvName) (map[spec.ImageName]policy.Image, error)

// verdict is what the policies in force said of an intent.
type verdict struct {
	definition digest.Digest // release of the platform's definition that they are of
	judged     []judged
}

// judged is the decision of one policy, with the content that it can be replayed from.
type judged struct {
	name     string
	decision policy.Decision
	encoded  []byte // of the decision
	plan     digest.Digest
}

// judge asks every policy of the environment about the intent. What the decisions were made on is durable when it
// returns: the bundles, the inputs and the decisions themselves.
func (s *Service) judge(ctx context.Context, author Actor, in intent, n state.ChangeNumber) (verdict, error) {
	phase := policy.PhaseApply
	rules, d := definition(s.State())
	if n == 0 && rules.Governed(in.env) {
		phase = policy.PhaseRequest
	}
	out, err := s.ask(ctx, author, in, n, phase)
	if err != nil {
		return verdict{}, err
	}
	for _, j := range out.judged {
		if err := s.put(ctx, digest.Of(j.encoded), j.encoded); err != nil {
			return verdict{}, fmt.Errorf("storing the decision of policy %s: %w", j.name, err)
		}
	}
	out.definition = d
	return out, nil
}

// ask has the policies decide, and keeps bundles and inputs.
func (s *Service) ask(ctx context.Context, author Actor, in intent, n state.ChangeNumber, phase policy.Phase) (verdict, error) {
	now := s.State()
	rules, def := definition(now)
	out := verdict{definition: def}
	policies := rules.PoliciesOf(in.env)
	if len(policies) == 0 {
		return out, nil
	}
	input, err := s.policyInput(ctx, now, rules, author, in, n, phase)
	if err != nil {
		return out, err
	}
	encoded, err := policy.EncodeInput(input)
	if err != nil {
		return out, err
	}
	if err := s.put(ctx, digest.Of(encoded), encoded); err != nil {
		return out, fmt.Errorf("storing a policy's input: %w", err)
	}
	for _, p := range policies {
		j, err := s.askOne(ctx, now.DefinedBy(), rules, p, input)
		if err != nil {
			return out, fmt.Errorf("asking policy %s: %w", p.Name, err)
		}
		j.plan = in.planned.Digest
		out.judged = append(out.judged, j)
	}
	return out, nil
}

func (s *Service) askOne(ctx context.Context, grantedBy string, rules platform.Definition, p platform.Policy, input policy.Input) (judged, error) {
	bundle, err := s.policies.compile(p)
	if err != nil {
		return judged{}, err
	}
	if err := s.put(ctx, bundle.Digest(), bundle.Archive()); err != nil {
		return judged{}, err
	}
	decision, err := bundle.Decide(ctx, input, exceptions(grantedBy, rules, p.Name, input.Environment.Name))
	if err != nil {
		return judged{}, err
	}
	encoded, err := policy.Encode(decision)
	return judged{name: p.Name, decision: decision, encoded: encoded}, err
}

// selfJudged refuses a definition of the platform whose own policies would refuse the very change that brings it: nobody
// could change it any more in the usual way.
func (s *Service) selfJudged(ctx context.Context, by Actor, in intent) error {
	if in.env != platform.Env || in.record.Platform == nil {
		return nil
	}
	rules := *in.record.Platform
	policies := rules.PoliciesOf(platform.Env)
	if len(policies) == 0 {
		return nil
	}
	input, err := s.policyInput(ctx, s.State(), rules, by, in, 0, policy.PhaseRequest)
	if err != nil {
		return err
	}
	for _, p := range policies {
		j, err := s.askOne(ctx, by.Who()+", who proposes the definition", rules, p, input)
		if err != nil {
			return err
		}
		if err := (verdict{judged: []judged{j}}).refusal(); err != nil {
			return fault.WithHint(fault.Errorf(fault.Denied, "this would lock everyone out: its own policy %s refuses this very change: %w", p.Name, err),
				"have the policy let changes of environment %s pass", platform.Env)
		}
	}
	return nil
}

// exceptions are those of a policy in the environment, as package policy has them. Whoever put the definition in force that has
// them granted them.
func exceptions(grantedBy string, rules platform.Definition, name string, env spec.EnvName) []policy.Exception {
	var out []policy.Exception
	for _, e := range rules.ExceptionsOf(name, env) {
		x := policy.Exception{ID: e.Name, Rule: e.Rule, Ticket: e.Ticket, Reason: e.Reason, Expires: e.Expires, GrantedBy: grantedBy}
		for _, p := range e.Environments {
			x.Environments = append(x.Environments, string(p))
		}
		out = append(out, x)
	}
	return out
}

// policyInput gathers what a policy decides on.
func (s *Service) policyInput(ctx context.Context, now state.State, rules platform.Definition, author Actor, in intent, n state.ChangeNumber, phase policy.Phase) (policy.Input, error) {
	env := environment(now, in.env)
	out := policy.Input{
		V: 1, Now: state.Millis(s.config.Now()), Phase: phase, App: in.app,
		Change:      policy.Change{Kind: policy.ChangeKind(in.kind), Reason: in.reason, Author: policy.Author{Name: author.Who(), Kind: string(author.Kind)}},
		Environment: policy.Environment{Name: in.env, Generation: in.base},
		Plan:        &in.planned.Plan,
	}
	if n != 0 {
		out.Change.ID = strconv.Itoa(int(n))
	}
	for _, g := range rules.GroupsOf(author.Principal) {
		out.Change.Author.Groups = append(out.Change.Author.Groups, string(g))
	}
	if env.Head.Release != "" {
		before := env.Head.Record
		out.Before = &before
	}
	if in.release == "" {
		return out, nil
	}
	after := in.record
	out.After = &after
	if s.config.Images == nil || len(after.Components) == 0 {
		return out, nil
	}
	var err error
	out.Images, err = s.config.Images(ctx, in.bundle, in.evaluatedFor(env))
	return out, err
}

// evaluatedFor is the environment that the intent's release was evaluated for.
func (in intent) evaluatedFor(env state.Environment) spec.EnvName {
	switch {
	case in.fork != nil:
		return in.fork.Of
	case env.Live() && in.kind == state.MovedByRollback:
		return env.Fork.Of
	}
	return in.env
}

// refusal says why the policies refuse, or nil.
func (v verdict) refusal() error {
	var why []string
	for _, j := range v.judged {
		if j.decision.Allowed {
			continue
		}
		if f := j.decision.Failure; f != nil {
			why = append(why, fmt.Sprintf("policy %s gave no answer: %s", j.name, f.Cause))
		}
		for _, r := range j.decision.Refusals() {
			why = append(why, fmt.Sprintf("policy %s: %s (%s)", j.name, r.Message, r.Rule))
		}
	}
	if why == nil {
		return nil
	}
	return fault.WithHint(fault.Errorf(fault.Denied, "refused by policy:\n  %s", strings.Join(why, "\n  ")), "try it on a release before proposing it: invar policy test")
}

// entries returns the decisions as entries.
func (v verdict) entries(s *Service, env spec.EnvName, phase string, n state.ChangeNumber) []state.Entry {
	var out []state.Entry
	for _, j := range v.judged {
		e := s.entry(operator, env, state.PolicyDecision{Phase: phase, Change: n, Policy: j.name, Bundle: j.decision.Bundle, Input: j.decision.Input,
			Decision: digest.Of(j.encoded), Plan: j.plan, Allowed: j.decision.Allowed})
		e.Body = &state.Body{Digest: digest.Of(j.encoded), Size: int64(len(j.encoded)), Type: policy.TypeDecision}
		if e.Outcome = "allowed"; !j.decision.Allowed {
			e.Outcome = "refused"
		}
		out = append(out, e)
	}
	return out
}

// refuse records the decisions that refuse an intent, and returns why.
func (s *Service) refuse(ctx context.Context, in intent, v verdict, n state.ChangeNumber, phase string) error {
	err := v.refusal()
	if err == nil {
		return nil
	}
	_, failed := s.append(ctx, func(state.State) ([]state.Entry, error) { return v.entries(s, in.env, phase, n), nil })
	if failed != nil {
		return failed
	}
	return err
}

// Verdicts returns what the policies say of a plan now. Nothing is recorded.
func (s *Service) Verdicts(ctx context.Context, by Actor, p Proposal, planned Planned) ([]Verdict, error) {
	rel, err := s.evaluate(ctx, p)
	if err != nil {
		return nil, err
	}
	in := intent{env: p.Env, kind: state.MovedByApply, app: rel.record.App, base: planned.Plan.Base.Generation, release: rel.digest, bundle: p.Bundle,
		record: rel.record, planned: planned}
	v, err := s.ask(ctx, by, in, 0, policy.PhasePlan)
	if err != nil {
		return nil, err
	}
	out := make([]Verdict, len(v.judged))
	for i, j := range v.judged {
		out[i] = Verdict{Policy: j.name, Decision: j.decision}
	}
	return out, nil
}

// Verdict is what one policy said.
type Verdict struct {
	Policy   string
	Phase    string
	Digest   digest.Digest // of the decision; "": it is not recorded
	Entry    int64         // of a recorded one
	Decision policy.Decision
	Erased   string // by which entry its reasons were erased; "": they were not
}

// Decisions returns the recorded decisions of a change, oldest first.
func (s *Service) Decisions(ctx context.Context, c state.Change) ([]Verdict, error) {
	var out []Verdict
	for _, at := range c.Decisions {
		if err := s.Erased(at.Decision); err != nil { // what it came to is in the entry
			out = append(out, Verdict{Policy: at.Policy, Phase: at.Phase, Digest: at.Decision, Entry: at.Entry, Erased: err.Error(), Decision: policy.Decision{Allowed: at.Allowed}})
			continue
		}
		raw, err := s.read(at.Decision, policy.MaxDecisionBytes)
		if err != nil {
			return nil, fmt.Errorf("reading decision %s: %w", at.Decision, err)
		}
		d, err := policy.Decode(raw)
		if err != nil {
			return nil, fmt.Errorf("reading decision %s: %w", at.Decision, err)
		}
		out = append(out, Verdict{Policy: at.Policy, Phase: at.Phase, Digest: at.Decision, Entry: at.Entry, Decision: d})
	}
	return out, nil
}

// policies remembers compiled policies: the same files give the same bundle.
type policies struct {
	mu    sync.Mutex
	known []compiled
}

type compiled struct {
	policy platform.Policy
	bundle *policy.Bundle
}

// maxPolicies bounds what is remembered: those of a definition, and of the one before.
const maxPolicies = 64

func (p *policies) compile(of platform.Policy) (*policy.Bundle, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.known {
		if samePolicy(c.policy, of) {
			return c.bundle, nil
		}
	}
	bundle, err := policy.Compile(of.Name, of.Source())
	if err != nil {
		return nil, err
	}
	if len(p.known) >= maxPolicies {
		p.known = nil
	}
	p.known = append(p.known, compiled{of, bundle})
	return bundle, nil
}

func samePolicy(a, b platform.Policy) bool {
	if a.Name != b.Name || len(a.Files) != len(b.Files) {
		return false
	}
	for name, content := range a.Files {
		if other, ok := b.Files[name]; !ok || other != content {
			return false
		}
	}
	return true
}

// compiles says what is wrong with the policies of a definition, all of them.
func (s *Service) compiles(r release.Record) error {
	if r.Platform == nil {
		return nil
	}
	var why []string
	for _, p := range r.Platform.Policies {
		if _, err := s.policies.compile(p); err != nil {
			why = append(why, fmt.Sprintf("policy %s: %v", p.Name, err))
		}
	}
	if why == nil {
		return nil
	}
	slices.Sort(why)
	return fault.WithHint(fault.Errorf(fault.Invalid, "%s", strings.Join(why, "\n")), "invar policy test DIR")
}
