package platform

import (
	"slices"
	"time"

	"github.com/invarhq/invar/identity"
	"github.com/invarhq/invar/spec"
)

// Index answers who somebody is and what he may, without walking principals, groups and roles at each question. It never
// changes, and says the same as the definition.
type Index struct {
	definition Definition
	local      map[string][]PrincipalName // who a user of the machine may be
	known      map[PrincipalName]bool     // who may come in
	grants     map[PrincipalName][]indexed
}

// indexed is a grant with its role's permissions.
type indexed struct {
	permissions map[Permission]bool
	where       []Pattern
	until       time.Time
}

// Index compiles the definition.
func (d Definition) Index() *Index {
	x := &Index{definition: d, local: map[string][]PrincipalName{}, known: map[PrincipalName]bool{}, grants: map[PrincipalName][]indexed{}}
	for _, p := range d.Principals {
		x.known[p.Name] = !p.Disabled
		for _, u := range p.LocalUsers {
			if !p.Disabled && !slices.Contains(x.local[u], p.Name) {
				x.local[u] = append(x.local[u], p.Name)
			}
		}
	}
	roles := map[RoleName]map[Permission]bool{}
	for _, r := range slices.Backward(d.Roles) { // of two with one name the first counts
		roles[r.Name] = map[Permission]bool{}
		for _, p := range r.Permissions {
			roles[r.Name][p] = true
		}
	}
	members := map[GroupName][]PrincipalName{}
	for _, g := range d.Groups {
		members[g.Name] = d.Members(g.Name)
	}
	for _, g := range d.Grants {
		who := slices.Clone(g.Principals)
		for _, group := range g.Groups {
			who = append(who, members[group]...)
		}
		slices.Sort(who)
		for _, name := range slices.Compact(who) {
			x.grants[name] = append(x.grants[name], indexed{roles[g.Role], g.Environments, g.Until})
		}
	}
	return x
}

// Identify is Definition.Identify.
func (x *Index) Identify(id identity.Identity) (PrincipalName, bool) {
	if id.Method != identity.Local {
		return x.definition.Identify(id)
	}
	if found := x.local[id.Name]; len(found) == 1 {
		return found[0], true
	}
	return "", false
}

// HasKey reports whether the principal has the SSH key.
func (x *Index) HasKey(name PrincipalName, key string) bool {
	p, ok := x.definition.Principal(name)
	return ok && p.HasKey(key)
}

// Allows is Definition.Allows.
func (x *Index) Allows(name PrincipalName, p Permission, env spec.EnvName, now time.Time) bool {
	if !x.known[name] {
		return false
	}
	return p == None || slices.ContainsFunc(x.grants[name], func(g indexed) bool {
		return (g.until.IsZero() || now.Before(g.until)) && g.gives(p, env)
	})
}

func (g indexed) gives(p Permission, env spec.EnvName) bool {
	if p == Push || p == Pull { // what a plan needs has to get there, whatever environment it is for
		if g.permissions[Plan] || g.permissions[Anything] {
			return true
		}
		env = ""
	}
	return (g.permissions[p] || g.permissions[Anything]) && MatchesAny(g.where, env)
}
