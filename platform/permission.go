package platform

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/identity"
	"github.com/invarhq/invar/spec"
)

// Permission is what a role lets its holders do. Every operation of the API needs exactly one.
type Permission string

// The permissions. Each goes for environments that a grant names, but for those marked global, which need a grant for "*".
const (
	Read           Permission = "read"            // what runs, plans, histories, releases
	Logs           Permission = "logs"            // what instances wrote
	Plan           Permission = "plan"            // have a plan made, and push what it needs
	Apply          Permission = "apply"           // propose a change, and carry out an approved one
	Approve        Permission = "approve"         // approve and reject
	Rollback       Permission = "rollback"        // go back to an earlier release, also with data
	Destroy        Permission = "destroy"         // retire all that an environment runs, and its volumes; delete what is kept of one
	Exec           Permission = "exec"            // open a shell in an instance, which taints it; fork with copies of its data
	Verify         Permission = "verify"          // measure what runs
	Revoke         Permission = "release.revoke"  // block a release for good
	FreezeOverride Permission = "freeze.override" // move a head though a freeze forbids it
	BreakGlassUse  Permission = "breakglass"      // act in an emergency, to be reviewed afterwards
	SecretRead     Permission = "secret.list"     // names and versions; nothing ever tells a value
	SecretWrite    Permission = "secret.write"    // make a new version
	LedgerRead     Permission = "ledger.read"     // global: entries, proofs, tiles
	Evidence       Permission = "evidence.export" // global: evidence, recordings included
	Erase          Permission = "erase"           // global: ask for, and agree to, the erasure of a body
	Tokens         Permission = "token"           // global: tokens of others; one's own need none
	ServerRead     Permission = "server.read"     // global: metrics
	Pull           Permission = "pull"            // global: read images, bundles and releases from the registry
	Push           Permission = "push"            // global: write them; whoever may plan anywhere may also push
	Anything       Permission = "*"               // all of these
	None           Permission = ""                // what anybody may who is let in: ask who one is
)

// Permissions lists all that a role can name but Anything, sorted.
func Permissions() []Permission {
	all := []Permission{Read, Logs, Plan, Apply, Approve, Rollback, Destroy, Exec, Verify, Revoke, FreezeOverride, BreakGlassUse,
		SecretRead, SecretWrite, LedgerRead, Evidence, Erase, Tokens, ServerRead, Pull, Push}
	slices.Sort(all)
	return all
}

// Global reports whether the permission is of the whole server and of no environment.
func (p Permission) Global() bool {
	return slices.Contains([]Permission{LedgerRead, Evidence, Erase, Tokens, ServerRead, Pull, Push}, p)
}

// Matches reports whether the pattern matches the name.
func (p Pattern) Matches(name spec.EnvName) bool { return identity.Glob(string(p), string(name)) }

// MatchesAny reports whether one of the patterns matches. What belongs to no environment, "", is matched by "*" alone.
func MatchesAny(patterns []Pattern, name spec.EnvName) bool {
	return slices.ContainsFunc(patterns, func(p Pattern) bool {
		if name == "" {
			return p == "*"
		}
		return p.Matches(name)
	})
}

// Principal returns the principal of that name.
func (d Definition) Principal(name PrincipalName) (Principal, bool) {
	i, ok := slices.BinarySearchFunc(d.Principals, name, func(p Principal, n PrincipalName) int { return cmp.Compare(p.Name, n) })
	if !ok {
		return Principal{}, false
	}
	return d.Principals[i], true
}

// Group returns the group of that name.
func (d Definition) Group(name GroupName) (Group, bool) {
	i, ok := slices.BinarySearchFunc(d.Groups, name, func(g Group, n GroupName) int { return cmp.Compare(g.Name, n) })
	if !ok {
		return Group{}, false
	}
	return d.Groups[i], true
}

// Members returns everybody in the group, also by way of other groups, sorted and without those who are disabled.
func (d Definition) Members(name GroupName) []PrincipalName {
	seen := map[GroupName]bool{}
	var out []PrincipalName
	var walk func(GroupName)
	walk = func(n GroupName) {
		g, ok := d.Group(n)
		if !ok || seen[n] {
			return
		}
		seen[n] = true
		for _, m := range g.Members {
			if p, ok := d.Principal(m); ok && !p.Disabled {
				out = append(out, m)
			}
		}
		for _, inner := range g.Groups {
			walk(inner)
		}
	}
	walk(name)
	slices.Sort(out)
	return slices.Compact(out)
}

// GroupsOf returns the groups that the principal is in, sorted.
func (d Definition) GroupsOf(name PrincipalName) []GroupName {
	var out []GroupName
	for _, g := range d.Groups {
		if slices.Contains(d.Members(g.Name), name) {
			out = append(out, g.Name)
		}
	}
	return out
}

// Allows reports whether the principal has the permission in the environment at that time. env is "" for what belongs
// to none. Whoever is disabled or unknown may nothing.
func (d Definition) Allows(name PrincipalName, p Permission, env spec.EnvName, now time.Time) bool {
	who, ok := d.Principal(name)
	if !ok || who.Disabled {
		return false
	}
	if p == None {
		return true
	}
	return slices.ContainsFunc(d.Grants, func(g Grant) bool {
		return (g.Until.IsZero() || now.Before(g.Until)) && d.gives(g, p, env) && d.reaches(g, name)
	})
}

// gives reports whether a grant's role has the permission there.
func (d Definition) gives(g Grant, p Permission, env spec.EnvName) bool {
	i := slices.IndexFunc(d.Roles, func(r Role) bool { return r.Name == g.Role })
	if i < 0 {
		return false
	}
	has := func(p Permission) bool {
		return slices.Contains(d.Roles[i].Permissions, p) || slices.Contains(d.Roles[i].Permissions, Anything)
	}
	if p == Push || p == Pull { // what a plan needs has to get there, whatever environment it is for
		return has(p) && MatchesAny(g.Environments, "") || has(Plan)
	}
	return has(p) && MatchesAny(g.Environments, env)
}

func (d Definition) reaches(g Grant, name PrincipalName) bool {
	return slices.Contains(g.Principals, name) ||
		slices.ContainsFunc(g.Groups, func(n GroupName) bool { return slices.Contains(d.Members(n), name) })
}

// PermissionsOf lists what the principal may in the environment at that time.
func (d Definition) PermissionsOf(name PrincipalName, env spec.EnvName, now time.Time) []Permission {
	var out []Permission
	for _, p := range Permissions() {
		if d.Allows(name, p, env, now) {
			out = append(out, p)
		}
	}
	return out
}

// Identify returns the principal that an identity belongs to. At most one does: Check refuses a credential that two
// principals have; where rules for tokens overlap, it is nobody.
func (d Definition) Identify(id identity.Identity) (PrincipalName, bool) {
	var found []PrincipalName
	for _, p := range d.Principals {
		if !p.Disabled && p.is(id) {
			found = append(found, p.Name)
		}
	}
	if len(found) != 1 {
		return "", false
	}
	return found[0], true
}

// is reports whether the identity is one of the principal's.
func (p Principal) is(id identity.Identity) bool {
	switch id.Method {
	case identity.Local:
		return slices.Contains(p.LocalUsers, id.Name)
	case identity.SSH:
		return p.HasKey(id.Key)
	case identity.OIDC:
		return slices.ContainsFunc(p.OIDC, func(o OIDC) bool { return o.Issuer == id.Issuer && identity.MatchClaims(o.Claims, id.Claims) })
	}
	return false
}

// HasKey reports whether the principal has the SSH key, as authorized_keys spells it.
func (p Principal) HasKey(key string) bool {
	return slices.ContainsFunc(p.SSHKeys, func(line string) bool { return SameKey(line, key) })
}

// SameKey compares two keys as authorized_keys spells them: type and key, whatever the comment.
func SameKey(a, b string) bool {
	ka, kb := strings.Fields(a), strings.Fields(b)
	return len(ka) >= 2 && len(kb) >= 2 && ka[0] == kb[0] && ka[1] == kb[1]
}
