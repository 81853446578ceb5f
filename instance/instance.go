// Package instance has one immutable running copy of a component: its identity, its life, and what
// is observed of it. An instance is only ever created, started and retired; never changed.
//
//	created ──▶ started ──▶ retiring ──▶ gone        (what the ledger says: Phase)
//	absent, created, running, exited                 (what the host sees: State)
//	unknown, passing, failing                        (what its checks say: Health)
package instance

import (
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
}
