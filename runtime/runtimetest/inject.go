package runtimetest

import (
	"slices"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
)

// FailNext makes the next n calls that act (Create, Start, Stop, Remove, DestroyVolumes) fail before they do anything.
func (f *Fake) FailNext(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failNext = n
}

// LoseNext makes the next n calls that act do so, and then fail, as when an answer is lost.
func (f *Fake) LoseNext(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loseNext = n
}

// SetErrorRates replaces the rates of Config: 0, 0 for the quiet end of a simulation.
func (f *Fake) SetErrorRates(errors, lost float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.config.ErrorRate, f.config.LostRate = errors, lost
}

// SetDown makes every call fail until it is undone. Instances run on.
func (f *Fake) SetDown(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

// Crash makes a running instance exit with the code.
func (f *Fake) Crash(id instance.ID, code int) error {
	return f.with(id, func(r *running) { f.exit(r, code, false) })
}

// Kill kills a running instance behind the caller's back, as kill -9 does.
func (f *Fake) Kill(id instance.ID) error { return f.Crash(id, 137) }

// OOM kills a running instance for want of memory.
func (f *Fake) OOM(id instance.ID) error {
	return f.with(id, func(r *running) { f.exit(r, 137, true) })
}

// Vanish removes an instance behind the caller's back: it is no longer listed.
func (f *Fake) Vanish(id instance.ID) error {
	return f.with(id, func(*running) { f.remove(id) })
}

// SetHealth makes the checks of a running instance tell h from now on, until a timer of its Behaviour says otherwise.
func (f *Fake) SetHealth(id instance.ID, h instance.Health) error {
	return f.with(id, func(r *running) { f.setHealth(r, h) })
}

// Tamper makes an instance differ from what it was created as.
func (f *Fake) Tamper(id instance.ID, fact drift.Fact) error {
	return f.with(id, func(r *running) { r.tampered = append(r.tampered, fact) })
}

// Mend undoes what Tamper did.
func (f *Fake) Mend(id instance.ID) error {
	return f.with(id, func(r *running) { r.tampered = nil })
}

// Say adds a line to an instance's log.
func (f *Fake) Say(id instance.ID, line string) error {
	return f.with(id, func(r *running) {
		f.log(id, line)
		f.note(r)
	})
}

func (f *Fake) with(id instance.ID, act func(*running)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, r := f.find(id)
	if r == nil {
		return fault.Errorf(fault.NotFound, "instance %s is not on this host", id)
	}
	act(r)
	return nil
}

// Running returns how many instances run.
func (f *Fake) Running() int {
	return f.count(func(o instance.Observation) bool { return o.State == instance.Running })
}

// Passing returns how many instances run and pass their checks.
func (f *Fake) Passing() int {
	return f.count(func(o instance.Observation) bool { return o.State == instance.Running && o.Health == instance.Passing })
}

// Len returns how many instances there are, in any state.
func (f *Fake) Len() int { return f.count(func(instance.Observation) bool { return true }) }

func (f *Fake) count(pass func(instance.Observation) bool) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.instances {
		if pass(r.seen) {
			n++
		}
	}
	return n
}

// Specs returns the spec of every instance, sorted by ID.
func (f *Fake) Specs() []runtime.Spec {
	f.mu.Lock()
	defer f.mu.Unlock()
	specs := make([]runtime.Spec, len(f.instances))
	for i, r := range f.instances {
		specs[i] = r.spec
	}
	return specs
}

// Volumes returns the names of an environment's volumes as component/name, sorted.
func (f *Fake) Volumes(env string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for v := range f.volumes {
		if v.Env == env {
			names = append(names, v.Component+"/"+v.Name)
		}
	}
	slices.Sort(names)
	return names
}

// Counts returns how often each operation was asked for.
func (f *Fake) Counts() Counts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts
}
