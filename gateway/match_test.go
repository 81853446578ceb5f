package gateway

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
)

func TestMatchTakesTheLongestPrefixOfWholeSegments(t *testing.T) {
	table := Table{HTTP: []Route{
		{Host: "a.localhost", Path: "/"}, {Host: "a.localhost", Path: "/api"}, {Host: "a.localhost", Path: "/api/v1"},
		{Host: "b.localhost", Path: "/only"},
	}}.Canonical()
	routes := NewRoutes(table.HTTP)
	for _, c := range []struct{ host, path, want string }{
		{"a.localhost", "/", "a.localhost/"},
		{"a.localhost", "", "a.localhost/"},
		{"a.localhost", "/apis", "a.localhost/"},
		{"a.localhost", "/api", "a.localhost/api"},
		{"a.localhost", "/api/", "a.localhost/api"},
		{"a.localhost", "/api/v1/x", "a.localhost/api/v1"},
		{"a.localhost", "/api/v10", "a.localhost/api"},
		{"A.localhost.:8080", "/api", "a.localhost/api"},
		{"b.localhost", "/", ""},
		{"b.localhost", "/only/this", "b.localhost/only"},
		{"localhost", "/", ""},
		{"", "/", ""},
	} {
		got := ""
		if i := routes.Match(CleanHost(c.host), c.path); i >= 0 {
			got = table.HTTP[i].Host + table.HTTP[i].Path
		}
		if got != c.want {
			t.Errorf("%s%s matched %q, want %q", c.host, c.path, got, c.want)
		}
	}
}

func TestCleanHost(t *testing.T) {
	for in, want := range map[string]string{
		"Shop.Localhost:80": "shop.localhost", "shop.localhost.": "shop.localhost", "[::1]:80": "[::1]", "[::1]": "[::1]", "": "", ":80": "",
	} {
		if got := CleanHost(in); got != want {
			t.Errorf("CleanHost(%q) is %q, want %q", in, got, want)
		}
	}
}

func TestMatchAndPickAllocateNothing(t *testing.T) {
	routes := NewRoutes(Table{HTTP: []Route{{Host: "a.localhost", Path: "/"}, {Host: "a.localhost", Path: "/api"}}}.Canonical().HTTP)
	weights := []int{90, 10}
	n := uint64(0)
	allocs := testing.AllocsPerRun(100, func() {
		n++
		routes.Match(CleanHost("a.localhost:8080"), "/api/x")
		Spread(n, len(weights), func(i int) int { return weights[i] })
		Least(n, len(weights), func(i int) int64 { return int64(weights[i]) })
	})
	if allocs != 0 {
		t.Errorf("%v allocations, want none", allocs)
	}
}

func TestPropertySpreadKeepsTheWeightsInEveryHundred(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var weights []int
		for left := 100; left > 0; {
			w := rapid.IntRange(1, left).Draw(t, "weight")
			weights = append(weights, w)
			left -= w
		}
		from := rapid.Uint64Range(0, 1<<40).Draw(t, "from")
		got := make([]int, len(weights))
		for n := range uint64(100) {
			got[Spread(from+n, len(weights), func(i int) int { return weights[i] })]++
		}
		if diff := cmp.Diff(weights, got); diff != "" {
			t.Fatalf("shares (-want +got):\n%s", diff)
		}
	})
}

func TestPropertyLeastIsLeastAndNeverLeftOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		loads := rapid.SliceOf(rapid.Int64Range(-1, 5)).Draw(t, "loads")
		i := Least(rapid.Uint64().Draw(t, "n"), len(loads), func(i int) int64 { return loads[i] })
		for _, l := range loads {
			if l >= 0 && (i < 0 || loads[i] < 0 || loads[i] > l) {
				t.Fatalf("chose %d of %v", i, loads)
			}
		}
		if i >= 0 && loads[i] < 0 {
			t.Fatalf("chose %d of %v, which is left out", i, loads)
		}
	})
}

func TestAllow(t *testing.T) {
	for _, c := range []struct {
		entry, host string
		port        uint16
		want        bool
	}{
		{"api.example.com:443", "api.example.com", 443, true},
		{"api.example.com:443", "API.example.com.", 443, true},
		{"api.example.com:443", "api.example.com", 80, false},
		{"api.example.com:443", "x.api.example.com", 443, false},
		{"*.example.com:443", "api.example.com", 443, true},
		{"*.example.com:443", "a.b.example.com", 443, true},
		{"*.example.com:443", "example.com", 443, false},
		{"*.example.com:443", ".example.com", 443, false},
		{"*.example.com:443", "badexample.com", 443, false},
		{"10.0.0.1:80", "10.0.0.1", 80, true},
		{"10.0.0.1:80", "::ffff:10.0.0.1", 80, true},
		{"10.0.0.1:80", "10.0.0.10", 80, false},
		{"[2001:db8::1]:80", "2001:db8:0:0::1", 80, true},
		{"*.0.0.1:80", "10.0.0.1", 80, false},
	} {
		a, err := ParseAllow(c.entry)
		if err != nil {
			t.Errorf("%s: %v", c.entry, err)
		} else if got := a.Permits(c.host, c.port); got != c.want {
			t.Errorf("%s permits %s:%d: %v, want %v", c.entry, c.host, c.port, got, c.want)
		}
	}
	for _, bad := range []string{"", "example.com", "example.com:0", "example.com:65536", ":80", "*:80", "*.:80", "a b:80", "a/b:80", "2001:db8::1:80", "http://a:80", "a.*.com:80"} {
		if a, err := ParseAllow(bad); !errors.Is(err, fault.Invalid) {
			t.Errorf("ParseAllow(%q) is %+v, %v, want fault.Invalid", bad, a, err)
		}
	}
}

func TestCanonicalSortsACopyAndKeepsEqualsAsTheyWere(t *testing.T) {
	given := Table{
		HTTP:   []Route{{Host: "b", Path: "/"}, {Host: "a", Path: "/", Name: "first"}, {Host: "a", Path: "/api"}, {Host: "a", Path: "/", Name: "second"}},
		Inside: []Inside{{Instance: "b", Uses: []Listen{{Address: "127.0.0.2:2"}, {Address: "127.0.0.2:1"}}}, {Instance: "a"}},
	}
	want := Table{
		HTTP:   []Route{{Host: "a", Path: "/api"}, {Host: "a", Path: "/", Name: "first"}, {Host: "a", Path: "/", Name: "second"}, {Host: "b", Path: "/"}},
		Inside: []Inside{{Instance: "a"}, {Instance: "b", Uses: []Listen{{Address: "127.0.0.2:1"}, {Address: "127.0.0.2:2"}}}},
	}
	got := given.Canonical()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if given.HTTP[0].Host != "b" || given.Inside[0].Instance != "b" || given.Inside[0].Uses[0].Address != "127.0.0.2:2" {
		t.Errorf("the table that was given has changed: %v", given)
	}
	if diff := cmp.Diff(got, got.Canonical()); diff != "" {
		t.Errorf("not the same again: %s", diff)
	}
}

func TestCheckNamesEverythingThatIsWrong(t *testing.T) {
	bad := Table{
		Backends: []Backend{{"a", ""}, {"b", "/n"}, {"b", "/n"}},
		Services: []Service{{Name: "s", Port: 0, Pools: []Pool{{Weight: 99, Instances: nil}, {Weight: -1, Port: 1}, {Weight: 1, Port: 2, Instances: []instance.ID{"c"}}}}},
		HTTP: []Route{{Name: "r", Host: "Shop.localhost:80", Path: "x/", TLS: "maybe", Service: "none"},
			{Name: "r2", Host: "shop.localhost", Path: "/", Service: "s"}, {Name: "r3", Host: "shop.localhost", Path: "/", Service: "s"}},
		TCP: []Listen{{"localhost:80", "s"}, {"127.0.0.1:0", "s"}, {":80", "s"}, {":80", "s"}},
		Inside: []Inside{{Instance: "i", Network: "/n", Uses: []Listen{{"10.0.0.1:80", "s"}},
			Egress: &Egress{Address: "0.0.0.0:3128", Allow: []string{"nonsense"}}}},
	}
	err := bad.Check()
	if !errors.Is(err, fault.Invalid) {
		t.Fatalf("error is %v, want fault.Invalid", err)
	}
	for _, want := range []string{
		`backend "a" has no network`, `backend "b" is there twice`, `0 is not a port`, `weight -1 is negative`, `weights sum to 99`,
		`instance "c" is not among the backends`, `host "Shop.localhost:80"`, `path "x/" is not "/x"`, `tls "maybe"`, `service "none" does not exist`,
		`shop.localhost/ is there twice`, `"localhost:80" is not an address`, `"127.0.0.1:0" is not an address`, `:80 on the host is there twice`,
		`10.0.0.1:80 is not a loopback address`, `egress "0.0.0.0:3128"`, `"nonsense" is not host:port`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	raw, err := json.Marshal(Build(Input{Envs: []Env{web("prod")}}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"serial":1}`))
	f.Add([]byte(`{"services":[{"name":"a","pools":[{"weight":100,"port":1,"instances":null}]}]}{}`))
	f.Add([]byte(`{"inside":[{"instance":"a","network":"/n","egress":{"address":"127.77.255.254:3128","allow":["*.a:1"]}}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		table, err := Decode(raw)
		if err != nil {
			return
		}
		once, err := json.Marshal(table)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(once)
		if err != nil {
			t.Fatalf("%s is refused when it comes back: %v", once, err)
		}
		if twice, _ := json.Marshal(again); string(once) != string(twice) {
			t.Fatalf("%s became %s", once, twice)
		}
	})
}
