package handler_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os/user"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/api/handler"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// where says which environment a permission is asked for in.
type where int

const (
	nowhere where = iota // of the whole server
	there                // the environment that the request is about
	public               // nobody is asked who he is
)

// authorization is what the API promises of an operation. It is written down a second time here: a change of the gate's own
// table has to be made in both.
type authorization struct {
	permission platform.Permission
	where      where
}

var authorizations = map[string]authorization{
	"get-health": {where: public}, "get-login": {where: public}, "ask-challenge": {where: public}, "log-in": {where: public},
	"get-server": {}, "whoami": {}, "list-environments": {}, "list-changes": {}, "list-drift": {}, "get-events": {},
	"list-tokens": {}, "create-token": {}, "delete-token": {platform.Tokens, nowhere}, // of somebody else's token

	"get-environment": {platform.Read, there}, "get-history": {platform.Read, there}, "get-drift": {platform.Read, there}, "get-logs": {platform.Logs, there},
	"plan": {platform.Plan, there}, "apply": {platform.Apply, there}, "rollback": {platform.Rollback, there}, "plan-rollback": {platform.Rollback, there},
	"list-volumes": {platform.Read, there}, "delete-volume": {platform.Destroy, there}, "destroy": {platform.Destroy, there},
	"fork": {platform.Apply, there}, "plan-promotion": {platform.Plan, there}, // each with read on another environment, named in its body
	"confirm": {platform.Apply, there}, "verify": {platform.Verify, there},
	"get-change": {platform.Read, there}, "approve-change": {platform.Approve, there}, "reject-change": {platform.Approve, there},
	"withdraw-change": {platform.Apply, there}, "apply-change": {platform.Apply, there}, "review-change": {platform.Approve, there},
	"get-release": {platform.Read, there}, "revoke-release": {platform.Revoke, there}, "attest-release": {platform.Verify, there}, "diff-releases": {platform.Read, there},
	"list-secrets": {platform.SecretRead, there}, "get-secret": {platform.SecretRead, there}, "set-secret": {platform.SecretWrite, there},
	"list-entries": {platform.LedgerRead, nowhere}, "get-entry": {platform.LedgerRead, nowhere}, "get-checkpoint": {platform.LedgerRead, nowhere},
	"verify-ledger": {platform.LedgerRead, nowhere}, "get-witnesses": {platform.LedgerRead, nowhere},
	"get-evidence-blob": {platform.Evidence, nowhere}, "get-evidence-checkpoint": {platform.Evidence, nowhere},
	"list-attachments": {platform.Evidence, nowhere}, "record-export": {platform.Evidence, nowhere},
	"list-erasures": {platform.Erase, nowhere}, "request-erasure": {platform.Erase, nowhere},
	"get-erasure": {platform.Erase, nowhere}, "approve-erasure": {platform.Erase, nowhere},
}

// ask is a request to a place that the gate guards.
type ask struct {
	operation    string
	method, path string // with {env}, {change}, {release} and {token} still to be named
	authorization
}

// operations are the requests that reach every operation of the OpenAPI document, and whatever else is mounted.
func operations(w *world) []ask {
	raw, err := w.handler.OpenAPI()
	w.must(err)
	var doc struct {
		Paths map[string]map[string]struct {
			ID string `json:"operationId"`
		}
	}
	w.must(json.Unmarshal(raw, &doc))
	var out []ask
	for path, methods := range doc.Paths {
		for method, op := range methods {
			a, ok := authorizations[op.ID]
			if !ok {
				w.t.Errorf("the table of this test lacks operation %s", op.ID)
			}
			out = append(out, ask{op.ID, strings.ToUpper(method), path, a})
		}
	}
	other := func(name string, a authorization, path string, methods ...string) {
		for _, m := range methods {
			out = append(out, ask{name, m, path, a})
		}
	}
	other("exec", authorization{platform.Exec, there}, "/v1/environments/{env}/exec/web", "GET", "HEAD")
	other("recording", authorization{platform.Evidence, nowhere}, "/v1/recordings/{digest}", "GET", "HEAD")
	other("tiles", authorization{platform.LedgerRead, nowhere}, "/ledger/checkpoint", "GET", "HEAD")
	other("tiles", authorization{platform.LedgerRead, nowhere}, "/ledger/tile/0/000", "GET")
	other("metrics", authorization{platform.ServerRead, nowhere}, "/metrics", "GET", "HEAD")
	other("registry", authorization{platform.Pull, nowhere}, "/v2/", "GET", "HEAD")
	other("registry", authorization{platform.Pull, nowhere}, "/v2/shop/web/manifests/1", "GET", "HEAD")
	other("registry", authorization{platform.Push, nowhere}, "/v2/shop/web/manifests/1", "PUT", "DELETE", "OPTIONS")
	other("registry", authorization{platform.Push, nowhere}, "/v2/shop/web/blobs/uploads/", "POST", "PATCH")
	slices.SortFunc(out, func(a, b ask) int { return strings.Compare(a.path+a.method, b.path+b.method) })
	return out
}

// governedWorld is a server with a head, a change, a token and a release in each of the environments prod and staging, in
// which each permission has a principal with a role of just that one.
type governedWorld struct {
	*world
	clock   atomic.Int64 // milliseconds
	ops     []ask
	change  map[string]string
	release map[string]string
	token   string // id of the administrator's
	secrets map[string]string
}

func nameOf(p platform.Permission) string {
	return map[platform.Permission]string{platform.Anything: "anything", platform.None: "nobody"}[p] + strings.ReplaceAll(strings.Trim(string(p), "*"), ".", "-")
}

// roles is a definition in which principal NAME has the permission of that name in prod, and nothing else.
func roles(t testing.TB) platform.Definition {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	def := platform.Definition{
		Principals: []platform.Principal{
			{Name: "nobody", LocalUsers: []string{"nobody-u"}}, {Name: "grouped", LocalUsers: []string{"grouped-u"}},
			{Name: "former", LocalUsers: []string{"former-u"}}, {Name: "fired", LocalUsers: []string{"fired-u"}},
			{Name: "elsewhere", LocalUsers: []string{"elsewhere-u"}},
			{Name: "zadmin", LocalUsers: []string{me.Username}},
		},
		Groups: []platform.Group{{Name: "inner", Members: []platform.PrincipalName{"grouped"}}, {Name: "outer", Groups: []platform.GroupName{"inner"}}},
		Grants: []platform.Grant{
			{Role: "anything", Principals: []platform.PrincipalName{"zadmin"}, Environments: []platform.Pattern{"*"}},
			{Role: "anything", Principals: []platform.PrincipalName{"former"}, Environments: []platform.Pattern{"*"}, Until: opening.Add(time.Hour)},
			{Role: "anything", Principals: []platform.PrincipalName{"fired"}, Environments: []platform.Pattern{"*"}},
			{Role: "anything", Principals: []platform.PrincipalName{"elsewhere"}, Environments: []platform.Pattern{"staging"}},
			{Role: "read", Groups: []platform.GroupName{"outer"}, Environments: []platform.Pattern{"prod"}},
		},
	}
	for _, p := range append(platform.Permissions(), platform.Anything) {
		name := nameOf(p)
		def.Principals = append(def.Principals, platform.Principal{Name: platform.PrincipalName(name), LocalUsers: []string{name + "-u"}})
		def.Roles = append(def.Roles, platform.Role{Name: platform.RoleName(name), Permissions: []platform.Permission{p}})
		env := platform.Pattern("prod")
		if p.Global() {
			env = "*"
		}
		def.Grants = append(def.Grants, platform.Grant{Role: platform.RoleName(name), Principals: []platform.PrincipalName{platform.PrincipalName(name)}, Environments: []platform.Pattern{env}})
	}
	slices.SortFunc(def.Principals, func(a, b platform.Principal) int { return strings.Compare(string(a.Name), string(b.Name)) })
	slices.SortFunc(def.Roles, func(a, b platform.Role) int { return strings.Compare(string(a.Name), string(b.Name)) })
	if problems := def.Check(); problems != nil {
		t.Fatal(problems)
	}
	return def
}

// opening is when the clock of a governed world begins.
var opening = time.Now().UTC().Truncate(time.Millisecond)

func newGovernedWorld(t *testing.T) *governedWorld {
	t.Helper()
	g := &governedWorld{change: map[string]string{}, release: map[string]string{}, secrets: map[string]string{}}
	passed := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "let in") })
	g.world = buildAt(t, func() time.Time { return opening.Add(time.Duration(g.clock.Load()) * time.Millisecond) },
		func(c *handler.Config) { c.Registry, c.Metrics = passed, passed })
	g.listen()
	g.local = g.dial("unix://"+g.socket, "")
	def := roles(t)
	g.rule(def)
	for _, p := range def.Principals {
		if p.Name != "zadmin" {
			g.secrets[string(p.Name)] = g.secretOf(string(p.Name)+"-u", control.Scope{})
		}
	}
	me := g.caller(localUser(def, "zadmin"))
	tok, _, err := g.control.CreateToken(t.Context(), me, "victim", control.Scope{})
	g.must(err)
	g.token, g.secrets["zadmin"] = string(tok.ID), g.secretOf(localUser(def, "zadmin"), control.Scope{})
	_, g.secrets["scoped"], err = g.control.CreateToken(t.Context(), me, "scoped",
		control.Scope{Permissions: []platform.Permission{platform.Read, platform.LedgerRead}, Environments: []platform.Pattern{"prod"}})
	g.must(err)
	_, g.secrets["brief"], err = g.control.CreateToken(t.Context(), me, "brief", control.Scope{Lifetime: time.Hour})
	g.must(err)
	for _, env := range []string{"prod", "staging"} {
		g.release[env] = string(g.apply(env, "one").Release)
	}
	def.Approvals = []platform.Approval{{Name: "all", Environments: []platform.Pattern{"prod", "staging"}, Require: "1 of principal.approve", ExpiresMillis: 1e9}}
	for i := range def.Principals {
		def.Principals[i].Disabled = def.Principals[i].Name == "fired"
	}
	g.rule(def)
	for i, env := range []string{"prod", "staging"} {
		p, err := g.local.Plan(t.Context(), env, g.bundle(env, "two"))
		g.must(err)
		_, err = g.local.Apply(t.Context(), env, applyOf(p, "why"))
		g.must(err)
		g.change[env] = string(rune('1' + i))
	}
	g.clock.Store(2 * time.Hour.Milliseconds())
	g.ops = operations(g.world)
	return g
}

func localUser(def platform.Definition, name platform.PrincipalName) string {
	p, _ := def.Principal(name)
	return p.LocalUsers[0]
}

// named fills in what a path is about.
func (g *governedWorld) named(path, env string) string {
	path = strings.NewReplacer("{env}", env, "{change}", g.change[env], "{ref}", g.release[env], "{id}", g.token, "{index}", "0", "{component}", "web",
		"{name}", "db", "{digest}", g.release[env]).Replace(path)
	if path == api.PathDiff {
		path += "?a=" + env + "&b=" + g.release[env]
	}
	return path
}

// request asks with a body that every operation refuses to decode, so that nothing that is let in does anything.
func (g *governedWorld) request(method, path, secret string) (int, api.Problem) {
	g.t.Helper()
	body := ""
	if method == http.MethodPost && strings.HasPrefix(path, "/v1/") {
		body = `{"no such field":1}`
	}
	req, err := http.NewRequestWithContext(g.t.Context(), method, "http://"+g.tcp+path, strings.NewReader(body))
	g.must(err)
	req.Header.Set("Content-Type", "application/json")
	if secret != "" {
		req.Header.Set("Authorization", "Bearer "+secret)
	}
	resp, err := http.DefaultTransport.RoundTrip(req) // follows no redirect
	g.must(err)
	defer resp.Body.Close()
	var p api.Problem
	if resp.Header.Get("Content-Type") == api.TypeProblem && method != http.MethodHead {
		g.must(json.NewDecoder(resp.Body).Decode(&p))
	}
	return resp.StatusCode, p
}

// denials are the entries from an index on that say that somebody was refused.
func (g *governedWorld) denials(from int64) []state.Entry {
	g.t.Helper()
	var out []state.Entry
	for e, err := range g.control.Entries(g.t.Context(), from, g.control.State().Size()) {
		g.must(err)
		if e.Entry.Kind() == state.KindAccessDenied {
			out = append(out, e.Entry)
		}
	}
	return out
}

// may is what the test expects of a principal.
type may func(p platform.Permission, env spec.EnvName) bool

func only(has platform.Permission) may {
	return func(p platform.Permission, env spec.EnvName) bool {
		switch {
		case p == platform.None:
			return true
		case (p == platform.Push || p == platform.Pull) && (has == platform.Plan || has == platform.Anything):
			return true // what a plan needs has to get there
		case has == platform.Anything:
			return env == "prod" // its grant is for prod: nothing of the whole server
		}
		return p == has && (p.Global() || env == "prod")
	}
}

// Every operation of the API, and everything else that is served, lets in whoever has the one permission that it needs in the
// environment that it is about, refuses everybody else, and has the ledger know of each refusal.
func TestGateOfAllOperationsByAllRoles(t *testing.T) {
	g := newGovernedWorld(t)
	callers := map[string]may{
		"nobody": only(platform.None), "former": only(platform.None),
		"zadmin":  func(platform.Permission, spec.EnvName) bool { return true },
		"grouped": only(platform.Read),
		"elsewhere": func(p platform.Permission, env spec.EnvName) bool {
			return p == platform.None || env == "staging" || p == platform.Push || p == platform.Pull
		},
		"scoped": func(p platform.Permission, env spec.EnvName) bool {
			return p == platform.None || p == platform.Read && env == "prod"
		},
	}
	for _, p := range append(platform.Permissions(), platform.Anything) {
		callers[nameOf(p)] = only(p)
	}
	asked := 0
	for name, may := range callers {
		for _, op := range g.ops {
			for _, env := range []string{"prod", "staging"} {
				if op.where != there && env != "prod" || op.operation == "get-events" || op.operation == "delete-token" && name == "zadmin" {
					continue
				}
				where := spec.EnvName(env)
				if op.where == nowhere {
					where = ""
				}
				size := g.control.State().Size()
				status, p := g.request(op.method, g.named(op.path, env), g.secrets[name])
				refused := g.denials(size)
				asked++
				if op.where == public || may(op.permission, where) {
					if status == http.StatusUnauthorized || strings.Contains(p.Detail, "lacks the permission") || len(refused) > 0 {
						t.Errorf("%s, %s %s (%s in %q): refused: %d %s", name, op.method, op.path, op.permission, where, status, p.Detail)
					}
					continue
				}
				if status != http.StatusForbidden || op.method != http.MethodHead && !strings.Contains(p.Detail, "lacks the permission "+string(op.permission)) {
					t.Errorf("%s, %s %s (%s in %q): got %d %s, want it refused", name, op.method, op.path, op.permission, where, status, p.Detail)
					continue
				}
				g.wantDenial(name, op, where, refused)
			}
		}
	}
	t.Logf("%d requests by %d callers to %d operations", asked, len(callers), len(g.ops))
	if _, err := g.local.Verify(t.Context()); err != nil {
		t.Errorf("the ledger does not verify: %v", err)
	}
}

// wantDenial checks the entry of a refusal. An equal one within the minute has none of its own.
func (g *governedWorld) wantDenial(name string, op ask, env spec.EnvName, got []state.Entry) {
	g.t.Helper()
	if len(got) == 0 && (op.operation == "registry" || op.operation == "tiles" || op.method == http.MethodHead || op.operation == "exec" || op.operation == "recording" || op.operation == "metrics") {
		return // counted: another method or path of the same operation came before
	}
	if len(got) != 1 {
		g.t.Errorf("%s, %s %s: %d refusals are in the ledger, want one", name, op.method, op.path, len(got))
		return
	}
	e, principal := got[0], name
	if name == "scoped" {
		principal = "zadmin"
	}
	d := e.Data.(state.AccessDenied)
	if d.Operation != op.operation || d.Permission != string(op.permission) || e.Env != env || d.Source != "127.0.0.1" || e.Outcome != "denied" ||
		string(e.Actor.Principal) != principal || e.Actor.Kind != state.ActorToken {
		g.t.Errorf("%s, %s %s: recorded as %+v in %q by %+v", name, op.method, op.path, d, e.Env, e.Actor)
	}
}

// Whoever is let in by nothing gets 401, whatever he asks for, and the ledger has who it was.
func TestNobodyIsLetInByACredentialThatEnded(t *testing.T) {
	g := newGovernedWorld(t)
	for _, c := range []struct{ name, secret string }{
		{"no credential", ""}, {"disabled", g.secrets["fired"]}, {"expired", g.secrets["brief"]}, {"made up", "invar_abc"}, {"not ours", "abc"},
	} {
		g.clock.Add(2 * time.Minute.Milliseconds())
		for _, op := range g.ops {
			size := g.control.State().Size()
			status, _ := g.request(op.method, g.named(op.path, "prod"), c.secret)
			if (status == http.StatusUnauthorized) == (op.where == public) {
				t.Errorf("%s: %s %s: got %d", c.name, op.method, op.path, status)
			}
			for _, e := range g.denials(size) {
				if d := e.Data.(state.AccessDenied); d.Operation != "authenticate" || c.secret == "" || d.Permission != "" {
					t.Errorf("%s: recorded %+v", c.name, d)
				}
			}
		}
	}
	var by []string
	for _, e := range g.denials(0) {
		by = append(by, e.Actor.Who())
	}
	if diff := cmp.Diff([]string{"fired", "zadmin", "unknown:127.0.0.1"}, by); diff != "" {
		t.Errorf("who was refused; what comes without any credential is no attempt (-want +got):\n%s", diff)
	}
}

// Equal refusals within a minute are one entry, and then one with how many more there were; also when the server stops.
func TestEqualRefusalsAreCounted(t *testing.T) {
	g := newGovernedWorld(t)
	size := g.control.State().Size()
	for range 5 {
		g.request("GET", "/v1/environments/prod", g.secrets["nobody"])
	}
	g.request("GET", "/v1/environments/staging", g.secrets["nobody"])
	g.request("GET", "/v1/environments/prod", g.secrets["former"])
	type counted struct {
		Env      spec.EnvName
		By       platform.PrincipalName
		Repeated int
	}
	list := func() (out []counted) {
		for _, e := range g.denials(size) {
			out = append(out, counted{e.Env, e.Actor.Principal, e.Data.(state.AccessDenied).Repeated})
		}
		return out
	}
	want := []counted{{"prod", "nobody", 0}, {"staging", "nobody", 0}, {"prod", "former", 0}}
	if diff := cmp.Diff(want, list()); diff != "" {
		t.Errorf("at first (-want +got):\n%s", diff)
	}
	g.stop(t.Context())
	if diff := cmp.Diff(append(want, counted{"prod", "nobody", 4}), list()); diff != "" {
		t.Errorf("when the server stopped (-want +got):\n%s", diff)
	}
}

// What is asked for is anybody's text; no spelling of it keeps a refusal out of the ledger.
func TestRefusalOfAnythingIsRecorded(t *testing.T) {
	g := newGovernedWorld(t)
	for _, path := range []string{
		"/v1/environments/" + strings.Repeat("a", 40_000), "/v1/environments/%ff%fe", "/v1/environments/%00", "/v1/environments/prod%2f..", "/v1/environments/*", "/v1/environments/PROD",
	} {
		size := g.control.State().Size()
		status, p := g.request("GET", path, g.secrets["anything"])
		if status != http.StatusForbidden || len(g.denials(size)) != 1 {
			t.Errorf("%.60s: %d %.100s and %d entries, want it refused and recorded", path, status, p.Detail, len(g.denials(size)))
		}
	}
}

// No spelling of a path or method passes the gate.
func TestNoSpellingPassesTheGate(t *testing.T) {
	g := newGovernedWorld(t)
	for _, path := range []string{
		"//v1/environments/prod", "/v1//environments/prod", "/v1/environments/prod/", "/v1/environments//prod", "/v1/./environments/prod",
		"/healthz/../v1/environments/prod", "/docs/../v1/environments/prod/history", "/v1/login/../environments/prod", "/v1%2fenvironments%2fprod", "/v1/environments/%70rod",
		"/v1/environments/prod%2Fhistory", "/v1/environments/prod?env=staging", "/v1/environments/staging%2f..%2fprod", "/openapi.json/../ledger/checkpoint",
		"/ledger/./checkpoint", "//ledger/checkpoint", "/ledger/%63heckpoint", "/v2/../metrics", "//metrics", "/metrics/", "/v2//", "/v2/../v1/environments/prod",
	} {
		for _, method := range []string{"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "get", "BREW"} {
			for _, name := range []string{"nobody", ""} {
				status, _ := g.request(method, path, g.secrets[name])
				switch status {
				case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed:
				case http.StatusMovedPermanently, http.StatusTemporaryRedirect, http.StatusPermanentRedirect: // to a path that is asked for anew
				default:
					t.Errorf("%s %s by %q: got %d", method, path, name, status)
				}
			}
		}
	}
}

// Lists have what the caller may see, and nothing else.
func TestListsShowWhatTheCallerMaySee(t *testing.T) {
	g, ctx := newGovernedWorld(t), t.Context()
	for name, want := range map[string][]string{"nobody": nil, "read": {"prod"}, "grouped": {"prod"}, "elsewhere": {"staging"}, "scoped": {"prod"},
		"former": nil, "logs": nil, "anything": {"prod"}, "zadmin": {"platform", "prod", "staging"}} {
		c := g.dial("http://"+g.tcp, g.secrets[name])
		envs, err := c.Environments(ctx)
		g.must(err)
		var got, changed []string
		for _, e := range envs {
			got = append(got, e.Name)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: environments (-want +got):\n%s", name, diff)
		}
		changes, err := c.Changes(ctx, "", true)
		g.must(err)
		for _, c := range changes {
			changed = append(changed, c.Env)
		}
		slices.Sort(changed)
		if diff := cmp.Diff(slices.DeleteFunc(want, func(e string) bool { return e == "platform" }), changed); diff != "" {
			t.Errorf("%s: changes (-want +got):\n%s", name, diff)
		}
		tokens, err := c.Tokens(ctx)
		g.must(err)
		for _, tok := range tokens {
			if principal := strings.Replace(name, "scoped", "zadmin", 1); tok.Principal != principal && principal != "zadmin" {
				t.Errorf("%s sees a token of %s", name, tok.Principal)
			}
		}
	}
}

// The log of an instance is its environment's: who may read those of one can't name an instance of another.
func TestLogOfAnotherEnvironmentsInstanceIsRefused(t *testing.T) {
	g := newGovernedWorld(t)
	list, err := g.host.List(t.Context())
	g.must(err)
	for _, o := range list {
		own := "/v1/environments/" + string(o.Identity.Env) + "/logs/web?instance=" + string(o.Identity.ID)
		if status, p := g.request("GET", own, g.secrets["zadmin"]); status != http.StatusOK {
			t.Errorf("%s: got %d %s", own, status, p.Detail)
		}
		other := map[spec.EnvName]string{"prod": "staging", "staging": "prod"}[o.Identity.Env]
		path := "/v1/environments/" + other + "/logs/web?instance=" + string(o.Identity.ID)
		if status, p := g.request("GET", path, g.secrets["zadmin"]); status != http.StatusNotFound {
			t.Errorf("%s: got %d %s, want 404", path, status, p.Detail)
		}
	}
}

// The log of an instance that is gone can be read in its environment, and in no other.
func TestLogOfAnInstanceThatIsGone(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.apply("staging", "one")
	w.apply("prod", "one")
	list, err := w.host.List(ctx)
	w.must(err)
	id := list[0].Identity.ID
	mine, other := "staging", "prod"
	if list[0].Identity.Env == "prod" {
		mine, other = other, mine
	}
	w.apply(mine, "two")
	if e, _ := w.control.State().Environment(spec.EnvName(mine)); e.Instances[id].ID != "" {
		t.Fatal("the instance is still there")
	}
	var out strings.Builder
	w.must(w.local.Logs(ctx, client.LogsQuery{Env: mine, Component: "web", Instance: string(id), Tail: -1}, &out))
	if !strings.Contains(out.String(), "started") {
		t.Errorf("got %q", out.String())
	}
	if err := w.local.Logs(ctx, client.LogsQuery{Env: other, Component: "web", Instance: string(id), Tail: -1}, &out); !errors.Is(err, fault.NotFound) {
		t.Errorf("in another environment: %v, want not found", err)
	}
}

// A stream ends when its reader may not read any more: his token is revoked, or a definition takes his grant or disables him.
func TestStreamsEndWithThePermission(t *testing.T) {
	for _, ends := range []string{"token revoked", "grant taken", "disabled"} {
		for _, path := range []string{"/v1/environments/prod/logs/web?follow=true", "/v1/events"} {
			if ends == "grant taken" && path == "/v1/events" {
				continue // which shows what one may see, and so nothing from then on
			}
			t.Run(ends+path, func(t *testing.T) {
				g := newGovernedWorld(t)
				tok, secret, err := g.control.CreateToken(t.Context(), g.caller("logs-u"), "stream", control.Scope{})
				g.must(err)
				req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+g.tcp+path, nil)
				g.must(err)
				req.Header.Set("Authorization", "Bearer "+secret)
				resp, err := http.DefaultTransport.RoundTrip(req)
				g.must(err)
				defer resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					t.Fatalf("got %d", resp.StatusCode)
				}
				switch def := roles(t); ends {
				case "token revoked":
					g.must(g.control.RevokeToken(t.Context(), control.Actor{Kind: state.ActorSystem, Name: "test"}, tok.ID))
				case "grant taken":
					def.Grants = slices.DeleteFunc(def.Grants, func(g platform.Grant) bool { return g.Role == "logs" })
					g.rule(def)
				case "disabled":
					for i := range def.Principals {
						def.Principals[i].Disabled = def.Principals[i].Name == "logs"
					}
					g.rule(def)
				}
				ended := make(chan struct{})
				go func() { defer close(ended); io.Copy(io.Discard, resp.Body) }()
				select {
				case <-ended:
				case <-time.After(20 * time.Second):
					t.Error("the stream goes on")
				}
			})
		}
	}
}

// A limited token is good for what it says: it revokes none but itself, and makes none.
func TestLimitedTokenCanNotTouchOthers(t *testing.T) {
	g, ctx := newGovernedWorld(t), t.Context()
	c := g.dial("http://"+g.tcp, g.secrets["scoped"])
	if err := c.DeleteToken(ctx, g.token); !errors.Is(err, fault.Denied) {
		t.Errorf("revoking another of its principal: %v, want it denied", err)
	}
	if _, err := c.CreateToken(ctx, api.TokenRequest{Name: "more"}); !errors.Is(err, fault.Denied) {
		t.Errorf("making one: %v, want it denied", err)
	}
	for tok := range g.control.State().Tokens() {
		if tok.Name == "scoped" {
			g.must(c.DeleteToken(ctx, string(tok.ID)))
		}
	}
}
