package evidence

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/identity/sshkey"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// permissionOf is what it takes to move a head in this way.
func permissionOf(k state.MoveKind) platform.Permission {
	switch k {
	case state.MovedByRollback:
		return platform.Rollback
	case state.MovedByDestroy:
		return platform.Destroy
	}
	return platform.Apply
}

// request checks that a change could be proposed, and that its plan is what lies between the releases.
func (a *auditor) request(d state.ChangeRequest) {
	rules, definition := a.definition()
	if a.system() {
		a.check("permission", a.suggested(d))
	} else {
		a.check("permission", a.may(permissionOf(d.Move)))
	}
	var err error
	expires := rules.Expires(a.entry.Env)
	switch latest := a.entry.Time.Add(expires); {
	case d.Definition != definition:
		err = fmt.Errorf("it names definition %s; %s was in force", d.Definition.Short(), definition.Short())
	case expires > 0 && (d.ExpiresAt.IsZero() || d.ExpiresAt.After(latest)):
		err = fmt.Errorf("it may wait until %s; the rules let it wait until %s", d.ExpiresAt.Format(time.RFC3339), latest.Format(time.RFC3339))
	}
	a.check("approval", err)
	if d.Fork != nil {
		a.mayFork(*d.Fork)
	}
	a.promoted(d.Promoted, d.Bundle, true)
	a.plan(d.Plan, d.Move, d.App, d.Release, d.Fork, &d)
}

// suggested says why the server had no reason to propose a change by itself, or nil.
func (a *auditor) suggested(d state.ChangeRequest) error {
	env := a.environment(a.entry.Env)
	if _, revoked := a.state.Revoked(env.Head.Release); d.Move == state.MovedByRollback && revoked {
		return nil
	}
	return errors.New("the server proposed it, and had no reason to: the head is not revoked")
}

// plan checks that a plan is the difference of what the environment has and the release; with data, also what the volumes get.
func (a *auditor) plan(plan digest.Digest, kind state.MoveKind, app spec.AppName, d digest.Digest, fork *state.ForkOf, asked *state.ChangeRequest) {
	env := a.environment(a.entry.Env)
	next := change.Proposed{Digest: d, Record: release.Record{App: app, Env: env.Name, Rollout: env.Head.Record.Rollout}}
	if kind != state.MovedByDestroy {
		r, err := a.record(d)
		if err != nil {
			a.check("plan", err)
			return
		}
		next.Record = r
		switch {
		case fork != nil:
			next.Record = fork.Over(env.Name, r)
		case env.Live():
			next.Record = env.Fork.Over(env.Name, r)
		}
	}
	current := change.Current{
		Base: change.Base{Generation: env.Head.Number, Release: env.Head.Release}, Record: env.Head.Record, Failed: env.Head.Outcome == deploy.Broken,
	}
	made, err := change.MakePlan(current, next).Digest()
	if err == nil && kind == state.MovedByRollback && asked != nil && (len(asked.Restore) > 0 || made != plan) {
		made, err = planWithData(env.Environment, *asked, current, next)
	}
	if err == nil && made != plan {
		err = fmt.Errorf("plan %s is not what lies between the two releases: that is %s", plan.Short(), made.Short())
	}
	a.check("plan", err)
}

// planWithData is the plan of a rollback that takes data back, or was asked to and finds that all of them stay: what is restored must be what it says.
func planWithData(env deploy.Environment, asked state.ChangeRequest, current change.Current, next change.Proposed) (digest.Digest, error) {
	restore, items, _, err := state.DataOf(env, asked.To, next.Record)
	if err == nil && !slices.Equal(restore, asked.Restore) {
		err = errors.New("it restores other data than those that the generation left")
	}
	if err != nil {
		return "", err
	}
	next.Volumes = items
	return change.MakePlan(current, next).Digest()
}

// statementOf is what was to be signed of a change, without the time of signing.
func statementOf(c state.Change, m change.Meaning, e state.Entry) change.Statement {
	return change.Statement{V: 1, Meaning: m, Env: c.Env, Change: int(c.Change), Request: string(c.ID), Plan: c.Plan, Release: c.Release,
		Reason: e.Reason, Signer: e.Actor.Principal}
}

// signed checks the entry's statement and signature against what was to be signed, by the keys that the signer had at this place of the
// ledger, and keeps both.
func (a *auditor) signed(text string, want change.Statement, after time.Time) {
	e := a.entry
	want.Log = a.state.Log().Origin
	sig := e.Sigs[0]
	s := Signed{Index: a.index, Time: e.Time, Text: text, Signature: sig.Sig}
	s.Statement, _ = change.DecodeStatement([]byte(text))
	rules, _ := a.definition()
	who, ok := rules.Principal(want.Signer)
	var err error
	if !ok || who.Disabled {
		err = fmt.Errorf("%q was no principal of the platform's definition then", want.Signer)
	} else {
		s.Facts, err = change.CheckSigned([]byte(text), sig.Sig, want, who.SSHKeys, after, e.Time)
	}
	if err == nil && (sig.Namespace != want.Meaning.Namespace() || sig.KeyID != s.Facts.Fingerprint) {
		err = fmt.Errorf("it says that it is signed by %s in namespace %s, and is not", sig.KeyID, sig.Namespace)
	}
	s.OK = err == nil
	a.check("signature", err)
	if a.Scope.has(a.index, e.Env) {
		a.Signed = append(a.Signed, s)
	}
}

// approve checks an approval: that it is signed, that it counts, and that the change could still be approved.
func (a *auditor) approve(d state.ChangeApprove) {
	a.check("permission", a.may(platform.Approve))
	c, err := a.state.Change(d.Change)
	if err != nil {
		return // the fold refuses it
	}
	a.signed(d.Statement, statementOf(c, change.Approval, a.entry), c.At)
	rules, _ := a.definition()
	err = rules.MayApprove(c.Case(), a.entry.Actor.Principal)
	if err == nil {
		err = a.expired(c)
	}
	a.check("approval", err)
	if a.entry.Actor.Principal == c.Author.Principal && err == nil {
		a.find(Notice, "approval", "%s approved an own change, as a rule lets people do", a.entry.Actor.Who())
	}
}

// moment is what may lie between a decision and the time of its entry.
const moment = time.Second

func (a *auditor) expired(c state.Change) error {
	if c.ExpiresAt.IsZero() || a.entry.Time.Before(c.ExpiresAt.Add(moment)) {
		return nil
	}
	return fmt.Errorf("change %d had expired at %s", c.Change, c.ExpiresAt.Format(time.RFC3339))
}

func (a *auditor) voided(d state.ChangeVoid) {
	c, err := a.state.Change(d.Change)
	if err == nil && (!a.system() || c.ExpiresAt.IsZero() || a.entry.Time.Before(c.ExpiresAt)) {
		a.fail("approval", fmt.Errorf("change %d was closed as expired, and had not: %s", d.Change, d.Cause))
	}
}

// review checks a review of an emergency: that it is signed, and by somebody who may.
func (a *auditor) review(d state.ChangeReview) {
	a.check("permission", a.may(platform.Approve))
	g, err := a.state.Generation(a.entry.Env, d.Generation)
	if err != nil {
		return // the fold refuses it
	}
	a.signed(d.Statement, change.Statement{V: 1, Meaning: change.Review, Env: g.Env, Generation: g.Number, Request: string(g.Change),
		Release: g.Release, Plan: g.Plan, Verdict: d.Verdict, Reason: a.entry.Reason, Signer: a.entry.Actor.Principal}, g.At)
	rules, _ := a.definition()
	if rule, _ := rules.Emergency(a.entry.Env); rule.Reviewers != "" && !slices.Contains(rules.Members(rule.Reviewers), a.entry.Actor.Principal) {
		a.fail("approval", fmt.Errorf("%s is not in group %s, which reviews emergencies", a.entry.Actor.Who(), rule.Reviewers))
	}
	if d.Verdict == state.Objected {
		a.find(Gap, "review", "%s objects to the emergency of generation %d: %s", a.entry.Actor.Who(), d.Generation, a.entry.Reason)
	}
	for _, r := range a.environment(a.entry.Env).Reviews {
		if r.Generation == d.Generation && a.entry.Time.After(r.DueAt) {
			a.find(Gap, "review", "the review of generation %d came %s late: it was due at %s", d.Generation, a.entry.Time.Sub(r.DueAt).Round(time.Second), r.DueAt.Format(time.RFC3339))
		}
	}
}

func (a *auditor) applied(d state.Apply) {
	a.plan(d.Plan, state.MovedByApply, d.App, d.Release, nil, nil)
	a.promoted(d.Promoted, d.Bundle, d.Change == 0)
	a.move(state.MovedByApply, d.Release, d.Governed, d.Plan)
}

// promoted checks that a bundle ran healthy where it is said to come from, for as long as is said, and that whoever asked could read that.
func (a *auditor) promoted(p *state.Promoted, bundle digest.Digest, asked bool) {
	if p == nil {
		return
	}
	if asked {
		a.check("permission", a.mayIn(platform.Read, p.From))
	}
	proven, err := a.state.Promote(*p, bundle, a.entry.Time)
	if err == nil && proven != *p {
		err = fmt.Errorf("it is said that %s@%d completed by entry %d and was healthy since entry %d, and it was by %d and since %d",
			p.From, p.Generation, p.Completed, p.Newest, proven.Completed, proven.Newest)
	}
	a.check("promotion", err)
}

// forked checks a fork as a move, and that whoever asked for it could read what it is a fork of. One that a change proposed was
// asked for by the change's author.
func (a *auditor) forked(d state.Fork) {
	a.plan(d.Plan, state.MovedByFork, d.App, d.Release, &d.ForkOf, nil)
	if d.Change == 0 {
		a.mayFork(d.ForkOf)
	}
	a.move(state.MovedByFork, d.Release, d.Governed, d.Plan)
}

// mayFork checks the permissions that a fork needs in what it is a fork of.
func (a *auditor) mayFork(d state.ForkOf) {
	a.check("permission", a.mayIn(platform.Read, d.From))
	if len(d.Restore) > 0 || d.Snapshot {
		a.check("permission", a.mayIn(platform.Exec, d.From))
	}
}

// move checks that a head could move: in one of the ways that there are, outside of freezes, judged by every policy.
func (a *auditor) move(kind state.MoveKind, d digest.Digest, g state.Governed, plan digest.Digest) {
	rules, definition := a.definition()
	if definition == "" {
		a.founded()
		return
	}
	env := a.environment(a.entry.Env)
	switch {
	case g.Change != 0:
		c, err := a.state.Change(g.Change)
		if err != nil {
			return // the fold refuses it
		}
		plan = c.Plan
		a.carriedOut(rules, c, g)
	case g.Emergency:
		a.emergency(rules, g)
		a.policies(rules, kind, d, g, plan)
		return
	case a.system():
		a.check("approval", a.unconfirmed(env, kind, d))
		return // it is what was approved: no freeze and no policy stands against it
	default:
		a.unasked(rules, kind)
	}
	a.freeze(rules, env, kind, g)
	a.policies(rules, kind, d, g, plan)
}

// founded notes a head that moved before there was a definition of the platform.
func (a *auditor) founded() {
	if a.entry.Env != platform.Env {
		a.find(Gap, "approval", "the head of %s moved before the platform had a definition: nobody was asked", a.entry.Env)
	}
}

// carriedOut checks that a change was approved, and carried out by somebody who may.
func (a *auditor) carriedOut(rules platform.Definition, c state.Change, g state.Governed) {
	err := a.expired(c)
	if missing := rules.Missing(a.standing(rules, c)); err == nil && len(missing) > 0 {
		err = fmt.Errorf("change %d was carried out without the approvals that the rules ask for: %s", c.Change, strings.Join(missing, "; "))
	}
	if err == nil && (c.ConfirmMS > 0) != !g.ConfirmBy.IsZero() {
		err = fmt.Errorf("change %d was to be confirmed, or not, and the head is otherwise", c.Change)
	}
	a.check("approval", err)
	if !a.system() {
		a.check("permission", a.may(platform.Apply))
		a.check("separation", rules.MayCarryOut(c.Case(), a.entry.Actor.Principal))
		return
	}
	if err = nil; !rules.Automatic(a.entry.Env) {
		err = fmt.Errorf("the server carried change %d out by itself, and no rule lets it", c.Change)
	}
	a.check("separation", err)
}

// standing is a change as the approval rules see it, with those approvals alone that stand at the entry at hand: by people who may still
// approve there, with keys that are still theirs.
func (a *auditor) standing(rules platform.Definition, c state.Change) platform.Case {
	out := c.Case()
	out.Approvers = nil
	for _, given := range c.Approvals {
		who, ok := rules.Principal(given.By.Principal)
		if !ok || !slices.ContainsFunc(who.SSHKeys, func(line string) bool {
			key, err := sshkey.ParsePublicKey(line)
			return err == nil && key.Fingerprint() == given.KeyID
		}) {
			continue
		}
		if at := a.entry.Time; rules.Allows(who.Name, platform.Approve, c.Env, at) || rules.Allows(who.Name, platform.Approve, c.Env, at.Add(-moment)) {
			out.Approvers = append(out.Approvers, who.Name)
		}
	}
	return out
}

func (a *auditor) emergency(rules platform.Definition, g state.Governed) {
	a.check("permission", a.may(platform.BreakGlassUse))
	rule, ok := rules.Emergency(a.entry.Env)
	var err error
	switch latest := a.entry.Time.Add(time.Duration(rule.ReviewMillis)*time.Millisecond + moment); {
	case !ok:
		err = errors.New("it was made as an emergency, and the platform's definition has no rule for such")
	case strings.TrimSpace(a.entry.Reason) == "":
		err = errors.New("it was made as an emergency, without a reason")
	case g.ReviewBy.After(latest):
		err = fmt.Errorf("its review is due at %s, and the rule %s wants it until %s", g.ReviewBy.Format(time.RFC3339), rule.Name, latest.Format(time.RFC3339))
	}
	a.check("approval", err)
	a.find(Notice, "emergency", "%s moved the head of %s in an emergency, without the approvals that it needed: %s", a.entry.Actor.Who(), a.entry.Env, a.entry.Reason)
}

// unasked checks a move that no change stands behind.
func (a *auditor) unasked(rules platform.Definition, kind state.MoveKind) {
	a.check("permission", a.may(permissionOf(kind)))
	c := platform.Case{Env: a.entry.Env, Author: a.entry.Actor.Principal, Rollback: kind == state.MovedByRollback}
	var err error
	if missing := rules.Missing(c); len(missing) > 0 {
		err = fmt.Errorf("the head moved without the approvals that the rules ask for: %s", strings.Join(missing, "; "))
	}
	a.check("approval", err)
	if !rules.Governed(a.entry.Env) {
		a.gapOnce("ungoverned/"+string(a.entry.Env), "approval", "environment %s has no approval rule: whoever has the permission moves its head alone", a.entry.Env)
	}
}

// gapOnce makes a finding of a condition that goes on, at the first entry that shows it.
func (a *auditor) gapOnce(key, check, format string, args ...any) {
	if !a.once[key] && a.Scope.has(a.index, a.entry.Env) {
		a.once[key] = true
		a.find(Gap, check, format, args...)
	}
}

// unconfirmed says why the server had no reason to move the head back by itself, or nil.
func (a *auditor) unconfirmed(env state.Environment, kind state.MoveKind, d digest.Digest) error {
	if kind == state.MovedByDestroy && env.Live() && !a.entry.Time.Before(env.Fork.ExpiresAt) {
		return nil // that is what the fork's own entry says
	}
	if env.ConfirmBy.IsZero() || a.entry.Time.Before(env.ConfirmBy) {
		return errors.New("the server moved the head by itself, without an approved change, and nothing was to be confirmed")
	}
	good := a.goodOnes(env)
	if kind == state.MovedByRollback && !slices.Contains(good, d) {
		return fmt.Errorf("the server was to go back to a release that completed before and may run, and went to %s", d.Short())
	}
	if len(good) > 0 && good[0] != d {
		a.find(Notice, "confirm", "the server did not go back to the newest release that completed before, %s", good[0].Short())
	}
	a.find(Notice, "confirm", "generation %d of %s was not confirmed in time, and reverted", env.Head.Number, env.Name)
	return nil
}

// goodOnes lists the releases that completed before the head and may run, newest first, back to where the environment was destroyed.
func (a *auditor) goodOnes(env state.Environment) []digest.Digest {
	var out []digest.Digest
	for _, h := range slices.Backward(env.History) {
		if h.Release == "" {
			break
		}
		_, revoked := a.state.Revoked(h.Release)
		if h.Outcome == deploy.Completed && h.Release != env.Head.Release && !revoked {
			out = append(out, h.Release)
		}
	}
	return out
}

// freeze checks that the head could move at this time.
func (a *auditor) freeze(rules platform.Definition, env state.Environment, kind state.MoveKind, g state.Governed) {
	for _, r := range env.Reviews { // a late one holds up what is new, never the way back
		if kind != state.MovedByRollback && a.entry.Time.After(r.DueAt.Add(moment)) {
			a.fail("freeze", fmt.Errorf("the review of generation %d was due at %s, and nothing else was to move before it", r.Generation, r.DueAt.Format(time.RFC3339)))
		}
	}
	f, frozen := rules.Frozen(env.Name, a.entry.Time, kind == state.MovedByRollback)
	if frozen {
		_, frozen = rules.Frozen(env.Name, a.entry.Time.Add(-moment), kind == state.MovedByRollback)
	}
	var err error
	switch {
	case frozen && g.Override == "":
		err = fmt.Errorf("the head moved in a freeze: %s", f.Reason)
	case frozen || g.Override != "":
		err = a.may(platform.FreezeOverride)
		a.find(Notice, "freeze", "%s overrode the freeze %s: %s", a.entry.Actor.Who(), g.Override, a.entry.Reason)
	}
	a.check("freeze", err)
}

func isRevert(d state.Step) bool { return d.Kind == deploy.Revert }

// stepJudged reports whether there is something to say of a step.
func stepJudged(e state.Entry) bool {
	switch e.Data.(state.Step).Kind {
	case deploy.Revert, deploy.Failed, deploy.Tainted, deploy.Drifted:
		return true
	}
	return false
}

// rollout notes what an auditor wants to know of a rollout.
func (a *auditor) rollout(d state.Step) {
	switch d.Kind {
	case deploy.Revert:
		if r, revoked := a.state.Revoked(d.Release); revoked {
			a.fail("approval", fmt.Errorf("the head fell back to release %s, which was revoked: %s", d.Release.Short(), r.Reason))
		}
		a.find(Notice, "rollout", "the rollout failed, and the head moved back to release %s", d.Release.Short())
	case deploy.Failed:
		a.find(Notice, "rollout", "the rollout of generation %d failed: %s", d.Generation, d.Cause)
	case deploy.Drifted:
		a.find(Notice, "drift", "instance %s was found otherwise than its release says: %s", d.ID, d.Cause)
	case deploy.Tainted:
		a.find(Notice, "taint", "instance %s may differ from its release: %s", d.ID, d.Cause)
	}
}

func (a *auditor) denied(d state.AccessDenied) {
	more := ""
	if d.Repeated > 0 {
		more = fmt.Sprintf(" (%d more of the same)", d.Repeated)
	}
	a.find(Notice, "refused", "%s was refused %s: %s%s", a.entry.Actor.Who(), d.Operation, d.Cause, more)
}

// started notes that the server ended without saying so.
func (a *auditor) started(d state.LogStart) {
	if d.Compares == state.Never {
		a.find(Gap, "drift", "the server was told to compare nothing that runs with its release from here on, unless it is asked to verify")
	}
	if a.index < 2 || a.index > int64(len(a.entries)) {
		return
	}
	if before := a.entries[a.index-1]; before.Kind() != state.KindLogStop {
		a.find(Notice, "start", "the server had ended without closing the ledger")
	}
}

// entered notes that somebody was in an instance.
func (a *auditor) entered(d state.SessionStart) {
	a.check("permission", a.may(platform.Exec))
	a.find(Notice, "session", "%s ran %q in instance %s: %s", a.entry.Actor.Who(), strings.Join(d.Command, " "), d.Instance, a.entry.Reason)
}

// left notes how that ended, and whether there is a recording of it.
func (a *auditor) left(d state.SessionEnd) {
	if d.How == state.SessionLost || a.entry.Body == nil && d.How != state.SessionRefused {
		a.find(Gap, "session", "what was done in session %s in instance %s is not recorded: %s", d.Session, d.Instance, strings.TrimSpace(d.How+" "+d.Detail))
	}
}

// fields reads what it knows of an entry's data.
func fields(e state.Entry, into any) error {
	b, err := json.Marshal(e.Data)
	if err != nil {
		return err
	}
	return json.NewDecoder(bytes.NewReader(b)).Decode(into)
}

// atEnd looks at what is still due after the last entry.
func (a *auditor) atEnd() {
	if a.Size == 0 {
		return
	}
	a.Log = a.state.Log().Origin
	for env := range a.state.Environments() {
		for _, r := range env.Reviews {
			g, err := a.state.Generation(env.Name, r.Generation)
			if err != nil {
				continue
			}
			a.index, a.entry = g.Entry, a.entries[g.Entry]
			if a.now.After(r.DueAt) {
				a.find(Gap, "review", "the emergency of generation %d of %s was to be reviewed until %s, and was not", r.Generation, env.Name, r.DueAt.Format(time.RFC3339))
			} else {
				a.find(Notice, "review", "the emergency of generation %d of %s is to be reviewed until %s", r.Generation, env.Name, r.DueAt.Format(time.RFC3339))
			}
		}
		a.tainted(env)
		a.index, a.entry = env.HeadEntry, a.entries[env.HeadEntry]
		a.unmeasured(env.Name, a.now)
		a.revokedHead(env)
	}
}

// tainted finds instances that should have been replaced.
func (a *auditor) tainted(env state.Environment) {
	for _, id := range slices.Sorted(maps.Keys(env.Instances)) {
		i := env.Instances[id]
		taint, ok := i.Tainted()
		if taint.Until.Before(taint.Since) {
			taint.Until = taint.Since
		}
		if !ok || !i.RetiringAt.IsZero() || a.now.Before(taint.Until.Add(replaceWithin)) {
			continue
		}
		a.index, a.entry = env.Entry, a.entries[env.Entry]
		a.find(Gap, "taint", "instance %s of %s was tainted at %s and to be replaced at %s, and still runs", i.ID, env.Name,
			taint.Since.Format(time.RFC3339), taint.Until.Format(time.RFC3339))
	}
}

// replaceWithin is how long the replacement of a tainted instance may take.
const replaceWithin = 15 * time.Minute

// revokedHead finds environments that run what was revoked.
func (a *auditor) revokedHead(env state.Environment) {
	r, revoked := a.state.Revoked(env.Head.Release)
	if !revoked || env.Head.Release == "" {
		return
	}
	a.index, a.entry = r.Entry, a.entries[r.Entry]
	a.find(Gap, "revoked", "environment %s still runs release %s, which was revoked", env.Name, env.Head.Release.Short())
}
