// Package change has the plan of a change: what would happen if an environment's head moved from one release
// to another. It is a value that people look at, that an apply is bound to, and that can be saved in a file.
//
// # Actions
//
// Nothing is modified in place, so there are three actions: "+" starts something, "-" retires it, and "+/-"
// starts the new beside the old and then retires the old (or stops the old first, where both would need one
// volume). Each has its causes: the fields that differ.
//
// # Format
//
// A saved plan is the canonical JSON (RFC 8785) of a Plan and a line feed, at most MaxFileBytes. It has exactly one
// spelling; Decode refuses any other. The plan's digest is that of the canonical JSON without the line feed. It holds no clock and
// no randomness: equal releases and an equal base give equal plans on any machine.
package change

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

// TypePlan is the media type of a plan's canonical JSON, which the entry of its apply has as body.
const TypePlan = "application/vnd.invar.plan.v1+json"

// MaxFileBytes is the largest saved plan.
const MaxFileBytes = 64 << 20

// Plan is what a change would do. Its items say all; nothing is left out but what stays as it is.
type Plan struct {
	V         int             `json:"v"` // 1
	App       spec.AppName    `json:"app"`
	Env       spec.EnvName    `json:"env"`
	Base      Base            `json:"base"`
	Bundle    digest.Digest   `json:"bundle"`
	Release   digest.Digest   `json:"release"`
	Items     []Item          `json:"items,omitempty"`    // components, in order of name
	Routes    []RouteItem     `json:"routes,omitempty"`   // in order of name
	Rollout   []release.Cause `json:"rollout,omitempty"`  // in how, not in what; "outcome" when a failed rollout is tried again
	Platform  []PlatformItem  `json:"platform,omitempty"` // blocks of the platform's definition, by kind and name
	Unchanged int             `json:"unchanged"`          // components that stay as they are

	Volumes []VolumeItem `json:"volumes,omitempty"` // of a rollback with data: every volume of the release, by component and name

	Steps []int `json:"steps"` // percent of traffic, step by step, for what starts beside; the last is 100
}

// Base is what a plan was made against.
type Base struct {
	Generation int           `json:"generation"`        // 0: the environment never had a head
	Release    digest.Digest `json:"release,omitempty"` // "": nothing runs
}

// Action says what happens to a thing.
type Action string

// The actions.
const (
	Add     Action = "+"
	Remove  Action = "-"
	Replace Action = "+/-"
)

// How says in which order instances are replaced.
type How string

// The ways.
const (
	Beside        How = "start beside, then retire"
	StopThenStart How = "stop, then start" // the component has a volume, which only one may use at a time
)

// Item is what happens to a component.
type Item struct {
	Action    Action             `json:"action"`
	Component spec.ComponentName `json:"component"`
	Before    digest.Digest      `json:"before,omitempty"` // of the component
	After     digest.Digest      `json:"after,omitempty"`
	Starts    int                `json:"starts"`           // instances
	Stops     int                `json:"stops"`            // instances
	How       How                `json:"how,omitempty"`    // of a replacement
	Volume    spec.VolumeName    `json:"volume,omitempty"` // why How is StopThenStart
	Causes    []release.Cause    `json:"causes,omitempty"`
}

// RouteItem is what happens to a route.
type RouteItem struct {
	Action Action          `json:"action"`
	Route  spec.RouteName  `json:"route"`
	Before string          `json:"before,omitempty"` // "shop.localhost/ -> web:http"
	After  string          `json:"after,omitempty"`
	Causes []release.Cause `json:"causes,omitempty"`
}

// VolumeItem is what happens to a volume's data. What it has now is kept in any case.
type VolumeItem struct {
	Component  spec.ComponentName `json:"component"`
	Volume     spec.VolumeName    `json:"volume"`
	Stays      bool               `json:"stays,omitempty"`      // nothing happens: no other version of the component has had it since
	Version    int                `json:"version,omitempty"`    // it gets a copy of this version
	Snapshot   int                `json:"snapshot,omitempty"`   // or of this snapshot
	Generation int                `json:"generation,omitempty"` // that was the last to leave it so
	At         time.Time          `json:"at,omitzero"`          // since when it is so: what was written later is not seen any more
	Bytes      int64              `json:"bytes,omitempty"`      // of files, where that was measured
	Keeps      int                `json:"keeps,omitempty"`      // the version that has what there is now
}

// PlatformItem is what happens to a block of the platform's definition.
type PlatformItem struct {
	Action Action          `json:"action"`
	Kind   string          `json:"kind"` // "principal", "grant", …
	Name   string          `json:"name"`
	Causes []release.Cause `json:"causes,omitempty"`
}

// Empty reports whether the plan does nothing.
func (p Plan) Empty() bool {
	return len(p.Items)+len(p.Routes)+len(p.Rollout)+len(p.Platform) == 0 && !p.Restores()
}

// Restores reports whether a volume gets other data.
func (p Plan) Restores() bool {
	return slices.ContainsFunc(p.Volumes, func(v VolumeItem) bool { return !v.Stays })
}

// Count returns how many items, routes and blocks of the platform are added, replaced and removed.
func (p Plan) Count() (adds, replaces, removes int) {
	n := map[Action]int{}
	for _, i := range p.Items {
		n[i.Action]++
	}
	for _, r := range p.Routes {
		n[r.Action]++
	}
	for _, i := range p.Platform {
		n[i.Action]++
	}
	return n[Add], n[Replace], n[Remove]
}

// Digest returns the plan's identity: what an apply is bound to.
func (p Plan) Digest() (digest.Digest, error) { return digest.OfValue(p) }

// Encode returns the content of a saved plan.
func Encode(p Plan) ([]byte, error) {
	b, err := digest.Canonical(p)
	if err != nil {
		return nil, fmt.Errorf("encoding the plan: %w", err)
	}
	return append(b, '\n'), nil
}

// Decode reads what Encode wrote, and nothing else. Its errors are of kind fault.Invalid.
func Decode(b []byte) (Plan, error) {
	p, err := decode(b)
	if err != nil {
		return Plan{}, fault.As(fault.Invalid, fmt.Errorf("reading a saved plan: %w", err))
	}
	return p, nil
}

func decode(b []byte) (Plan, error) {
	if len(b) > MaxFileBytes {
		return Plan{}, fmt.Errorf("%d bytes, %d are allowed", len(b), MaxFileBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	var version struct {
		V int `json:"v"`
	}
	if err := dec.Decode(&version); err != nil {
		return Plan{}, err
	}
	if version.V != 1 {
		return Plan{}, fault.WithHint(fmt.Errorf("version %d is not known", version.V), "make a new one: invar plan ENV --out FILE")
	}
	dec = json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var p Plan
	if err := dec.Decode(&p); err != nil {
		return Plan{}, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return Plan{}, errors.New("more than one JSON value")
	}
	again, err := Encode(p)
	if err != nil {
		return Plan{}, err
	}
	if !bytes.Equal(again, b) {
		return Plan{}, errors.New("not in canonical form")
	}
	return p, nil
}

// Stale says why a saved plan can't be applied any more: base is where the environment is now. It returns nil
// when the plan still holds, else an error of kind fault.Conflict.
func (p Plan) Stale(base Base) error {
	if p.Base == base {
		return nil
	}
	var err error
	if p.Base.Generation != base.Generation {
		err = fault.Errorf(fault.Conflict, "saved plan is stale: it was made against generation %d of environment %s, which is at %d now",
			p.Base.Generation, p.Env, base.Generation)
	} else {
		err = fault.Errorf(fault.Conflict, "saved plan is stale: it was made against release %s of environment %s, which runs %s now",
			p.Base.Release.Short(), p.Env, base.Release.Short())
	}
	return fault.WithHint(err, "look at a new one: invar plan %s", p.Env)
}

// StaleRelease says that a saved plan is not for the release that the sources evaluate to now, or nil when it is.
func (p Plan) StaleRelease(d digest.Digest) error {
	if p.Release == d {
		return nil
	}
	return fault.WithHint(fault.Errorf(fault.Conflict, "saved plan is stale: it is for release %s, the sources now give %s", p.Release.Short(), d.Short()),
		"look at a new one: invar plan %s", p.Env)
}

// Proposed is the release that a plan is to be made for.
type Proposed struct {
	Digest digest.Digest
	Record release.Record

	Volumes []VolumeItem // whose data go back as well
}

// Current is what the environment has at the time of the plan. Its Record is the zero value when Base.Release is "".
type Current struct {
	Base   Base
	Record release.Record
	Failed bool // its rollout has failed: the same release is worth another try
}
