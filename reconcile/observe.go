package reconcile

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/spec"
)

// observer lists the host whenever it changed, once for all environments, and wakes those that a listing tells something new.
type observer struct {
	host   runtime.Host
	log    *slog.Logger
	listed chan struct{} // closed after the first listing
	ask    chan struct{} // a listing is wanted although the host may not have changed
	news   chan struct{} // a listing told something new; for one reader

	mu      sync.Mutex
	begun   uint64                                  // listings begun
	ended   uint64                                  // the last listing that ended
	views   map[spec.EnvName][]instance.Observation // as of that; never changed, only replaced
	waiting map[spec.EnvName]uint64                 // wants to be woken by this listing whatever it tells
	scratch map[spec.EnvName][]instance.Observation // run's
}

func newObserver(host runtime.Host, log *slog.Logger) *observer {
	return &observer{
		host: host, log: log, listed: make(chan struct{}), ask: make(chan struct{}, 1), news: make(chan struct{}, 1),
		views: map[spec.EnvName][]instance.Observation{}, waiting: map[spec.EnvName]uint64{},
		scratch: map[spec.EnvName][]instance.Observation{},
	}
}

// run lists until ctx ends. It calls wake for every environment that has something new.
func (o *observer) run(ctx context.Context, wake func(spec.EnvName)) {
	var delay retry
	for ctx.Err() == nil {
		changed := o.host.Changed()
		began := time.Now()
		woken, err := o.list(ctx)
		if err != nil {
			o.log.Warn("listing instances", "error", err)
			sleep(ctx, delay.next())
			continue
		}
		delay = retry{}
		for _, name := range woken {
			wake(name)
		}
		if len(woken) > 0 {
			signal(o.news)
		}
		sleep(ctx, 2*time.Since(began)) // a listing is in proportion to all instances: leave two thirds of the time to others
		select {
		case <-changed:
		case <-o.ask:
		case <-ctx.Done():
		}
	}
}

// list lists once and returns which environments to wake.
func (o *observer) list(ctx context.Context) ([]spec.EnvName, error) {
	o.mu.Lock()
	o.begun++
	nth := o.begun
	o.mu.Unlock()
	all, err := o.host.List(ctx)
	if err != nil {
		return nil, err
	}
	return o.take(all, nth), nil
}

// take keeps what the nth listing told, and returns whom that concerns.
func (o *observer) take(all []instance.Observation, nth uint64) []spec.EnvName {
	for name := range o.scratch {
		o.scratch[name] = o.scratch[name][:0]
	}
	for _, seen := range all {
		o.scratch[seen.Identity.Env] = append(o.scratch[seen.Identity.Env], seen)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	concerned := map[spec.EnvName]bool{}
	for name, view := range o.scratch {
		if !slices.EqualFunc(view, o.views[name], instance.Observation.Equal) {
			o.views[name] = slices.Clone(view)
			concerned[name] = true
		}
	}
	for name, need := range o.waiting {
		if nth >= need {
			delete(o.waiting, name)
			concerned[name] = true
		}
	}
	o.ended = nth
	if !isClosed(o.listed) {
		close(o.listed)
	}
	return slices.Collect(maps.Keys(concerned))
}

// view returns what the last listing told of an environment, and which listing that was.
func (o *observer) view(name spec.EnvName) ([]instance.Observation, uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.views[name], o.ended
}

// refresh asks for a listing that begins from now on, which wakes the environment, and returns its number.
func (o *observer) refresh(name spec.EnvName) uint64 {
	o.mu.Lock()
	nth := o.begun + 1
	o.waiting[name] = nth
	o.mu.Unlock()
	signal(o.ask)
	return nth
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// signal fills a channel of one place.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// retry is a growing delay between tries: 10 ms, 20, 40 … 5 s. The zero value has not failed yet.
type retry struct{ failures int }

func (r *retry) next() time.Duration {
	r.failures++
	return min(5*time.Second, 10*time.Millisecond<<min(r.failures-1, 10))
}

// sleep waits, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
