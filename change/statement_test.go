package change_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
)

func statement() change.Statement {
	return change.Statement{V: 1, Log: "example.com/ledger", Meaning: change.Approval, Env: "prod", Change: 12, Request: "01936f2e-0000-7000-8000-000000000001",
		Plan: digest.Of([]byte("plan")), Release: digest.Of([]byte("release")), Reason: "read the plan", Signer: "bob", SignedAt: time.Date(2026, 11, 25, 9, 30, 0, 0, time.UTC)}
}

// These are the bytes that people sign: they never change.
func TestStatementHasTheseBytes(t *testing.T) {
	got, err := statement().Encode()
	if err != nil {
		t.Fatal(err)
	}
	want := `{"change":12,"env":"prod","log":"example.com/ledger","meaning":"approval","plan":"` + string(digest.Of([]byte("plan"))) +
		`","reason":"read the plan","release":"` + string(digest.Of([]byte("release"))) +
		`","request":"01936f2e-0000-7000-8000-000000000001","signed_at":"2026-11-25T09:30:00Z","signer":"bob","v":1}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for meaning, want := range map[change.Meaning]string{change.Approval: "invar-approval@v1", change.Rejection: "invar-rejection@v1", change.Review: "invar-review@v1", change.Erasure: "invar-erasure@v1"} {
		if got := meaning.Namespace(); got != want {
			t.Errorf("%s is signed in %s, want %s", meaning, got, want)
		}
	}
}

func TestStatementHasOneSpelling(t *testing.T) {
	good, err := statement().Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := change.DecodeStatement(good); err != nil {
		t.Fatal(err)
	}
	edit := func(old, new string) string { return strings.Replace(string(good), old, new, 1) }
	for name, text := range map[string]string{
		"nothing":             "",
		"a line feed":         string(good) + "\n",
		"another value after": string(good) + "{}",
		"white space":         edit(`:12`, `: 12`),
		"another order":       edit(`{"change":12,`, `{`)[:len(good)-len(`"change":12,`)-1] + `,"change":12}`,
		"a field twice":       edit(`"v":1`, `"v":1,"v":1`),
		"an unknown field":    edit(`"v":1`, `"v":1,"w":1`),
		"another case":        edit(`"env"`, `"Env"`),
		"an escape":           edit(`read the plan`, `read\u0020the plan`),
		"another version":     edit(`"v":1`, `"v":2`),
		"a time zone":         edit(`09:30:00Z`, `10:30:00+01:00`),
		"microseconds":        edit(`09:30:00Z`, `09:30:00.000001Z`),
		"a null":              edit(`"reason":"read the plan"`, `"reason":null`),
		"a number as float":   edit(`:12`, `:12.0`),
		"no UTF-8":            edit(`read the plan`, "read \xff"),
	} {
		if _, err := change.DecodeStatement([]byte(text)); !errors.Is(err, fault.Invalid) {
			t.Errorf("with %s: %v, want it invalid", name, err)
		}
	}
	long := statement()
	long.Reason = strings.Repeat("x", change.MaxStatementBytes)
	if _, err := long.Encode(); !errors.Is(err, fault.Invalid) {
		t.Errorf("too long: %v, want it invalid", err)
	}
}

func FuzzDecodeStatement(f *testing.F) {
	good, err := statement().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"log":"","meaning":"","signed_at":"0001-01-01T00:00:00Z","signer":"","v":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := change.DecodeStatement(b)
		if err != nil {
			if !errors.Is(err, fault.Invalid) {
				t.Errorf("got %v, want it invalid", err)
			}
			return
		}
		if again, err := s.Encode(); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s is written again as %s, %v", b, again, err)
		}
	})
}
