package api

import (
	"time"

	"github.com/invarhq/invar/digest"
)

// Where the volumes of a fork begin.
const (
	VolumesEmpty    = "empty"
	VolumesSnapshot = "snapshot"
	VolumesCopy     = "copy"
)

// ForkRequest asks for an environment that runs the release of another.
type ForkRequest struct {
	From       string        `json:"from" maxLength:"63" pattern:"^[a-z]([a-z0-9-]*[a-z0-9])?$" doc:"Environment to fork. It stays as it is."`
	Generation int           `json:"generation,omitempty" minimum:"0" doc:"Generation of it; absent: its head."`
	Bundle     digest.Digest `json:"bundle,omitempty" pattern:"^sha256:[0-9a-f]{64}$" doc:"For a preview: bundle that is evaluated for that environment, and run as the fork; absent: the generation's release."`
	Release    digest.Digest `json:"release,omitempty" pattern:"^sha256:[0-9a-f]{64}$" doc:"Of a preview: digest of the release that the client evaluated."`
	Volumes    string        `json:"volumes,omitempty" enum:"empty,snapshot,copy" doc:"How its volumes begin: empty; as copies of the newest snapshots of the environment's volumes; or of what is in them now, while it is written to. Copies need the permission exec there. Absent: empty."`
	TTLMS      int64         `json:"ttl_ms" minimum:"1" maximum:"7776000000" doc:"Milliseconds after which it is destroyed, with its volumes."`
	Reason     string        `json:"reason,omitempty" maxLength:"4096" doc:"Why; recorded in the ledger."`
	How
}

// Fork says what an environment is a fork of.
type Fork struct {
	From       string    `json:"from" doc:"Environment that it is a fork of."`
	Generation int       `json:"generation,omitempty" doc:"Generation of it; absent: a preview, whose release was no head there."`
	Owner      string    `json:"owner" doc:"Who asked for it."`
	ExpiresAt  time.Time `json:"expires_at" doc:"When it is destroyed."`
	Volumes    string    `json:"volumes" enum:"empty,snapshot,copy" doc:"How its volumes began."`
	Secrets    []string  `json:"secrets" doc:"Names of its own secrets that take the place of the release's."`
}

// PromotionRequest asks to plan the bundle of another environment's head.
type PromotionRequest struct {
	From         string `json:"from" maxLength:"63" pattern:"^[a-z]([a-z0-9-]*[a-z0-9])?$" doc:"Environment whose head's bundle is to be planned."`
	HealthyForMS int64  `json:"healthy_for_ms,omitempty" minimum:"0" maximum:"31536000000" doc:"Refuse unless it has run healthy there for so many milliseconds."`
}

// Promotion is a plan for an environment, with what differs from the environment that it comes from.
type Promotion struct {
	From  Head           `json:"from" doc:"The head that it comes from."`
	Diff  Diff           `json:"diff" doc:"How the release that would be the head differs from that one's: a is that one's."`
	Plan  Plan           `json:"plan" doc:"What applying it would do."`
	Proof PromotionProof `json:"proof" doc:"Since when that head has run healthy."`
}

// PromotionProof says since when a head has run healthy, by what the ledger has of it.
type PromotionProof struct {
	Completed  uint64    `json:"completed_entry" doc:"Index of the entry by which its rollout completed."`
	Newest     uint64    `json:"newest_entry" doc:"Index of the newest entry by which its rollout completed, or an instance failed, exited, was tainted, or was healthy again."`
	Size       uint64    `json:"ledger_size" doc:"Size of the ledger that was read: no such entry lies between newest_entry and here."`
	Since      time.Time `json:"since" doc:"Time of that newest entry."`
	HealthyFor int64     `json:"healthy_for_ms" doc:"Milliseconds since then."`
}
