package api

import (
	"encoding/json"
	"time"

	"github.com/invarhq/invar/digest"
)

// Changes lists changes.
type Changes struct {
	Changes []ChangeSummary `json:"changes" doc:"Newest first."`
}

// Statuses of a change.
const (
	ChangeOpen      = "open"
	ChangeApplied   = "applied"
	ChangeRejected  = "rejected"
	ChangeWithdrawn = "withdrawn"
	ChangeVoid      = "void"
)

// ChangeSummary is a proposal to move a head.
type ChangeSummary struct {
	Number    int           `json:"number" doc:"Its number: 1, 2, 3 …"`
	Env       string        `json:"env" doc:"Environment."`
	App       string        `json:"app" doc:"App."`
	Move      string        `json:"move" enum:"apply,rollback,destroy,fork" doc:"How the head is to move."`
	Base      int           `json:"base_generation" doc:"Generation that it was planned against. When the head moves on, the change is void."`
	To        int           `json:"to,omitempty" doc:"Of a rollback: the generation to go back to."`
	Release   digest.Digest `json:"release,omitempty" doc:"Release that would be the head; absent: a destroy."`
	Status    string        `json:"status" enum:"open,applied,rejected,withdrawn,void" doc:"Where it stands."`
	Cause     string        `json:"cause,omitempty" doc:"Why it was closed."`
	ClosedBy  string        `json:"closed_by,omitempty" doc:"Who closed it, or carried it out."`
	Promoted  *PromotedFrom `json:"promoted,omitempty" doc:"Of a promotion: where the bundle has to run healthy still when it is carried out."`
	Author    string        `json:"author" doc:"Who proposed it."`
	Reason    string        `json:"reason,omitempty" doc:"Why, in the author's words."`
	At        time.Time     `json:"at" doc:"When it was proposed."`
	ExpiresAt *time.Time    `json:"expires_at,omitempty" doc:"When it is void if it still waits."`
	Applied   int           `json:"applied_generation,omitempty" doc:"The generation that it became."`
	Missing   []string      `json:"missing" doc:"Rules whose approvals it still lacks."`
	Approvals []Approval    `json:"approvals" doc:"Those that stand, in their order."`
}

// Approval is a signed approval.
type Approval struct {
	By    string    `json:"by" doc:"Principal."`
	At    time.Time `json:"at" doc:"When the ledger got it."`
	KeyID string    `json:"key_id" doc:"Fingerprint of the SSH key."`
	Note  string    `json:"note,omitempty" doc:"What the approver said."`
	Entry uint64    `json:"entry" doc:"Index of its ledger entry."`
}

// ChangeDetail is a change with all that an approver looks at.
type ChangeDetail struct {
	ChangeSummary
	Log       string          `json:"log" doc:"Name of the ledger: part of what is signed."`
	Request   string          `json:"request" doc:"ID of the entry that proposed it: part of what is signed."`
	Entry     uint64          `json:"entry" doc:"Index of that entry."`
	Bundle    digest.Digest   `json:"bundle,omitempty" doc:"Bundle of the release."`
	Plan      Plan            `json:"plan" doc:"What it would do."`
	PlanJSON  json.RawMessage `json:"plan_json" doc:"The plan's canonical JSON: its SHA-256 is the plan's digest, which is what is signed."`
	Decisions []Decision      `json:"decisions" doc:"What the policies say."`
}

// Decision is what a policy said of a change.
type Decision struct {
	Policy   string           `json:"policy" doc:"Name of the policy."`
	Allowed  bool             `json:"allowed" doc:"Whether the change may proceed."`
	Digest   digest.Digest    `json:"digest,omitempty" doc:"Of the whole decision, from which it can be replayed."`
	Entry    uint64           `json:"entry,omitempty" doc:"Index of its ledger entry; absent: not recorded, as for a plan."`
	Phase    string           `json:"phase" doc:"When: plan, request or apply."`
	Failure  string           `json:"failure,omitempty" doc:"Why there was no answer, which refuses."`
	Messages []DecisionReason `json:"messages" doc:"What its rules say, what refuses first."`
	Erased   string           `json:"erased,omitempty" doc:"By which entry, when and by whom the decision's content was erased; absent: it was not."`
}

// DecisionReason is what one rule says.
type DecisionReason struct {
	Kind     string   `json:"kind" enum:"deny,violation,warn" doc:"deny and violation refuse."`
	Rule     string   `json:"rule" doc:"Name of the rule."`
	Subject  string   `json:"subject,omitempty" doc:"What it is about."`
	Message  string   `json:"message" doc:"Why, for people."`
	Controls []string `json:"controls,omitempty" doc:"Controls of standards that the rule serves."`
	Exempted string   `json:"exempted,omitempty" doc:"Name of the exception by which it does not refuse."`
	Expired  []string `json:"expired,omitempty" doc:"Exceptions that would have, had they not expired."`
}

// SignedRequest carries what a person signed.
type SignedRequest struct {
	Statement string `json:"statement" maxLength:"16384" doc:"Canonical JSON of the statement."`
	Signature string `json:"signature" maxLength:"16384" doc:"SSHSIG over it (PROTOCOL.sshsig), armored, in the namespace of its meaning."`
	Note      string `json:"note,omitempty" maxLength:"4096" doc:"Why; part of the statement."`
}

// WithdrawRequest takes a change back.
type WithdrawRequest struct {
	Reason string `json:"reason,omitempty" maxLength:"4096" doc:"Why; recorded in the ledger."`
}

// CarryOutRequest carries an approved change out.
type CarryOutRequest struct {
	OverrideFreeze bool `json:"override_freeze,omitempty" doc:"In spite of a freeze. Needs the permission freeze.override."`
}

// ConfirmRequest lets a head stay.
type ConfirmRequest struct {
	Reason string `json:"reason,omitempty" maxLength:"4096" doc:"Why; recorded in the ledger."`
}

// ReviewRequest is a signed review of what was done in an emergency.
type ReviewRequest struct {
	Generation int    `json:"generation" minimum:"1" doc:"The generation that the emergency made."`
	Verdict    string `json:"verdict" enum:"accepted,objected" doc:"What the reviewer found."`
	SignedRequest
}

// RevokeRequest blocks a release for good.
type RevokeRequest struct {
	Reason string `json:"reason" minLength:"1" maxLength:"4096" doc:"Why; recorded in the ledger."`
}

// Revoked says what a revocation led to.
type Revoked struct {
	Release digest.Digest `json:"release" doc:"The release."`
	Changes []int         `json:"changes" doc:"Changes that were proposed, to leave it where it is the head."`
	Heads   []Head        `json:"heads" doc:"Where it is the head now."`
}

// WhoAmI is who asks.
type WhoAmI struct {
	Principal   string   `json:"principal" doc:"Name in the platform's definition."`
	Method      string   `json:"method" doc:"How it is known: local, token, ssh or oidc."`
	Name        string   `json:"name" doc:"The user, key, subject or token."`
	Groups      []string `json:"groups" doc:"Groups of the platform's definition."`
	Environment string   `json:"environment,omitempty" doc:"Environment that the permissions are of; absent: those of the whole server."`
	Permissions []string `json:"permissions" doc:"What may be done there."`
	SSHKeys     []string `json:"ssh_keys" doc:"Public keys that signatures are taken from."`

	ExpiresAt *time.Time `json:"expires_at,omitempty" doc:"When the credential ends that the caller showed; absent: it does not by itself."`
}
