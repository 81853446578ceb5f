package state_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/attest"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// samples has an entry of every kind.
func samples() []state.Entry {
	later := time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)
	d := digest.Of([]byte("x"))
	datas := []state.Data{
		state.Genesis{Origin: "example.com/ledger", VKey: "example.com/ledger+0+x"},
		state.LogStart{Version: "0.1.0"},
		state.LogStop{},
		state.Bundle{App: "shop", Bundle: d, Source: d},
		state.Release{App: "shop", Bundle: d, Release: d},
		state.Apply{App: "shop", Generation: 2, Base: 1, Release: d, Bundle: d, Plan: d},
		state.Rollback{App: "shop", Generation: 3, Base: 2, To: 1, Release: d, Bundle: d},
		state.Destroy{App: "shop", Generation: 4, Base: 3, Volumes: true},
		state.VolumeDestroy{Generation: 4},
		state.TokenCreate{Token: "abcdefgh", Name: "ci", Secret: d},
		state.TokenRevoke{Token: "abcdefgh"},
		state.SessionStart{Session: "abcdefghabcd", Instance: "web-aaaaaaaaaa", Component: "web", Command: []string{"sh"}, TTY: true, Deadline: 1764064800000},
		state.SessionEnd{Session: "abcdefghabcd", Instance: "web-aaaaaaaaaa", How: state.SessionExited, ExitCode: 1, Encrypted: true, Detail: "because"},
	}
	for _, k := range state.Kinds() {
		steps := []deploy.Kind{deploy.Drifted, deploy.Settled, deploy.Freeze, deploy.Frozen}
		if s, ok := k.Fields().(state.Step); ok && !slices.Contains(steps, s.Kind) && !strings.HasPrefix(string(s.Kind), "volume.") {
			s.Instance = &instance.Identity{ID: "web-aaaaaaaaaa", Env: "prod", Component: "web", Digest: d, Release: d, Generation: 1}
			s.Shares = []deploy.Share{{Version: d, Percent: 100}}
			s.Cause = "because"
			if s.Kind == deploy.Tainted {
				at := time.Date(2026, 11, 25, 10, 0, 0, 5e6, time.UTC)
				s.By, s.Until = deploy.BySession("abcdefghabcd"), at.UnixMilli()
				s.Foreign = []instance.Foreign{{PID: 7, TID: 8, StartedAt: at, FoundAt: at, Program: "/bin/sh", Command: "sh -i", UID: 1000, Parent: 6, Namespaces: []string{"net"}, Cgroup: true}}
			}
			datas = append(datas, s)
		}
	}
	datas = append(datas, []state.Data{
		state.ChangeRequest{Change: 1, Move: state.MovedByApply, App: "shop", Base: 1, Release: d, Bundle: d, Plan: d, ExpiresAt: later, Definition: d},
		state.ChangeApprove{Change: 1, Statement: "{}"},
		state.ChangeReject{Change: 1, Statement: "{}"},
		state.ChangeWithdraw{Change: 1},
		state.ChangeVoid{Change: 1, Cause: "it expired"},
		state.ChangeConfirm{Generation: 2},
		state.ChangeReview{Generation: 2, Verdict: state.Accepted, Statement: "{}"},
		state.PolicyDecision{Phase: state.PhaseRequest, Change: 1, Policy: "baseline", Bundle: d, Input: d, Decision: d, Plan: d, Allowed: true},
		state.ReleaseRevoke{Release: d},
		state.AccessDenied{Operation: "apply", Permission: "apply", Source: "127.0.0.1", Cause: "no grant", Repeated: 2},
	}...)
	datas = append(datas, state.SecretVersion{Name: "db-password", Version: d},
		state.EvidenceExport{From: 1, To: 9, Scope: "prod", Size: 10, Moves: 2, Manifest: d},
		state.ErasureRequest{Erasure: 1, Digest: d, Authority: "GDPR Art. 17, case 12", Law: true, Entries: []int64{4}},
		state.ErasureApprove{Erasure: 1, Statement: "{}"},
		state.Erasure{Erasure: 1, Digest: d, Request: "01936f2e-0000-7000-8000-000000000000", Approvals: []int64{6, 7}},
		state.WitnessAlarm{Witness: "w1", Alarm: "forked", Size: 7, Cause: "another tree", Evidence: d}) // the newest kinds last: the IDs of the others stay
	datas = append(datas, state.Fork{App: "shop", Generation: 1, Release: d, Bundle: d, Plan: d, ForkOf: state.ForkOf{From: "prod", FromGeneration: 3, Of: "prod",
		Domain: "localhost", Secrets: release.Pins{"db-password": d}, Snapshot: true, TTLMS: 60_000, Owner: "local:alice"}})
	datas = append(datas, state.Step{Step: deploy.Step{
		Kind: deploy.Drifted, ID: "web-aaaaaaaaaa", Response: spec.Replace, Until: 1764064800000, Cause: "because",
		Findings: []instance.Finding{{Kind: "limit", Field: "processes", Expected: "64", Found: "none", Controls: []string{"CM-6", "SC-6"}}},
	}})
	datas = append(datas, state.Verify{Instances: 3, Differ: []instance.ID{"web-aaaaaaaaaa"}, More: 1})
	datas = append(datas, state.AttestReproduced{Release: d, Bundle: d, Result: state.Same, Builder: state.Builder{Version: "1.0", Go: "go1.26", Platform: "linux/amd64", Host: "ci-7", Sources: state.SourcesDirectory}})
	odd := instance.Finding{Kind: "table", Field: "in force", Expected: "table 7", Found: "table 9", Controls: []string{"CM-6", "SC-7", "SI-7"}}
	datas = append(datas, state.HostDrift{Findings: []instance.Finding{odd}, Response: drift.Restore, Cause: "because"},
		state.HostResolved{Keys: []string{odd.Key()}, How: "the right table was put in force again", Since: later})
	datas = append(datas, state.Verify{Instances: 3, Differ: []instance.ID{"web-aaaaaaaaaa"}, Generation: 2, Result: attest.Differs})
	datas = append(datas, state.Step{Step: deploy.Step{
		Kind: deploy.Settled, ID: "web-aaaaaaaaaa", Resolution: deploy.Replaced, Keys: []string{"limit processes"},
		Successors: []instance.ID{"web-bbbbbbbbbb"}, OpenMillis: 4125,
	}})
	datas = append(datas, volumes(d)...)
	promoted := &state.Promoted{From: "staging", Generation: 7, HealthyForMS: 3_600_000, Completed: 40, Newest: 42}
	datas = append(datas, state.Apply{App: "shop", Generation: 2, Base: 1, Release: d, Bundle: d, Plan: d, Promoted: promoted},
		state.ChangeRequest{Change: 1, Move: state.MovedByApply, App: "shop", Base: 1, Release: d, Bundle: d, Plan: d, Promoted: promoted})
	datas = append(datas, state.Step{Step: deploy.Step{Kind: deploy.Freeze, ID: "web-aaaaaaaaaa", Cause: "because"}},
		state.Step{Step: deploy.Step{Kind: deploy.Frozen, ID: "web-aaaaaaaaaa", Evidence: d, Bytes: 1}})
	w := newWorld()
	var out []state.Entry
	for _, data := range datas {
		e := w.entry("", data)
		if f, ok := data.(state.Fork); ok {
			f.ExpiresAt = e.Time.Add(time.Minute)
			e.Data = f
		}
		for _, k := range state.Kinds() {
			if k.Kind == data.EntryKind() && k.Env {
				e.Env = "prod"
			}
		}
		switch data := data.(type) {
		case state.ChangeApprove, state.ChangeReject, state.ChangeReview, state.ErasureApprove:
			e.Actor = state.Actor{Kind: state.ActorSSH, Name: "SHA256:abc", Principal: "alice", Auth: "ssh-ed25519"}
			e.Sigs = []state.Signature{{Format: "sshsig", Namespace: "invar-approval@v1", KeyID: "SHA256:abc", Sig: []byte("sig")}}
		case state.Bundle, state.Release, state.Apply, state.Fork, state.ChangeRequest, state.PolicyDecision, state.WitnessAlarm, state.AttestReproduced:
			e.Body = &state.Body{Digest: d, Size: 1, Type: release.TypeRecord}
		case state.Verify:
			if data.Result != "" {
				e.Body = &state.Body{Digest: d, Size: 1, Type: attest.TypeEnvelope}
			}
		case state.Step:
			if data.Evidence != "" {
				e.Body = &state.Body{Digest: d, Size: 1, Type: runtime.TypeEvidence}
			}
		}
		e.Subject = []state.Subject{{Name: "shop", Digest: d}}
		e.Reason = "because <of> & é"
		out = append(out, e)
	}
	return out
}

// volumes has an entry of every kind that is about a volume.
func volumes(d digest.Digest) []state.Data {
	to := deploy.Place{Snapshot: 3}
	of := func(k deploy.Kind, c deploy.Copy, cause string) state.Data {
		c.Component, c.Volume, c.To = "db", "data", to
		return state.Step{Step: deploy.Step{Kind: k, Copy: &c, Cause: cause}}
	}
	return []state.Data{
		of(deploy.Copying, deploy.Copy{From: &deploy.Place{Version: 1}, Generation: 2}, ""),
		of(deploy.Copied, deploy.Copy{From: &deploy.Place{Env: "prod", Version: 1}, Live: true, Content: &deploy.Content{Bytes: 4096, Files: 2, Digest: d, Changed: 1}}, ""),
		of(deploy.CopyFailed, deploy.Copy{From: &deploy.Place{Version: 1}, Generation: 2}, "no space left on device"),
		of(deploy.Switch, deploy.Copy{}, ""),
		state.VolumeDelete{Component: "db", Volume: "data", Snapshot: 3},
		of(deploy.Deleted, deploy.Copy{}, ""),
	}
}

// What asks for other data in a volume is spelled so, and what does not has no more bytes than before there was such a thing.
func TestRestoresArePinned(t *testing.T) {
	restore := []deploy.Restore{{Component: "db", Volume: "data", From: deploy.Place{Snapshot: 3}}}
	live := []deploy.Restore{{Component: "db", Volume: "data", From: deploy.Place{Env: "prod", Version: 2}, Live: true}}
	for _, e := range samples() {
		var want string
		switch d := e.Data.(type) {
		case state.Rollback:
			d.Restore, want = restore, `"restore":[{"component":"db","from":{"snapshot":3},"volume":"data"}]`
			e.Data = d
		case state.ChangeRequest:
			d.Move, d.Promoted, d.To, d.Restore, want = state.MovedByRollback, nil, 1, restore, `"restore":[{"component":"db","from":{"snapshot":3},"volume":"data"}]`
			e.Data = d
		case state.Fork:
			d.Restore, want = live, `"restore":[{"component":"db","from":{"env":"prod","version":2},"live":true,"volume":"data"}]`
			e.Data = d
		default:
			continue
		}
		b, err := state.Encode(e)
		if err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s: %s, %v; want it to have %s", e.Kind(), b, err, want)
		}
		if back, err := state.Decode(b); err != nil || !reflect.DeepEqual(back.Data, e.Data) {
			t.Errorf("%s: read back as %+v, %v", e.Kind(), back.Data, err)
		}
	}
}

// What can't be restored is refused before it is written.
func TestRestoresAreChecked(t *testing.T) {
	place := func(env spec.EnvName, version, snapshot int) deploy.Place {
		return deploy.Place{Env: env, Version: version, Snapshot: snapshot}
	}
	for name, list := range map[string][]deploy.Restore{
		"another environment": {{Component: "db", Volume: "data", From: place("prod", 1, 0)}},
		"no place":            {{Component: "db", Volume: "data"}},
		"two places":          {{Component: "db", Volume: "data", From: place("", 1, 1)}},
		"a live snapshot":     {{Component: "db", Volume: "data", From: place("", 0, 1), Live: true}},
		"no name":             {{Component: "db", Volume: "..", From: place("", 0, 1)}},
		"one twice":           {{Component: "db", Volume: "data", From: place("", 0, 1)}, {Component: "db", Volume: "data", From: place("", 0, 2)}},
	} {
		for _, e := range samples() {
			d, ok := e.Data.(state.Rollback)
			if !ok {
				continue
			}
			d.Restore = list
			e.Data = d
			if _, err := state.Encode(e); !errors.Is(err, fault.Invalid) {
				t.Errorf("%s: %v, want invalid", name, err)
			}
		}
	}
}

func TestEntriesOfEveryKindReadBack(t *testing.T) {
	seen := map[state.Kind]bool{}
	for _, e := range samples() {
		seen[e.Kind()] = true
		b, err := state.Encode(e)
		if err != nil {
			t.Errorf("%s: %v", e.Kind(), err)
			continue
		}
		got, err := state.Decode(b)
		if err != nil {
			t.Errorf("%s: %v", e.Kind(), err)
			continue
		}
		if diff := cmp.Diff(got, e); diff != "" {
			t.Errorf("%s: %s", e.Kind(), diff)
		}
	}
	for _, k := range state.Kinds() {
		if !seen[k.Kind] {
			t.Errorf("no sample of %s", k.Kind)
		}
	}
}

// The bytes of entries are a promise: what is in a ledger stays readable.
func TestEntryBytesArePinned(t *testing.T) {
	times := map[state.Kind]int{}
	for i, e := range samples() {
		b, err := state.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		name := "testdata/vectors/" + string(e.Kind()) + ".json"
		if times[e.Kind()]++; times[e.Kind()] > 1 { // fields came later, and the older entry means what it meant
			name = fmt.Sprintf("testdata/vectors/%s-%d.json", e.Kind(), times[e.Kind()])
		}
		if os.Getenv("UPDATE") != "" {
			if err := os.WriteFile(name, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, want) {
			t.Errorf("sample %d, %s:\n got %s\nwant %s", i, e.Kind(), b, want)
		}
	}
}

func TestDecodeAcceptsOneSpelling(t *testing.T) {
	good, err := state.Encode(samples()[1])
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(string) string{
		"space":           func(s string) string { return s + " " },
		"unknown field":   func(s string) string { return strings.Replace(s, `"v":1`, `"v":1,"x":1`, 1) },
		"unknown data":    func(s string) string { return strings.Replace(s, `"version":`, `"other":1,"version":`, 1) },
		"upper-case key":  func(s string) string { return strings.Replace(s, `"kind"`, `"Kind"`, 1) },
		"twice":           func(s string) string { return strings.Replace(s, `"v":1`, `"v":1,"v":1`, 1) },
		"null":            func(s string) string { return strings.Replace(s, `"v":1`, `"body":null,"v":1`, 1) },
		"escape":          func(s string) string { return strings.Replace(s, `0.1.0`, `\u0030.1.0`, 1) },
		"newer":           func(s string) string { return strings.Replace(s, `"v":1`, `"v":2`, 1) },
		"unknown kind":    func(s string) string { return strings.Replace(s, `log.start`, `log.other`, 1) },
		"other time zone": func(s string) string { return strings.Replace(s, `Z"`, `+01:00"`, 1) },
		"zero offset":     func(s string) string { return strings.Replace(s, `Z"`, `+00:00"`, 1) },
		"two values":      func(s string) string { return s + s },
		"environment":     func(s string) string { return strings.Replace(s, `"id"`, `"env":"prod","id"`, 1) },
		"upper-case id":   func(s string) string { return strings.Replace(s, `01936f2e`, `01936F2E`, 1) },
	} {
		bad := edit(string(good))
		if bad == string(good) {
			t.Fatalf("%s: nothing was edited in %s", name, good)
		}
		if _, err := state.Decode([]byte(bad)); !errors.Is(err, fault.Corrupt) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestEncodeRefusesWhatDecodeWould(t *testing.T) {
	for name, edit := range map[string]func(*state.Entry){
		"no data":       func(e *state.Entry) { e.Data = nil },
		"no id":         func(e *state.Entry) { e.ID = "" },
		"version 4":     func(e *state.Entry) { e.ID = "01936f2e-0000-4000-8000-000000000001" },
		"local time":    func(e *state.Entry) { e.Time = e.Time.In(time.FixedZone("x", 3600)) },
		"nanoseconds":   func(e *state.Entry) { e.Time = e.Time.Add(1) },
		"no actor":      func(e *state.Entry) { e.Actor = state.Actor{} },
		"long reason":   func(e *state.Entry) { e.Reason = strings.Repeat("x", state.MaxReasonBytes+1) },
		"broken UTF-8":  func(e *state.Entry) { e.Reason = "\xff" },
		"odd digest":    func(e *state.Entry) { e.Subject = []state.Subject{{Name: "x", Digest: "sha256:x"}} },
		"empty subject": func(e *state.Entry) { e.Subject = []state.Subject{{}} },
		"too large": func(e *state.Entry) {
			e.Data = state.Step{Step: deploy.Step{Kind: deploy.Done, Cause: strings.Repeat("x", state.MaxEntryBytes)}}
			e.Env = "prod"
		},
		"env missing": func(e *state.Entry) { e.Data = state.Destroy{App: "shop", Generation: 2, Base: 1} },
	} {
		e := samples()[1]
		edit(&e)
		if _, err := state.Encode(e); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// Every kind and every field of its data is explained in docs/ledger.md.
func TestKindsAreDocumented(t *testing.T) {
	b, err := os.ReadFile("../docs/ledger.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, s := range strings.Split(string(b), "\n### ")[1:] {
		title, body, _ := strings.Cut(s, "\n")
		for _, k := range strings.Split(title, ", ") {
			sections[strings.Trim(k, "`")] = body
		}
	}
	governed := fields(reflect.TypeFor[state.Governed]())
	for _, k := range state.Kinds() {
		body, ok := sections[string(k.Kind)]
		if !ok {
			t.Errorf("kind %s has no section", k.Kind)
			continue
		}
		if _, ok := k.Fields().(state.Step); ok {
			continue // the fields of steps are in one table
		}
		for _, f := range fields(reflect.TypeOf(k.Fields())) {
			if !strings.Contains(body, "`"+f+"`") && !(slices.Contains(governed, f) && strings.Contains(sections["Fields of a governed move"], "`"+f+"`")) {
				t.Errorf("kind %s: field %s is not explained", k.Kind, f)
			}
		}
	}
	for _, f := range fields(reflect.TypeFor[deploy.Step]()) {
		if !strings.Contains(sections["Fields of steps"], "`"+f+"`") {
			t.Errorf("steps: field %s is not explained", f)
		}
	}
}

func fields(t reflect.Type) []string {
	var out []string
	for i := range t.NumField() {
		if t.Field(i).Anonymous && t.Field(i).Tag.Get("json") == "" {
			out = append(out, fields(t.Field(i).Type)...)
			continue
		}
		if name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); name != "-" {
			out = append(out, name)
		}
	}
	return out
}

func FuzzDecode(f *testing.F) {
	for _, e := range samples() {
		b, err := state.Encode(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := state.Decode(b)
		if err != nil {
			return
		}
		again, err := state.Encode(e)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("accepted %q, wrote %q (%v)", b, again, err)
		}
	})
}

func FuzzDecodeState(f *testing.F) {
	w := newWorld()
	w.must(f, "", state.Genesis{Origin: "o", VKey: "v"})
	if err := w.apply(f, "shop", "prod", component("web", "1")); err != nil {
		f.Fatal(err)
	}
	f.Add(encode(f, w.now))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := state.DecodeState(b, w.lookup); err == nil {
			encode(t, s)
		}
	})
}
