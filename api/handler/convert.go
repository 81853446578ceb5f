package handler

import (
	"cmp"
	"maps"
	"net"
	"net/url"
	"slices"
	"time"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// observed is what the host sees, by instance.
type observed map[instance.ID]instance.Observation

func observe(list []instance.Observation) observed {
	out := make(observed, len(list))
	for _, o := range list {
		out[o.Identity.ID] = o
	}
	return out
}

// view is all that the answer about an environment is made from.
type view struct {
	env     state.Environment
	head    state.Generation
	seen    observed
	gateway gateway.Status
	size    int64 // of the ledger
	now     time.Time
}

func (v view) environment() api.Environment {
	out := api.Environment{
		EnvironmentSummary: summaryOf(v.env, v.head), LedgerSize: uint64(v.size),
		Components: []api.Component{}, Instances: []api.Instance{}, Routes: []api.Route{},
	}
	for _, name := range v.componentNames() {
		out.Components = append(out.Components, v.component(name))
	}
	for _, i := range v.instances() {
		out.Instances = append(out.Instances, instanceOf(v.env, i, v.seen[i.ID], v.now))
	}
	for _, r := range v.env.Head.Record.Routes {
		out.Routes = append(out.Routes, v.route(r))
	}
	return out
}

// summaryOf is an environment in one line.
func summaryOf(e state.Environment, head state.Generation) api.EnvironmentSummary {
	out := api.EnvironmentSummary{
		Name: string(e.Name), Generation: head.Number, Release: head.Release, Bundle: head.Bundle,
		State: string(head.Outcome), Cause: head.Cause, By: head.Actor.String(), Reason: head.Reason,
		At: head.At, EndedAt: when(head.EndedAt), Total: len(e.Instances), Tainted: e.TaintedInstances(), Fork: forkOf(e),
		OnDrift: string(e.Head.Record.OnDrift),
	}
	if m := e.Measured; m != nil && !e.Destroyed() {
		out.Verified = &api.Verified{At: m.At, Entry: uint64(m.Entry), Result: m.Result, Instances: m.Instances, Bad: m.Bad, WholeAt: when(m.WholeAt)}
	}
	if !e.Destroyed() {
		out.App = string(e.App)
	}
	if out.Cause == "" && head.Outcome == deploy.Rolling {
		out.Cause = troubleOf(e)
	}
	for _, p := range e.Head.Record.Components {
		out.Wanted += p.Replicas
	}
	for _, i := range e.Instances {
		if i.Healthy() && e.Head.Digests[i.Component] == i.Digest {
			out.Healthy++
		}
	}
	return out
}

// troubleOf tells what holds a rollout up: the newest failure of a version of the head.
func troubleOf(e state.Environment) string {
	var newest deploy.Trouble
	for _, d := range e.Head.Digests {
		if t := e.Trouble[d]; t.Last.After(newest.Last) {
			newest = t
		}
	}
	return newest.Cause
}

func (v view) componentNames() []spec.ComponentName {
	names := map[spec.ComponentName]bool{}
	for name := range v.env.Head.Digests {
		names[name] = true
	}
	for _, i := range v.env.Instances {
		names[i.Component] = true
	}
	return slices.Sorted(maps.Keys(names))
}

func (v view) component(name spec.ComponentName) api.Component {
	head := v.env.Head.Digests[name]
	versions := map[digest.Digest]*api.Version{}
	version := func(d digest.Digest) *api.Version {
		if versions[d] == nil {
			versions[d] = &api.Version{
				Digest: d, Image: v.env.Components[d].Image, Head: d == head,
				Failures: v.env.Trouble[d].Count, Trouble: v.env.Trouble[d].Cause,
			}
		}
		return versions[d]
	}
	for _, p := range v.env.Head.Record.Components {
		if p.Component.Name == name {
			version(head).Wanted = p.Replicas
		}
	}
	for _, s := range v.env.Traffic[name] {
		version(s.Version).Percent = s.Percent
	}
	for _, i := range v.env.Instances {
		if i.Component != name {
			continue
		}
		at := version(i.Digest)
		at.Total++
		if i.Healthy() {
			at.Healthy++
		}
	}
	out := api.Component{Name: string(name), Versions: []api.Version{}}
	for _, at := range versions {
		out.Versions = append(out.Versions, *at)
	}
	slices.SortFunc(out.Versions, func(a, b api.Version) int {
		if a.Head != b.Head {
			return map[bool]int{true: -1, false: 1}[a.Head]
		}
		return cmp.Or(cmp.Compare(b.Percent, a.Percent), cmp.Compare(a.Digest, b.Digest))
	})
	return out
}

// instances returns the environment's instances by component, generation and id.
func (v view) instances() []deploy.Instance {
	return slices.SortedFunc(maps.Values(v.env.Instances), func(a, b deploy.Instance) int {
		return cmp.Or(cmp.Compare(a.Component, b.Component), cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.ID, b.ID))
	})
}

// instanceOf joins what the ledger says of an instance with what the host sees of it.
func instanceOf(e state.Environment, i deploy.Instance, o instance.Observation, now time.Time) api.Instance {
	out := api.Instance{
		ID: string(i.ID), Env: string(i.Env), Component: string(i.Component), Digest: i.Digest, Release: i.Release, Generation: i.Generation,
		Head:  e.Head.Digests[i.Component] == i.Digest,
		Phase: "created", State: cmp.Or(string(o.State), "absent"), Health: cmp.Or(string(o.Health), "unknown"), Detail: cmp.Or(o.Detail, i.Cause),
		PID: o.PID, Restarts: e.Trouble[i.Digest].Count,
		CreatedAt: when(i.CreatedAt), StartedAt: when(o.StartedAt), AgeSeconds: int64(now.Sub(i.CreatedAt).Seconds()),
	}
	switch {
	case !i.RetiringAt.IsZero():
		out.Phase = "retiring"
	case !o.StartedAt.IsZero() || i.EverHealthy:
		out.Phase = "started"
	}
	if t, ok := i.Tainted(); ok {
		out.Tainted = &api.Taint{Since: t.Since, Cause: t.Cause, By: t.By, Until: when(t.Until)}
	}
	if o.State == instance.Exited {
		out.Exit = &api.Exit{Code: o.ExitCode, OOM: o.OOM, At: when(o.ExitedAt)}
	}
	return out
}

func (v view) route(r release.Route) api.Route {
	out := api.Route{
		Name: string(r.Name), URL: urlOf(r, v.gateway), Host: r.Host, Path: r.Path, TLS: r.TLS, TCP: r.TCP,
		Component: string(r.Component), Port: string(r.Port),
		Trouble: v.gateway.Failures["route "+string(r.Name)+" of "+string(v.env.Name)],
	}
	if r.TCP != "" {
		out.Trouble = v.gateway.Failures["tcp/"+r.TCP]
	}
	for _, i := range v.env.Instances {
		out.Healthy = out.Healthy || i.Component == r.Component && v.env.Serving(i)
	}
	return out
}

// urlOf tells where a route can be reached, through a gateway that listens there.
func urlOf(r release.Route, g gateway.Status) string {
	if r.TCP != "" {
		return "tcp://" + r.TCP
	}
	scheme, listen, standard := "http", g.HTTP, "80"
	if r.TLS != "" {
		scheme, listen, standard = "https", g.HTTPS, "443"
	}
	host := r.Host
	listenHost, port, err := net.SplitHostPort(listen)
	if host == "" {
		host = listenHost
	}
	if err == nil && port != standard {
		host = net.JoinHostPort(host, port)
	}
	return (&url.URL{Scheme: scheme, Host: host, Path: cmp.Or(r.Path, "/")}).String()
}

// when is nil for the zero time.
func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func generationOf(g state.Generation) api.Generation {
	return api.Generation{
		Number: g.Number, Kind: string(g.Kind), App: string(g.App), Release: g.Release, Bundle: g.Bundle, By: g.Actor.Who(), Reason: g.Reason,
		Outcome: string(g.Outcome), Cause: g.Cause, At: g.At, EndedAt: when(g.EndedAt), Entry: uint64(g.Entry),
		Change: string(g.Change), Plan: g.Plan, Of: int(g.Of), Emergency: g.Emergency, Promoted: promotedFrom(g.Promoted),
	}
}

// acceptedOf tells where a head is.
func acceptedOf(m control.Moved) api.Accepted {
	return api.Accepted{Env: string(m.Env), Generation: m.Generation, Release: m.Release, Entry: uint64(m.Entry), Changed: m.Changed,
		Change: int(m.Change), Waiting: m.Waiting}
}

// each converts a list. What is empty stays a list on the wire, and does not become null.
func each[A, B any](list []A, convert func(A) B) []B {
	out := make([]B, 0, len(list))
	for _, a := range list {
		out = append(out, convert(a))
	}
	return out
}
