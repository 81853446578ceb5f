package change_test

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/invarhq/invar/change"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

func component(name, version string, volumes ...spec.VolumeName) release.Component {
	c := release.Component{Name: spec.ComponentName(name), Image: digest.Of([]byte("image")), Root: digest.Of([]byte("root")),
		Args: []string{"/app", "--serve"}, Env: map[string]string{"VERSION": version, "LOG_LEVEL": "info", "DATABASE": "postgres://app@db:5432/app"},
		Ports: []release.Port{{Name: "http", Number: 8080}}, Files: []release.File{{Path: "/etc/app.json", Text: `{"version": "` + version + `"}` + "\n", Mode: 0o444}}}
	for _, v := range volumes {
		c.Volumes = append(c.Volumes, release.Volume{Name: v, Path: "/" + string(v)})
	}
	return c
}

func placed(replicas int, c release.Component) release.Placed {
	return release.Placed{Component: c, Replicas: replicas}
}

func record(components ...release.Placed) release.Record {
	return release.Record{V: 1, App: "shop", Env: "prod", Bundle: digest.Of([]byte("bundle")), Components: components, Routes: []release.Route{}}
}

func current(t testing.TB, generation int, r release.Record) change.Current {
	return change.Current{Base: change.Base{Generation: generation, Release: proposed(t, r).Digest}, Record: r}
}

func proposed(t testing.TB, r release.Record) change.Proposed {
	t.Helper()
	d, err := r.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return change.Proposed{Digest: d, Record: r}
}

// lines is a plan as a few lines of text.
func lines(p change.Plan) []string {
	var out []string
	for _, i := range p.Items {
		line := fmt.Sprintf("%s %s +%d -%d", i.Action, i.Component, i.Starts, i.Stops)
		if i.How != "" {
			line += " (" + string(i.How) + ")"
		}
		if i.Volume != "" {
			line += " volume " + string(i.Volume)
		}
		for _, c := range i.Causes {
			line += "; " + c.Field
		}
		out = append(out, line)
	}
	for _, r := range p.Routes {
		out = append(out, fmt.Sprintf("%s route %s: %s => %s", r.Action, r.Route, r.Before, r.After))
	}
	for _, c := range p.Rollout {
		out = append(out, "rollout "+c.Field)
	}
	return append(out, fmt.Sprintf("%d unchanged", p.Unchanged))
}

func TestPlan(t *testing.T) {
	base := record(placed(2, component("api", "1")), placed(1, component("db", "1", "data")), placed(2, component("web", "1")))
	with := func(edit func(*release.Record)) release.Record {
		r := base
		r.Components = slices.Clone(base.Components)
		edit(&r)
		return r
	}
	route := release.Route{Name: "site", Host: "shop.localhost", Path: "/", Component: "web", Port: "http", Number: 8080}
	for _, tc := range []struct {
		name   string
		before release.Record
		after  release.Record
		want   []string
	}{
		{"new environment", release.Record{}, base, []string{"+ api +2 -0", "+ db +1 -0", "+ web +2 -0", "0 unchanged"}},
		{"nothing", base, base, []string{"3 unchanged"}},
		{"configuration only", base, with(func(r *release.Record) { r.Components[2] = placed(2, component("web", "2")) }),
			[]string{"+/- web +2 -2 (start beside, then retire); env VERSION; file /etc/app.json", "2 unchanged"}},
		{"with a volume", base, with(func(r *release.Record) { r.Components[1] = placed(1, component("db", "2", "data")) }),
			[]string{"+/- db +1 -1 (stop, then start) volume data; env VERSION; file /etc/app.json", "2 unchanged"}},
		{"the volume goes", base, with(func(r *release.Record) { r.Components[1] = placed(1, component("db", "1")) }),
			[]string{"+/- db +1 -1 (stop, then start) volume data; volume data", "2 unchanged"}},
		{"one leaves, one comes", base, with(func(r *release.Record) { r.Components[0] = placed(3, component("auth", "1")) }),
			[]string{"- api +0 -2", "+ auth +3 -0", "2 unchanged"}},
		{"more of the same", base, with(func(r *release.Record) { r.Components[2].Replicas = 5 }), []string{"+ web +3 -0; replicas", "2 unchanged"}},
		{"fewer of the same", base, with(func(r *release.Record) { r.Components[2].Replicas = 1 }), []string{"- web +0 -1; replicas", "2 unchanged"}},
		{"a route comes", base, with(func(r *release.Record) { r.Routes = []release.Route{route} }),
			[]string{"+ route site:  => shop.localhost/ -> web:http", "3 unchanged"}},
		{"only what follows on drift", base, with(func(r *release.Record) { r.OnDrift = spec.Alert }), []string{"rollout on_drift", "3 unchanged"}},
		{"only how it is rolled out", base, with(func(r *release.Record) { r.Rollout.MaxParallel = 2 }), []string{"rollout max_parallel", "3 unchanged"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := change.Current{}
			if tc.before.V != 0 {
				c = current(t, 4, tc.before)
			}
			p := change.MakePlan(c, proposed(t, tc.after))
			if diff := cmp.Diff(lines(p), tc.want); diff != "" {
				t.Error(diff)
			}
			if p.Empty() != (tc.name == "nothing") {
				t.Errorf("empty: %v", p.Empty())
			}
			if p.Base != c.Base || p.App != "shop" || p.Env != "prod" {
				t.Errorf("got %+v", p)
			}
		})
	}
}

func TestAFailedRolloutCanBeTriedAgain(t *testing.T) {
	r := record(placed(1, component("web", "1")))
	c := current(t, 2, r)
	c.Failed = true
	p := change.MakePlan(c, proposed(t, r))
	if diff := cmp.Diff(lines(p), []string{"rollout outcome", "1 unchanged"}); diff != "" || p.Empty() {
		t.Error(diff)
	}
}

func TestStalePlans(t *testing.T) {
	p := change.Plan{V: 1, Env: "prod", Base: change.Base{Generation: 3, Release: digest.Of([]byte("a"))}, Release: digest.Of([]byte("b"))}
	if err := p.Stale(p.Base); err != nil {
		t.Errorf("a plan that holds: %v", err)
	}
	for _, err := range []error{
		p.Stale(change.Base{Generation: 4, Release: p.Base.Release}),
		p.Stale(change.Base{Generation: 3, Release: digest.Of([]byte("c"))}),
		p.StaleRelease(digest.Of([]byte("c"))),
	} {
		if !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "saved plan is stale") || fault.Hint(err) == "" {
			t.Errorf("got %v (hint %q)", err, fault.Hint(err))
		}
	}
	if err := p.StaleRelease(p.Release); err != nil {
		t.Error(err)
	}
}

func records() *rapid.Generator[release.Record] {
	return rapid.Custom(func(t *rapid.T) release.Record {
		var out []release.Placed
		for _, name := range []string{"api", "db", "web"} {
			if rapid.Bool().Draw(t, name) {
				version := rapid.SampledFrom([]string{"1", "2"}).Draw(t, "version")
				out = append(out, placed(rapid.IntRange(0, 3).Draw(t, "replicas"), component(name, version)))
			}
		}
		r := record(out...)
		r.Rollout.Canary = rapid.SampledFrom([][]int{nil, {10, 50}}).Draw(t, "canary")
		return r
	})
}

func TestPlanProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a, b := records().Draw(rt, "a"), records().Draw(rt, "b")
		p := change.MakePlan(current(t, 1, a), proposed(t, b))
		back := change.MakePlan(current(t, 1, b), proposed(t, a))
		if !reflect.DeepEqual(p, change.MakePlan(current(t, 1, a), proposed(t, b))) {
			rt.Fatal("equal arguments, different plans")
		}
		if p.Empty() != back.Empty() || len(p.Items) != len(back.Items) || p.Unchanged != back.Unchanged {
			rt.Fatal("the way back is another way")
		}
		if diff := release.Diff(a, b); len(diff.Components) != len(p.Items) {
			rt.Fatalf("%d items, %d differences", len(p.Items), len(diff.Components))
		}
		want := map[spec.ComponentName]int{}
		for _, c := range a.Components {
			want[c.Component.Name] -= c.Replicas
		}
		for _, c := range b.Components {
			want[c.Component.Name] += c.Replicas
		}
		for _, i := range p.Items {
			if i.Starts-i.Stops != want[i.Component] {
				rt.Fatalf("%s: starts %d, stops %d, want a difference of %d", i.Component, i.Starts, i.Stops, want[i.Component])
			}
			if i.Action != change.Add && i.Action != change.Remove && i.Action != change.Replace {
				rt.Fatalf("action %q", i.Action)
			}
		}
		enc, err := change.Encode(p)
		if err != nil {
			rt.Fatal(err)
		}
		got, err := change.Decode(enc)
		if err != nil {
			rt.Fatal(err)
		}
		again, _ := change.Encode(got)
		if !bytes.Equal(enc, again) {
			rt.Fatal("decode and encode is not the identity")
		}
		d1, _ := p.Digest()
		if d2, _ := got.Digest(); d1 != d2 || d1 != digest.Of(bytes.TrimSuffix(enc, []byte("\n"))) {
			rt.Fatal("a saved plan has another digest")
		}
	})
}

func TestDecodeAcceptsOneSpelling(t *testing.T) {
	enc, err := change.Encode(change.MakePlan(change.Current{}, proposed(t, record(placed(1, component("web", "1"))))))
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{
		"", "{}", "null", string(enc) + "\n", strings.TrimSuffix(string(enc), "\n"), " " + string(enc),
		strings.Replace(string(enc), `"v":1`, `"v":2`, 1), strings.Replace(string(enc), `"v":1`, `"v":1,"x":0`, 1),
	} {
		if _, err := change.Decode([]byte(bad)); !errors.Is(err, fault.Invalid) {
			t.Errorf("%.40q: got %v", bad, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	a, b := record(placed(1, component("web", "1"))), record(placed(2, component("web", "2", "data")))
	for _, p := range []change.Plan{change.MakePlan(change.Current{}, proposed(f, a)), change.MakePlan(current(f, 1, a), proposed(f, b))} {
		enc, err := change.Encode(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(enc)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := change.Decode(b)
		if err != nil {
			return
		}
		if again, err := change.Encode(p); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("accepted %q, wrote %q (%v)", b, again, err)
		}
	})
}

// BenchmarkPlan plans 1,000 components: with one changed, with all changed, and for a new environment.
func BenchmarkPlan(b *testing.B) {
	many := func(version string) release.Record {
		r := record()
		for i := range 1000 {
			r.Components = append(r.Components, placed(2, component(fmt.Sprintf("c%03d", i), version)))
		}
		return r
	}
	before := many("1")
	one := before
	one.Components = slices.Clone(before.Components)
	one.Components[500] = placed(2, component("c500", "2"))
	for _, tc := range []struct {
		name    string
		current change.Current
		after   release.Record
	}{
		{"one of 1000", current(b, 1, before), one},
		{"all of 1000", current(b, 1, before), many("2")},
		{"new 1000", change.Current{}, before},
	} {
		next := proposed(b, tc.after)
		b.Run(tc.name, func(b *testing.B) {
			for b.Loop() {
				change.MakePlan(tc.current, next)
			}
		})
	}
}
