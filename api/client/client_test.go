package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/fault"
)

// serve answers every request with h, as an invar server of the level does.
func serve(t *testing.T, level string, h http.HandlerFunc) *client.Client {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if level != "" {
			w.Header().Set(api.HeaderLevel, level)
			w.Header().Set(api.HeaderVersion, "9.9.9")
		}
		h(w, r)
	}))
	t.Cleanup(srv.Close)
	return dial(t, srv.URL, client.Options{Token: "s3cret", Version: "0.1.0"})
}

func dial(t *testing.T, where string, opts client.Options) *client.Client {
	t.Helper()
	c, err := client.New(where, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestNewRefusesWhatIsNoServer(t *testing.T) {
	for _, where := range []string{"", "unix://", "localhost:7373", "ftp://h", "http://", "http://h/path", "http://u:p@h", "http://h?q=1", "http://[::1"} {
		if _, err := client.New(where, client.Options{}); fault.KindOf(err) != fault.Invalid || fault.Hint(err) == "" {
			t.Errorf("%q: got %v, want it invalid, with a hint", where, err)
		}
	}
}

func TestNoServerSaysHowToStartOne(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp.Close()
	for _, where := range []string{"unix://" + dir + "/missing.sock", "unix://" + stale, "http://" + tcp.Addr().String()} {
		_, err := dial(t, where, client.Options{}).Server(t.Context())
		if fault.KindOf(err) != fault.Unavailable || fault.Hint(err) != "start one: invar server" {
			t.Errorf("%s: got %v (kind %q, hint %q)", where, err, fault.KindOf(err), fault.Hint(err))
		}
		if !strings.Contains(err.Error(), where) || strings.Contains(err.Error(), "http://localhost") {
			t.Errorf("got %q, want it to name %s as given", err, where)
		}
	}
}

func TestEveryRequestCarriesVersionAndToken(t *testing.T) {
	var got http.Header
	c := serve(t, "1", func(w http.ResponseWriter, r *http.Request) {
		got = r.Header
		io.WriteString(w, `{"environments": [{"name": "prod", "a_field_of_tomorrow": 1}]}`)
	})
	envs, err := c.Environments(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]api.EnvironmentSummary{{Name: "prod"}}, envs); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for name, want := range map[string]string{"Authorization": "Bearer s3cret", api.HeaderVersion: "0.1.0", api.HeaderLevel: "1"} {
		if got.Get(name) != want {
			t.Errorf("%s: got %q, want %q", name, got.Get(name), want)
		}
	}
}

// The transport goes to registry clients, which follow what a server says to other places.
func TestTokenStaysWithItsServer(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Header.Get("Authorization"))
	}))
	defer other.Close()
	c := serve(t, "1", nil)
	resp, err := (&http.Client{Transport: c.Transport()}).Get(other.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); len(body) != 0 {
		t.Errorf("another server was told %q", body)
	}
}

func TestUnlikelyServers(t *testing.T) {
	tests := []struct {
		name, level string
		answer      http.HandlerFunc
		kind        fault.Kind
		message     string
		hint        string
	}{
		{"not invar", "", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") },
			fault.Invalid, "not as an invar server does", "check --server or INVAR_SERVER"},
		{"level is garbage", "x1", func(w http.ResponseWriter, _ *http.Request) {}, fault.Invalid, `"x1" is not an API level`, ""},
		{"server refuses our level", "1", func(w http.ResponseWriter, _ *http.Request) {
			p := api.ProblemOf(api.Levels{Min: 2, Max: 3}.Check(1, "0.1.0", "9.9.9"))
			w.Header().Set("Content-Type", api.TypeProblem)
			w.WriteHeader(p.Status)
			json.NewEncoder(w).Encode(p)
		}, fault.Invalid, "the client is older than the server", "upgrade the client to invar 9.9.9"},
		{"answer is cut off", "1", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"environments": [`) },
			fault.Invalid, "understanding the answer of GET /v1/environments", "the server runs invar 9.9.9, the client 0.1.0"},
		{"redirect", "1", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://evil.example/", http.StatusFound)
		},
			"", "status 302", ""},
		{"proxy error", "1", func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no upstream", http.StatusBadGateway) },
			fault.Unavailable, "no upstream", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := serve(t, tt.level, tt.answer).Environments(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.message) || fault.KindOf(err) != tt.kind || fault.Hint(err) != tt.hint {
				t.Errorf("got %v (kind %q, hint %q)", err, fault.KindOf(err), fault.Hint(err))
			}
		})
	}
}

// A stream that breaks is taken up again where it ended, and no entry comes twice.
func TestEventsResume(t *testing.T) {
	var asked []string
	connection := 0
	c := serve(t, "1", func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.RawQuery)
		connection++
		w.Header().Set("Content-Type", api.TypeEvents)
		switch connection {
		case 1:
			io.WriteString(w, "event: heartbeat\ndata: {\"size\": 7}\n\n: a comment\n\nevent: entry\nid: 7\ndata: {\"index\": 7}\n\nevent: entry\ndata: {\"ind")
		case 2:
			http.Error(w, "restarting", http.StatusServiceUnavailable)
		case 3:
			io.WriteString(w, "event: entry\ndata: {\"index\": 7}\n\nevent: of-tomorrow\ndata: {}\n\nevent: instance\ndata:{\ndata: \"id\": \"web-1\"}\n\nevent: entry\ndata: {\"index\": 8}\n\n")
		}
	})
	var got []string
	for e, err := range c.Events(t.Context(), client.EventsQuery{Env: "prod"}) {
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case e.Entry != nil:
			got = append(got, fmt.Sprint("entry ", e.Entry.Index))
		case e.Instance != nil:
			got = append(got, "instance "+e.Instance.ID)
		case e.Heartbeat != nil:
			got = append(got, fmt.Sprint("heartbeat ", e.Heartbeat.Size))
		}
		if len(got) == 4 {
			break
		}
	}
	if diff := cmp.Diff([]string{"heartbeat 7", "entry 7", "instance web-1", "entry 8"}, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"env=prod", "env=prod&since=8", "env=prod&since=8"}, asked); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestEventsEndWithTheirContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := serve(t, "1", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "event: heartbeat\ndata: {}\n\n")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	var last error
	for _, err := range c.Events(ctx, client.EventsQuery{}) {
		last = err
		cancel()
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("got %v, want the context's error", last)
	}
}

// What can't get better by waiting is told at once.
func TestEventsFailForGood(t *testing.T) {
	for _, c := range []*client.Client{
		serve(t, "1", func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "no such environment", http.StatusNotFound)
		}),
		dial(t, "unix://"+t.TempDir()+"/none.sock", client.Options{}),
	} {
		events := 0
		for _, err := range c.Events(t.Context(), client.EventsQuery{}) {
			if events++; err == nil {
				t.Error("got an event, want an error")
			}
		}
		if events != 1 {
			t.Errorf("got %d errors, want one", events)
		}
	}
}
