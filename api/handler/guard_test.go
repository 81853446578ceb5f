package handler_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/user"
	"reflect"
	"strings"
	"testing"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/api/handler"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity"
)

// over asks over TCP with these headers, and returns the answer with its problem, if it is one.
func (w *world) over(method, path string, body string, header ...string) (*http.Response, api.Problem) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, "http://"+w.tcp+path, strings.NewReader(body))
	w.must(err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
	}
	resp, err := http.DefaultClient.Do(req)
	w.must(err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	w.must(err)
	var p api.Problem
	if resp.Header.Get("Content-Type") == api.TypeProblem {
		w.must(json.Unmarshal(raw, &p))
	}
	return resp, p
}

func (w *world) token(name string) string {
	w.t.Helper()
	t, err := w.local.CreateToken(w.t.Context(), api.TokenRequest{Name: name})
	w.must(err)
	return t.Secret
}

// The kernel says who is at the other end of the unix socket.
func TestLocalCallerIsKnownByPeerCredentials(t *testing.T) {
	w := newWorld(t)
	srv, err := w.local.Server(t.Context())
	w.must(err)
	me, err := user.Current()
	w.must(err)
	if want := "local:" + me.Username; srv.Actor != want {
		t.Errorf("the server takes us for %q, want %q", srv.Actor, want)
	}
	if srv.Version != version || srv.API != (api.Levels{Min: 1, Max: 1}) || srv.Gateway.PID != 42 || srv.Ledger.Origin != "invar.test/ledger" {
		t.Errorf("got %+v", srv)
	}
}

// Another user of the machine is refused, whoever owns the socket.
func TestAnotherUserIsRefused(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to become another user; CI has it")
	}
	w := newWorld(t)
	status, p := w.as(65534)
	if status != http.StatusForbidden || p.Type != "urn:invar:fault:denied" || p.Hint == "" {
		t.Errorf("got %d, %+v; want it denied, with a hint", status, p)
	}
}

func TestTCPNeedsAToken(t *testing.T) {
	w := newWorld(t, func(c *handler.Config) {
		c.Registry = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "registry") })
		c.Metrics = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "metrics") })
	})
	secret := w.token("ci")
	for _, path := range []string{api.PathHealth, api.PathOpenAPI, api.PathDocs} {
		if resp, _ := w.over("GET", path, ""); resp.StatusCode != http.StatusOK {
			t.Errorf("%s without a token: got %d, want 200", path, resp.StatusCode)
		}
	}
	for _, path := range []string{api.PathServer, api.PathEnvironments, api.PathEvents, api.PathMetrics, "/v2/", "/ledger/checkpoint", "/", "/docs/x", "/healthz/../v1/server"} {
		for _, header := range []string{"", "Bearer", "Bearer nonsense", "Bearer " + secret + "x", "Basic !!!", "Digest " + secret} {
			resp, p := w.over("GET", path, "", "Authorization", header)
			if resp.StatusCode != http.StatusUnauthorized || p.Hint == "" || resp.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s with %q: got %d, %+v, want 401 and how to authenticate", path, header, resp.StatusCode, p)
			}
		}
	}
	for _, path := range []string{api.PathServer, api.PathMetrics, "/v2/", "/ledger/checkpoint"} {
		if resp, p := w.over("GET", path, "", "Authorization", "Bearer "+secret); resp.StatusCode != http.StatusOK {
			t.Errorf("%s with a token: got %d, %+v", path, resp.StatusCode, p)
		}
	}
	if resp, _ := w.over("GET", "/v2/", ""); !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), "Basic ") {
		t.Errorf("the registry asks for %q: registry clients need Basic", resp.Header.Get("WWW-Authenticate"))
	}
}

// A token says who its holder is, and is worthless once it is revoked.
func TestTokenLifeAndActor(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	made, err := w.local.CreateToken(ctx, api.TokenRequest{Name: "ci"})
	w.must(err)
	remote := w.dial("http://"+w.tcp, made.Secret)
	srv, err := remote.Server(ctx)
	w.must(err)
	if srv.Actor != "token:ci" {
		t.Errorf("got actor %q, want token:ci", srv.Actor)
	}
	list, err := remote.Tokens(ctx)
	if err != nil || len(list) != 1 || !reflect.DeepEqual(list[0], made.Token) {
		t.Errorf("tokens: got %+v, %v, want %+v", list, err, made.Token)
	}
	w.must(remote.DeleteToken(ctx, made.ID))
	if _, err := remote.Server(ctx); fault.KindOf(err) != fault.Denied {
		t.Errorf("with a revoked token: got %v, want it denied", err)
	}
	if list, err := w.local.Tokens(ctx); err != nil || len(list) != 0 {
		t.Errorf("tokens: got %+v, %v, want none", list, err)
	}
	entries, err := w.local.Entries(ctx, client.EntriesQuery{Kind: "token."})
	w.must(err)
	if len(entries.Entries) != 2 || entries.Entries[1].Actor != "token:ci" {
		t.Errorf("ledger: got %+v, want the token made, and revoked by its holder", entries.Entries)
	}
	for _, e := range entries.Entries {
		if strings.Contains(string(e.Data), made.Secret) {
			t.Error("the ledger holds the secret")
		}
	}
}

// A registry client sends a token as the password of basic authentication.
func TestRegistryTakesTokenAsPassword(t *testing.T) {
	w := newWorld(t, func(c *handler.Config) {
		c.Registry = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusOK) })
	})
	req := httptest.NewRequest("GET", "/v2/", nil)
	req.SetBasicAuth("anyone", w.token("ci"))
	if resp, p := w.over("GET", "/v2/", "", "Authorization", req.Header.Get("Authorization")); resp.StatusCode != http.StatusOK {
		t.Errorf("got %d, %+v", resp.StatusCode, p)
	}
}

// A web page can make a browser send requests: under a name of its own, or from elsewhere.
func TestWebPagesAreRefused(t *testing.T) {
	w := newWorld(t, func(c *handler.Config) { c.Names = []string{"invar.example.com"} })
	secret := w.token("ci")
	tests := []struct {
		header []string
		status int
	}{
		{[]string{"Host", "evil.example"}, 403},
		{[]string{"Host", "evil.example:7373"}, 403},
		{[]string{"Host", "localhost.evil.example"}, 403},
		{[]string{"Host", "localhost:7373"}, 200},
		{[]string{"Host", "LOCALHOST."}, 200},
		{[]string{"Host", "192.0.2.7:7373"}, 200},
		{[]string{"Host", "[::1]:7373"}, 200},
		{[]string{"Host", "invar.example.com"}, 200},
		{[]string{"Sec-Fetch-Site", "cross-site"}, 403},
		{[]string{"Sec-Fetch-Site", "same-origin"}, 200},
		{[]string{"Origin", "https://evil.example"}, 403},
		{[]string{"Origin", "null"}, 403},
	}
	for _, tt := range tests {
		header := append([]string{"Authorization", "Bearer " + secret}, tt.header...)
		if resp, p := w.over("POST", api.PathVerify, "", header...); resp.StatusCode != tt.status {
			t.Errorf("%v: got %d, %+v, want %d", tt.header, resp.StatusCode, p, tt.status)
		}
	}
}

// A client that is older or newer than the server is told so, whatever it asks, and told whom to upgrade.
func TestVersionSkew(t *testing.T) {
	w := newWorld(t)
	secret := w.token("ci")
	tests := []struct {
		level, detail, hint string
		status              int
	}{
		{"", "", "", 200},
		{"1", "", "", 200},
		{"2", "the client is newer than the server", "upgrade the server to invar 9.0.0, or use the client of invar 1.2.3", 400},
		{"0", "is not an API level", "", 400},
		{"latest", "is not an API level", "", 400},
	}
	for _, tt := range tests {
		resp, p := w.over("GET", api.PathServer, "", "Authorization", "Bearer "+secret, api.HeaderLevel, tt.level, api.HeaderVersion, "9.0.0")
		if resp.StatusCode != tt.status || !strings.Contains(p.Detail, tt.detail) || p.Hint != tt.hint {
			t.Errorf("level %q: got %d, %+v", tt.level, resp.StatusCode, p)
		}
		if resp.Header.Get(api.HeaderLevel) != "1" || resp.Header.Get(api.HeaderVersion) != version {
			t.Errorf("level %q: the server says level %q, version %q", tt.level, resp.Header.Get(api.HeaderLevel), resp.Header.Get(api.HeaderVersion))
		}
	}
	// A body that this server can't understand must not hide that the client is newer.
	_, p := w.over("POST", "/v1/environments/staging/apply", `{"of_tomorrow": true}`, "Authorization", "Bearer "+secret, api.HeaderLevel, "2", api.HeaderVersion, "9.0.0")
	if !strings.Contains(p.Detail, "the client is newer than the server") {
		t.Errorf("got %+v", p)
	}
}

func TestMalformedRequestsAreInvalid(t *testing.T) {
	w := newWorld(t)
	secret := w.token("ci")
	digest := `"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"`
	good := fmt.Sprintf(`{"bundle": %s, "release": %s, "base_generation": 0, "plan_digest": %s`, digest, digest, digest)
	tests := []struct {
		name, method, path, body string
		status                   int
		want                     string
	}{
		{"no body", "POST", "/v1/environments/staging/apply", "", 400, "request body is required"},
		{"not JSON", "POST", "/v1/environments/staging/apply", "{", 400, "body"},
		{"trailing data", "POST", "/v1/environments/staging/apply", good + "} {}", 400, "body"},
		{"unknown field", "POST", "/v1/environments/staging/apply", good + `, "force": true}`, 400, "body.force: unexpected property"},
		{"missing field", "POST", "/v1/environments/staging/apply", `{}`, 400, "plan_digest"},
		{"wrong type", "POST", "/v1/environments/staging/rollback", `{"to": "three"}`, 400, "body.to"},
		{"negative", "POST", "/v1/environments/staging/rollback", `{"to": -1}`, 400, "body.to"},
		{"bad name", "GET", "/v1/environments/Staging", "", 400, "path.env"},
		{"unknown parameter", "GET", "/v1/ledger/entries?form=1", "", 400, "query.form: unknown query parameter"},
		{"parameter of wrong type", "GET", "/v1/ledger/entries?from=x", "", 400, "query.from"},
		{"missing parameter", "GET", "/v1/diff?a=staging", "", 400, "query.b"},
		{"index beyond 64 bits", "GET", "/v1/ledger/entries/99999999999999999999", "", 400, "path.index"},
		{"large body", "POST", "/v1/environments/staging/apply", `{"reason": "` + strings.Repeat("x", 2<<20) + `"}`, 413, ""},
		{"no such path", "GET", "/v1/nothing", "", 404, "there is nothing at /v1/nothing"},
		{"no such method", "PATCH", "/v1/environments", "", 405, "PATCH is not an operation of /v1/environments"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp, p := w.over(tt.method, tt.path, tt.body, "Authorization", "Bearer "+secret, "Content-Type", "application/json")
			if resp.StatusCode != tt.status || !strings.Contains(p.Error(), tt.want) || p.Title == "" || p.Type == "" {
				t.Errorf("got %d, %+v, want %d with %q", resp.StatusCode, p, tt.status, tt.want)
			}
		})
	}
	if got := w.control.State().Size(); got != 3 { // genesis, start, the token
		t.Errorf("the ledger has %d entries, want 3: nothing happened", got)
	}
}

// Whatever bytes come as a body, the answer is a problem and never a failure of the server.
func FuzzRequestBodies(f *testing.F) {
	for _, s := range []string{"", "{}", "null", "[]", `{"to": 1}`, `{"to": 1e400}`, `{"bundle": "sha256:00"}`, "\xff", `{"reason": "\ud800"}`, strings.Repeat("[", 10000)} {
		f.Add([]byte(s))
	}
	h := fuzzHandler(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, op := range []string{"plan", "apply", "rollback", "destroy"} {
			req := httptest.NewRequest("POST", "/v1/environments/nowhere/"+op, strings.NewReader(string(body)))
			req.Host = "127.0.0.1"
			req = req.WithContext(asPeer(req.Context()))
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, req)
			if rec.Code < 400 || rec.Code >= 500 || rec.Header().Get("Content-Type") != api.TypeProblem {
				t.Errorf("%s %q: got %d, %s", op, body, rec.Code, rec.Body)
			}
		}
	})
}

// Whatever comes in the URL and in headers, the same.
func FuzzParameters(f *testing.F) {
	f.Add("/v1/ledger/entries?from=0&to=1", "1", "5")
	f.Add("/v1/diff?a=x@1&b=sha256:00", "1", "")
	f.Add("/v1/releases/a%2f..%2fb", "-1", "x")
	f.Add("/v1/environments/x/logs/web?tail=-2", "99999999999999999999", "")
	f.Add("/ledger/tile/0/x001/000.p/9", "", "")
	h := fuzzHandler(f)
	f.Fuzz(func(t *testing.T, url, level, last string) {
		req, err := http.NewRequest("GET", "http://127.0.0.1/"+strings.TrimPrefix(url, "/"), nil)
		if err != nil || strings.HasPrefix(req.URL.Path, api.PathEvents) {
			return // not a URL, or one whose answer does not end
		}
		req.Header.Set(api.HeaderLevel, level)
		req.Header.Set("Last-Event-ID", last)
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, req.WithContext(asPeer(req.Context())))
		if rec.Code >= 500 {
			t.Errorf("%q: got %d, %s", url, rec.Code, rec.Body)
		}
	})
}

// A provider that is down is no fault of the token's bearer.
func TestTokensOfProvidersAreDeniedOrUnavailableWithTheirReason(t *testing.T) {
	answers := map[string]error{
		"a.b.denied": fault.Errorf(fault.Denied, "token: it expired"),
		"a.b.down":   fault.Errorf(fault.Unavailable, "asking https://id.example.com for its keys: refused"),
		"a.b.nobody": nil,
	}
	w := newWorld(t, func(c *handler.Config) {
		c.OIDC = func(_ context.Context, token string) (identity.Identity, error) {
			return identity.Identity{Method: identity.OIDC, Name: "mallory", Issuer: "https://id.example.com"}, answers[token]
		}
	})
	for token, want := range map[string]struct {
		status int
		detail string
	}{
		"a.b.denied": {http.StatusUnauthorized, "it expired"},
		"a.b.down":   {http.StatusServiceUnavailable, "asking https://id.example.com for its keys"},
		"a.b.nobody": {http.StatusUnauthorized, "oidc:mallory is no principal"},
		"a.b":        {http.StatusUnauthorized, "the token is not valid"},
	} {
		resp, p := w.over("GET", api.PathServer, "", "Authorization", "Bearer "+token)
		if resp.StatusCode != want.status || !strings.Contains(p.Detail, want.detail) {
			t.Errorf("%s: got %d, %q; want %d, %q", token, resp.StatusCode, p.Detail, want.status, want.detail)
		}
	}
}
