package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/spec"
)

// How often the gateway is asked for its status: while instances drain, and else, in case it lost its table.
const (
	drainEvery = 50 * time.Millisecond
	checkEvery = time.Second
	checkSoon  = 20 * time.Millisecond // after a table came into force, which is most often this server's own
)

// publisher keeps the one route table of the server. Environments set their parts, each a table of its own; whatever parts came
// while a table was on its way go into the next one together.
type publisher struct {
	traffic Traffic
	log     *slog.Logger
	dirty   chan struct{}
	drain   chan struct{}

	mu       sync.Mutex
	parts    map[spec.EnvName]gateway.Table
	expected map[spec.EnvName]bool // have not set a part yet; no table goes out before, since it would lack theirs
	set      uint64                // parts set
	inForce  uint64                // of these, how many are in the table in force
	forced   chan struct{}         // closed when inForce grows
	active   map[instance.ID]int64 // the last known; nil: not known
	activeAt uint64                // inForce before active was asked for
	draining map[spec.EnvName]func()

	foreign *foreign      // the table in force, when it is nobody's here; nil: it is ours
	noticed chan struct{} // filled when foreign becomes set, or nil

	serial uint64        // run's: of the last table
	ours   digest.Digest // run's: of the one in force, as far as this server knows; "": none
}

// foreign is a table in force that this server did not put there.
type foreign struct {
	want, got string // for people
	digest    digest.Digest
	entered   bool // the ledger has it: it may be replaced
}

func newPublisher(traffic Traffic, log *slog.Logger) *publisher {
	return &publisher{
		traffic: traffic, log: log, dirty: make(chan struct{}, 1), drain: make(chan struct{}, 1),
		parts: map[spec.EnvName]gateway.Table{}, expected: map[spec.EnvName]bool{}, forced: make(chan struct{}),
		noticed: make(chan struct{}, 1), draining: map[spec.EnvName]func(){},
	}
}

// expect holds the first table back until the environment has set its part.
func (p *publisher) expect(name spec.EnvName) { p.expected[name] = true }

// put sets an environment's part, and returns what to wait for until it is in force. A part that no gateway would take
// leaves the one before it in force, so that it can't hold up the others.
func (p *publisher) put(part gateway.Env) uint64 {
	table := gateway.Build(gateway.Input{Envs: []gateway.Env{part}})
	err := table.Check()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.log.Error("leaving an environment's traffic as it is", "env", part.Name, "error", err)
	} else {
		p.parts[part.Name] = table
	}
	delete(p.expected, part.Name)
	p.set++
	signal(p.dirty)
	return p.set
}

// inForceSince reports whether the part of that number is in force, or one that was set after it.
func (p *publisher) inForceSince(number uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inForce >= number
}

// wait returns when the part of that number is in force.
func (p *publisher) wait(ctx context.Context, number uint64) error {
	for {
		p.mu.Lock()
		done, forced := p.inForce >= number, p.forced
		p.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-forced:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watchDrain has wake called after every status until the environment drains no more, which a nil wake says.
func (p *publisher) watchDrain(name spec.EnvName, wake func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, watched := p.draining[name]
	switch {
	case wake == nil:
		delete(p.draining, name)
	case !watched:
		p.draining[name] = wake
		signal(p.drain)
	}
}

// connections returns those under way, if they are known as of a time when the part of that number was in force; else nil.
func (p *publisher) connections(number uint64) map[instance.ID]int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.activeAt < number {
		return nil
	}
	return p.active
}

// run publishes until ctx ends.
func (p *publisher) run(ctx context.Context) {
	for !p.adopt(ctx) {
		if ctx.Err() != nil {
			return
		}
	}
	timer := time.NewTimer(checkEvery)
	defer timer.Stop()
	often := false // asking for the status, for something drains
	soon := false  // the same, for a table came into force
	changed := p.traffic.Changed()
	for ctx.Err() == nil {
		select {
		case <-p.dirty:
			// Joining is in proportion to all parts: leave two thirds of the time to those who make them.
			sleep(ctx, 2*p.publish(ctx))
		case <-p.drain:
			if !often {
				often = true
				timer.Reset(drainEvery)
			}
		case <-changed:
			if !soon {
				soon = true
				timer.Reset(checkSoon)
			}
		case <-timer.C:
			p.check(ctx)
			often, soon = p.drains(), false
			timer.Reset(every(often))
		case <-ctx.Done():
			return
		}
	}
}

func (p *publisher) drains() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.draining) > 0
}

// adopt learns the table that an earlier server put in force.
func (p *publisher) adopt(ctx context.Context) bool {
	var delay retry
	for ctx.Err() == nil {
		status, err := p.status(ctx)
		if err == nil {
			p.serial, p.ours = status.Serial, status.Digest
			return true
		}
		p.log.Warn("asking the gateway for its status", "error", err)
		sleep(ctx, delay.next())
	}
	return false
}

// publish puts the table of all parts into force, however long that takes, and returns how long joining the parts took. It leaves a
// foreign table alone until the ledger has it.
func (p *publisher) publish(ctx context.Context) (joining time.Duration) {
	var delay retry
	for ctx.Err() == nil {
		parts, number, complete := p.gather()
		over, may := p.replaces()
		if !complete || !may {
			return 0
		}
		began := time.Now()
		table := join(parts)
		joining = time.Since(began)
		table.Serial = p.next()
		sealed, err := table.Seal()
		if err == nil {
			err = p.traffic.Replace(ctx, sealed, over)
		}
		if err == nil || p.arrived(ctx, sealed.Digest) {
			p.serial, p.ours = table.Serial, sealed.Digest
			p.force(number)
			return joining
		}
		p.log.Warn("publishing the route table", "serial", table.Serial, "error", err)
		if delay.failures == renewAfter && over != p.ours {
			p.renew(ctx)
		}
		sleep(ctx, delay.next())
	}
	return 0
}

// renewAfter is how often a gateway may refuse to give up a foreign table until its process is replaced.
const renewAfter = 5

func (p *publisher) renew(ctx context.Context) {
	p.log.Warn("the gateway keeps a foreign route table: replacing its process")
	if err := p.traffic.Renew(ctx); err != nil {
		p.log.Error("replacing the gateway's process", "error", err)
	}
}

// next returns the serial of the next table. Somebody may have had the last number there is.
func (p *publisher) next() uint64 { return max(1, p.serial+1) }

// arrived reports whether a table whose delivery failed is in force all the same, and notices when a foreign one is.
func (p *publisher) arrived(ctx context.Context, sent digest.Digest) bool {
	status, err := p.status(ctx)
	if err != nil {
		return false
	}
	if status.Digest == sent {
		return true
	}
	p.compare(status)
	return false
}

// compare notices when the table in force is not the one that this server put there. A gateway that has none has lost it.
func (p *publisher) compare(status gateway.Status) {
	switch status.Digest {
	case p.ours:
		p.notice(nil)
	case "":
		p.ours = ""
		p.notice(nil)
		signal(p.dirty)
	default:
		p.notice(&foreign{digest: status.Digest, want: fmt.Sprintf("table %d, %s", p.serial, p.ours), got: foreignTable(status)})
	}
}

func foreignTable(s gateway.Status) string {
	by := s.SetBy
	if by == "" {
		by = "the gateway, when it started, from its file"
	}
	return fmt.Sprintf("table %d, %s, set by %s", s.Serial, s.Digest, by)
}

// notice keeps which foreign table is in force.
func (p *publisher) notice(f *foreign) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f == nil && p.foreign == nil || f != nil && p.foreign != nil && p.foreign.digest == f.digest {
		return
	}
	if f != nil && p.foreign != nil {
		f.entered, f.want = p.foreign.entered, p.foreign.want // one after the other: the same finding
	}
	if p.foreign = f; f != nil && f.entered {
		signal(p.dirty)
	}
	signal(p.noticed)
}

// replaces returns the table that the next one is to replace. It may not while that is a foreign one that the ledger does not have yet.
func (p *publisher) replaces() (over digest.Digest, may bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.foreign == nil {
		return p.ours, true
	}
	return p.foreign.digest, p.foreign.entered
}

// Kinds implements Surrounding.
func (p *publisher) Kinds() []drift.Kind { return []drift.Kind{drift.Table} }

// Look implements Surrounding: it tells what the last check found.
func (p *publisher) Look(context.Context) ([]drift.Oddity, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.foreign == nil {
		return nil, nil
	}
	fact := func(value string) drift.Facts {
		return drift.Of(drift.Fact{Kind: drift.Table, Field: "in force", Value: value})
	}
	return drift.Odd(drift.Restore, drift.Compare(fact(p.foreign.want), fact(p.foreign.got))), nil
}

// Heal implements Surrounding: the right table goes out again, over the foreign one.
func (p *publisher) Heal(context.Context, []drift.Oddity) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.foreign != nil {
		p.foreign.entered = true
		signal(p.dirty)
	}
	return "the right table was put in force again", nil
}

// statusWithin bounds how long a gateway may take to tell its status.
const statusWithin = 2 * time.Second

func (p *publisher) status(ctx context.Context) (gateway.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusWithin)
	defer cancel()
	return p.traffic.Status(ctx)
}

// gather returns the parts by environment, and the number of the last; not complete while an expected one is missing.
func (p *publisher) gather() ([]gateway.Table, uint64, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.expected) > 0 {
		return nil, 0, false
	}
	parts := make([]gateway.Table, 0, len(p.parts))
	for _, name := range slices.Sorted(maps.Keys(p.parts)) {
		parts = append(parts, p.parts[name])
	}
	return parts, p.set, true
}

// join makes one table of those of all environments. Of two routes with one host and path, or one address, the first
// environment's stays, as gateway.Build has it; names of services and instances are never shared.
func join(parts []gateway.Table) gateway.Table {
	all := roomy(parts)
	paths, addresses := make(map[[2]string]bool, cap(all.HTTP)), map[string]bool{}
	for _, t := range parts {
		all.Backends = append(all.Backends, t.Backends...)
		all.Services = append(all.Services, t.Services...)
		all.Inside = append(all.Inside, t.Inside...)
		for _, r := range t.HTTP {
			if key := [2]string{r.Host, r.Path}; !paths[key] {
				paths[key] = true
				all.HTTP = append(all.HTTP, r)
			}
		}
		for _, l := range t.TCP {
			if !addresses[l.Address] {
				addresses[l.Address] = true
				all.TCP = append(all.TCP, l)
			}
		}
	}
	return all.Canonical()
}

// roomy returns an empty table with room for all that the parts have.
func roomy(parts []gateway.Table) gateway.Table {
	var backends, services, inside, routes int
	for _, t := range parts {
		backends += len(t.Backends)
		services += len(t.Services)
		inside += len(t.Inside)
		routes += len(t.HTTP)
	}
	return gateway.Table{
		Backends: make([]gateway.Backend, 0, backends), Services: make([]gateway.Service, 0, services),
		Inside: make([]gateway.Inside, 0, inside), HTTP: make([]gateway.Route, 0, routes),
	}
}

func (p *publisher) force(number uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inForce = number
	close(p.forced)
	p.forced = make(chan struct{})
	if p.foreign != nil {
		p.foreign = nil
		signal(p.noticed)
	}
}

// check asks the gateway what is under way, and publishes again when the table in force is not the last one.
func (p *publisher) check(ctx context.Context) {
	p.mu.Lock()
	number := p.inForce
	p.mu.Unlock()
	status, err := p.status(ctx)
	if err != nil {
		p.log.Warn("asking the gateway for its status", "error", err)
		return
	}
	if number > 0 {
		p.compare(status)
	}
	p.mu.Lock()
	p.active, p.activeAt = status.Active, number
	if p.active == nil {
		p.active = map[instance.ID]int64{}
	}
	wakes := slices.Collect(maps.Values(p.draining))
	p.mu.Unlock()
	for _, wake := range wakes {
		wake()
	}
}

func every(often bool) time.Duration {
	if often {
		return drainEvery
	}
	return checkEvery
}
