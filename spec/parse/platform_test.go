package parse_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec/parse"
)

const aliceKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPv3Zz8mUn6mCxUGbyX5XlFh9cLB7m9vVv4sDqYSGtTZ"

// Keys of RSA that nobody has the secrets of any more.
const (
	rsa1024 = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDYGMLCH8nHjUBUfxAJHX1qpZWcGTMoikpCE9fRkQMj83/XZrrtWwmpKlpUkvOu2tUDLJEJao7jQ34Z3RoDYk4n6gSs4i1ncancmuJlqCMViWVkmHKHMkFOWWKv6r1KritMOXNq522ZOW5z5NDLKHDbsy7skFeLxhkwnyg/pacD8w=="
	rsa2048 = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQDBM8LsrBgQbz1ndUTYcYjZhf2jZ7AavHklz9qq0XUzl1CBDtZtxjTF5cYOCUyoRxMgMK1hDXrg0yk45YMjSeSk4IBvQz0vdLuDRzDBKoUqk5sw/i3GmwXvIfovmIB4WuQxjj540lINkguvcOBbdepUI34dU3Ub1MMP/W5E5pjujotHsOpe/pPDpXFwsnC5YEdPdUZIqon5Y7FeVVuYNekJvapUbiuOaTeX0YtnrWB2cH9sD+V4g3xsHOFYWAp2rJjpw/LF5Y+0X9/rNoAc5vX+7aUDZR0mdwqrp6LiiHA81Pq8lBY81FXpftEgoFr9rmEhH7OMhMCvOUkEnZpLKatH"
)

const bankPlatform = `
variable "hours" { default = "24h" }
locals { admins = [principal.alice, group.managers] }

principal "alice" {
  ssh_keys    = ["` + aliceKey + ` alice@bank"]
  local_users = ["alice"]
}
principal "ops" {
  for_each    = ["bob", "carol"]
  local_users = [each.key]
}
principal "ci" {
  machine = true
  oidc = [
    { issuer = "https://ci.example.com", claims = { repository = "bank/shop", ref = ["refs/tags/*", "refs/heads/main"] } },
  ]
}
group "managers" { members = [principal.ops["bob"], principal.ops["carol"], principal.alice] }
group "staff" { members = [group.managers, principal.ci] }
role "admin" { permissions = ["*"] }
role "deployer" { permissions = ["plan", "apply"] }
role "nothing" { permissions = [] }
grant {
  role         = role.deployer
  to           = [principal.ci, group.staff]
  environments = ["staging", "prod-*"]
  until        = "2027-01-01T01:00:00+01:00"
}
grant {
  role         = role.admin
  to           = local.admins
  environments = ["*"]
}
approval "prod" {
  environments = ["prod-*"]
  require      = "2 of group.managers and 1 of principal.alice"
  expires      = var.hours
  automatic    = true
}
freeze "weekend" {
  environments = ["prod-*"]
  cron         = "0 18 * * FRI"
  duration     = "62h"
  timezone     = "Europe/Berlin"
}
freeze "year-end" {
  environments = ["*"]
  from         = "2026-12-20T00:00:00Z"
  to           = "2027-01-04T00:00:00Z"
  rollbacks    = true
}
policy "baseline" { dir = "./policy" }
exception "legacy-root" {
  policy       = policy.baseline
  rule         = "no_root"
  environments = ["prod-eu"]
  ticket       = "OPS-7"
  reason       = "until the vendor ships"
  expires      = "2027-03-01T00:00:00Z"
}
break_glass "prod" {
  environments = ["prod-*"]
  reviewers    = group.managers
}
retention "recordings" {
  kinds = ["session.end"]
  keep  = "7y"
}
verification "prod" {
  environments = ["prod-*"]
  every        = "12h"
}
oidc "ci" {
  issuer    = "https://ci.example.com"
  client_id = "invar"
  audience  = ["ci"]
}
witness "auditor" {
  url = "https://witness.example.com"
  key = "auditor.example+7206f003+BB5AIlBoUkeWsmkd/QOLbFC32vzDT5P9TM6iQU4o508f"
}
witness_quorum = 1
auditors       = ["age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq"]
`

func bankFS() fstest.MapFS {
	return fstest.MapFS{
		"platform.hcl":             {Data: []byte(bankPlatform)},
		"policy/root.rego":         {Data: []byte("package root\n")},
		"policy/root_test.rego":    {Data: []byte("package root_test\n")},
		"policy/data/limits.json":  {Data: []byte("{}\n")},
		"policy/README.md":         {Data: []byte("not read\n")},
		"elsewhere/unrelated.rego": {Data: []byte("package no\n")},
	}
}

func TestPlatformEvaluates(t *testing.T) {
	m, _ := parse.Load(bankFS())
	if d := m.Validate(); len(d) > 0 {
		t.Fatal(d)
	}
	got, diags := m.Definition()
	if err := diags.Err(); err != nil {
		t.Fatal(err)
	}
	env := func(p ...platform.Pattern) []platform.Pattern { return p }
	who := func(p ...platform.PrincipalName) []platform.PrincipalName { return p }
	want := platform.Definition{
		Principals: []platform.Principal{
			{Name: "alice", SSHKeys: []string{aliceKey + " alice@bank"}, LocalUsers: []string{"alice"}},
			{Name: "ci", Machine: true, OIDC: []platform.OIDC{{Issuer: "https://ci.example.com", Claims: map[string][]string{"repository": {"bank/shop"}, "ref": {"refs/heads/main", "refs/tags/*"}}}}},
			{Name: "ops-bob", LocalUsers: []string{"bob"}},
			{Name: "ops-carol", LocalUsers: []string{"carol"}},
		},
		Groups: []platform.Group{
			{Name: "managers", Members: who("alice", "ops-bob", "ops-carol")},
			{Name: "staff", Members: who("ci"), Groups: []platform.GroupName{"managers"}},
		},
		Roles: []platform.Role{
			{Name: "admin", Permissions: []platform.Permission{"*"}}, {Name: "deployer", Permissions: []platform.Permission{"apply", "plan"}}, {Name: "nothing", Permissions: []platform.Permission{}},
		},
		Grants: []platform.Grant{
			{Role: "admin", Principals: who("alice"), Groups: []platform.GroupName{"managers"}, Environments: env("*")},
			{Role: "deployer", Principals: who("ci"), Groups: []platform.GroupName{"staff"}, Environments: env("prod-*", "staging"), Until: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)},
		},
		Approvals: []platform.Approval{{Name: "prod", Environments: env("prod-*"), Require: "2 of group.managers and 1 of principal.alice", ExpiresMillis: 86_400_000, Automatic: true}},
		Freezes: []platform.Freeze{
			{Name: "weekend", Environments: env("prod-*"), Kind: "deny", Cron: "0 18 * * FRI", DurationMillis: 62 * 3_600_000, Timezone: "Europe/Berlin"},
			{Name: "year-end", Environments: env("*"), Kind: "deny", From: time.Date(2026, 12, 20, 0, 0, 0, 0, time.UTC), To: time.Date(2027, 1, 4, 0, 0, 0, 0, time.UTC), Rollbacks: true},
		},
		Policies: []platform.Policy{{Name: "baseline", Environments: env("*"), Files: map[string]string{"root.rego": "package root\n", "root_test.rego": "package root_test\n", "data/limits.json": "{}\n"}}},
		Exceptions: []platform.Exception{{Name: "legacy-root", Policy: "baseline", Rule: "no_root", Environments: env("prod-eu"), Ticket: "OPS-7", Reason: "until the vendor ships",
			Expires: time.Date(2027, 3, 1, 0, 0, 0, 0, time.UTC)}},
		BreakGlass:    []platform.BreakGlass{{Name: "prod", Environments: env("prod-*"), ReviewMillis: 72 * 3_600_000, Reviewers: "managers", SessionMillis: 1_800_000}},
		Retentions:    []platform.Retention{{Name: "recordings", Kinds: []string{"session.end"}, KeepMillis: 7 * 365 * 86_400_000}},
		Verifications: []platform.Verification{{Name: "prod", Environments: env("prod-*"), EveryMillis: 12 * 3_600_000}},
		Issuers:       []platform.Issuer{{Name: "ci", URL: "https://ci.example.com", ClientID: "invar", Audience: []string{"ci"}}},
		Witnesses:     []platform.Witness{{Name: "auditor", URL: "https://witness.example.com", VKey: "auditor.example+7206f003+BB5AIlBoUkeWsmkd/QOLbFC32vzDT5P9TM6iQU4o508f"}},
		Quorum:        1, Auditors: []string{"age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("definition (-want +got):\n%s", diff)
	}
	reads := []string{"platform.hcl", "policy/data/limits.json", "policy/root.rego", "policy/root_test.rego"}
	if diff := cmp.Diff(reads, m.Reads()); diff != "" {
		t.Errorf("Reads (-want +got):\n%s", diff)
	}
	if m.App() != platform.App || !slices.Equal(m.Environments(), m.Environments()) || m.Environments()[0] != platform.Env {
		t.Errorf("app %s goes to %v", m.App(), m.Environments())
	}
}

func TestPlatformBesideAnAppIsNotReadAndSaidSo(t *testing.T) {
	fsys := bankFS()
	fsys["invar.hcl"] = &fstest.MapFile{Data: []byte("app = \"shop\"\nenvironment \"staging\" {}\n")}
	m, _ := parse.Load(fsys)
	diags := m.Validate()
	if m.IsPlatform() || m.App() != "shop" || diags.HasErrors() || len(diags) != 1 || diags[0].Severity != parse.Warning || diags[0].Range.File != "platform.hcl" {
		t.Errorf("app %s: %s", m.App(), diags)
	}
}

func TestOnlyStrongSSHKeysAreTaken(t *testing.T) {
	for _, c := range []struct{ key, want string }{
		{aliceKey, aliceKey},
		{aliceKey + "   alice   at work ", aliceKey + " alice at work"},
		{rsa2048, rsa2048},
		{rsa1024, ""},
		{"from=\"10.0.0.1\" " + aliceKey, ""},
		{aliceKey + "\n" + aliceKey, ""},
		{"ssh-ed25519", ""},
		{"", ""},
	} {
		m, _ := parse.Load(fstest.MapFS{"platform.hcl": {Data: fmt.Appendf(nil, "principal \"alice\" { ssh_keys = [%q] }", c.key)}})
		def, diags := m.Definition()
		if (c.want == "") != diags.HasErrors() {
			t.Errorf("%s: %s", c.key, diags)
		} else if c.want != "" && def.Principals[0].SSHKeys[0] != c.want {
			t.Errorf("%s is taken as %s", c.key, def.Principals[0].SSHKeys[0])
		}
	}
}

// The server, which has the sources alone, gets the same definition as whoever bundled them.
func TestPlatformEvaluatesFromItsSourcesAlone(t *testing.T) {
	m, _ := parse.Load(bankFS())
	want, _ := m.Definition()
	sources := fstest.MapFS{}
	for _, name := range m.Reads() {
		sources[name] = bankFS()[name]
	}
	again, _ := parse.Load(sources)
	got, diags := again.Definition()
	if err := diags.Err(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("definition (-want +got):\n%s", diff)
	}
}

func TestReorderingThePlatformChangesNothing(t *testing.T) {
	m, _ := parse.Load(fstest.MapFS{"platform.hcl": {Data: []byte(`
principal "a" { local_users = ["x", "y"] }
principal "b" { local_users = ["b"] }
role "r" { permissions = ["plan", "apply"] }
grant {
  role         = role.r
  to           = [principal.a]
  environments = ["y", "x"]
}
grant {
  role         = role.r
  to           = [principal.b, principal.a]
  environments = ["z"]
}`)}})
	n, _ := parse.Load(fstest.MapFS{"platform.hcl": {Data: []byte(`
grant {
  environments = ["z"]
  to           = [principal.a, principal.b]
  role         = role.r
}
role "r" { permissions = ["apply", "plan", "apply"] }
grant {
  environments = ["x", "y"]
  role         = role.r
  to           = [principal.a]
}
principal "b" { local_users = ["b"] }
principal "a" { local_users = ["y", "x"] }`)}})
	a, _ := m.Definition()
	b, diags := n.Definition()
	if diff := cmp.Diff(a, b); diff != "" || diags.HasErrors() {
		t.Errorf("%s\n%s", diags, diff)
	}
}

func TestFirstPlatformIsSoundAndLocksNobodyOut(t *testing.T) {
	for _, users := range [][]string{{"root"}, {"alice", "root"}, {"J_Doe", "root"}, {"1000", "root"}, {"...", "%", "root"}, {"a.b", "a_b"}} {
		files := parse.FirstPlatform(users)
		fsys := fstest.MapFS{}
		for name, src := range maps.All(files) {
			fsys[name] = &fstest.MapFile{Data: src}
			if got := parse.Format(src); string(got) != string(src) {
				t.Errorf("%v: it is not formatted:\n%s", users, got)
			}
		}
		m, _ := parse.Load(fsys)
		if d := m.Validate(); len(d) > 0 {
			t.Errorf("%v: %s", users, d)
		}
		def, _ := m.Definition()
		if err := def.Lockout(time.Time{}); err != nil {
			t.Errorf("%v: %v", users, err)
		}
		for _, u := range users {
			if !strings.Contains(string(files["platform.hcl"]), `local_users = ["`+u+`"]`) {
				t.Errorf("%v: %s is nobody:\n%s", users, u, files["platform.hcl"])
			}
		}
	}
}
