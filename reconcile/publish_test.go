package reconcile

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/spec"
)

// parts returns what n environments of 20 instances have for the table.
func parts(n int) (envs []gateway.Env, tables []gateway.Table) {
	for e := range n {
		env := gateway.Env{
			Name:     spec.EnvName(fmt.Sprintf("env-%04d", e)),
			Versions: []gateway.Version{{Component: "web", Digest: digest.Of(nil), Weight: 100, Ports: []gateway.Port{{Name: "http", Number: 80}}}},
			Routes:   []gateway.Door{{Name: "web", Host: fmt.Sprintf("env-%d.localhost", e/2), Path: "/", To: spec.PortRef{Component: "web", Port: "http"}}},
		}
		for i := range 20 {
			id := instance.ID(fmt.Sprintf("web-%05d", (e*20+i)*7919%100_000))
			env.Instances = append(env.Instances, gateway.Instance{
				ID: id, Component: "web", Digest: digest.Of(nil), Network: "/n/" + string(id), Eligible: true,
				Uses: []gateway.Use{{Component: "db", Port: "sql", Number: 5432}},
			})
		}
		envs = append(envs, env)
		tables = append(tables, gateway.Build(gateway.Input{Envs: []gateway.Env{env}}))
	}
	return envs, tables
}

// The parts of all environments together are the table that the gateway's rules make of all at once, contested routes included.
func TestJoinedPartsAreTheWholeTable(t *testing.T) {
	envs, tables := parts(10)
	if d := cmp.Diff(gateway.Build(gateway.Input{Envs: envs}), join(tables)); d != "" {
		t.Errorf("(-whole +joined):\n%s", d)
	}
}

func BenchmarkJoin(b *testing.B) {
	_, tables := parts(500)
	for b.Loop() {
		join(tables)
	}
}
