package change

import (
	"fmt"
	"reflect"

	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

// MakePlan returns the plan to bring an environment from what it has to what is proposed. It is pure: equal
// arguments give equal plans.
func MakePlan(current Current, proposed Proposed) Plan {
	next := proposed.Record
	p := Plan{
		V: 1, App: next.App, Env: next.Env, Base: current.Base,
		Bundle: next.Bundle, Release: proposed.Digest, Volumes: proposed.Volumes,
		Steps: append(append([]int{}, next.Rollout.Canary...), 100),
	}
	if current.Base.Release == proposed.Digest {
		p.Unchanged = len(next.Components)
		if current.Failed {
			p.Rollout = []release.Cause{{Field: "outcome", Old: new("failed"), New: new("another try")}}
		}
		return p
	}
	before, after, same := differing(current.Record, next)
	p.Unchanged = same
	diff := release.Compare(before, after)
	old, new := placed(before), placed(after)
	for _, c := range diff.Components {
		name := spec.ComponentName(c.Name)
		p.Items = append(p.Items, item(c, old[name], new[name]))
	}
	for _, c := range diff.Routes {
		p.Routes = append(p.Routes, routeItem(c, current.Record, next))
	}
	p.Rollout = diff.Rollout
	for _, c := range diff.Platform {
		p.Platform = append(p.Platform, PlatformItem{Action: actionOf(c.Action), Kind: c.Kind, Name: c.Name, Causes: c.Causes})
	}
	return p
}

// differing returns the records without the components that are the same in both, and how many those are: to
// compare two values costs much less than to name each by its digest.
func differing(a, b release.Record) (release.Record, release.Record, int) {
	old := placed(a)
	same := map[spec.ComponentName]bool{}
	for _, p := range b.Components {
		if o, ok := old[p.Component.Name]; ok && reflect.DeepEqual(*o, p) {
			same[p.Component.Name] = true
		}
	}
	without := func(r release.Record) release.Record {
		var rest []release.Placed
		for _, p := range r.Components {
			if !same[p.Component.Name] {
				rest = append(rest, p)
			}
		}
		r.Components = rest
		return r
	}
	return without(a), without(b), len(same)
}

func placed(r release.Record) map[spec.ComponentName]*release.Placed {
	out := make(map[spec.ComponentName]*release.Placed, len(r.Components))
	for i := range r.Components {
		out[r.Components[i].Component.Name] = &r.Components[i]
	}
	return out
}

// actionOf returns what a plan shows for what becomes of a component or a route.
func actionOf(a release.Action) Action {
	switch a {
	case release.Add:
		return Add
	case release.Remove:
		return Remove
	}
	return Replace
}

// item says what a component's change means for its instances.
func item(c release.Change, before, after *release.Placed) Item {
	i := Item{Action: actionOf(c.Action), Component: spec.ComponentName(c.Name), Before: c.From, After: c.To, Causes: c.Causes}
	switch c.Action {
	case release.Add:
		i.Starts = c.ToReplicas
	case release.Remove:
		i.Stops = c.FromReplicas
	case release.Scale:
		if i.Action = Add; c.ToReplicas < c.FromReplicas {
			i.Action = Remove
		}
		i.Starts, i.Stops = max(c.ToReplicas-c.FromReplicas, 0), max(c.FromReplicas-c.ToReplicas, 0)
	case release.Replace:
		i.Starts, i.Stops, i.How = c.ToReplicas, c.FromReplicas, Beside
		if i.Volume = sharedVolume(before.Component, after.Component); i.Volume != "" {
			i.How = StopThenStart
		}
	}
	return i
}

// sharedVolume returns the first volume of the component that is to start, or of the one that is to retire: while one
// instance has a volume, no other may.
func sharedVolume(before, after release.Component) spec.VolumeName {
	for _, c := range []release.Component{after, before} {
		if len(c.Volumes) > 0 {
			return c.Volumes[0].Name
		}
	}
	return ""
}

func routeItem(c release.Change, before, after release.Record) RouteItem {
	return RouteItem{Action: actionOf(c.Action), Route: spec.RouteName(c.Name),
		Before: describe(before, c.Name), After: describe(after, c.Name), Causes: c.Causes}
}

// describe is a route in one line, "" when the record lacks it.
func describe(r release.Record, name string) string {
	for _, rt := range r.Routes {
		if string(rt.Name) != name {
			continue
		}
		from := rt.TCP
		if from == "" {
			from = rt.Host + rt.Path
		}
		return fmt.Sprintf("%s -> %s:%s", from, rt.Component, rt.Port)
	}
	return ""
}
