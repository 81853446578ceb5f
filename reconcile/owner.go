package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/spec"
)

// underway marks an act that has not ended yet.
const underway = math.MaxUint64

// owner is the one that decides and acts for an environment.
type owner struct {
	r    *Reconciler
	name spec.EnvName
	wake chan struct{}
	seq  atomic.Uint64 // of the environment that the last turn left

	mu       sync.Mutex
	current  deploy.Environment            // as the last turn left it
	networks map[instance.ID]string        // paths, of instances that the host has
	busy     map[instance.ID]uint64        // the listing that will tell what became of the last act; underway before
	refused  map[instance.ID]string        // why it can't ever be created
	retries  map[instance.ID]retryAt       // of acts that failed for now
	measures map[instance.ID]measurement   // of those that differ, or did
	kept     map[instance.ID]instance.Kept // of those that were frozen
	copies   map[deploy.VolumeID]*copying  // what is being done to volumes, or was and is not recorded yet
	part     gateway.Env                   // the last one put
	number   uint64                        // of that; 0: none was put
	awaiting bool                          // a turn is to begin when it is in force
}

// retryAt is when to try again.
type retryAt struct {
	retry
	at time.Time
}

func newOwner(r *Reconciler, name spec.EnvName) *owner {
	return &owner{
		r: r, name: name, wake: make(chan struct{}, 1),
		networks: map[instance.ID]string{}, busy: map[instance.ID]uint64{},
		measures: map[instance.ID]measurement{}, kept: map[instance.ID]instance.Kept{}, copies: map[deploy.VolumeID]*copying{},
		refused: map[instance.ID]string{}, retries: map[instance.ID]retryAt{},
	}
}

// poke has a turn begin soon.
func (o *owner) poke() { signal(o.wake) }

// run takes turns until ctx ends, and returns when the acts that it began have ended.
func (o *owner) run(ctx context.Context) {
	var acts sync.WaitGroup
	defer acts.Wait()
	var delay retry
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-o.wake:
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		wait, err := o.turn(ctx, &acts)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, fault.Conflict): // the environment moved on while this turn decided, which also wakes it
			wait = delay.next()
		case err != nil:
			o.r.log.Warn("reconciling", "env", o.name, "error", err)
			wait = delay.next()
		default:
			delay = retry{}
		}
		timer.Reset(wait)
	}
}

// askAgain is how long to wait after the host did not tell a network.
const askAgain = 100 * time.Millisecond

// never is how long to wait when only an outside change can give something new.
const never = time.Duration(math.MaxInt64)

// turn reads, decides, records and acts once. It returns how long to wait for the next turn if nothing happens.
func (o *owner) turn(ctx context.Context, acts *sync.WaitGroup) (time.Duration, error) {
	e := o.read()
	have := o.observe(e)
	o.forget(e, have)
	now := time.Now()
	decided := o.concluded(e)
	if len(decided) == 0 {
		decided = deploy.Next(e, have, now, o.r.config.NewID)
	}
	steps := decided[:o.tellable(decided)]
	if len(steps) > 0 {
		if err := o.r.config.Recorder.Record(ctx, o.name, e.Seq, steps); err != nil {
			o.learn(ctx, e, have)
			o.publish(e) // what is recorded holds nevertheless, and other environments wait for this part
			return never, fmt.Errorf("recording %d steps: %w", len(steps), err)
		}
		o.poke() // what follows from these steps
		e = o.read()
	}
	learned := o.learn(ctx, e, have)
	o.publish(e)
	o.seq.Store(e.Seq)
	o.act(ctx, acts, e, have, now)
	if len(steps) < len(decided) {
		o.await(ctx, acts)
	}
	switch {
	case !learned:
		return askAgain, nil
	case len(steps) > 0:
		return never, nil
	}
	return o.rest(e, have, now), nil
}

// tellable returns how many of the steps can be recorded now. A rollout ends when its traffic is in force, not when that was
// decided: whoever is told of the end may send a request at once.
func (o *owner) tellable(steps []deploy.Step) int {
	end := slices.IndexFunc(steps, func(s deploy.Step) bool { return s.Kind == deploy.Done })
	if end < 0 {
		return len(steps)
	}
	o.mu.Lock()
	number := o.number
	o.mu.Unlock()
	shifts := slices.ContainsFunc(steps[:end], func(s deploy.Step) bool { return s.Kind == deploy.Shift })
	if shifts || number == 0 || !o.r.gateway.inForceSince(number) {
		return end
	}
	return len(steps)
}

// await has a turn begin when the part that was put last is in force.
func (o *owner) await(ctx context.Context, acts *sync.WaitGroup) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.awaiting {
		return
	}
	o.awaiting = true
	number := o.number
	acts.Go(func() {
		err := o.r.gateway.wait(ctx, number)
		o.mu.Lock()
		o.awaiting = false
		o.mu.Unlock()
		if err == nil {
			o.poke()
		}
	})
}

func (o *owner) read() deploy.Environment {
	e, ok := o.r.config.Source.Environment(o.name)
	if !ok {
		return deploy.Environment{Name: o.name} // of which the host has something: orphans
	}
	return e
}

// observe returns what the host has of the environment. Until a listing tells what became of an act, its instance counts as
// made and no more; one that can't be made counts as exited.
func (o *owner) observe(e deploy.Environment) []instance.Observation {
	view, nth := o.r.observer.view(o.name)
	o.mu.Lock()
	defer o.mu.Unlock()
	maps.DeleteFunc(o.busy, func(_ instance.ID, until uint64) bool { return until <= nth })
	if len(o.busy) == 0 && len(o.refused) == 0 && len(o.measures) == 0 && len(o.kept) == 0 {
		return view
	}
	have := make([]instance.Observation, 0, len(view)+len(o.busy))
	listed := map[instance.ID]bool{}
	for _, seen := range view {
		id := seen.Identity.ID
		listed[id] = true
		seen.Drift, seen.Clean = o.measures[id].differs, o.measures[id].clean
		seen.Kept = o.kept[id]
		if cause, ok := o.refused[id]; ok && e.Instances[id].Live() {
			seen.State, seen.Health, seen.ExitCode, seen.Detail = instance.Exited, instance.Unknown, -1, cause
		}
		have = append(have, seen)
	}
	for _, id := range slices.Sorted(maps.Keys(o.busy)) {
		if i, ok := e.Instances[id]; ok && !listed[id] {
			listed[id] = true
			have = append(have, instance.Observation{Identity: i.Identity, State: instance.Created})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(o.refused)) {
		if i, ok := e.Instances[id]; ok && i.Live() && !listed[id] {
			have = append(have, instance.Observation{Identity: i.Identity, State: instance.Exited, ExitCode: -1, Detail: o.refused[id]})
		}
	}
	return have
}

// forget drops what is known of instances that neither the ledger nor the host has any more.
func (o *owner) forget(e deploy.Environment, have []instance.Observation) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.networks)+len(o.refused)+len(o.retries)+len(o.measures)+len(o.kept) == 0 {
		return
	}
	exists := make(map[instance.ID]bool, len(have))
	for _, seen := range have {
		exists[seen.Identity.ID] = true
	}
	gone := func(id instance.ID) bool {
		_, entered := e.Instances[id]
		return !entered && !exists[id] && o.busy[id] != underway
	}
	maps.DeleteFunc(o.measures, func(id instance.ID, _ measurement) bool { return gone(id) })
	maps.DeleteFunc(o.kept, func(id instance.ID, _ instance.Kept) bool { return gone(id) })
	maps.DeleteFunc(o.networks, func(id instance.ID, _ string) bool { return gone(id) })
	maps.DeleteFunc(o.refused, func(id instance.ID, _ string) bool { return gone(id) })
	maps.DeleteFunc(o.retries, func(id instance.ID, _ retryAt) bool { return gone(id) })
}

// learn asks the host for the networks of instances that another process made, and reports whether it told all of them.
func (o *owner) learn(ctx context.Context, e deploy.Environment, have []instance.Observation) bool {
	all := true
	for _, seen := range have {
		id := seen.Identity.ID
		if _, ok := e.Instances[id]; !ok || seen.State != instance.Created && seen.State != instance.Running {
			continue
		}
		o.mu.Lock()
		_, known := o.networks[id]
		_, busy := o.busy[id]
		o.mu.Unlock()
		if known || busy {
			continue
		}
		n, err := o.r.config.Host.Network(ctx, id)
		if err != nil {
			o.r.log.Warn("asking for the network", "instance", id, "error", err)
			all = false
			continue
		}
		o.mu.Lock()
		o.networks[id] = n.Path
		o.mu.Unlock()
	}
	return all
}

// publish hands the environment's part of the route table on, if it differs from the last.
func (o *owner) publish(e deploy.Environment) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.current = e
	o.put()
}

// put is called with mu held, so that parts are put in the order in which they were made.
func (o *owner) put() uint64 {
	part := deploy.Traffic(o.current, o.networks)
	if o.number == 0 || !reflect.DeepEqual(part, o.part) {
		o.part, o.number = part, o.r.gateway.put(part)
	}
	return o.number
}

// rest returns how long nothing can be new by itself.
func (o *owner) rest(e deploy.Environment, have []instance.Observation, now time.Time) time.Duration {
	at := deploy.Wake(e, have, now)
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.copies {
		if c.idle && (at.IsZero() || c.again.at.Before(at)) {
			at = c.again.at
		}
	}
	for _, r := range o.retries {
		if r.at.After(now) && (at.IsZero() || r.at.Before(at)) {
			at = r.at
		}
	}
	if at.IsZero() {
		return never
	}
	return max(0, time.Until(at))
}
