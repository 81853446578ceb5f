package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
)

// Kind is the kind of an entry.
type Kind string

// The kinds of entries beside those of a rollout's steps, which are deploy.Kind.
const (
	KindGenesis       Kind = "genesis"
	KindLogStart      Kind = "log.start"
	KindLogStop       Kind = "log.stop"
	KindBundle        Kind = "bundle"
	KindRelease       Kind = "release"
	KindApply         Kind = "change.apply"
	KindRollback      Kind = "change.rollback"
	KindDestroy       Kind = "change.destroy"
	KindFork          Kind = "change.fork"
	KindVolumeDestroy Kind = "volume.destroy"
	KindTokenCreate   Kind = "token.create"
	KindTokenRevoke   Kind = "token.revoke"
	KindSecretVersion Kind = "secret.version"
)

// KindInfo describes a kind.
type KindInfo struct {
	Kind Kind
	When string // when such an entry is written
	Env  bool   // whether it belongs to an environment
	data codec
}

// Fields returns a value of the kind's data, for those who list its fields.
func (k KindInfo) Fields() Data { return k.data.zero() }

// Kinds returns every kind, in the order of docs/ledger.md.
func Kinds() []KindInfo { return slices.Clone(kinds) }

var kinds = []KindInfo{
	{KindGenesis, "First of all, once: the ledger begins.", false, of[Genesis]()},
	{KindLogStart, "The server has opened the ledger to write.", false, of[LogStart]()},
	{KindLogStop, "The server is about to close the ledger; absent after a crash.", false, of[LogStop]()},
	{KindBundle, "A bundle is first used by a change.", false, of[Bundle]()},
	{KindRelease, "A release is first used by a change; the server evaluated its bundle and got the same digest.", true, of[Release]()},
	{KindApply, "The head moves to a release that was planned.", true, of[Apply]()},
	{KindRollback, "The head moves to the release of an earlier generation.", true, of[Rollback]()},
	{KindDestroy, "The head moves to nothing: all that the environment runs will be retired.", true, of[Destroy]()},
	{KindFork, "The head moves to a release that was evaluated for another environment, with routes and secrets of its own, for a time.", true, of[Fork]()},
	{KindVolumeDestroy, "The volumes of a destroyed environment have been deleted, as its change.destroy asked.", true, of[VolumeDestroy]()},
	{Kind(deploy.Create), "An instance is about to be created and started.", true, step(deploy.Create)},
	{Kind(deploy.Healthy), "An instance has passed its checks for long enough to have traffic.", true, step(deploy.Healthy)},
	{Kind(deploy.Failing), "An instance that was healthy fails its checks.", true, step(deploy.Failing)},
	{Kind(deploy.Exited), "An instance's process was seen to have ended.", true, step(deploy.Exited)},
	{Kind(deploy.Tainted), "An instance may differ from its release: somebody opened a session in it, or a process from outside was found in it. Or such a session is over.", true, step(deploy.Tainted)},
	{Kind(deploy.Drifted), "An instance was measured from outside and differs from its release.", true, step(deploy.Drifted)},
	{Kind(deploy.Freeze), "An instance that differs is about to be taken out of traffic and frozen, to be kept as evidence.", true, step(deploy.Freeze)},
	{Kind(deploy.Frozen), "Such an instance stands still, and what can be told of it is kept: the body. Or that could not be done.", true, step(deploy.Frozen)},
	{Kind(deploy.Settled), "That is over: the instance is gone, or was found as released again.", true, step(deploy.Settled)},
	{Kind(deploy.Retire), "An instance is about to be taken out of traffic, drained, stopped and removed.", true, step(deploy.Retire)},
	{Kind(deploy.Gone), "An instance is removed from its host.", true, step(deploy.Gone)},
	{Kind(deploy.Shift), "Traffic is about to be split anew between a component's versions.", true, step(deploy.Shift)},
	{Kind(deploy.Done), "A rollout has ended well.", true, step(deploy.Done)},
	{Kind(deploy.Failed), "A rollout has failed.", true, step(deploy.Failed)},
	{Kind(deploy.Revert), "A rollout has failed, and the head moves back to the release that completed before.", true, step(deploy.Revert)},
	{KindChangeRequest, "A change is proposed, to an environment that asks for approvals or at the server's own suggestion.", true, of[ChangeRequest]()},
	{KindChangeApprove, "A change is approved, by a signature.", true, of[ChangeApprove]()},
	{KindChangeReject, "A change is rejected, by a signature.", true, of[ChangeReject]()},
	{KindChangeWithdraw, "A change is taken back.", true, of[ChangeWithdraw]()},
	{KindChangeVoid, "A change can't be carried out any more: it has expired.", true, of[ChangeVoid]()},
	{KindChangeConfirm, "A head that was to be confirmed may stay.", true, of[ChangeConfirm]()},
	{KindChangeReview, "What was done in an emergency was looked at afterwards, by somebody else.", true, of[ChangeReview]()},
	{KindPolicyDecision, "A policy has judged a change.", true, of[PolicyDecision]()},
	{KindReleaseRevoke, "A release is blocked for good.", true, of[ReleaseRevoke]()},
	{KindAttestReproduced, "Somebody has baked a release again and compared; the body is the server's statement of what he says.", true, of[AttestReproduced]()},
	{KindAccessDenied, "A request was refused.", false, of[AccessDenied]()},
	{KindSessionStart, "Somebody is about to run a command in an instance.", true, of[SessionStart]()},
	{KindSessionEnd, "Such a session is over; the body is its recording.", true, of[SessionEnd]()},
	{KindEvidenceExport, "A part of the ledger was exported as evidence.", false, of[EvidenceExport]()},
	{KindTokenCreate, "A token for the API was made.", false, of[TokenCreate]()},
	{KindTokenRevoke, "A token was revoked.", false, of[TokenRevoke]()},
	{KindSecretVersion, "A version of a secret was made; no release has it yet.", true, of[SecretVersion]()},
	{KindErasureRequest, "The erasure of content that entries name is asked for.", false, of[ErasureRequest]()},
	{KindErasureApprove, "An erasure is agreed to, by a signature.", false, of[ErasureApprove]()},
	{KindErasure, "Content is about to be deleted, as was asked and agreed.", false, of[Erasure]()},
	{KindVerify, "What runs was measured, and compared with the release.", true, of[Verify]()},
	{Kind(deploy.Copying), "A volume is about to be copied: to a snapshot, before a change; or to a new version, from what was kept or from another environment.", true, step(deploy.Copying)},
	{Kind(deploy.Copied), "Such a copy is complete.", true, step(deploy.Copied)},
	{Kind(deploy.CopyFailed), "Such a copy failed, or was given up because the head has no use for it any more; nothing is left of it.", true, step(deploy.CopyFailed)},
	{Kind(deploy.Switch), "From now on instances get another version of a volume; the one before stays as it was left.", true, step(deploy.Switch)},
	{KindVolumeDelete, "Somebody asked for the deletion of a version or a snapshot of a volume, and it is about to be deleted.", true, of[VolumeDelete]()},
	{Kind(deploy.Deleted), "A version or a snapshot of a volume has been deleted, as volume.delete asked, or what there was of a copy that failed.", true, step(deploy.Deleted)},
	{KindWitnessAlarm, "A witness knows the ledger otherwise than it is.", false, of[WitnessAlarm]()},
	{KindHostDrift, "The machine was looked at beside the instances, and something is not as it should be.", false, of[HostDrift]()},
	{KindHostResolved, "What was found on the machine is over.", false, of[HostResolved]()},
}

// byKind has every kind by its name.
var byKind = func() map[Kind]KindInfo {
	out := make(map[Kind]KindInfo, len(kinds))
	for _, k := range kinds {
		out[k.Kind] = k
	}
	return out
}()

// codec makes the data of a kind: empty, or from what an entry has.
type codec struct {
	zero   func() Data
	decode func(json.RawMessage) (Data, error)
}

// of is the codec of a kind that has a type of its own.
func of[D Data]() codec {
	return codec{
		zero: func() Data {
			var d D
			return d
		},
		decode: func(raw json.RawMessage) (Data, error) {
			var d D
			err := strict(raw, &d)
			return d, err
		},
	}
}

// step is the codec of a kind of steps, which share a type.
func step(k deploy.Kind) codec {
	return codec{
		zero: func() Data { return Step{deploy.Step{Kind: k}} },
		decode: func(raw json.RawMessage) (Data, error) {
			var s deploy.Step
			err := strict(raw, &s)
			s.Kind = k
			return Step{s}, err
		},
	}
}

func decodeData(k Kind, raw json.RawMessage) (Data, error) {
	info, ok := byKind[k]
	if !ok {
		return nil, fmt.Errorf("kind %q is not known", k)
	}
	if raw == nil {
		raw = json.RawMessage("{}")
	}
	return info.data.decode(raw)
}

// Genesis begins a ledger.
type Genesis struct {
	Origin string `json:"origin"` // the log's name
	VKey   string `json:"vkey"`   // verifier key of its checkpoints (https://c2sp.org/signed-note)
}

// LogStart says that a server writes from now on.
type LogStart struct {
	Version  string `json:"version"`            // of invar
	Compares string `json:"compares,omitempty"` // every instance with its release, so often: Never, or a duration as Go prints it; unset: an older server did not tell
}

// Never is how often a server compares that was told not to.
const Never = "never"

// LogStop says that the server stops writing.
type LogStop struct{}

// Bundle makes a bundle known. The entry's body is the bundle.
type Bundle struct {
	App    spec.AppName  `json:"app"`
	Bundle digest.Digest `json:"bundle"`
	Source digest.Digest `json:"source"`
}

// Release makes a release known. The entry's body is its record.
type Release struct {
	App     spec.AppName  `json:"app"`
	Bundle  digest.Digest `json:"bundle"`
	Release digest.Digest `json:"release"`
}

// Apply moves the head to a planned release. The entry's body is the plan.
type Apply struct {
	App        spec.AppName  `json:"app"`
	Generation int           `json:"generation"`     // the new one
	Base       int           `json:"base,omitempty"` // the generation that the plan was made against; unset: none
	Release    digest.Digest `json:"release"`
	Bundle     digest.Digest `json:"bundle"`
	Plan       digest.Digest `json:"plan"`
	Promoted   *Promoted     `json:"promoted,omitempty"` // from where; unset: applied as any
	Governed
}

// Governed is what a move of a head carries of how it came to be allowed.
type Governed struct {
	Change    ChangeNumber `json:"change,omitempty"`    // that it carries out; unset: it needed no approval
	Emergency bool         `json:"emergency,omitempty"` // without the approvals that it needed: a review is due
	Override  string       `json:"override,omitempty"`  // the freeze that it was made in spite of
	ConfirmBy time.Time    `json:"confirm_by,omitzero"` // it is reverted unless confirmed by then
	ReviewBy  time.Time    `json:"review_by,omitzero"`  // of an emergency
}

func (g Governed) check() error {
	if g.Change < 0 || g.Emergency == g.ReviewBy.IsZero() {
		return errors.New("a change's number is negative, or an emergency lacks the time of its review")
	}
	return nil
}

// Rollback moves the head back to the release of generation To.
type Rollback struct {
	App        spec.AppName  `json:"app"`
	Generation int           `json:"generation"` // the new one
	Base       int           `json:"base"`       // the one before
	To         int           `json:"to"`
	Release    digest.Digest `json:"release"`
	Bundle     digest.Digest `json:"bundle"`

	Restore []deploy.Restore `json:"restore,omitempty"` // volumes that get the data that To left, by name; unset: data stay
	Governed
}

// Destroy moves the head to nothing.
type Destroy struct {
	App        spec.AppName `json:"app"`
	Generation int          `json:"generation"` // the new one
	Base       int          `json:"base"`       // the one before
	Volumes    bool         `json:"volumes,omitempty"`
	Governed
}

// VolumeDestroy says that volumes are deleted.
type VolumeDestroy struct {
	Generation int `json:"generation"` // the one that asked for it
}

// TokenCreate makes a token valid.
type TokenCreate struct {
	Token  TokenID       `json:"token"`
	Name   string        `json:"name"`   // its holder acts as token:NAME
	Secret digest.Digest `json:"secret"` // of the secret, which is kept nowhere

	Principal    platform.PrincipalName `json:"principal,omitempty"`    // whom its holder acts for; unset in old tokens
	Permissions  []platform.Permission  `json:"permissions,omitempty"`  // all that it is good for; unset: whatever the principal may
	Environments []platform.Pattern     `json:"environments,omitempty"` // where; unset: wherever the principal may
	ExpiresAt    time.Time              `json:"expires_at,omitzero"`
	Session      bool                   `json:"session,omitempty"` // made by a login, not by hand
	Key          string                 `json:"key,omitempty"`     // of a session: the SSH key that it was opened with, as in authorized_keys; it ends when the principal has that key no more
}

// TokenRevoke makes a token invalid for good.
type TokenRevoke struct {
	Token TokenID `json:"token"`
}

// SecretVersion makes a version of a secret of the entry's environment known. It tells nothing of the value, not even its size.
type SecretVersion struct {
	Name    string        `json:"name"`
	Version digest.Digest `json:"version"` // of the ciphertext
}

// Step is a step of a rollout. Its JSON is that of deploy.Step.
type Step struct{ deploy.Step }

func (Genesis) EntryKind() Kind       { return KindGenesis }
func (LogStart) EntryKind() Kind      { return KindLogStart }
func (LogStop) EntryKind() Kind       { return KindLogStop }
func (Bundle) EntryKind() Kind        { return KindBundle }
func (Release) EntryKind() Kind       { return KindRelease }
func (Apply) EntryKind() Kind         { return KindApply }
func (Rollback) EntryKind() Kind      { return KindRollback }
func (Destroy) EntryKind() Kind       { return KindDestroy }
func (VolumeDestroy) EntryKind() Kind { return KindVolumeDestroy }
func (TokenCreate) EntryKind() Kind   { return KindTokenCreate }
func (TokenRevoke) EntryKind() Kind   { return KindTokenRevoke }
func (SecretVersion) EntryKind() Kind { return KindSecretVersion }
func (s Step) EntryKind() Kind        { return Kind(s.Kind) }

// nowhere refuses an environment where none belongs.
func nowhere(e Entry) error {
	if e.Env != "" {
		return fmt.Errorf("environment %q where none belongs", e.Env)
	}
	return nil
}

func somewhere(e Entry) error { return spec.CheckName(string(e.Env)) }

func (g Genesis) check(e Entry) error {
	if g.Origin == "" || g.VKey == "" {
		return errors.New("want an origin and a verifier key")
	}
	return nowhere(e)
}

func (LogStart) check(e Entry) error { return nowhere(e) }
func (LogStop) check(e Entry) error  { return nowhere(e) }

func (b Bundle) check(e Entry) error {
	if e.Body == nil || e.Body.Digest != b.Bundle {
		return errors.New("want the bundle as body")
	}
	return errors.Join(nowhere(e), spec.CheckName(string(b.App)), required(b.Bundle, b.Source))
}

func (r Release) check(e Entry) error {
	if e.Body == nil || e.Body.Digest != r.Release {
		return errors.New("want the record as body")
	}
	return errors.Join(somewhere(e), spec.CheckName(string(r.App)), required(r.Bundle, r.Release))
}

func (a Apply) check(e Entry) error {
	if e.Body == nil || e.Body.Digest != a.Plan {
		return errors.New("want the plan as body")
	}
	return errors.Join(somewhere(e), checkMove(a.App, a.Generation, a.Base), a.Governed.check(), a.Promoted.check(), required(a.Release, a.Bundle, a.Plan))
}

func (r Rollback) check(e Entry) error {
	if r.To < 1 || r.To >= r.Generation {
		return fmt.Errorf("generation %d can't go back to %d", r.Generation, r.To)
	}
	return errors.Join(somewhere(e), checkMove(r.App, r.Generation, r.Base), r.Governed.check(), required(r.Release, r.Bundle), checkRestores(r.Restore, ""))
}

func (d Destroy) check(e Entry) error {
	return errors.Join(somewhere(e), checkMove(d.App, d.Generation, d.Base), d.Governed.check())
}

func checkMove(app spec.AppName, generation, base int) error {
	if base < 0 || generation != base+1 {
		return fmt.Errorf("generation %d does not follow %d", generation, base)
	}
	return spec.CheckName(string(app))
}

func (VolumeDestroy) check(e Entry) error { return somewhere(e) }

func (t TokenCreate) check(e Entry) error {
	if t.Key != "" && !t.Session {
		return errors.New("a key of what is no session")
	}
	return errors.Join(nowhere(e), checkTokenID(t.Token), spec.CheckName(t.Name), required(t.Secret))
}

func (t TokenRevoke) check(e Entry) error { return errors.Join(nowhere(e), checkTokenID(t.Token)) }

func (s SecretVersion) check(e Entry) error {
	return errors.Join(somewhere(e), spec.CheckName(s.Name), required(s.Version))
}

func (s Step) check(e Entry) error {
	if s.Evidence != "" && (e.Body == nil || e.Body.Digest != s.Evidence || e.Body.Size != s.Bytes) {
		return errors.New("want the evidence as body")
	}
	return somewhere(e)
}
