package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
)

func named(name string) digest.Digest { return digest.Of([]byte(name)) }

// example is an environment in the middle of a canary.
func example(now time.Time) api.Environment {
	before, after := named("before"), named("after")
	inst := func(id string, d digest.Digest, generation int, head bool, phase, state, health string) api.Instance {
		return api.Instance{ID: id, Component: "web", Digest: d, Generation: generation, Head: head, Phase: phase, State: state, Health: health, AgeSeconds: 90}
	}
	failing := inst("web-ccc", after, 2, true, "started", "running", "failing")
	failing.Detail = "GET /healthz: 503"
	return api.Environment{
		EnvironmentSummary: api.EnvironmentSummary{Name: "prod", App: "shop", Generation: 2, Release: named("release"), State: api.Rolling,
			By: "local:alice", Reason: "autumn sale", At: now.Add(-90 * time.Second), Wanted: 2, Healthy: 1, Total: 4},
		Components: []api.Component{{Name: "web", Versions: []api.Version{
			{Digest: after, Head: true, Percent: 10, Wanted: 2, Healthy: 1, Total: 2, Trouble: "GET /healthz: 503"},
			{Digest: before, Percent: 90, Healthy: 1, Total: 2}}}},
		Instances: []api.Instance{
			inst("web-aaa", before, 1, false, "started", "running", "passing"),
			inst("web-bbb", before, 1, false, "retiring", "running", "passing"),
			failing,
			inst("web-ddd", after, 2, true, "started", "running", "passing"),
			inst("web-eee", before, 1, false, "gone", "absent", "unknown"),
		},
		Routes: []api.Route{{Name: "shop", URL: "http://shop.localhost:8080/", Component: "web", Port: "http", Healthy: true}},
	}
}

func examplePlan() api.Plan {
	return api.Plan{Env: "prod", App: "shop", Release: named("release"), BaseGeneration: 1, Adds: 1, Replaces: 1, Removes: 1, Changes: []api.Change{
		{Action: api.ActionAdd, Kind: "component", Name: "catalog", Starts: 1},
		{Action: api.ActionReplace, Kind: "component", Name: "web", Starts: 2, Stops: 3, How: "start beside, then retire", Causes: []api.Difference{
			{Path: "env LEVEL", Before: `"info"`, After: `"warn"`},
			{Path: "env DEBUG", Before: `"1"`, Removed: true},
			{Path: "port admin", After: "9090", Added: true},
			{Path: "replicas", Before: "3", After: "2"},
			{Path: "image"},
			{Path: "file /etc/web.json", Lines: []string{" {", `-  "a": 1`, `+  "a": 2`, " }"}},
		}},
		{Action: api.ActionRemove, Kind: "component", Name: "old", Stops: 1},
	}}
}

// What people read, byte by byte; `go test ./cli -update` writes it again.
func TestRendering(t *testing.T) {
	env := example(time.Now())
	for name, render := range map[string]func(io.Writer){
		"environment": func(w io.Writer) { renderEnvironment(w, style{}, env) },
		"destroyed": func(w io.Writer) {
			renderEnvironment(w, style{}, api.Environment{EnvironmentSummary: api.EnvironmentSummary{Name: "prod", Generation: 3, State: api.Completed, By: "local:alice", At: time.Now().Add(-time.Hour)}})
		},
		"versions": func(w io.Writer) { renderVersions(w, env) },
		"plan":     func(w io.Writer) { new(app).renderPlan(w, style{}, examplePlan()) },
		"nothing": func(w io.Writer) {
			new(app).renderPlan(w, style{}, api.Plan{Env: "prod", BaseGeneration: 3, BaseRelease: named("release")})
		},
		"diff": func(w io.Writer) {
			renderDiff(w, style{}, api.Diff{A: named("a"), B: named("b"), Differences: []api.Difference{
				{Component: "web", Path: "env LEVEL", Before: `"info"`, After: `"warn"`}, {Component: "web", Path: "env DEBUG", Removed: true, Before: `"1"`},
				{Component: "catalog", Path: "replicas", Before: "1", After: "2"}}})
		},
		"same": func(w io.Writer) { renderDiff(w, style{}, api.Diff{A: named("a"), B: named("a")}) },
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			render(&b)
			upToDate(t, "testdata/"+name+".txt", b.Bytes())
		})
	}
}

// Every entry that a rollout makes reads as a sentence; what is not known is called by its kind.
func TestDescribe(t *testing.T) {
	for _, tt := range []struct{ kind, data, want string }{
		{"change.apply", `{"generation":2,"base":1,"release":"sha256:0123456789abcdef"}`, "apply    generation 2, release 0123456789ab"},
		{"change.rollback", `{"generation":3,"to":1,"release":"sha256:0123456789abcdef"}`, "rollback generation 3, release 0123456789ab of generation 1"},
		{"change.destroy", `{"generation":4}`, "destroy  generation 4"},
		{"change.destroy", `{"generation":4,"volumes":true}`, "destroy  generation 4, with its volumes"},
		{"instance.create", `{"instance":{"id":"web-a"},"cause":"healing"}`, "start    web-a: healing"},
		{"instance.healthy", `{"id":"web-a"}`, "healthy  web-a"},
		{"instance.taint", `{"id":"web-a","by":"foreign process","cause":"process 7 (sh, user 0) in its namespaces net"}`, "tainted  web-a: process 7 (sh, user 0) in its namespaces net"},
		{"instance.exit", `{"id":"web-a","exit_code":7}`, "exited   web-a: status 7"},
		{"instance.exit", `{"id":"web-a","exit_code":137,"oom":true}`, "exited   web-a: out of memory (status 137)"},
		{"traffic.shift", `{"component":"web","shares":[{"version":"sha256:aaa","percent":90},{"version":"sha256:bbb","percent":10}]}`, "traffic  web → 90% aaa, 10% bbb"},
		{"traffic.shift", `{"component":"web"}`, "traffic  web → none"},
		{"deploy.complete", `{"generation":2}`, "complete generation 2"},
		{"deploy.fail", `{"generation":2,"cause":"web: exited"}`, "failed   generation 2: web: exited"},
		{"deploy.revert", `{"generation":3,"cause":"web: exited"}`, "revert   as generation 3: web: exited"},
		{"of.tomorrow", `{"x":1}`, "of.tomorrow"},
		{"instance.exit", `[`, "instance.exit"},
	} {
		if got := describe(api.Entry{Kind: tt.kind, Data: []byte(tt.data)}); got != tt.want {
			t.Errorf("%s %s: got %q, want %q", tt.kind, tt.data, got, tt.want)
		}
	}
}

// A block of lines fits the terminal, whatever the terminal is, and keeps its first and last line.
func TestFit(t *testing.T) {
	var lines []string
	for i := range 40 {
		lines = append(lines, fmt.Sprintf("\x1b[31mline %d\x1b[0m %s", i, strings.Repeat("é", 100)))
	}
	for _, size := range [][2]int{{80, 24}, {20, 5}, {200, 100}, {1, 1}} {
		got := fit(lines, size[0], size[1])
		if len(got) > max(size[1]-1, 3) {
			t.Errorf("%v: %d lines", size, len(got))
		}
		for _, l := range got {
			if w := lipgloss.Width(l); w > size[0] {
				t.Errorf("%v: a line of width %d: %q", size, w, l)
			}
		}
	}
	got := fit([]string{"a", "b", "c", "d", "e", "f"}, 80, 5)
	if diff := cmp.Diff([]string{"a", "b", "… 3 more lines", "f"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A screen moves up by as many lines as it drew.
func TestScreenDrawsOverItself(t *testing.T) {
	var b bytes.Buffer
	s := screen{out: &b}
	s.draw([]string{"one", "two"})
	s.draw([]string{"three"})
	s.leave()
	s.draw([]string{"four"})
	if got, want := b.String(), "one\ntwo\n\x1b[2A\x1b[Jthree\nfour\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// The exit statuses of the help text, from the kind of the error.
func TestExitStatus(t *testing.T) {
	for _, tt := range []struct {
		err    error
		status int
		stderr string
	}{
		{nil, ExitDone, ""},
		{errors.New("no"), ExitFailed, "error: no\n"},
		{fault.Errorf(fault.Invalid, "no"), ExitFailed, "error: no\n"},
		{fault.Errorf(fault.Unavailable, "no"), ExitFailed, "error: no\n"},
		{fault.WithHint(fault.Errorf(fault.Denied, "no"), "ask"), ExitDenied, "error: no\nhint: ask\n"},
		{fmt.Errorf("reading: %w", fault.Errorf(fault.Corrupt, "no")), ExitUntrue, "error: reading: no\n"},
		{exit(ExitDiffers, nil), ExitDiffers, ""},
		{exit(ExitReverted, fault.WithHint(errors.New("reverted"), "look")), ExitReverted, "error: reverted\nhint: look\n"},
		{exit(ExitUntrue, errors.New("bad")), ExitUntrue, "error: bad\n"},
		{fmt.Errorf("following: %w", context.Canceled), ExitFailed, "interrupted\n"},
	} {
		var stderr bytes.Buffer
		a := &app{Env: Env{Stdout: io.Discard, Stderr: &stderr}}
		if got := a.report(tt.err); got != tt.status || stderr.String() != tt.stderr {
			t.Errorf("%v: got %d %q, want %d %q", tt.err, got, stderr.String(), tt.status, tt.stderr)
		}
	}
}

// run runs a command line without a server.
func run(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	status = Run(t.Context(), Env{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Getenv: func(string) string { return "" }})
	return status, out.String(), errs.String()
}

// A misused command says how it is used.
func TestMisuse(t *testing.T) {
	none := "unix://" + t.TempDir() + "/none.sock"
	for _, tt := range []struct {
		args string
		want string
	}{
		{"stauts", "hint: invar status\n"},
		{"frobnicate", "hint: invar --help\n"},
		{"plan", "hint: invar plan ENV [flags]\n"},
		{"apply a b c", "hint: invar apply ENV [PLAN] [flags]\n"},
		{"ledger prov", "hint: invar ledger prove\n"},
		{"plan --bogus", "hint: invar plan --help\n"},
		{"status -o yaml", "want text or json"},
		{"--server " + none + " status", "hint: start one: invar server\n"},
		{"--server nowhere status", "hint: write unix://PATH"},
		{"--server " + none + " logs prod", "hint: invar logs ENV/COMPONENT\n"},
		{"ledger show first", "not the number of an entry"},
	} {
		status, stdout, stderr := run(t, strings.Fields(tt.args)...)
		if status != ExitFailed || stdout != "" || !strings.Contains(stderr, tt.want) {
			t.Errorf("%s: got %d, stdout %q, stderr %q; want %q", tt.args, status, stdout, stderr, tt.want)
		}
	}
}

// Environments of an app complete without a server.
func TestCompletion(t *testing.T) {
	for args, want := range map[string]string{"plan ": "staging\nprod", "apply s": "staging", "apply x": "", "-o ": "text\njson", "status ": ""} {
		words := append([]string{"-C", "../examples/shop", "--server", "unix:///none", "__complete"}, strings.Split(args, " ")...)
		_, stdout, _ := run(t, words...)
		got, _, _ := strings.Cut(stdout, ":")
		if strings.TrimSpace(got) != want {
			t.Errorf("%q: got %q, want %q", args, got, want)
		}
	}
}

func TestSeconds(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 119 * time.Minute: "119m", 2 * time.Hour: "2h", 48 * time.Hour: "2d",
	} {
		if got := seconds(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}

// A saved plan is read as it was written, for the environment that it was made for, and nothing else is.
func TestSavedPlan(t *testing.T) {
	file := t.TempDir() + "/plan.json"
	want := examplePlan()
	if err := savePlan(file, want); err != nil {
		t.Fatal(err)
	}
	got, err := loadPlan(file, "prod")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, tt := range [][2]string{{file, "staging"}, {file + "x", "prod"}, {"render_test.go", "prod"}} {
		if _, err := loadPlan(tt[0], tt[1]); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%v: got %v", tt, err)
		}
	}
}
