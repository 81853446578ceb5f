package deploy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/spec"
)

// Next returns the steps that bring what the host has towards what the head wants, at time now. They are legal in this
// order, are to be recorded together, and are none when nothing differs.
//
// have is all that the host knows of the environment's instances. An instance of which an act is under way, so that the
// host may not know it yet, is to be in it as instance.Created; one that is not in it and has been healthy is gone.
// newID names new instances.
func Next(e Environment, have []instance.Observation, now time.Time, newID func(spec.ComponentName) instance.ID) []Step {
	if e.Head.Number == 0 && len(e.Instances) == 0 {
		return nil
	}
	t := newTurn(e, have, now, newID)
	t.decide()
	return t.steps
}

func (t *turn) decide() {
	t.observe()
	t.freeze()
	t.judge()
	t.roll()
	t.finish()
}

// turn is one decision under way. Every step is folded into e as it is decided, so that the next follows from it.
type turn struct {
	e      Environment
	cloned bool
	have   map[instance.ID]instance.Observation
	now    time.Time
	newID  func(spec.ComponentName) instance.ID
	groups map[spec.ComponentName][]instance.ID // of e.Instances, sorted
	order  []release.Placed                     // of the head, what is used before what uses it
	steps  []Step
	wake   time.Time // the earliest time after now at which a condition that was looked at changes; zero: none
	err    error     // the first step that was not legal; there is none
}

func newTurn(e Environment, have []instance.Observation, now time.Time, newID func(spec.ComponentName) instance.ID) *turn {
	t := &turn{e: e, now: now, newID: newID, order: byUse(e.Head.Record)}
	t.have = make(map[instance.ID]instance.Observation, len(have))
	for _, o := range have {
		t.have[o.Identity.ID] = o
	}
	t.group()
	return t
}

func (t *turn) group() {
	t.groups = map[spec.ComponentName][]instance.ID{}
	for id, i := range t.e.Instances {
		t.groups[i.Component] = append(t.groups[i.Component], id)
	}
	for _, ids := range t.groups {
		slices.Sort(ids)
	}
}

// emit decides a step.
func (t *turn) emit(s Step) {
	if !t.cloned {
		t.e, t.cloned = t.e.clone(), true
	}
	if err := t.e.apply(s, t.now); err != nil {
		t.err = cmp.Or(t.err, err)
		return
	}
	t.steps = append(t.steps, s)
}

// reached reports whether a time has come, and else remembers it for Wake.
func (t *turn) reached(at time.Time) bool {
	if !t.now.Before(at) {
		return true
	}
	if t.wake.IsZero() || at.Before(t.wake) {
		t.wake = at
	}
	return false
}

// observe turns what the host sees into steps.
func (t *turn) observe() {
	for _, id := range slices.Sorted(maps.Keys(t.e.Instances)) {
		i := t.e.Instances[id]
		o, seen := t.have[id]
		t.suspect(i, o)
		t.measure(i, o)
		switch {
		case !seen && !i.Live():
			t.gone(id, "")
		case !seen && i.EverHealthy, seen && o.State == instance.Absent && i.Live():
			t.gone(id, cmp.Or(o.Detail, "it disappeared from the host"))
		case !i.Live():
		case o.State == instance.Exited:
			t.emit(Step{Kind: Exited, ID: id, ExitCode: o.ExitCode, OOM: o.OOM, Cause: exitCause(o)})
		case !i.FreezeAt.IsZero(): // it answers nobody, and that is no failure
		case o.State == instance.Running && o.Health == instance.Passing && i.Health != instance.Passing:
			t.emit(Step{Kind: Healthy, ID: id})
		case o.State == instance.Running && o.Health == instance.Failing && i.Health == instance.Passing:
			t.emit(Step{Kind: Failing, ID: id, Cause: cmp.Or(o.Detail, "its checks fail")})
		default:
			t.await(i, o)
		}
	}
	t.group()
}

// gone records that the host has the instance no more, and with it what that resolves.
func (t *turn) gone(id instance.ID, cause string) {
	if i := t.e.Instances[id]; len(i.Drift) > 0 {
		t.outlive(i)
	}
	t.emit(Step{Kind: Gone, ID: id, Cause: cause})
}

func exitCause(o instance.Observation) string {
	switch {
	case o.OOM:
		return cmp.Or(o.Detail, "out of memory: killed at its limit")
	case o.ExitCode < 0:
		return cmp.Or(o.Detail, "exited, with a code that is not known")
	}
	return cmp.Or(o.Detail, fmt.Sprintf("exited with code %d", o.ExitCode))
}

// await gives up on an instance that was never healthy by its deadline.
func (t *turn) await(i Instance, o instance.Observation) {
	limit := millis(t.e.rollout().HealthyDeadlineMillis)
	if i.EverHealthy || i.Health == instance.Failing || limit <= 0 {
		return
	}
	since := i.CreatedAt
	if o.StartedAt.After(since) {
		since = o.StartedAt
	}
	if !t.reached(since.Add(limit)) {
		return
	}
	cause := fmt.Sprintf("not healthy within %v", limit)
	if o.Detail != "" {
		cause += ": " + o.Detail
	}
	t.emit(Step{Kind: Failing, ID: i.ID, Cause: cause})
}

// judge fails the rollout that can't succeed any more, and reverts it.
func (t *turn) judge() {
	h := t.e.Head
	if h.Outcome != Rolling {
		return
	}
	cause := t.verdict()
	if cause == "" {
		return
	}
	t.emit(Step{Kind: Failed, Generation: h.Number, Cause: cause})
	target := t.e.Previous.Release
	if !h.Record.Rollout.AutoRevert || target == "" || t.e.Previous.Revoked || h.Reverts || target == h.Release && len(h.takeBack()) == 0 {
		return
	}
	t.emit(Step{Kind: Revert, Generation: h.Number + 1, Release: target, Cause: cause})
	t.order = byUse(t.e.Head.Record)
}

// verdict returns why the rollout failed, "" when it did not.
func (t *turn) verdict() string {
	for _, name := range t.e.Changing {
		trouble := t.e.Trouble[t.e.Head.Digests[name]]
		switch {
		case trouble.Late:
			return fmt.Sprintf("%s: %s", name, trouble.Cause)
		case trouble.Count >= maxFailures:
			return fmt.Sprintf("%s: failed %d times running: %s", name, trouble.Count, trouble.Cause)
		}
	}
	if cause := t.e.spoiled(); cause != "" {
		return cause
	}
	r := t.e.rollout()
	limit := millis(r.ProgressDeadlineMillis)
	if len(Copies(t.e)) > 0 {
		return "" // however long that takes, it goes on
	}
	if limit <= 0 || t.e.Head.Release == "" || !t.reached(t.e.ProgressAt.Add(limit+millis(r.MinHealthyMillis))) {
		return ""
	}
	cause := fmt.Sprintf("no progress for %v", limit)
	for _, name := range t.e.Changing {
		if trouble := t.e.Trouble[t.e.Head.Digests[name]]; trouble.Cause != "" {
			cause += fmt.Sprintf("; %s: %s", name, trouble.Cause)
		}
	}
	return cause
}

// roll carries every component of the head one turn further, used ones first.
func (t *turn) roll() {
	t.abandon()
	for _, p := range t.order {
		if !t.furnish(p) {
			continue
		}
		f := t.fleetOf(t.e.Head, p)
		switch {
		case f.share == 100:
			t.heal(f)
		case t.e.Head.Outcome == Broken:
			t.fallBack(f)
		default:
			t.replace(f)
			if f = t.fleetOf(t.e.Head, p); f.share == 100 {
				t.heal(f)
			}
		}
	}
	t.healOld()
}

// heal brings the number of a serving version's instances to what is wanted.
func (t *turn) heal(f fleet) {
	if f.exclusive() {
		t.healAlone(f)
		return
	}
	t.create(f, t.atOnce(f, f.want-len(f.healthy)-len(f.starting)))
	// A failing or tainted instance stays until the replacement is healthy: it may yet be the last that works.
	surplus := min(len(f.failing), len(f.healthy)+len(f.failing)-f.want)
	for n := range surplus {
		t.retire(f.failing[n].ID, "replaced: "+f.failing[n].replaced())
	}
}

// healAlone heals a version that nothing can start beside.
func (t *turn) healAlone(f fleet) {
	for _, i := range f.failing {
		if t.spent(i) {
			t.retire(i.ID, i.replaced())
			continue
		}
		if !i.EverHealthy || t.reached(i.HealthAt.Add(millis(t.e.rollout().HealthyDeadlineMillis))) {
			t.retire(i.ID, "failing for too long: "+i.Cause)
		}
	}
	present := len(f.healthy) + len(f.starting) + len(f.failing) + f.aside + f.ending
	t.createAlone(f, t.atOnce(f, f.want-present))
}

// atOnce returns how many of the missing instances may start now. A rollout goes by max_parallel; healing does not wait.
func (t *turn) atOnce(f fleet, missing int) int {
	if t.e.Head.Outcome == Rolling && slices.Contains(t.e.Changing, f.name) {
		return min(missing, max(1, t.e.rollout().MaxParallel)-len(f.starting))
	}
	return missing
}

// healOld heals the version of the previous release where it still has traffic.
func (t *turn) healOld() {
	if t.e.Head.Release == "" {
		return
	}
	for _, p := range t.e.Previous.Record.Components {
		if name := p.Component.Name; t.e.Previous.Digests[name] == t.e.Head.Digests[name] {
			continue
		}
		if f := t.fleetOf(t.e.Previous, p); f.share > 0 {
			f.want = max(f.want, f.own) // until the switch it has what it has, and a tainted one a replacement
			t.heal(f)
		}
	}
}

// replace goes one turn further from the version that has the traffic to the head's.
func (t *turn) replace(f fleet) {
	if t.ready(f.component) {
		if f.exclusive() && !t.vacate(f) {
			return
		}
		missing := f.need(t.e.Head.Record.Rollout) - len(f.healthy) - len(f.starting)
		if f.exclusive() {
			t.createAlone(f, t.atOnce(f, missing-len(f.failing)-f.aside-f.ending))
		} else {
			t.create(f, t.atOnce(f, missing))
		}
	}
	for _, i := range f.failing {
		if f.share == 0 || f.serving > 0 && (!t.e.Serving(i) || len(f.healthy) >= f.need(t.e.Head.Record.Rollout)) {
			t.retire(i.ID, i.replaced())
		}
	}
	t.shiftTowards(f)
}

// ready reports whether all that the component uses have their rollout behind them.
func (t *turn) ready(c release.Component) bool {
	for _, u := range c.Uses {
		if v, ok := t.e.Head.Digests[u.Component]; ok && u.Component != c.Name && share(t.e.Traffic[u.Component], v) != 100 {
			return false
		}
	}
	return true
}

// vacate makes room for a version that can't run beside another; true: there is room.
func (t *turn) vacate(f fleet) bool {
	if len(t.e.Traffic[f.name]) > 0 {
		t.emit(Step{Kind: Shift, Component: f.name, Cause: "its volume has one owner at a time: the old instances end before the new ones begin"})
	}
	for _, id := range t.groups[f.name] {
		if i := t.e.Instances[id]; i.Digest != f.version && i.Live() {
			t.retire(id, "makes room for "+f.version.Short())
		}
	}
	return f.others == 0
}

// shiftTowards gives the head's version the traffic that it may have now.
func (t *turn) shiftTowards(f fleet) {
	percent := f.percent(t)
	if percent <= f.share {
		return
	}
	shares := []Share{{f.version, percent}}
	if percent < 100 {
		shares = append(shares, Share{f.stable, 100 - percent})
	}
	t.emit(Step{Kind: Shift, Component: f.name, Shares: shares})
}

// fallBack takes a failed version's part of the traffic back.
func (t *turn) fallBack(f fleet) {
	if f.share > 0 && f.serving > 0 {
		t.emit(Step{Kind: Shift, Component: f.name, Shares: []Share{{f.stable, 100}}, Cause: t.e.Head.Cause})
	}
}

// create creates up to n instances, unless the version's failures say to wait.
func (t *turn) create(f fleet, n int) {
	if n <= 0 || !t.reached(t.e.Trouble[f.version].RetryAt()) {
		return
	}
	for range n {
		id := t.newID(f.name)
		t.emit(Step{Kind: Create, Instance: &instance.Identity{
			ID: id, Env: t.e.Name, Component: f.name, Digest: f.version, Release: f.release, Generation: f.generation,
		}, Cause: t.why(f)})
		t.groups[f.name] = append(t.groups[f.name], id)
	}
}

// createAlone creates instances that have volumes, once those are copied that are to be.
func (t *turn) createAlone(f fleet, n int) {
	if n > 0 && t.protect(f) {
		t.create(f, n)
	}
}

func (t *turn) why(f fleet) string {
	if trouble := t.e.Trouble[f.version]; trouble.Cause != "" {
		return "replaces one that failed: " + trouble.Cause
	}
	for _, i := range f.failing {
		if taint, ok := i.Tainted(); ok {
			return fmt.Sprintf("replaces %s, which is tainted: %s", i.ID, taint.Cause)
		}
	}
	return ""
}

// finish does what comes once every component of the head has its traffic: the rest of the old goes.
func (t *turn) finish() {
	if t.settled() {
		t.endRemoved()
		t.trim()
		if t.e.Head.Outcome == Rolling && t.complete() {
			t.emit(Step{Kind: Done, Generation: t.e.Head.Number})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.groups)) {
		for _, id := range t.groups[name] {
			if i, ok := t.e.Instances[id]; ok && i.Live() && !t.keeps(i) {
				t.retire(id, "no longer wanted")
			}
		}
	}
}

// settled reports whether every component's traffic is with the head's version.
func (t *turn) settled() bool {
	for name, v := range t.e.Head.Digests {
		if share(t.e.Traffic[name], v) != 100 {
			return false
		}
	}
	return true
}

// endRemoved takes the traffic of components that the head does not have.
func (t *turn) endRemoved() {
	for _, name := range slices.Sorted(maps.Keys(t.e.Traffic)) {
		if _, ok := t.e.Head.Digests[name]; !ok {
			t.emit(Step{Kind: Shift, Component: name, Cause: "the release has no such component"})
		}
	}
}

// trim retires instances in excess: those that are not healthy first, then the youngest.
func (t *turn) trim() {
	for _, p := range t.order {
		f := t.fleetOf(t.e.Head, p)
		surplus := len(f.healthy) + len(f.starting) - f.want
		for _, i := range slices.Concat(f.starting, f.healthy)[:max(0, surplus)] {
			t.retire(i.ID, "more than enough")
		}
	}
}

// complete reports whether the rollout has brought about all that it had to.
func (t *turn) complete() bool {
	if t.e.Head.Release == "" {
		return len(t.e.Instances) == 0
	}
	if len(t.e.unswitched("")) > 0 {
		return false
	}
	for _, name := range t.e.Changing {
		if f := t.fleetOf(t.e.Head, placed(t.e.Head.Record, name)); f.counted < f.want {
			return false
		}
	}
	return true
}

// keeps reports whether a live instance has a reason to be: traffic, a rollout under way, or a rollback that may come.
func (t *turn) keeps(i Instance) bool {
	h := t.e.Head
	switch {
	case h.Digests[i.Component] != i.Digest && share(t.e.Traffic[i.Component], i.Digest) == 0 && t.spent(i):
		return false
	case share(t.e.Traffic[i.Component], i.Digest) > 0:
		return i.EverHealthy || h.Digests[i.Component] == i.Digest || t.e.Previous.Digests[i.Component] == i.Digest
	case h.Digests[i.Component] == i.Digest:
		return h.Outcome != Broken
	case h.Release == "" || t.e.Previous.Digests[i.Component] != i.Digest || !i.Healthy():
		return false
	case h.Outcome == Rolling:
		return true
	}
	return !i.LeftTraffic.IsZero() && !t.reached(i.LeftTraffic.Add(millis(t.e.rollout().KeepWarmMillis)))
}

// Wake returns the earliest time at which Next or Acts could give something new although nothing else happens; the zero
// time when there is none. It is meant for an environment and a host for which Next gives nothing now.
func Wake(e Environment, have []instance.Observation, now time.Time) time.Time {
	never := func(c spec.ComponentName) instance.ID { return "" }
	t := newTurn(e, have, now, never)
	t.decide()
	for _, i := range t.e.Instances {
		if !i.RetiringAt.IsZero() {
			t.reached(i.RetiringAt.Add(t.e.drain(i)))
		}
		if i.freezing() {
			t.reached(i.FreezeAt.Add(t.e.freezeDrain(i)))
		}
	}
	return t.wake
}

// byUse returns a release's components, what is used before what uses it, else by name.
func byUse(r release.Record) []release.Placed {
	byName := make(map[spec.ComponentName]release.Placed, len(r.Components))
	for _, p := range r.Components {
		byName[p.Component.Name] = p
	}
	order := make([]release.Placed, 0, len(r.Components))
	visited := map[spec.ComponentName]bool{}
	var visit func(spec.ComponentName)
	visit = func(name spec.ComponentName) {
		p, ok := byName[name]
		if !ok || visited[name] {
			return
		}
		visited[name] = true
		for _, u := range p.Component.Uses {
			visit(u.Component)
		}
		order = append(order, p)
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		visit(name)
	}
	return order
}

// fleet is what there is of one version of a component.
type fleet struct {
	name       spec.ComponentName
	component  release.Component
	snapshots  []spec.VolumeName // that are copied before another version gets them
	version    digest.Digest
	want       int
	release    digest.Digest // for which new instances are made, and in which generation
	generation int

	starting, healthy, failing []Instance // live ones, youngest first; failing: and those to be replaced for a taint, which come last
	counted                    int        // healthy for min_healthy_time
	veterans                   int        // of the counted, those that have had traffic before
	own                        int        // that have traffic
	ending                     int        // retiring or exited, not yet gone
	aside                      int        // barred, and a session is still open in it

	share   int           // percent of the traffic
	held    bool          // it has had that share for min_healthy_time
	known   bool          // the last completed release has this version
	others  int           // instances of other versions that are not gone
	stable  digest.Digest // the other version with healthy instances and the largest share
	steady  int           // how many it has
	serving int           // instances of other versions that have traffic
}

// fleetOf returns what there is of the version that generation g has of the component.
func (t *turn) fleetOf(g Generation, p release.Placed) fleet {
	name := p.Component.Name
	v := g.Digests[name]
	f := fleet{
		name: name, component: p.Component, snapshots: p.Snapshots, version: v, want: p.Replicas, release: g.Release, generation: t.e.Head.Number,
		known: t.e.Previous.Digests[name] == v,
	}
	shares := t.e.Traffic[name]
	f.share = share(shares, v)
	settle := millis(t.e.rollout().MinHealthyMillis)
	f.held = t.e.Head.Outcome == Rolling && t.reached(t.e.ShiftedAt[name].Add(settle))
	largest, healthy := 0, map[digest.Digest]int{}
	for _, id := range t.groups[name] {
		i, ok := t.e.Instances[id]
		if !ok {
			continue
		}
		t.enlist(&f, i, settle)
		if percent := share(shares, i.Digest); i.Digest != v && t.e.Serving(i) {
			healthy[i.Digest]++
			if percent > largest {
				f.stable, largest = i.Digest, percent
			}
		}
	}
	f.steady = healthy[f.stable]
	for _, list := range [][]Instance{f.starting, f.healthy, f.failing} {
		slices.SortStableFunc(list, func(a, b Instance) int { return b.CreatedAt.Compare(a.CreatedAt) })
	}
	slices.SortStableFunc(f.failing, func(a, b Instance) int { return cmp.Compare(rank(t.e, a), rank(t.e, b)) })
	return f
}

// rank has those retired last that still have traffic.
func rank(e Environment, i Instance) int {
	if e.Serving(i) {
		return 1
	}
	return 0
}

// enlist counts the instance in the fleet.
func (t *turn) enlist(f *fleet, i Instance, settle time.Duration) {
	if i.Digest == f.version && t.e.Serving(i) {
		f.own++
	}
	switch {
	case i.Digest != f.version:
		f.others++
		if t.e.Serving(i) {
			f.serving++
		}
	case !i.Live():
		f.ending++
	case i.Health == instance.Failing || t.spent(i):
		f.failing = append(f.failing, i)
	case i.Barred:
		f.aside++
	case i.Health == instance.Unknown:
		f.starting = append(f.starting, i)
	default:
		f.healthy = append(f.healthy, i)
		if t.e.Head.Outcome == Rolling && t.reached(i.HealthAt.Add(settle)) {
			f.counted++
			if !i.LeftTraffic.IsZero() {
				f.veterans++
			}
		}
	}
}

// exclusive reports whether instances of the version can't run beside those of another: they share volumes.
func (f fleet) exclusive() bool { return len(f.component.Volumes) > 0 }

// enough returns how many counted instances can take over from those that serve, without fewer serving than before.
func (f fleet) enough() int { return min(f.want, max(1, f.serving)) }

// proven reports whether the version can take the traffic without canary: it has had it before.
func (f fleet) proven() bool {
	return f.known && f.share > 0 || (f.known || f.veterans >= f.enough()) && f.counted >= f.enough()
}

// canary returns the next step's percent, 100 when there is none left.
func (f fleet) canary(r release.Rollout) int {
	if f.serving == 0 {
		return 100
	}
	for _, p := range r.Canary {
		if p > f.share && p < 100 {
			return p
		}
	}
	return 100
}

// need returns how many instances the next step takes.
func (f fleet) need(r release.Rollout) int {
	if f.known || f.veterans > 0 {
		return f.want
	}
	return f.part(f.canary(r))
}

// part returns how many instances a percentage of the traffic takes, rounded up: more where the version that keeps the rest has fewer
// than serve now, because a third one loses its share.
func (f fleet) part(percent int) int {
	return max((f.want*percent+99)/100, f.enough()-f.steady)
}

// percent returns the part of the traffic that the version may have now.
func (f fleet) percent(t *turn) int {
	next := f.canary(t.e.Head.Record.Rollout)
	switch {
	case f.want == 0:
		return 100
	case len(f.healthy) > 0 && f.proven():
		return 100
	case f.counted > 0 && f.serving == 0:
		return 100
	case f.share > 0 && (!f.held || len(f.failing) > 0):
		return f.share
	case f.counted >= f.part(next):
		return next
	}
	return f.share
}
