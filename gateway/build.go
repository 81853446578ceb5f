package gateway

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/spec"
)

// EgressAddress is where an instance with egress finds its forward proxy, inside its own network.
const EgressAddress = "127.77.255.254:3128"

// Input is what a table follows from.
type Input struct {
	Envs []Env // in order of precedence: of two routes with one host and path, the first environment keeps it
}

// Env is an environment: what of it runs and how traffic gets to it.
type Env struct {
	Name      spec.EnvName
	Versions  []Version  // of every component, also those whose weight is 0
	Routes    []Door     // of the head
	Instances []Instance // all that exist on the host, also those that wait to be started
}

// Version is one of the versions of a component that exist beside each other.
type Version struct {
	Component spec.ComponentName
	Digest    digest.Digest
	Weight    int // percent of the component's traffic; 0: none, not even when no other version has a healthy instance
	Ports     []Port
}

// Port is a named port of a component.
type Port struct {
	Name   spec.PortName
	Number int
}

// Door is a route as a release has it: either Host and Path, or TCP.
type Door struct {
	Name spec.RouteName
	Host string
	Path string
	TLS  string
	TCP  string
	To   spec.PortRef
}

// Instance is an instance on the host.
type Instance struct {
	ID        instance.ID
	Component spec.ComponentName
	Digest    digest.Digest // of the component
	Network   string        // path of its network namespace; "": it can't be reached
	Eligible  bool          // it may have traffic: running, passing, not retiring
	Uses      []Use
	Egress    []string // "host:port" or "*.host:port"; none: no forward proxy
}

// Use is a port of another component that an instance may open, with the number that it dials.
type Use struct {
	Component spec.ComponentName
	Port      spec.PortName
	Number    int
}

// UseAddresses returns the loopback address that stands for each used component inside an instance, for its hosts
// file. It depends on nothing but the names, so every instance of one component digest has the same.
func UseAddresses(uses []Use) map[spec.ComponentName]string {
	names := map[spec.ComponentName]string{}
	for _, u := range uses {
		names[u.Component] = ""
	}
	for i, name := range slices.Sorted(maps.Keys(names)) {
		names[name] = fmt.Sprintf("127.77.%d.%d", i/250, 2+i%250)
	}
	return names
}

// Listeners returns the addresses where the gateway listens inside an instance.
func Listeners(uses []Use, egress bool) []string {
	var out []string
	addresses := UseAddresses(uses)
	for _, u := range uses {
		out = append(out, fmt.Sprintf("%s:%d", addresses[u.Component], u.Number))
	}
	if egress {
		out = append(out, EgressAddress)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// NameService names a port of a component in an environment.
func NameService(env spec.EnvName, to spec.PortRef) ServiceName {
	return ServiceName(string(env) + "/" + string(to.Component) + "/" + string(to.Port))
}

// Build returns the table that the input implies, in canonical order. Its pools hold eligible instances only; the weights of a
// service sum to 100 whenever it has any pool; a version without an eligible instance leaves its weight to the
// others in proportion. Routes that conflict with one of an earlier environment are left out: Conflicts names them.
func Build(in Input) Table {
	b := builder{services: map[ServiceName]Service{}, backends: map[instance.ID]Backend{}}
	for _, env := range in.Envs {
		b.addServices(env)
		b.addInside(env)
	}
	taken := claims{}
	for _, env := range in.Envs {
		for _, door := range env.Routes {
			if taken.claim(env.Name, door) == nil {
				b.addDoor(env.Name, door)
			}
		}
	}
	b.table.Services = slices.Collect(maps.Values(b.services))
	b.table.Backends = slices.Collect(maps.Values(b.backends))
	return b.table.Canonical()
}

// Conflicts returns an error of kind fault.Conflict that names every route that Build leaves out, and nil when it leaves out none.
func Conflicts(in Input) error {
	var errs []error
	taken := claims{}
	for _, env := range in.Envs {
		for _, door := range env.Routes {
			if err := taken.claim(env.Name, door); err != nil {
				errs = append(errs, err)
			}
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return fault.WithHint(fault.As(fault.Conflict, joined(errs)), "give one of the two routes another host, path or address")
}

type builder struct {
	table    Table
	services map[ServiceName]Service
	backends map[instance.ID]Backend
}

// addServices makes a service of every port of every component, and of every port that a route or a use names, so that
// what is asked for and does not exist is known to have no instance.
func (b *builder) addServices(env Env) {
	for _, v := range env.Versions {
		for _, p := range v.Ports {
			b.addService(env, spec.PortRef{Component: v.Component, Port: p.Name})
		}
	}
	for _, d := range env.Routes {
		b.addService(env, d.To)
	}
	for _, i := range env.Instances {
		for _, u := range i.Uses {
			b.addService(env, spec.PortRef{Component: u.Component, Port: u.Port})
		}
	}
}

func (b *builder) addService(env Env, to spec.PortRef) {
	name := NameService(env.Name, to)
	if _, ok := b.services[name]; ok {
		return
	}
	s := Service{Name: name}
	for _, v := range env.Versions {
		number := v.number(to)
		if number == 0 || v.Weight <= 0 {
			continue
		}
		members := eligible(env, v)
		if len(members) == 0 {
			continue
		}
		s.Pools = append(s.Pools, Pool{Weight: v.Weight, Port: number})
		for _, m := range members {
			b.backends[m.ID] = Backend{ID: m.ID, Network: m.Network}
			s.Pools[len(s.Pools)-1].Instances = append(s.Pools[len(s.Pools)-1].Instances, m.ID)
		}
	}
	s.Pools = scale(s.Pools)
	b.services[name] = s
}

// number returns the number of the version's port, 0 when it does not have it.
func (v Version) number(to spec.PortRef) int {
	if v.Component != to.Component {
		return 0
	}
	for _, p := range v.Ports {
		if p.Name == to.Port {
			return p.Number
		}
	}
	return 0
}

func eligible(env Env, v Version) []Instance {
	var out []Instance
	for _, i := range env.Instances {
		if i.Eligible && i.Network != "" && i.Component == v.Component && i.Digest == v.Digest {
			out = append(out, i)
		}
	}
	return out
}

// scale makes the weights sum to 100 in proportion, by largest remainder; the earlier of two equal remainders gets more.
// A pool whose share rounds to nothing is left out.
func scale(pools []Pool) []Pool {
	sum := 0
	for _, p := range pools {
		sum += p.Weight
	}
	if sum == 0 {
		return nil
	}
	order := make([]int, len(pools))
	rest := make([]int, len(pools))
	left := 100
	for i, p := range pools {
		order[i] = i
		rest[i] = p.Weight * 100 % sum
		pools[i].Weight = p.Weight * 100 / sum
		left -= pools[i].Weight
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(rest[b], rest[a]) })
	for _, i := range order[:left] {
		pools[i].Weight++
	}
	return slices.DeleteFunc(pools, func(p Pool) bool { return p.Weight == 0 })
}

// addInside opens what every reachable instance uses, started or not: sockets can be there before its first instruction.
func (b *builder) addInside(env Env) {
	for _, i := range env.Instances {
		if i.Network == "" || len(i.Uses) == 0 && len(i.Egress) == 0 {
			continue
		}
		in := Inside{Instance: i.ID, Network: i.Network}
		addresses := UseAddresses(i.Uses)
		for _, u := range i.Uses {
			in.Uses = append(in.Uses, Listen{
				Address: fmt.Sprintf("%s:%d", addresses[u.Component], u.Number),
				Service: NameService(env.Name, spec.PortRef{Component: u.Component, Port: u.Port}),
			})
		}
		in.Uses = slices.CompactFunc(sorted(in.Uses, byAddress), func(a, b Listen) bool { return a.Address == b.Address })
		if len(i.Egress) > 0 {
			in.Egress = &Egress{Address: EgressAddress, Allow: i.Egress}
		}
		b.table.Inside = append(b.table.Inside, in)
	}
}

func (b *builder) addDoor(env spec.EnvName, d Door) {
	service := NameService(env, d.To)
	if d.TCP != "" {
		b.table.TCP = append(b.table.TCP, Listen{Address: d.TCP, Service: service})
		return
	}
	b.table.HTTP = append(b.table.HTTP, Route{
		Env: env, Name: d.Name, Host: CleanHost(d.Host), Path: cleanPath(d.Path), TLS: d.TLS, Service: service,
	})
}

// claims remembers who has which host and path, or address.
type claims map[string]string

func (c claims) claim(env spec.EnvName, d Door) error {
	key := CleanHost(d.Host) + cleanPath(d.Path)
	if d.TCP != "" {
		key = "tcp " + d.TCP
	}
	who := fmt.Sprintf("route %q of environment %q", d.Name, env)
	if other, ok := c[key]; ok {
		return fmt.Errorf("%s: %s already belongs to %s", who, key, other)
	}
	c[key] = who
	return nil
}
