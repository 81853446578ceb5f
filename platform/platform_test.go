package platform

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity"
	"github.com/invarhq/invar/spec"
)

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI"

// bank is a definition with some of everything.
func bank() Definition {
	d := Definition{
		Principals: []Principal{
			{Name: "alice", SSHKeys: []string{key + "alice alice@bank"}, LocalUsers: []string{"alice"}},
			{Name: "bob", SSHKeys: []string{key + "bob"}},
			{Name: "carol", SSHKeys: []string{key + "carol"}},
			{Name: "ci", Machine: true, OIDC: []OIDC{{Issuer: "https://ci.example.com", Claims: map[string][]string{"repository": {"bank/shop"}}}}},
			{Name: "dave", SSHKeys: []string{key + "dave"}},
			{Name: "mallory", SSHKeys: []string{key + "mallory"}, Disabled: true},
		},
		Groups: []Group{
			{Name: "managers", Members: []PrincipalName{"alice", "bob", "mallory"}},
			{Name: "security", Members: []PrincipalName{"bob", "carol"}},
			{Name: "staff", Groups: []GroupName{"managers", "security"}, Members: []PrincipalName{"dave"}},
		},
		Roles: []Role{
			{Name: "admin", Permissions: []Permission{Anything}},
			{Name: "deployer", Permissions: []Permission{Read, Plan, Apply, Rollback}},
			{Name: "reviewer", Permissions: []Permission{Read, Approve}},
		},
		Grants: []Grant{
			{Role: "deployer", Principals: []PrincipalName{"ci", "dave"}, Environments: []Pattern{"staging", "prod-*"}},
			{Role: "reviewer", Groups: []GroupName{"staff"}, Environments: []Pattern{"*"}},
			{Role: "admin", Principals: []PrincipalName{"dave"}, Environments: []Pattern{"platform"}, Until: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)},
			{Role: "admin", Principals: []PrincipalName{"alice", "carol"}, Environments: []Pattern{"*"}},
		},
		Approvals: []Approval{{Name: "prod", Environments: []Pattern{"prod-*"}, Require: "1 of group.managers and 1 of group.security", ExpiresMillis: 86_400_000}},
		Issuers:   []Issuer{{Name: "ci", URL: "https://ci.example.com", ClientID: "invar"}},
	}
	d.Sort()
	return d
}

var now = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func TestBankIsSound(t *testing.T) {
	if got := bank().Check(); len(got) > 0 {
		t.Errorf("problems: %v", got)
	}
	if err := bank().Lockout(now); err != nil {
		t.Error(err)
	}
}

func TestPermissionsComeFromGrantsAlone(t *testing.T) {
	d := bank()
	for _, c := range []struct {
		who  PrincipalName
		p    Permission
		env  spec.EnvName
		at   time.Time
		want bool
	}{
		{"dave", Apply, "staging", now, true},
		{"dave", Apply, "prod-eu", now, true},
		{"dave", Apply, "qa", now, false},
		{"dave", Approve, "prod-eu", now, true}, // staff
		{"dave", Apply, "platform", now, true},  // until the end of the year
		{"dave", Apply, "platform", now.AddDate(1, 0, 0), false},
		{"carol", Approve, "prod-eu", now, true}, // by way of a group in a group
		{"mallory", Approve, "prod-eu", now, false},
		{"nobody", Read, "staging", now, false},
		{"nobody", None, "", now, false},
		{"dave", None, "", now, true},
		{"dave", LedgerRead, "", now, false}, // needs "*"
		{"alice", LedgerRead, "", now, true},
		{"dave", Push, "", now, true}, // since he may plan
		{"bob", Push, "", now, false},
	} {
		if got := d.Allows(c.who, c.p, c.env, c.at); got != c.want {
			t.Errorf("%s %s in %q at %s: %t, want %t", c.who, c.p, c.env, c.at.Format(time.DateOnly), got, c.want)
		}
	}
}

func TestIdentityIsAtMostOnePrincipal(t *testing.T) {
	d := bank()
	for _, c := range []struct {
		id   identity.Identity
		want PrincipalName
	}{
		{identity.Identity{Method: identity.Local, Name: "alice"}, "alice"},
		{identity.Identity{Method: identity.Local, Name: "bob"}, ""},
		{identity.Identity{Method: identity.SSH, Key: key + "bob some@comment"}, "bob"},
		{identity.Identity{Method: identity.SSH, Key: key + "mallory"}, ""},
		{identity.Identity{Method: identity.OIDC, Issuer: "https://ci.example.com", Claims: map[string]any{"repository": "bank/shop"}}, "ci"},
		{identity.Identity{Method: identity.OIDC, Issuer: "https://other.example.com", Claims: map[string]any{"repository": "bank/shop"}}, ""},
		{identity.Identity{Method: identity.OIDC, Issuer: "https://ci.example.com"}, ""},
	} {
		if got, _ := d.Identify(c.id); got != c.want {
			t.Errorf("%+v is %q, want %q", c.id, got, c.want)
		}
	}
	d.Principals[1].OIDC = d.Principals[3].OIDC // bob now has ci's rule too
	if got, ok := d.Identify(identity.Identity{Method: identity.OIDC, Issuer: "https://ci.example.com", Claims: map[string]any{"repository": "bank/shop"}}); ok {
		t.Errorf("a token that two principals' rules match is %q, want nobody", got)
	}
}

func TestEachApproverCountsOnce(t *testing.T) {
	d := bank()
	r, err := ParseRequirement("1 of group.managers and 1 of group.security")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		approvers string
		want      bool
	}{
		{"", false}, {"bob", false}, {"alice bob", true}, {"bob carol", true}, {"alice carol", true}, {"alice dave", false}, {"bob bob", false}, {"alice mallory", false},
	} {
		var who []PrincipalName
		for _, n := range strings.Fields(c.approvers) {
			who = append(who, PrincipalName(n))
		}
		if got := d.Met(r, who); got != c.want {
			t.Errorf("%q: %t, want %t", c.approvers, got, c.want)
		}
	}
}

func TestAuthorApproverAndWhoCarriesOutAreApart(t *testing.T) {
	d := bank()
	c := Case{Env: "prod-eu", Author: "alice", Approvers: []PrincipalName{"alice", "bob", "carol"}}
	if missing := d.Missing(c); len(missing) > 0 {
		t.Errorf("bob as manager and carol of security: missing %v", missing)
	}
	c.Approvers = []PrincipalName{"alice", "carol"}
	if missing := d.Missing(c); len(missing) != 1 {
		t.Errorf("the author's own approval counted: missing %v", missing)
	}
	if err := d.MayApprove(c, "alice"); fault.KindOf(err) != fault.Denied {
		t.Errorf("the author may approve: %v", err)
	}
	if err := d.MayApprove(c, "dave"); fault.KindOf(err) != fault.Denied {
		t.Errorf("somebody whom no rule names may approve: %v", err)
	}
	for who, want := range map[PrincipalName]fault.Kind{"alice": fault.Denied, "carol": fault.Denied, "dave": ""} {
		if got := fault.KindOf(d.MayCarryOut(c, who)); got != want {
			t.Errorf("carrying out by %s: %q, want %q", who, got, want)
		}
	}
}

func TestRequirementsAreRefusedWithTheCause(t *testing.T) {
	for _, s := range []string{"", "2", "2 of", "2 of managers", "0 of group.a", "02 of group.a", "1 of group.a and", "1 of (group.a", "(1 of group.a",
		"1 of group.a 1 of group.b", "1 of group.", "17 of group.a", "1 of group.a xor 1 of group.b", strings.Repeat("(", 20) + "1 of group.a" + strings.Repeat(")", 20)} {
		if _, err := ParseRequirement(s); fault.KindOf(err) != fault.Invalid || fault.Hint(err) == "" {
			t.Errorf("%q: %v, want a refusal with a hint", s, err)
		}
	}
}

func FuzzParseRequirement(f *testing.F) {
	for _, s := range []string{"2 of group.a and 1 of group.b", "1 of (group.a, principal.b) or (2 of group.c and 1 of group.d)", "((1 of group.a))"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRequirement(s)
		if err != nil {
			return
		}
		again, err := ParseRequirement(r.String())
		if err != nil {
			t.Fatalf("%q prints as %q, which is refused: %v", s, r, err)
		}
		if again.String() != r.String() {
			t.Fatalf("%q prints as %q, and that as %q", s, r, again)
		}
	})
}

func TestOneMoreApproverNeverUnmeets(t *testing.T) {
	d := bank()
	all := []PrincipalName{"alice", "bob", "carol", "dave"}
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SampledFrom([]string{
			"2 of group.staff", "1 of group.managers and 1 of group.security", "2 of group.managers or 1 of principal.dave",
			"1 of (group.managers, principal.carol) and 1 of group.staff and 1 of group.security",
		}).Draw(t, "requirement")
		r, err := ParseRequirement(text)
		if err != nil {
			t.Fatal(err)
		}
		some := rapid.SliceOfDistinct(rapid.SampledFrom(all), func(n PrincipalName) PrincipalName { return n }).Draw(t, "approvers")
		one := rapid.SampledFrom(all).Draw(t, "one more")
		if d.Met(r, some) && !d.Met(r, append(slices.Clone(some), one)) {
			t.Fatalf("%s is met by %v, and not with %s", text, some, one)
		}
		if got, want := d.Met(r, some), anyAssignment(d, r, some); got != want {
			t.Fatalf("%s by %v: %t, trying all assignments gives %t", text, some, got, want)
		}
	})
}

// anyAssignment decides Met by trying everything.
func anyAssignment(d Definition, r Requirement, approvers []PrincipalName) bool {
	for _, terms := range r.ways() {
		var places []Requirement
		for _, t := range terms {
			for range t.count {
				places = append(places, t)
			}
		}
		var try func(i int, left []PrincipalName) bool
		try = func(i int, left []PrincipalName) bool {
			if i == len(places) {
				return true
			}
			for k, n := range left {
				if d.eligible(places[i], n) && try(i+1, slices.Delete(slices.Clone(left), k, k+1)) {
					return true
				}
			}
			return false
		}
		if try(0, approvers) {
			return true
		}
	}
	return false
}

func at(t *testing.T, s string) time.Time {
	t.Helper()
	out, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestFreezeIsInForceFromItsBeginUntilItsEnd(t *testing.T) {
	d := Definition{Freezes: []Freeze{{Name: "weekend", Kind: FreezeDeny, Environments: []Pattern{"prod-*"}, Cron: "0 18 * * FRI", DurationMillis: 62 * 3_600_000, Timezone: "Europe/Berlin"}}}
	for when, want := range map[string]bool{
		"2026-11-27T16:59:59Z": false, // Friday, 17:59:59 in Berlin
		"2026-11-27T17:00:00Z": true,
		"2026-11-29T23:00:00Z": true, // Sunday night
		"2026-11-30T06:59:59Z": true, // Monday, 07:59:59
		"2026-11-30T07:00:00Z": false,
		"2026-07-03T16:00:00Z": true, // summer time: 18:00 in Berlin
		"2026-07-03T15:59:59Z": false,
	} {
		got, in := d.Frozen("prod-eu", at(t, when), false)
		if in != want {
			t.Errorf("%s: frozen %t, want %t (%+v)", when, in, want, got)
		}
	}
	if f, _ := d.Frozen("prod-eu", at(t, "2026-11-28T12:00:00Z"), false); !f.Until.Equal(at(t, "2026-11-30T07:00:00Z")) {
		t.Errorf("it ends at %s", f.Until)
	}
	if _, in := d.Frozen("staging", at(t, "2026-11-28T12:00:00Z"), false); in {
		t.Error("an environment that does not match is frozen")
	}
}

func TestDenyWinsOverAllowAndRollbacksMayPass(t *testing.T) {
	d := Definition{Freezes: []Freeze{
		{Name: "hours", Kind: FreezeAllow, Environments: []Pattern{"prod"}, Cron: "0 9 * * MON-FRI", DurationMillis: 8 * 3_600_000},
		{Name: "year-end", Kind: FreezeDeny, Environments: []Pattern{"*"}, From: at(t, "2026-12-20T00:00:00Z"), To: at(t, "2027-01-04T00:00:00Z"), Rollbacks: true},
	}}
	for _, c := range []struct {
		when     string
		rollback bool
		want     string
	}{
		{"2026-11-25T10:00:00Z", false, ""},
		{"2026-11-25T08:59:59Z", false, "hours"},
		{"2026-11-25T08:59:59Z", true, "hours"},
		{"2026-12-22T10:00:00Z", false, "year-end"},
		{"2026-12-22T10:00:00Z", true, ""},
	} {
		got, in := d.Frozen("prod", at(t, c.when), c.rollback)
		if got.Freeze != c.want || in != (c.want != "") {
			t.Errorf("%s, rollback %t: %+v, want %q", c.when, c.rollback, got, c.want)
		}
	}
	if f, _ := d.Frozen("prod", at(t, "2026-11-28T10:00:00Z"), false); !f.Until.Equal(at(t, "2026-11-30T09:00:00Z")) {
		t.Errorf("the next allow window opens at %s", f.Until)
	}
}

func TestLockoutIsRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Definition)
		want   string
	}{
		{"no grant of apply", func(d *Definition) { d.Grants = d.Grants[:2] }, "has the permission apply"},
		{"only a grant that ends", func(d *Definition) { d.Grants = d.Grants[:3] }, "has the permission apply"},
		{"no credentials", func(d *Definition) {
			for i := range d.Principals {
				d.Principals[i].SSHKeys, d.Principals[i].LocalUsers, d.Principals[i].OIDC = nil, nil, nil
			}
		}, "has the permission apply"},
		{"all disabled", func(d *Definition) {
			for i := range d.Principals {
				d.Principals[i].Disabled = true
			}
		}, "has the permission apply"},
		{"a rule that only the authors could meet", func(d *Definition) {
			d.Approvals = append(d.Approvals, Approval{Name: "self", Environments: []Pattern{"platform"}, Require: "2 of (principal.alice, principal.carol)", ExpiresMillis: 1})
		}, "would lack approvals"},
		{"a freeze that nobody may override", func(d *Definition) {
			d.Roles[0].Permissions = []Permission{Apply, Approve}
			d.Freezes = []Freeze{{Name: "f", Environments: []Pattern{"*"}, Kind: FreezeDeny, From: now, To: now.AddDate(99, 0, 0)}}
		}, "freeze f is of that environment too"},
		{"nobody is left to carry it out", func(d *Definition) {
			d.Approvals = append(d.Approvals, Approval{Name: "self", Environments: []Pattern{"platform"}, Require: "1 of (principal.alice, principal.carol)", ExpiresMillis: 1})
		}, "nobody could carry out"},
	} {
		d := bank()
		c.change(&d)
		err := d.Lockout(now)
		if fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestPoliciesForAllAppsDoNotJudgeThePlatform(t *testing.T) {
	d := Definition{Policies: []Policy{{Name: "all", Environments: []Pattern{"*"}}, {Name: "self", Environments: []Pattern{"platform"}}}}
	if got := d.PoliciesOf(Env); len(got) != 1 || got[0].Name != "self" {
		t.Errorf("the platform is judged by %v, want self alone", got)
	}
	if got := d.PoliciesOf("prod"); len(got) != 1 || got[0].Name != "all" {
		t.Errorf("prod is judged by %v, want all alone", got)
	}
}

func TestTheShortestTimeThatMatchesIsHowOftenWhatRunsIsMeasured(t *testing.T) {
	d := bank()
	d.Verifications = []Verification{
		{Name: "all", Environments: []Pattern{"*"}, EveryMillis: (48 * time.Hour).Milliseconds()},
		{Name: "prod", Environments: []Pattern{"prod-*"}, EveryMillis: time.Hour.Milliseconds()},
	}
	for env, want := range map[spec.EnvName]time.Duration{"prod-eu": time.Hour, "staging": 48 * time.Hour} {
		if got := d.VerifyEvery(env); got != want {
			t.Errorf("%s is measured every %s, want %s", env, got, want)
		}
	}
	if got := (Definition{}).VerifyEvery("prod-eu"); got != DefaultVerify || DefaultVerify > MaxVerify {
		t.Errorf("without a rule: every %s", got)
	}
}

func TestProblemsOfADefinition(t *testing.T) {
	d := bank()
	d.Principals[0].SSHKeys = append(d.Principals[0].SSHKeys, key+"bob")
	d.Principals[1].OIDC = []OIDC{{Issuer: "https://unknown.example.com"}}
	d.Groups[1].Groups = []GroupName{"staff"}
	d.Roles[0].Permissions = []Permission{"aply"}
	d.Grants[0].Role = "gone"
	d.Approvals[0].Require = "9 of group.security"
	d.Freezes = []Freeze{{Name: "f", Environments: []Pattern{"*"}, Kind: "deny", Cron: "never", DurationMillis: 1}}
	d.Quorum = 1
	var got []string
	for _, p := range d.Check() {
		got = append(got, p.Kind+" "+p.Summary)
	}
	want := []string{
		"principal Credential of two principals", "principal Missing value", "principal Unknown issuer", "group Cycle of groups", "group Cycle of groups",
		"role Unknown permission", "grant Unknown role", "approval Requirement that nobody can meet", "freeze Invalid window", "witness Invalid count",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
