package deploy

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

// Environment is what the ledger says of an environment: the fold of its heads and steps. It is a value: SetHead, Apply
// and Resolve return a new one and change nothing. The zero value with a Name has never had a head.
//
// Its JSON is for snapshots. It has every release by digest only: a decoded Environment is complete after Resolve.
type Environment struct {
	Name     spec.EnvName `json:"name"`
	Seq      uint64       `json:"seq"` // how many heads and steps this is the fold of
	Head     Generation   `json:"head"`
	Previous Generation   `json:"previous"`          // the last completed before Head, target of auto_revert; Number 0: none
	History  []Generation `json:"history,omitempty"` // all before Head, oldest first, without Record

	Changing   []spec.ComponentName             `json:"changing,omitempty"` // what Head's rollout has to bring about, sorted
	ProgressAt time.Time                        `json:"progress_at,omitzero"`
	Traffic    map[spec.ComponentName][]Share   `json:"traffic,omitempty"`
	ShiftedAt  map[spec.ComponentName]time.Time `json:"shifted_at,omitempty"`
	Instances  map[instance.ID]Instance         `json:"instances,omitempty"` // that are not gone
	Trouble    map[digest.Digest]Trouble        `json:"trouble,omitempty"`   // since Head came, by component digest
	Drifts     map[digest.Digest]Recurrence     `json:"drifts,omitempty"`    // the same, of instances that differed from their release
	Data       map[VolumeID]Volume              `json:"data,omitempty"`

	Overlay *release.Overlay `json:"overlay,omitempty"` // of a fork: over every release that it has; nil: it has releases of its own

	// Components has every version that Head, Previous or an instance refers to.
	Components map[digest.Digest]release.Component `json:"-"`
}

// Instance is what the ledger says of an instance.
type Instance struct {
	instance.Identity
	CreatedAt   time.Time       `json:"created_at"`
	Health      instance.Health `json:"health,omitempty"`       // as last recorded
	HealthAt    time.Time       `json:"health_at,omitzero"`     // since when
	EverHealthy bool            `json:"ever_healthy,omitempty"` // it has passed once
	LeftTraffic time.Time       `json:"left_traffic,omitzero"`  // when its version lost its share; zero: it did not, or has one again
	RetiringAt  time.Time       `json:"retiring_at,omitzero"`   // zero: not retiring
	ExitedAt    time.Time       `json:"exited_at,omitzero"`     // zero: no exit was recorded
	Cause       string          `json:"cause,omitempty"`        // of what it last became
	Taints      []Taint         `json:"taints,omitempty"`       // none: nobody was in it
	Drift       []string        `json:"drift,omitempty"`        // keys of the findings that were recorded and are not resolved
	DriftAt     time.Time       `json:"drift_at,omitzero"`      // when the first of them was; zero: it does not differ
	Response    spec.Response   `json:"response,omitempty"`     // what follows on them
	FreezeAt    time.Time       `json:"freeze_at,omitzero"`     // when it was to be frozen; zero: it is not
	FrozenAt    time.Time       `json:"frozen_at,omitzero"`     // when its evidence was recorded, or that there is none
	Ceased      Recurrence      `json:"ceased,omitzero"`        // how often it differed no more by itself
	Barred      bool            `json:"barred,omitempty"`       // it is tainted and had no traffic since: it gets none again

	Volumes map[spec.VolumeName]int `json:"volumes,omitempty"` // versions that it got; unset: 1
}

// Live reports whether the instance is to run: neither retiring nor exited.
func (i Instance) Live() bool { return i.RetiringAt.IsZero() && i.ExitedAt.IsZero() }

// Healthy reports whether the instance passes its checks. It may have traffic then, unless it is barred.
func (i Instance) Healthy() bool { return i.Live() && i.Health == instance.Passing }

// Trouble counts the failures of a version's instances.
type Trouble struct {
	Count int       `json:"count"`          // running
	Last  time.Time `json:"last"`           // when Count last grew
	Late  bool      `json:"late,omitempty"` // one was not healthy by its deadline
	Cause string    `json:"cause"`          // of the last
}

// RetryAt returns when the next instance may be created.
func (t Trouble) RetryAt() time.Time {
	if t.Count <= 1 {
		return t.Last
	}
	return t.Last.Add(min(maxBackoff, time.Second<<min(t.Count-2, 10)))
}

// SetHead returns the environment with a new head: applied, rolled back to, or destroyed (a Generation without Release and
// Record). The generation's rollout begins at that time, and whatever rollout was under way is superseded.
func (e Environment) SetHead(g Generation, at time.Time) Environment {
	e = e.clone()
	e.setHead(g, at)
	return e
}

func (e *Environment) setHead(g Generation, at time.Time) {
	e.refresh(g.Number)
	g.Restores = slices.Concat(g.Restores, e.Head.owed(g.Restores))
	if e.Head.Number > 0 {
		e.retireHead(at)
	}
	g.At, g.Outcome, g.EndedAt, g.Cause = at, Rolling, time.Time{}, ""
	e.Head = g.resolved(e.over(g.Record))
	e.Seq++
	e.ProgressAt = at
	e.Trouble = map[digest.Digest]Trouble{}
	e.Drifts = nil
	e.Changing = nil
	for _, p := range g.Record.Components {
		e.Components[e.Head.Digests[p.Component.Name]] = p.Component
		if e.changes(p) {
			e.Changing = append(e.Changing, p.Component.Name)
		}
	}
	slices.Sort(e.Changing)
	e.prune()
}

// Revoke returns the environment in which the release must not come back. Nothing else changes: what runs of it runs on, is
// healed, and has its traffic until a head without it has taken over.
func (e Environment) Revoke(release digest.Digest) Environment {
	e = e.clone()
	for _, g := range []*Generation{&e.Head, &e.Previous} {
		g.Revoked = g.Revoked || g.Release == release
	}
	e.Seq++
	return e
}

// retireHead moves the head into the history.
func (e *Environment) retireHead(at time.Time) {
	old := e.Head
	switch {
	case old.Outcome == Completed && old.Release != "":
		e.Previous = old
	case old.Outcome == Rolling:
		old.Outcome, old.EndedAt = Superseded, at
	}
	old.Record, old.Digests, old.Restores = release.Record{}, nil, nil
	e.History = append(slices.Clip(e.History), old)
}

// changes reports whether the new head's rollout has anything to do for the component.
func (e *Environment) changes(p release.Placed) bool {
	v := e.Head.Digests[p.Component.Name]
	if share(e.Traffic[p.Component.Name], v) != 100 || len(e.unswitched(p.Component.Name)) > 0 {
		return true
	}
	n := 0
	for _, i := range e.Instances {
		if i.Digest == v && i.Component == p.Component.Name && i.Live() {
			n++
		}
	}
	return n < p.Replicas
}

// prune forgets the versions that nothing refers to any more. So Components always follows from the rest.
func (e *Environment) prune() {
	used := map[digest.Digest]bool{}
	for _, i := range e.Instances {
		used[i.Digest] = true
	}
	maps.DeleteFunc(e.Components, func(d digest.Digest, c release.Component) bool {
		return !used[d] && e.Head.Digests[c.Name] != d && e.Previous.Digests[c.Name] != d
	})
}

// resolved returns the generation with its record and the digests of the record's components.
func (g Generation) resolved(r release.Record) Generation {
	g.Record = r
	g.Digests = make(map[spec.ComponentName]digest.Digest, len(r.Components))
	for _, p := range r.Components {
		d, err := p.Component.Digest()
		if err != nil { // the record has a digest, so its parts have
			panic(fmt.Sprintf("deploy: component %s of release %s: %v", p.Component.Name, g.Release, err))
		}
		g.Digests[p.Component.Name] = d
	}
	return g
}

// Resolve returns a decoded environment with the releases that its JSON only names.
func (e Environment) Resolve(lookup func(digest.Digest) (release.Record, error)) (Environment, error) {
	e = e.clone()
	known := map[digest.Digest]bool{"": true}
	learn := func(d digest.Digest) (release.Record, error) {
		r, err := lookup(d)
		if err != nil {
			return r, fmt.Errorf("resolving release %s of environment %s: %w", d, e.Name, err)
		}
		known[d] = true
		for name, v := range (Generation{}).resolved(r).Digests {
			e.Components[v] = placed(r, name).Component
		}
		return r, nil
	}
	for _, g := range []*Generation{&e.Head, &e.Previous} {
		if g.Release == "" {
			*g = g.resolved(release.Record{})
			continue
		}
		r, err := learn(g.Release)
		if err != nil {
			return e, err
		}
		*g = g.resolved(e.over(r))
	}
	for _, id := range slices.Sorted(maps.Keys(e.Instances)) {
		i := e.Instances[id]
		if _, ok := e.Components[i.Digest]; ok || known[i.Release] {
			continue
		}
		if _, err := learn(i.Release); err != nil {
			return e, err
		}
	}
	e.prune()
	return e, nil
}

// over returns the release as this environment has it.
func (e *Environment) over(r release.Record) release.Record {
	if e.Overlay == nil {
		return r
	}
	return e.Overlay.Over(r)
}

// Made returns what an instance of the component is made from here: a fork has secrets of its own.
func (e Environment) Made(c release.Component) release.Component {
	if e.Overlay == nil {
		return c
	}
	return e.Overlay.Component(c)
}

// clone copies what the methods change. Slices inside are only ever replaced.
func (e Environment) clone() Environment {
	e.Traffic = copied(e.Traffic)
	e.ShiftedAt = copied(e.ShiftedAt)
	e.Instances = copied(e.Instances)
	e.Trouble = copied(e.Trouble)
	e.Components = copied(e.Components)
	e.Data = copied(e.Data)
	return e
}

func copied[K comparable, V any](m map[K]V) map[K]V {
	if m == nil {
		return map[K]V{}
	}
	return maps.Clone(m)
}

// placed returns the component of that name, the zero value when there is none.
func placed(r release.Record, name spec.ComponentName) release.Placed {
	for _, p := range r.Components {
		if p.Component.Name == name {
			return p
		}
	}
	return release.Placed{}
}

// share returns the version's percentage.
func share(shares []Share, v digest.Digest) int {
	for _, s := range shares {
		if s.Version == v {
			return s.Percent
		}
	}
	return 0
}

// Serving reports whether the instance has traffic: it is healthy and not barred, and its version has a share.
func (e Environment) Serving(i Instance) bool {
	return i.Healthy() && !i.Barred && share(e.Traffic[i.Component], i.Digest) > 0
}

// rollout returns the settings in force. A destroyed environment goes by those that it had.
func (e *Environment) rollout() release.Rollout {
	if e.Head.Release == "" {
		return e.Previous.Record.Rollout
	}
	return e.Head.Record.Rollout
}

func millis(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
