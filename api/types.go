package api

import (
	"encoding/json"
	"time"

	"github.com/invarhq/invar/digest"
)

// Server describes the server.
type Server struct {
	Version       string      `json:"version" doc:"Version of the program." example:"0.1.0"`
	API           Levels      `json:"api" doc:"API levels that the server speaks."`
	DataFormat    int         `json:"data_format" doc:"Version of the format of the data directory." example:"1"`
	StartedAt     time.Time   `json:"started_at" doc:"When the server started."`
	UptimeSeconds int64       `json:"uptime_seconds" doc:"Seconds since the server started."`
	Host          Host        `json:"host" doc:"The machine that instances run on."`
	Gateway       GatewayInfo `json:"gateway" doc:"Where traffic enters."`
	Ledger        LedgerInfo  `json:"ledger" doc:"The ledger's identity and size."`
	Actor         string      `json:"actor" doc:"Whom the server takes the caller for." example:"local:alice"`
}

// Host is the machine that instances run on.
type Host struct {
	Name     string    `json:"name" doc:"Host name."`
	OS       string    `json:"os" example:"linux" doc:"Operating system."`
	Arch     string    `json:"arch" example:"amd64" doc:"Processor architecture, as Go names it."`
	Kernel   string    `json:"kernel,omitempty" example:"6.12.0" doc:"Kernel release."`
	CPUs     int       `json:"cpus" doc:"Processors that the server may use."`
	Features []Feature `json:"features" doc:"What the host can do, measured at start, sorted by name."`
}

// Feature is one thing that a host can do, or not.
type Feature struct {
	Name      string `json:"name" example:"user-namespaces" doc:"Name of the feature."`
	Available bool   `json:"available" doc:"Whether the host has it."`
	Detail    string `json:"detail,omitempty" doc:"How it is done, or what its absence means."`
}

// GatewayInfo is where traffic enters.
type GatewayInfo struct {
	HTTP     string            `json:"http,omitempty" example:"127.0.0.1:8080" doc:"Address of the HTTP listener."`
	HTTPS    string            `json:"https,omitempty" example:"127.0.0.1:8443" doc:"Address of the HTTPS listener."`
	PID      int               `json:"pid,omitempty" doc:"Process of the gateway; absent while it does not answer."`
	Version  string            `json:"version,omitempty" doc:"Version of the gateway's program."`
	Serial   uint64            `json:"serial,omitempty" doc:"Serial of the route table in force."`
	Failures map[string]string `json:"failures,omitempty" doc:"What of the route table could not be done: listener to cause."`
}

// LedgerInfo is the ledger's identity and size.
type LedgerInfo struct {
	Origin string `json:"origin" doc:"Name of the log, the first line of its checkpoints." example:"invar.example.com/ledger"`
	VKey   string `json:"vkey" doc:"Verifier key of the log's checkpoints, as signed notes spell it (https://c2sp.org/signed-note)."`
	Size   uint64 `json:"size" doc:"Number of entries."`
}

// Outcomes of a rollout.
const (
	Rolling    = "rolling"
	Completed  = "completed"
	Failed     = "failed"
	Superseded = "superseded"
)

// Environments is the answer of the list of environments.
type Environments struct {
	Environments []EnvironmentSummary `json:"environments" doc:"Sorted by name."`
}

// EnvironmentSummary is an environment in one line.
type EnvironmentSummary struct {
	Name       string        `json:"name" example:"staging" doc:"Name of the environment."`
	App        string        `json:"app,omitempty" example:"shop" doc:"App that it runs; absent when it is destroyed."`
	Generation int           `json:"generation" example:"3" doc:"Counter of heads."`
	Release    digest.Digest `json:"release,omitempty" doc:"Digest of the head release; absent when the environment is destroyed."`
	Bundle     digest.Digest `json:"bundle,omitempty" doc:"Digest of the bundle that the release was evaluated from."`
	State      string        `json:"state" enum:"rolling,completed,failed,superseded" doc:"What became of the head's rollout."`
	Cause      string        `json:"cause,omitempty" doc:"Why the rollout failed, or waits."`
	By         string        `json:"by,omitempty" example:"local:alice" doc:"Who moved the head."`
	Reason     string        `json:"reason,omitempty" doc:"The reason that was given."`
	At         time.Time     `json:"at" doc:"When the head moved."`
	EndedAt    *time.Time    `json:"ended_at,omitempty" doc:"When the rollout ended."`
	Wanted     int           `json:"wanted" doc:"Instances that the head asks for."`
	Healthy    int           `json:"healthy" doc:"Instances of the head that pass their checks."`
	Total      int           `json:"total" doc:"All instances, those of older releases included."`
	Tainted    int           `json:"tainted,omitempty" doc:"Those that somebody was in, and that are to be replaced."`
	OnDrift    string        `json:"on_drift,omitempty" enum:"alert,freeze" doc:"What follows when an instance differs from its release; absent: it is replaced."`
	Fork       *Fork         `json:"fork,omitempty" doc:"What it is a fork of; absent: it is none."`
	Verified   *Verified     `json:"verified,omitempty" doc:"What measuring what runs found last; absent: it was never measured."`
	Notices    []Notice      `json:"notices,omitempty" doc:"What blocks it, what waits and what is due, beside how it does."`
}

// The kinds of notices.
const (
	NoticeRevoked = "revoked" // the head is a release that was revoked
	NoticeConfirm = "confirm" // the head is reverted unless it is confirmed
	NoticeReview  = "review"  // an emergency is to be reviewed
	NoticeOverdue = "overdue" // that review is late
	NoticeFrozen  = "frozen"  // a freeze is in force
	NoticeChange  = "change"  // a change is open

	NoticeUnverified = "unverified" // what runs was not measured for too long
)

// Verified is what came of measuring what an environment runs, last.
type Verified struct {
	At        time.Time  `json:"at" doc:"When it was recorded."`
	Entry     uint64     `json:"entry" doc:"Index of the entry."`
	Result    string     `json:"result" enum:"as-released,not-measured,differs" doc:"The worst of the instances'. not-measured: of some, or of all, nothing could be told."`
	Instances int        `json:"instances" doc:"How many run or were to run."`
	Bad       int        `json:"bad" doc:"How many of them are not as released, or could not be measured."`
	WholeAt   *time.Time `json:"whole_at,omitempty" doc:"When all of it was measured last; absent: never."`
}

// Notice is something that somebody who looks at an environment ought to know.
type Notice struct {
	Kind  string     `json:"kind" enum:"revoked,confirm,review,overdue,frozen,change" doc:"What it is about."`
	Text  string     `json:"text" doc:"A sentence for people."`
	Until *time.Time `json:"until,omitempty" doc:"When it ends, or is due."`
}

// Environment is all that is known of an environment now.
type Environment struct {
	EnvironmentSummary
	Components []Component  `json:"components" doc:"Components of the head, and those that still have instances, sorted by name."`
	Instances  []Instance   `json:"instances" doc:"Every instance, sorted by component, generation and id."`
	Routes     []Route      `json:"routes" doc:"How to reach it from outside, sorted by name."`
	Copies     []VolumeCopy `json:"copies,omitempty" doc:"Copies of volumes that are under way."`
	LedgerSize uint64       `json:"ledger_size" doc:"Size of the ledger that this answer is the fold of; events can be read from here."`
}

// Component is a component of an environment.
type Component struct {
	Name     string    `json:"name" example:"web" doc:"Name of the component."`
	Versions []Version `json:"versions" doc:"Versions that are wanted or still have instances, the head's first."`
}

// Version is one version of a component in an environment.
type Version struct {
	Digest   digest.Digest `json:"digest" doc:"Digest of the component: its identity."`
	Image    digest.Digest `json:"image,omitempty" doc:"Digest of its OCI image."`
	Head     bool          `json:"head" doc:"Whether the head asks for this version."`
	Percent  int           `json:"percent" doc:"Its share of the component's traffic." minimum:"0" maximum:"100"`
	Wanted   int           `json:"wanted" doc:"Instances that the head asks for."`
	Healthy  int           `json:"healthy" doc:"Instances that pass their checks."`
	Total    int           `json:"total" doc:"Instances that are not gone."`
	Failures int           `json:"failures,omitempty" doc:"Failures of its instances since the head moved. Each is answered by a replacement."`
	Trouble  string        `json:"trouble,omitempty" doc:"Why the last of them failed."`
}

// Instance is one running copy of a component: what the ledger says and what the host sees of it.
type Instance struct {
	ID         string        `json:"id" example:"web-k3jq7x2mzd" doc:"Name of the instance, once and for all time."`
	Env        string        `json:"env" doc:"Environment."`
	Component  string        `json:"component" doc:"Component."`
	Digest     digest.Digest `json:"digest" doc:"Digest of the component."`
	Release    digest.Digest `json:"release" doc:"Digest of the release that it was created for."`
	Generation int           `json:"generation" doc:"Generation that it was created for."`
	Head       bool          `json:"head" doc:"Whether it is of the version that the head asks for."`
	Phase      string        `json:"phase" enum:"created,started,retiring,gone" doc:"What the ledger says of it."`
	State      string        `json:"state" enum:"absent,created,running,exited" doc:"What the host sees of its process."`
	Health     string        `json:"health" enum:"unknown,passing,failing" doc:"Result of its checks."`
	Detail     string        `json:"detail,omitempty" doc:"Why it is not passing, or why it exited."`
	PID        int           `json:"pid,omitempty" doc:"Process on the host, while it runs."`
	Restarts   int           `json:"restarts" doc:"How often an instance of its version was replaced after a failure since the head moved. An instance itself is never started twice."`
	CreatedAt  *time.Time    `json:"created_at,omitempty" doc:"When the ledger recorded it."`
	StartedAt  *time.Time    `json:"started_at,omitempty" doc:"When its process was let go."`
	AgeSeconds int64         `json:"age_seconds" doc:"Seconds since it was created."`
	Exit       *Exit         `json:"exit,omitempty" doc:"How it ended, once it has."`
	Tainted    *Taint        `json:"tainted,omitempty" doc:"That somebody was in it, so that it may differ from its release. It is replaced, and stays tainted until it is gone."`
}

// Taint says that an instance may differ from its release.
type Taint struct {
	Since time.Time  `json:"since" doc:"When it was tainted first."`
	Cause string     `json:"cause" doc:"By what, for people."`
	By    string     `json:"by" example:"session:k3jq7x2mzdaa" doc:"Sessions, or a foreign process: one that joined it from outside."`
	Until *time.Time `json:"until,omitempty" doc:"When it is replaced at the latest; absent: as soon as a replacement is healthy."`
}

// Exit is how an instance ended.
type Exit struct {
	Code int        `json:"code" doc:"Exit code; 128+n: killed by signal n; -1: not known."`
	OOM  bool       `json:"oom" doc:"Killed for want of memory."`
	At   *time.Time `json:"at,omitempty" doc:"When it ended."`
}

// Route brings traffic from outside to a component.
type Route struct {
	Name      string `json:"name" doc:"Name of the route."`
	URL       string `json:"url" example:"http://shop.localhost:8080/" doc:"Where it can be reached."`
	Host      string `json:"host,omitempty" doc:"Host that it takes."`
	Path      string `json:"path,omitempty" doc:"Path prefix that it takes."`
	TLS       string `json:"tls,omitempty" enum:"internal,acme" doc:"Authority of its certificate; absent: plain HTTP."`
	TCP       string `json:"tcp,omitempty" doc:"Listen address of a TCP route."`
	Component string `json:"component" doc:"Component that it leads to."`
	Port      string `json:"port" doc:"Port of the component."`
	Healthy   bool   `json:"healthy" doc:"Whether an instance is there to answer."`
	Trouble   string `json:"trouble,omitempty" example:"listen tcp 127.0.0.1:5432: bind: address already in use" doc:"Why the gateway can't serve it."`
}

// History is the heads that an environment had.
type History struct {
	Generations []Generation `json:"generations" doc:"Newest first."`
}

// Generation is one head that an environment had.
type Generation struct {
	Number  int           `json:"number" doc:"The generation."`
	Kind    string        `json:"kind" example:"apply" doc:"How the head moved: apply, rollback, revert, destroy or fork."`
	App     string        `json:"app,omitempty" doc:"App of the release."`
	Release digest.Digest `json:"release,omitempty" doc:"Digest of the release; absent: destroyed."`
	Bundle  digest.Digest `json:"bundle,omitempty" doc:"Digest of the release's bundle."`
	By      string        `json:"by" doc:"Who moved the head."`
	Reason  string        `json:"reason,omitempty" doc:"The reason that was given."`
	Outcome string        `json:"outcome" enum:"rolling,completed,failed,superseded" doc:"What became of its rollout."`
	Cause   string        `json:"cause,omitempty" doc:"Why it failed."`
	At      time.Time     `json:"at" doc:"When the head moved."`
	EndedAt *time.Time    `json:"ended_at,omitempty" doc:"When its rollout ended."`
	Entry   uint64        `json:"entry" doc:"Index of the ledger entry that moved the head."`
	Change  string        `json:"change" doc:"ID of that entry."`
	Plan    digest.Digest `json:"plan,omitempty" doc:"Digest of the plan, of an apply."`
	Of      int           `json:"of,omitempty" doc:"Number of the change that it carried out; absent: it needed no approval."`

	Emergency bool          `json:"emergency,omitempty" doc:"Made without the approvals that it needed; to be reviewed by somebody else."`
	Promoted  *PromotedFrom `json:"promoted,omitempty" doc:"The head that the bundle was promoted from, where it had run healthy for that time when this head moved."`
}

// PlanRequest asks what applying a release would do.
type PlanRequest struct {
	Bundle  digest.Digest `json:"bundle" pattern:"^sha256:[0-9a-f]{64}$" doc:"Digest of the bundle, already in the server's registry."`
	Release digest.Digest `json:"release,omitempty" pattern:"^sha256:[0-9a-f]{64}$" doc:"Digest of the release that the client evaluated from it; absent: whatever the server gets."`
}

// Plan is what applying a release would do. Its digest is what an apply, and later an approval, is bound to.
type Plan struct {
	Digest         digest.Digest `json:"digest" doc:"Digest of the plan."`
	Env            string        `json:"env" doc:"Environment that it is for."`
	App            string        `json:"app" doc:"App of the release."`
	Bundle         digest.Digest `json:"bundle" doc:"Digest of the bundle."`
	Release        digest.Digest `json:"release" doc:"Digest of the release that would be the head."`
	BaseGeneration int           `json:"base_generation" doc:"Generation that it was made against; 0: a new environment."`
	BaseRelease    digest.Digest `json:"base_release,omitempty" doc:"Release that it was made against; absent: none."`
	Changes        []Change      `json:"changes" doc:"What would change, in the order in which to read it. Empty: nothing to do."`
	Adds           int           `json:"adds" doc:"Things that start (+)."`
	Replaces       int           `json:"replaces" doc:"Things that are replaced (+/-)."`
	Removes        int           `json:"removes" doc:"Things that are retired (-)."`
	Unchanged      int           `json:"unchanged" doc:"Components that stay as they are."`
	Volumes        []PlanVolume  `json:"volumes,omitempty" doc:"Of a rollback with data: what happens to each volume's data."`
	Steps          []int         `json:"steps" doc:"Percent of traffic, step by step, for what starts beside; the last is 100."`
	Governed       bool          `json:"governed,omitempty" doc:"Whether applying it proposes a change that waits for approvals."`
	Decisions      []Decision    `json:"decisions,omitempty" doc:"What the policies say of it now."`
}

// PlanVolume is what a rollback does to the data of a volume.
type PlanVolume struct {
	Component  string     `json:"component" example:"db" doc:"Component."`
	Volume     string     `json:"volume" example:"data" doc:"Volume."`
	Stays      bool       `json:"stays,omitempty" doc:"Whether its data stay: no other version of the component has had it since."`
	Version    int        `json:"version,omitempty" doc:"Version that it gets a copy of."`
	Snapshot   int        `json:"snapshot,omitempty" doc:"Snapshot that it gets a copy of."`
	Generation int        `json:"generation,omitempty" doc:"Generation that was the last to leave it so."`
	At         *time.Time `json:"at,omitempty" doc:"Since when it is so. What was written later is not seen any more."`
	Bytes      int64      `json:"bytes,omitempty" doc:"Bytes of its files; absent: not measured."`
	Keeps      int        `json:"keeps,omitempty" doc:"Version that keeps what there is now; absent: there is nothing."`
}

// Actions of a Change.
const (
	ActionAdd     = "+"
	ActionRemove  = "-"
	ActionReplace = "+/-"
)

// Change is one line of a plan, with its causes.
type Change struct {
	Action string        `json:"action" enum:"+,-,+/-" doc:"Start, retire, or start beside and then retire. Nothing is modified in place."`
	Kind   string        `json:"kind" example:"component" doc:"What changes: component, route or rollout; of the platform's definition the kind of block, as principal or grant."`
	Name   string        `json:"name" example:"web" doc:"Name of what changes."`
	Before digest.Digest `json:"before,omitempty" doc:"Digest of the component before."`
	After  digest.Digest `json:"after,omitempty" doc:"Digest of the component after."`
	Starts int           `json:"starts" doc:"Instances that start."`
	Stops  int           `json:"stops" doc:"Instances that retire."`
	How    string        `json:"how,omitempty" doc:"How it is replaced: beside, or stop then start." example:"start beside, then retire"`
	Volume string        `json:"volume,omitempty" doc:"The volume because of which it is stopped before its replacement starts."`
	Causes []Difference  `json:"causes" doc:"Why, down to the field."`
}

// Difference is one field that differs between two releases.
type Difference struct {
	Component string   `json:"component,omitempty" doc:"Component that it belongs to."`
	Path      string   `json:"path" example:"env LOG_LEVEL" doc:"Field."`
	Before    string   `json:"before,omitempty" doc:"Value before; absent: it was not there."`
	After     string   `json:"after,omitempty" doc:"Value after; absent: it is not there any more."`
	Added     bool     `json:"added,omitempty" doc:"The field was not there before."`
	Removed   bool     `json:"removed,omitempty" doc:"The field is not there any more."`
	Lines     []string `json:"lines,omitempty" doc:"For a configuration file: its lines that differ, each after '+', '-' or a space."`
}

// ApplyRequest asks to move the head of an environment to a release, by a plan that was looked at.
type ApplyRequest struct {
	Bundle         digest.Digest `json:"bundle" pattern:"^sha256:[0-9a-f]{64}$" doc:"Digest of the bundle."`
	Release        digest.Digest `json:"release" pattern:"^sha256:[0-9a-f]{64}$" doc:"Digest of the release."`
	BaseGeneration int           `json:"base_generation" minimum:"0" doc:"Generation that the plan was made against. Refused with 409 when the head has moved on."`
	PlanDigest     digest.Digest `json:"plan_digest" pattern:"^sha256:[0-9a-f]{64}$" doc:"Digest of the plan. Refused with 409 when the plan would be another now."`
	Reason         string        `json:"reason,omitempty" maxLength:"4096" doc:"Why; recorded in the ledger."`
	Promoted       *PromotedFrom `json:"promoted,omitempty" doc:"Of a promotion: where the bundle has to run healthy still when the head moves. Needs read there. Refused with 403 when it does not."`
	How
}

// PromotedFrom is the head that a bundle is promoted from.
type PromotedFrom struct {
	From         string `json:"from" maxLength:"63" pattern:"^[a-z]([a-z0-9-]*[a-z0-9])?$" doc:"Environment."`
	Generation   int    `json:"generation" minimum:"1" doc:"Its head."`
	HealthyForMS int64  `json:"healthy_for_ms,omitempty" minimum:"0" maximum:"31536000000" doc:"For how many milliseconds it has to have run healthy."`
}

// How says in what way a head is asked to move.
type How struct {
	ConfirmWithinMS int64 `json:"confirm_within_ms,omitempty" minimum:"0" maximum:"604800000" doc:"Revert the move unless it is confirmed within so many milliseconds after it was made."`
	Emergency       bool  `json:"emergency,omitempty" doc:"Move at once, without approvals, in a freeze or against a policy. Needs the permission breakglass, a rule for it and a reason, and is to be reviewed by somebody else."`
	OverrideFreeze  bool  `json:"override_freeze,omitempty" doc:"Move in spite of a freeze. Needs the permission freeze.override and a reason."`
}

// RollbackRequest asks to move the head back to the release of an earlier generation.
type RollbackRequest struct {
	To         int           `json:"to,omitempty" minimum:"0" doc:"Generation whose release becomes the head again; 0: the last one before the head that completed with another release."`
	WithData   bool          `json:"with_data,omitempty" doc:"Have the volumes get what that generation left in them, as new versions. What was written since is kept as the old version, and not seen any more."`
	PlanDigest digest.Digest `json:"plan_digest,omitempty" doc:"Digest of the plan that was looked at: nothing else is done. Required with with_data."`
	Reason     string        `json:"reason,omitempty" maxLength:"4096" doc:"Why; recorded in the ledger."`
	How
}

// RollbackPlanRequest asks what a rollback would do.
type RollbackPlanRequest struct {
	To       int  `json:"to,omitempty" minimum:"0" doc:"As in a rollback."`
	WithData bool `json:"with_data,omitempty" doc:"As in a rollback."`
}

// DestroyRequest asks to retire all that an environment runs.
type DestroyRequest struct {
	Reason  string `json:"reason,omitempty" maxLength:"4096" doc:"Why; recorded in the ledger."`
	Volumes bool   `json:"volumes,omitempty" doc:"Delete the environment's volumes as well, for good."`
	How
}

// Accepted says that a head has moved: it is in the ledger. The rollout follows; events tell how it goes.
type Accepted struct {
	Env        string        `json:"env" doc:"Environment."`
	Generation int           `json:"generation" doc:"The new generation."`
	Release    digest.Digest `json:"release,omitempty" doc:"Release that is the head now; absent: destroyed."`
	Entry      uint64        `json:"entry" doc:"Index of the ledger entry; events since here show the rollout."`
	Changed    bool          `json:"changed" doc:"False when the head did not move: it was this release already, or a change waits."`
	Change     int           `json:"change,omitempty" doc:"The change that waits for approvals, or that was carried out; absent: none was needed."`
	Waiting    bool          `json:"waiting,omitempty" doc:"The head did not move: the change waits for approvals."`
}

// Measured is what the instances of an environment were found to run on.
type Measured struct {
	OK         bool               `json:"ok" doc:"Whether every instance is as its release says."`
	Env        string             `json:"env" doc:"Environment."`
	Result     string             `json:"result" enum:"as-released,not-measured,differs" doc:"The worst of the instances'. not-measured: of some, or of all, nothing could be told."`
	Generation int                `json:"generation" doc:"The environment's head, all the time that it was measured."`
	Release    digest.Digest      `json:"release" doc:"Release of the head."`
	From       time.Time          `json:"from" doc:"When measuring began."`
	To         time.Time          `json:"to" doc:"When it ended."`
	Detail     string             `json:"detail,omitempty" doc:"Why nothing could be measured."`
	Instances  []MeasuredInstance `json:"instances" doc:"Every instance that runs or is to run, sorted by id."`
	Entry      uint64             `json:"entry" doc:"Index of the entry in the ledger."`
	Statement  digest.Digest      `json:"statement" doc:"Digest of the signed statement, the entry's body."`
	Envelope   string             `json:"envelope,omitempty" doc:"The signed statement: an in-toto statement in a DSSE envelope, as text."`
}

// MeasuredInstance is what one instance was found to run on.
type MeasuredInstance struct {
	ID        string        `json:"id" doc:"Instance."`
	Component string        `json:"component" doc:"Component."`
	Digest    digest.Digest `json:"digest,omitempty" doc:"Digest of the component; absent: the ledger does not know the instance."`
	State     string        `json:"state" enum:"running,waiting,missing,unknown" doc:"missing: the ledger says that it runs, and it does not. unknown: it runs, and the ledger does not know it."`
	OK        bool          `json:"ok" doc:"Whether it is as its release says."`
	Expected  digest.Digest `json:"expected" doc:"Digest of the root in the release."`
	Found     digest.Digest `json:"found,omitempty" doc:"Digest of the root that it runs on, read again from its first byte to its last."`
	Findings  []Finding     `json:"findings,omitempty" doc:"How it differs from its release otherwise, looked at from outside."`
	More      int           `json:"more,omitempty" doc:"Findings that are left out."`
	Detail    string        `json:"detail,omitempty" doc:"Why it could not be measured."`
}

// Finding is a measured difference between an instance and its release.
type Finding struct {
	Kind     string   `json:"kind" doc:"What was looked at: mount, port, limit …"`
	Field    string   `json:"field,omitempty" doc:"Which of it."`
	Expected string   `json:"expected,omitempty" doc:"What follows from the release; absent: nothing."`
	Found    string   `json:"found,omitempty" doc:"What was measured; absent: nothing."`
	Controls []string `json:"controls,omitempty" doc:"Controls of NIST SP 800-53 that it concerns."`
}

// Release is a release.
type Release struct {
	Digest     digest.Digest      `json:"digest" doc:"Digest of the release: of the canonical JSON (RFC 8785) of its record."`
	App        string             `json:"app" doc:"App."`
	Env        string             `json:"env" doc:"Environment that it was evaluated for."`
	Bundle     digest.Digest      `json:"bundle" doc:"Digest of the bundle that it was evaluated from."`
	Components []ReleaseComponent `json:"components" doc:"Its components, sorted by name."`
	Record     json.RawMessage    `json:"record" doc:"The whole record."`
	Heads      []Head             `json:"heads" doc:"Where it was or is the head, oldest first."`
}

// ReleaseComponent is a component of a release.
type ReleaseComponent struct {
	Name     string        `json:"name" doc:"Name."`
	Digest   digest.Digest `json:"digest" doc:"Digest of the component: its identity."`
	Image    digest.Digest `json:"image" doc:"Digest of its OCI image."`
	Root     digest.Digest `json:"root" doc:"Digest of the EROFS file that its instances run on."`
	Replicas int           `json:"replicas" doc:"Instances that it asks for."`
}

// Head is a place where a release was or is the head.
type Head struct {
	Env        string `json:"env" doc:"Environment."`
	Generation int    `json:"generation" doc:"Generation."`
	Current    bool   `json:"current" doc:"Whether it is the head now."`
}

// Diff is how two releases differ.
type Diff struct {
	A           digest.Digest `json:"a" doc:"Digest of the first release."`
	B           digest.Digest `json:"b" doc:"Digest of the second release."`
	Changes     []Change      `json:"changes" doc:"What would change from a to b."`
	Differences []Difference  `json:"differences" doc:"Every field that differs."`
}

// Names of the events of PathEvents.
const (
	EventEntry     = "entry"     // data: Entry; its id is the entry's index
	EventInstance  = "instance"  // data: Instance, as it is observed now
	EventHeartbeat = "heartbeat" // data: Heartbeat, at least every 15 seconds
)

// Heartbeat says that the stream lives.
type Heartbeat struct {
	Size uint64    `json:"size" doc:"Size of the ledger."`
	At   time.Time `json:"at" doc:"The server's time."`
}

// Event is one event of the stream. Exactly one field is set.
type Event struct {
	Entry     *Entry
	Instance  *Instance
	Heartbeat *Heartbeat
}

// Entries is a part of the ledger.
type Entries struct {
	Size    uint64  `json:"size" doc:"Size of the ledger."`
	Entries []Entry `json:"entries" doc:"In the ledger's order."`
	Next    uint64  `json:"next" doc:"Index to go on from; equal to size at the end."`
}

// Entry is a ledger entry.
type Entry struct {
	Index    uint64          `json:"index" doc:"Place in the ledger, from 0."`
	ID       string          `json:"id,omitempty" doc:"Name of the entry."`
	Kind     string          `json:"kind" example:"instance.create" doc:"What happened."`
	Time     time.Time       `json:"time" doc:"When, by the server's clock."`
	Actor    string          `json:"actor" example:"local:alice" doc:"Who did it."`
	Who      string          `json:"principal,omitempty" example:"alice" doc:"Who that is in the platform's definition."`
	Auth     string          `json:"auth,omitempty" example:"token abc" doc:"Facts of the authentication: NAME=VALUE, separated by spaces."`
	Env      string          `json:"env,omitempty" doc:"Environment that it belongs to."`
	Subjects []Subject       `json:"subjects,omitempty" doc:"What it is about."`
	Reason   string          `json:"reason,omitempty" doc:"Why."`
	Outcome  string          `json:"outcome,omitempty" doc:"How it ended."`
	Body     *Body           `json:"body,omitempty" doc:"What it refers to by digest."`
	Data     json.RawMessage `json:"data,omitempty" doc:"What is particular to its kind."`
	Leaf     []byte          `json:"leaf,omitempty" doc:"The exact bytes of the entry, base64. Only where a single entry is asked for."`
}

// Subject is what an entry is about.
type Subject struct {
	Name   string        `json:"name" doc:"Its name."`
	Digest digest.Digest `json:"digest,omitempty" doc:"Its digest."`
}

// Body is content that an entry refers to.
type Body struct {
	Digest    digest.Digest `json:"digest" doc:"Digest of the content."`
	SizeBytes int64         `json:"size_bytes" doc:"Size of the content."`
	Type      string        `json:"type,omitempty" doc:"Media type of the content."`
	Erased    string        `json:"erased,omitempty" doc:"By which entry, when and by whom it was erased; absent: it was not."`
}

// Proof shows that an entry is in the ledger that a checkpoint signs (RFC 6962, section 2.1.1).
type Proof struct {
	Entry      Entry    `json:"entry" doc:"The entry, with its exact bytes."`
	LeafHash   []byte   `json:"leaf_hash" doc:"Hash of the leaf: SHA-256 of a zero byte and the entry's bytes."`
	TreeSize   uint64   `json:"tree_size" doc:"Size of the tree that it is proven in."`
	RootHash   []byte   `json:"root_hash" doc:"Root hash of that tree."`
	Hashes     [][]byte `json:"hashes" doc:"The audit path, from the leaf up."`
	Checkpoint string   `json:"checkpoint" doc:"The signed checkpoint of that tree (https://c2sp.org/tlog-checkpoint)."`
	TLogProof  string   `json:"tlog_proof" doc:"The same as one text that can be kept and checked offline (https://c2sp.org/tlog-proof)."`
}

// Checkpoint is the ledger's signed tree head.
type Checkpoint struct {
	Origin   string `json:"origin" doc:"Name of the log."`
	Size     uint64 `json:"size" doc:"Number of entries."`
	RootHash []byte `json:"root_hash" doc:"Root hash."`
	Note     string `json:"note" doc:"The signed note, exactly (https://c2sp.org/tlog-checkpoint)."`
	VKey     string `json:"vkey" doc:"Verifier key of the note."`
}

// Witnesses is how the ledger stands with those who watch it from elsewhere (https://c2sp.org/tlog-witness).
type Witnesses struct {
	Policy     string         `json:"policy" doc:"Which witnesses there are and what makes a quorum (https://c2sp.org/tlog-policy)."`
	Size       uint64         `json:"size" doc:"Number of entries."`
	QuorumSize uint64         `json:"quorum_size" doc:"Entries up to which a quorum has cosigned; 0 when none has."`
	Cosigned   string         `json:"cosigned,omitempty" doc:"The newest checkpoint with a quorum, with its cosignatures (https://c2sp.org/tlog-cosignature)."`
	Witnesses  []Witness      `json:"witnesses" doc:"Each witness."`
	Alarms     []WitnessAlarm `json:"alarms" doc:"What is wrong with the ledger itself, by what was cosigned of it."`
	Raised     int            `json:"raised" doc:"Alarms since the server started, those of the witnesses included."`
}

// Witness is how the ledger stands with one witness.
type Witness struct {
	Name   string         `json:"name" doc:"Its name in the policy."`
	VKey   string         `json:"vkey" doc:"Verifier key of its cosignatures."`
	URL    string         `json:"url,omitempty" doc:"Where it is asked; absent when it is not."`
	Size   uint64         `json:"size" doc:"Entries that it cosigned last; 0 when it never did."`
	Time   *time.Time     `json:"time,omitempty" doc:"When, by its clock."`
	Error  string         `json:"error,omitempty" doc:"Why it did not cosign when it was asked last."`
	Alarms []WitnessAlarm `json:"alarms" doc:"What it knows otherwise than the ledger does."`
}

// WitnessAlarm is an inconsistency between the ledger and what its witnesses have seen. It stays until the server restarts.
type WitnessAlarm struct {
	Kind  string    `json:"kind" enum:"ahead,forked,refused,set-back,cut-back,replaced,damaged" doc:"What is inconsistent."`
	Since time.Time `json:"since" doc:"When it was first seen."`
	Cause string    `json:"cause" doc:"The same, for people."`
}

// Verification is the result of checking the whole ledger.
type Verification struct {
	OK       bool     `json:"ok" doc:"Whether every check held."`
	Size     uint64   `json:"size" doc:"Entries that were checked."`
	RootHash []byte   `json:"root_hash,omitempty" doc:"Root hash that follows from the entries."`
	Origin   string   `json:"origin" doc:"Name of the log."`
	Millis   int64    `json:"ms" doc:"How long it took, milliseconds."`
	Problem  *BadSpot `json:"problem,omitempty" doc:"The first check that did not hold."`
}

// BadSpot is the first place, in the order of the log, where a ledger is not what was signed.
type BadSpot struct {
	Object string  `json:"object" enum:"entry,hash,checkpoint" doc:"What does not hold: an entry, a stored hash or a checkpoint."`
	Index  *uint64 `json:"index,omitempty" doc:"The bad entry; or where it can't be told which, the first that it may be. Absent when it is no entry."`
	Last   *uint64 `json:"last,omitempty" doc:"The last entry that it may be, where it can't be told which."`
	Cause  string  `json:"cause" doc:"What does not hold, for people."`
}

// TokenRequest asks for a token.
type TokenRequest struct {
	Name string `json:"name" minLength:"1" maxLength:"63" pattern:"^[a-z]([a-z0-9-]*[a-z0-9])?$" doc:"Whom it is for; its holder acts as token:NAME."`

	Permissions  []string `json:"permissions,omitempty" maxItems:"64" doc:"All that it is good for; absent: whatever its maker may." example:"[\"plan\", \"apply\"]"`
	Environments []string `json:"environments,omitempty" maxItems:"64" doc:"Patterns of the environments that it is good for; absent: wherever its maker may." example:"[\"staging\"]"`
	LifetimeMS   int64    `json:"lifetime_ms,omitempty" minimum:"0" doc:"Milliseconds until it ends; absent: it does not."`
}

// NewToken is a token that was just made: the only time that its secret is told.
type NewToken struct {
	Token
	Secret string `json:"secret" doc:"What to send as 'Authorization: Bearer SECRET'. It is told once; the server keeps only its digest."`
}

// Tokens are the tokens that are valid.
type Tokens struct {
	Tokens []Token `json:"tokens" doc:"Sorted by name."`
}

// Token lets its holder use the API over TCP.
type Token struct {
	ID        string    `json:"id" doc:"Name of the token for DELETE; not a secret."`
	Name      string    `json:"name" doc:"Whom it is for."`
	By        string    `json:"by" doc:"Who made it."`
	Principal string    `json:"principal,omitempty" doc:"Whom its holder acts for."`
	CreatedAt time.Time `json:"created_at" doc:"When it was made."`

	Permissions  []string   `json:"permissions,omitempty" doc:"All that it is good for; absent: whatever its principal may."`
	Environments []string   `json:"environments,omitempty" doc:"Where; absent: wherever its principal may."`
	ExpiresAt    *time.Time `json:"expires_at,omitempty" doc:"When it ends; absent: it does not."`
	Session      bool       `json:"session,omitempty" doc:"It comes of a login."`
}

// MaxSecretBytes bounds the value of a secret.
const MaxSecretBytes = 64 << 10

// SecretRequest asks for a new version of a secret. It is the only message that a value is in, and there is none that a value comes
// back in.
type SecretRequest struct {
	Value  []byte `json:"value" doc:"The value: 1 to 65,536 bytes, in base64. It is never told again."`
	Reason string `json:"reason,omitempty" maxLength:"4096" doc:"Why; recorded in the ledger."`
}

// Secrets are the secrets of an environment.
type Secrets struct {
	Secrets []Secret `json:"secrets" doc:"Sorted by name."`
}

// Secret is a secret of an environment; never its value.
type Secret struct {
	Env      string        `json:"env" doc:"Environment."`
	Name     string        `json:"name" example:"db-password" doc:"Name of the secret."`
	Version  digest.Digest `json:"version" doc:"Newest version: the digest of its ciphertext. What is planned now pins it."`
	Versions int           `json:"versions" doc:"How many versions there are."`
	By       string        `json:"by" example:"local:alice" doc:"Who made the newest version."`
	Reason   string        `json:"reason,omitempty" doc:"The reason that was given."`
	At       time.Time     `json:"at" doc:"When it was made."`
	UsedBy   []string      `json:"used_by" doc:"Components of the head that get the secret, sorted."`
	Head     digest.Digest `json:"head,omitempty" doc:"Version that the head pins; absent when no component of it gets the secret."`
}

// SecretHistory are all versions of a secret.
type SecretHistory struct {
	Versions []SecretVersion `json:"versions" doc:"Newest first."`
}

// SecretVersion is a version of a secret; never its value.
type SecretVersion struct {
	Env     string        `json:"env" doc:"Environment."`
	Name    string        `json:"name" doc:"Name of the secret."`
	Version digest.Digest `json:"version" doc:"Name of the version: the digest of its ciphertext."`
	By      string        `json:"by" doc:"Who made it."`
	Reason  string        `json:"reason,omitempty" doc:"The reason that was given."`
	At      time.Time     `json:"at" doc:"When it was made."`
	Entry   uint64        `json:"entry" doc:"Ledger entry that says so."`
	Head    bool          `json:"head" doc:"Whether the head pins it."`
}

// Health is the answer of PathHealth.
type Health struct {
	Status  string `json:"status" enum:"ok,unavailable" doc:"Whether the server can do its work."`
	Version string `json:"version" doc:"Version of the program."`
	Detail  string `json:"detail,omitempty" doc:"What is wrong."`
}

// Drifts is the answer of the list of what differed.
type Drifts struct {
	Drifts []Drift `json:"drifts" doc:"Oldest first."`
}

// Drift is a time in which something that runs differed from what was released: from the first finding until that is resolved.
type Drift struct {
	Env       string         `json:"env,omitempty" example:"staging" doc:"Environment; absent: it was on the machine, beside the instances."`
	Instance  string         `json:"instance,omitempty" example:"web-a2b3c4d5e6" doc:"Instance that differed."`
	Component string         `json:"component,omitempty" example:"web" doc:"Its component."`
	At        time.Time      `json:"at" doc:"When the first finding was recorded."`
	Findings  []string       `json:"findings" example:"[\"file /etc/hosts\"]" doc:"Kind and field of each finding."`
	Causes    []string       `json:"causes" doc:"What differs, a sentence for each entry."`
	Response  string         `json:"response" example:"replace" doc:"What follows by the rule."`
	Entries   []uint64       `json:"entries" doc:"Indexes of the ledger entries with the findings, and all that was measured of them."`
	Frozen    uint64         `json:"frozen,omitempty" doc:"Index of the entry with the evidence that was kept of it."`
	Evidence  digest.Digest  `json:"evidence,omitempty" doc:"Digest of that evidence."`
	Resolved  *DriftResolved `json:"resolved,omitempty" doc:"How it was resolved; absent: it is open."`
}

// DriftResolved says how something that differed does no more.
type DriftResolved struct {
	At         time.Time `json:"at" doc:"When that was recorded."`
	How        string    `json:"how" example:"replaced" doc:"replaced: it is gone, and others took over; removed: it is gone; ceased: it was found as released again. On the machine: what was done."`
	Successors []string  `json:"successors,omitempty" doc:"Instances of the component that were created since."`
	Entry      uint64    `json:"entry" doc:"Index of the ledger entry."`
}
