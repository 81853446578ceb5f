package gateway

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
)

// Decode reads a table from its JSON. It refuses unknown fields, trailing bytes and what Check refuses, with kind fault.Invalid.
func Decode(raw []byte) (Table, error) {
	var t Table
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&t); err != nil {
		return Table{}, fault.Errorf(fault.Invalid, "decoding a route table: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Table{}, fault.Errorf(fault.Invalid, "decoding a route table: bytes after its end")
	}
	if err := t.Check(); err != nil {
		return Table{}, err
	}
	return t.Canonical(), nil
}

// Canonical returns the table in the order that its fields promise.
func (t Table) Canonical() Table {
	t.Backends = sorted(t.Backends, func(a, b Backend) int { return cmp.Compare(a.ID, b.ID) })
	t.Services = sorted(t.Services, func(a, b Service) int { return cmp.Compare(a.Name, b.Name) })
	t.HTTP = sorted(t.HTTP, func(a, b Route) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(len(b.Path), len(a.Path)), cmp.Compare(a.Path, b.Path))
	})
	t.TCP = sorted(t.TCP, byAddress)
	t.Inside = slices.Clone(sorted(t.Inside, func(a, b Inside) int { return cmp.Compare(a.Instance, b.Instance) }))
	for i, in := range t.Inside {
		t.Inside[i].Uses = sorted(in.Uses, byAddress)
	}
	return t
}

func byAddress(a, b Listen) int { return cmp.Compare(a.Address, b.Address) }

// sorted returns the list in order, equals as they were; it may be the list itself, which is never changed. Places are sorted, not the
// elements: to move those is what costs most in a long list.
func sorted[T any](list []T, by func(a, b T) int) []T {
	if len(list) == 0 {
		return nil
	}
	if slices.IsSortedFunc(list, by) {
		return list
	}
	places := make([]int, len(list))
	for i := range places {
		places[i] = i
	}
	slices.SortFunc(places, func(i, j int) int { return cmp.Or(by(list[i], list[j]), cmp.Compare(i, j)) })
	out := make([]T, len(list))
	for to, from := range places {
		out[to] = list[from]
	}
	return out
}

// Check returns all that is wrong with the table, as one error of kind fault.Invalid.
func (t Table) Check() error {
	c := checker{backends: map[instance.ID]bool{}, services: map[ServiceName]bool{}}
	c.checkBackends(t.Backends)
	c.checkServices(t.Services)
	c.checkRoutes(t.HTTP)
	c.checkListens("the host", t.TCP)
	c.checkInside(t.Inside)
	if len(c.errs) == 0 {
		return nil
	}
	return fault.As(fault.Invalid, fmt.Errorf("route table: %w", joined(c.errs)))
}

type checker struct {
	errs     []error
	backends map[instance.ID]bool
	services map[ServiceName]bool
}

func (c *checker) refuse(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf(format, args...))
}

func (c *checker) checkBackends(list []Backend) {
	for _, b := range list {
		switch {
		case b.ID == "":
			c.refuse("a backend has no id")
		case b.Network == "":
			c.refuse("backend %q has no network", b.ID)
		case c.backends[b.ID]:
			c.refuse("backend %q is there twice", b.ID)
		}
		c.backends[b.ID] = true
	}
}

func (c *checker) checkServices(list []Service) {
	for _, s := range list {
		if s.Name == "" || c.services[s.Name] {
			c.refuse("service %q is there twice or has no name", s.Name)
		}
		c.services[s.Name] = true
		c.checkPools(s)
	}
}

func (c *checker) checkPools(s Service) {
	sum := 0
	for _, p := range s.Pools {
		if p.Weight < 0 {
			c.refuse("service %q: weight %d is negative", s.Name, p.Weight)
		}
		sum += p.Weight
		if port := p.port(s); port < 1 || port > 65535 {
			c.refuse("service %q: %d is not a port", s.Name, port)
		}
		for _, id := range p.Instances {
			if !c.backends[id] {
				c.refuse("service %q: instance %q is not among the backends", s.Name, id)
			}
		}
	}
	if len(s.Pools) > 0 && sum != 100 {
		c.refuse("service %q: the weights sum to %d, not 100", s.Name, sum)
	}
}

func (p Pool) port(s Service) int { return cmp.Or(p.Port, s.Port) }

func (c *checker) checkRoutes(list []Route) {
	seen := map[string]bool{}
	for _, r := range list {
		if r.Host == "" || r.Host != CleanHost(r.Host) {
			c.refuse("route %q: host %q is not a lower-case name without port", r.Name, r.Host)
		}
		if r.Path != cleanPath(r.Path) {
			c.refuse("route %q: path %q is not %q", r.Name, r.Path, cleanPath(r.Path))
		}
		if r.TLS != "" && r.TLS != "internal" && r.TLS != "acme" {
			c.refuse("route %q: tls %q is not known: want none, internal or acme", r.Name, r.TLS)
		}
		if !c.services[r.Service] {
			c.refuse("route %q: service %q does not exist", r.Name, r.Service)
		}
		if seen[r.Host+r.Path] {
			c.refuse("route %q: %s%s is there twice", r.Name, r.Host, r.Path)
		}
		seen[r.Host+r.Path] = true
	}
}

func (c *checker) checkListens(where string, list []Listen) {
	seen := map[string]bool{}
	for _, l := range list {
		if !isAddress(l.Address) {
			c.refuse("listener on %s: %q is not an address with a port", where, l.Address)
		}
		if !c.services[l.Service] {
			c.refuse("listener %s on %s: service %q does not exist", l.Address, where, l.Service)
		}
		if seen[l.Address] {
			c.refuse("listener %s on %s is there twice", l.Address, where)
		}
		seen[l.Address] = true
	}
}

func (c *checker) checkInside(list []Inside) {
	seen := map[instance.ID]bool{}
	for _, in := range list {
		if in.Instance == "" || in.Network == "" || seen[in.Instance] {
			c.refuse("inside %q: no instance, no network, or there twice", in.Instance)
		}
		seen[in.Instance] = true
		c.checkListens("instance "+string(in.Instance), in.Uses)
		for _, l := range in.Uses {
			if !isLoopback(l.Address) {
				c.refuse("inside %q: %s is not a loopback address", in.Instance, l.Address)
			}
		}
		if in.Egress != nil {
			c.checkEgress(in)
		}
	}
}

func (c *checker) checkEgress(in Inside) {
	if !isLoopback(in.Egress.Address) {
		c.refuse("inside %q: egress %q is not a loopback address with a port", in.Instance, in.Egress.Address)
	}
	for _, a := range in.Egress.Allow {
		if _, err := ParseAllow(a); err != nil {
			c.refuse("inside %q: egress: %w", in.Instance, err)
		}
	}
}

// isAddress tells whether s is an IP address, or nothing, with a port.
func isAddress(s string) bool {
	if port, ok := strings.CutPrefix(s, ":"); ok {
		n, err := strconv.ParseUint(port, 10, 16)
		return err == nil && n > 0
	}
	a, err := netip.ParseAddrPort(s)
	return err == nil && a.Port() > 0
}

func isLoopback(s string) bool {
	a, err := netip.ParseAddrPort(s)
	return err == nil && a.Addr().Is4() && a.Addr().IsLoopback() && a.Port() > 0
}

// maxListed is how many problems an error lists before it only counts them.
const maxListed = 20

func joined(errs []error) error {
	if more := len(errs) - maxListed; more > 0 {
		errs = append(slices.Clip(errs[:maxListed]), fmt.Errorf("and %d more", more))
	}
	return errors.Join(errs...)
}
