package local

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/local/wire"
)

// defaultStopTimeout is between the stop signal and the kill, unless the spec says.
const defaultStopTimeout = 10 * time.Second

// inst is one instance. Its fields below act are guarded by the Host's mu.
type inst struct {
	spec runtime.Spec // without the values of secrets
	act  sync.Mutex   // held by Create and Remove: one at a time

	memory memory // of what looks at it found

	attempt string               // of the launcher's creation that seen is about; "" when an earlier Host made it
	told    string               // names what the launcher says that it was told; "" by one that says nothing
	seen    instance.Observation // State Absent while it is being created
	gone    chan struct{}        // closed when it has exited or is removed
	ended   bool                 // gone is closed
	checks  context.CancelFunc   // ends the health checks; nil when none run
	dead    bool                 // removed from the Host: a late Create must not go on with it
}

func newInst(spec runtime.Spec) *inst {
	return &inst{spec: spec, seen: instance.Observation{Identity: spec.Identity}, gone: make(chan struct{})}
}

func (h *Host) dir(id instance.ID) string { return filepath.Join(h.run, "instances", string(id)) }

// loadSpecs reads back what an earlier Host created.
func (h *Host) loadSpecs() error {
	entries, err := os.ReadDir(filepath.Join(h.run, "instances"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		id := instance.ID(e.Name())
		b, err := os.ReadFile(filepath.Join(h.dir(id), "spec.json"))
		if errors.Is(err, fs.ErrNotExist) {
			b = nil // its creation was cut short
		} else if err != nil {
			return err
		}
		spec := runtime.Spec{Identity: instance.Identity{ID: id}}
		if err := json.Unmarshal(b, &spec); err != nil && b != nil {
			return fault.As(fault.Corrupt, fmt.Errorf("reading the spec of instance %s: %w", id, err))
		}
		h.instances[id] = newInst(spec)
	}
	return nil
}

// note wakes who waits for changes. The caller holds mu.
func (h *Host) note() {
	if h.changed != nil {
		close(h.changed)
		h.changed = nil
	}
}

// Changed implements runtime.Host.
func (h *Host) Changed() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.changed == nil {
		h.changed = make(chan struct{})
	}
	return h.changed
}

// List implements runtime.Host.
func (h *Host) List(context.Context) ([]instance.Observation, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]instance.Observation, 0, len(h.instances))
	for _, i := range h.instances {
		if i.seen.State != instance.Absent {
			list = append(list, i.seen)
		}
	}
	slices.SortFunc(list, func(a, b instance.Observation) int { return cmp.Compare(a.Identity.ID, b.Identity.ID) })
	return list, nil
}

func (h *Host) find(id instance.ID) *inst {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.instances[id]
}

// Create implements runtime.Host.
func (h *Host) Create(ctx context.Context, spec runtime.Spec) error {
	if err := spec.Check(); err != nil {
		return err
	}
	if spec.Isolation == "gvisor" && !h.features.GVisor.OK {
		return fault.WithHint(fault.Errorf(fault.Invalid, "creating instance %s: isolation: gvisor: %s", spec.Identity.ID, h.features.GVisor.Detail),
			"install runsc on this machine, or leave isolation unset")
	}
	for {
		i := h.claim(spec.WithoutSecrets())
		again, err := h.createClaimed(ctx, i, spec)
		if !again {
			return err
		}
	}
}

// claim returns the instance of the spec's ID, a new one when there is none.
func (h *Host) claim(spec runtime.Spec) *inst {
	h.mu.Lock()
	defer h.mu.Unlock()
	i, ok := h.instances[spec.Identity.ID]
	if !ok {
		i = newInst(spec)
		h.instances[spec.Identity.ID] = i
	}
	return i
}

func (h *Host) createClaimed(ctx context.Context, i *inst, spec runtime.Spec) (again bool, err error) {
	i.act.Lock()
	defer i.act.Unlock()
	h.mu.Lock()
	dead, state := i.dead, i.seen.State
	h.mu.Unlock()
	switch {
	case dead:
		return true, nil // removed while this waited: claim anew
	case !reflect.DeepEqual(i.spec, spec.WithoutSecrets()):
		return false, fault.Errorf(fault.Conflict, "creating instance %s: it exists with another spec", spec.Identity.ID)
	case state != instance.Absent:
		return false, nil
	}
	if err := h.make(ctx, i, spec); err != nil {
		err = errors.Join(err, h.discard(context.WithoutCancel(ctx), i))
		return false, unavailable(fmt.Errorf("creating instance %s: %w", spec.Identity.ID, err))
	}
	return false, nil
}

// unavailable gives an error without a kind the one that the contract has for all others.
func unavailable(err error) error {
	if err != nil && fault.KindOf(err) == "" {
		return fault.As(fault.Unavailable, err)
	}
	return err
}

// make does the work of Create. A crash in it leaves an instance that the launcher may not know; the next Host discards it then.
func (h *Host) make(ctx context.Context, i *inst, spec runtime.Spec) error {
	hastened := make(chan struct{})
	go func() {
		defer close(hastened)
		h.hasten()
	}()
	defer func() { <-hastened }()
	oci, err := h.build(ctx, spec)
	if err != nil {
		return err
	}
	id := string(i.spec.Identity.ID)
	request := wire.Request{Op: wire.OpCreate, ID: id, Create: &wire.Create{
		OCI: oci,
		Log: wire.Log{Dir: h.logDir(i.spec.Identity.ID), MaxBytes: h.config.LogFileBytes, Files: h.config.LogFiles},
	}}
	if i.spec.Isolation == "gvisor" {
		request.Create.Runtime = h.features.GVisor.Path
	}
	h.begin(i, request.Create)
	response, err := h.launcher.call(ctx, request)
	for n := 0; errors.Is(err, errBroken) && n < 3; n++ { // the launcher died over it: what it left goes first
		if _, err := h.launcher.callRepeated(ctx, wire.Request{Op: wire.OpRemove, ID: id}); err != nil {
			return err
		}
		if err := os.RemoveAll(filepath.Join(h.dir(i.spec.Identity.ID), "oci")); err != nil {
			return err
		}
		h.begin(i, request.Create)
		response, err = h.launcher.call(ctx, request)
	}
	if err != nil {
		return err
	}
	h.apply(response.Instances)
	return nil
}

// hasten begins early what else would be waited for in the middle of a creation. To move a process into a cgroup of v1, the kernel waits
// for an RCU grace period (7 ms), unless one that another move began is over. So the launcher is moved to where it is.
func (h *Host) hasten() {
	if h.features.CgroupVersion != 1 {
		return // there, a process is made inside its cgroup
	}
	for _, hierarchy := range []string{"unified", "systemd"} {
		procs := filepath.Join("/sys/fs/cgroup", hierarchy, h.cgroupParent(), "_launcher", "cgroup.procs")
		if os.WriteFile(procs, []byte(strconv.FormatInt(h.launcherPID.Load(), 10)), 0) == nil {
			return
		}
	}
}

// begin begins an attempt to create i: what is told of earlier ones no longer counts. The caller holds act.
func (h *Host) begin(i *inst, c *wire.Create) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.attempts++
	c.Attempt = fmt.Sprintf("%d-%d-%d", os.Getpid(), time.Now().UnixNano(), h.attempts)
	i.attempt = c.Attempt
	i.seen = instance.Observation{Identity: i.spec.Identity}
	if i.ended {
		i.ended, i.gone = false, make(chan struct{})
	}
}

// Start implements runtime.Host.
func (h *Host) Start(ctx context.Context, id instance.ID) error {
	h.mu.Lock()
	i, ok := h.instances[id]
	state := instance.Absent
	if ok {
		state = i.seen.State
	}
	h.mu.Unlock()
	switch state {
	case instance.Absent:
		return fault.Errorf(fault.NotFound, "starting instance %s: it is not on this host", id)
	case instance.Exited:
		return fault.Errorf(fault.Conflict, "starting instance %s: it has exited", id)
	case instance.Running:
		return nil
	}
	response, err := h.launcher.callRepeated(ctx, wire.Request{Op: wire.OpStart, ID: string(id)})
	h.apply(response.Instances)
	return unavailable(err)
}

// Stop implements runtime.Host.
func (h *Host) Stop(ctx context.Context, id instance.ID) error {
	h.mu.Lock()
	i, ok := h.instances[id]
	state := instance.Absent
	if ok {
		state = i.seen.State
	}
	h.mu.Unlock()
	switch state {
	case instance.Absent, instance.Exited:
		return nil
	case instance.Running:
		if h.freezer(id).frozen() { // it can't heed a signal, and is not to run on
			return h.killFrozen(ctx, i)
		}
		done, err := h.signalAndWait(ctx, i, i.spec.Signal(), cmp.Or(i.spec.StopTimeout, defaultStopTimeout))
		if done || err != nil {
			return err
		}
	}
	return h.kill(ctx, i)
}

func (h *Host) kill(ctx context.Context, i *inst) error {
	done, err := h.signalAndWait(ctx, i, int(unix.SIGKILL), 10*time.Second)
	if err == nil && !done {
		err = fault.Errorf(fault.Unavailable, "stopping instance %s: it is still there 10s after SIGKILL", i.spec.Identity.ID)
	}
	return err
}

func (h *Host) killFrozen(ctx context.Context, i *inst) error {
	if err := h.freezer(i.spec.Identity.ID).end(); err != nil {
		return fault.As(fault.Unavailable, fmt.Errorf("thawing instance %s: %w", i.spec.Identity.ID, err))
	}
	return h.kill(ctx, i)
}

func (h *Host) signalAndWait(ctx context.Context, i *inst, signal int, limit time.Duration) (gone bool, err error) {
	id := i.spec.Identity.ID
	_, err = h.launcher.callRepeated(ctx, wire.Request{Op: wire.OpSignal, ID: string(id), Signal: signal})
	if errors.Is(err, fault.NotFound) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("stopping instance %s: %w", id, err)
	}
	h.mu.Lock()
	gone = i.ended
	ended := i.gone
	h.mu.Unlock()
	if gone {
		return true, nil
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-ended:
		return true, nil
	case <-timer.C:
		return false, nil
	case <-ctx.Done():
		return false, fault.As(fault.Unavailable, fmt.Errorf("stopping instance %s: %w", id, ctx.Err()))
	}
}

// Remove implements runtime.Host.
func (h *Host) Remove(ctx context.Context, id instance.ID) error {
	i := h.find(id)
	if i == nil {
		return nil
	}
	i.act.Lock()
	defer i.act.Unlock()
	if err := h.discard(ctx, i); err != nil {
		return fmt.Errorf("removing instance %s: %w", id, err)
	}
	h.pruneLogs()
	return nil
}

// discard deletes every trace of i but its volumes and its log. The launcher goes first: what it does not know can be deleted.
func (h *Host) discard(ctx context.Context, i *inst) error {
	id := i.spec.Identity.ID
	if err := h.freezer(id).end(); err != nil {
		return fmt.Errorf("thawing it: %w", err)
	}
	if _, err := h.launcher.callRepeated(ctx, wire.Request{Op: wire.OpRemove, ID: string(id)}); err != nil {
		return err
	}
	i.memory.close()
	if err := h.nets.release(string(id)); err != nil {
		return err
	}
	if err := os.RemoveAll(h.dir(id)); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.instances[id] == i {
		delete(h.instances, id)
	}
	listed := i.seen.State != instance.Absent
	i.dead, i.seen.State = true, instance.Absent
	i.end()
	if listed {
		h.note()
	}
	return nil
}

// end closes gone and ends the checks. The caller holds the Host's mu.
func (i *inst) end() {
	if i.checks != nil {
		i.checks()
		i.checks = nil
	}
	if !i.ended {
		i.ended = true
		close(i.gone)
	}
}

// order ranks the states: what the launcher says may arrive twice and out of order, but an instance never goes back.
var order = map[instance.State]int{instance.Absent: 0, instance.Created: 1, instance.Running: 2, instance.Exited: 3}

// apply takes over what the launcher says of some instances.
func (h *Host) apply(statuses []wire.Status) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range statuses {
		i, ok := h.instances[instance.ID(s.ID)]
		if ok && i.attempt == "" {
			i.attempt = s.Attempt
		}
		if !ok && s.State != wire.Gone {
			h.alien[s.ID] = true // the next scan asks
		}
		if ok && s.State == wire.Running && s.Attempt == i.attempt && len(s.Strangers) > 0 {
			defer h.keepForeign(i, strangers(s.Strangers))
		}
		if !ok || s.State == wire.Gone || s.Attempt != i.attempt || order[instance.State(s.State)] <= order[i.seen.State] {
			continue
		}
		h.advance(i, s)
		h.note()
	}
}

func (h *Host) advance(i *inst, s wire.Status) {
	o := &i.seen
	o.State = instance.State(s.State)
	i.told = s.Told
	o.StartedAt, o.ExitedAt, o.ExitCode, o.OOM = s.StartedAt, s.ExitedAt, s.ExitCode, s.OOM
	o.PID = 0
	switch o.State {
	case instance.Created:
		o.Since = time.Now()
	case instance.Running:
		o.PID = s.PID
		o.Since = time.Now()
		h.beginChecks(i)
		h.watchInstance(i.spec.Identity.ID)
	case instance.Exited:
		o.Health, o.Since, o.Detail = instance.Unknown, s.ExitedAt, exitDetail(s)
		i.end()
	}
}

func exitDetail(s wire.Status) string {
	switch {
	case s.OOM:
		return "out of memory: killed at its limit"
	case s.ExitCode < 0:
		return "exited; its exit code is not known"
	case s.ExitCode > 128:
		return fmt.Sprintf("killed by signal %d", s.ExitCode-128)
	}
	return fmt.Sprintf("exited with code %d", s.ExitCode)
}

// known returns the instances that the launcher should know of now.
func (h *Host) known() []*inst {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []*inst
	for _, i := range h.instances {
		if i.seen.State != instance.Absent {
			list = append(list, i)
		}
	}
	return list
}

// Network implements runtime.Host.
func (h *Host) Network(_ context.Context, id instance.ID) (runtime.Network, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i, ok := h.instances[id]; !ok || i.seen.State == instance.Absent {
		return runtime.Network{}, fault.Errorf(fault.NotFound, "network of instance %s: it is not on this host", id)
	}
	return runtime.Network{Path: h.nets.path(string(id))}, nil
}
