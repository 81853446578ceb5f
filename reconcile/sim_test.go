package reconcile_test

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/runtimetest"
	"github.com/invarhq/invar/spec"
)

var (
	simSeeds = flag.Int("sim.seeds", 400/slowdown, "runs of the simulation")
	simSeed  = flag.Uint64("sim.seed", 0, "the one run to repeat; 0: all")
)

// TestSimulation kills the server at random operations, before and after they are done, and everything else as it comes:
// instances, the host, the gateway, writes to the ledger. What must always hold is checked at each entry, each
// creation and each table; what must hold once faults stop, at the end. Repeat a failure with -sim.seed.
func TestSimulation(t *testing.T) {
	seeds := uint64(*simSeeds)
	if testing.Short() {
		seeds = min(seeds, 40)
	}
	var crashes, faults, steps int
	for seed := uint64(1); seed <= seeds; seed++ {
		if *simSeed != 0 {
			seed = *simSeed
		}
		synctest.Test(t, func(t *testing.T) {
			s := newSim(t, seed)
			s.run()
			crashes, faults, steps = crashes+s.crashes, faults+s.faults, steps+s.book.count
		})
		if t.Failed() || *simSeed != 0 {
			break
		}
	}
	t.Logf("%d crashes of the server, %d other faults, %d recorded steps", crashes, faults, steps)
}

// TestSimulationOfDrift is the same, where somebody changes what runs as well, and environments answer in every way.
func TestSimulationOfDrift(t *testing.T) {
	seeds := uint64(max(1, *simSeeds/4))
	if testing.Short() {
		seeds = min(seeds, 10)
	}
	n := map[deploy.Kind]int{}
	for seed := uint64(1); seed <= seeds && !t.Failed(); seed++ {
		if *simSeed != 0 {
			seed = *simSeed
		}
		synctest.Test(t, func(t *testing.T) {
			s := newSim(t, seed)
			s.tampers, s.inspectEvery, s.keep = true, 2*time.Second, s.keepEvidence
			s.run()
			if len(s.differ) > 0 && !s.failed() {
				t.Errorf("seed %d: not resolved: %v\n%s", seed, s.differ, s.trace(150))
			}
			for k, m := range s.told {
				n[k] += m
			}
		})
		if *simSeed != 0 {
			break
		}
	}
	t.Logf("%d findings, %d to be frozen, %d kept, %d resolved", n[deploy.Drifted], n[deploy.Freeze], n[deploy.Frozen], n[deploy.Settled])
}

// keepEvidence names evidence, or can't.
func (s *sim) keepEvidence(_ context.Context, content []byte) (digest.Digest, error) {
	before, after := s.operation(&s.badBooks, "keep")
	if err := cmp.Or(before, after); err != nil {
		return "", err
	}
	return digest.Of(content), nil
}

// sim is one run.
type sim struct {
	*world
	tampers bool
	differ  map[instance.ID]int // findings that are not resolved, by instance
	told    map[deploy.Kind]int

	rand *rand.Rand
	seed uint64

	mu       sync.Mutex
	fuse     int  // operations until the server dies; 0: not lit
	late     bool // it dies after the operation and not before
	badBooks float64
	badRoads float64
	badNets  float64
	broken   []string // violated invariants

	entered map[instance.ID]bool      // has or had an entry
	turned  map[instance.ID]time.Time // when it last changed on the host
	moved   map[spec.EnvName]time.Time
	healed  time.Time // when the last fault ended that could keep the server from seeing or recording; zero: one is on

	crashes, faults int
	records         []release.Record // that were heads
}

// The environments of a run.
var simEnvs = []spec.EnvName{"prod", "test"}

func newSim(t *testing.T, seed uint64) *sim {
	s := &sim{
		seed: seed, rand: rand.New(rand.NewPCG(seed, 1)), healed: time.Now(),
		differ: map[instance.ID]int{}, told: map[deploy.Kind]int{},
		entered: map[instance.ID]bool{}, turned: map[instance.ID]time.Time{}, moved: map[spec.EnvName]time.Time{},
	}
	s.world = newWorld(t, runtimetest.Config{Seed: seed, Behave: s.behave, Watch: s.onHost})
	s.via = mortal{s.host, s}
	s.book.refuse = func() (error, error) { return s.operation(&s.badBooks, "record") }
	s.book.after = s.onRecord
	s.road.check = s.onTable
	s.road.refuse = func() (error, error) { return s.operation(&s.badRoads, "apply") }
	return s
}

// behave makes what an instance does follow from its spec alone.
func (s *sim) behave(r runtime.Spec) runtimetest.Behaviour {
	id := string(r.Identity.ID)
	n := int(id[len(id)-1] - '0')
	b := runtimetest.Behaviour{
		CreateTakes: time.Duration(n%3) * 5 * time.Millisecond, StartTakes: time.Duration(n%2) * time.Millisecond,
		Ready: time.Duration(n) * 100 * time.Millisecond, StopTakes: time.Duration(n%4) * 100 * time.Millisecond,
	}
	switch version(r) {
	case "dies":
		b.ExitAfter, b.ExitCode = time.Second, 1
	case "stuck":
		b.NeverReady = true
	case "rots":
		b.FailAfter = 3 * time.Second
	case "deaf":
		b.StartFails = true
	}
	return b
}

// operation counts towards the server's death, and fails by chance.
func (s *sim) operation(chance *float64, what string) (before, after error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fuse > 0 {
		if s.fuse--; s.fuse == 0 {
			s.cancel()
			if s.late {
				return nil, fault.Errorf(fault.Unavailable, "%s: the server died after it", what)
			}
			return fault.Errorf(fault.Unavailable, "%s: the server died before it", what), nil
		}
	}
	rate := *chance
	switch p := s.rand.Float64(); {
	case p < rate/2:
		return fault.Errorf(fault.Unavailable, "%s: failed", what), nil
	case p < rate:
		return nil, fault.Errorf(fault.Unavailable, "%s: answer lost", what)
	}
	return nil, nil
}

// mortal is the host as the server sees it.
type mortal struct {
	*runtimetest.Fake
	s *sim
}

func (m mortal) do(what string, act func() error) error {
	before, after := m.s.operation(new(float64), what)
	if before != nil {
		return before
	}
	if err := act(); err != nil {
		return err
	}
	return after
}

func (m mortal) Create(ctx context.Context, r runtime.Spec) error {
	return m.do("create", func() error {
		done := make(chan error, 1)
		go func() { done <- m.Fake.Create(context.WithoutCancel(ctx), r) }() // a host goes on with what a dead server asked for
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

func (m mortal) Start(ctx context.Context, id instance.ID) error {
	m.s.onStart(id)
	return m.do("start", func() error { return m.Fake.Start(ctx, id) })
}

func (m mortal) Stop(ctx context.Context, id instance.ID) error {
	m.s.onStop(id)
	return m.do("stop", func() error { return m.Fake.Stop(ctx, id) })
}

func (m mortal) Freeze(ctx context.Context, id instance.ID) error {
	m.s.onStop(id)
	return m.do("freeze", func() error { return m.Fake.Freeze(ctx, id) })
}

func (m mortal) Remove(ctx context.Context, id instance.ID) error {
	return m.do("remove", func() error { return m.Fake.Remove(ctx, id) })
}

func (m mortal) Network(ctx context.Context, id instance.ID) (n runtime.Network, err error) {
	before, after := m.s.operation(&m.s.badNets, "network")
	if err := cmp.Or(before, after); err != nil {
		return n, err
	}
	return m.Fake.Network(ctx, id)
}

func (s *sim) violate(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = append(s.broken, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// onHost checks that nothing comes to be on the host that had no entry before.
func (s *sim) onHost(r runtime.Spec, o instance.Observation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := r.Identity.ID
	s.turned[id] = time.Now()
	if o.State == instance.Created && !s.entered[id] {
		s.broken = append(s.broken, fmt.Sprintf("%s is made on the host and has no entry", id))
	}
}

// onStart checks that an instance finds what it uses from its first instruction on.
func (s *sim) onStart(id instance.ID) {
	uses := strings.HasPrefix(string(id), "web-") || strings.HasPrefix(string(id), "api-")
	s.road.mu.Lock()
	lost := s.road.table.Serial == 0 // as when the gateway died; it gets the table again soon
	open := slices.ContainsFunc(s.road.table.Inside, func(in gateway.Inside) bool { return in.Instance == id })
	s.road.mu.Unlock()
	if uses && !open && !lost {
		s.violate("%s is started and its sockets are not open", id)
	}
}

// onStop checks that an instance has no traffic any more when it is stopped.
func (s *sim) onStop(id instance.ID) {
	s.road.mu.Lock()
	defer s.road.mu.Unlock()
	for _, service := range s.road.table.Services {
		for _, pool := range service.Pools {
			if slices.Contains(pool.Instances, id) {
				s.violate("%s is stopped and has traffic of %s", id, service.Name)
			}
		}
	}
}

// onTable checks that a table has every instance in it that is to have traffic, and none that the ledger, or the host, has had
// as unhealthy since before this moment.
func (s *sim) onTable(t gateway.Table) {
	all, _ := s.host.List(context.Background())
	passing := map[instance.ID]bool{}
	for _, o := range all {
		passing[o.Identity.ID] = o.State == instance.Running && o.Health == instance.Passing
	}
	envs := s.book.Environments()
	s.mu.Lock()
	defer s.mu.Unlock()
	reliable := !s.healed.IsZero() && time.Since(s.healed) > 10*time.Second
	has := map[instance.ID]bool{}
	for _, b := range t.Backends {
		has[b.ID] = true
	}
	for name, e := range envs {
		for id, i := range e.Instances {
			if reliable && e.Serving(i) && passing[id] && !has[id] && s.moved[name] != time.Now() && s.turned[id] != time.Now() {
				s.broken = append(s.broken, fmt.Sprintf("table %d lacks %s", t.Serial, id))
			}
		}
	}
	for _, service := range t.Services {
		for _, pool := range service.Pools {
			for _, id := range pool.Instances {
				name := spec.EnvName(strings.Split(string(service.Name), "/")[0])
				e := envs[name]
				if i, ok := e.Instances[id]; (!ok || !e.Serving(i)) && s.moved[name] != time.Now() {
					s.broken = append(s.broken, fmt.Sprintf("table %d has %s, which the ledger has as unhealthy since %v", t.Serial, id, s.moved[name]))
				}
				if reliable && !passing[id] && s.turned[id] != time.Now() {
					s.broken = append(s.broken, fmt.Sprintf("table %d has %s, which is unhealthy since %v", t.Serial, id, s.turned[id]))
				}
			}
		}
	}
}

// onRecord checks that what was decided takes no healthy instance out of traffic before another took its place. It is called
// with the book's mu held.
func (s *sim) onRecord(name spec.EnvName, before deploy.Environment, steps []deploy.Step) {
	e, excused := before, map[spec.ComponentName]bool{}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moved[name] = time.Now()
	for _, step := range steps {
		if step.Kind == deploy.Create {
			s.entered[step.Instance.ID] = true
		}
	}
	for _, step := range steps {
		from := e
		e, _ = e.Apply(step, time.Now())
		s.told[step.Kind]++
		switch step.Kind {
		case deploy.Drifted:
			s.differ[step.ID]++
		case deploy.Settled:
			if s.differ[step.ID] == 0 {
				s.broken = append(s.broken, fmt.Sprintf("%s: %s, which did not differ", name, line(step)))
			}
			delete(s.differ, step.ID)
		case deploy.Freeze:
			i := from.Instances[step.ID]
			if had := serving(from, i.Component); from.Serving(i) && had == 1 && wanted(from, i.Component) > 1 {
				s.broken = append(s.broken, fmt.Sprintf("%s: %s takes the last that serves of several", name, line(step)))
			}
		case deploy.Failed, deploy.Revert:
			return
		case deploy.Shift, deploy.Retire:
			c := step.Component
			if step.Kind == deploy.Retire {
				c = from.Instances[step.ID].Component
			}
			want, exclusive := 0, false
			for _, p := range e.Head.Record.Components {
				if p.Component.Name == c {
					want, exclusive = p.Replicas, len(p.Component.Volumes) > 0
				}
			}
			if step.Kind == deploy.Shift && len(step.Shares) == 1 && e.Previous.Digests[c] == step.Shares[0].Version {
				excused[c] = true // a canary that is taken back does not count
			}
			had, has := serving(from, c), serving(e, c)
			if has < min(had, want) && !exclusive && !excused[c] {
				s.broken = append(s.broken, fmt.Sprintf("%s: %s leaves %d of %d serving, of %d wanted", name, line(step), has, had, want))
			}
		}
	}
}

func wanted(e deploy.Environment, c spec.ComponentName) int {
	for _, p := range e.Head.Record.Components {
		if p.Component.Name == c {
			return p.Replicas
		}
	}
	return 0
}

func serving(e deploy.Environment, c spec.ComponentName) (n int) {
	for _, i := range e.Instances {
		if i.Component == c && e.Serving(i) {
			n++
		}
	}
	return n
}

func (s *sim) run() {
	s.start(s.t.Context())
	for range 40 {
		s.event()
		s.revive()
		if s.failed() {
			break
		}
	}
	s.calm()
	s.stop()
	if s.failed() {
		s.t.Errorf("seed %d:\n%s\nprod: %s\ntest: %s\ntrace:\n%s", s.seed, strings.Join(s.broken, "\n"),
			s.picture("prod"), s.picture("test"), s.trace(150))
	}
}

func (s *sim) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.broken) > 0
}

// revive starts the server again after it died.
func (s *sim) revive() {
	select {
	case <-s.ended:
	default:
		return
	}
	s.crashes++
	s.book.mark("the server had died")
	s.mu.Lock()
	s.fuse = 0
	s.mu.Unlock()
	s.pass()
	s.start(s.t.Context())
}

// pass lets some time go by: often none or little, sometimes much.
func (s *sim) pass() {
	switch s.pick(8) {
	case 0:
	case 1, 2:
		time.Sleep(time.Duration(s.pick(20)) * time.Millisecond)
	case 3, 4, 5:
		time.Sleep(time.Duration(s.pick(2000)) * time.Millisecond)
	case 6:
		time.Sleep(time.Duration(s.pick(30)) * time.Second)
	default:
		synctest.Wait()
	}
}

func (s *sim) pick(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rand.IntN(n)
}

func oneOf[T any](s *sim, list ...T) T { return list[s.pick(len(list))] }

// event has something happen.
func (s *sim) event() {
	defer s.pass()
	switch s.pick(12) {
	case 0, 1, 2:
		s.propose(oneOf(s, "a", "a", "b", "b", "c", "dies", "stuck", "rots", "deaf"))
	case 3:
		if len(s.records) > 0 {
			s.head(oneOf(s, s.records...))
		}
	case 4:
		if s.pick(4) == 0 {
			s.head(release.Record{})
		}
	case 5, 6, 7:
		s.light()
	case 8, 9:
		s.hurt()
	case 10:
		s.spoil()
	case 11:
		s.heal()
	}
}

// propose makes a release with one component of that version the head.
func (s *sim) propose(v string) {
	settings := release.Rollout{
		MaxParallel: 1 + s.pick(3), Canary: oneOf(s, nil, nil, []int{10, 50}, []int{30}), MinHealthyMillis: oneOf[int64](s, 0, 0, 1000, 5000),
		HealthyDeadlineMillis: 20_000, ProgressDeadlineMillis: 60_000, AutoRevert: s.pick(4) > 0,
		KeepWarmMillis: oneOf[int64](s, 0, 30_000, 900_000), DrainMillis: oneOf[int64](s, 0, 2000),
	}
	versions := []string{oneOf(s, "a", "b"), oneOf(s, "a", "b"), oneOf(s, "a", "a", "b")}
	versions[s.pick(3)] = v
	list := []string{fmt.Sprintf("web×%d=%s >api", s.pick(5), versions[0]), fmt.Sprintf("api×%d=%s >db", 1+s.pick(3), versions[1]), "db×1=" + versions[2] + "*"}
	if s.pick(5) == 0 {
		list[0] = fmt.Sprintf("job×1=%s", versions[0])
	}
	r := app(settings, list...)
	if s.tampers {
		r.OnDrift = oneOf(s, "", spec.Alert, spec.Freeze)
	}
	s.records = append(s.records, r)
	s.book.mark("propose %q", list)
	s.head(r)
}

// head makes a release the head of an environment.
func (s *sim) head(r release.Record) {
	name := oneOf(s, simEnvs...)
	s.mu.Lock()
	s.moved[name] = time.Now()
	s.mu.Unlock()
	s.book.head(s.t, name, r)
}

// light has the server die some operations from now, or at once.
func (s *sim) light() {
	if s.pick(3) == 0 {
		s.stop()
		return
	}
	s.mu.Lock()
	s.fuse, s.late = 1+s.rand.IntN(12), s.rand.IntN(2) == 0
	s.mu.Unlock()
}

// hurt does something to an instance behind the server's back.
func (s *sim) hurt() {
	all := s.host.Specs()
	if len(all) == 0 {
		return
	}
	s.faults++
	id := oneOf(s, all...).Identity.ID
	kinds := []string{"crash", "kill", "oom", "vanish", "fail", "pass"}
	if s.tampers {
		kinds = append(kinds, "tamper", "tamper", "tamper", "tamper", "mend")
	}
	what := oneOf(s, kinds...)
	s.book.mark("%s %s", what, id)
	switch what {
	case "crash":
		s.host.Crash(id, 3)
	case "kill":
		s.host.Kill(id)
	case "oom":
		s.host.OOM(id)
	case "vanish":
		s.host.Vanish(id)
	case "tamper":
		s.host.Tamper(id, drift.Fact{Kind: drift.Port, Field: oneOf(s, "tcp 9", "tcp 10"), Value: "listening"})
	case "mend":
		s.host.Mend(id)
	case "fail":
		s.host.SetHealth(id, instance.Failing)
	case "pass":
		s.host.SetHealth(id, instance.Passing)
	}
}

// spoil makes something unreliable.
func (s *sim) spoil() {
	s.faults++
	s.mu.Lock()
	s.healed = time.Time{}
	s.mu.Unlock()
	switch s.pick(7) {
	case 6:
		s.mu.Lock()
		s.badNets = 0.5
		s.mu.Unlock()
	case 0:
		s.host.SetErrorRates(0.2, 0.2)
	case 1:
		s.host.SetDown(true)
	case 2:
		s.mu.Lock()
		s.badBooks = 0.4
		s.mu.Unlock()
	case 3:
		s.mu.Lock()
		s.badRoads = 0.4
		s.mu.Unlock()
	case 4:
		s.road.mu.Lock()
		s.road.table = gateway.Sealed{}
		s.road.mu.Unlock()
	case 5:
		active := map[instance.ID]int64{}
		for _, r := range s.host.Specs() {
			active[r.Identity.ID] = int64(s.pick(2))
		}
		s.road.mu.Lock()
		s.road.active = active
		s.road.mu.Unlock()
	}
}

// heal makes everything reliable.
func (s *sim) heal() {
	s.host.SetErrorRates(0, 0)
	s.host.SetDown(false)
	s.mu.Lock()
	s.badBooks, s.badRoads, s.badNets = 0, 0, 0
	if s.healed.IsZero() {
		s.healed = time.Now()
	}
	s.mu.Unlock()
}

// calm stops all faults and checks what then must come to be.
func (s *sim) calm() {
	s.mu.Lock()
	s.fuse = 0
	s.mu.Unlock()
	s.heal()
	synctest.Wait()
	s.revive()
	if s.failed() {
		return
	}
	for _, r := range s.host.Specs() {
		s.host.Mend(r.Identity.ID)
	}
	settle(time.Minute)
	s.checkTraffic()
	settle(30 * time.Minute)
	s.checkTraffic()
	final := app(fast, "web×3=a >api", "api×2=b >db", "db×1=a*")
	for _, name := range simEnvs {
		if h := s.env(name).Head; h.Outcome == deploy.Rolling && h.Number > 0 {
			s.violate("generation %d of %s is still under way after half an hour of calm", h.Number, name)
		}
		s.book.head(s.t, name, final)
	}
	settle(30 * time.Minute)
	for _, name := range simEnvs {
		if got, want := s.picture(name), "api: b×2 → b 100; db: a×1 → a 100; web: a×3 → a 100"; got != want {
			s.violate("%s converged to %q, want %q", name, got, want)
		}
	}
	s.checkHost()
	s.checkTraffic()
}

// checkHost checks that host and ledger have the same instances.
func (s *sim) checkHost() {
	var have, want []instance.ID
	for _, r := range s.host.Specs() {
		have = append(have, r.Identity.ID)
	}
	for _, name := range simEnvs {
		want = slices.AppendSeq(want, maps.Keys(s.env(name).Instances))
	}
	if slices.Sort(want); !slices.Equal(have, want) {
		s.violate("the host has %v, the ledger %v", have, want)
	}
	if s.host.Passing() != len(have) {
		s.violate("%d of %d instances pass", s.host.Passing(), len(have))
	}
}

// checkTraffic checks that, when nothing has moved for long, exactly the instances that are healthy on the host have traffic.
func (s *sim) checkTraffic() {
	all, _ := s.host.List(s.t.Context())
	passing := map[instance.ID]bool{}
	for _, o := range all {
		passing[o.Identity.ID] = o.State == instance.Running && o.Health == instance.Passing
	}
	for _, name := range simEnvs {
		e := s.env(name)
		want, got := map[instance.ID]bool{}, map[instance.ID]bool{}
		for id, i := range e.Instances {
			if e.Serving(i) {
				want[id] = true
			}
		}
		for _, c := range []spec.ComponentName{"web", "api", "db", "job"} {
			for id := range s.road.to(gateway.NameService(name, spec.PortRef{Component: c, Port: "http"})) {
				got[id] = true
				if !passing[id] {
					s.violate("%s has traffic and is not healthy", id)
				}
			}
		}
		if !maps.Equal(got, want) {
			s.violate("traffic goes to %v, want %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
		}
	}
}
