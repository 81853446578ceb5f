package platform

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/spec"
)

// Rules returns the approval rules of an environment: all of them have to be met. None: the environment is not governed.
func (d Definition) Rules(env spec.EnvName) []Approval {
	var out []Approval
	for _, a := range d.Approvals {
		if MatchesAny(a.Environments, env) {
			out = append(out, a)
		}
	}
	return out
}

// Governed reports whether changes of the environment wait for approvals.
func (d Definition) Governed(env spec.EnvName) bool { return len(d.Rules(env)) > 0 }

// Expires returns how long a change of the environment may wait: the shortest of its rules.
func (d Definition) Expires(env spec.EnvName) time.Duration {
	var out time.Duration
	for _, r := range d.Rules(env) {
		if expires := time.Duration(r.ExpiresMillis) * time.Millisecond; out == 0 || expires < out {
			out = expires
		}
	}
	return out
}

// Case is a change as the approval rules see it.
type Case struct {
	Env       spec.EnvName
	Author    PrincipalName
	Approvers []PrincipalName // whose signed approvals stand
	Rollback  bool            // it goes back to what has completed in this environment
}

// Missing says, rule by rule, what a change still lacks; empty when all rules are met. It is what the change waits for.
func (d Definition) Missing(c Case) []string {
	var out []string
	for _, rule := range d.Rules(c.Env) {
		if rule.Rollbacks && c.Rollback {
			continue
		}
		r, err := ParseRequirement(rule.Require)
		if err != nil || !d.Met(r, d.counting(rule, r, c)) {
			out = append(out, fmt.Sprintf("%s: %s", rule.Name, rule.Require))
		}
	}
	return out
}

// counting returns the approvers that count for the rule.
func (d Definition) counting(rule Approval, r Requirement, c Case) []PrincipalName {
	eligible := d.Eligible(r)
	return slices.DeleteFunc(slices.Clone(c.Approvers), func(n PrincipalName) bool {
		return !slices.Contains(eligible, n) || n == c.Author && !rule.SelfApproval
	})
}

// MayApprove says why the principal's approval of the change would count for nothing, or nil. Permission is asked for
// elsewhere.
func (d Definition) MayApprove(c Case, who PrincipalName) error {
	var why []string
	for _, rule := range d.Rules(c.Env) {
		r, err := ParseRequirement(rule.Require)
		switch {
		case err != nil:
			return err
		case who == c.Author && !rule.SelfApproval:
			why = append(why, fmt.Sprintf("rule %s keeps author and approver apart", rule.Name))
		case !slices.Contains(d.Eligible(r), who):
			why = append(why, fmt.Sprintf("rule %s asks for %s", rule.Name, rule.Require))
		default:
			return nil
		}
	}
	if why == nil {
		return fault.Errorf(fault.Conflict, "environment %s asks for no approvals", c.Env)
	}
	return fault.Errorf(fault.Denied, "an approval by %s would not count: %s", who, strings.Join(why, "; "))
}

// MayCarryOut says why the principal may not carry the approved change out, or nil: author, approvers and whoever
// carries it out are three different people unless a rule says otherwise. Permission is asked for elsewhere.
func (d Definition) MayCarryOut(c Case, who PrincipalName) error {
	for _, rule := range d.Rules(c.Env) {
		if rule.SelfApply || rule.Rollbacks && c.Rollback {
			continue
		}
		switch {
		case who == c.Author:
			return apart(rule, who, "author")
		case slices.Contains(c.Approvers, who):
			return apart(rule, who, "an approver")
		}
	}
	return nil
}

func apart(rule Approval, who PrincipalName, role string) error {
	return fault.WithHint(fault.Errorf(fault.Denied, "%s is %s of this change, and rule %s has someone else carry it out", who, role, rule.Name),
		"have somebody with the permission apply run: invar change apply ID; or set automatic or self_apply in the rule")
}

// Automatic reports whether the server itself carries an approved change out.
func (d Definition) Automatic(env spec.EnvName) bool {
	rules := d.Rules(env)
	return len(rules) > 0 && !slices.ContainsFunc(rules, func(r Approval) bool { return !r.Automatic })
}
