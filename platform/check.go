package platform

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/spec"
)

// Problem is something wrong with a definition. Kind and Name say of what: "group" "ops"; Field is "" for the whole.
type Problem struct {
	Kind, Name, Field string
	Summary           string // one of few constant texts
	Detail            string
	Suggestion        string
	Unknown           string // of an unknown principal or group: the name that none has
}

// Error returns the problem as one line.
func (p Problem) Error() string {
	return fmt.Sprintf("%s %q: %s: %s", p.Kind, p.Name, p.Summary, p.Detail)
}

type checker struct {
	d        Definition
	problems []Problem
}

func (c *checker) add(kind, name, field, summary, format string, args ...any) {
	c.problems = append(c.problems, Problem{Kind: kind, Name: name, Field: field, Summary: summary, Detail: fmt.Sprintf(format, args...)})
}

// Check returns everything that is wrong with the definition by itself. Whether it locks everybody out is for Lockout.
func (d Definition) Check() []Problem {
	c := &checker{d: d}
	c.names()
	c.principals()
	c.groups()
	c.roles()
	c.grants()
	for _, a := range d.Approvals {
		c.approval(a)
	}
	for _, f := range d.Freezes {
		c.freeze(f)
	}
	c.policies()
	for _, b := range d.BreakGlass {
		c.breakGlass(b)
	}
	for _, v := range d.Verifications {
		c.verification(v)
	}
	c.outside()
	return c.problems
}

// names checks that names are well formed, sorted and unique.
func (c *checker) names() {
	d := c.d
	for _, k := range []struct {
		kind string
		list []string
	}{
		{"principal", namesOf(d.Principals, func(p Principal) string { return string(p.Name) })},
		{"group", namesOf(d.Groups, func(g Group) string { return string(g.Name) })},
		{"role", namesOf(d.Roles, func(r Role) string { return string(r.Name) })},
		{"approval", namesOf(d.Approvals, func(a Approval) string { return a.Name })},
		{"freeze", namesOf(d.Freezes, func(f Freeze) string { return f.Name })},
		{"policy", namesOf(d.Policies, func(p Policy) string { return p.Name })},
		{"exception", namesOf(d.Exceptions, func(e Exception) string { return e.Name })},
		{"break_glass", namesOf(d.BreakGlass, func(b BreakGlass) string { return b.Name })},
		{"retention", namesOf(d.Retentions, func(r Retention) string { return r.Name })},
		{"verification", namesOf(d.Verifications, func(v Verification) string { return v.Name })},
		{"oidc", namesOf(d.Issuers, func(i Issuer) string { return i.Name })},
		{"witness", namesOf(d.Witnesses, func(w Witness) string { return w.Name })},
	} {
		for i, name := range k.list {
			if err := spec.CheckName(name); err != nil {
				c.add(k.kind, name, "", "Invalid name", "%v", err)
			}
			if i > 0 && k.list[i-1] >= name {
				c.add(k.kind, name, "", "Duplicate name", "the name is there twice, or the list is not sorted")
			}
		}
	}
}

func namesOf[T any](list []T, name func(T) string) []string {
	out := make([]string, len(list))
	for i, e := range list {
		out[i] = name(e)
	}
	return out
}

// principals checks that no credential belongs to two.
func (c *checker) principals() {
	owner := map[string]PrincipalName{}
	claim := func(p Principal, field, what string) {
		if other, ok := owner[field+what]; ok {
			c.add("principal", string(p.Name), field, "Credential of two principals", "%q belongs to principal %s already", what, other)
		}
		owner[field+what] = p.Name
	}
	for _, p := range c.d.Principals {
		for _, u := range p.LocalUsers {
			claim(p, "local_users", u)
		}
		for _, k := range p.SSHKeys {
			f := strings.Fields(k)
			if len(f) < 2 {
				c.add("principal", string(p.Name), "ssh_keys", "Invalid key", "%q is not a key as in authorized_keys", k)
				continue
			}
			claim(p, "ssh_keys", f[0]+" "+f[1])
		}
		for _, o := range p.OIDC {
			if len(o.Claims) == 0 {
				c.add("principal", string(p.Name), "oidc", "Missing value", "without a claim, everybody whom %s knows would be this principal", o.Issuer)
			}
			if !slices.ContainsFunc(c.d.Issuers, func(i Issuer) bool { return i.URL == o.Issuer }) {
				c.add("principal", string(p.Name), "oidc", "Unknown issuer", "no oidc block has the issuer %q", o.Issuer)
			}
		}
	}
}

func (c *checker) groups() {
	for _, g := range c.d.Groups {
		c.known("group", string(g.Name), "members", g.Members, g.Groups)
	}
	next := func(n string) []string {
		g, _ := c.d.Group(GroupName(n))
		return namesOf(g.Groups, func(n GroupName) string { return string(n) })
	}
	for _, g := range c.d.Groups {
		for _, cycle := range spec.Cycles([]string{string(g.Name)}, next) {
			c.add("group", string(g.Name), "members", "Cycle of groups", "groups can't contain each other: %s", cycle)
		}
	}
}

// known checks references to principals and groups.
func (c *checker) known(kind, name, field string, principals []PrincipalName, groups []GroupName) {
	for _, p := range principals {
		if _, ok := c.d.Principal(p); !ok {
			c.unknown(kind, name, field, "principal", string(p))
		}
	}
	for _, g := range groups {
		if _, ok := c.d.Group(g); !ok {
			c.unknown(kind, name, field, "group", string(g))
		}
	}
}

func (c *checker) unknown(kind, name, field, what, given string) {
	c.problems = append(c.problems, Problem{Kind: kind, Name: name, Field: field, Summary: "Unknown " + what, Detail: fmt.Sprintf("there is no %s %q", what, given), Unknown: given})
}

func (c *checker) roles() {
	for _, r := range c.d.Roles {
		for _, p := range r.Permissions {
			if p != Anything && !slices.Contains(Permissions(), p) {
				c.add("role", string(r.Name), "permissions", "Unknown permission", "there is no permission %q", p)
			}
		}
	}
}

func (c *checker) grants() {
	for i, g := range c.d.Grants {
		name := fmt.Sprintf("%d of %s", i+1, g.Role)
		if !slices.ContainsFunc(c.d.Roles, func(r Role) bool { return r.Name == g.Role }) {
			c.add("grant", name, "role", "Unknown role", "there is no role %q", g.Role)
		}
		c.known("grant", name, "to", g.Principals, g.Groups)
		if len(g.Environments) == 0 || len(g.Principals)+len(g.Groups) == 0 {
			c.add("grant", name, "", "Missing value", "a grant names environments, and whom it is for")
		}
	}
}

func (c *checker) approval(a Approval) {
	if len(a.Environments) == 0 {
		c.add("approval", a.Name, "environments", "Missing value", "it matches no environment")
	}
	if a.ExpiresMillis <= 0 {
		c.add("approval", a.Name, "expires", "Invalid value", "a change has to expire some time")
	}
	r, err := ParseRequirement(a.Require)
	if err != nil {
		c.problems = append(c.problems, Problem{Kind: "approval", Name: a.Name, Field: "require", Summary: "Invalid requirement", Detail: err.Error(), Suggestion: fault.Hint(err)})
		return
	}
	for _, s := range r.subjects() {
		if s.group != "" {
			c.known("approval", a.Name, "require", nil, []GroupName{s.group})
		} else {
			c.known("approval", a.Name, "require", []PrincipalName{s.principal}, nil)
		}
	}
	if !c.d.Met(r, c.d.Eligible(r)) {
		c.add("approval", a.Name, "require", "Requirement that nobody can meet", "even if all who may approve do, %q is not met", a.Require)
	}
}

func (c *checker) freeze(f Freeze) {
	if len(f.Environments) == 0 {
		c.add("freeze", f.Name, "environments", "Missing value", "it matches no environment")
	}
	if f.Kind != FreezeDeny && f.Kind != FreezeAllow {
		c.add("freeze", f.Name, "kind", "Invalid value", "kind is %q; want deny or allow", f.Kind)
	}
	if f.Cron == "" {
		if f.From.IsZero() || !f.From.Before(f.To) {
			c.add("freeze", f.Name, "", "Invalid window", "it needs a cron and a duration, or a from that is before its to")
		}
		return
	}
	if _, _, err := f.schedule(); err != nil {
		c.problems = append(c.problems, Problem{Kind: "freeze", Name: f.Name, Field: "cron", Summary: "Invalid window", Detail: err.Error(), Suggestion: fault.Hint(err)})
	}
	const most = 366 * 24 * time.Hour
	if d := time.Duration(f.DurationMillis) * time.Millisecond; d <= 0 || d > most {
		c.add("freeze", f.Name, "duration", "Invalid window", "a window lasts up to a year, and longer than nothing")
	}
}

func (c *checker) policies() {
	for _, p := range c.d.Policies {
		if len(p.Environments) == 0 || len(p.Files) == 0 {
			c.add("policy", p.Name, "", "Missing value", "a policy names environments, and a directory with Rego files")
		}
	}
	for _, e := range c.d.Exceptions {
		if !slices.ContainsFunc(c.d.Policies, func(p Policy) bool { return p.Name == e.Policy }) {
			c.add("exception", e.Name, "policy", "Unknown policy", "there is no policy %q", e.Policy)
		}
		if e.Rule == "" || e.Ticket == "" || e.Reason == "" || e.Expires.IsZero() || len(e.Environments) == 0 {
			c.add("exception", e.Name, "", "Missing value", "an exception has a rule, environments, a ticket, a reason and a time at which it expires")
		}
	}
}

func (c *checker) breakGlass(b BreakGlass) {
	if len(b.Environments) == 0 {
		c.add("break_glass", b.Name, "environments", "Missing value", "it matches no environment")
	}
	if b.ReviewMillis <= 0 || b.SessionMillis <= 0 {
		c.add("break_glass", b.Name, "", "Invalid value", "review_within and session have to be longer than nothing")
	}
	if b.Reviewers != "" {
		c.known("break_glass", b.Name, "reviewers", nil, []GroupName{b.Reviewers})
	}
}

// How often what runs is measured.
const (
	DefaultVerify = 24 * time.Hour     // where no rule says
	MaxVerify     = 7 * 24 * time.Hour // a week without is a finding (PCI DSS 11.5.2)
	minVerify     = 10 * time.Second
)

func (c *checker) verification(v Verification) {
	if len(v.Environments) == 0 {
		c.add("verification", v.Name, "environments", "Missing value", "it matches no environment")
	}
	if every := time.Duration(v.EveryMillis) * time.Millisecond; every < minVerify || every > MaxVerify {
		c.add("verification", v.Name, "every", "Invalid value", "what runs is measured every %s at the most, and every 7 days at the least", minVerify)
	}
}

// VerifyRule returns how often what the environment runs is measured as a rule says: the shortest time of those that match. false: none does.
func (d Definition) VerifyRule(env spec.EnvName) (every time.Duration, ok bool) {
	for _, v := range d.Verifications {
		if t := time.Duration(v.EveryMillis) * time.Millisecond; MatchesAny(v.Environments, env) && (!ok || t < every) {
			every, ok = t, true
		}
	}
	return every, ok
}

// VerifyEvery returns how often what the environment runs is measured, by a rule or by default.
func (d Definition) VerifyEvery(env spec.EnvName) time.Duration {
	if every, ok := d.VerifyRule(env); ok {
		return every
	}
	return DefaultVerify
}

func (c *checker) outside() {
	urls := map[string]bool{}
	for _, i := range c.d.Issuers {
		if i.ClientID == "" || !strings.HasPrefix(i.URL, "https://") && !strings.HasPrefix(i.URL, "http://127.0.0.1") && !strings.HasPrefix(i.URL, "http://localhost") {
			c.add("oidc", i.Name, "issuer", "Invalid value", "an issuer has a client_id and an https URL (http on the loopback is for tests)")
		}
		if urls[i.URL] {
			c.add("oidc", i.Name, "issuer", "Duplicate name", "another oidc block has the issuer %s", i.URL)
		}
		urls[i.URL] = true
	}
	if c.d.Quorum < 0 || c.d.Quorum > len(c.d.Witnesses) {
		c.add("witness", "", "witness_quorum", "Invalid count", "a quorum of %d of %d witnesses", c.d.Quorum, len(c.d.Witnesses))
	}
	for _, r := range c.d.Retentions {
		if r.KeepMillis <= 0 || len(r.Kinds) == 0 {
			c.add("retention", r.Name, "", "Missing value", "it names kinds of entries, and how long they are kept")
		}
	}
}

// Lockout says why nobody could ever change the platform's definition again if this one were in force, or nil. There must be
// somebody who may propose a change of it, and others who meet its approval rules and carry it out; each with a way to come in.
func (d Definition) Lockout(now time.Time) error {
	holders := func(p Permission) []PrincipalName {
		var out []PrincipalName
		for _, who := range d.Principals {
			if who.reachable() && d.allowsForGood(who.Name, p) {
				out = append(out, who.Name)
			}
		}
		return out
	}
	appliers, approvers := holders(Apply), holders(Approve)
	for _, f := range d.Freezes {
		if MatchesAny(f.Environments, Env) && len(holders(FreezeOverride)) == 0 {
			return lockout(fmt.Sprintf("freeze %s is of that environment too, and nobody has the permission %s there", f.Name, FreezeOverride))
		}
	}
	if len(appliers) == 0 {
		return lockout("nobody who can come in has the permission apply there for good")
	}
	why := "nobody may propose a change"
	for _, author := range appliers {
		if why = d.stuck(author, appliers, approvers); why == "" {
			return nil
		}
	}
	return lockout(why)
}

func lockout(why string) error {
	return fault.WithHint(fault.Errorf(fault.Denied, "this would lock everyone out: with it, environment %s could never change again: %s", Env, why),
		"keep a principal with credentials, a grant of apply and approve in environment %s, and rules that those can meet", Env)
}

// stuck says why a change of the platform by the author would get nowhere; "" when it would. Approving as little as is
// needed leaves the most people to carry it out.
func (d Definition) stuck(author PrincipalName, appliers, approvers []PrincipalName) string {
	c := Case{Env: Env, Author: author, Approvers: approvers}
	if missing := d.Missing(c); len(missing) > 0 {
		return fmt.Sprintf("a change by %s would lack approvals of rule %s", author, strings.Join(missing, "; "))
	}
	if d.Automatic(Env) {
		return ""
	}
	for i := 0; i < len(c.Approvers); { // as few approvers as the rules let us
		fewer := c
		fewer.Approvers = slices.Delete(slices.Clone(c.Approvers), i, i+1)
		if len(d.Missing(fewer)) > 0 {
			i++
			continue
		}
		c = fewer
	}
	if slices.ContainsFunc(appliers, func(who PrincipalName) bool { return d.MayCarryOut(c, who) == nil }) {
		return ""
	}
	return fmt.Sprintf("nobody could carry out a change by %s, since its author and its approvers may not", author)
}

// allowsForGood is Allows by grants that do not end.
func (d Definition) allowsForGood(name PrincipalName, p Permission) bool {
	d.Grants = slices.DeleteFunc(slices.Clone(d.Grants), func(g Grant) bool { return !g.Until.IsZero() })
	return d.Allows(name, p, Env, time.Time{})
}

// reachable reports whether the principal has a way to come in.
func (p Principal) reachable() bool {
	return !p.Disabled && len(p.LocalUsers)+len(p.SSHKeys)+len(p.OIDC) > 0
}

// Sort puts all lists in their order.
func (d *Definition) Sort() {
	slices.SortFunc(d.Principals, func(a, b Principal) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Groups, func(a, b Group) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Roles, func(a, b Role) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Approvals, func(a, b Approval) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Freezes, func(a, b Freeze) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Policies, func(a, b Policy) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Exceptions, func(a, b Exception) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(d.BreakGlass, func(a, b BreakGlass) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Retentions, func(a, b Retention) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Verifications, func(a, b Verification) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Issuers, func(a, b Issuer) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Witnesses, func(a, b Witness) int { return cmp.Compare(a.Name, b.Name) })
}

// Emergency returns the rule for emergencies of the environment: the one with the shortest time to review. Without a rule there
// is no such way.
func (d Definition) Emergency(env spec.EnvName) (BreakGlass, bool) {
	var out BreakGlass
	found := false
	for _, b := range d.BreakGlass {
		if MatchesAny(b.Environments, env) && (!found || b.ReviewMillis < out.ReviewMillis) {
			out, found = b, true
		}
	}
	return out, found
}

// DefaultSession is how long a shell may stay open where no rule says.
const DefaultSession = 30 * time.Minute

// Session returns how long an instance in which somebody has a shell lives at the most.
func (d Definition) Session(env spec.EnvName) time.Duration {
	if b, ok := d.Emergency(env); ok {
		return time.Duration(b.SessionMillis) * time.Millisecond
	}
	return DefaultSession
}

// PoliciesOf returns the policies that judge changes of the environment. The platform's own is judged by those alone that
// name it: what is meant for all apps must not be in the way of taking itself back.
func (d Definition) PoliciesOf(env spec.EnvName) []Policy {
	var out []Policy
	for _, p := range d.Policies {
		if MatchesAny(p.Environments, env) && (env != Env || slices.Contains(p.Environments, Pattern(Env))) {
			out = append(out, p)
		}
	}
	return out
}

// ExceptionsOf returns the exceptions from a policy in the environment, also those that have expired.
func (d Definition) ExceptionsOf(policy string, env spec.EnvName) []Exception {
	var out []Exception
	for _, e := range d.Exceptions {
		if e.Policy == policy && MatchesAny(e.Environments, env) {
			out = append(out, e)
		}
	}
	return out
}

// Source returns the policy's files as bytes.
func (p Policy) Source() map[string][]byte {
	out := make(map[string][]byte, len(p.Files))
	for _, name := range slices.Sorted(maps.Keys(p.Files)) {
		out[name] = []byte(p.Files[name])
	}
	return out
}
