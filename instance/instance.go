// Package instance has one immutable running copy of a component: its identity, its life, and what
// is observed of it. An instance is only ever created, started and retired; never changed.
//
//	created ──▶ started ──▶ retiring ──▶ gone        (what the ledger says: Phase)
//	absent, created, running, exited                 (what the host sees: State)
//	unknown, passing, failing                        (what its checks say: Health)
package instance

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/spec"
)

// ID names an instance, once and for all time: the component's name, a hyphen and ten random
// characters of a-z2-7. At most 63+11 characters.
type ID string

// Identity is what never changes about an instance, and how it traces back.
type Identity struct {
	ID         ID                 `json:"id"`
	Env        spec.EnvName       `json:"env"`
	Component  spec.ComponentName `json:"component"`
	Digest     digest.Digest      `json:"digest"`     // of the component
	Release    digest.Digest      `json:"release"`    // of the release that it was created for
	Generation int                `json:"generation"` // of the environment, when it was created
}

// State is what the host sees of an instance's process.
type State string

// The states.
const (
	Absent  State = ""        // the host has nothing of it
	Created State = "created" // everything is made, the process waits to be started
	Running State = "running"
	Exited  State = "exited"
)

// Health is the result of an instance's checks.
type Health string

// The results.
const (
	Unknown Health = ""        // no result yet
	Passing Health = "passing" // the last check passed
	Failing Health = "failing" // as many checks in a row as configured failed
)

// Observation is what a host sees of one instance at one time.
type Observation struct {
	Identity  Identity
	State     State
	Health    Health
	Since     time.Time // when Health became what it is
	Detail    string    // why Health is not Passing, or why it exited, for people
	PID       int       // on the host; 0 unless Running
	StartedAt time.Time // zero before the start
	ExitedAt  time.Time // zero before the exit
	ExitCode  int       // -1: not known; 128+n: killed by signal n
	OOM       bool      // killed for want of memory
	Foreign   []Foreign // processes found in it that are not its own; once seen, they stay until the instance is gone
	Drift     []Finding // how it differs from its release, as last measured
	Kept      Kept      // of a frozen one
	Clean     bool      // two looks, one after the other, found it as released; not told of one that never differed
}

// Kept is what was kept of an instance that was frozen: evidence, or the cause why there is none.
type Kept struct {
	Evidence digest.Digest
	Bytes    int64
	Cause    string
}

// Equal reports whether two observations tell the same.
func (o Observation) Equal(p Observation) bool {
	return o.Identity == p.Identity && o.State == p.State && o.Health == p.Health && o.Since == p.Since && o.Detail == p.Detail && o.PID == p.PID &&
		o.StartedAt == p.StartedAt && o.ExitedAt == p.ExitedAt && o.ExitCode == p.ExitCode && o.OOM == p.OOM &&
		slices.EqualFunc(o.Foreign, p.Foreign, func(a, b Foreign) bool { return a.PID == b.PID && a.TID == b.TID && a.StartedAt.Equal(b.StartedAt) }) &&
		sameFindings(o.Drift, p.Drift) && o.Clean == p.Clean && o.Kept == p.Kept
}

// Foreign is a process that was found in an instance and is not the instance's: it joined one of its namespaces, or it was put
// into its cgroup. All is as measured when it was found.
type Foreign struct {
	PID        int       `json:"pid"`           // on the host
	TID        int       `json:"tid,omitempty"` // of the thread, where only one joined; 0: the process
	StartedAt  time.Time `json:"started_at"`
	FoundAt    time.Time `json:"found_at"`
	Program    string    `json:"program,omitempty"` // its file, as /proc tells it
	Command    string    `json:"command,omitempty"` // its arguments, cut; or its name, when it was gone too soon to tell
	UID        int       `json:"uid"`               // on the host
	Parent     int       `json:"parent"`
	Namespaces []string  `json:"namespaces,omitempty"` // of the instance's, those that it is in: "net", "mnt" …
	Cgroup     bool      `json:"cgroup,omitempty"`     // it is in the instance's cgroup
	Asked      string    `json:"asked,omitempty"`      // the command that it had the launcher run in the instance, cut: then it need not be there itself
}

// String names the process and where it is, for people.
func (f Foreign) String() string {
	where := strings.Join(f.Namespaces, ", ")
	switch {
	case where == "":
		where = "its cgroup"
	default:
		where = "its namespaces " + where
	}
	what := f.Command
	if what == "" {
		what = f.Program
	}
	if f.Asked != "" {
		return fmt.Sprintf("process %d (%s, user %d), which had the launcher run %s there", f.PID, what, f.UID, f.Asked)
	}
	return fmt.Sprintf("process %d (%s, user %d) in %s", f.PID, what, f.UID, where)
}
