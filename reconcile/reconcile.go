// Package reconcile carries out what package deploy decides: rollouts, rollbacks and healing.
//
// One goroutine owns each environment. Its loop is level-triggered: a wake-up (the ledger or the host changed, a time has
// come) carries no data, and a turn reads all there is to know, decides, records, and acts:
//
//	read     Source: the fold of the environment's entries; the last listing of the host
//	decide   deploy.Next: pure
//	record   Recorder: every step of the turn in one append; refused when the environment moved on meanwhile
//	act      deploy.Traffic → route table; deploy.Acts → create and start, or stop and remove
//
// What there is to do follows from the recorded state and the host, never from a step in memory. So a crash after any
// line loses nothing: the first turn of the next process lists the host and goes on, and adopts what runs.
//
//	crash after record, before act   the entry stands without its act: the next turn acts
//	crash after act                  the host tells: the next turn observes
//	record fails after it wrote      the state has moved: the next turn reads it
//
// Three goroutines serve all environments: one lists the host when it says that it changed, one publishes route tables, and
// one hands wake-ups from the ledger to the environments that they concern. Acts on instances run
// beside the loops, at most Config.Parallel at a time, one at a time for an instance.
package reconcile

import (
	"context"
	"crypto/rand"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/spec"
)

// Source is what the ledger says of every environment. Calls may overlap. What Record wrote, it tells once Record returns.
type Source interface {
	// Environment returns one environment, false when there is none of that name.
	Environment(spec.EnvName) (deploy.Environment, bool)
	// Environments returns all of them. The caller does not change the map.
	Environments() map[spec.EnvName]deploy.Environment
	// Changed returns a channel that is closed at the first change after the call.
	Changed() <-chan struct{}
}

// Recorder writes steps to the ledger.
type Recorder interface {
	// Record makes all steps durable, or none. seen is the Seq of the environment that they were decided on: when it
	// is no longer that, the error is of kind fault.Conflict and nothing was written. After any other error they may or may not be
	// written.
	Record(ctx context.Context, env spec.EnvName, seen uint64, steps []deploy.Step) error
}

// Traffic is the gateway.
type Traffic interface {
	// Replace puts the table into force in place of the one that over names, and returns when it is. It fails with fault.Conflict when
	// another one is in force. Over is "" when none is.
	Replace(ctx context.Context, t gateway.Sealed, over digest.Digest) error
	// Renew replaces the gateway's process, which takes no table.
	Renew(ctx context.Context) error
	Status(ctx context.Context) (gateway.Status, error)
	// Changed returns a channel that has something after a table came into force, whoever put it there. It may be nil: then nobody tells.
	Changed() <-chan struct{}
}

// Config is what a Reconciler works on.
type Config struct {
	Source   Source
	Recorder Recorder
	Host     runtime.Host
	Traffic  Traffic
	// Secrets returns the value of the version of an environment's secret, which is overwritten once it is delivered. nil: components with secrets can't be started.
	Secrets Secrets
	// Keep makes evidence durable, and names it. nil: an instance that is to be frozen is replaced without evidence.
	Keep func(ctx context.Context, content []byte) (digest.Digest, error)
	// NewID names a new instance. nil: at random.
	NewID func(spec.ComponentName) instance.ID
	// InspectEvery is how often every running instance is compared with its release; 0: never.
	InspectEvery time.Duration
	// Touched returns a channel that is closed at the first sign after the call that something of an instance was touched, which is
	// inspected at once then. nil: there are no signs.
	Touched func() <-chan struct{}
	// Surroundings are looked at beside the instances and the route table.
	Surroundings []Surrounding
	// Alarm records what is odd beside the instances. nil: it is healed, and nobody is told but the log.
	Alarm Alarm
	// Parallel bounds the acts on instances at a time; 0: 8.
	Parallel int
	Log      *slog.Logger // nil: discarded
}

// Reconciler brings every environment to its head. Make one with New; it works while Run does.
type Reconciler struct {
	config    Config
	log       *slog.Logger
	slots     chan struct{} // one for each act under way
	copySlots chan struct{} // one for each copy of a volume
	observer  *observer
	gateway   *publisher
	orphans   *orphans

	mu     sync.Mutex
	owners map[spec.EnvName]*owner
	wg     sync.WaitGroup
}

// New returns a reconciler that does nothing yet.
func New(config Config) *Reconciler {
	if config.Parallel <= 0 {
		config.Parallel = 8
	}
	if config.NewID == nil {
		config.NewID = randomID
	}
	log := config.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &Reconciler{
		config: config, log: log, slots: make(chan struct{}, config.Parallel), copySlots: make(chan struct{}, maxCopies),
		gateway: newPublisher(config.Traffic, log), owners: map[spec.EnvName]*owner{},
	}
	r.observer = newObserver(config.Host, log)
	r.orphans = &orphans{r: r, seen: map[instance.ID]*orphan{}}
	return r
}

func randomID(c spec.ComponentName) instance.ID {
	return instance.ID(string(c) + "-" + strings.ToLower(rand.Text()[:10]))
}

// Run works until ctx ends, and returns when all that it started has ended. Instances run on.
func (r *Reconciler) Run(ctx context.Context) error {
	defer r.wg.Wait()
	envs := r.config.Source.Environments()
	for name := range envs {
		r.gateway.expect(name)
	}
	r.wg.Go(func() { r.observer.run(ctx, func(name spec.EnvName) { r.owner(ctx, name).poke() }) })
	select {
	case <-r.observer.listed:
	case <-ctx.Done():
		return ctx.Err()
	}
	r.wg.Go(func() { r.gateway.run(ctx) })
	r.wg.Go(func() { r.watchBesides(ctx) })
	if r.config.InspectEvery > 0 {
		r.wg.Go(func() { r.inspectAll(ctx) })
	}
	for {
		changed := r.config.Source.Changed()
		for name, e := range r.config.Source.Environments() {
			if o := r.owner(ctx, name); o.seq.Load() != e.Seq {
				o.poke()
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// owner returns the environment's owner, and starts it when it is new.
func (r *Reconciler) owner(ctx context.Context, name spec.EnvName) *owner {
	r.mu.Lock()
	defer r.mu.Unlock()
	o, ok := r.owners[name]
	if !ok {
		o = newOwner(r, name)
		r.owners[name] = o
		r.wg.Go(func() { o.run(ctx) })
	}
	return o
}
