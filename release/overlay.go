package release

import (
	"slices"

	"github.com/invarhq/invar/spec"
)

// Overlay is what an environment has of its own while it runs a release that was evaluated for another: a fork. The release and
// its digest, its components and theirs, stay what they are.
//
// A route of HTTP gets the host ROUTE.ENV.DOMAIN, and where it has TLS a certificate of the server's own authority. A route of TCP
// is left out: its address is the other environment's. A secret has the version that the overlay gives it, and no other. Nobody uses a
// fork yet, so its rollouts shift traffic at once, and wait for health but not for its lasting.
type Overlay struct {
	Env     spec.EnvName `json:"env"`
	Domain  string       `json:"domain"`
	Secrets Pins         `json:"secrets,omitempty"`
}

// Over returns the release as the environment has it. Over of what it returns is the same again.
func (o Overlay) Over(r Record) Record {
	r.Env = o.Env
	routes := make([]Route, 0, len(r.Routes))
	for _, route := range r.Routes {
		if route.TCP != "" {
			continue
		}
		route.Host = o.Host(route.Name)
		if route.TLS != "" {
			route.TLS = "internal"
		}
		routes = append(routes, route)
	}
	r.Routes = routes
	r.Rollout.Canary, r.Rollout.MinHealthyMillis = nil, 0
	return r
}

// Host is the host of a route in the environment.
func (o Overlay) Host(route spec.RouteName) string {
	return string(route) + "." + string(o.Env) + "." + o.Domain
}

// Component returns what an instance of the component is made from: with the overlay's secrets. One that the overlay lacks has no
// version, and can't be delivered.
func (o Overlay) Component(c Component) Component {
	c.Secrets = slices.Clone(c.Secrets)
	for i, s := range c.Secrets {
		c.Secrets[i].Version = o.Secrets[s.Name]
	}
	return c
}
