package api_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/fault"
)

// Every kind goes over the wire with the status of STYLE section 3, and comes back as itself with its hint.
func TestProblemsKeepKindAndHint(t *testing.T) {
	tests := []struct {
		kind   fault.Kind
		status int
		typ    string
	}{
		{fault.Invalid, 400, "urn:invar:fault:invalid"},
		{fault.Denied, 403, "urn:invar:fault:denied"},
		{fault.NotFound, 404, "urn:invar:fault:not-found"},
		{fault.Conflict, 409, "urn:invar:fault:conflict"},
		{fault.Corrupt, 500, "urn:invar:fault:corrupt"},
		{fault.Unavailable, 503, "urn:invar:fault:unavailable"},
		{"", 500, "urn:invar:fault:internal"},
	}
	for _, tt := range tests {
		t.Run(string(tt.kind), func(t *testing.T) {
			cause := errors.New("cause")
			if tt.kind != "" {
				cause = fault.As(tt.kind, cause)
			}
			p := api.ProblemOf(fmt.Errorf("doing it: %w", fault.WithHint(cause, "do %s", "100% more")))
			if p.Status != tt.status || p.Type != tt.typ {
				t.Errorf("got %d %s, want %d %s", p.Status, p.Type, tt.status, tt.typ)
			}
			body, err := json.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			got := api.DecodeProblem(p.Status, api.TypeProblem, body).Err()
			if fault.KindOf(got) != tt.kind || fault.Hint(got) != "do 100% more" || got.Error() != "doing it: cause" {
				t.Errorf("got kind %q, hint %q, error %q", fault.KindOf(got), fault.Hint(got), got)
			}
		})
	}
}

// What is not a problem document still becomes an error of a kind.
func TestDecodeProblemOfOthers(t *testing.T) {
	tests := []struct {
		status   int
		typ, in  string
		kind     fault.Kind
		contains string
	}{
		{502, "text/html", "<html>bad gateway</html>", fault.Unavailable, "the server answered with status 502"},
		{404, "text/plain; charset=utf-8", "404 page not found\n", fault.NotFound, "the server answered with status 404: 404 page not found"},
		{401, api.TypeProblem, "{", fault.Denied, "the server answered with status 401"},
		{418, api.TypeProblem, `{"type":"about:blank","title":"Teapot"}`, fault.Invalid, "Teapot"},
	}
	for _, tt := range tests {
		err := api.DecodeProblem(tt.status, tt.typ, []byte(tt.in)).Err()
		if fault.KindOf(err) != tt.kind || err.Error() != tt.contains {
			t.Errorf("%d %q: got kind %q, error %q, want %q, %q", tt.status, tt.in, fault.KindOf(err), err, tt.kind, tt.contains)
		}
	}
}

func TestLevelsCheckSaysWhoIsOld(t *testing.T) {
	levels := api.Levels{Min: 2, Max: 3}
	for level, hint := range map[int]string{
		1: "upgrade the client to invar 0.9.0",
		2: "",
		3: "",
		4: "upgrade the server to invar 1.2.3, or use the client of invar 0.9.0",
	} {
		if got := fault.Hint(levels.Check(level, "1.2.3", "0.9.0")); got != hint {
			t.Errorf("level %d: got hint %q, want %q", level, got, hint)
		}
	}
}

func TestParseRef(t *testing.T) {
	d := "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for in, want := range map[string]api.Ref{
		"prod":   {Env: "prod"},
		"prod@7": {Env: "prod", Generation: 7},
		d:        {Digest: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
	} {
		got, err := api.ParseRef(in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", in, diff)
		}
	}
	for _, in := range []string{"", "@1", "prod@", "prod@0", "prod@07", "prod@+7", "prod@-1", "sha256:zz", "a/b", "a b", "prod@1@2"} {
		if _, err := api.ParseRef(in); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%q: got %v, want an invalid reference", in, err)
		}
	}
}

// Paths escape what is put into them, so that a name can't lead elsewhere.
func TestPathsEscape(t *testing.T) {
	if got, want := api.LogsPath("a/../{component}", "c?d"), "/v1/environments/a%2F..%2F%7Bcomponent%7D/logs/c%3Fd"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"prod", "prod@3", "sha256:00", "@", "a@b@c", "prod@007"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := api.ParseRef(s); err == nil && r.String() != s {
			t.Errorf("%q is accepted, but spelled %q", s, r)
		}
	})
}

func FuzzDecodeProblem(f *testing.F) {
	f.Add(409, api.TypeProblem, []byte(`{"type":"urn:invar:fault:conflict","title":"Conflict","status":409,"detail":"moved","hint":"plan again"}`))
	f.Add(500, "text/plain", []byte("%s"))
	f.Fuzz(func(t *testing.T, status int, typ string, body []byte) {
		if err := api.DecodeProblem(status, typ, body).Err(); err == nil {
			t.Error("a problem must be an error")
		}
	})
}
