package state

import (
	"errors"
	"fmt"
	"time"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/spec"
)

// Promoted says that a bundle was brought from the head of another environment, where it had run healthy for a time when this was
// written.
type Promoted struct {
	From         spec.EnvName `json:"from"`
	Generation   int          `json:"generation"`               // its head
	HealthyForMS int64        `json:"healthy_for_ms,omitempty"` // asked for; unset: healthy at that moment
	Completed    int64        `json:"completed"`                // index of the entry by which that head's rollout completed
	Newest       int64        `json:"newest"`                   // and of the newest before this one by which it was disturbed, or well again
}

func (p *Promoted) check() error {
	if p == nil {
		return nil
	}
	if p.Generation < 1 || p.HealthyForMS < 0 || p.Completed < 1 || p.Newest < p.Completed {
		return errors.New("its promotion's numbers do not go together")
	}
	return spec.CheckName(string(p.From))
}

// same reports whether both are of the same head and ask for the same time.
func (p *Promoted) same(q *Promoted) bool {
	if p == nil || q == nil {
		return p == q
	}
	return p.From == q.From && p.Generation == q.Generation && p.HealthyForMS == q.HealthyForMS
}

// Calm is since when nothing was recorded of a head but calm.
type Calm struct {
	Completed int64     `json:"completed,omitempty"` // index of the entry by which its rollout completed; 0: it did not
	Newest    int64     `json:"newest,omitempty"`    // of the newest by which that was, or one of its environment's instances was not as it should be, or was so again
	Since     time.Time `json:"since,omitzero"`      // time of Newest
}

// after returns what follows from another step, which is the entry with that index.
func (c Calm) after(s deploy.Step, index int64, at time.Time) Calm {
	switch s.Kind {
	case deploy.Done:
		c.Completed = index
	case deploy.Healthy, deploy.Failing, deploy.Exited, deploy.Tainted, deploy.Drifted, deploy.Settled:
	default:
		return c
	}
	c.Newest, c.Since = index, at
	return c
}

// Proven returns since when the head has run healthy. It fails with fault.Denied when its rollout has not completed, or not all of its instances
// are healthy and as they were released.
func (e Environment) Proven() (Calm, error) {
	if e.Head.Outcome != deploy.Completed {
		return Calm{}, fault.WithHint(fault.Errorf(fault.Denied, "generation %d is %s, not completed", e.Head.Number, e.Head.Outcome), "invar status %s", e.Name)
	}
	if name, ok := e.unhealthy(); !ok {
		return Calm{}, fault.WithHint(fault.Errorf(fault.Denied, "component %s of generation %d is not healthy now", name, e.Head.Number), "invar status %s", e.Name)
	}
	if e.Calm.Completed == 0 {
		return Calm{}, fault.Errorf(fault.Corrupt, "the ledger has no entry by which generation %d completed", e.Head.Number)
	}
	return e.Calm, nil
}

// unhealthy returns a component of which not all instances that the head asks for are healthy and untouched; ok: there is none.
func (e Environment) unhealthy() (name spec.ComponentName, ok bool) {
	have := map[digest.Digest]int{}
	for _, i := range e.Instances {
		if i.Healthy() && len(i.Taints) == 0 && len(i.Drift) == 0 {
			have[i.Digest]++
		}
	}
	for _, p := range e.Head.Record.Components {
		if have[e.Head.Digests[p.Component.Name]] < p.Replicas {
			return p.Component.Name, false
		}
	}
	return "", true
}

// Promote says whether a bundle may be brought from the head that p names, which has to be the head still, to have this bundle, and to have run
// healthy for the time that p asks for. It returns p with the entries that prove it; else it fails with fault.Denied, or fault.NotFound for
// an unknown environment.
func (s State) Promote(p Promoted, bundle digest.Digest, now time.Time) (Promoted, error) {
	env, err := s.Environment(p.From)
	if err != nil {
		return p, err
	}
	switch {
	case env.Head.Number != p.Generation:
		return p, fault.WithHint(fault.Errorf(fault.Denied, "environment %s is at generation %d; what was to be promoted is generation %d", p.From, env.Head.Number, p.Generation),
			"promote what runs there now: invar promote %s ENV", p.From)
	case env.Destroyed() || env.Head.Record.Bundle != bundle:
		return p, fault.Errorf(fault.Denied, "generation %d of environment %s is not of bundle %s", p.Generation, p.From, bundle.Short())
	}
	calm, err := env.Proven()
	if err != nil {
		return p, fmt.Errorf("environment %s: %w", p.From, err)
	}
	if asked, has := time.Duration(p.HealthyForMS)*time.Millisecond, now.Sub(calm.Since); has < asked {
		return p, fault.WithHint(fault.Errorf(fault.Denied, "generation %d has run healthy for %s, since entry %d, and %s is asked for", p.Generation,
			has.Round(time.Second), calm.Newest, asked), "wait for another %s", (asked - has).Round(time.Second))
	}
	p.Completed, p.Newest = calm.Completed, calm.Newest
	return p, nil
}
