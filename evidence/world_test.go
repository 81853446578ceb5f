package evidence_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/evidence"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity/sshkey"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/policy"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
	"github.com/invarhq/invar/store/storetest"
)

var start = time.Date(2026, 11, 2, 9, 0, 0, 0, time.UTC)

// signerOf returns the SSH key that somebody has in these tests.
func signerOf(name string) ssh.Signer {
	seed := sha256.Sum256([]byte(name))
	s, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed[:]))
	if err != nil {
		panic(err)
	}
	return s
}

func keyLine(name string) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signerOf(name).PublicKey())))
}

// rules is the definition that the tests' ledgers are under: alice writes, bob and carol approve, dave carries out, erin reviews.
func rules() platform.Definition {
	d := platform.Definition{
		Groups: []platform.Group{
			{Name: "approvers", Members: []platform.PrincipalName{"alice", "bob", "carol"}},
			{Name: "reviewers", Members: []platform.PrincipalName{"erin"}},
		},
		Roles: []platform.Role{
			{Name: "admin", Permissions: []platform.Permission{platform.Anything}},
			{Name: "developer", Permissions: []platform.Permission{platform.Read, platform.Plan, platform.Apply, platform.Rollback, platform.Approve, platform.Verify}},
		},
		Grants: []platform.Grant{
			{Role: "admin", Principals: []platform.PrincipalName{"root"}, Environments: []platform.Pattern{"*"}},
			{Role: "developer", Principals: []platform.PrincipalName{"alice", "bob", "carol", "dave", "erin"}, Environments: []platform.Pattern{"prod", "staging"}},
		},
		Approvals: []platform.Approval{{Name: "prod", Environments: []platform.Pattern{"prod"}, Require: "2 of group.approvers", ExpiresMillis: (24 * time.Hour).Milliseconds()}},
		Policies:  []platform.Policy{{Name: "baseline", Environments: []platform.Pattern{"prod"}, Files: map[string]string{"main.rego": rego}}},
		Exceptions: []platform.Exception{{Name: "one-more-week", Policy: "baseline", Rule: "data.prod.deny/single", Environments: []platform.Pattern{"prod"}, Ticket: "OPS-1",
			Reason: "the second machine comes on Friday", Expires: start.Add(7 * 24 * time.Hour)}},
		BreakGlass: []platform.BreakGlass{{Name: "prod", Environments: []platform.Pattern{"prod"}, ReviewMillis: (72 * time.Hour).Milliseconds(), Reviewers: "reviewers",
			SessionMillis: (10 * time.Minute).Milliseconds()}},
	}
	d.Exceptions[0].Rule = ruleName
	for _, name := range []string{"alice", "bob", "carol", "dave", "erin"} {
		d.Principals = append(d.Principals, platform.Principal{Name: platform.PrincipalName(name), LocalUsers: []string{name}, SSHKeys: []string{keyLine(name)}})
	}
	d.Principals = append(d.Principals, platform.Principal{Name: "root", LocalUsers: []string{"root"}})
	return d
}

const (
	ruleName = "prod.deny/single"
	rego     = `package prod

import rego.v1

deny contains {"id": "single", "msg": "one replica is not enough", "subject": placed.component.name} if {
	some placed in input.after.components
	placed.replicas < 2
}
`
)

// world writes a ledger as a server would, and signs it.
type world struct {
	t       testing.TB
	entries []state.Entry
	blobs   map[digest.Digest][]byte
	now     state.State
	at      time.Time
	skey    string
	vkey    string

	attached []evidence.Attachment // to every image
}

const origin = "example.com/ledger"

func newWorld(t testing.TB) *world {
	w := &world{t: t, blobs: map[digest.Digest][]byte{}, at: start}
	var err error
	if w.skey, w.vkey, err = ledger.GenerateKey(origin); err != nil {
		t.Fatal(err)
	}
	w.now = state.New(func(d digest.Digest) (release.Record, error) { return release.Decode(w.blobs[d]) })
	w.add(system, "", state.Genesis{Origin: origin, VKey: w.vkey})
	w.add(system, "", state.LogStart{Version: "test"})
	return w
}

var system = state.Actor{Kind: state.ActorSystem, Name: "server"}

func person(name string) state.Actor {
	return state.Actor{Kind: state.ActorLocal, Name: name, Principal: platform.PrincipalName(name)}
}

// later lets time pass.
func (w *world) later(d time.Duration) { w.at = w.at.Add(d) }

func (w *world) entry(by state.Actor, env spec.EnvName, data state.Data) state.Entry {
	w.at = w.at.Add(time.Millisecond)
	return state.Entry{ID: state.EntryID(fmt.Sprintf("01936f2e-0000-7000-8000-%012x", len(w.entries)+1)), Time: w.at, Actor: by, Env: env, Data: data}
}

// add appends an entry as it is, after letting edit change it.
func (w *world) add(by state.Actor, env spec.EnvName, data state.Data, edit ...func(*state.Entry)) state.Entry {
	w.t.Helper()
	e := w.entry(by, env, data)
	for _, f := range edit {
		f(&e)
	}
	next, err := w.now.Apply(int64(len(w.entries)), e)
	if err != nil {
		w.t.Fatalf("entry %d, %s: %v", len(w.entries), e.Kind(), err)
	}
	w.now, w.entries = next, append(w.entries, e)
	return e
}

// keep stores content, and returns it as a body.
func (w *world) keep(b []byte, kind string) *state.Body {
	d := digest.Of(b)
	w.blobs[d] = b
	return &state.Body{Digest: d, Size: int64(len(b)), Type: kind}
}

// known makes a release known.
func (w *world) known(r release.Record) digest.Digest {
	w.t.Helper()
	encoded, err := release.Encode(r)
	if err != nil {
		w.t.Fatal(err)
	}
	body := w.keep(encoded, release.TypeRecord)
	if _, err := w.now.Bundle(r.Bundle); err != nil {
		w.add(person("root"), "", state.Bundle{App: r.App, Bundle: r.Bundle, Source: digest.Of([]byte("source"))}, func(e *state.Entry) {
			e.Body = &state.Body{Digest: r.Bundle, Size: int64(len(bundleText(r.App))), Type: release.TypeBundle}
		})
	}
	if _, err := w.now.Release(body.Digest); err != nil {
		w.add(person("root"), r.Env, state.Release{App: r.App, Bundle: r.Bundle, Release: body.Digest}, func(e *state.Entry) { e.Body = body })
	}
	return body.Digest
}

func bundleText(app spec.AppName) []byte { return []byte("bundle of " + app) }

func (w *world) bundle(app spec.AppName) digest.Digest {
	return w.keep(bundleText(app), release.TypeBundle).Digest
}

// shop is a release of the app.
func (w *world) shop(env spec.EnvName, version string, replicas int) release.Record {
	return release.Record{V: 1, App: "shop", Env: env, Bundle: w.bundle("shop"), Routes: []release.Route{}, Rollout: release.Rollout{MaxParallel: 1},
		Components: []release.Placed{{Replicas: replicas, Component: release.Component{Name: "web", Image: digest.Of([]byte("image")), Root: digest.Of([]byte("root")),
			Args: []string{"/web"}, Env: map[string]string{"VERSION": version}}}}}
}

// plan makes the plan of a move.
func (w *world) plan(env spec.EnvName, r release.Record, d digest.Digest) (change.Plan, *state.Body) {
	w.t.Helper()
	now, err := w.now.Environment(env)
	if err != nil {
		now.Name = env
	}
	p := change.MakePlan(change.Current{Base: change.Base{Generation: now.Head.Number, Release: now.Head.Release}, Record: now.Head.Record,
		Failed: now.Head.Outcome == deploy.Broken}, change.Proposed{Digest: d, Record: r})
	b, err := digest.Canonical(p)
	if err != nil {
		w.t.Fatal(err)
	}
	return p, w.keep(b, change.TypePlan)
}

// apply moves a head at once.
func (w *world) apply(by state.Actor, r release.Record, how state.Governed, reason string) state.Entry {
	w.t.Helper()
	d := w.known(r)
	base := w.generation(r.Env)
	_, body := w.plan(r.Env, r, d)
	if how.Change != 0 {
		c, err := w.now.Change(how.Change)
		if err != nil {
			w.t.Fatal(err)
		}
		body.Digest = c.Plan
	}
	return w.add(by, r.Env, state.Apply{App: r.App, Generation: base + 1, Base: base, Release: d, Bundle: r.Bundle, Plan: body.Digest, Governed: how},
		func(e *state.Entry) { e.Body, e.Reason = body, reason })
}

func (w *world) generation(env spec.EnvName) int {
	now, err := w.now.Environment(env)
	if err != nil {
		return 0
	}
	return now.Head.Number
}

// define releases a definition of the platform.
func (w *world) define(by state.Actor, d platform.Definition) {
	w.t.Helper()
	d.Sort()
	r, err := release.EvaluatePlatform(d, w.bundle("platform"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.apply(by, r, state.Governed{}, "the rules")
}

// judge records a decision of the policy, as edit wants it.
func (w *world) judge(env spec.EnvName, r release.Record, n state.ChangeNumber, phase string, edit ...func(*judgement)) state.Entry {
	w.t.Helper()
	d, _ := r.Digest()
	p, planBody := w.plan(env, r, d)
	def, _ := w.now.Platform()
	j := &judgement{files: def.Policies[0].Source(), input: policy.Input{V: 1, Now: w.at, Phase: policy.Phase(phase), App: r.App,
		Change:      policy.Change{Kind: policy.Apply, Author: policy.Author{Name: "alice", Kind: "local"}},
		Environment: policy.Environment{Name: env, Generation: w.generation(env)}, Plan: &p, After: &r}}
	for _, e := range def.ExceptionsOf("baseline", env) {
		j.exceptions = append(j.exceptions, policy.Exception{ID: e.Name, Rule: e.Rule, Environments: []string{"prod"}, Ticket: e.Ticket, Reason: e.Reason, Expires: e.Expires, GrantedBy: "platform"})
	}
	for _, f := range edit {
		f(j)
	}
	b, err := policy.Compile("baseline", j.files)
	if err != nil {
		w.t.Fatal(err)
	}
	encoded, err := policy.EncodeInput(j.input)
	if err != nil {
		w.t.Fatal(err)
	}
	got, err := b.Decide(w.t.Context(), j.input, j.exceptions)
	if err != nil {
		w.t.Fatal(err)
	}
	raw, err := policy.Encode(got)
	if err != nil {
		w.t.Fatal(err)
	}
	w.keep(b.Archive(), policy.TypeBundle)
	w.keep(encoded, policy.TypeInput)
	body := w.keep(raw, policy.TypeDecision)
	return w.add(system, env, state.PolicyDecision{Phase: phase, Change: n, Policy: "baseline", Bundle: b.Digest(), Input: digest.Of(encoded), Decision: body.Digest,
		Plan: planBody.Digest, Allowed: got.Allowed}, func(e *state.Entry) { e.Body = body })
}

// judgement is what a decision is made of.
type judgement struct {
	files      policy.Files
	input      policy.Input
	exceptions []policy.Exception
}

// request proposes a release.
func (w *world) request(by state.Actor, r release.Record, edit ...func(*judgement)) state.Entry {
	w.t.Helper()
	d := w.known(r)
	_, body := w.plan(r.Env, r, d)
	n := w.now.LastChange() + 1
	env, _ := w.now.Environment(platform.Env)
	e := w.add(by, r.Env, state.ChangeRequest{Change: n, Move: state.MovedByApply, App: r.App, Base: w.generation(r.Env), Release: d, Bundle: r.Bundle, Plan: body.Digest,
		Definition: env.Head.Release, ExpiresAt: w.at.Add(24 * time.Hour)}, func(e *state.Entry) { e.Body, e.Reason = body, "a new version" })
	w.judge(r.Env, r, n, state.PhaseRequest, edit...)
	return e
}

// sign returns a statement and its signature.
func sign(s change.Statement, key ssh.Signer, namespace string) (text string, sig state.Signature) {
	b, err := s.Encode()
	if err != nil {
		panic(err)
	}
	made, err := sshsig.Sign(bytes.NewReader(b), key, sshsig.HashSHA512, namespace)
	if err != nil {
		panic(err)
	}
	armored, err := sshkey.FromSSHSIG(made)
	if err != nil {
		panic(err)
	}
	return string(b), state.Signature{Format: "sshsig", Namespace: namespace, KeyID: ssh.FingerprintSHA256(key.PublicKey()), Sig: []byte(armored.String())}
}

// statement is what somebody signs to approve the newest change.
func (w *world) statement(name string) change.Statement {
	c, err := w.now.Change(w.now.LastChange())
	if err != nil {
		w.t.Fatal(err)
	}
	return change.Statement{V: 1, Log: origin, Meaning: change.Approval, Env: c.Env, Change: int(c.Change), Request: string(c.ID), Plan: c.Plan, Release: c.Release,
		Signer: platform.PrincipalName(name), SignedAt: w.at}
}

// approve approves the newest change.
func (w *world) approve(name string) state.Entry {
	s := w.statement(name)
	text, sig := sign(s, signerOf(name), s.Meaning.Namespace())
	return w.approval(name, text, sig)
}

func (w *world) approval(name, text string, sig state.Signature) state.Entry {
	w.t.Helper()
	n := w.now.LastChange()
	c, _ := w.now.Change(n)
	return w.add(person(name), c.Env, state.ChangeApprove{Change: n, Statement: text}, func(e *state.Entry) { e.Sigs = []state.Signature{sig} })
}

// carryOut carries the newest change out.
func (w *world) carryOut(by string, r release.Record, edit ...func(*judgement)) state.Entry {
	w.t.Helper()
	n := w.now.LastChange()
	w.judge(r.Env, r, n, state.PhaseApply, edit...)
	return w.apply(person(by), r, state.Governed{Change: n}, "")
}

// governed is a ledger with one good change of prod.
func governed(t testing.TB) *world {
	w := newWorld(t)
	w.define(system, rules())
	w.later(time.Hour)
	w.request(person("alice"), w.shop("prod", "1", 2))
	w.later(time.Hour)
	w.approve("bob")
	w.approve("carol")
	w.carryOut("dave", w.shop("prod", "1", 2))
	w.later(time.Hour)
	return w
}

// export signs the ledger as it is, and exports it. Signed entries need not be such as a server would write.
func (w *world) export(edit ...func(*evidence.Request)) fstest.MapFS {
	w.t.Helper()
	var leaves [][]byte
	for _, e := range w.entries {
		b, err := state.Encode(e)
		if err != nil {
			w.t.Fatal(err)
		}
		leaves = append(leaves, b)
	}
	out, err := exportOf(w.t.Context(), w.source(leaves), w.vkey, w.skey, w.at, edit...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func exportOf(ctx context.Context, s *source, vkey, skey string, at time.Time, edit ...func(*evidence.Request)) (fstest.MapFS, error) {
	out := fstest.MapFS{}
	r := evidence.Request{VKey: vkey, Tool: "test", Now: at, Write: func(p string, b []byte) error {
		out[p] = &fstest.MapFile{Data: bytes.Clone(b), Mode: 0o644}
		return nil
	}}
	for _, f := range edit {
		f(&r)
	}
	x, err := evidence.Export(ctx, s, r)
	if err != nil {
		return nil, err
	}
	signer, _, err := ledger.ParseKey(skey)
	if err != nil {
		return nil, err
	}
	note, err := evidence.Receipt{Log: origin, Entry: x.Manifest.Size, Manifest: x.Digest}.Sign(signer)
	out[evidence.FileNote] = &fstest.MapFile{Data: note}
	return out, err
}

// source is a log in memory.
type source struct {
	*ledger.Log
	blobs    map[digest.Digest][]byte
	attached []evidence.Attachment
}

func (w *world) source(leaves [][]byte) *source {
	w.t.Helper()
	signer, verifier, err := ledger.ParseKey(w.skey)
	if err != nil {
		w.t.Fatal(err)
	}
	disk, err := storetest.NewDisk().Open()
	if err != nil {
		w.t.Fatal(err)
	}
	log, err := ledger.Open(w.t.Context(), disk, ledger.Config{Origin: origin, Signer: signer, Verifier: verifier})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { log.Close() })
	for part := range slices.Chunk(leaves, 10_000) {
		if _, err := log.Append(w.t.Context(), func(int64) ([][]byte, error) { return part, nil }); err != nil {
			w.t.Fatal(err)
		}
	}
	return &source{log, w.blobs, w.attached}
}

func (s *source) Resource(ctx context.Context, path string) ([]byte, error) {
	if path == "checkpoint.cosigned" {
		return nil, fault.Errorf(fault.NotFound, "none")
	}
	return s.Tile(ctx, path)
}

func (s *source) CheckpointAt(ctx context.Context, size int64) ([]byte, error) {
	for c, err := range s.Checkpoints(ctx, size, s.Size()) {
		return c, err
	}
	return nil, fault.Errorf(fault.NotFound, "no checkpoint of %d", size)
}

func (s *source) Blob(_ context.Context, d digest.Digest) ([]byte, error) {
	b, ok := s.blobs[d]
	if !ok {
		return nil, fault.Errorf(fault.NotFound, "no %s", d)
	}
	return b, nil
}

func (s *source) Attached(context.Context, digest.Digest) ([]evidence.Attachment, error) {
	return s.attached, nil
}

// verify checks a bundle.
func (w *world) verify(fsys fs.FS) evidence.Report {
	w.t.Helper()
	r, err := evidence.Verify(w.t.Context(), fsys, evidence.Options{VKey: w.vkey, Tool: "test"})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// lines says what was found, one line each.
func lines(fs []evidence.Finding) string {
	var b strings.Builder
	for _, f := range fs {
		fmt.Fprintf(&b, "%s %s: %s\n", f.Severity, f.Check, f)
	}
	return b.String()
}

func files(fsys fstest.MapFS) []string { return slices.Sorted(maps.Keys(fsys)) }
