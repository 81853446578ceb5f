package evidence

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"slices"
	"time"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity/sshkey"
	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/policy"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// Move is a head that moved: one of the population that an auditor draws a sample from.
type Move struct {
	Index      int64
	Entry      state.Entry
	Generation state.Generation
	Change     *state.Change // that it carried out; nil: it needed no approval
	Override   string        // the freeze that it was made in spite of
	Decisions  []int64       // indexes of the policies' decisions on it
}

// Signed is a statement that somebody signed, with its signature.
type Signed struct {
	Index     int64
	Time      time.Time // of the entry
	Statement change.Statement
	Text      string
	Signature []byte // armored
	Facts     sshkey.Facts
	OK        bool // it verifies
}

// Decided is a policy's decision.
type Decided struct {
	Index    int64
	Entry    state.Entry
	Data     state.PolicyDecision
	Decision policy.Decision // zero: its body is not here
}

// Audit is what the fold of a whole ledger says of a scope.
type Audit struct {
	Scope     Scope
	Log       string
	Size      int64 // entries that were folded; fewer than there are after an entry that can't be
	Moves     []Move
	Signed    []Signed
	Decisions []Decided
	Signers   []sshkey.AllowedSigner
	Findings  []Finding
	Checks    []Checked
	Kinds     map[state.Kind]int // entries of the scope
	Began     time.Time          // time of the scope's first entry
	Ended     time.Time          // and of its last

	entries []state.Entry // of the whole ledger
}

// Blobs gives content by digest, false when it is not there.
type Blobs func(d digest.Digest) ([]byte, bool)

// run folds a ledger from its first entry on, and checks each entry of which there is something to check against the state before it.
// It never fails but for the end of ctx: what is wrong is a finding.
func run(ctx context.Context, entries []state.Entry, blobs Blobs, vkey string, scope Scope, now time.Time) (*Audit, error) {
	_, key, err := ledger.PublicKey(vkey)
	if err != nil {
		return nil, err
	}
	a := &auditor{
		Audit: Audit{Scope: scope, Kinds: map[state.Kind]int{}, entries: entries}, ctx: ctx, blobs: blobs, key: key, now: now,
		records: map[digest.Digest]release.Record{}, decided: map[spec.EnvName][]int{}, counts: map[string]int{}, once: map[string]bool{}, seen: map[spec.EnvName]time.Time{},
		erased: erasures(entries), compiled: map[digest.Digest]compiled{}, keys: map[keyOf]*sshkey.AllowedSigner{},
	}
	a.state = state.New(a.record)
	for i, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !a.step(int64(i), e) {
			break
		}
	}
	if a.flush() {
		a.Size = a.state.Size()
		a.atEnd()
	}
	a.finish()
	return &a.Audit, nil
}

// auditor is one run.
type auditor struct {
	Audit
	ctx   context.Context
	blobs Blobs
	key   ed25519.PublicKey // the log's
	now   time.Time

	state   state.State // before the entries in pending
	pending []state.Entry
	records map[digest.Digest]release.Record

	since    time.Time           // when the definition in force came to be
	before   platform.Definition // that was in force until then
	compiled map[digest.Digest]compiled
	keys     map[keyOf]*sshkey.AllowedSigner

	decided map[spec.EnvName][]int // decisions since the environment's head moved last, as indexes of Decisions
	erased  map[digest.Digest]bool
	counts  map[string]int
	once    map[string]bool            // findings that are made once
	seen    map[spec.EnvName]time.Time // when what an environment runs was measured last, or began to run

	index int64 // of the entry at hand
	entry state.Entry
	last  time.Time // of the entry before
}

// The checks, and what each of them shows.
var checks = []Checked{
	{Check: "fold", What: "entries follow from those before them"},
	{Check: "body", What: "bodies are what the entries name"},
	{Check: "permission", What: "actors had the permission for what they did"},
	{Check: "signature", What: "approvals, rejections and reviews are signed by a key that their signer had then, about this and nothing else"},
	{Check: "approval", What: "moved heads had all approvals that the rules asked for, by people who could give them"},
	{Check: "separation", What: "approved changes were carried out by somebody who may"},
	{Check: "plan", What: "plans say what lies between the two releases"},
	{Check: "promotion", What: "promoted bundles had run healthy where they came from, for as long as was asked for"},
	{Check: "freeze", What: "moved heads kept to the freezes"},
	{Check: "policy", What: "decisions of policies come out the same again, of the policy and the exceptions in force"},
	{Check: "judged", What: "moved heads were judged by every policy in force"},
	{Check: "attestation", What: "what the server attests is signed with the log's key, and says what its entry and the ledger say"},
	{Check: "provenance", What: "provenance is signed with the log's key"},
}

func (a *auditor) count(check string) { a.counts[check]++ }

func (a *auditor) finish() {
	for _, c := range checks {
		if c.Count = a.counts[c.Check]; c.Count > 0 {
			a.Checks = append(a.Checks, c)
		}
	}
	for i, m := range a.Moves { // what became of it is known only now
		if g, err := a.state.Generation(m.Generation.Env, m.Generation.Number); err == nil {
			a.Moves[i].Generation = g
		}
	}
	for _, k := range a.keys {
		a.Signers = append(a.Signers, *k)
	}
	slices.SortFunc(a.Signers, func(x, y sshkey.AllowedSigner) int {
		if c := slices.Compare(x.Principals, y.Principals); c != 0 {
			return c
		}
		if c := x.ValidAfter.Compare(y.ValidAfter); c != 0 {
			return c
		}
		return slices.Compare([]string{x.Key.String()}, []string{y.Key.String()})
	})
	sortFindings(a.Findings)
}

// find adds a finding about the entry at hand.
func (a *auditor) find(s Severity, check, format string, args ...any) {
	if s != Failure && !a.Scope.has(a.index, a.entry.Env) {
		return
	}
	a.Findings = append(a.Findings, findingOf(a.index, a.entry, s, check, fmt.Sprintf(format, args...)))
}

func findingOf(index int64, e state.Entry, s Severity, check, message string) Finding {
	return Finding{Severity: s, Check: check, Entry: index, ID: e.ID, Kind: e.Kind(), Env: e.Env, Time: e.Time, Controls: bearing(check), Message: message}
}

func (a *auditor) fail(check string, err error) { a.find(Failure, check, "%s", err) }

// check counts a check, and makes a failure of what it found.
func (a *auditor) check(check string, err error) {
	a.count(check)
	if err != nil {
		a.fail(check, err)
	}
}

// record resolves a release from the bundle's files.
func (a *auditor) record(d digest.Digest) (release.Record, error) {
	if r, ok := a.records[d]; ok {
		return r, nil
	}
	b, ok := a.blobs(d)
	if !ok {
		return release.Record{}, fault.Errorf(fault.NotFound, "release %s is not here", d)
	}
	r, err := release.Decode(b)
	if err == nil {
		a.records[d] = r
	}
	return r, err
}

// step takes up one entry; false: the fold can't go on.
func (a *auditor) step(index int64, e state.Entry) bool {
	a.index, a.entry = index, e
	if a.Scope.has(index, e.Env) {
		a.Kinds[e.Kind()]++
		a.Ended = e.Time
		if a.Began.IsZero() {
			a.Began = e.Time
		}
	}
	a.clock()
	a.body()
	a.count("fold")
	if !judged(e) {
		a.pending = append(a.pending, e)
		return true
	}
	if !a.flush() {
		return false
	}
	a.index, a.entry = index, e
	a.judge()
	rules, _ := a.definition()
	next, err := a.state.Apply(index, e)
	if err != nil {
		a.fail("fold", err)
		return false
	}
	a.state = next
	if moved(e) {
		a.headMoved(rules)
	}
	return true
}

// clock notes a clock that went back by more than clocks are off anyway.
func (a *auditor) clock() {
	if back := a.last.Sub(a.entry.Time); back > change.MaxSkew {
		a.find(Gap, "clock", "the server's clock went back by %s since the entry before", back.Round(time.Second))
	}
	a.last = a.entry.Time
}

// flush folds the entries that nothing was to be checked of. Many at once cost much less than one by one.
func (a *auditor) flush() bool {
	first := a.state.Size()
	next, err := a.state.ApplyAll(first, a.pending)
	if err == nil {
		a.state, a.pending = next, a.pending[:0]
		return true
	}
	for i, e := range a.pending { // which one?
		a.index, a.entry = first+int64(i), e
		next, err := a.state.Apply(a.index, e)
		if err != nil {
			a.fail("fold", err)
			return false
		}
		a.state = next
	}
	a.fail("fold", err)
	return false
}

// judged reports whether there is something to check of an entry against the state before it.
func judged(e state.Entry) bool {
	switch e.Data.(type) {
	case state.Genesis, state.LogStop, state.Bundle, state.Release, state.TokenCreate, state.TokenRevoke:
		return false
	case state.Step:
		return stepJudged(e)
	}
	return true
}

// body checks the content that the entry names.
func (a *auditor) body() {
	b := a.entry.Body
	if b == nil || !a.Scope.has(a.index, a.entry.Env) {
		return
	}
	a.check("body", a.present(b.Digest, b.Size))
}

// present says whether content is here, or was erased as an entry says.
func (a *auditor) present(d digest.Digest, size int64) error {
	raw, ok := a.blobs(d)
	switch {
	case !ok && a.erased[d]:
		a.find(Notice, "body", "its body, %s, was erased", d)
		return nil
	case !ok:
		return fmt.Errorf("its body, %s, is missing, and no entry says that it was erased", d)
	case int64(len(raw)) != size:
		return fmt.Errorf("its body, %s, has %d bytes; it says %d", d, len(raw), size)
	}
	return nil
}

// kindErasure is the kind of entries that say that content was erased.
const kindErasure state.Kind = "erasure"

// erasures lists what was erased.
func erasures(entries []state.Entry) map[digest.Digest]bool {
	out := map[digest.Digest]bool{}
	for _, e := range entries {
		if e.Kind() != kindErasure {
			continue
		}
		var d struct {
			Digest digest.Digest `json:"digest"`
		}
		if fields(e, &d) == nil {
			out[d.Digest] = true
		}
	}
	return out
}

// lately is how long before an entry its permission may have been asked for.
const lately = 10 * time.Second

// may says why the entry's actor lacked the permission, or nil. A definition that came into force while the request was under way does not
// count against it.
func (a *auditor) may(p platform.Permission) error { return a.mayIn(p, a.entry.Env) }

func (a *auditor) mayIn(p platform.Permission, env spec.EnvName) error {
	rules, ok := a.state.Platform()
	if !ok {
		return nil // nothing is governed before the first definition
	}
	who, at := a.entry.Actor.Principal, a.entry.Time
	if who == "" {
		return fmt.Errorf("%s is nobody in the platform's definition", a.entry.Actor)
	}
	if rules.Allows(who, p, env, at) || rules.Allows(who, p, env, at.Add(-lately)) {
		return nil
	}
	if at.Sub(a.since) < lately && a.before.Allows(who, p, env, at) {
		return nil
	}
	return fmt.Errorf("%s lacked the permission %s", who, p)
}

func (a *auditor) system() bool { return a.entry.Actor.Kind == state.ActorSystem }

// definition is what is in force before the entry at hand, and the release that it is of.
func (a *auditor) definition() (platform.Definition, digest.Digest) {
	d, ok := a.state.Platform()
	if !ok {
		return platform.Definition{}, ""
	}
	return d, a.environment(platform.Env).Head.Release
}

func (a *auditor) environment(name spec.EnvName) state.Environment {
	env, err := a.state.Environment(name)
	if err != nil {
		env.Name = name
	}
	return env
}

// judge checks the entry at hand against the state before it.
func (a *auditor) judge() {
	switch d := a.entry.Data.(type) {
	case state.LogStart:
		a.started(d)
	case state.ChangeRequest:
		a.request(d)
	case state.ChangeApprove:
		a.approve(d)
	case state.ChangeReject:
		a.check("permission", a.may(platform.Approve))
		if c, err := a.state.Change(d.Change); err == nil {
			a.signed(d.Statement, statementOf(c, change.Rejection, a.entry), c.At)
		}
	case state.ChangeWithdraw:
		a.check("permission", a.may(platform.Apply))
	case state.ChangeVoid:
		a.voided(d)
	case state.ChangeConfirm:
		a.check("permission", a.may(platform.Apply))
		if by := a.environment(a.entry.Env).ConfirmBy; !by.IsZero() && a.entry.Time.After(by.Add(moment)) {
			a.fail("confirm", fmt.Errorf("generation %d was to be confirmed by %s", d.Generation, by.Format(time.RFC3339)))
		}
	case state.ChangeReview:
		a.review(d)
	case state.ReleaseRevoke:
		a.check("permission", a.may(platform.Revoke))
		a.find(Notice, "revoked", "release %s was revoked by %s: %s", d.Release.Short(), a.entry.Actor.Who(), a.entry.Reason)
	case state.PolicyDecision:
		a.decision(d)
	case state.Apply:
		a.applied(d)
	case state.Fork:
		a.forked(d)
	case state.Rollback:
		a.move(state.MovedByRollback, d.Release, d.Governed, "")
	case state.Destroy:
		a.move(state.MovedByDestroy, "", d.Governed, "")
	case state.AccessDenied:
		a.denied(d)
	case state.Step:
		a.rollout(d)
	case state.SessionStart:
		a.entered(d)
	case state.SessionEnd:
		a.left(d)
	case state.SecretVersion:
		a.check("permission", a.may(platform.SecretWrite))
	case state.ErasureRequest:
		a.check("permission", a.may(platform.Erase))
	case state.ErasureApprove:
		a.agreed(d)
	case state.Erasure:
		a.erasure(d)
	case state.WitnessAlarm:
		a.find(Gap, "witness", "a witness knew the ledger otherwise: %s", d.Cause)
	case state.VolumeDelete:
		a.check("permission", a.may(platform.Destroy))
	case state.Verify:
		a.measured(d)
	case state.AttestReproduced:
		a.reproduced(d)
	case state.EvidenceExport:
		a.check("permission", a.may(platform.Evidence))
		a.find(Notice, "export", "%s exported entries %d up to %d as evidence", a.entry.Actor.Who(), d.From, d.To-1)
	}
}

// moved reports whether the entry moves a head.
func moved(e state.Entry) bool {
	switch d := e.Data.(type) {
	case state.Apply, state.Fork, state.Rollback, state.Destroy:
		return true
	case state.Step:
		return isRevert(d)
	}
	return false
}

// headMoved takes up a head that the entry at hand moved, under these rules.
func (a *auditor) headMoved(rules platform.Definition) {
	env := a.environment(a.entry.Env)
	g, err := a.state.Generation(env.Name, env.Head.Number)
	if err != nil {
		a.fail("fold", err)
		return
	}
	m := Move{Index: a.index, Entry: a.entry, Generation: g, Override: governed(a.entry).Override}
	for _, i := range a.decided[env.Name] {
		if d := a.Decisions[i]; d.Data.Change == g.Of {
			m.Decisions = append(m.Decisions, d.Index)
		}
	}
	if c, err := a.state.Change(g.Of); g.Of != 0 && err == nil {
		m.Change = &c
	}
	delete(a.decided, env.Name)
	switch _, runs := a.seen[env.Name]; {
	case env.Destroyed():
		a.unmeasured(env.Name, a.entry.Time)
		delete(a.seen, env.Name)
	case !runs && env.Name != platform.Env:
		a.seen[env.Name] = a.entry.Time
	}
	if env.Name == platform.Env {
		a.newDefinition(rules)
	}
	if a.Scope.has(a.index, a.entry.Env) && (a.Scope.Env == "" || a.Scope.Env == a.entry.Env) {
		a.Moves = append(a.Moves, m)
	}
}

func governed(e state.Entry) state.Governed {
	switch d := e.Data.(type) {
	case state.Apply:
		return d.Governed
	case state.Fork:
		return d.Governed
	case state.Rollback:
		return d.Governed
	case state.Destroy:
		return d.Governed
	}
	return state.Governed{}
}

// keyOf is a key that a principal has.
type keyOf struct {
	who platform.PrincipalName
	key string
	n   int // it was given and taken away before
}

// namespaces are those in which people sign.
var namespaces = []string{change.Approval.Namespace(), change.Rejection.Namespace(), change.Review.Namespace(), change.Erasure.Namespace()}

// newDefinition notes which keys people have from now on, and which no longer.
func (a *auditor) newDefinition(before platform.Definition) {
	rules, _ := a.state.Platform()
	has := map[keyOf]sshkey.PublicKey{}
	for _, p := range rules.Principals {
		if p.Disabled {
			continue
		}
		for _, line := range p.SSHKeys {
			if k, err := sshkey.ParsePublicKey(line); err == nil {
				has[keyOf{who: p.Name, key: k.String()}] = k
			}
		}
	}
	at := a.entry.Time
	for id, s := range a.keys {
		plain := keyOf{who: id.who, key: id.key}
		if _, still := has[plain]; still && s.ValidBefore.IsZero() {
			delete(has, plain)
		} else if s.ValidBefore.IsZero() {
			s.ValidBefore = at.Truncate(time.Second)
		}
	}
	for id, k := range has {
		for a.keys[id] != nil {
			id.n++
		}
		a.keys[id] = &sshkey.AllowedSigner{Principals: []string{string(id.who)}, Namespaces: namespaces, ValidAfter: at.Truncate(time.Second), Key: k}
	}
	a.since, a.before = at, before
}
