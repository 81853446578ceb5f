// Package gateway holds the route table: where traffic goes, as the heads of environments and the
// healthy instances imply it. It decides; gateway/proxy carries the traffic.
//
// A table is whole and self-contained: the proxy needs nothing else, and the last one that it got
// stays in force. Tables are values; a new one replaces the old in one step.
package gateway

import (
	"encoding/json"
	"fmt"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/spec"
)

// Table is all that the proxy does.
type Table struct {
	Serial   uint64    `json:"serial,omitempty"`   // grows with every table; 0: the proxy gives it the next
	Backends []Backend `json:"backends,omitempty"` // sorted by ID
	Services []Service `json:"services,omitempty"` // sorted by Name
	HTTP     []Route   `json:"http,omitempty"`     // sorted by Host, then longest Path first
	TCP      []Listen  `json:"tcp,omitempty"`      // listeners on the host, sorted by Address
	Inside   []Inside  `json:"inside,omitempty"`   // sockets inside instances, sorted by Instance
}

// Sealed is a table with its bytes as they are sent, and the digest of these. Table, bytes and digest are never changed.
type Sealed struct {
	Table
	Bytes  []byte
	Digest digest.Digest
}

// Seal makes the table's bytes, once: equal tables have equal bytes.
func (t Table) Seal() (Sealed, error) {
	b, err := json.Marshal(t)
	if err != nil {
		return Sealed{}, fmt.Errorf("encoding a route table: %w", err)
	}
	return Sealed{t, b, digest.Of(b)}, nil
}

// Backend is an instance that can be dialled.
type Backend struct {
	ID      instance.ID `json:"id"`
	Network string      `json:"network"` // path of its network namespace
}

// ServiceName names a port of a component in an environment: "env/component/port".
type ServiceName string

// Service is where connections to a port of a component go.
type Service struct {
	Name  ServiceName `json:"name"`
	Port  int         `json:"port,omitempty"` // inside the instances, unless a pool says otherwise
	Pools []Pool      `json:"pools"`          // by weight; none, or all empty: no healthy instance
}

// Pool is a set of interchangeable instances that takes a share of the traffic.
type Pool struct {
	Weight    int           `json:"weight"`         // percent; those of a service sum to 100
	Port      int           `json:"port,omitempty"` // when it is not the service's: versions may differ
	Instances []instance.ID `json:"instances"`
}

// Route is an HTTP route.
type Route struct {
	Env     spec.EnvName   `json:"env"`
	Name    spec.RouteName `json:"name"`
	Host    string         `json:"host"`          // lower case, without port
	Path    string         `json:"path"`          // prefix of whole segments, "/" for all
	TLS     string         `json:"tls,omitempty"` // "", "internal" or "acme"
	Service ServiceName    `json:"service"`
}

// Listen is a TCP listener.
type Listen struct {
	Address string      `json:"address"` // "127.0.0.1:5432"
	Service ServiceName `json:"service"`
}

// Inside is what listens inside an instance's network.
type Inside struct {
	Instance instance.ID `json:"instance"`
	Network  string      `json:"network"`          // path of its network namespace
	Uses     []Listen    `json:"uses,omitempty"`   // on addresses of 127.77.0.0/16
	Egress   *Egress     `json:"egress,omitempty"` // nil: none
}

// Egress is a logging forward proxy (HTTP CONNECT and absolute-form GET) inside the instance's network.
type Egress struct {
	Address string   `json:"address"` // "127.77.255.254:3128"
	Allow   []string `json:"allow"`   // "host:port" or "*.host:port"
}

// Status is what the proxy tells about itself.
type Status struct {
	PID      int                   `json:"pid"`
	Version  string                `json:"version"`
	Serial   uint64                `json:"serial"`           // of the table in force
	Digest   digest.Digest         `json:"digest,omitempty"` // of that table's bytes as they came; "": there was none yet
	SetBy    string                `json:"set_by,omitempty"` // who put that table in force, as the kernel told it then; "": an earlier process
	HTTP     string                `json:"http"`             // address of the HTTP listener
	HTTPS    string                `json:"https,omitempty"`
	Active   map[instance.ID]int64 `json:"active"`             // requests and connections under way
	Failures map[string]string     `json:"failures,omitempty"` // what of the table could not be done: "tcp/ADDRESS", "route NAME of ENV" … to cause
	Root     string                `json:"root,omitempty"`     // path of the internal authority's root certificate
	Draining bool                  `json:"draining,omitempty"` // it has handed over and ends when its last connection does
}
