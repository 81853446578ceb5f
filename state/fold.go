package state

import (
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

// Apply returns the state with a further entry, the one with this index. An entry that does not follow from the state
// is an error of kind fault.Conflict, fault.Invalid or fault.NotFound, and changes nothing.
func (s State) Apply(index int64, e Entry) (State, error) { return s.ApplyAll(index, []Entry{e}) }

// ApplyAll returns the state with further entries, of which the first has this index. If one of them does not follow,
// none counts.
func (s State) ApplyAll(first int64, entries []Entry) (State, error) {
	next := State{db: s.db.Snapshot(), records: s.records, live: s.live, from: s.from}
	tx := next.db.Txn(true)
	defer tx.Abort()
	f := &fold{tx: tx, records: s.records, log: s.Log(), track: s.live, puts: slices.Clip(s.puts)}
	if err := f.applyAll(first, entries); err != nil {
		return s, err
	}
	tx.Commit()
	next.puts = f.puts
	return next, nil
}

func (f *fold) applyAll(first int64, entries []Entry) error {
	if f.log.Size != first {
		return fault.Errorf(fault.Conflict, "applying entry %d to the state after %d entries", first, f.log.Size)
	}
	for len(entries) > 0 {
		n := sameTurn(entries)
		if err := f.apply(entries[:n]); err != nil {
			return fmt.Errorf("applying entry %d, %s: %w", f.log.Size, entries[0].Kind(), err)
		}
		f.log.Size += int64(n)
		entries = entries[n:]
	}
	f.put(tableLog, &f.log)
	return nil
}

// sameTurn returns how many entries from the first on are steps of one turn that move no head, and so can be
// folded together: copying an environment once for each of its steps would make a turn's cost quadratic.
func sameTurn(entries []Entry) int {
	n := 0
	for _, e := range entries {
		s, ok := e.Data.(Step)
		if !ok || concludes(s.Kind) || e.Env != entries[0].Env || !e.Time.Equal(entries[0].Time) {
			break
		}
		n++
	}
	return max(n, 1)
}

// concludes reports whether a step changes what is known of a generation.
func concludes(k deploy.Kind) bool {
	return k == deploy.Done || k == deploy.Failed || k == deploy.Revert
}

// fold is one application of entries.
type fold struct {
	tx      *memdb.Txn
	records Records
	log     Log // Size is the index of the entry at hand
	track   bool
	puts    []object // when track is set
}

func (f *fold) put(table string, o any) {
	must(f.tx.Insert(table, o))
	if f.track {
		f.puts = append(f.puts, object{table, o})
	}
}

// apply applies one entry, or several steps as sameTurn found them.
func (f *fold) apply(entries []Entry) error {
	e := entries[0]
	if _, ok := e.Data.(Genesis); ok != (f.log.Size == 0) {
		return fault.Errorf(fault.Conflict, "a ledger has one genesis, its first entry")
	}
	switch d := e.Data.(type) {
	case Genesis:
		f.log.Origin, f.log.VKey = d.Origin, d.VKey
	case LogStart, LogStop, SessionStart, SessionEnd: // what follows from a session is a taint
	case Bundle:
		return f.bundle(d)
	case Release:
		return f.release(e, d)
	case Apply:
		return f.move(e, Generation{Number: d.Generation, Kind: MovedByApply, App: d.App, Release: d.Release, Bundle: d.Bundle, Plan: d.Plan, Promoted: d.Promoted}, d.Base, d.Governed)
	case Rollback:
		return f.rollback(e, d)
	case Destroy:
		return f.destroy(e, d)
	case Fork:
		return f.fork(e, d)
	case VolumeDelete:
		return f.volumeDelete(e, d)
	case VolumeDestroy:
		return f.volumesDestroyed(e, d)
	case Step:
		return f.steps(entries)
	case ChangeRequest:
		return f.changeRequest(e, d)
	case ChangeApprove:
		return f.approve(e, d)
	case ChangeReject:
		return f.closeChange(e, d.Change, ChangeRejected, e.Reason)
	case ChangeWithdraw:
		return f.closeChange(e, d.Change, ChangeWithdrawn, e.Reason)
	case ChangeVoid:
		return f.closeChange(e, d.Change, ChangeVoided, d.Cause)
	case ChangeConfirm:
		return f.confirm(e, d)
	case ChangeReview:
		return f.review(e, d)
	case PolicyDecision:
		return f.decided(e, d)
	case AccessDenied, EvidenceExport, WitnessAlarm:
	case HostDrift:
		return f.hostDrift(e, d)
	case HostResolved:
		return f.hostResolved(e, d)
	case Verify:
		f.measured(e, d)
	case AttestReproduced:
		return f.reproduced(e, d)
	case ReleaseRevoke:
		return f.revoke(e, d)
	case TokenCreate:
		return f.tokenCreate(e, d)
	case TokenRevoke:
		return f.tokenRevoke(e, d)
	case SecretVersion:
		return f.secretVersion(e, d)
	case ErasureRequest:
		return f.erasureRequest(e, d)
	case ErasureApprove:
		return f.erasureApprove(e, d)
	case Erasure:
		return f.erasure(e, d)
	default:
		return fault.Errorf(fault.Invalid, "kind %q has no meaning", e.Kind())
	}
	return nil
}

func (f *fold) bundle(d Bundle) error {
	if get[KnownBundle](f.tx, tableBundles, "id", string(d.Bundle)) != nil {
		return fault.Errorf(fault.Conflict, "bundle %s is known already", d.Bundle)
	}
	f.put(tableBundles, &KnownBundle{d.Bundle, d.App, d.Source, f.log.Size})
	return nil
}

func (f *fold) release(e Entry, d Release) error {
	b := get[KnownBundle](f.tx, tableBundles, "id", string(d.Bundle))
	if b == nil || b.App != d.App {
		return fault.Errorf(fault.Conflict, "bundle %s of app %s is not known", d.Bundle, d.App)
	}
	if get[KnownRelease](f.tx, tableReleases, "id", string(d.Release)) != nil {
		return fault.Errorf(fault.Conflict, "release %s is known already", d.Release)
	}
	f.put(tableReleases, &KnownRelease{d.Release, d.App, e.Env, d.Bundle, f.log.Size})
	return nil
}

// environment returns the environment as it is, or one that never had a head.
func (f *fold) environment(name spec.EnvName) Environment {
	if e := get[Environment](f.tx, tableEnvironments, "id", string(name)); e != nil {
		return *e
	}
	return Environment{Environment: deploy.Environment{Name: name}}
}

// move makes g the head of the entry's environment.
func (f *fold) move(e Entry, g Generation, base int, how Governed) error {
	env := f.environment(e.Env)
	if env.Head.Number != base || g.Number != base+1 {
		return fault.Errorf(fault.Conflict, "environment %s is at generation %d, not %d", e.Env, env.Head.Number, base)
	}
	if env.App != "" && env.App != g.App && !env.Destroyed() {
		return fault.Errorf(fault.Conflict, "environment %s runs app %s, not %s", e.Env, env.App, g.App)
	}
	if err := env.becomes(g); err != nil {
		return err
	}
	if env.VolumesDue && g.Release != "" {
		return fault.WithHint(fault.Errorf(fault.Conflict, "environment %s is being destroyed with its volumes", e.Env), "retry when that is done")
	}
	if revoked := get[Revocation](f.tx, tableRevocations, "id", string(g.Release)); g.Release != "" && revoked != nil {
		return fault.Errorf(fault.Denied, "release %s is revoked: %s", g.Release, revoked.Reason)
	}
	record, err := f.record(e.Env, g, env.Fork)
	if err != nil {
		return err
	}
	restores, err := f.restores(env, g.Restore, record)
	if err != nil {
		return err
	}
	if err := f.carriedOut(e, how.Change, g); err != nil {
		return err
	}
	g.Of, g.Emergency = how.Change, how.Emergency
	env.ConfirmBy = how.ConfirmBy
	if how.Emergency {
		env.Reviews = append(slices.Clip(env.Reviews), Review{g.Number, e.Actor, how.ReviewBy})
	}
	if env.Destroyed() && g.Release != "" {
		env.Previous = deploy.Generation{} // before it there was nothing: that is what a failure would go back to
	}
	switch g.Kind {
	case MovedByFork:
		env.Fork, env.Overlay = g.Fork, g.Fork.overlay(e.Env)
	case MovedByApply:
		env.Fork, env.Overlay = nil, nil
	}
	if (env.Head.Number == 0 || env.Destroyed()) && g.Release != "" {
		env.Since, env.Measured = e.Time, nil
	}
	env.App = g.App
	env.Volumes = env.Volumes || hasVolumes(record)
	env.Environment = env.SetHead(deploy.Generation{Number: g.Number, Release: g.Release, Record: record, Restores: restores}, e.Time)
	f.newHead(e, env, g)
	return nil
}

// newHead notes the head that env has just got.
func (f *fold) newHead(e Entry, env Environment, g Generation) {
	g.Env, g.Change, g.Entry, g.Actor, g.Reason = e.Env, e.ID, f.log.Size, e.Actor, e.Reason
	env.Entry, env.HeadEntry, env.Calm = f.log.Size, f.log.Size, Calm{}
	if n := len(env.History); n > 0 {
		f.outcome(env.Name, env.History[n-1])
	}
	f.put(tableGenerations, f.as(g, env.Head))
	f.put(tableEnvironments, &env)
}

// as returns g with what the rollout made of it.
func (f *fold) as(g Generation, d deploy.Generation) *Generation {
	g.At, g.Outcome, g.EndedAt, g.Cause = d.At, d.Outcome, d.EndedAt, d.Cause
	return &g
}

// outcome notes what became of a generation.
func (f *fold) outcome(name spec.EnvName, d deploy.Generation) {
	if g := get[Generation](f.tx, tableGenerations, "id", generationKey(name, d.Number)); g != nil && g.Outcome != d.Outcome {
		f.put(tableGenerations, f.as(*g, d))
	}
}

// record returns the record of a generation's release, which must be known and belong here; in a fork, to what it is a fork of.
func (f *fold) record(name spec.EnvName, g Generation, fork *Forked) (release.Record, error) {
	if g.Release == "" {
		return release.Record{}, nil
	}
	known := get[KnownRelease](f.tx, tableReleases, "id", string(g.Release))
	switch {
	case g.Fork != nil:
		name = g.Fork.Of
	case fork != nil && g.Kind == MovedByRollback:
		name = fork.Of
	}
	if known == nil || known.Env != name || known.Bundle != g.Bundle || known.App != g.App {
		return release.Record{}, fault.Errorf(fault.Conflict, "release %s of bundle %s is not known for environment %s", g.Release, g.Bundle, name)
	}
	return f.resolve(g.Release)
}

func (f *fold) resolve(d digest.Digest) (release.Record, error) {
	r, err := f.records(d)
	if err != nil {
		return release.Record{}, fmt.Errorf("resolving release %s: %w", d, err)
	}
	return r, nil
}

func hasVolumes(r release.Record) bool {
	return slices.ContainsFunc(r.Components, func(p release.Placed) bool { return len(p.Component.Volumes) > 0 })
}

func (f *fold) rollback(e Entry, d Rollback) error {
	target := get[Generation](f.tx, tableGenerations, "id", generationKey(e.Env, d.To))
	if target == nil || target.Release != d.Release || target.Bundle != d.Bundle || target.App != d.App || target.Release == "" {
		return fault.Errorf(fault.Conflict, "generation %d of environment %s had not release %s", d.To, e.Env, d.Release)
	}
	return f.move(e, Generation{Number: d.Generation, Kind: MovedByRollback, App: d.App, Release: d.Release, Bundle: d.Bundle, To: d.To, Restore: d.Restore}, d.Base, d.Governed)
}

func (f *fold) destroy(e Entry, d Destroy) error {
	if d.Base == 0 {
		return fault.Errorf(fault.Conflict, "environment %s never had a head", e.Env)
	}
	if err := f.move(e, Generation{Number: d.Generation, Kind: MovedByDestroy, App: d.App, Volumes: d.Volumes}, d.Base, d.Governed); err != nil {
		return err
	}
	env := f.environment(e.Env)
	env.VolumesDue = env.VolumesDue || d.Volumes && env.Volumes
	f.put(tableEnvironments, &env)
	return nil
}

func (f *fold) volumesDestroyed(e Entry, d VolumeDestroy) error {
	env := f.environment(e.Env)
	if !env.VolumesDue || !env.Destroyed() || len(env.Instances) > 0 || len(deploy.Copies(env.Environment)) > 0 || env.Head.Number != d.Generation {
		return fault.Errorf(fault.Conflict, "the volumes of environment %s are not to be destroyed now", e.Env)
	}
	env.Environment = env.Forget()
	env.Volumes, env.VolumesDue, env.Entry = false, false, f.log.Size
	f.put(tableEnvironments, &env)
	return nil
}

// steps applies the steps of one turn.
func (f *fold) steps(entries []Entry) error {
	e := entries[0]
	env := f.environment(e.Env)
	if env.Head.Number == 0 {
		return fault.Errorf(fault.Conflict, "environment %s never had a head", e.Env)
	}
	steps := make([]deploy.Step, len(entries))
	for i, e := range entries {
		steps[i] = e.Data.(Step).Step
	}
	next, err := env.ApplyAll(steps, e.Time)
	if err != nil {
		return err
	}
	f.drifts(env, entries)
	env.Environment = next
	env.Entry = f.log.Size + int64(len(entries)) - 1
	for i, s := range steps {
		env.Calm = env.Calm.after(s, f.log.Size+int64(i), e.Time)
	}
	switch steps[0].Kind {
	case deploy.Revert:
		return f.reverted(e, env, steps[0])
	case deploy.Done:
		if env.Head.Release != "" {
			env.CompletedAt = env.Head.Number
		}
		fallthrough
	case deploy.Failed:
		f.outcome(env.Name, env.Head)
	}
	f.put(tableEnvironments, &env)
	return nil
}

// reverted notes the head that a revert step made.
func (f *fold) reverted(e Entry, env Environment, s deploy.Step) error {
	known := get[KnownRelease](f.tx, tableReleases, "id", string(s.Release))
	if known == nil {
		return fault.Errorf(fault.Conflict, "release %s is not known", s.Release)
	}
	if e.Reason == "" {
		e.Reason = s.Cause
	}
	f.voidOthers(e, s.Generation)
	env.ConfirmBy = time.Time{}
	f.newHead(e, env, Generation{Number: s.Generation, Kind: MovedByRevert, App: known.App, Release: s.Release, Bundle: known.Bundle})
	return nil
}

func (f *fold) tokenCreate(e Entry, d TokenCreate) error {
	if get[Token](f.tx, tableTokens, "id", string(d.Token)) != nil || get[Token](f.tx, tableTokens, indexSecret, string(d.Secret)) != nil {
		return fault.Errorf(fault.Conflict, "token %s exists already", d.Token)
	}
	f.put(tableTokens, &Token{ID: d.Token, Name: d.Name, Secret: d.Secret, Actor: e.Actor, CreatedAt: e.Time,
		Principal: d.Principal, Permissions: d.Permissions, Environments: d.Environments, ExpiresAt: d.ExpiresAt, Session: d.Session, Key: d.Key})
	return nil
}

func (f *fold) tokenRevoke(e Entry, d TokenRevoke) error {
	t := get[Token](f.tx, tableTokens, "id", string(d.Token))
	switch {
	case t == nil:
		return fault.Errorf(fault.NotFound, "token %s does not exist", d.Token)
	case !t.RevokedAt.IsZero():
		return fault.Errorf(fault.Conflict, "token %s is revoked already", d.Token)
	}
	revoked := *t
	revoked.RevokedAt = e.Time
	f.put(tableTokens, &revoked)
	return nil
}

// Valid reports whether the token may be used at that time.
func (t Token) Valid(now time.Time) bool {
	return t.RevokedAt.IsZero() && (t.ExpiresAt.IsZero() || now.Before(t.ExpiresAt))
}

// Covers reports whether the token is good for the permission in the environment; whether its principal has the
// permission is another question. env is "" for what belongs to none.
func (t Token) Covers(p platform.Permission, env spec.EnvName) bool {
	if p == platform.None {
		return true
	}
	return (len(t.Permissions) == 0 || slices.Contains(t.Permissions, p) || slices.Contains(t.Permissions, platform.Anything)) &&
		(len(t.Environments) == 0 || platform.MatchesAny(t.Environments, env))
}

// checkTokenID accepts 8 to 32 characters of a-z2-7.
func checkTokenID(id TokenID) error {
	ok := len(id) >= 8 && len(id) <= 32
	for _, c := range []byte(id) {
		ok = ok && ('a' <= c && c <= 'z' || '2' <= c && c <= '7')
	}
	if !ok {
		return fmt.Errorf("token %q: want 8 to 32 characters of a-z2-7", id)
	}
	return nil
}

// Millis returns t as entries spell it: UTC, whole milliseconds.
func Millis(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }
