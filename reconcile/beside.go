package reconcile

import (
	"context"
	"slices"
	"time"

	"github.com/invarhq/invar/drift"
)

// Surrounding is something that a server has on its machine beside the instances, and that can be looked at from outside.
type Surrounding interface {
	// Kinds are those of the oddities that Look finds, and nobody else does.
	Kinds() []drift.Kind
	// Look returns all that is not as it should be now, which it has made sure of. It changes nothing.
	Look(ctx context.Context) ([]drift.Oddity, error)
	// Heal does what it can about what Look found, which the ledger has by now, and says what that was.
	Heal(ctx context.Context, found []drift.Oddity) (how string, err error)
}

// Alarm writes to the ledger what is odd beside the instances.
type Alarm interface {
	// Odd makes oddities with one response durable.
	Odd(ctx context.Context, found []drift.Oddity) error
	// Over says that open ones are over, and how that came.
	Over(ctx context.Context, over []drift.Open, how string) error
	// Open returns those that are not over.
	Open() []drift.Open
}

const (
	besideEvery = time.Second
	maxOdd      = 16 // in one entry: an entry of the ledger is bounded
)

// besides looks at what is beside the instances, again and again.
type besides struct {
	r     *Reconciler
	known map[string]*recurring // by key
}

// recurring is what is known of an oddity, for as long as it may come back.
type recurring struct {
	times int       // that it was over and came back
	last  time.Time // when it was seen last
	away  time.Time // since when it is not there; zero: it is
	tries int       // to heal it, since it came
	next  time.Time // when to try again
	how   string    // what was done about it
}

// besideMemory is how long an oddity that is over is remembered.
const besideMemory = time.Hour

// watchBesides looks until ctx ends, often, and at once when the publisher has noticed a foreign table.
func (r *Reconciler) watchBesides(ctx context.Context) {
	b := &besides{r, map[string]*recurring{}}
	all := append([]Surrounding{r.gateway, r.orphans}, r.config.Surroundings...)
	for ctx.Err() == nil {
		began := time.Now()
		for _, s := range all {
			b.look(ctx, s)
		}
		timer := time.NewTimer(rest(besideEvery, time.Since(began), time.Since(began)))
		select {
		case <-timer.C:
		case <-r.gateway.noticed:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// look looks at one surrounding once, records what is new, heals what is recorded, and records what is over.
func (b *besides) look(ctx context.Context, s Surrounding) {
	found, err := s.Look(ctx)
	if err != nil {
		if ctx.Err() == nil {
			b.r.log.Warn("looking beside the instances", "kinds", s.Kinds(), "error", err)
		}
		return
	}
	now := time.Now()
	fresh, entered, over := drift.Beside(b.open(), s.Kinds(), found)
	if err := b.record(ctx, fresh); err != nil { // what has no entry is not touched
		b.r.log.Error("recording what is odd beside the instances", "error", err)
		return
	}
	b.note(found, now)
	b.heal(ctx, s, entered, now)
	b.end(ctx, over, now)
}

// open returns what the ledger has.
func (b *besides) open() []drift.Open {
	if b.r.config.Alarm == nil {
		return nil
	}
	return b.r.config.Alarm.Open()
}

// record makes what is new durable: an entry for each response.
func (b *besides) record(ctx context.Context, fresh []drift.Oddity) error {
	if b.r.config.Alarm == nil {
		return nil
	}
	for _, response := range drift.Responses() {
		var of []drift.Oddity
		for _, o := range fresh {
			if o.Response == response {
				of = append(of, o)
			}
		}
		for some := range slices.Chunk(of, maxOdd) {
			for _, o := range some {
				b.r.log.Warn("odd beside the instances", "finding", o.String(), "response", o.Response)
			}
			if err := b.r.config.Alarm.Odd(ctx, some); err != nil {
				return err
			}
		}
	}
	return nil
}

// note keeps what was found, and forgets what was not for long.
func (b *besides) note(found []drift.Oddity, now time.Time) {
	for _, o := range found {
		k := b.known[o.Key()]
		if k == nil {
			k = &recurring{}
			b.known[o.Key()] = k
		} else if !k.away.IsZero() {
			k.times++
			k.tries, k.next = 0, time.Time{}
		}
		k.last, k.away = now, time.Time{}
	}
	for key, k := range b.known {
		if now.Sub(k.last) > besideMemory {
			delete(b.known, key)
		}
	}
}

// heal has the surrounding do what it can about what is there, again when that did not help.
func (b *besides) heal(ctx context.Context, s Surrounding, found []drift.Oddity, now time.Time) {
	var due []drift.Oddity
	for _, o := range found {
		k := b.known[o.Key()]
		if o.Response == drift.Alert || now.Before(k.next) {
			continue
		}
		k.tries++
		k.next = now.Add(drift.Patience(k.tries))
		due = append(due, o)
	}
	if len(due) == 0 {
		return
	}
	how, err := s.Heal(ctx, due)
	if err != nil {
		b.r.log.Error("healing what is beside the instances", "finding", due[0].String(), "error", err)
		return
	}
	for _, o := range due {
		b.known[o.Key()].how = how
	}
}

// gone is how something was over that nobody here did anything about.
const gone = "it was found no more"

// end records what is over: by how that came.
func (b *besides) end(ctx context.Context, over []drift.Open, now time.Time) {
	by := map[string][]drift.Open{}
	for _, o := range over {
		how := gone
		if k := b.known[o.Finding.Key()]; k != nil {
			if k.away.IsZero() {
				k.away = now
			}
			if now.Sub(k.away) < drift.Away(k.times) {
				continue
			}
			if k.how != "" {
				how = k.how
			}
		}
		by[how] = append(by[how], o)
	}
	for how, list := range by {
		for some := range slices.Chunk(list, maxOdd) {
			if err := b.r.config.Alarm.Over(ctx, some, how); err != nil {
				b.r.log.Error("recording what is over beside the instances", "error", err)
				return
			}
		}
	}
}

var _ Surrounding = (*publisher)(nil)
