package proxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
)

// view is a table made ready to be used by many goroutines at once. Nothing of it changes but counters.
type view struct {
	table    gateway.Sealed // the bytes are dropped: the file has them
	routes   gateway.Routes
	targets  []*service // of table.HTTP, by index
	services map[gateway.ServiceName]*service
	backends map[instance.ID]*backend
	replaced chan struct{} // closed when there is a newer view
}

type service struct {
	name  gateway.ServiceName
	pools []pool
	turn  *atomic.Uint64 // shared by all views, so that shares are kept across tables
}

type pool struct {
	weight  int
	members []member
	turn    *atomic.Uint64
}

type member struct {
	*backend
	to      netip.AddrPort
	address string // to, as text
}

// newView makes a view of the table. Backends that stay are taken over from old; one whose network can't be opened is left
// out, with the cause in failures.
func newView(t gateway.Sealed, old *view, s *sockets, failures map[string]string) *view {
	t.Bytes = nil
	v := &view{
		table: t, routes: gateway.NewRoutes(t.HTTP),
		services: make(map[gateway.ServiceName]*service, len(t.Services)),
		backends: make(map[instance.ID]*backend, len(t.Backends)),
		replaced: make(chan struct{}),
	}
	for _, b := range t.Backends {
		if kept := old.backends[b.ID]; kept != nil && kept.network == b.Network {
			v.backends[b.ID] = kept
			continue
		}
		made, err := newBackend(b.ID, b.Network, s)
		if err != nil {
			failures["backend "+string(b.ID)] = err.Error()
			continue
		}
		v.backends[b.ID] = made
	}
	for _, s := range t.Services {
		v.services[s.Name] = v.newService(s, old)
	}
	for _, r := range t.HTTP {
		v.targets = append(v.targets, v.services[r.Service])
	}
	return v
}

func (v *view) newService(s gateway.Service, old *view) *service {
	made := &service{name: s.Name, turn: new(atomic.Uint64)}
	if before := old.services[s.Name]; before != nil {
		made.turn = before.turn
	}
	for _, p := range s.Pools {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(cmp.Or(p.Port, s.Port)))
		ready := pool{weight: p.Weight, turn: new(atomic.Uint64)}
		for _, id := range p.Instances {
			if b := v.backends[id]; b != nil {
				ready.members = append(ready.members, member{b, to, to.String()})
			}
		}
		made.pools = append(made.pools, ready)
	}
	return made
}

// attempts remembers who was tried for one request or connection.
type attempts struct {
	tried [maxAttempts]*backend
	count int
}

// maxAttempts is how many instances one request is offered to.
const maxAttempts = 3

func (a *attempts) has(b *backend) bool {
	for _, t := range a.tried[:a.count] {
		if t == b {
			return true
		}
	}
	return false
}

func (a *attempts) add(b *backend) {
	if a.count < maxAttempts {
		a.tried[a.count] = b
		a.count++
	}
}

// pick chooses an instance that was not tried yet; nil when there is none. The weights choose the pool, load
// the instance in it; when a pool has none left, the others step in. Ejected instances come last.
func (s *service) pick(a *attempts, now time.Time) *member {
	if len(s.pools) == 0 {
		return nil
	}
	first := gateway.Spread(s.turn.Add(1)-1, len(s.pools), func(i int) int { return s.pools[i].weight })
	for _, until := range [...]int64{now.UnixNano(), -1} {
		for k := range s.pools {
			if m := s.pools[(first+k)%len(s.pools)].least(a, until); m != nil {
				return m
			}
		}
	}
	return nil
}

// least returns the least loaded member that was not tried, and, unless now is negative, is not ejected.
func (p *pool) least(a *attempts, now int64) *member {
	i := gateway.Least(p.turn.Add(1)-1, len(p.members), func(i int) int64 {
		b := p.members[i].backend
		if a.has(b) || now >= 0 && b.ejected.Load() > now {
			return -1
		}
		return b.active.Load()
	})
	if i < 0 {
		return nil
	}
	return &p.members[i]
}

// acquire picks an instance of the service as the newest table has it and counts the request on it; release it after use. It returns nil when
// there is no instance left to try.
func (p *Proxy) acquire(s *service, a *attempts) *member {
	for {
		m := s.pick(a, time.Now())
		if m == nil || m.hold() {
			return m
		}
		if s = p.view.Load().services[s.name]; s == nil { // the table was replaced meanwhile
			return nil
		}
	}
}

// errNoInstance says that a service has no instance that could be asked.
type errNoInstance struct{ service gateway.ServiceName }

func (e errNoInstance) Error() string { return fmt.Sprintf("no healthy instance of %s", e.service) }
