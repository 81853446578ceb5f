package reconcile_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/reconcile"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/runtimetest"
	"github.com/invarhq/invar/spec"
)

// book is the ledger's stand-in: it folds heads and steps, and can fail a write before and after it is done.
type book struct {
	mu      sync.Mutex
	envs    map[spec.EnvName]deploy.Environment
	changed chan struct{}
	entries []string    // what was recorded, for people
	keep    bool        // entries
	illegal func(error) // called when a step is not legal
	refuse  func() (before, after error)
	after   func(_ spec.EnvName, before deploy.Environment, _ []deploy.Step) // called with mu held
	count   int
}

func newBook() *book {
	return &book{envs: map[spec.EnvName]deploy.Environment{}, keep: true, illegal: func(error) {}}
}

func (b *book) Environment(name spec.EnvName) (deploy.Environment, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, ok := b.envs[name]
	return e, ok
}

func (b *book) Environments() map[spec.EnvName]deploy.Environment {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.envs)
}

func (b *book) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.changed == nil {
		b.changed = make(chan struct{})
	}
	return b.changed
}

func (b *book) put(e deploy.Environment) {
	b.envs[e.Name] = e
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
}

func (b *book) Record(ctx context.Context, name spec.EnvName, seen uint64, steps []deploy.Step) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	var before, after error
	if b.refuse != nil {
		before, after = b.refuse()
	}
	if before != nil {
		return before
	}
	e := b.envs[name]
	if e.Seq != seen {
		return fault.Errorf(fault.Conflict, "environment %s is at %d, not %d", name, e.Seq, seen)
	}
	next, err := e.ApplyAll(steps, time.Now())
	if err != nil {
		b.illegal(err)
		return err
	}
	b.put(next)
	b.count += len(steps)
	for _, s := range steps {
		b.note("%s %s", name, line(s))
	}
	if b.after != nil {
		b.after(name, e, steps)
	}
	return after
}

func (b *book) note(format string, args ...any) {
	if b.keep {
		b.entries = append(b.entries, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	}
}

// mark notes something that is no entry.
func (b *book) mark(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.note("  "+format, args...)
}

// line prints a step for people.
func line(s deploy.Step) string {
	id := s.ID
	if s.Instance != nil {
		id = s.Instance.ID
	}
	var shares []string
	for _, sh := range s.Shares {
		shares = append(shares, fmt.Sprintf("%s=%d", sh.Version.Short()[:4], sh.Percent))
	}
	return strings.Join(strings.Fields(fmt.Sprintf("%s %s %s %s %s %s", s.Kind, id, s.Component, strings.Join(shares, ","), gen(s.Generation), s.Cause)), " ")
}

func gen(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint("g", n)
}

// head moves an environment's head to a release, or to none.
func (b *book) head(t testing.TB, name spec.EnvName, r release.Record) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, ok := b.envs[name]
	if !ok {
		e.Name = name
	}
	g := deploy.Generation{Number: e.Head.Number + 1, Record: r}
	if r.V != 0 {
		var err error
		if g.Release, err = r.Digest(); err != nil {
			t.Fatal(err)
		}
	}
	b.put(e.SetHead(g, time.Now()))
	b.note("%s HEAD g%d %s", name, g.Number, g.Release.Short())
}

// roads is the gateway's stand-in.
type roads struct {
	mu      sync.Mutex
	table   gateway.Sealed
	setBy   string
	renewed int
	active  map[instance.ID]int64
	refuse  func() (before, after error)
	check   func(gateway.Table) // called with mu held
	applied int
	changed time.Time
}

func (r *roads) Changed() <-chan struct{} { return nil }

func (r *roads) Renew(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.renewed++
	return ctx.Err()
}

func (r *roads) Replace(ctx context.Context, t gateway.Sealed, over digest.Digest) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	var before, after error
	if r.refuse != nil {
		before, after = r.refuse()
	}
	if before != nil {
		return before
	}
	if over != r.table.Digest {
		return fault.Errorf(fault.Conflict, "table %d, %s, is in force, not %s", r.table.Serial, r.table.Digest, over)
	}
	r.table, r.changed = t, time.Now()
	r.applied++
	if r.check != nil {
		r.check(t.Table)
	}
	return after
}

func (r *roads) Status(ctx context.Context) (gateway.Status, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return gateway.Status{Serial: r.table.Serial, Digest: r.table.Digest, SetBy: r.setBy, Active: maps.Clone(r.active)}, ctx.Err()
}

// since returns when the last table came.
func (r *roads) since() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// tables returns how many tables came.
func (r *roads) tables() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.applied
}

// to returns the instances that have a share of a service's traffic, with their pool's weight, sorted.
func (r *roads) to(service gateway.ServiceName) map[instance.ID]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[instance.ID]int{}
	for _, s := range r.table.Services {
		if s.Name != service {
			continue
		}
		for _, p := range s.Pools {
			for _, id := range p.Instances {
				out[id] = p.Weight
			}
		}
	}
	return out
}

// world is a server with its ledger, host and gateway, in which the server can die and come back.
type world struct {
	t    testing.TB
	book *book
	host *runtimetest.Fake
	via  runtime.Host // what the server sees of host
	road *roads

	alarm  reconcile.Alarm
	places []reconcile.Surrounding

	inspectEvery time.Duration
	touched      func() <-chan struct{}
	keep         func(context.Context, []byte) (digest.Digest, error)

	ids    int
	idMu   sync.Mutex
	cancel context.CancelFunc
	ended  chan struct{}
}

func newWorld(t testing.TB, config runtimetest.Config) *world {
	w := &world{t: t, book: newBook(), road: &roads{}, host: runtimetest.New(config)}
	w.via = w.host
	w.book.illegal = func(err error) { t.Errorf("a step that is not legal: %v", err) }
	return w
}

func (w *world) newID(c spec.ComponentName) instance.ID {
	w.idMu.Lock()
	defer w.idMu.Unlock()
	w.ids++
	return instance.ID(fmt.Sprintf("%s-%010d", c, w.ids))
}

// start starts the server.
func (w *world) start(ctx context.Context) {
	ctx, w.cancel = context.WithCancel(ctx)
	r := reconcile.New(reconcile.Config{Source: w.book, Recorder: w.book, Host: w.via, Traffic: w.road, NewID: w.newID, Alarm: w.alarm, Surroundings: w.places,
		InspectEvery: w.inspectEvery, Touched: w.touched, Keep: w.keep})
	w.ended = make(chan struct{})
	go func() {
		defer close(w.ended)
		r.Run(ctx)
	}()
}

// stop kills the server: what it was doing is cut off where it was.
func (w *world) stop() {
	w.cancel()
	<-w.ended
}

func (w *world) env(name spec.EnvName) deploy.Environment {
	e, _ := w.book.Environment(name)
	return e
}

// trace returns the last entries.
func (w *world) trace(n int) string {
	w.book.mu.Lock()
	defer w.book.mu.Unlock()
	from := max(0, len(w.book.entries)-n)
	return strings.Join(w.book.entries[from:], "\n")
}

// app is a release as the tests write it: "web×3=a >db" is component web, 3 replicas, version a, that uses db; "db×1=a*" has
// a volume. Settings are those of fast unless given.
func app(settings release.Rollout, components ...string) release.Record {
	r := release.Record{V: 1, App: "shop", Env: "prod", Rollout: settings}
	for _, text := range components {
		r.Components = append(r.Components, placed(text))
	}
	slices.SortFunc(r.Components, func(a, b release.Placed) int {
		return strings.Compare(string(a.Component.Name), string(b.Component.Name))
	})
	for _, p := range r.Components {
		r.Routes = append(r.Routes, release.Route{
			Name: spec.RouteName(p.Component.Name), Host: string(p.Component.Name) + ".localhost", Path: "/",
			Component: p.Component.Name, Port: "http", Number: 8080,
		})
	}
	return r
}

func placed(text string) release.Placed {
	fields := strings.Fields(text)
	name, rest, _ := strings.Cut(fields[0], "×")
	count, version, _ := strings.Cut(rest, "=")
	p := release.Placed{Component: release.Component{
		Name: spec.ComponentName(name), Root: digest.Of(nil), Args: []string{"/server"},
		Env: map[string]string{"VERSION": strings.TrimSuffix(version, "*")}, Ports: []release.Port{{Name: "http", Number: 8080}},
	}}
	fmt.Sscan(count, &p.Replicas)
	if strings.HasSuffix(version, "*") {
		p.Component.Volumes = []release.Volume{{Name: "data", Path: "/data"}}
	}
	for _, f := range fields[1:] {
		p.Component.Uses = append(p.Component.Uses, release.Use{Component: spec.ComponentName(strings.TrimPrefix(f, ">")), Port: "http", Number: 8080})
	}
	return p
}

// fast waits for nothing.
var fast = release.Rollout{MaxParallel: 2, HealthyDeadlineMillis: 60_000, ProgressDeadlineMillis: 120_000, AutoRevert: true, KeepWarmMillis: 900_000, DrainMillis: 5_000}

// version returns which version a spec runs.
func version(s runtime.Spec) string {
	for _, kv := range s.Env {
		if v, ok := strings.CutPrefix(kv, "VERSION="); ok {
			return v
		}
	}
	return ""
}

// picture describes an environment: "web: a×2 b×1!" are two healthy instances of version a, one not healthy of b; retiring ones are in
// brackets. With "→" come the shares.
func (w *world) picture(name spec.EnvName) string {
	e := w.env(name)
	groups := map[spec.ComponentName]map[string]int{}
	ver := func(d digest.Digest) string { return e.Components[d].Env["VERSION"] }
	for _, i := range e.Instances {
		key := ver(i.Digest) + "×%d"
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
	var lines []string
	for _, c := range slices.Sorted(maps.Keys(groups)) {
		text := string(c) + ":"
		for _, key := range slices.Sorted(maps.Keys(groups[c])) {
			text += " " + fmt.Sprintf(key, groups[c][key])
		}
		for n, s := range e.Traffic[c] {
			text += map[bool]string{true: " → ", false: "/"}[n == 0] + fmt.Sprintf("%s %d", ver(s.Version), s.Percent)
		}
		lines = append(lines, text)
	}
	return strings.Join(lines, "; ")
}
