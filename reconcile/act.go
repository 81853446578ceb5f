package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
)

// act begins what is left to do on the host, and leaves what is under way alone.
func (o *owner) act(ctx context.Context, acts *sync.WaitGroup, e deploy.Environment, have []instance.Observation, now time.Time) {
	o.mu.Lock()
	number := o.number
	o.mu.Unlock()
	if e.Draining() {
		o.r.gateway.watchDrain(o.name, o.poke)
	} else {
		o.r.gateway.watchDrain(o.name, nil)
	}
	o.tend(ctx, acts, e, now)
	for _, act := range deploy.Acts(e, have, o.r.gateway.connections(number), now) {
		if _, known := e.Instances[act.Instance.ID]; !known && !o.r.orphans.mayEnd(observed(have, act.Instance.ID)) {
			continue
		}
		if o.begin(act, now) {
			acts.Go(func() { o.carryOut(ctx, act, number) })
		}
	}
}

// observed returns what was seen of an instance that is listed.
func observed(have []instance.Observation, id instance.ID) instance.Observation {
	return have[slices.IndexFunc(have, func(o instance.Observation) bool { return o.Identity.ID == id })]
}

// begin claims the instance for an act.
func (o *owner) begin(act deploy.Act, now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, busy := o.busy[act.Instance.ID]
	_, refused := o.refused[act.Instance.ID]
	if busy || refused && !act.End || now.Before(o.retries[act.Instance.ID].at) {
		return false
	}
	o.busy[act.Instance.ID] = underway
	return true
}

// carryOut does one act. Whatever comes of it, the next listing tells; only what can't be tried again is remembered.
func (o *owner) carryOut(ctx context.Context, act deploy.Act, number uint64) {
	id := act.Instance.ID
	var err error
	var kept instance.Kept
	switch {
	case act.End:
		err = o.end(ctx, id, number)
	case act.Freeze:
		kept, err = o.freeze(ctx, act.Instance, number)
	default:
		err = o.start(ctx, act.Instance)
	}
	if err != nil && ctx.Err() == nil {
		o.r.log.Warn("acting on instance", "instance", id, "end", act.End, "freeze", act.Freeze, "error", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case err == nil:
		delete(o.retries, id)
		if act.End {
			delete(o.networks, id)
		}
		if act.Freeze {
			o.kept[id] = kept
		}
	case act.Freeze && lasting(err):
		o.kept[id] = instance.Kept{Cause: err.Error()}
	case act.End || act.Freeze || !lasting(err):
		r := o.retries[id]
		r.at = time.Now().Add(r.next())
		o.retries[id] = r
	default:
		o.refused[id] = err.Error()
	}
	o.busy[id] = o.r.observer.refresh(o.name)
}

// lasting reports whether trying again can't help.
func lasting(err error) bool {
	return errors.Is(err, fault.Invalid) || errors.Is(err, fault.NotFound) || errors.Is(err, fault.Conflict) || errors.Is(err, fault.Corrupt)
}

// start creates the instance, has its sockets opened, and lets it go. Each part can be repeated.
func (o *owner) start(ctx context.Context, i instance.Identity) error {
	o.mu.Lock()
	c := o.current.Made(o.current.Components[i.Digest])
	made := o.current.Instances[i.ID]
	o.mu.Unlock()
	made.Identity = i
	s, err := Spec(ctx, made, c, o.r.config.Secrets)
	if err != nil {
		return err
	}
	defer s.ClearSecrets()
	err = o.slot(ctx, func() error {
		if err := o.r.config.Host.Create(ctx, s); err != nil {
			return err
		}
		n, err := o.r.config.Host.Network(ctx, i.ID)
		if err != nil {
			return fault.Errorf(fault.Unavailable, "network: %w", unkinded{err})
		}
		o.mu.Lock()
		o.networks[i.ID] = n.Path
		o.mu.Unlock()
		return nil
	})
	if err != nil {
		return err
	}
	if len(c.Uses) > 0 || len(c.Egress) > 0 {
		o.mu.Lock()
		number := o.put()
		o.mu.Unlock()
		if err := o.r.gateway.wait(ctx, number); err != nil {
			return err
		}
	}
	return o.slot(ctx, func() error {
		if err := o.r.config.Host.Start(ctx, i.ID); err != nil {
			return fault.Errorf(fault.Unavailable, "start: %w", unkinded{err})
		}
		return nil
	})
}

// unkinded hides the kind of an error after which the next listing tells what is the matter: that the instance has exited
// meanwhile, or has disappeared.
type unkinded struct{ err error }

func (u unkinded) Error() string { return u.err.Error() }

// end stops and removes the instance once the table without it is in force.
func (o *owner) end(ctx context.Context, id instance.ID, number uint64) error {
	if err := o.r.gateway.wait(ctx, number); err != nil {
		return err
	}
	return o.slot(ctx, func() error {
		if err := o.r.config.Host.Stop(ctx, id); err != nil {
			return err
		}
		return o.r.config.Host.Remove(ctx, id)
	})
}

// freeze freezes the instance once the table without it is in force, and keeps its evidence. Each part can be repeated: evidence that is kept and
// that no entry names does no harm.
func (o *owner) freeze(ctx context.Context, i instance.Identity, number uint64) (kept instance.Kept, err error) {
	if o.r.config.Keep == nil {
		return kept, fault.Errorf(fault.Invalid, "this server keeps no evidence")
	}
	o.mu.Lock()
	made, c := o.current.Instances[i.ID], o.current.Components[i.Digest]
	o.mu.Unlock()
	q, err := Question(ctx, made, c)
	if err != nil {
		return kept, err
	}
	q.Opened = o.opened(i.ID)
	if err := o.r.gateway.wait(ctx, number); err != nil {
		return kept, err
	}
	err = o.slot(ctx, func() error {
		if err := o.r.config.Host.Freeze(ctx, i.ID); err != nil {
			return err
		}
		e, err := o.r.config.Host.Evidence(ctx, q)
		if err != nil {
			return err
		}
		content, err := digest.Canonical(e)
		if err != nil {
			return fmt.Errorf("spelling the evidence of instance %s: %w", i.ID, err)
		}
		kept.Bytes = int64(len(content))
		kept.Evidence, err = o.r.config.Keep(ctx, content)
		return err
	})
	return kept, err
}

// slot does one of the acts that may be under way at a time.
func (o *owner) slot(ctx context.Context, do func() error) error {
	select {
	case o.r.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-o.r.slots }()
	return do()
}
