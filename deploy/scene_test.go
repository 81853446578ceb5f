package deploy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

// scene is an environment and a host that obeys, as values: no goroutine, no clock.
type scene struct {
	env     Environment
	host    map[instance.ID]instance.Observation
	active  map[instance.ID]int64
	now     time.Time
	ids     int
	log     []string
	decided []Step // all
	records map[digest.Digest]release.Record
	onDrift spec.Response // of the heads to come
	disk    *disk

	restores []Restoring   // of the next head
	kept     instance.Kept // what freezing comes to
}

func newScene() *scene {
	return &scene{
		env: Environment{Name: "prod"}, host: map[instance.ID]instance.Observation{}, records: map[digest.Digest]release.Record{}, disk: newDisk(),
		now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), kept: instance.Kept{Evidence: digest.Of(nil), Bytes: 1},
	}
}

func (s *scene) newID(c spec.ComponentName) instance.ID {
	s.ids++
	return instance.ID(fmt.Sprintf("%s-%d", c, s.ids))
}

func (s *scene) have() []instance.Observation {
	var list []instance.Observation
	for _, id := range slices.Sorted(maps.Keys(s.host)) {
		list = append(list, s.host[id])
	}
	return list
}

// head makes the release of these components the head.
func (s *scene) head(settings release.Rollout, components ...string) {
	r := record(settings, components...)
	r.OnDrift = s.onDrift
	d, err := r.Digest()
	if err != nil {
		panic(err)
	}
	if len(components) == 0 {
		r, d = release.Record{}, ""
	}
	s.records[d] = r
	s.env = s.env.SetHead(Generation{Number: s.env.Head.Number + 1, Release: d, Record: r, Restores: s.restores}, s.now)
	s.restores = nil
}

// decide takes one turn, and returns its steps.
func (s *scene) decide() []Step {
	steps := Next(s.env, s.have(), s.now, s.newID)
	s.apply(steps)
	s.decided = append(s.decided, steps...)
	return steps
}

// apply records steps, and has the disk do what follows.
func (s *scene) apply(steps []Step) {
	for _, st := range steps {
		next, err := s.env.Apply(st, s.now)
		if err != nil {
			panic(err)
		}
		s.disk.follow(s.env, next, st)
		s.env = next
		s.log = append(s.log, s.line(st))
	}
}

// act has the host do what is left to do: all of it, at once. New instances start, and do not pass yet.
func (s *scene) act() int { return s.actOnInstances() + s.copy(nil) }

func (s *scene) actOnInstances() (did int) {
	for _, a := range Acts(s.env, s.have(), s.active, s.now) {
		did++
		switch {
		case a.End:
			delete(s.host, a.Instance.ID)
			continue
		case a.Freeze:
			o := s.host[a.Instance.ID]
			o.Kept = s.kept
			s.host[a.Instance.ID] = o
			if s.kept == (instance.Kept{}) {
				did-- // the host does not come to an end with it
			}
			continue
		}
		s.host[a.Instance.ID] = instance.Observation{Identity: a.Instance, State: instance.Running, StartedAt: s.now}
	}
	return did
}

// see changes what the host sees of the instances that match, all that run at present.
func (s *scene) see(h instance.Health, ids ...instance.ID) {
	for id, o := range s.host {
		if o.State == instance.Running && o.Health != h && (len(ids) == 0 || slices.Contains(ids, id)) {
			o.Health, o.Since = h, s.now
			s.host[id] = o
		}
	}
}

// enter opens a session in the instance, that ends by itself when its time is over.
func (s *scene) enter(id instance.ID, session string, limit time.Duration) {
	s.taint(Step{Kind: Tainted, ID: id, By: BySession(session), Cause: "a session of alice", Until: s.now.Add(limit).UnixMilli()})
}

// leave ends that session.
func (s *scene) leave(id instance.ID, session string) {
	s.taint(Step{Kind: Tainted, ID: id, By: BySession(session), Cause: "the session is over", Until: s.now.UnixMilli()})
}

func (s *scene) taint(st Step) {
	next, err := s.env.Apply(st, s.now)
	if err != nil {
		panic(err)
	}
	s.env = next
}

// intrude has the host see a process from outside in the instance.
func (s *scene) intrude(id instance.ID) {
	o := s.host[id]
	o.Foreign = []instance.Foreign{{PID: 4711, Command: "sh", Namespaces: []string{"net"}}}
	s.host[id] = o
}

// differ has the host measure that the instance differs in these things.
func (s *scene) differ(id instance.ID, kinds ...string) {
	o := s.host[id]
	o.Drift, o.Clean = nil, false
	for _, k := range kinds {
		o.Drift = append(o.Drift, instance.Finding{Kind: k, Expected: "a", Found: "b"})
	}
	s.host[id] = o
}

// mend has the host find the instance as released, twice.
func (s *scene) mend(id instance.ID) {
	o := s.host[id]
	o.Drift, o.Clean = nil, true
	s.host[id] = o
}

// last returns the last step of the kind.
func (s *scene) last(k Kind) Step {
	for _, st := range slices.Backward(s.decided) {
		if st.Kind == k {
			return st
		}
	}
	return Step{}
}

func (s *scene) exit(id instance.ID, code int) {
	o := s.host[id]
	o.State, o.Health, o.ExitCode, o.ExitedAt = instance.Exited, instance.Unknown, code, s.now
	s.host[id] = o
}

// rest takes turns until nothing is left to decide or do at this time.
func (s *scene) rest() {
	for range 1000 {
		if len(s.decide()) == 0 && s.act() == 0 {
			return
		}
	}
	panic("the scene does not come to rest:\n" + strings.Join(s.log, "\n"))
}

// thrive is rest where every instance passes as soon as it runs, until nothing happens before limit.
func (s *scene) thrive(limit time.Duration) {
	until := s.now.Add(limit)
	for !s.now.After(until) {
		for range 1000 {
			if len(s.decide()) == 0 && s.act() == 0 {
				break
			}
			s.see(instance.Passing)
		}
		wake := Wake(s.env, s.have(), s.now)
		if wake.IsZero() || wake.After(until) {
			s.now = until
			return
		}
		s.now = wake
	}
}

// line prints a step: its kind's last word, what it is about, and its shares by version.
func (s *scene) line(st Step) string {
	_, kind, _ := strings.Cut(string(st.Kind), ".")
	switch st.Kind {
	case Create:
		return fmt.Sprintf("%s %s=%s", kind, st.Instance.ID, s.version(st.Instance.Digest))
	case Shift:
		text := fmt.Sprintf("%s %s", kind, st.Component)
		for _, sh := range st.Shares {
			text += fmt.Sprintf(" %s:%d", s.version(sh.Version), sh.Percent)
		}
		return text
	case Copying, Copied, CopyFailed, Switch, Deleted:
		text := fmt.Sprintf("%s %s %s", kind, st.Copy.Component, st.Copy.To)
		if st.Copy.From != nil {
			text += " from " + st.Copy.From.String()
		}
		return text
	case Done, Failed, Revert:
		return fmt.Sprintf("%s g%d", kind, st.Generation)
	}
	return fmt.Sprintf("%s %s", kind, st.ID)
}

func (s *scene) version(d digest.Digest) string {
	for _, r := range s.records {
		for _, p := range r.Components {
			if v, _ := p.Component.Digest(); v == d {
				return p.Component.Args[0]
			}
		}
	}
	return "?"
}

// steps returns what was decided since the last call, one turn's steps after the other.
func (s *scene) steps() string {
	text := strings.Join(s.log, "\n")
	s.log = nil
	return text
}

// picture describes the environment as parse reads it: "web: a×2 b×1! a:90 b:10". "!" is not healthy; brackets mean retiring or exited.
func (s *scene) picture() string {
	groups := map[spec.ComponentName]map[string]int{}
	for _, i := range s.env.Instances {
		key := s.version(i.Digest) + "×%d"
		switch {
		case !i.Live():
			key = "(" + key + ")"
		case !i.Healthy():
			key += "!"
		}
		if groups[i.Component] == nil {
			groups[i.Component] = map[string]int{}
		}
		groups[i.Component][key]++
	}
	var parts []string
	for _, c := range slices.Sorted(maps.Keys(groups)) {
		text := string(c) + ":"
		for _, key := range slices.Sorted(maps.Keys(groups[c])) {
			text += " " + fmt.Sprintf(key, groups[c][key])
		}
		for _, sh := range s.env.Traffic[c] {
			text += fmt.Sprintf(" %s:%d", s.version(sh.Version), sh.Percent)
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}

// record writes a release: "web×3=a >db" is component web, 3 replicas of version a, that uses db; "db×1=a*" has a volume,
// which in "db×1=a*!" is copied before a change.
func record(settings release.Rollout, components ...string) release.Record {
	r := release.Record{V: 1, App: "shop", Env: "prod", Rollout: settings}
	for _, text := range components {
		fields := strings.Fields(text)
		name, rest, _ := strings.Cut(fields[0], "×")
		count, version, _ := strings.Cut(rest, "=")
		version, guarded := strings.CutSuffix(version, "!")
		version, volume := strings.CutSuffix(version, "*")
		p := release.Placed{Component: release.Component{
			Name: spec.ComponentName(name), Args: []string{version}, Ports: []release.Port{{Name: "http", Number: 80}},
		}}
		fmt.Sscan(count, &p.Replicas)
		if volume {
			p.Component.Volumes = []release.Volume{{Name: "data", Path: "/data"}}
		}
		if guarded {
			p.Snapshots = []spec.VolumeName{"data"}
		}
		for _, f := range fields[1:] {
			p.Component.Uses = append(p.Component.Uses, release.Use{Component: spec.ComponentName(strings.TrimPrefix(f, ">")), Port: "http", Number: 80})
		}
		r.Components = append(r.Components, p)
		r.Routes = append(r.Routes, release.Route{Name: spec.RouteName(name), Host: name, Path: "/", Component: spec.ComponentName(name), Port: "http"})
	}
	slices.SortFunc(r.Components, func(a, b release.Placed) int { return cmp.Compare(a.Component.Name, b.Component.Name) })
	return r
}

// settings of most tests: two at a time, ten seconds, revert, a quarter of an hour warm.
var settings = release.Rollout{
	MaxParallel: 2, MinHealthyMillis: 10_000, HealthyDeadlineMillis: 300_000, ProgressDeadlineMillis: 600_000,
	AutoRevert: true, KeepWarmMillis: 900_000, DrainMillis: 30_000,
}

// running is a scene in which a release has completed.
func running(settings release.Rollout, components ...string) *scene {
	s := newScene()
	s.head(settings, components...)
	s.thrive(time.Minute)
	s.steps()
	if s.env.Head.Outcome != Completed {
		panic(s.picture())
	}
	return s
}
