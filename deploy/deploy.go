// Package deploy decides the next steps of a rollout, a rollback or a heal.
//
// What the ledger says of an environment (Environment) is the fold of its steps; what a host sees of
// its instances comes as observations. Next compares the two with what the head asks for and returns
// the steps to record; Acts tells what then remains to be done on the host, and Traffic where
// connections go. All are pure: equal arguments give equal results, and there is no step when nothing differs.
// A rollout, a rollback, healing and scaling are one algorithm: the head says what should run, and Next
// brings what runs towards it.
//
// # A version and its instances
//
// The versions of a component are told apart by its digest. A head whose release has a component with the
// digest that already runs leaves its instances alone; only their number may change. Else:
//
//   - Blue/green, unless told otherwise: instances of the new version start beside the old ones, at most
//     max_parallel at a time, and take the traffic in one step once all of them have been healthy for min_healthy_time.
//   - Canary: the same, but the traffic shifts by the percents given, each with as many instances as its share
//     needs, and each held for min_healthy_time with all of them healthy.
//   - A component with volumes is recreated: out of traffic, old instances gone, then new ones.
//
// A component's rollout begins when those that it uses have theirs behind them. A version that has proven itself
// (the revert target, or instances still warm from before) needs no canary and no waiting: it switches as soon as it
// has as many healthy instances as serve now.
//
// # Failure
//
// A rollout fails when instances of a new version fail three times running, when one is not healthy by its
// healthy_deadline, or when there is no progress for progress_deadline (counted on top of min_healthy_time, which is waiting
// and not standing still). With auto_revert the head then moves to the last completed release, as a new generation; never
// to the release that it already has. Otherwise it stays failed: the versions that have the traffic keep it and are healed.
//
// # Healing
//
// An instance that exits or disappears is replaced: at once the first time, then after 1, 2, 4 … 60 s, until
// one has been healthy for ten minutes. One that runs but fails its checks is out of traffic at once, replaced beside, and
// retired when the replacement is healthy. With volumes, where nothing can start beside, that happens only when it has failed for
// healthy_deadline. Healing goes by the head, and a rollback moves the head: so they can't fight.
//
// # Data
//
// A volume has versions: directories of which instances get the current one. Where the release asks for it, a volume is copied before another
// version of its component gets it: after the last instance has gone, before the next is created, when nobody writes. A head can ask for
// a restore: a new version of a volume, made from what was kept, while the old instances still run; then they end, the new version becomes
// the current one, and the old one stays as it was left. A revert of such a head makes the old one the current one again. A copy
// that fails fails the rollout; one that a later head has no use for is given up.
//
// # Taint
//
// An instance that a person's hand was in is tainted, and stays so until it is gone. When its time has come (a session has ended or
// reached its deadline; at once for a process that came from outside) it is replaced as one that fails its checks is, but keeps its
// traffic until the replacement is healthy: a taint alone never lowers the number of those that serve. One that has no
// traffic when it is tainted, or loses it, never gets any again, and does not count as warm.
//
// # Drift
//
// An instance that was measured and differs from its release is recorded with all that differs, once for each thing. What follows is the
// environment's rule: it is replaced as a tainted one is, or nothing. Where what replaced it differs as well, and again, it takes
// longer each time: the difference then is in the component or the machine, and a new instance does not heal it.
//
// By the third rule it is frozen, and kept as evidence. It is out of traffic at once, but the last that serves of several keeps its traffic until
// another does. What is under way in it has a moment to end; then its processes are stopped where they are, what the host can tell of it is
// recorded, and it is retired. Whoever retires it for another reason meanwhile has it frozen before. When no evidence comes in time, it
// goes without: a host that can't do it stops no rollout.
//
// From its first finding until that is resolved, an instance differs. That is over when the instance is gone; where nothing but the entry
// follows, also when two looks find it as released. One that differs and does not, again and again, counts as as released only after a time
// that grows in the same way.
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
	Freeze  Kind = "instance.freeze" // act: out of traffic, drain for a moment, freeze, take its evidence
	Retire  Kind = "instance.retire" // act: out of traffic, drain, stop, remove
	Shift   Kind = "traffic.shift"   // act: publish the route table
	Revert  Kind = "deploy.revert"   // the head moves back to Release as a new generation
	Healthy Kind = "instance.healthy"
	Failing Kind = "instance.failing"
	Exited  Kind = "instance.exit"
	Gone    Kind = "instance.gone"  // removed from the host
	Tainted Kind = "instance.taint" // somebody was in it, or the session of an earlier taint is over
	Drifted Kind = "drift.detected" // it was measured, and differs from its release
	Frozen  Kind = "drift.frozen"   // its evidence is kept, or there is none
	Settled Kind = "drift.resolved" // that is over
	Done    Kind = "deploy.complete"

	Copying    Kind = "volume.copy" // act: copy the volume
	Copied     Kind = "volume.copied"
	CopyFailed Kind = "volume.fail"   // or nobody has a use for it any more; act: delete what there is of it
	Switch     Kind = "volume.switch" // instances get another version of the volume from now on
	Deleted    Kind = "volume.deleted"

	Failed Kind = "deploy.fail"
)

// Step is one step. Which fields are set depends on Kind. Its JSON is the data of its ledger entry.
type Step struct {
	Kind       Kind               `json:"-"`
	Instance   *instance.Identity `json:"instance,omitempty"` // Create; others only need the ID
	ID         instance.ID        `json:"id,omitempty"`
	Component  spec.ComponentName `json:"component,omitempty"`  // Shift
	Shares     []Share            `json:"shares,omitempty"`     // Shift; none: no traffic
	Generation int                `json:"generation,omitempty"` // Done, Failed, Revert (the new one)
	Release    digest.Digest      `json:"release,omitempty"`    // Revert
	ExitCode   int                `json:"exit_code,omitempty"`  // Exited
	OOM        bool               `json:"oom,omitempty"`        // Exited
	By         string             `json:"by,omitempty"`         // Tainted: BySession(id) or ByForeign
	Until      int64              `json:"until_ms,omitempty"`   // Tainted, Drifted: not replaced before this time; 0: at once
	Foreign    []instance.Foreign `json:"foreign,omitempty"`    // Tainted: the processes found
	Findings   []instance.Finding `json:"findings,omitempty"`   // Drifted: how it differs; at most maxFindings of them
	Response   spec.Response      `json:"response,omitempty"`   // Drifted: what follows
	Evidence   digest.Digest      `json:"evidence,omitempty"`   // Frozen; none: Cause says why
	Bytes      int64              `json:"bytes,omitempty"`      // Frozen: of the evidence
	Resolution Resolution         `json:"resolution,omitempty"` // Settled: how
	Keys       []string           `json:"keys,omitempty"`       // Settled: of the findings
	Successors []instance.ID      `json:"successors,omitempty"` // Settled: instances that took over; at most maxSuccessors of them
	OpenMillis int64              `json:"open_ms,omitempty"`    // Settled: since the first of the findings
	Cause      string             `json:"cause,omitempty"`      // why, one sentence for people
	Copy       *Copy              `json:"copy,omitempty"`       // Copying, Copied, CopyFailed, Switch, Deleted
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
	Cause   string         `json:"cause,omitempty"`   // of a failure
	Revoked bool           `json:"revoked,omitempty"` // no rollout reverts to it

	Reverts  bool        `json:"reverts,omitempty"`  // it came because the one before it failed
	Restores []Restoring `json:"restores,omitempty"` // of Head: what its volumes get

	Digests map[spec.ComponentName]digest.Digest `json:"-"` // of Record's components; SetHead and Resolve fill it
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

// Fixed measures of healing and failure.
const (
	maxFailures = 3                // of a new version, running, until its rollout fails
	maxBackoff  = time.Minute      // between two tries to replace
	steadyAfter = 10 * time.Minute // healthy this long, an instance's failure counts as the first
)
