package deploy

import (
	"maps"
	"slices"
	"time"

	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

// Act is something to do on the host.
type Act struct {
	Instance instance.Identity
	End      bool // stop and remove it; else create it if need be, and start it
	Freeze   bool // instead: freeze it, and take its evidence
}

// Acts returns what recorded steps ask for and the host does not have yet, sorted by instance. It follows from the
// state alone, not from the steps that led there, so that an interrupted act is resumed by the same code.
//
// active has the connections under way by instance, as of a time when the traffic of every retiring instance had
// already ended; nil: not known, then a retiring instance has the whole drain time.
func Acts(e Environment, have []instance.Observation, active map[instance.ID]int64, now time.Time) []Act {
	var acts []Act
	seen := make(map[instance.ID]bool, len(have))
	for _, o := range have {
		id := o.Identity.ID
		seen[id] = true
		i, known := e.Instances[id]
		switch {
		case o.State == instance.Absent:
		case !known || !i.ExitedAt.IsZero() || !i.RetiringAt.IsZero() && i.drained(o, active, now, e.drain(i)):
			acts = append(acts, Act{Instance: o.Identity, End: true})
		case i.freezing() && o.State == instance.Running && o.Kept == instance.Kept{} && i.quiet(active, now, e.freezeDrain(i)):
			acts = append(acts, Act{Instance: i.Identity, Freeze: true})
		case i.Live() && o.State == instance.Created:
			acts = append(acts, Act{Instance: i.Identity})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(e.Instances)) {
		if i := e.Instances[id]; i.Live() && !i.EverHealthy && !seen[id] {
			acts = append(acts, Act{Instance: i.Identity})
		}
	}
	slices.SortFunc(acts, func(a, b Act) int { return compareID(a.Instance.ID, b.Instance.ID) })
	return acts
}

func compareID(a, b instance.ID) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// drained reports whether a retiring instance has nothing under way any more, or had its time.
func (i Instance) drained(o instance.Observation, active map[instance.ID]int64, now time.Time, drain time.Duration) bool {
	return o.State != instance.Running || !i.EverHealthy || !now.Before(i.RetiringAt.Add(drain)) || active != nil && active[i.ID] == 0
}

// quiet is drained for one that is to be frozen.
func (i Instance) quiet(active map[instance.ID]int64, now time.Time, drain time.Duration) bool {
	return !i.EverHealthy || !now.Before(i.FreezeAt.Add(drain)) || active != nil && active[i.ID] == 0
}

// freezeDrain is how long one that is to be frozen may go on with what is under way.
func (e Environment) freezeDrain(i Instance) time.Duration { return min(maxFreezeDrain, e.drain(i)) }

// drain is how long a retiring instance may go on with what is under way. One with a volume has no time: its successor can
// start only when it has stopped, so to wait makes the outage longer; its stop signal lets it finish. One that is frozen goes on with nothing.
func (e Environment) drain(i Instance) time.Duration {
	if !i.FrozenAt.IsZero() || len(e.Components[i.Digest].Volumes) > 0 {
		return 0
	}
	return millis(e.rollout().DrainMillis)
}

// Draining reports whether an instance waits for its connections to end.
func (e Environment) Draining() bool {
	for _, i := range e.Instances {
		if (!i.RetiringAt.IsZero() || i.freezing()) && i.EverHealthy {
			return true
		}
	}
	return false
}

// Traffic returns where the environment's connections go. networks has the path of the network of every instance that
// the host has. A route of the head is in force once its component's traffic is with the head's version; until then the
// last completed release's is.
func Traffic(e Environment, networks map[instance.ID]string) gateway.Env {
	out := gateway.Env{Name: e.Name, Routes: e.doors()}
	for _, name := range slices.Sorted(maps.Keys(e.Traffic)) {
		for _, s := range e.Traffic[name] {
			out.Versions = append(out.Versions, gateway.Version{
				Component: name, Digest: s.Version, Weight: s.Percent, Ports: ports(e.Components[s.Version]),
			})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(networks)) {
		i, ok := e.Instances[id]
		if !ok || networks[id] == "" {
			continue
		}
		c := e.Components[i.Digest]
		out.Instances = append(out.Instances, gateway.Instance{
			ID: id, Component: i.Component, Digest: i.Digest, Network: networks[id], Eligible: e.Serving(i), Uses: Uses(c), Egress: c.Egress,
		})
	}
	return out
}

// Uses returns what the component uses, as the gateway knows it.
func Uses(c release.Component) []gateway.Use {
	var uses []gateway.Use
	for _, u := range c.Uses {
		uses = append(uses, gateway.Use{Component: u.Component, Port: u.Port, Number: u.Number})
	}
	return uses
}

func ports(c release.Component) []gateway.Port {
	var list []gateway.Port
	for _, p := range c.Ports {
		list = append(list, gateway.Port{Name: p.Name, Number: p.Number})
	}
	return list
}

// place is what one route can have that another can't have as well.
type place struct{ host, path, tcp string }

// doors returns the routes in force.
func (e Environment) doors() []gateway.Door {
	var doors []gateway.Door
	taken := map[place]bool{}
	add := func(r release.Route) {
		at := place{r.Host, r.Path, r.TCP}
		if taken[at] {
			return
		}
		taken[at] = true
		doors = append(doors, gateway.Door{
			Name: r.Name, Host: r.Host, Path: r.Path, TLS: r.TLS, TCP: r.TCP, To: spec.PortRef{Component: r.Component, Port: r.Port},
		})
	}
	for _, r := range e.Head.Record.Routes {
		if share(e.Traffic[r.Component], e.Head.Digests[r.Component]) == 100 {
			add(r)
		}
	}
	if e.Head.Outcome != Completed && e.Head.Release != "" {
		for _, r := range e.Previous.Record.Routes {
			if len(e.Traffic[r.Component]) > 0 {
				add(r)
			}
		}
	}
	for _, r := range e.Head.Record.Routes {
		add(r)
	}
	return doors
}
