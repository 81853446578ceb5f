package reconcile

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/invarhq/invar/attest"
	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
)

// starting is how long an instance may be in the ledger and not on the host, before it has passed its checks once.
const starting = time.Minute

// Measure looks at every instance that an environment has on the host, and tells what it found of each: its root read from the first
// byte to the last, and how else it differs from its release. It also tells of those that the ledger says run and do not. It asks for the
// environment before it lists the host and after: an instance that came or went meanwhile is no finding.
func Measure(ctx context.Context, host runtime.Host, now func() (deploy.Environment, error)) ([]attest.Instance, error) {
	before, err := now()
	if err != nil {
		return nil, err
	}
	seen, err := host.List(ctx)
	if err != nil {
		return nil, err
	}
	after, err := now()
	if err != nil {
		return nil, err
	}
	m := measuring{host: host, roots: map[digest.Digest]digest.Digest{}}
	out := missing(before, after, seen, time.Now())
	for _, o := range seen {
		if o.Identity.Env != before.Name || o.State == instance.Exited {
			continue
		}
		env := after
		if _, known := after.Instances[o.Identity.ID]; !known {
			env = before
		}
		i, err := m.instance(ctx, env, o)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			if ended(now, o.Identity.ID) {
				continue
			}
			i.Detail = err.Error()
		}
		out = append(out, i)
	}
	return out, nil
}

// missing lists the instances that are to run, before and after the host was listed, and do not.
func missing(before, after deploy.Environment, seen []instance.Observation, at time.Time) []attest.Instance {
	runs := map[instance.ID]bool{}
	for _, o := range seen {
		runs[o.Identity.ID] = o.State != instance.Exited
	}
	var out []attest.Instance
	for _, id := range slices.Sorted(maps.Keys(after.Instances)) {
		i := after.Instances[id]
		if was, known := before.Instances[id]; runs[id] || !known || !was.Live() || !i.Live() || !i.EverHealthy && at.Sub(i.CreatedAt) < starting {
			continue
		}
		out = append(out, attest.Instance{ID: id, Component: i.Component, Digest: i.Digest, State: attest.Missing, Expected: after.Components[i.Digest].Root,
			Detail: "the ledger says that it runs, and the host does not run it"})
	}
	return out
}

// ended reports whether an instance that could not be looked at is not to run any more.
func ended(now func() (deploy.Environment, error), id instance.ID) bool {
	env, err := now()
	return err == nil && !env.Instances[id].Live()
}

// measuring is one run of Measure.
type measuring struct {
	host  runtime.Host
	roots map[digest.Digest]digest.Digest // what was read, by what is expected: instances of one root share its mount
}

// instance tells what an instance that is on the host is. With an error it tells what it is to be.
func (m measuring) instance(ctx context.Context, env deploy.Environment, o instance.Observation) (attest.Instance, error) {
	out := attest.Instance{ID: o.Identity.ID, Component: o.Identity.Component, State: attest.Running}
	recorded, known := env.Instances[out.ID]
	if !known {
		out.State, out.Detail = attest.Unknown, "the ledger does not know it"
		return out, nil
	}
	component, ok := env.Components[recorded.Digest]
	if !ok {
		return out, fault.Errorf(fault.Corrupt, "the ledger does not have component %s", recorded.Digest)
	}
	out.Component, out.Digest, out.Expected = recorded.Component, recorded.Digest, component.Root
	if o.State != instance.Running {
		out.State = attest.Waiting
	}
	var unread, unseen error
	out.Found, unread = m.root(ctx, out.ID, component.Root)
	if out.State == attest.Running { // also when its root can't be read: that something differs is more than that nothing can be told
		out.Findings, unseen = Inspect(ctx, m.host, recorded, component)
	}
	return out, errors.Join(unread, unseen)
}

// root reads what an instance runs on.
func (m measuring) root(ctx context.Context, id instance.ID, want digest.Digest) (digest.Digest, error) {
	if found, ok := m.roots[want]; ok {
		return found, nil
	}
	read, err := m.host.Measure(ctx, id)
	if err != nil {
		return "", err
	}
	m.roots[want] = read.Root
	return read.Root, nil
}
