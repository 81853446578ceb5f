package control

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/identity/sshkey"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// How says in what way a head is asked to move. The zero value is the usual one.
type How struct {
	Confirm   time.Duration // revert the move unless it is confirmed within this time after it was carried out; 0: no need to
	Emergency bool          // without the approvals that it needs: somebody else reviews it afterwards
	Override  bool          // in spite of a freeze
}

// intent is a move of a head that somebody asks for, with all that it was decided on.
type intent struct {
	env     spec.EnvName
	kind    state.MoveKind
	app     spec.AppName
	base    int
	release digest.Digest
	bundle  digest.Digest
	to      int
	volumes bool
	record  release.Record // of release
	planned Planned
	reason  string
	how     How
	known   []state.Entry // that make bundle and release known, where they are not
	fork    *state.ForkOf // of a fork, whose record is as the fork has it

	restore  []deploy.Restore // of a rollback: volumes that get other data
	promoted *state.Promoted  // of an apply: from where; nil: it is applied as any
}

func (in intent) what() platform.Case {
	return platform.Case{Env: in.env, Rollback: in.kind == state.MovedByRollback}
}

// decideMove decides what an intent becomes: a move, or a change that waits for approvals.
func (s *Service) decideMove(ctx context.Context, by Actor, in intent) (Moved, error) {
	if in.how.Emergency && strings.TrimSpace(in.reason) == "" {
		return Moved{}, fault.WithHint(fault.Errorf(fault.Invalid, "an emergency needs a reason"), "say why with --reason")
	}
	if in.how.Confirm > 0 && len(in.restore) > 0 {
		return Moved{}, fault.WithHint(fault.Errorf(fault.Invalid, "data that were taken back do not come again when nobody confirms it"), "leave out --with-data or --confirm-within")
	}
	if in.how.Confirm > 0 && in.volumes {
		return Moved{}, fault.WithHint(fault.Errorf(fault.Invalid, "volumes that are deleted do not come back when nobody confirms it"), "leave out --volumes or --confirm-within")
	}
	if err := s.selfJudged(ctx, by, in); err != nil {
		return Moved{}, err
	}
	verdict, err := s.judge(ctx, by, in, 0)
	if err == nil && !in.how.Emergency {
		err = s.refuse(ctx, in, verdict, 0, state.PhaseApply)
	}
	if err != nil {
		return Moved{}, err
	}
	return s.move(ctx, in.env, func(now state.State, env state.Environment) ([]state.Entry, error) {
		if err := errors.Join(s.still(now, env, in, verdict), s.promoted(now, &in)); err != nil {
			return nil, err
		}
		if in.release != "" && unchanged(env, in.release) && len(in.restore) == 0 {
			return nil, nil
		}
		if in.kind == state.MovedByApply { // what was approved since is carried out as it is
			if err := pinsHold(in.env, release.PinsOf(in.record), now.Pins(in.env)); err != nil {
				return nil, err
			}
		}
		rules, definition := definition(now)
		if waits(now, by, in) {
			return s.requestEntries(now, by, in, rules, definition, verdict), nil
		}
		g, err := s.permit(rules, env, in)
		if err != nil {
			return nil, err
		}
		return s.moveEntries(now, by, env, in, g, verdict), nil
	})
}

// waits reports whether the intent has to wait for approvals: the same for as long as the definition does not change.
func waits(now state.State, by Actor, in intent) bool {
	rules, _ := definition(now)
	c := in.what()
	c.Author = by.Principal
	return !in.how.Emergency && rules.Governed(in.env) && len(rules.Missing(c)) > 0
}

// errMoved says that a head moved between a decision and its entry, where nobody named the generation to start from.
var errMoved = fault.Errorf(fault.Conflict, "the head moves all the time")

// maxTries is how often a move that names no generation is decided again when the head moved meanwhile.
const maxTries = 8

// again decides until the head stood still.
func again(decide func() (Moved, error)) (Moved, error) {
	var err error
	for range maxTries {
		var moved Moved
		if moved, err = decide(); !errors.Is(err, errMoved) {
			return moved, err
		}
	}
	return Moved{}, err
}

// still says whether what the intent was decided on still holds.
func (s *Service) still(now state.State, env state.Environment, in intent, v verdict) error {
	if env.Head.Number != in.base && in.kind != state.MovedByApply {
		return errMoved
	}
	if err := atBase(env, in.base); err != nil {
		return err
	}
	if _, d := definition(now); d != v.definition {
		return fault.WithHint(fault.Errorf(fault.Conflict, "the platform's definition changed meanwhile"), "try again")
	}
	if err := env.Becomes(in.kind, in.fork); err != nil {
		return err
	}
	if in.release == "" {
		return nil
	}
	return errors.Join(notRevoked(now, in.release), s.lasting(in.record), allowed(now, env, in.record))
}

func notRevoked(now state.State, d digest.Digest) error {
	r, ok := now.Revoked(d)
	if !ok {
		return nil
	}
	return fault.WithHint(fault.Errorf(fault.Denied, "release %s was revoked by %s: %s", d.Short(), r.By.Who(), r.Reason), "apply another one")
}

// permit says whether a move that needs no further approval may be made now, and in what way.
func (s *Service) permit(rules platform.Definition, env state.Environment, in intent) (state.Governed, error) {
	now := s.config.Now()
	var g state.Governed
	if in.how.Confirm > 0 {
		g.ConfirmBy = state.Millis(now.Add(in.how.Confirm))
	}
	if in.how.Emergency {
		rule, ok := rules.Emergency(in.env)
		if !ok {
			return g, fault.WithHint(fault.Errorf(fault.Denied, "the platform's definition has no break_glass rule for environment %s", in.env), "ask for approvals: invar apply %s", in.env)
		}
		g.Emergency, g.ReviewBy = true, state.Millis(now.Add(time.Duration(rule.ReviewMillis)*time.Millisecond))
		return g, nil
	}
	// A late review holds up what is new, never the way back.
	if late := overdue(env, now); late != nil && in.kind != state.MovedByRollback {
		return g, fault.WithHint(fault.Errorf(fault.Denied, "the review of generation %d of environment %s was due at %s: nothing else moves before it is done",
			late.Generation, in.env, late.DueAt.Format(time.RFC3339)), "have somebody else look at it: invar change review %s@%d", in.env, late.Generation)
	}
	if f, frozen := rules.Frozen(in.env, now, in.kind == state.MovedByRollback); frozen {
		if !in.how.Override {
			return g, fault.WithHint(fault.Errorf(fault.Denied, "environment %s is frozen: %s", in.env, f.Reason),
				"wait, or with the permission %s: --override-freeze and a --reason", platform.FreezeOverride)
		}
		g.Override = f.Freeze
	}
	return g, nil
}

// overdue returns a review of the environment that is late.
func overdue(env state.Environment, now time.Time) *state.Review {
	for _, r := range env.Reviews {
		if now.After(r.DueAt) {
			return &r
		}
	}
	return nil
}

// definition returns the platform's definition that is in force, and the release that it is of. Without one nothing
// is governed.
func definition(now state.State) (platform.Definition, digest.Digest) {
	d, ok := now.Platform()
	if !ok {
		return platform.Definition{}, ""
	}
	return d, environment(now, platform.Env).Head.Release
}

// requestEntries returns what proposing a change adds to the ledger.
func (s *Service) requestEntries(now state.State, by Actor, in intent, rules platform.Definition, def digest.Digest, v verdict) []state.Entry {
	n := now.LastChange() + 1
	e := s.entry(by, in.env, state.ChangeRequest{
		Change: n, Move: in.kind, App: in.app, Base: in.base, Release: in.release, Bundle: in.bundle, Plan: in.planned.Digest,
		To: in.to, Volumes: in.volumes, ConfirmMS: in.how.Confirm.Milliseconds(), Definition: def, Fork: in.fork, Restore: in.restore, Promoted: in.promoted,
	})
	if expires := rules.Expires(in.env); expires > 0 {
		d := e.Data.(state.ChangeRequest)
		d.ExpiresAt = e.Time.Add(expires)
		e.Data = d
	}
	e.Body = &state.Body{Digest: in.planned.Digest, Size: int64(len(in.planned.encoded)), Type: change.TypePlan}
	e.Subject, e.Reason = []state.Subject{{Name: string(in.app), Digest: in.release}}, in.reason
	return slices.Concat(lacking(now, in.known), []state.Entry{e}, v.entries(s, in.env, state.PhaseRequest, n))
}

// moveEntries returns what moving the head adds to the ledger.
func (s *Service) moveEntries(now state.State, by Actor, env state.Environment, in intent, g state.Governed, v verdict) []state.Entry {
	next := in.base + 1
	e := s.entry(by, in.env, nil)
	e.Subject, e.Reason = []state.Subject{{Name: string(in.app), Digest: in.release}}, in.reason
	switch in.kind {
	case state.MovedByApply:
		e.Data = state.Apply{App: in.app, Generation: next, Base: in.base, Release: in.release, Bundle: in.bundle, Plan: in.planned.Digest, Promoted: in.promoted, Governed: g}
		e.Body = &state.Body{Digest: in.planned.Digest, Size: int64(len(in.planned.encoded)), Type: change.TypePlan}
	case state.MovedByFork:
		e.Data = state.Fork{App: in.app, Generation: next, Base: in.base, Release: in.release, Bundle: in.bundle, Plan: in.planned.Digest,
			ForkOf: *in.fork, ExpiresAt: e.Time.Add(time.Duration(in.fork.TTLMS) * time.Millisecond), Governed: g}
		e.Body = &state.Body{Digest: in.planned.Digest, Size: int64(len(in.planned.encoded)), Type: change.TypePlan}
	case state.MovedByRollback:
		e.Data = state.Rollback{App: in.app, Generation: next, Base: in.base, To: in.to, Release: in.release, Bundle: in.bundle, Restore: in.restore, Governed: g}
	default:
		e.Data = state.Destroy{App: in.app, Generation: next, Base: in.base, Volumes: in.volumes, Governed: g}
		e.Subject[0].Digest = env.Head.Release
	}
	return slices.Concat(lacking(now, in.known), v.entries(s, in.env, state.PhaseApply, g.Change), []state.Entry{e})
}

// Statement returns what the principal would have to sign to approve or reject the change, without the time of signing.
func (s *Service) Statement(c state.Change, m change.Meaning, by platform.PrincipalName, reason string) change.Statement {
	return change.Statement{V: 1, Log: s.config.Origin, Meaning: m, Env: c.Env, Change: int(c.Change), Request: string(c.ID),
		Plan: c.Plan, Release: c.Release, Reason: reason, Signer: by}
}

// Signed is a statement with its signature (SSHSIG, armored).
type Signed struct {
	Statement []byte
	Signature []byte
}

// signature checks what somebody signed, by the keys that the definition gives him now, and returns it for the entry.
func (s *Service) signature(now state.State, want change.Statement, got Signed, after, at time.Time) (state.Signature, error) {
	rules, _ := definition(now)
	who, ok := rules.Principal(want.Signer)
	if !ok || who.Disabled {
		return state.Signature{}, fault.Errorf(fault.Denied, "the platform's definition has no principal %q", want.Signer)
	}
	facts, err := change.CheckSigned(got.Statement, got.Signature, want, who.SSHKeys, after, at)
	if err != nil {
		return state.Signature{}, err
	}
	return state.Signature{Format: "sshsig", Namespace: want.Meaning.Namespace(), KeyID: facts.Fingerprint, Sig: got.Signature}, nil
}

// openChange returns a change that is open and has not expired.
func openChange(now state.State, n state.ChangeNumber, at time.Time) (state.Change, error) {
	c, err := now.Change(n)
	switch {
	case err != nil:
		return c, err
	case c.Status != state.ChangeOpen:
		return c, fault.Errorf(fault.Conflict, "change %d is %s: %s", n, c.Status, c.Cause)
	case !c.ExpiresAt.IsZero() && !at.Before(c.ExpiresAt):
		return c, fault.WithHint(fault.Errorf(fault.Conflict, "change %d expired at %s", n, c.ExpiresAt.Format(time.RFC3339)), "propose it again: invar apply %s", c.Env)
	}
	return c, nil
}

// Approve records a signed approval. It fails with fault.Denied when the signature does not hold, or would count for
// nothing; with fault.Conflict when the change is not open.
func (s *Service) Approve(ctx context.Context, by Actor, n state.ChangeNumber, got Signed, note string) error {
	_, err := s.append(ctx, func(now state.State) ([]state.Entry, error) {
		e := s.entry(by, "", state.ChangeApprove{Change: n, Statement: string(got.Statement)})
		c, err := openChange(now, n, e.Time)
		if err != nil {
			return nil, err
		}
		rules, _ := definition(now)
		if err := rules.MayApprove(c.Case(), by.Principal); err != nil {
			return nil, err
		}
		sig, err := s.signature(now, s.Statement(c, change.Approval, by.Principal, note), got, c.At, e.Time)
		e.Env, e.Reason, e.Sigs, e.Subject = c.Env, note, []state.Signature{sig}, subjectOf(c)
		return []state.Entry{e}, err
	})
	if err != nil {
		return fmt.Errorf("approving change %d: %w", n, err)
	}
	return nil
}

func subjectOf(c state.Change) []state.Subject {
	return []state.Subject{{Name: string(c.App), Digest: c.Release}}
}

// Reject records a signed rejection, which closes the change.
func (s *Service) Reject(ctx context.Context, by Actor, n state.ChangeNumber, got Signed, note string) error {
	_, err := s.append(ctx, func(now state.State) ([]state.Entry, error) {
		e := s.entry(by, "", state.ChangeReject{Change: n, Statement: string(got.Statement)})
		c, err := openChange(now, n, e.Time)
		if err != nil {
			return nil, err
		}
		sig, err := s.signature(now, s.Statement(c, change.Rejection, by.Principal, note), got, c.At, e.Time)
		e.Env, e.Reason, e.Sigs, e.Subject = c.Env, note, []state.Signature{sig}, subjectOf(c)
		return []state.Entry{e}, err
	})
	if err != nil {
		return fmt.Errorf("rejecting change %d: %w", n, err)
	}
	return nil
}

// Withdraw takes a change back.
func (s *Service) Withdraw(ctx context.Context, by Actor, n state.ChangeNumber, reason string) error {
	_, err := s.append(ctx, func(now state.State) ([]state.Entry, error) {
		e := s.entry(by, "", state.ChangeWithdraw{Change: n})
		c, err := openChange(now, n, e.Time)
		e.Env, e.Reason, e.Subject = c.Env, reason, subjectOf(c)
		return []state.Entry{e}, err
	})
	if err != nil {
		return fmt.Errorf("withdrawing change %d: %w", n, err)
	}
	return nil
}

// Standing is a change as the approval rules see it at a time, with those approvals alone that stand then: by principals
// who may still approve there, with keys that are still theirs. Whether they count for a rule is for the rule to say.
func Standing(rules platform.Definition, c state.Change, at time.Time) platform.Case {
	out := c.Case()
	out.Approvers = nil
	for _, a := range c.Approvals {
		if who, ok := rules.Principal(a.By.Principal); ok && hasKey(who, a.KeyID) && rules.Allows(who.Name, platform.Approve, c.Env, at) {
			out.Approvers = append(out.Approvers, who.Name)
		}
	}
	return out
}

// hasKey reports whether the key with the fingerprint is the principal's.
func hasKey(who platform.Principal, fingerprint string) bool {
	return slices.ContainsFunc(who.SSHKeys, func(line string) bool {
		key, err := sshkey.ParsePublicKey(line)
		return err == nil && key.Fingerprint() == fingerprint
	})
}

// CarryOut moves the head as the change says, once all rules are met. It fails with fault.Denied when something is
// missing, or when the actor had another part in the change; with fault.Conflict when the change is void.
func (s *Service) CarryOut(ctx context.Context, by Actor, n state.ChangeNumber, override bool) (Moved, error) {
	moved, err := s.carryOut(ctx, by, n, override)
	if err != nil {
		return Moved{}, fmt.Errorf("carrying out change %d: %w", n, err)
	}
	return moved, nil
}

func (s *Service) carryOut(ctx context.Context, by Actor, n state.ChangeNumber, override bool) (Moved, error) {
	c, err := openChange(s.State(), n, s.config.Now())
	if err != nil {
		return Moved{}, err
	}
	in, err := s.intentOf(c)
	if err != nil {
		return Moved{}, err
	}
	in.how.Override = override
	verdict, err := s.judge(ctx, c.Author, in, n)
	if err == nil {
		err = s.refuse(ctx, in, verdict, n, state.PhaseApply)
	}
	if err != nil {
		return Moved{}, err
	}
	return s.move(ctx, in.env, func(now state.State, env state.Environment) ([]state.Entry, error) {
		c, err := openChange(now, n, s.config.Now())
		if err != nil {
			return nil, err
		}
		if err := errors.Join(s.still(now, env, in, verdict), s.promoted(now, &in)); err != nil {
			return nil, err
		}
		rules, _ := definition(now)
		if missing := rules.Missing(Standing(rules, c, s.config.Now())); len(missing) > 0 {
			return nil, fault.WithHint(fault.Errorf(fault.Denied, "it lacks approvals: %s", strings.Join(missing, "; ")), "invar change show %d", n)
		}
		if by != operator {
			if err := rules.MayCarryOut(c.Case(), by.Principal); err != nil {
				return nil, err
			}
		}
		g, err := s.permit(rules, env, in)
		if err != nil {
			return nil, err
		}
		g.Change = n
		return s.moveEntries(now, by, env, in, g, verdict), nil
	})
}

// intentOf returns the move that a change proposes.
func (s *Service) intentOf(c state.Change) (intent, error) {
	in := intent{env: c.Env, kind: c.Move, app: c.App, base: c.Base, release: c.Release, bundle: c.Bundle, to: c.To, volumes: c.Volumes, fork: c.Fork, restore: c.Restore, promoted: c.Promoted,
		reason: c.Reason, how: How{Confirm: time.Duration(c.ConfirmMS) * time.Millisecond}}
	if c.Release != "" {
		var err error
		if in.record, err = s.records.get(c.Release); err == nil {
			err = s.presentAll(in.record)
		}
		if err != nil {
			return in, err
		}
		switch env := environment(s.State(), c.Env); {
		case c.Fork != nil:
			in.record = c.Fork.Over(c.Env, in.record)
		case c.Move == state.MovedByRollback && env.Live():
			in.record = env.Fork.Over(c.Env, in.record)
		}
	}
	var err error
	in.planned, _, err = s.PlanOf(c)
	return in, err
}

// PlanOf returns the plan of a change, and its canonical JSON.
func (s *Service) PlanOf(c state.Change) (Planned, []byte, error) {
	raw, err := s.read(c.Plan, change.MaxFileBytes)
	if err != nil {
		return Planned{}, nil, fmt.Errorf("reading plan %s: %w", c.Plan, err)
	}
	p, err := change.Decode(append(slices.Clip(raw), '\n'))
	return Planned{Plan: p, Digest: c.Plan, encoded: raw}, raw, err
}

// Confirm lets a head stay that was to be confirmed.
func (s *Service) Confirm(ctx context.Context, by Actor, name spec.EnvName, reason string) error {
	_, err := s.append(ctx, func(now state.State) ([]state.Entry, error) {
		env, err := now.Environment(name)
		if err != nil {
			return nil, err
		}
		if env.ConfirmBy.IsZero() {
			return nil, fault.Errorf(fault.Conflict, "generation %d does not wait to be confirmed", env.Head.Number)
		}
		e := s.entry(by, name, state.ChangeConfirm{Generation: env.Head.Number})
		if !e.Time.Before(env.ConfirmBy) {
			return nil, fault.WithHint(fault.Errorf(fault.Conflict, "generation %d was to be confirmed by %s: it is being reverted", env.Head.Number, env.ConfirmBy.Format(time.RFC3339)),
				"apply it again")
		}
		e.Reason, e.Subject = reason, []state.Subject{{Name: string(env.App), Digest: env.Head.Release}}
		return []state.Entry{e}, nil
	})
	if err != nil {
		return fmt.Errorf("confirming environment %s: %w", name, err)
	}
	return nil
}

// ReviewStatement returns what a reviewer would have to sign, without the time of signing.
func (s *Service) ReviewStatement(g state.Generation, by platform.PrincipalName, verdict, note string) change.Statement {
	return change.Statement{V: 1, Log: s.config.Origin, Meaning: change.Review, Env: g.Env, Generation: g.Number, Request: string(g.Change),
		Release: g.Release, Plan: g.Plan, Verdict: verdict, Reason: note, Signer: by}
}

// Review records a signed review of what was done in an emergency.
func (s *Service) Review(ctx context.Context, by Actor, name spec.EnvName, generation int, verdict string, got Signed, note string) error {
	_, err := s.append(ctx, func(now state.State) ([]state.Entry, error) {
		g, err := now.Generation(name, generation)
		if err != nil {
			return nil, err
		}
		rules, _ := definition(now)
		rule, _ := rules.Emergency(name)
		if rule.Reviewers != "" && !slices.Contains(rules.Members(rule.Reviewers), by.Principal) {
			return nil, fault.Errorf(fault.Denied, "rule %s has group %s review emergencies, and %s is not in it", rule.Name, rule.Reviewers, by.Who())
		}
		e := s.entry(by, name, state.ChangeReview{Generation: generation, Verdict: verdict, Statement: string(got.Statement)})
		sig, err := s.signature(now, s.ReviewStatement(g, by.Principal, verdict, note), got, g.At, e.Time)
		e.Reason, e.Sigs, e.Outcome = note, []state.Signature{sig}, verdict
		e.Subject = []state.Subject{{Name: string(g.App), Digest: g.Release}}
		return []state.Entry{e}, err
	})
	if err != nil {
		return fmt.Errorf("reviewing generation %d of environment %s: %w", generation, name, err)
	}
	return nil
}

// Revoke blocks a release for good, and where it is the head proposes to go back to the newest release that completed
// there and is not revoked. It returns the numbers of those changes.
func (s *Service) Revoke(ctx context.Context, by Actor, d digest.Digest, reason string) ([]state.ChangeNumber, error) {
	if strings.TrimSpace(reason) == "" {
		return nil, fault.WithHint(fault.Errorf(fault.Invalid, "revoking release %s: a reason is needed", d.Short()), "say why with --reason")
	}
	known, err := s.State().Release(d)
	if err != nil {
		return nil, fmt.Errorf("revoking release %s: %w", d.Short(), err)
	}
	_, err = s.append(ctx, func(now state.State) ([]state.Entry, error) {
		if r, ok := now.Revoked(d); ok {
			return nil, fault.Errorf(fault.Conflict, "it was revoked by %s already", r.By.Who())
		}
		e := s.entry(by, known.Env, state.ReleaseRevoke{Release: d})
		e.Reason, e.Subject = reason, []state.Subject{{Name: string(known.App), Digest: d}}
		return []state.Entry{e}, nil
	})
	if err != nil {
		return nil, fmt.Errorf("revoking release %s: %w", d.Short(), err)
	}
	n, err := s.proposeReplacement(ctx, known.Env, d)
	if err != nil || n == 0 {
		return nil, err
	}
	return []state.ChangeNumber{n}, nil
}

// proposeReplacement proposes to leave a revoked release; 0: it is not the head, or there is nothing to go back to.
func (s *Service) proposeReplacement(ctx context.Context, name spec.EnvName, revoked digest.Digest) (state.ChangeNumber, error) {
	now := s.State()
	env, err := now.Environment(name)
	if err != nil || env.Head.Release != revoked {
		return 0, nil
	}
	target, ok := lastGood(now, env)
	if !ok {
		return 0, nil
	}
	in, err := s.rollbackIntent(now, env, target, Back{Reason: "release " + revoked.Short() + " was revoked"})
	if err != nil {
		return 0, err
	}
	if err := s.put(ctx, in.planned.Digest, in.planned.encoded); err != nil {
		return 0, fmt.Errorf("storing plan %s: %w", in.planned.Digest, err)
	}
	moved, err := s.move(ctx, name, func(now state.State, env state.Environment) ([]state.Entry, error) {
		if env.Head.Number != in.base {
			return nil, nil // it has left the release meanwhile
		}
		rules, def := definition(now)
		return s.requestEntries(now, operator, in, rules, def, verdict{}), nil
	})
	if err != nil {
		return 0, fmt.Errorf("proposing what replaces release %s in environment %s: %w", revoked.Short(), name, err)
	}
	return moved.Change, nil
}

// lastGood returns the newest generation before the head that completed with a release that may run.
func lastGood(now state.State, env state.Environment) (state.Generation, bool) {
	for g := range goodOnes(now, env) {
		return g, true
	}
	return state.Generation{}, false
}

// goodOnes yields the generations before the head that completed with another release that may run, newest first. They end where
// the environment was destroyed: what was ended on purpose does not come back by itself.
func goodOnes(now state.State, env state.Environment) iter.Seq[state.Generation] {
	return func(yield func(state.Generation) bool) {
		for _, h := range slices.Backward(env.History) {
			if h.Release == "" {
				return
			}
			_, revoked := now.Revoked(h.Release)
			if revoked || h.Outcome != deploy.Completed || h.Release == env.Head.Release {
				continue
			}
			if g, err := now.Generation(env.Name, h.Number); err == nil && !yield(g) {
				return
			}
		}
	}
}
