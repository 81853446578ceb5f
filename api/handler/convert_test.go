package handler

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

func TestURLOfRoute(t *testing.T) {
	g := gateway.Status{HTTP: "127.0.0.1:8080", HTTPS: "127.0.0.1:443"}
	tests := []struct {
		route release.Route
		g     gateway.Status
		want  string
	}{
		{release.Route{Host: "shop.localhost", Path: "/"}, g, "http://shop.localhost:8080/"},
		{release.Route{Host: "shop.localhost", Path: "/api", TLS: "internal"}, g, "https://shop.localhost/api"},
		{release.Route{Host: "shop.localhost"}, gateway.Status{}, "http://shop.localhost/"},
		{release.Route{Host: "shop.localhost"}, gateway.Status{HTTP: "[::]:80"}, "http://shop.localhost/"},
		{release.Route{TCP: "127.0.0.1:5432"}, g, "tcp://127.0.0.1:5432"},
	}
	for _, tt := range tests {
		if got := urlOf(tt.route, tt.g); got != tt.want {
			t.Errorf("%+v: got %s, want %s", tt.route, got, tt.want)
		}
	}
}

// What the ledger says and what the host sees become one instance.
func TestInstanceJoinsLedgerAndHost(t *testing.T) {
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	id := instance.Identity{ID: "web-aaaaaaaaaa", Env: "prod", Component: "web", Digest: "sha256:1", Release: "sha256:2", Generation: 3}
	env := state.Environment{Environment: deploy.Environment{
		Head:    deploy.Generation{Digests: map[spec.ComponentName]digest.Digest{"web": "sha256:1"}},
		Trouble: map[digest.Digest]deploy.Trouble{"sha256:1": {Count: 2}},
	}}
	base := api.Instance{
		ID: "web-aaaaaaaaaa", Env: "prod", Component: "web", Digest: "sha256:1", Release: "sha256:2", Generation: 3,
		Head: true, Restarts: 2, CreatedAt: &at, AgeSeconds: 60,
	}
	with := func(change func(*api.Instance)) api.Instance {
		i := base
		change(&i)
		return i
	}
	tests := map[string]struct {
		ledger deploy.Instance
		host   instance.Observation
		want   api.Instance
	}{
		"not made yet": {deploy.Instance{}, instance.Observation{},
			with(func(i *api.Instance) { i.Phase, i.State, i.Health = "created", "absent", "unknown" })},
		"running": {deploy.Instance{}, instance.Observation{State: instance.Running, Health: instance.Passing, PID: 7, StartedAt: at},
			with(func(i *api.Instance) {
				i.Phase, i.State, i.Health, i.PID, i.StartedAt = "started", "running", "passing", 7, &at
			})},
		"retiring": {deploy.Instance{RetiringAt: at, Cause: "replaced"}, instance.Observation{State: instance.Running, Health: instance.Passing, StartedAt: at},
			with(func(i *api.Instance) {
				i.Phase, i.State, i.Health, i.Detail, i.StartedAt = "retiring", "running", "passing", "replaced", &at
			})},
		"out of memory": {deploy.Instance{}, instance.Observation{State: instance.Exited, OOM: true, ExitCode: 137, StartedAt: at, ExitedAt: at, Detail: "out of memory"},
			with(func(i *api.Instance) {
				i.Phase, i.State, i.Health, i.Detail, i.StartedAt = "started", "exited", "unknown", "out of memory", &at
				i.Exit = &api.Exit{Code: 137, OOM: true, At: &at}
			})},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.ledger.Identity, tt.ledger.CreatedAt = id, at
			if diff := cmp.Diff(tt.want, instanceOf(env, tt.ledger, tt.host, at.Add(time.Minute))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// However a log is cut into writes, its lines come out whole, each with the prefix.
func TestLinesStayWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lines := rapid.SliceOf(rapid.StringMatching(`[a-z ]{0,20}`)).Draw(t, "lines")
		ended := rapid.Bool().Draw(t, "ended")
		text, want := strings.Join(lines, "\n"), ""
		if ended && len(lines) > 0 {
			text += "\n"
		}
		for l := range strings.Lines(text) {
			want += "web-1 " + strings.TrimSuffix(l, "\n") + "\n"
		}
		var out bytes.Buffer
		p := &linePrefixer{w: &out, prefix: "web-1 "}
		for rest := text; rest != ""; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "cut")
			if _, err := io.WriteString(p, rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := p.Close(); err != nil || out.String() != want {
			t.Fatalf("%q: got %q, %v, want %q", text, out.String(), err, want)
		}
	})
}

// A line without an end is cut rather than kept for ever.
func TestEndlessLineIsCut(t *testing.T) {
	var out bytes.Buffer
	p := &linePrefixer{w: &out, prefix: "x "}
	chunk := bytes.Repeat([]byte("a"), 1000)
	for range 200 {
		if _, err := p.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	if len(p.rest) > maxLineBytes || out.Len() < 100_000 {
		t.Errorf("%d bytes are kept, %d written", len(p.rest), out.Len())
	}
}
