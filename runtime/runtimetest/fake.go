// Package runtimetest has the behaviour suite of runtime.Host and an implementation in memory, Fake,
// that passes it and can be made to fail.
//
// A Fake uses no clock but package time, so that in a testing/synctest bubble days pass in milliseconds. What its
// instances do is decided by Config.Behave, once for each instance, from its spec alone; injected errors are decided by
// the seed and by what is asked (not by which goroutine asks first). So equal seeds give equal runs.
// An operation costs about a microsecond, and List of n instances one copy of n observations.
//
//	host := runtimetest.New(runtimetest.Config{
//		Behave: func(s runtime.Spec) runtimetest.Behaviour { return runtimetest.Behaviour{Ready: 20 * time.Millisecond} },
//	})
//	host.FailNext(2)           // two calls fail before they act
//	host.Crash("web-aaaa", 1)  // the process exits by itself
//	host.Vanish("web-aaaa")    // removed behind the caller's back
package runtimetest

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
)

// Behaviour is what one instance does. The zero value starts at once, passes at once, runs until it is stopped, and stops at once.
type Behaviour struct {
	CreateTakes time.Duration // how long Create takes
	StartTakes  time.Duration // how long Start takes
	StopTakes   time.Duration // from the stop signal to the exit; cut by the spec's stop timeout (then it is killed)
	Ready       time.Duration // from the start to the first passing check
	NeverReady  bool          // its checks fail at Ready, and for ever
	FailAfter   time.Duration // from the start until its checks fail for ever; 0: never
	ExitAfter   time.Duration // from the start until it exits by itself; 0: never
	ExitCode    int           // of the exit by itself
	OOM         bool          // that exit is for want of memory: code 137
	StartFails  bool          // Start always fails with fault.Unavailable
}

// Config says how a Fake behaves. The zero value is a perfect host.
type Config struct {
	Seed      uint64
	Behave    func(runtime.Spec) Behaviour             // nil: the zero Behaviour
	HasRoot   func(digest.Digest) bool                 // nil: every root is on the host
	ErrorRate float64                                  // of calls that fail with fault.Unavailable, 0..1
	LostRate  float64                                  // of calls that act, and then fail with fault.Unavailable, 0..1
	CopyTakes time.Duration                            // how long a volume's copy takes
	Watch     func(runtime.Spec, instance.Observation) // called after each change (State Absent after a removal); it must not call the Fake
}

// Counts are how often each operation was asked for, failures included.
type Counts struct{ Create, Start, Stop, Remove, List int }

// Fake is a runtime.Host in memory. Make one with New.
type Fake struct {
	config Config

	mu        sync.Mutex
	instances []*running // sorted by ID
	logs      map[instance.ID][]string
	volumes   map[runtime.Place]runtime.Content
	placing   map[runtime.Place]bool // that are being copied
	attempts  map[string]uint64      // by operation and ID, for the seeded errors
	failNext  int
	loseNext  int
	down      bool
	counts    Counts
	pids      int
	changed   chan struct{} // nil when nobody asked since the last change
}

// running is one instance. It is guarded by the Fake's mu.
type running struct {
	tampered []drift.Fact
	spec     runtime.Spec
	behave   Behaviour
	seen     instance.Observation
	timers   []*time.Timer
	stopping bool
	frozen   bool
	gone     chan struct{} // closed at the exit and at the removal
	ended    bool          // gone is closed
}

var _ runtime.Host = (*Fake)(nil)

// New returns an empty host.
func New(config Config) *Fake {
	return &Fake{
		config:   config,
		logs:     map[instance.ID][]string{},
		volumes:  map[runtime.Place]runtime.Content{},
		placing:  map[runtime.Place]bool{},
		attempts: map[string]uint64{},
		pids:     1000,
	}
}

func (f *Fake) find(id instance.ID) (int, *running) {
	i, ok := slices.BinarySearchFunc(f.instances, id, func(r *running, id instance.ID) int { return cmp.Compare(r.spec.Identity.ID, id) })
	if !ok {
		return i, nil
	}
	return i, f.instances[i]
}

// note publishes a change of r.
func (f *Fake) note(r *running) {
	if f.config.Watch != nil {
		f.config.Watch(r.spec, r.seen)
	}
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// Create implements runtime.Host.
func (f *Fake) Create(ctx context.Context, spec runtime.Spec) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts.Create++
	lost, err := f.fault("create", spec.Identity.ID)
	if err != nil {
		return err
	}
	if err := spec.Check(); err != nil {
		return err
	}
	if f.config.HasRoot != nil && !f.config.HasRoot(spec.Root) {
		return fault.Errorf(fault.NotFound, "creating instance %s: root %s is not on this host", spec.Identity.ID, spec.Root)
	}
	behave := Behaviour{}
	if f.config.Behave != nil {
		behave = f.config.Behave(spec)
	}
	spec = spec.WithoutSecrets()
	if _, old := f.find(spec.Identity.ID); old == nil {
		if err := f.pause(ctx, behave.CreateTakes); err != nil {
			return err
		}
	}
	i, old := f.find(spec.Identity.ID) // again: pause let others in
	if old != nil {
		return cmp.Or(sameSpec(old.spec, spec), lost)
	}
	f.insert(i, spec, behave)
	return lost
}

func sameSpec(have, want runtime.Spec) error {
	if reflect.DeepEqual(have, want) {
		return nil
	}
	return fault.Errorf(fault.Conflict, "creating instance %s: it exists with another spec", want.Identity.ID)
}

func (f *Fake) insert(i int, spec runtime.Spec, behave Behaviour) {
	r := &running{spec: spec, behave: behave, gone: make(chan struct{})}
	r.seen = instance.Observation{Identity: spec.Identity, State: instance.Created, Since: time.Now()}
	f.instances = slices.Insert(f.instances, i, r)
	for _, v := range spec.Volumes {
		if _, ok := f.volumes[v.Place()]; !ok {
			f.volumes[v.Place()] = runtime.Content{Digest: digest.Of([]byte(v.Place().String()))}
		}
	}
	f.log(spec.Identity.ID, "created")
	f.note(r)
}

// Start implements runtime.Host.
func (f *Fake) Start(ctx context.Context, id instance.ID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts.Start++
	lost, err := f.fault("start", id)
	if err != nil {
		return err
	}
	_, r := f.find(id)
	if r == nil {
		return fault.Errorf(fault.NotFound, "starting instance %s: it is not on this host", id)
	}
	if r.behave.StartFails {
		return fault.Errorf(fault.Unavailable, "starting instance %s: refused by its behaviour", id)
	}
	if r.seen.State == instance.Created {
		if err := f.pause(ctx, r.behave.StartTakes); err != nil {
			return err
		}
	}
	switch {
	case r.seen.State == instance.Exited:
		return fault.Errorf(fault.Conflict, "starting instance %s: it has exited", id)
	case r.ended:
		return fault.Errorf(fault.NotFound, "starting instance %s: it was removed", id)
	case r.seen.State == instance.Created:
		f.begin(r)
	}
	return lost
}

// begin lets the process go, and plans what its behaviour says.
func (f *Fake) begin(r *running) {
	f.pids++
	r.seen.State, r.seen.PID, r.seen.StartedAt = instance.Running, f.pids, time.Now()
	f.log(r.spec.Identity.ID, "started")
	f.note(r)
	ready := instance.Passing
	if r.behave.NeverReady {
		ready = instance.Failing
	}
	f.after(r, r.behave.Ready, func() { f.setHealth(r, ready) })
	if d := r.behave.FailAfter; d > 0 {
		f.after(r, d, func() { f.setHealth(r, instance.Failing) })
	}
	if d := r.behave.ExitAfter; d > 0 {
		f.after(r, d, func() { f.exit(r, r.behave.ExitCode, r.behave.OOM) })
	}
}

// after runs act, with mu held, d from now unless r ends before; at once for d of 0.
func (f *Fake) after(r *running, d time.Duration, act func()) {
	if d <= 0 {
		act()
		return
	}
	r.timers = append(r.timers, time.AfterFunc(d, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if r.seen.State == instance.Running && !r.ended {
			act()
		}
	}))
}

func (f *Fake) setHealth(r *running, h instance.Health) {
	if r.seen.State != instance.Running || r.seen.Health == h {
		return
	}
	r.seen.Health, r.seen.Since, r.seen.Detail = h, time.Now(), ""
	if h == instance.Failing {
		r.seen.Detail = "checks fail as its behaviour says"
	}
	f.note(r)
}

func (f *Fake) exit(r *running, code int, oom bool) {
	if r.ended {
		return
	}
	if oom {
		code = 137
	}
	f.end(r)
	s := &r.seen
	s.State, s.PID, s.ExitedAt, s.ExitCode, s.OOM = instance.Exited, 0, time.Now(), code, oom
	s.Health, s.Since, s.Detail = instance.Unknown, s.ExitedAt, fmt.Sprintf("exited with code %d", code)
	f.log(r.spec.Identity.ID, s.Detail)
	f.note(r)
}

func (f *Fake) end(r *running) {
	r.ended = true
	for _, t := range r.timers {
		t.Stop()
	}
	r.timers = nil
	close(r.gone)
}

// Stop implements runtime.Host.
func (f *Fake) Stop(ctx context.Context, id instance.ID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts.Stop++
	lost, err := f.fault("stop", id)
	if err != nil {
		return err
	}
	_, r := f.find(id)
	if r == nil || r.ended {
		return lost
	}
	if r.seen.State == instance.Created {
		f.exit(r, 137, false)
		return lost
	}
	f.signal(r)
	f.mu.Unlock()
	defer f.mu.Lock()
	select {
	case <-r.gone:
		return lost
	case <-ctx.Done():
		return fault.As(fault.Unavailable, fmt.Errorf("stopping instance %s: %w", id, ctx.Err()))
	}
}

// signal makes r exit as its behaviour says; twice is once.
func (f *Fake) signal(r *running) {
	if r.stopping {
		return
	}
	r.stopping = true
	takes, code, limit := r.behave.StopTakes, 0, cmp.Or(r.spec.StopTimeout, 10*time.Second)
	if r.frozen {
		takes, code = 0, 137
	}
	if takes > limit {
		takes, code = limit, 137
	}
	f.after(r, takes, func() { f.exit(r, code, false) })
}

// Remove implements runtime.Host.
func (f *Fake) Remove(_ context.Context, id instance.ID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts.Remove++
	lost, err := f.fault("remove", id)
	if err != nil {
		return err
	}
	f.remove(id)
	return lost
}

func (f *Fake) remove(id instance.ID) {
	i, r := f.find(id)
	if r == nil {
		return
	}
	if !r.ended {
		f.end(r)
	}
	f.instances = slices.Delete(f.instances, i, i+1)
	f.log(id, "removed")
	r.seen = instance.Observation{Identity: r.spec.Identity, State: instance.Absent}
	f.note(r)
}

// List implements runtime.Host.
func (f *Fake) List(context.Context) ([]instance.Observation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts.List++
	if f.down {
		return nil, errDown("listing instances")
	}
	list := make([]instance.Observation, len(f.instances))
	for i, r := range f.instances {
		list[i] = r.seen
	}
	return list, nil
}

// Changed implements runtime.Host.
func (f *Fake) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.changed == nil {
		f.changed = make(chan struct{})
	}
	return f.changed
}

// Network implements runtime.Host. The path names nothing on this machine.
func (f *Fake) Network(_ context.Context, id instance.ID) (runtime.Network, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return runtime.Network{}, errDown("finding a network")
	}
	if _, r := f.find(id); r == nil {
		return runtime.Network{}, fault.Errorf(fault.NotFound, "network of instance %s: it is not on this host", id)
	}
	return runtime.Network{Path: "/fake/netns/" + string(id)}, nil
}

// Measure implements runtime.Host: an instance runs on what it was created with.
func (f *Fake) Measure(_ context.Context, id instance.ID) (runtime.Measurement, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return runtime.Measurement{}, errDown("measuring")
	}
	_, r := f.find(id)
	if r == nil {
		return runtime.Measurement{}, fault.Errorf(fault.NotFound, "measuring instance %s: it is not on this host", id)
	}
	return runtime.Measurement{Root: r.spec.Root}, nil
}

// Inspect implements runtime.Host: an instance is what it was created as, but for what Tamper did.
func (f *Fake) Inspect(_ context.Context, q runtime.Question) (runtime.Inspection, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := q.Spec.Identity.ID
	if f.down {
		return runtime.Inspection{}, errDown("inspecting")
	}
	_, r := f.find(id)
	switch {
	case r == nil:
		return runtime.Inspection{}, fault.Errorf(fault.NotFound, "inspecting instance %s: it is not on this host", id)
	case r.seen.State != instance.Running:
		return runtime.Inspection{}, fault.Errorf(fault.Conflict, "inspecting instance %s: it does not run", id)
	}
	return runtime.Inspection{Want: fakeFacts(q.Spec), Got: drift.Of(append(fakeFacts(r.spec).List(), r.tampered...)...)}, nil
}

// Freeze implements runtime.Host.
func (f *Fake) Freeze(_ context.Context, id instance.ID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	lost, err := f.fault("freeze", id)
	if err != nil {
		return err
	}
	_, r := f.find(id)
	switch {
	case r == nil:
		return fault.Errorf(fault.NotFound, "freezing instance %s: it is not on this host", id)
	case r.seen.State != instance.Running:
		return fault.Errorf(fault.Conflict, "freezing instance %s: it does not run", id)
	}
	r.frozen = true
	for _, t := range r.timers {
		t.Stop()
	}
	r.timers = nil
	return lost
}

// Evidence implements runtime.Host.
func (f *Fake) Evidence(ctx context.Context, q runtime.Question) (runtime.Evidence, error) {
	x, err := f.Inspect(ctx, q)
	if err != nil {
		return runtime.Evidence{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	id := q.Spec.Identity.ID
	_, r := f.find(id)
	if r == nil {
		return runtime.Evidence{}, fault.Errorf(fault.NotFound, "taking evidence of instance %s: it is not on this host", id)
	}
	return runtime.Evidence{
		V: 1, Instance: r.spec.Identity, At: time.Now().UTC().Truncate(time.Millisecond), Frozen: r.frozen, Want: x.Want, Got: x.Got,
		Findings: drift.Compare(x.Want, x.Got), Processes: []runtime.Process{{PID: r.seen.PID, Args: r.spec.Args, InCgroup: true}}, Log: slices.Clone(f.logs[id]),
	}, nil
}

func fakeFacts(s runtime.Spec) drift.Facts {
	list := []drift.Fact{{Kind: drift.Root, Field: "content", Value: string(s.Root)}, {Kind: drift.Process, Field: "arguments", Value: fmt.Sprintf("%q", s.Args)}}
	for _, kv := range s.Env {
		key, value, _ := strings.Cut(kv, "=")
		list = append(list, drift.Fact{Kind: drift.Variable, Field: key, Value: fmt.Sprintf("%q", value)})
	}
	return drift.Of(list...)
}

// Logs implements runtime.Host: what the Fake did with the instance, and what Say added.
func (f *Fake) Logs(ctx context.Context, id instance.ID, w io.Writer, tail int, follow bool) error {
	f.mu.Lock()
	lines, known := slices.Clone(f.logs[id]), f.logs[id] != nil
	f.mu.Unlock()
	if !known {
		return fault.Errorf(fault.NotFound, "log of instance %s: there is none", id)
	}
	written := 0
	if tail >= 0 && len(lines) > tail {
		written = len(lines) - tail
	}
	for {
		for ; written < len(lines); written++ {
			if _, err := fmt.Fprintln(w, lines[written]); err != nil {
				return fmt.Errorf("writing the log of instance %s: %w", id, err)
			}
		}
		if !follow {
			return nil
		}
		changed := f.Changed()
		f.mu.Lock()
		_, r := f.find(id)
		lines = slices.Clone(f.logs[id])
		f.mu.Unlock()
		if len(lines) > written {
			continue
		}
		if r == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

func (f *Fake) log(id instance.ID, line string) { f.logs[id] = append(f.logs[id], line) }

// CopyVolume implements runtime.Host: a copy has the digest of what it is a copy of.
func (f *Fake) CopyVolume(ctx context.Context, c runtime.VolumeCopy, progress func(done, total int64)) (runtime.Content, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lost, err := f.fault("copy volume", instance.ID(c.To.String()))
	if err == nil {
		err = c.Check()
	}
	if err == nil {
		err = f.free(c.To, c.From, !c.Live)
	}
	if err != nil {
		return runtime.Content{}, err
	}
	if made, ok := f.volumes[c.To]; ok {
		return made, lost
	}
	content, ok := f.volumes[c.From]
	if !ok && c.From.Version != 1 {
		return runtime.Content{}, fault.Errorf(fault.NotFound, "copying %s: it is not on this host", c.From)
	}
	f.placing[c.To] = true
	defer delete(f.placing, c.To)
	if err := f.pause(ctx, f.config.CopyTakes); err != nil {
		return runtime.Content{}, err
	}
	if progress != nil {
		progress(1, 1)
	}
	f.volumes[c.To] = content
	return content, lost
}

// free says why a place can't be made or deleted now, or another one not be copied.
func (f *Fake) free(p, used runtime.Place, alone bool) error {
	if f.placing[p] {
		return fault.Errorf(fault.Conflict, "%s is being made or deleted", p)
	}
	for _, r := range f.instances {
		for _, v := range r.spec.Volumes {
			if alone && v.Place() == used {
				return fault.Errorf(fault.Conflict, "instance %s uses %s", r.spec.Identity.ID, used)
			}
		}
	}
	return nil
}

// DeleteVolume implements runtime.Host.
func (f *Fake) DeleteVolume(_ context.Context, p runtime.Place) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	lost, err := f.fault("delete volume", instance.ID(p.String()))
	if err == nil {
		err = cmp.Or(p.Check(), f.free(p, p, true))
	}
	if err != nil {
		return err
	}
	delete(f.volumes, p)
	return lost
}

// DestroyVolumes implements runtime.Host.
func (f *Fake) DestroyVolumes(_ context.Context, env string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.fault("destroy volumes", instance.ID(env)); err != nil {
		return err
	}
	for _, r := range f.instances {
		for _, v := range r.spec.Volumes {
			if v.Env == env {
				return fault.Errorf(fault.Conflict, "destroying the volumes of %s: instance %s uses %s", env, r.spec.Identity.ID, v.Name)
			}
		}
	}
	for v := range f.volumes {
		if v.Env == env {
			delete(f.volumes, v)
		}
	}
	return nil
}

// pause lets d pass without mu.
func (f *Fake) pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	f.mu.Unlock()
	defer f.mu.Lock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return fault.As(fault.Unavailable, ctx.Err())
	}
}

// fault decides whether this call fails: before it acts (err), or after (lost).
func (f *Fake) fault(op string, id instance.ID) (lost, err error) {
	what := op + " " + string(id)
	switch {
	case f.down:
		return nil, errDown(what)
	case f.failNext > 0:
		f.failNext--
		return nil, fault.Errorf(fault.Unavailable, "%s: failed on request, nothing was done", what)
	case f.loseNext > 0:
		f.loseNext--
		return fault.Errorf(fault.Unavailable, "%s: done, answer lost on request", what), nil
	case f.config.ErrorRate == 0 && f.config.LostRate == 0:
		return nil, nil
	}
	f.attempts[what]++
	switch u := chance(f.config.Seed, what, f.attempts[what]); {
	case u < f.config.ErrorRate:
		return nil, fault.Errorf(fault.Unavailable, "%s: failed by chance, nothing was done", what)
	case u < f.config.ErrorRate+f.config.LostRate:
		return fault.Errorf(fault.Unavailable, "%s: done, answer lost by chance", what), nil
	}
	return nil, nil
}

func errDown(what string) error { return fault.Errorf(fault.Unavailable, "%s: the host is down", what) }

// chance maps its arguments to [0, 1), evenly.
func chance(seed uint64, what string, nth uint64) float64 {
	h := fnv.New64a()
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:8], seed)
	binary.LittleEndian.PutUint64(b[8:], nth)
	h.Write(b[:])
	io.WriteString(h, what)
	x := h.Sum64() // FNV's high bits are weak on short input: finish as SplitMix64 does
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return float64((x^x>>31)>>11) / (1 << 53)
}
