// Package deploy decides the next steps of a rollout, a rollback or a heal.
//
// What the ledger says of an environment (Environment) is the fold of its steps; what a host sees of
// its instances comes as observations. Next compares the two with what the head asks for and returns
// the steps to record, and then to act on. It is pure: equal arguments give equal steps, and no step
// when nothing differs. A rollout, a rollback, healing and scaling are one algorithm: the head says
// what should run, and Next brings what runs towards it.
package deploy

import (
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

// Kind is the kind of a step. Its string is the kind of the ledger entry that records it.
type Kind string

// The kinds of steps. First those that an act follows on, then those that record what was observed or concluded.
const (
	Create  Kind = "instance.create" // act: create the instance, open its sockets, start it
	Retire  Kind = "instance.retire" // act: out of traffic, drain, stop, remove
	Shift   Kind = "traffic.shift"   // act: publish the route table
	Revert  Kind = "deploy.revert"   // the head moves back to Release as a new generation
	Healthy Kind = "instance.healthy"
	Failing Kind = "instance.failing"
	Exited  Kind = "instance.exit"
	Gone    Kind = "instance.gone" // removed from the host
	Done    Kind = "deploy.complete"
	Failed  Kind = "deploy.fail"
)

// Step is one step. Which fields are set depends on Kind. Its JSON is the data of its ledger entry.
type Step struct {
	Kind       Kind               `json:"-"`
	Instance   *instance.Identity `json:"instance,omitempty"` // Create; others only need the ID
	ID         instance.ID        `json:"id,omitempty"`
	Component  spec.ComponentName `json:"component,omitempty"`  // Shift
	Shares     []Share            `json:"shares,omitempty"`     // Shift
	Generation int                `json:"generation,omitempty"` // Done, Failed, Revert (the new one)
	Release    digest.Digest      `json:"release,omitempty"`    // Revert
	ExitCode   int                `json:"exit_code,omitempty"`  // Exited
	OOM        bool               `json:"oom,omitempty"`        // Exited
	Cause      string             `json:"cause,omitempty"`      // why, one sentence for people
}

// Share is a version's part of a component's traffic. The shares of a component sum to 100.
type Share struct {
	Version digest.Digest `json:"version"` // component digest
	Percent int           `json:"percent"`
}

// Generation is one head that an environment had.
type Generation struct {
	Number  int            `json:"number"`
	Release digest.Digest  `json:"release"` // "": destroyed
	Record  release.Record `json:"-"`       // resolved from Release
	At      time.Time      `json:"at"`
	Outcome Outcome        `json:"outcome"`
	EndedAt time.Time      `json:"ended_at,omitzero"`
	Cause   string         `json:"cause,omitempty"` // of a failure
}

// Outcome is what became of a generation's rollout.
type Outcome string

// The outcomes.
const (
	Rolling    Outcome = "rolling"
	Completed  Outcome = "completed"
	Broken     Outcome = "failed"
	Superseded Outcome = "superseded" // another head came before it ended
)
