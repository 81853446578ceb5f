package platform

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/invarhq/invar/identity"
	"github.com/invarhq/invar/spec"
)

// anyDefinition is one of few names, so that they meet: some unknown, some in groups inside each other, also in circles.
func anyDefinition(rt *rapid.T) Definition {
	name := func(prefix string) string { return prefix + fmt.Sprint(rapid.IntRange(0, 4).Draw(rt, prefix)) }
	some := func(what string, add func()) {
		for range rapid.IntRange(0, 4).Draw(rt, what) {
			add()
		}
	}
	var d Definition
	for i := range 4 {
		p := Principal{Name: PrincipalName(fmt.Sprint("p", i)), Disabled: rapid.IntRange(0, 3).Draw(rt, "disabled") == 0}
		some("users", func() { p.LocalUsers = append(p.LocalUsers, name("u")) })
		d.Principals = append(d.Principals, p)
	}
	for i := range 4 {
		g := Group{Name: GroupName(fmt.Sprint("g", i))}
		some("members", func() { g.Members = append(g.Members, PrincipalName(name("p"))) })
		some("groups", func() { g.Groups = append(g.Groups, GroupName(name("g"))) })
		d.Groups = append(d.Groups, g)
		r := Role{Name: RoleName(fmt.Sprint("r", i))}
		some("permissions", func() {
			r.Permissions = append(r.Permissions, rapid.SampledFrom(append(Permissions(), Anything)).Draw(rt, "permission"))
		})
		d.Roles = append(d.Roles, r)
	}
	some("grants", func() {
		g := Grant{Role: RoleName(name("r")), Environments: []Pattern{rapid.SampledFrom([]Pattern{"*", "prod", "prod-*"}).Draw(rt, "where")}}
		some("principals", func() { g.Principals = append(g.Principals, PrincipalName(name("p"))) })
		some("granted groups", func() { g.Groups = append(g.Groups, GroupName(name("g"))) })
		if rapid.Bool().Draw(rt, "ends") {
			g.Until = now
		}
		d.Grants = append(d.Grants, g)
	})
	return d
}

func TestIndexSaysWhatTheDefinitionSays(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := anyDefinition(rt)
		x := d.Index()
		for i := range 5 {
			who := PrincipalName(fmt.Sprint("p", i))
			id := identity.Identity{Method: identity.Local, Name: fmt.Sprint("u", i)}
			got, ok := x.Identify(id)
			if want, known := d.Identify(id); got != want || ok != known {
				rt.Fatalf("%s is %q, %v; the definition says %q, %v\n%+v", id.Name, got, ok, want, known, d)
			}
			for _, p := range append(Permissions(), None, Anything) {
				for _, env := range []spec.EnvName{"", "prod", "prod-eu", "platform"} {
					for _, at := range []time.Time{now.Add(-1), now, now.Add(1)} {
						if got, want := x.Allows(who, p, env, at), d.Allows(who, p, env, at); got != want {
							rt.Fatalf("%s, %q in %q at %s: the index says %v, the definition %v\n%+v", who, p, env, at, got, want, d)
						}
					}
				}
			}
		}
	})
}

// bigDefinition has a thousand principals in fifty groups with a hundred grants.
func bigDefinition() Definition {
	var d Definition
	for i := range 1000 {
		d.Principals = append(d.Principals, Principal{Name: PrincipalName(fmt.Sprintf("p%04d", i))})
	}
	for i := range 50 {
		g := Group{Name: GroupName(fmt.Sprintf("g%02d", i))}
		for j := range 20 {
			g.Members = append(g.Members, d.Principals[i*20+j].Name)
		}
		if i > 0 {
			g.Groups = []GroupName{GroupName(fmt.Sprintf("g%02d", i-1))}
		}
		d.Groups = append(d.Groups, g)
	}
	d.Roles = []Role{{Name: "developer", Permissions: []Permission{Read, Logs, Plan, Apply}}, {Name: "reader", Permissions: []Permission{Read}}}
	for i := range 100 {
		d.Grants = append(d.Grants, Grant{Role: d.Roles[i%2].Name, Groups: []GroupName{d.Groups[i/2].Name}, Environments: []Pattern{Pattern(fmt.Sprintf("team%02d-*", i/2))}})
	}
	return d
}

func BenchmarkAllows(b *testing.B) {
	d := bigDefinition()
	x := d.Index()
	who := d.Principals[0].Name
	if !slices.Contains(d.PermissionsOf(who, "team49-prod", now), Apply) {
		b.Fatal("he may not")
	}
	b.Run("definition", func(b *testing.B) {
		for b.Loop() {
			d.Allows(who, Apply, "team49-prod", now)
		}
	})
	b.Run("index", func(b *testing.B) {
		for b.Loop() {
			x.Allows(who, Apply, "team49-prod", now)
		}
	})
	b.Run("compile", func(b *testing.B) {
		for b.Loop() {
			d.Index()
		}
	})
}
