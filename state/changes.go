package state

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
)

// The kinds of entries of the life of a change, and of what governs it. docs/ledger.md describes each.
const (
	KindChangeRequest  Kind = "change.request"
	KindChangeApprove  Kind = "change.approve"
	KindChangeReject   Kind = "change.reject"
	KindChangeWithdraw Kind = "change.withdraw"
	KindChangeVoid     Kind = "change.void"
	KindChangeConfirm  Kind = "change.confirm"
	KindChangeReview   Kind = "change.review"
	KindPolicyDecision Kind = "policy.decision"
	KindReleaseRevoke  Kind = "release.revoke"
	KindAccessDenied   Kind = "access.denied"
)

// ChangeNumber names a change: 1, 2, 3 … in the order of the ledger.
type ChangeNumber int

// ChangeRequest proposes to move a head. The entry's body is the plan.
type ChangeRequest struct {
	Change     ChangeNumber  `json:"change"`
	Move       MoveKind      `json:"move"` // MovedByApply, MovedByRollback, MovedByDestroy or MovedByFork
	App        spec.AppName  `json:"app"`
	Base       int           `json:"base,omitempty"`    // generation that it was planned against
	Release    digest.Digest `json:"release,omitempty"` // unset: of a destroy
	Bundle     digest.Digest `json:"bundle,omitempty"`
	Plan       digest.Digest `json:"plan"`
	To         int           `json:"to,omitempty"`         // of a rollback: the generation to go back to
	Volumes    bool          `json:"volumes,omitempty"`    // of a destroy: the volumes as well
	ConfirmMS  int64         `json:"confirm_ms,omitempty"` // it is reverted unless confirmed this long after it was carried out
	ExpiresAt  time.Time     `json:"expires_at,omitzero"`  // unset: it waits for good
	Definition digest.Digest `json:"definition,omitempty"` // release of the platform whose rules are in force
	Fork       *ForkOf       `json:"fork,omitempty"`       // of a fork: of what, and with what of its own
	Promoted   *Promoted     `json:"promoted,omitempty"`   // of an apply: from where

	Restore []deploy.Restore `json:"restore,omitempty"` // of a rollback: as in change.rollback
}

// ChangeApprove is a signed approval. The entry's signature is over Statement, in the namespace of its meaning.
type ChangeApprove struct {
	Change    ChangeNumber `json:"change"`
	Statement string       `json:"statement"` // canonical JSON of a change.Statement
}

// ChangeReject is a signed rejection, which closes the change.
type ChangeReject struct {
	Change    ChangeNumber `json:"change"`
	Statement string       `json:"statement"`
}

// ChangeWithdraw takes a change back.
type ChangeWithdraw struct {
	Change ChangeNumber `json:"change"`
}

// ChangeVoid closes a change that can't be carried out any more.
type ChangeVoid struct {
	Change ChangeNumber `json:"change"`
	Cause  string       `json:"cause"`
}

// ChangeConfirm says that a head that was to be confirmed may stay.
type ChangeConfirm struct {
	Generation int `json:"generation"`
}

// ChangeReview is somebody else's signed look at what was done in an emergency.
type ChangeReview struct {
	Generation int    `json:"generation"`
	Verdict    string `json:"verdict"` // "accepted" or "objected"
	Statement  string `json:"statement"`
}

// PolicyDecision is what a policy said of a change. The entry's body is the decision.
type PolicyDecision struct {
	Phase    string        `json:"phase"`            // "request" or "apply"
	Change   ChangeNumber  `json:"change,omitempty"` // unset: of a move that needed no approval
	Policy   string        `json:"policy"`           // its name in the platform's definition
	Bundle   digest.Digest `json:"bundle"`           // of the OPA bundle
	Input    digest.Digest `json:"input"`
	Decision digest.Digest `json:"decision"`
	Plan     digest.Digest `json:"plan"`
	Allowed  bool          `json:"allowed"`
}

// ReleaseRevoke blocks a release for good.
type ReleaseRevoke struct {
	Release digest.Digest `json:"release"`
}

// AccessDenied is a refusal by the gate.
type AccessDenied struct {
	Operation  string `json:"operation"`
	Permission string `json:"permission,omitempty"` // that was lacking; unset: nobody was let in
	Source     string `json:"source,omitempty"`     // address that the request came from
	Cause      string `json:"cause"`
	Repeated   int    `json:"repeated,omitempty"` // further refusals of the same kind that this entry stands for
}

// EntryKind returns the kind.
func (ChangeRequest) EntryKind() Kind  { return KindChangeRequest }
func (ChangeApprove) EntryKind() Kind  { return KindChangeApprove }
func (ChangeReject) EntryKind() Kind   { return KindChangeReject }
func (ChangeWithdraw) EntryKind() Kind { return KindChangeWithdraw }
func (ChangeVoid) EntryKind() Kind     { return KindChangeVoid }
func (ChangeConfirm) EntryKind() Kind  { return KindChangeConfirm }
func (ChangeReview) EntryKind() Kind   { return KindChangeReview }
func (PolicyDecision) EntryKind() Kind { return KindPolicyDecision }
func (ReleaseRevoke) EntryKind() Kind  { return KindReleaseRevoke }
func (AccessDenied) EntryKind() Kind   { return KindAccessDenied }

func (c ChangeRequest) check(e Entry) error {
	if e.Body == nil || e.Body.Digest != c.Plan {
		return errors.New("want the plan as body")
	}
	if c.Base < 0 || c.To < 0 || c.ConfirmMS < 0 {
		return errors.New("a number is negative")
	}
	err := errors.Join(somewhere(e), c.Change.check(), spec.CheckName(string(c.App)), required(c.Plan), optional(c.Definition))
	switch c.Move {
	case MovedByFork:
		if c.Fork == nil || c.Restore != nil {
			return errors.New("a fork of nothing, or of what it restores")
		}
		return errors.Join(err, c.Fork.check(), required(c.Release, c.Bundle))
	}
	if c.Fork != nil {
		return fmt.Errorf("move %q is no fork", c.Move)
	}
	if c.Promoted != nil && c.Move != MovedByApply {
		return fmt.Errorf("move %q is no promotion", c.Move)
	}
	if c.Move != MovedByRollback && c.Restore != nil {
		return fmt.Errorf("move %q restores no volumes", c.Move)
	}
	err = errors.Join(err, checkRestores(c.Restore, ""))
	switch c.Move {
	case MovedByApply, MovedByRollback:
		return errors.Join(err, required(c.Release, c.Bundle), c.Promoted.check())
	case MovedByDestroy:
		if c.Release+c.Bundle != "" {
			return errors.New("a destroy has no release")
		}
		return err
	}
	return fmt.Errorf("move %q is not known", c.Move)
}

func (n ChangeNumber) check() error {
	if n < 1 {
		return fmt.Errorf("change %d", n)
	}
	return nil
}

// signed checks a kind that carries a statement and its one signature.
func signed(e Entry, statement string) error {
	if statement == "" || len(e.Sigs) != 1 || e.Sigs[0].Format != "sshsig" || e.Sigs[0].Namespace == "" || len(e.Sigs[0].Sig) == 0 {
		return errors.New("want a statement and one signature of it")
	}
	return somewhere(e)
}

func (c ChangeApprove) check(e Entry) error {
	return errors.Join(signed(e, c.Statement), c.Change.check())
}
func (c ChangeReject) check(e Entry) error {
	return errors.Join(signed(e, c.Statement), c.Change.check())
}
func (c ChangeWithdraw) check(e Entry) error { return errors.Join(somewhere(e), c.Change.check()) }

func (c ChangeVoid) check(e Entry) error {
	if c.Cause == "" {
		return errors.New("want a cause")
	}
	return errors.Join(somewhere(e), c.Change.check())
}

func (c ChangeConfirm) check(e Entry) error { return errors.Join(somewhere(e), positive(c.Generation)) }

func (c ChangeReview) check(e Entry) error {
	if c.Verdict != Accepted && c.Verdict != Objected {
		return fmt.Errorf("verdict %q is not known", c.Verdict)
	}
	return errors.Join(signed(e, c.Statement), positive(c.Generation))
}

func positive(generation int) error {
	if generation < 1 {
		return fmt.Errorf("generation %d", generation)
	}
	return nil
}

func (p PolicyDecision) check(e Entry) error {
	if e.Body == nil || e.Body.Digest != p.Decision {
		return errors.New("want the decision as body")
	}
	if p.Phase != PhaseRequest && p.Phase != PhaseApply {
		return fmt.Errorf("phase %q is not known", p.Phase)
	}
	return errors.Join(somewhere(e), spec.CheckName(p.Policy), required(p.Bundle, p.Input, p.Decision, p.Plan))
}

func (r ReleaseRevoke) check(e Entry) error { return errors.Join(somewhere(e), required(r.Release)) }

func (a AccessDenied) check(Entry) error {
	if a.Operation == "" || a.Cause == "" || a.Repeated < 0 {
		return errors.New("want an operation and a cause")
	}
	return nil
}

// Phases of a policy's decision, and verdicts of a review.
const (
	PhaseRequest = "request"
	PhaseApply   = "apply"

	Accepted = "accepted"
	Objected = "objected"
)

// ChangeStatus is where a change stands.
type ChangeStatus string

// The statuses. All but ChangeOpen are for good.
const (
	ChangeOpen      ChangeStatus = "open"
	ChangeApplied   ChangeStatus = "applied"
	ChangeRejected  ChangeStatus = "rejected"
	ChangeWithdrawn ChangeStatus = "withdrawn"
	ChangeVoided    ChangeStatus = "void"
)

// Change is a proposal to move a head, and what became of it.
type Change struct {
	ChangeRequest
	Env       spec.EnvName `json:"env"`
	ID        EntryID      `json:"id"` // of the request
	Entry     int64        `json:"entry"`
	Author    Actor        `json:"author"`
	Reason    string       `json:"reason,omitempty"`
	At        time.Time    `json:"at"`
	Status    ChangeStatus `json:"status"`
	Cause     string       `json:"cause,omitempty"` // of its being void, or the reason of who closed it
	ClosedBy  Actor        `json:"closed_by,omitzero"`
	ClosedAt  time.Time    `json:"closed_at,omitzero"`
	Applied   int          `json:"applied,omitempty"` // the generation that it became
	Approvals []Approval   `json:"approvals,omitempty"`
	Decisions []Decision   `json:"decisions,omitempty"`
}

// Decision is a policy's judgement of a change.
type Decision struct {
	PolicyDecision
	Entry int64 `json:"entry"`
}

// Approval is a signed approval of a change.
type Approval struct {
	Entry int64     `json:"entry"`
	By    Actor     `json:"by"`
	At    time.Time `json:"at"`
	KeyID string    `json:"key_id"`
	Note  string    `json:"note,omitempty"` // the approver's reason
}

// Approvers are the principals whose approvals stand.
func (c Change) Approvers() []platform.PrincipalName {
	var out []platform.PrincipalName
	for _, a := range c.Approvals {
		out = append(out, a.By.Principal)
	}
	return out
}

// Case is the change as the approval rules see it. A rollback is one to a release that completed in the environment.
func (c Change) Case() platform.Case {
	return platform.Case{Env: c.Env, Author: c.Author.Principal, Approvers: c.Approvers(), Rollback: c.Move == MovedByRollback}
}

// Revocation says that a release is blocked.
type Revocation struct {
	Release digest.Digest `json:"release"`
	Entry   int64         `json:"entry"`
	By      Actor         `json:"by"`
	At      time.Time     `json:"at"`
	Reason  string        `json:"reason"`
}

// Review is what is due after an emergency.
type Review struct {
	Generation int       `json:"generation"`
	By         Actor     `json:"by"` // who acted
	DueAt      time.Time `json:"due_at"`
}

// Change returns a change. It fails with fault.NotFound.
func (s State) Change(n ChangeNumber) (Change, error) {
	c := get[Change](s.db.Txn(false), tableChanges, "id", changeKey(n))
	if c == nil {
		return Change{}, fault.WithHint(fault.Errorf(fault.NotFound, "there is no change %d", n), "invar change list")
	}
	return *c, nil
}

// Changes yields every change, by number.
func (s State) Changes() iter.Seq[Change] {
	return all[Change](s.db.Txn(false), tableChanges, "")
}

// OpenChanges returns the changes of an environment that are open, by number; env "" is all environments.
func (s State) OpenChanges(env spec.EnvName) []Change {
	return openChanges(s.db.Txn(false), env)
}

// LastChange is the number of the newest change; 0: there was none.
func (s State) LastChange() ChangeNumber { return s.Log().LastChange }

// Revoked returns the revocation of a release.
func (s State) Revoked(d digest.Digest) (Revocation, bool) {
	r := get[Revocation](s.db.Txn(false), tableRevocations, "id", string(d))
	if r == nil {
		return Revocation{}, false
	}
	return *r, true
}

// Revocations yields every revocation, by release.
func (s State) Revocations() iter.Seq[Revocation] {
	return all[Revocation](s.db.Txn(false), tableRevocations, "")
}

// DefinedBy says who put the platform's definition in force: who applied it, who had proposed and who approved it, and its release.
// What returned to an earlier definition does not count: it was in force before. It is "" where there is none.
//
//	dave, as proposed by root and approved by alice and carol: platform@4, release sha256:…
func (s State) DefinedBy() string {
	env, err := s.Environment(platform.Env)
	if err != nil || env.Head.Release == "" {
		return ""
	}
	by, err := s.Generation(platform.Env, env.Head.Number)
	for g := range s.Heads(env.Head.Release) {
		if g.Env == platform.Env && g.Kind == MovedByApply { // in the order of their numbers
			by, err = g, nil
		}
	}
	if err != nil {
		return ""
	}
	who := by.Actor.Who()
	if c, err := s.Change(by.Of); by.Of != 0 && err == nil {
		who += ", as proposed by " + c.Author.Who()
		var approvers []string
		for _, a := range c.Approvals {
			approvers = append(approvers, a.By.Who())
		}
		if approvers != nil {
			who += " and approved by " + strings.Join(approvers, " and ")
		}
	}
	return fmt.Sprintf("%s: %s@%d, release %s", who, platform.Env, by.Number, by.Release)
}

func changeKey(n ChangeNumber) string { return fmt.Sprintf("%010d", n) }

// changeRequest opens a change.
func (f *fold) changeRequest(e Entry, d ChangeRequest) error {
	env := f.environment(e.Env)
	switch {
	case d.Change != f.log.LastChange+1:
		return fault.Errorf(fault.Conflict, "change %d does not follow %d", d.Change, f.log.LastChange)
	case env.Head.Number != d.Base:
		return fault.Errorf(fault.Conflict, "environment %s is at generation %d, not %d", e.Env, env.Head.Number, d.Base)
	}
	if d.Release != "" {
		known, of := get[KnownRelease](f.tx, tableReleases, "id", string(d.Release)), e.Env
		switch {
		case d.Fork != nil:
			of = d.Fork.Of
		case d.Move == MovedByRollback && env.Fork != nil:
			of = env.Fork.Of
		}
		if known == nil || known.Env != of || known.Bundle != d.Bundle || known.App != d.App {
			return fault.Errorf(fault.Conflict, "release %s of bundle %s is not known for environment %s", d.Release, d.Bundle, e.Env)
		}
	}
	f.log.LastChange = d.Change
	f.put(tableChanges, &Change{ChangeRequest: d, Env: e.Env, ID: e.ID, Entry: f.log.Size, Author: e.Actor, Reason: e.Reason, At: e.Time, Status: ChangeOpen})
	return nil
}

// open returns an open change of the entry's environment, to change a copy of it.
func (f *fold) open(e Entry, n ChangeNumber) (*Change, error) {
	c := get[Change](f.tx, tableChanges, "id", changeKey(n))
	switch {
	case c == nil || c.Env != e.Env:
		return nil, fault.Errorf(fault.NotFound, "environment %s has no change %d", e.Env, n)
	case c.Status != ChangeOpen:
		return nil, fault.Errorf(fault.Conflict, "change %d is %s already", n, c.Status)
	}
	copied := *c
	copied.Approvals = slices.Clone(c.Approvals)
	return &copied, nil
}

func (f *fold) approve(e Entry, d ChangeApprove) error {
	c, err := f.open(e, d.Change)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(c.Approvals, func(a Approval) bool { return a.By.Principal == e.Actor.Principal })
	if e.Actor.Principal == "" || i >= 0 && c.Approvals[i].KeyID == e.Sigs[0].KeyID {
		return fault.Errorf(fault.Conflict, "change %d is approved by %s already", d.Change, e.Actor)
	}
	if i >= 0 { // with another key: the first may not be his any more
		c.Approvals = slices.Delete(c.Approvals, i, i+1)
	}
	c.Approvals = append(c.Approvals, Approval{Entry: f.log.Size, By: e.Actor, At: e.Time, KeyID: e.Sigs[0].KeyID, Note: e.Reason})
	f.put(tableChanges, c)
	return nil
}

// decided notes what a policy said of an open change.
func (f *fold) decided(e Entry, d PolicyDecision) error {
	if d.Change == 0 {
		return nil
	}
	c, err := f.open(e, d.Change)
	if err != nil {
		return err
	}
	c.Decisions = append(slices.Clone(c.Decisions), Decision{d, f.log.Size})
	f.put(tableChanges, c)
	return nil
}

// closeChange ends a change.
func (f *fold) closeChange(e Entry, n ChangeNumber, status ChangeStatus, cause string) error {
	c, err := f.open(e, n)
	if err != nil {
		return err
	}
	c.Status, c.Cause, c.ClosedBy, c.ClosedAt = status, cause, e.Actor, e.Time
	f.put(tableChanges, c)
	return nil
}

// carriedOut closes the change that a move carries out, which must be the one that was approved, and every other open
// change of the environment: those were planned against another head.
func (f *fold) carriedOut(e Entry, n ChangeNumber, g Generation) error {
	if n != 0 {
		c, err := f.open(e, n)
		if err != nil {
			return err
		}
		if c.Base != g.Number-1 || c.Move != g.Kind || c.Release != g.Release || c.Plan != g.Plan && g.Plan != "" || !c.Fork.same(g.Fork) || !c.Promoted.same(g.Promoted) || c.To != g.To || c.Volumes != g.Volumes ||
			g.Kind != MovedByFork && !slices.Equal(c.Restore, g.Restore) {
			return fault.Errorf(fault.Conflict, "change %d is another move than this", n)
		}
		c.Status, c.ClosedBy, c.ClosedAt, c.Applied = ChangeApplied, e.Actor, e.Time, g.Number
		f.put(tableChanges, c)
	}
	f.voidOthers(e, g.Number)
	return nil
}

// voidOthers closes the changes of the environment that were planned against an earlier head.
func (f *fold) voidOthers(e Entry, generation int) {
	for _, c := range openChanges(f.tx, e.Env) {
		c.Status, c.Cause, c.ClosedBy, c.ClosedAt = ChangeVoided, fmt.Sprintf("the head moved to generation %d", generation), e.Actor, e.Time
		f.put(tableChanges, &c)
	}
}

func (f *fold) confirm(e Entry, d ChangeConfirm) error {
	env := f.environment(e.Env)
	if env.Head.Number != d.Generation || env.ConfirmBy.IsZero() {
		return fault.Errorf(fault.Conflict, "generation %d of environment %s does not wait to be confirmed", d.Generation, e.Env)
	}
	env.ConfirmBy, env.Entry = time.Time{}, f.log.Size
	f.put(tableEnvironments, &env)
	return nil
}

func (f *fold) review(e Entry, d ChangeReview) error {
	env := f.environment(e.Env)
	i := slices.IndexFunc(env.Reviews, func(r Review) bool { return r.Generation == d.Generation })
	switch {
	case i < 0:
		return fault.Errorf(fault.Conflict, "no review of generation %d of environment %s is due", d.Generation, e.Env)
	case e.Actor.Principal == "" || env.Reviews[i].By.Principal == e.Actor.Principal:
		return fault.Errorf(fault.Denied, "whoever acted can't review it")
	}
	env.Reviews, env.Entry = slices.Delete(slices.Clone(env.Reviews), i, i+1), f.log.Size
	f.put(tableEnvironments, &env)
	return nil
}

// revoke blocks a release. No rollout may fall back to it by itself.
func (f *fold) revoke(e Entry, d ReleaseRevoke) error {
	known := get[KnownRelease](f.tx, tableReleases, "id", string(d.Release))
	switch {
	case known == nil || known.Env != e.Env:
		return fault.Errorf(fault.NotFound, "environment %s has no release %s", e.Env, d.Release)
	case get[Revocation](f.tx, tableRevocations, "id", string(d.Release)) != nil:
		return fault.Errorf(fault.Conflict, "release %s is revoked already", d.Release)
	}
	f.put(tableRevocations, &Revocation{Release: d.Release, Entry: f.log.Size, By: e.Actor, At: e.Time, Reason: e.Reason})
	env := f.environment(e.Env)
	if env.Head.Number == 0 {
		return f.revokeInForks(e.Env, d.Release)
	}
	env.Environment = env.Revoke(d.Release)
	env.Entry = f.log.Size
	f.put(tableEnvironments, &env)
	return f.revokeInForks(e.Env, d.Release)
}

// openKey is what the index of open changes has of a change; nothing of a closed one.
func openKey(c *Change) string {
	if c.Status != ChangeOpen {
		return ""
	}
	return string(c.Env)
}

// openChanges returns copies of the open changes of an environment, "" for all, by number.
func openChanges(tx *memdb.Txn, env spec.EnvName) []Change {
	index, args := indexOpen, string(env)
	if env == "" {
		index += "_prefix"
	}
	it, err := tx.Get(tableChanges, index, args)
	must(err)
	var out []Change
	for raw := it.Next(); raw != nil; raw = it.Next() {
		out = append(out, *raw.(*Change))
	}
	slices.SortFunc(out, func(a, b Change) int { return int(a.Change - b.Change) })
	return out
}
