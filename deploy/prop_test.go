package deploy

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

// machine drives a scene at random; check is called after every action.
type machine struct {
	*scene
	most    map[spec.ComponentName]int // replicas wanted at most, by any head so far
	tainted map[instance.ID]mark       // by checkTaints
}

type mark struct {
	taints int
	barred bool
}

func (m *machine) anyHead(t *rapid.T) {
	r := release.Rollout{
		MaxParallel: rapid.IntRange(0, 3).Draw(t, "parallel"), Canary: rapid.SampledFrom([][]int{nil, {10, 50}, {25}}).Draw(t, "canary"),
		MinHealthyMillis: rapid.SampledFrom([]int64{0, 1000, 10_000}).Draw(t, "min_healthy"), HealthyDeadlineMillis: 60_000, ProgressDeadlineMillis: 120_000,
		AutoRevert: rapid.Bool().Draw(t, "revert"), KeepWarmMillis: rapid.SampledFrom([]int64{0, 60_000}).Draw(t, "warm"), DrainMillis: 5000,
	}
	version := rapid.SampledFrom([]string{"a", "b", "c"})
	var list []string
	for _, c := range []struct{ name, more string }{{"web", " >api"}, {"api", " >db"}, {"db", "*"}} {
		if rapid.IntRange(0, 5).Draw(t, c.name) == 0 {
			continue
		}
		n := rapid.IntRange(0, 4).Draw(t, "replicas")
		m.most[spec.ComponentName(c.name)] = max(n, m.most[spec.ComponentName(c.name)])
		v := version.Draw(t, "version")
		if c.more == "*" {
			v, c.more = v+"*", ""
		}
		list = append(list, fmt.Sprintf("%s×%d=%s%s", c.name, n, v, c.more))
	}
	m.onDrift = rapid.SampledFrom([]spec.Response{"", spec.Alert, spec.Freeze}).Draw(t, "on_drift")
	m.scene.head(r, list...)
}

// anyInstance draws one that the host has.
func (m *machine) anyInstance(t *rapid.T) instance.ID {
	if len(m.host) == 0 {
		t.Skip("no instance")
	}
	return rapid.SampledFrom(slices.Sorted(maps.Keys(m.host))).Draw(t, "instance")
}

func (m *machine) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"head":  m.anyHead,
		"turn":  func(*rapid.T) { m.decide() },
		"turns": func(*rapid.T) { m.decide(); m.act() },
		"act":   func(*rapid.T) { m.act() },
		"pass":  func(t *rapid.T) { m.see(instance.Passing, m.anyInstance(t)) },
		"thrive": func(*rapid.T) {
			m.see(instance.Passing)
		},
		"fail":    func(t *rapid.T) { m.see(instance.Failing, m.anyInstance(t)) },
		"exit":    func(t *rapid.T) { m.exit(m.anyInstance(t), 1) },
		"intrude": func(t *rapid.T) { m.intrude(m.anyInstance(t)) },
		"enter": func(t *rapid.T) {
			if id := m.anyInstance(t); m.known(id) {
				m.enter(id, rapid.SampledFrom([]string{"x", "y"}).Draw(t, "session"), time.Duration(rapid.IntRange(0, 100_000).Draw(t, "ms"))*time.Millisecond)
			}
		},
		"leave": func(t *rapid.T) {
			if id := m.anyInstance(t); m.known(id) && m.env.Instances[id].taintedBy(BySession("x")) {
				m.leave(id, "x")
			}
		},
		"differ": func(t *rapid.T) {
			m.differ(m.anyInstance(t), rapid.SampledFrom([]string{"limit", "port", "user"}).Draw(t, "kind"))
		},
		"freezer": func(t *rapid.T) {
			m.kept = rapid.SampledFrom([]instance.Kept{{Evidence: digest.Of(nil), Bytes: 1}, {Cause: "no freezer"}, {}}).Draw(t, "kept")
		},
		"mend": func(t *rapid.T) { m.mend(m.anyInstance(t)) },
		"lose": func(t *rapid.T) { delete(m.host, m.anyInstance(t)) },
		"wait": func(t *rapid.T) {
			m.now = m.now.Add(time.Duration(rapid.IntRange(0, 100_000).Draw(t, "ms")) * time.Millisecond)
		},
		"wake": func(t *rapid.T) {
			if at := Wake(m.env, m.have(), m.now); !at.IsZero() {
				m.now = at
			}
		},
	}
}

func (m *machine) known(id instance.ID) bool {
	_, ok := m.env.Instances[id]
	return ok
}

func newMachine() *machine {
	return &machine{newScene(), map[spec.ComponentName]int{}, map[instance.ID]mark{}}
}

// TestPropertyNext checks what must always hold of Next, in states that chance leads to.
func TestPropertyNext(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine()
		actions := m.actions()
		actions[""] = func(t *rapid.T) {
			m.checkTurn(t)
			m.checkSizes(t)
			m.checkTraffic(t)
			m.checkTaints(t)
		}
		t.Repeat(actions)
	})
}

// checkTurn: equal arguments give equal steps, all of them legal, all that there are at this time; none before Wake says so.
func (m *machine) checkTurn(t *rapid.T) {
	named := func(n int) func(spec.ComponentName) instance.ID {
		return func(c spec.ComponentName) instance.ID { n++; return instance.ID(fmt.Sprintf("%s-new%d", c, n)) }
	}
	before, _ := json.Marshal(m.env)
	turn := newTurn(m.env, m.have(), m.now, named(0))
	turn.decide()
	if turn.err != nil {
		t.Fatalf("a step is not legal: %v", turn.err)
	}
	steps := Next(m.env, m.have(), m.now, named(0))
	if d := cmp.Diff(turn.steps, steps); d != "" {
		t.Fatalf("equal arguments, other steps:\n%s", d)
	}
	if now, _ := json.Marshal(m.env); string(now) != string(before) {
		t.Fatalf("Next changed its argument")
	}
	after, err := m.env.ApplyAll(steps, m.now)
	if err != nil {
		t.Fatal(err)
	}
	// An instance retired before the host had it is gone the turn after, with what that resolves, and makes room for what comes then. A canary that has
	// just got its share may ask for the instances of the next.
	shifted := slices.ContainsFunc(steps, func(s Step) bool { return s.Kind == Shift })
	for n := 1; ; n++ {
		again := Next(after, m.have(), m.now, named(100*n))
		if len(again) == 0 {
			break
		}
		if again[0].Kind != Gone && again[0].Kind != Settled && !(again[0].Kind == Create && shifted) && n == 1 || n > 5 {
			t.Fatalf("one turn left steps to do: %v\nafter %v\nin %s", m.lines(again), m.lines(steps), m.picture())
		}
		if after, err = after.ApplyAll(again, m.now); err != nil {
			t.Fatal(err)
		}
	}
	at := Wake(after, m.have(), m.now)
	if at.IsZero() {
		at = m.now.Add(24 * time.Hour)
	}
	just := m.now.Add(time.Duration(rapid.Int64Range(0, int64(at.Sub(m.now)-1)).Draw(t, "before wake")))
	if early := Next(after, m.have(), just, named(100)); len(early) > 0 {
		t.Fatalf("steps %v before %v, when to wake: %v", just, at, m.lines(early))
	}
	if a, b := Acts(after, m.have(), nil, m.now), Acts(after, m.have(), nil, just); len(a) != len(b) {
		t.Fatalf("acts before it is time to wake: %v, then %v", a, b)
	}
}

func (m *machine) lines(steps []Step) (list []string) {
	for _, s := range steps {
		list = append(list, m.line(s))
	}
	return list
}

// checkSizes: a version never has more instances than are wanted and as many replacements, and one with a volume is alone.
func (m *machine) checkSizes(t *rapid.T) {
	type key struct {
		c spec.ComponentName
		v digest.Digest
	}
	sound, failing, all := map[key]int{}, map[key]int{}, map[spec.ComponentName]int{}
	versions := map[spec.ComponentName]map[digest.Digest]bool{}
	for _, i := range m.env.Instances {
		k := key{i.Component, i.Digest}
		if versions[i.Component] == nil {
			versions[i.Component] = map[digest.Digest]bool{}
		}
		versions[i.Component][i.Digest] = true
		all[i.Component]++
		switch {
		case !i.Live():
		case i.Health == instance.Failing:
			failing[k]++
		default:
			sound[k]++
		}
	}
	for k, n := range sound {
		if most := m.most[k.c]; n > 2*most || n+failing[k] > 3*most {
			t.Fatalf("%s has %d sound and %d failing instances of a version, and at most %d were ever wanted\n%s", k.c, n, failing[k], most, m.picture())
		}
	}
	if len(versions["db"]) > 1 || all["db"] > m.most["db"] {
		t.Fatalf("instances of two versions have one volume: %s", m.picture())
	}
}

// checkTraffic: the shares of a component sum to 100, and only healthy instances are eligible.
func (m *machine) checkTraffic(t *rapid.T) {
	networks := map[instance.ID]string{}
	for id := range m.env.Instances {
		networks[id] = "/net/" + string(id)
	}
	for c, shares := range m.env.Traffic {
		sum := 0
		for _, s := range shares {
			sum += s.Percent
		}
		if sum != 100 {
			t.Fatalf("the shares of %s sum to %d", c, sum)
		}
	}
	for _, i := range Traffic(m.env, networks).Instances {
		if e := m.env.Instances[i.ID]; i.Eligible && (!e.Live() || e.Health != instance.Passing || e.Barred) {
			t.Fatalf("%s is eligible and not healthy", i.ID)
		}
	}
}

// checkTaints: what was tainted once stays so until it is gone, and one that was tainted or tainted and out of traffic gets none again.
func (m *machine) checkTaints(t *rapid.T) {
	for id, i := range m.env.Instances {
		was := m.tainted[id]
		if len(i.Taints) < was.taints || was.barred && !i.Barred {
			t.Fatalf("%s had %d taints (barred: %v), and now %d (barred: %v)", id, was.taints, was.barred, len(i.Taints), i.Barred)
		}
		if len(i.Taints) > 0 && share(m.env.Traffic[i.Component], i.Digest) == 0 && !i.Barred {
			t.Fatalf("%s is tainted, has no traffic, and may get some again", id)
		}
		m.tainted[id] = mark{len(i.Taints), i.Barred}
	}
}

// TestPropertyTaintCostsNoTraffic: on a host that obeys, however many sessions and intruders there are, never do fewer instances serve than
// wanted, and in the end all tainted ones are replaced.
func TestPropertyTaintCostsNoTraffic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &machine{scene: running(settings, "api×1=a", "web×3=a >api"), most: map[spec.ComponentName]int{}, tainted: map[instance.ID]mark{}}
		actions := m.actions()
		serving := func(when string) {
			n := map[spec.ComponentName]int{}
			for _, i := range m.env.Instances {
				if m.env.Serving(i) {
					n[i.Component]++
				}
			}
			if n["web"] < 3 || n["api"] < 1 {
				t.Fatalf("%s: %v serve\n%s", when, n, m.picture())
			}
		}
		names := []string{"intrude", "differ", "mend", "enter", "leave", "turn", "act", "thrive", "wait", "wake"}
		for range rapid.IntRange(1, 60).Draw(t, "actions") {
			name := rapid.SampledFrom(names).Draw(t, "action")
			actions[name](t)
			serving(name)
		}
		m.thrive(time.Hour)
		serving("in the end")
		for id, i := range m.env.Instances {
			if len(i.Taints) > 0 {
				t.Fatalf("%s is still there: %+v", id, i.Taints)
			}
		}
		if got, want := m.picture(), "api: a×1 a:100; web: a×3 a:100"; got != want {
			t.Fatalf("in the end %q, want %q", got, want)
		}
	})
}

// TestPropertyConvergence: whatever happened, a head gets its way on a host that obeys, and one more turn then finds nothing.
func TestPropertyConvergence(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine()
		m.env.Name = "prod"
		actions := m.actions()
		for range rapid.IntRange(0, 60).Draw(t, "actions") {
			name := rapid.SampledFrom(slices.Sorted(maps.Keys(actions))).Draw(t, "action")
			if len(m.host) == 0 && slices.Contains([]string{"pass", "fail", "exit", "lose", "intrude", "enter", "leave", "differ", "mend"}, name) {
				continue
			}
			actions[name](t)
		}
		m.scene.head(settings, "web×3=b >api", "api×2=c >db", "db×1=a*")
		for id := range m.host { // whoever runs passes from now on
			m.see(instance.Passing, id)
		}
		m.thrive(3 * time.Hour)
		if got, want := m.picture(), "api: c×2 c:100; db: a×1 a:100; web: b×3 b:100"; got != want {
			t.Fatalf("converged to %q, want %q\n%s", got, want, strings.Join(m.log, "\n"))
		}
		if m.env.Head.Outcome != Completed || len(m.host) != 6 {
			t.Fatalf("head is %s, with %d instances on the host", m.env.Head.Outcome, len(m.host))
		}
	})
}

// TestPropertyDriftIsResolvedOnce: in any life, a finding is of an instance that is there, and from the first of an instance until one
// resolution all belong together; there is none without, and in the end none is open.
func TestPropertyDriftIsResolvedOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine()
		actions := m.actions()
		for range rapid.IntRange(0, 50).Draw(t, "actions") {
			name := rapid.SampledFrom(append(slices.Sorted(maps.Keys(actions)), "differ", "thrive", "turns")).Draw(t, "action")
			if len(m.host) == 0 && slices.Contains([]string{"pass", "fail", "exit", "lose", "intrude", "enter", "leave", "differ", "mend"}, name) {
				continue
			}
			actions[name](t)
		}
		m.thrive(time.Hour)
		for id := range m.host {
			m.mend(id)
		}
		m.thrive(time.Hour)
		open := map[instance.ID][]string{}
		for _, s := range m.decided {
			switch s.Kind {
			case Drifted:
				for _, f := range s.Findings {
					open[s.ID] = append(open[s.ID], f.Key())
				}
			case Settled:
				slices.Sort(open[s.ID])
				keys := slices.Sorted(slices.Values(s.Keys))
				if len(keys) == 0 || !slices.Equal(slices.Compact(open[s.ID]), keys) {
					t.Fatalf("%s resolved %v, of %v", s.ID, keys, open[s.ID])
				}
				delete(open, s.ID)
			}
		}
		if len(open) > 0 {
			t.Fatalf("still open: %v\n%s", open, m.picture())
		}
	})
}

// TestPropertyFreezingLeavesOneThatServes: however many of several differ at once, one serves at any time; in the end all that differed
// is frozen and replaced, with one record of its evidence each.
func TestPropertyFreezingLeavesOneThatServes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &machine{scene: frozenScene(settings, "api×1=a", "web×3=a >api"), most: map[spec.ComponentName]int{}, tainted: map[instance.ID]mark{}}
		actions := m.actions()
		for range rapid.IntRange(1, 60).Draw(t, "actions") {
			name := rapid.SampledFrom([]string{"intrude", "differ", "differ", "enter", "turn", "act", "thrive", "wait", "wake", "freezer"}).Draw(t, "action")
			actions[name](t)
			serving := slices.ContainsFunc(slices.Collect(maps.Values(m.env.Instances)), func(i Instance) bool { return i.Component == "web" && m.env.Serving(i) })
			if !serving {
				t.Fatalf("none serves: %s", m.picture())
			}
		}
		m.thrive(time.Hour)
		if got, want := m.picture(), "api: a×1 a:100; web: a×3 a:100"; got != want {
			t.Fatalf("in the end %q, want %q", got, want)
		}
		frozen := map[instance.ID]int{}
		for _, s := range m.decided {
			switch s.Kind {
			case Frozen:
				frozen[s.ID]++
			case Settled:
				if frozen[s.ID] != 1 {
					t.Fatalf("%s has %d records of its evidence", s.ID, frozen[s.ID])
				}
			}
		}
	})
}

// TestPropertySnapshot: an environment survives JSON, once its releases are looked up.
func TestPropertySnapshot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine()
		actions := m.actions()
		actions[""] = func(t *rapid.T) {
			raw, err := json.Marshal(m.env)
			if err != nil {
				t.Fatal(err)
			}
			var bare Environment
			if err := json.Unmarshal(raw, &bare); err != nil {
				t.Fatal(err)
			}
			got, err := bare.Resolve(func(d digest.Digest) (release.Record, error) { return m.records[d], nil })
			if err != nil {
				t.Fatal(err)
			}
			want, _ := m.env.Resolve(func(d digest.Digest) (release.Record, error) { return m.records[d], nil })
			if d := cmp.Diff(want, got); d != "" {
				t.Fatalf("(-want +got):\n%s", d)
			}
			if d := cmp.Diff(m.env.Components, got.Components, cmpopts.EquateEmpty()); d != "" {
				t.Fatalf("components (-want +got):\n%s", d)
			}
		}
		t.Repeat(actions)
	})
}

// TestPropertyIllegalStepChangesNothing throws steps of other states at an environment.
func TestPropertyIllegalStepChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine()
		actions := m.actions()
		var past []Step
		actions["turn"] = func(*rapid.T) { past = append(past, m.decide()...) }
		actions[""] = func(t *rapid.T) {
			if len(past) == 0 {
				return
			}
			s := rapid.SampledFrom(past).Draw(t, "step")
			before, _ := json.Marshal(m.env)
			next, err := m.env.Apply(s, m.now)
			if now, _ := json.Marshal(m.env); string(now) != string(before) {
				t.Fatalf("%s changed its receiver", m.line(s))
			}
			if after, _ := json.Marshal(next); (err != nil) != (string(after) == string(before)) {
				t.Fatalf("%s: error %v, and the state changed: %v", m.line(s), err, string(after) != string(before))
			}
		}
		t.Repeat(actions)
	})
}
