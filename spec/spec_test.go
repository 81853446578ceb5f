package spec_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/spec"
)

func TestNamesAreDNSLabels(t *testing.T) {
	for _, good := range []string{"a", "web", "web-2", "a--b", strings.Repeat("a", 63)} {
		if err := spec.CheckName(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "Web", "1web", "-a", "a-", "a_b", "a.b", "ä", "a b", strings.Repeat("a", 64)} {
		if err := spec.CheckName(bad); !errors.Is(err, fault.Invalid) {
			t.Errorf("%q: got %v, want fault.Invalid", bad, err)
		}
	}
}

func TestSuggestedNamesAreNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.String().Draw(t, "s")
		if n := spec.SuggestName(s); n != "" && spec.CheckName(n) != nil {
			t.Errorf("%q suggests %q: %v", s, n, spec.CheckName(n))
		}
	})
	if got := spec.SuggestName("My_App 2"); got != "my-app-2" {
		t.Errorf("got %q", got)
	}
}

func TestSizes(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "1": 1, "64Mi": 64 << 20, "1Ki": 1024, "2Gi": 2 << 30, "1Ti": 1 << 40, "1024Ti": 1 << 50} {
		got, err := spec.ParseSize(s)
		if err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", s, got, err, want)
		}
	}
	for s, hint := range map[string]string{"64M": `"64Mi"`, "64MB": `"64Mi"`, "64mi": `"64Mi"`, "1.5Gi": `"64Mi"`, "": `"64Mi"`, "Mi": `"64Mi"`, "-1": `"64Mi"`, "+1": "", "01": "", "1025Ti": "", "9999999999999999999": ""} {
		_, err := spec.ParseSize(s)
		if !errors.Is(err, fault.Invalid) || !strings.Contains(fault.Hint(err), hint) {
			t.Errorf("%q: got %v with hint %q, want one with %s", s, err, fault.Hint(err), hint)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, spec.MaxSizeBytes).Draw(t, "n")
		if got, err := spec.ParseSize(spec.FormatSize(n)); err != nil || got != n {
			t.Errorf("%d is %q is %d, %v", n, spec.FormatSize(n), got, err)
		}
	})
}

func TestDurations(t *testing.T) {
	for s, want := range map[string]time.Duration{"0s": 0, "10s": 10 * time.Second, "1m30s": 90 * time.Second, "5ms": 5 * time.Millisecond, "720h": 720 * time.Hour} {
		if got, err := spec.ParseDuration(s); err != nil || got != want {
			t.Errorf("%q: got %s, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "10", "1d", "-1s", "721h", "1us", "1h1ns"} {
		if _, err := spec.ParseDuration(s); !errors.Is(err, fault.Invalid) {
			t.Errorf("%q: got %v, want fault.Invalid", s, err)
		}
	}
}

func TestPeriods(t *testing.T) {
	const day = 24 * time.Hour
	for s, want := range map[string]time.Duration{"0s": 0, "62h": 62 * time.Hour, "1m30s": 90 * time.Second, "800h": 800 * time.Hour, "0d": 0, "90d": 90 * day, "2w": 14 * day, "7y": 7 * 365 * day, "100y": spec.MaxPeriod} {
		if got, err := spec.ParsePeriod(s); err != nil || got != want {
			t.Errorf("%q: got %s, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "d", "10", "1.5d", "-1d", "+1d", "07d", "1d12h", "101y", "4294967296d", "99999999999999999999y", "900000h", "7 y", "1Y", "1us", "-1s"} {
		if _, err := spec.ParsePeriod(s); !errors.Is(err, fault.Invalid) {
			t.Errorf("%q: got %v, want fault.Invalid", s, err)
		}
	}
}

func TestCPU(t *testing.T) {
	for cores, want := range map[float64]int64{0.001: 1, 0.1: 100, 0.3: 300, 0.5: 500, 2: 2000, 1000: 1_000_000} {
		if got, err := spec.ParseCPU(cores); err != nil || got != want {
			t.Errorf("%v: got %d, %v", cores, got, err)
		}
	}
	for _, cores := range []float64{0, -1, 0.0001, 0.0015, 1001} {
		if _, err := spec.ParseCPU(cores); !errors.Is(err, fault.Invalid) {
			t.Errorf("%v: got %v, want fault.Invalid", cores, err)
		}
	}
}

// graph reads "a→b c, b→a": what each node leads to.
func graph(s string) (nodes []string, next func(string) []string) {
	edges := map[string][]string{}
	for part := range strings.SplitSeq(s, ", ") {
		from, to, _ := strings.Cut(part, "→")
		nodes = append(nodes, from)
		edges[from] = strings.Fields(to)
	}
	return nodes, func(n string) []string { return edges[n] }
}

func TestCyclesAreFoundOnce(t *testing.T) {
	for g, want := range map[string][]string{
		"a→b, b→c, c":             nil,
		"a→b c, b→d, c→d, d":      nil,
		"a→a":                     {"a → a"},
		"a→b, b→c, c→a":           {"a → b → c → a"},
		"a→c, b→c, c→d, d→b":      {"b → c → d → b"},
		"a→b, b→a, c→d, d→c":      {"a → b → a", "c → d → c"},
		"a→b, b→c d, c→b, d→b, e": {"b → c → b", "b → d → b"},
	} {
		nodes, next := graph(g)
		var got []string
		for _, c := range spec.Cycles(nodes, next) {
			got = append(got, c.String())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", g, diff)
		}
	}
}

func TestGraphsThatLeadForwardHaveNoCycle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const nodes = "abcdefgh"
		edges := map[string][]string{}
		for i := range nodes {
			for j := i + 1; j < len(nodes); j++ {
				if rapid.Bool().Draw(t, "edge") {
					edges[nodes[i:i+1]] = append(edges[nodes[i:i+1]], nodes[j:j+1])
				}
			}
		}
		next := func(n string) []string { return edges[n] }
		if c := spec.Cycles(strings.Split(nodes, ""), next); len(c) > 0 {
			t.Fatalf("%v has cycles %v", edges, c)
		}
		from := rapid.IntRange(1, len(nodes)-1).Draw(t, "from")
		edges[nodes[from:from+1]] = append(edges[nodes[from:from+1]], "a")
		edges["a"] = append(edges["a"], nodes[from:from+1])
		if c := spec.Cycles(strings.Split(nodes, ""), next); len(c) == 0 {
			t.Fatalf("%v has no cycle", edges)
		}
	})
}

func TestCheckAcceptsASoundApp(t *testing.T) {
	app := spec.App{
		Name: "a", Env: spec.Environment{Name: "e", Rollout: spec.DefaultRollout()}, Images: []spec.Image{{Name: "i", Ref: "x"}},
		Components: []spec.Component{{Name: "c", Image: "i", Replicas: 1, Egress: []string{"api.example.com:443", "*.example.com:80", "[2001:db8::1]:443", "10.0.0.1:53"},
			Ports: []spec.Port{{Name: "p", Number: 1}}}},
		Routes: []spec.Route{{Name: "r", Host: "shop.example.com", Path: "/", TLS: "acme", To: spec.PortRef{Component: "c", Port: "p"}}},
	}
	if ps := app.Check(); len(ps) > 0 {
		t.Errorf("%+v", ps)
	}
}
