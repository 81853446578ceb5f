package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/spec"
)

var (
	v1 = digest.Of([]byte("1"))
	v2 = digest.Of([]byte("2"))
)

func web(name spec.EnvName) Env {
	ports := []Port{{"http", 8080}}
	return Env{
		Name: name,
		Versions: []Version{
			{Component: "web", Digest: v1, Weight: 90, Ports: ports},
			{Component: "web", Digest: v2, Weight: 10, Ports: []Port{{"http", 9090}}},
			{Component: "db", Digest: v1, Weight: 100, Ports: []Port{{"sql", 5432}}},
		},
		Routes: []Door{{Name: "shop", Host: "shop.localhost", To: spec.PortRef{Component: "web", Port: "http"}}},
		Instances: []Instance{
			{ID: "web-b", Component: "web", Digest: v1, Network: "/n/b", Eligible: true,
				Uses: []Use{{"db", "sql", 5432}}, Egress: []string{"api.example.com:443"}},
			{ID: "web-c", Component: "web", Digest: v2, Network: "/n/c", Eligible: true},
			{ID: "web-d", Component: "web", Digest: v2, Network: "/n/d"},
			{ID: "db-a", Component: "db", Digest: v1, Network: "/n/a", Eligible: true},
		},
	}
}

func TestBuildTakesTheTableFromHeadsAndEligibleInstances(t *testing.T) {
	got := Build(Input{Envs: []Env{web("prod")}})
	want := Table{
		Backends: []Backend{{"db-a", "/n/a"}, {"web-b", "/n/b"}, {"web-c", "/n/c"}},
		Services: []Service{
			{Name: "prod/db/sql", Pools: []Pool{{100, 5432, []instance.ID{"db-a"}}}},
			{Name: "prod/web/http", Pools: []Pool{
				{90, 8080, []instance.ID{"web-b"}},
				{10, 9090, []instance.ID{"web-c"}},
			}},
		},
		HTTP: []Route{{Env: "prod", Name: "shop", Host: "shop.localhost", Path: "/", Service: "prod/web/http"}},
		Inside: []Inside{{
			Instance: "web-b", Network: "/n/b",
			Uses:   []Listen{{"127.77.0.2:5432", "prod/db/sql"}},
			Egress: &Egress{EgressAddress, []string{"api.example.com:443"}},
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	if err := got.Check(); err != nil {
		t.Error(err)
	}
}

func TestWeightOfAVersionWithoutHealthyInstanceMovesToTheOthers(t *testing.T) {
	env := web("prod")
	env.Instances[1].Eligible = false
	got := Build(Input{Envs: []Env{env}}).Services[1].Pools
	if diff := cmp.Diff([]Pool{{100, 8080, []instance.ID{"web-b"}}}, got); diff != "" {
		t.Errorf("pools (-want +got):\n%s", diff)
	}
}

func TestVersionWithoutWeightGetsNothing(t *testing.T) {
	env := web("prod")
	env.Versions[0].Weight, env.Versions[1].Weight = 0, 100
	env.Instances[1].Eligible = false
	if got := Build(Input{Envs: []Env{env}}).Services[1].Pools; got != nil {
		t.Errorf("pools are %v, want none", got)
	}
}

func TestPortThatNoVersionHasIsAServiceWithoutInstance(t *testing.T) {
	env := web("prod")
	env.Routes[0].To.Port = "admin"
	got := Build(Input{Envs: []Env{env}})
	if err := got.Check(); err != nil {
		t.Error(err)
	}
	if s := got.Services[1]; s.Name != "prod/web/admin" || len(s.Pools) != 0 {
		t.Errorf("service is %+v, want prod/web/admin without pools", s)
	}
}

func TestFirstEnvironmentKeepsAContestedRoute(t *testing.T) {
	in := Input{Envs: []Env{web("prod"), web("staging")}}
	in.Envs[1].Routes = append(in.Envs[1].Routes, Door{Name: "sql", TCP: "127.0.0.1:5432", To: spec.PortRef{Component: "db", Port: "sql"}})
	table := Build(in)
	if len(table.HTTP) != 1 || table.HTTP[0].Env != "prod" || len(table.TCP) != 1 {
		t.Errorf("routes are %v and %v, want prod's and staging's TCP route", table.HTTP, table.TCP)
	}
	err := Conflicts(in)
	want := `route "shop" of environment "staging": shop.localhost/ already belongs to route "shop" of environment "prod"`
	if !errors.Is(err, fault.Conflict) || err.Error() != want {
		t.Errorf("conflict is %v, want %s", err, want)
	}
	if err := Conflicts(Input{Envs: in.Envs[:1]}); err != nil {
		t.Errorf("one environment conflicts: %v", err)
	}
}

func TestUseAddressesDependOnTheNamesOnly(t *testing.T) {
	got := UseAddresses([]Use{{"db", "sql", 5432}, {"cache", "redis", 6379}, {"db", "admin", 1}})
	want := map[spec.ComponentName]string{"cache": "127.77.0.2", "db": "127.77.0.3"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	var many []Use
	for i := range 700 {
		many = append(many, Use{Component: spec.ComponentName(fmt.Sprintf("c%03d", i))})
	}
	if got := UseAddresses(many)["c699"]; got != "127.77.2.201" {
		t.Errorf("the 700th address is %s", got)
	}
}

// anyInput draws environments with colliding routes, missing ports, versions without instances and the like.
func anyInput(t *rapid.T) Input {
	var in Input
	for e := range rapid.IntRange(0, 3).Draw(t, "envs") {
		env := Env{Name: spec.EnvName(fmt.Sprintf("e%d", e))}
		for c := range rapid.IntRange(0, 3).Draw(t, "components") {
			name := spec.ComponentName(fmt.Sprintf("c%d", c))
			for v := range rapid.IntRange(1, 4).Draw(t, "versions") {
				d := digest.Of(fmt.Append(nil, c, v))
				env.Versions = append(env.Versions, Version{name, d, rapid.IntRange(0, 100).Draw(t, "weight"), []Port{{"p", 1000 + v}}[:rapid.IntRange(0, 1).Draw(t, "ports")]})
				for i := range rapid.IntRange(0, 3).Draw(t, "instances") {
					env.Instances = append(env.Instances, Instance{
						ID: instance.ID(fmt.Sprintf("%d-%d-%d-%d", e, c, v, i)), Component: name, Digest: d,
						Network:  rapid.SampledFrom([]string{"", "/n"}).Draw(t, "network"),
						Eligible: rapid.Bool().Draw(t, "eligible"),
						Uses:     []Use{{"c0", "p", 1}, {"c1", "p", 1}, {"c0", "p", 1}}[:rapid.IntRange(0, 3).Draw(t, "uses")],
						Egress:   []string{"*.example.com:443"}[:rapid.IntRange(0, 1).Draw(t, "egress")],
					})
				}
			}
			env.Routes = append(env.Routes, Door{
				Name: spec.RouteName(name), Host: rapid.SampledFrom([]string{"a.localhost", "B.localhost"}).Draw(t, "host"),
				Path: rapid.SampledFrom([]string{"", "/", "/api/", "/api/v1"}).Draw(t, "path"), To: spec.PortRef{Component: name, Port: "p"},
			})
		}
		in.Envs = append(in.Envs, env)
	}
	return in
}

func TestPropertyTablesAreSoundAndSendTrafficToEligibleInstancesOnly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := anyInput(t)
		eligible := map[instance.ID]bool{}
		weighted := map[ServiceName]bool{}
		for _, env := range in.Envs {
			for _, i := range env.Instances {
				eligible[i.ID] = i.Eligible && i.Network != ""
				for _, v := range env.Versions {
					if eligible[i.ID] && v.Component == i.Component && v.Digest == i.Digest && v.Weight > 0 && len(v.Ports) > 0 {
						weighted[NameService(env.Name, spec.PortRef{Component: v.Component, Port: "p"})] = true
					}
				}
			}
		}
		table := Build(in)
		if err := table.Check(); err != nil {
			t.Fatal(err)
		}
		for _, s := range table.Services {
			if got, want := len(s.Pools) > 0, weighted[s.Name]; got != want {
				t.Fatalf("service %s has pools: %v, want %v", s.Name, got, want)
			}
			for _, p := range s.Pools {
				if len(p.Instances) == 0 {
					t.Fatalf("service %s has an empty pool", s.Name)
				}
				if i := slices.IndexFunc(p.Instances, func(id instance.ID) bool { return !eligible[id] }); i >= 0 {
					t.Fatalf("service %s goes to %s, which is not eligible", s.Name, p.Instances[i])
				}
			}
		}
		again := Build(in)
		if diff := cmp.Diff(table, again); diff != "" {
			t.Fatalf("two tables of one input differ:\n%s", diff)
		}
		raw, err := json.Marshal(table)
		if err != nil {
			t.Fatal(err)
		}
		decoded, err := Decode(raw)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(table, decoded); diff != "" {
			t.Fatalf("decoding changed the table:\n%s", diff)
		}
	})
}
