package reconcile

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/instance"
)

// orphans are instances that the host has and no entry tells of. Nothing that a server did leaves one: an instance is in the ledger before it
// is on the host, and leaves it only when the host has it no more. They are of a ledger that was restored from an older copy, or somebody
// else's. They end once the ledger has them as such.
type orphans struct {
	r *Reconciler

	mu   sync.Mutex
	seen map[instance.ID]*orphan
}

type orphan struct {
	instance.Observation
	looks   int
	entered bool // the ledger has it: it may be ended
}

// mayEnd reports whether an instance that the ledger does not know may be ended now, and remembers it.
func (x *orphans) mayEnd(o instance.Observation) bool {
	if x.r.config.Alarm == nil {
		return true
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	known, ok := x.seen[o.Identity.ID]
	if !ok {
		known = &orphan{}
		x.seen[o.Identity.ID] = known
	}
	known.Observation = o
	return known.entered
}

// Kinds implements Surrounding.
func (x *orphans) Kinds() []drift.Kind { return []drift.Kind{drift.Orphan} }

// Look implements Surrounding. What two looks found is one.
func (x *orphans) Look(context.Context) ([]drift.Oddity, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	var facts []drift.Fact
	for id, o := range x.seen {
		view, _ := x.r.observer.view(o.Identity.Env)
		if !slices.ContainsFunc(view, func(v instance.Observation) bool { return v.Identity.ID == id }) {
			delete(x.seen, id)
			continue
		}
		if o.looks++; o.looks > 1 {
			facts = append(facts, drift.Fact{Kind: drift.Orphan, Field: string(id), Value: o.text()})
		}
	}
	return drift.Odd(drift.End, drift.Compare(drift.Facts{}, drift.Of(facts...))), nil
}

func (o *orphan) text() string {
	i := o.Identity
	text := fmt.Sprintf("%s, of component %q of environment %q, release %s, generation %d", o.State, i.Component, i.Env, i.Release, i.Generation)
	if o.PID > 0 {
		text += fmt.Sprintf(", process %d", o.PID)
	}
	return text
}

// Heal implements Surrounding: the owner of the environment ends them.
func (x *orphans) Heal(ctx context.Context, found []drift.Oddity) (string, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, f := range found {
		if o, ok := x.seen[instance.ID(f.Field)]; ok {
			o.entered = true
			x.r.owner(ctx, o.Identity.Env).poke()
		}
	}
	return "it was ended", nil
}
