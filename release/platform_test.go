package release_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/release"
)

// definition is a small definition of the platform with something of everything.
func definition() platform.Definition {
	d := platform.Definition{
		Principals: []platform.Principal{
			{Name: "alice", LocalUsers: []string{"alice"}, SSHKeys: []string{"ssh-ed25519 AAAA alice"}},
			{Name: "bob", SSHKeys: []string{"ssh-ed25519 BBBB"}},
			{Name: "ci", Machine: true, OIDC: []platform.OIDC{{Issuer: "https://ci.example.com", Claims: map[string][]string{"repository": {"bank/shop"}}}}},
		},
		Groups: []platform.Group{{Name: "managers", Members: []platform.PrincipalName{"alice", "bob"}}, {Name: "staff", Groups: []platform.GroupName{"managers"}}},
		Roles: []platform.Role{
			{Name: "admin", Permissions: []platform.Permission{platform.Anything}},
			{Name: "deployer", Permissions: []platform.Permission{platform.Apply, platform.Plan}},
			{Name: "none", Permissions: []platform.Permission{}},
		},
		Grants: []platform.Grant{
			{Role: "admin", Principals: []platform.PrincipalName{"alice"}, Environments: []platform.Pattern{"*"}},
			{Role: "deployer", Principals: []platform.PrincipalName{"ci"}, Environments: []platform.Pattern{"staging"}, Until: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)},
		},
		Approvals:  []platform.Approval{{Name: "prod", Environments: []platform.Pattern{"prod-*"}, Require: "1 of group.managers", ExpiresMillis: 86_400_000}},
		Freezes:    []platform.Freeze{{Name: "weekend", Environments: []platform.Pattern{"prod-*"}, Kind: "deny", Cron: "0 18 * * FRI", DurationMillis: 223_200_000, Timezone: "Europe/Berlin"}},
		Policies:   []platform.Policy{{Name: "baseline", Environments: []platform.Pattern{"*"}, Files: map[string]string{"a.rego": "package a\n\ndeny := \"x\"\n"}}},
		Exceptions: []platform.Exception{{Name: "legacy", Policy: "baseline", Rule: "a", Environments: []platform.Pattern{"*"}, Ticket: "T-1", Reason: "old", Expires: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)}},
		BreakGlass: []platform.BreakGlass{{Name: "prod", Environments: []platform.Pattern{"prod-*"}, ReviewMillis: 1000, SessionMillis: 1000}},
		Retentions: []platform.Retention{{Name: "recordings", Kinds: []string{"session.end"}, KeepMillis: 220_752_000_000}},
		Issuers:    []platform.Issuer{{Name: "ci", URL: "https://ci.example.com", ClientID: "invar"}},
		Witnesses:  []platform.Witness{{Name: "auditor", URL: "https://witness.example.com", VKey: "auditor+1234"}},
		Quorum:     1, Auditors: []string{"age1"},
	}
	return d
}

func platformRecord(t testing.TB, d platform.Definition) release.Record {
	t.Helper()
	r, err := release.EvaluatePlatform(d, digest.Of([]byte("bundle")))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The bytes of a release of the platform never change: other implementations, and every ledger, rely on them.
func TestPlatformVector(t *testing.T) {
	enc, err := release.Encode(platformRecord(t, definition()))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, filepath.Join("testdata", "vectors", "platform.json"), enc)
	golden(t, filepath.Join("testdata", "vectors", "platform-digest.txt"), []byte(digest.Of(enc).String()+"\n"))
	back, err := release.Decode(enc)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(definition(), *back.Platform); diff != "" {
		t.Errorf("decoded (-want +got):\n%s", diff)
	}
}

func TestOnlyThePlatformsEnvironmentHasADefinition(t *testing.T) {
	for name, change := range map[string]func(*release.Record){
		"another environment":    func(r *release.Record) { r.Env = "prod" },
		"another app":            func(r *release.Record) { r.App = "shop" },
		"neither":                func(r *release.Record) { r.App, r.Env = "shop", "prod" },
		"no definition":          func(r *release.Record) { r.Platform = nil },
		"components beside it":   func(r *release.Record) { r.Components = record(t, app()).Components },
		"not sorted":             func(r *release.Record) { r.Platform.Principals[0].Name = "zoe" },
		"with a problem":         func(r *release.Record) { r.Platform.Grants[0].Role = "gone" },
		"null instead of a list": func(r *release.Record) { r.Platform.Roles[2].Permissions = nil },
	} {
		r := platformRecord(t, definition())
		change(&r)
		if err := r.Check(); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
		if _, err := release.Encode(r); err == nil {
			t.Errorf("%s: it is encoded", name)
		}
	}
}

func TestDiffOfThePlatformSaysWhatAndWhy(t *testing.T) {
	a, b := platformRecord(t, definition()), definition()
	b.Principals[0].SSHKeys = []string{"ssh-ed25519 CCCC alice"}
	b.Principals[1] = platform.Principal{Name: "bert", LocalUsers: []string{"bert"}, Disabled: true}
	b.Groups[0].Members = []platform.PrincipalName{"alice", "bert"}
	b.Roles[1].Permissions = []platform.Permission{platform.Plan}
	b.Grants = []platform.Grant{b.Grants[1], b.Grants[0], {Role: "admin", Principals: []platform.PrincipalName{"bert"}, Environments: []platform.Pattern{"platform"}}}
	b.Grants[0].Until = time.Date(2028, 1, 1, 0, 0, 0, 0, time.UTC)
	b.Approvals[0].ExpiresMillis, b.Approvals[0].Automatic = 3_600_000, true
	b.Freezes = nil
	b.Policies[0].Files = map[string]string{"a.rego": "package a\n\ndeny := \"y\"\n", "b.rego": "package b\n"}
	b.Exceptions[0].Reason = "older"
	b.Retentions[0].KeepMillis = 1000
	b.Quorum = 0
	got := release.Diff(a, platformRecord(t, b)).String()
	golden(t, filepath.Join("testdata", "diff-platform.txt"), []byte(got))
	if d := release.Diff(a, platformRecord(t, definition())); !d.Empty() {
		t.Errorf("equal definitions differ: %s", d)
	}
}

// Whatever differs is told: each field of the definition is changed in turn.
func TestDiffOfThePlatformMissesNothing(t *testing.T) {
	for i, change := range []func(*platform.Definition){
		func(d *platform.Definition) { d.Principals[0].Machine = true },
		func(d *platform.Definition) { d.Principals[2].OIDC[0].Claims["ref"] = []string{"main"} },
		func(d *platform.Definition) {
			d.Groups[1].Groups = nil
			d.Groups[1].Members = []platform.PrincipalName{"ci"}
		},
		func(d *platform.Definition) { d.Grants = d.Grants[:1] },
		func(d *platform.Definition) { d.Approvals[0].SelfApply = true },
		func(d *platform.Definition) { d.Approvals[0].Rollbacks = true },
		func(d *platform.Definition) { d.Freezes[0].Rollbacks = true },
		func(d *platform.Definition) { d.Freezes[0].Timezone = "" },
		func(d *platform.Definition) { d.Policies[0].Environments = []platform.Pattern{"prod"} },
		func(d *platform.Definition) { d.Exceptions[0].Expires = d.Exceptions[0].Expires.Add(time.Second) },
		func(d *platform.Definition) { d.BreakGlass[0].Reviewers = "staff" },
		func(d *platform.Definition) {
			d.Verifications = []platform.Verification{{Name: "prod", Environments: []platform.Pattern{"prod"}, EveryMillis: 60_000}}
		},
		func(d *platform.Definition) { d.Issuers[0].Scopes = []string{"email"} },
		func(d *platform.Definition) { d.Witnesses[0].VKey = "other" },
		func(d *platform.Definition) { d.Auditors = append(d.Auditors, "age2") },
		func(d *platform.Definition) { d.Groups[0].Members = []platform.PrincipalName{"bob", "alice"} }, // only their order
	} {
		b := definition()
		change(&b)
		d := release.Diff(platformRecord(t, definition()), platformRecord(t, b))
		if len(d.Platform) != 1 || len(d.Platform[0].Causes) == 0 {
			t.Errorf("change %d: %s", i, fmt.Sprint(d))
		}
	}
}
