// Package platform is the platform's own definition: who there is, who may do what, whose approval a change
// needs, when nothing may change, and which policies judge it. It is written in platform.hcl (package spec/parse),
// released to the environment "platform" like any app, and in force from the moment that environment's head has it.
//
// Definition is a value; its methods are the decisions that follow from it. They are pure, take the time
// as an argument, and refuse what they do not know: a permission that no grant gives is not there.
//
//	Principal ──member of──▶ Group          Approval ──require──▶ "2 of group.a and 1 of group.b"
//	    └───────grant: role, environments, until───────▶ Permission
//
// An environment is governed when an approval rule matches its name: a change of it waits for signatures. Several rules
// that match must all be met. Freezes, policies and break-glass rules match environments by name in the same way.
package platform

import (
	"time"

	"github.com/invarhq/invar/spec"
)

// Env is the environment that the platform's own definition is released to, and App the app that it is.
const (
	Env spec.EnvName = "platform"
	App spec.AppName = "platform"
)

// Names have a type each, as those of package spec; they look the same.
type (
	PrincipalName string
	GroupName     string
	RoleName      string
)

// Pattern matches names of environments: literally, or with "*" for any number of characters.
type Pattern string

// Definition is the whole of platform.hcl. Lists are sorted by name; an unset field adds no bytes to a release.
type Definition struct {
	Principals    []Principal    `json:"principals"`
	Groups        []Group        `json:"groups,omitempty"`
	Roles         []Role         `json:"roles"`
	Grants        []Grant        `json:"grants"` // in the order of the file
	Approvals     []Approval     `json:"approvals,omitempty"`
	Freezes       []Freeze       `json:"freezes,omitempty"`
	Policies      []Policy       `json:"policies,omitempty"`
	Exceptions    []Exception    `json:"exceptions,omitempty"`
	BreakGlass    []BreakGlass   `json:"break_glass,omitempty"`
	Retentions    []Retention    `json:"retentions,omitempty"`
	Verifications []Verification `json:"verifications,omitempty"`
	Issuers       []Issuer       `json:"issuers,omitempty"`
	Witnesses     []Witness      `json:"witnesses,omitempty"`
	Quorum        int            `json:"witness_quorum,omitempty"` // how many witnesses must have cosigned; 0: none need to
	Auditors      []string       `json:"auditors,omitempty"`       // age recipients, whom recordings are encrypted to
}

// Principal is a person or a machine. What it can prove to be decides how it comes in; any one of its credentials does.
type Principal struct {
	Name       PrincipalName `json:"name"`
	LocalUsers []string      `json:"local_users,omitempty"` // user names of the server's machine
	SSHKeys    []string      `json:"ssh_keys,omitempty"`    // as in authorized_keys, without options
	OIDC       []OIDC        `json:"oidc,omitempty"`
	Disabled   bool          `json:"disabled,omitempty"` // known, and let in by nothing
	Machine    bool          `json:"machine,omitempty"`  // no person: never counts as an approver
}

// OIDC matches tokens of an issuer by their claims: each must have one of its values, in which "*" stands for any
// number of characters.
type OIDC struct {
	Issuer string              `json:"issuer"` // URL, as in the token's iss
	Claims map[string][]string `json:"claims"` // at least one
}

// Issuer is an OpenID provider whose tokens are accepted, and how people log in there.
type Issuer struct {
	Name     string   `json:"name"`
	URL      string   `json:"url"`
	ClientID string   `json:"client_id"`
	Audience []string `json:"audience,omitempty"` // further audiences of tokens that are accepted, as of a CI system
	Scopes   []string `json:"scopes,omitempty"`   // asked for at login, beside openid
}

// Group names principals, and other groups.
type Group struct {
	Name    GroupName       `json:"name"`
	Members []PrincipalName `json:"members,omitempty"`
	Groups  []GroupName     `json:"groups,omitempty"`
}

// Role names permissions.
type Role struct {
	Name        RoleName     `json:"name"`
	Permissions []Permission `json:"permissions"`
}

// Grant gives a role to principals and groups, in the environments that match.
type Grant struct {
	Role         RoleName        `json:"role"`
	Principals   []PrincipalName `json:"principals,omitempty"`
	Groups       []GroupName     `json:"groups,omitempty"`
	Environments []Pattern       `json:"environments"`
	Until        time.Time       `json:"until,omitzero"` // zero: for good
}

// Approval is a rule: a change of a matching environment needs these approvals.
type Approval struct {
	Name          string    `json:"name"`
	Environments  []Pattern `json:"environments"`
	Require       string    `json:"require"`                  // see ParseRequirement
	ExpiresMillis int64     `json:"expires_ms"`               // from the request; a change that was not applied by then is void
	SelfApproval  bool      `json:"self_approval,omitempty"`  // the author's approval counts
	SelfApply     bool      `json:"self_apply,omitempty"`     // author and approvers may carry it out
	Automatic     bool      `json:"automatic,omitempty"`      // the server carries it out as soon as all rules are met
	Rollbacks     bool      `json:"free_rollbacks,omitempty"` // a rollback to what has completed here needs no approval
}

// Freeze is a window of time. Windows of kind deny forbid changes while they are open; once there is a window of kind
// allow for an environment, changes are forbidden while none of those is open. Deny wins.
//
// A window says when a head may move, and nothing else: a rollout that began before goes on, reverts by itself if it
// fails, and healing never stops.
type Freeze struct {
	Name           string    `json:"name"`
	Environments   []Pattern `json:"environments"`
	Kind           string    `json:"kind"`           // "deny" or "allow"
	Cron           string    `json:"cron,omitempty"` // five fields: when windows begin, in Timezone
	DurationMillis int64     `json:"duration_ms,omitempty"`
	Timezone       string    `json:"timezone,omitempty"` // of the IANA database; "": UTC
	From           time.Time `json:"from,omitzero"`      // instead of Cron: one window
	To             time.Time `json:"to,omitzero"`
	Rollbacks      bool      `json:"rollbacks,omitempty"` // rollbacks may be made all the same
}

// Policy is a directory of Rego that judges every change of a matching environment (package policy).
type Policy struct {
	Name         string            `json:"name"`
	Environments []Pattern         `json:"environments"`
	Files        map[string]string `json:"files"` // by path in the directory
}

// Exception takes one rule of a policy back for a while.
type Exception struct {
	Name         string    `json:"name"`
	Policy       string    `json:"policy"` // name of the policy
	Rule         string    `json:"rule"`   // as in policy.Result
	Environments []Pattern `json:"environments"`
	Ticket       string    `json:"ticket"`
	Reason       string    `json:"reason"`
	Expires      time.Time `json:"expires"`
}

// BreakGlass lets whoever has the permission "breakglass" act at once, in emergencies: without approvals, in a freeze,
// against a policy. Someone else has to review it afterwards.
type BreakGlass struct {
	Name          string    `json:"name"`
	Environments  []Pattern `json:"environments"`
	ReviewMillis  int64     `json:"review_ms"`           // a review is due this long after; a late one is a finding, and stops further changes
	Reviewers     GroupName `json:"reviewers,omitempty"` // "": whoever may approve there
	SessionMillis int64     `json:"session_ms"`          // an instance in which somebody has a shell is replaced at the latest after this long
}

// Retention says how long bodies of a kind of entries are kept at the least.
type Retention struct {
	Name       string   `json:"name"`
	Kinds      []string `json:"kinds"` // of entries
	KeepMillis int64    `json:"keep_ms"`
}

// Verification says how often the server measures what runs in the environments that match, and records it.
type Verification struct {
	Name         string    `json:"name"`
	Environments []Pattern `json:"environments"`
	EveryMillis  int64     `json:"every_ms"`
}

// Witness cosigns checkpoints of the ledger (https://c2sp.org/tlog-witness).
type Witness struct {
	Name string `json:"name"`
	URL  string `json:"url"`
	VKey string `json:"key"`
}
