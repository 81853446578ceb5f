package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/runtime/local/tampering"
)

const (
	foundWithin  = 5 * time.Second
	healedWithin = 20 * time.Second
	laneLength   = 2 // tampers after each other, and one without a server: the fourth replacement of a version in a row is made to wait
)

// A lane is a component with two instances and a route, and what is done to it, one after the other. Lanes go on beside each other.
type lane struct {
	name      string
	kinds     []tampering.Kind
	unwatched []tampering.Kind // one at the most, while no server runs
	image     bool             // it has a root of its own
}

func (l lane) host() string { return l.name + ".localhost" }

// lanesOf spreads the kinds over lanes. What hits all instances of a root has a lane with a root of its own.
func lanesOf(kinds []tampering.Kind) []lane {
	var wide, narrow, unwatched []tampering.Kind
	for _, k := range kinds {
		switch {
		case k.Unwatched:
			unwatched = append(unwatched, k)
		case k.Wide:
			wide = append(wide, k)
		default:
			narrow = append(narrow, k)
		}
	}
	var lanes []lane
	for some := range slices.Chunk(wide, laneLength) {
		lanes = append(lanes, lane{kinds: some, image: true})
	}
	for some := range slices.Chunk(narrow, laneLength) {
		lanes = append(lanes, lane{kinds: some})
	}
	for n, k := range unwatched {
		if n == len(lanes) {
			lanes = append(lanes, lane{})
		}
		lanes[n].unwatched = []tampering.Kind{k}
	}
	for n := range lanes {
		lanes[n].name = fmt.Sprintf("lane%d", n)
	}
	return lanes
}

const laneText = `
component "%[1]s" {
  image    = image.%[2]s
  replicas = 2
  env      = { MODE = "serve", LANE = "%[1]s" }
  port "http" { number = 8080 }
  health {
    http {
      port = "http"
      path = "/healthz"
    }
    interval = "200ms"
  }
  scratch "/tmp" { size = "1Mi" }
  resources {
    cpu    = 0.5
    memory = "64Mi"
    pids   = 64
  }
}
route "%[1]s" {
  host = "%[1]s.localhost"
  to   = component.%[1]s.port.http
}
`

const laneImage = `
image "%[1]s" {
  layers {
    base = image.probe
    copy = { "./%[1]s" = "/%[1]s" }
  }
}
`

const lanesHead = `app = "probe"

image "probe" {
  go { package = "." }
}

environment "staging" {
  rollout {
    min_healthy_time = "0s"
    healthy_deadline = "60s"
    keep_warm        = "0s"
    drain            = "1s"
  }
}
`

// newLanes makes a machine whose app has the lanes.
func newLanes(t *testing.T, lanes []lane) *machine {
	if os.Getuid() != 0 {
		t.Skip("needs root: instances are namespaces and mounts; CI runs it")
	}
	dir := t.TempDir()
	m := &machine{t: t, dir: dir, app: filepath.Join(dir, "probe"), gateway: freeAddress(t), pids: map[string]int{}, host: newHostOf(filepath.Join(dir, "data"))}
	t.Cleanup(func() { exec.Command(binary, "server", "stop", "--data", m.host.data).Run() })
	t.Cleanup(m.explain)
	if out, err := exec.Command("cp", "-r", "testdata/probe", m.app).CombinedOutput(); err != nil {
		t.Fatalf("copying the app: %v\n%s", err, out)
	}
	text := lanesHead
	for _, l := range lanes {
		image := "probe"
		if l.image {
			image = l.name
			text += fmt.Sprintf(laneImage, l.name)
			m.write(filepath.Join(m.app, l.name), l.name)
		}
		text += fmt.Sprintf(laneText, l.name, image)
	}
	m.write(filepath.Join(m.app, "invar.hcl"), text)
	return m
}

func (m *machine) write(file, text string) {
	m.t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// apply applies the app.
func (m *machine) apply() {
	m.t.Helper()
	if out, err := m.invar(m.t.Context(), "-C", m.app, "apply", "staging", "--yes"); err != nil {
		m.t.Fatalf("apply: %v\n%s", err, out)
	}
}

// book is what the ledger says, as it grows.
type book struct {
	mu      sync.Mutex
	entries []api.Entry
}

// follow reads the ledger until the test ends.
func (m *machine) follow() *book {
	b := &book{}
	asked := &daemon{data: m.host.data} // whichever server answers there
	done, over := make(chan struct{}), make(chan struct{})
	m.t.Cleanup(func() { close(done); <-over })
	go func() {
		defer close(over)
		for next := uint64(0); ; {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
			var part api.Entries
			if asked.api("GET", fmt.Sprintf("%s?from=%d", api.PathEntries, next), nil, &part) != nil {
				continue // it is being killed, or started
			}
			next = part.Next
			b.mu.Lock()
			b.entries = append(b.entries, part.Entries...)
			b.mu.Unlock()
		}
	}()
	return b
}

// told is what entries about instances say.
type told struct {
	ID    string `json:"id"`
	By    string `json:"by"`
	Cause string `json:"cause"`
}

// about returns the first entry that is the evidence about an instance.
func (b *book) about(id string, want tampering.Evidence) (api.Entry, bool) {
	return b.next(0, id, want)
}

// size is how many entries were read.
func (b *book) size() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return uint64(len(b.entries))
}

// next returns the first entry from an index on that is the evidence about an instance; "": about none.
func (b *book) next(from uint64, id string, want tampering.Evidence) (api.Entry, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.entries[min(from, uint64(len(b.entries))):] {
		if about, ok := want.In(e.Kind, e.Data); ok && about == id {
			return e, true
		}
	}
	return api.Entry{}, false
}

// suspected returns the instances of which an entry says that they differ.
func (b *book) suspected() map[string][]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	found := map[string][]string{}
	for _, e := range b.entries {
		var d told
		if strings.HasPrefix(e.Kind, "drift.") || e.Kind == "instance.taint" {
			json.Unmarshal(e.Data, &d)
			found[d.ID] = append(found[d.ID], fmt.Sprint(e.Kind, " ", d.Cause))
		}
	}
	return found
}

// trial is the tampering with one lane, and what came of it.
type trial struct {
	m      *machine
	book   *book
	lane   lane
	hit    []string // instances that were tampered with
	report []string
}

func (x *trial) run() error {
	for _, k := range x.lane.kinds {
		if err := x.tamper(k); err != nil {
			return fmt.Errorf("%s: %s: %w", x.lane.name, k.Name, err)
		}
	}
	return nil
}

// healthy returns the lane's instances when all that there are pass, and nothing is the matter with them.
func (x *trial) healthy() ([]api.Instance, error) {
	var env api.Environment
	if err := x.m.server.api("GET", "/v1/environments/staging", nil, &env); err != nil {
		return nil, err
	}
	var own []api.Instance
	for _, i := range env.Instances {
		if i.Component != x.lane.name || i.Phase == "gone" {
			continue
		}
		if i.Health != "passing" || i.Tainted != nil || i.Phase != "started" {
			return nil, fmt.Errorf("%s is %s, %s, tainted: %v", i.ID, i.Phase, i.Health, i.Tainted)
		}
		own = append(own, i)
	}
	if len(own) != 2 {
		return nil, fmt.Errorf("%d instances", len(own))
	}
	return own, nil
}

// choose picks the instance to tamper with.
func (x *trial) choose(k tampering.Kind) (api.Instance, error) {
	own, err := x.healthy()
	if err != nil {
		return api.Instance{}, fmt.Errorf("before: %w", err)
	}
	if x.hit = append(x.hit, own[0].ID); k.Wide {
		x.hit = append(x.hit, own[1].ID)
	}
	return own[0], nil
}

func (x *trial) tamper(k tampering.Kind) error {
	target, err := x.choose(k)
	if err != nil {
		return err
	}
	began := time.Now()
	undo, err := k.Do(x.m.target(target))
	if err != nil {
		return err
	}
	defer undo()
	return x.follow(k, target.ID, began)
}

// follow waits until what was done is found, and healed.
func (x *trial) follow(k tampering.Kind, id string, began time.Time) error {
	var e api.Entry
	if !within(2*foundWithin, func() (ok bool) { e, ok = x.book.about(id, k.Shows); return ok }) {
		return fmt.Errorf("not found within %v: no %v; instead %v", 2*foundWithin, k.Shows, x.book.suspected()[id])
	}
	took := e.Time.Sub(began)
	if took > foundWithin {
		return fmt.Errorf("found after %v, want at most %v", took, foundWithin)
	}
	var why error
	healed := within(healedWithin, func() bool {
		if _, gone := x.book.about(id, tampering.Evidence{Entry: "instance.gone"}); !gone {
			why = fmt.Errorf("%s is not gone", id)
			return false
		}
		_, why = x.healthy()
		return why == nil
	})
	if !healed {
		return fmt.Errorf("not healed within %v: %w", healedWithin, why)
	}
	x.report = append(x.report, fmt.Sprintf("%-50s found after %4d ms, healed after %4d ms", k.Name, took.Milliseconds(), time.Since(began).Milliseconds()))
	return nil
}

// unwatched does to each lane what can't be done under the eyes of a server, and starts the next one.
func unwatched(m *machine, trials []*trial) error {
	chosen := make([]api.Instance, len(trials))
	var failed []error
	for n, x := range trials {
		for _, k := range x.lane.unwatched {
			var err error
			if chosen[n], err = x.choose(k); err != nil {
				failed = append(failed, fmt.Errorf("%s: %w", x.lane.name, err))
			}
		}
	}
	if len(failed) > 0 {
		return errors.Join(failed...)
	}
	m.kill(m.server.cmd.Process.Pid)
	for n, x := range trials {
		for _, k := range x.lane.unwatched {
			undo, err := k.Do(m.target(chosen[n]))
			if err == nil {
				defer undo()
			} else {
				failed = append(failed, fmt.Errorf("%s: %s: %w", x.lane.name, k.Name, err))
			}
		}
	}
	m.serve()
	began := time.Now()
	return errors.Join(append(failed, each(trials, func(x *trial) error {
		for _, k := range x.lane.unwatched {
			if err := x.follow(k, x.hit[len(x.hit)-1], began); err != nil {
				return fmt.Errorf("%s: %s: %w", x.lane.name, k.Name, err)
			}
		}
		return nil
	}))...)
}

// besideInstances tampers with what the server has beside its instances. Requests may fail from then until it is healed, and not afterwards.
func besideInstances(m *machine, book *book, load *load) error {
	for _, k := range tampering.Beside() {
		for _, f := range load.failures() {
			return fmt.Errorf("a request failed before %q: %v", k.Name, f)
		}
		seen := book.size()
		began := time.Now()
		undo, err := k.Do(m.target(m.environment().Instances[0]))
		if err != nil {
			return fmt.Errorf("%s: %w", k.Name, err)
		}
		var e, over api.Entry
		found := within(2*foundWithin, func() (ok bool) { e, ok = book.next(seen, "", k.Shows); return ok })
		if k.Alert {
			undo()
			undo = func() {}
		}
		healed := found && within(healedWithin, func() (ok bool) {
			over, ok = book.next(e.Index, "", tampering.Evidence{Entry: "host.resolved"})
			return ok
		})
		undo()
		if took := e.Time.Sub(began); !healed || took > foundWithin {
			return fmt.Errorf("%s: found: %v (%v), healed: %v", k.Name, found, took, healed)
		}
		time.Sleep(100 * time.Millisecond) // for requests that began before
		for _, f := range load.failures() {
			if !k.Diverts || f.began.Before(began) || f.began.After(over.Time) {
				return fmt.Errorf("%s at %v, healed at %v: a request failed: %v", k.Name, began, over.Time, f)
			}
		}
		m.t.Logf("%-50s found after %4d ms, healed after %4d ms", k.Name, e.Time.Sub(began).Milliseconds(), over.Time.Sub(began).Milliseconds())
	}
	return nil
}

// each does something to all lanes beside each other.
func each(trials []*trial, act func(*trial) error) error {
	failed := make([]error, len(trials))
	var all sync.WaitGroup
	for n, x := range trials {
		all.Go(func() { failed[n] = act(x) })
	}
	all.Wait()
	return errors.Join(failed...)
}

func within(limit time.Duration, ok func() bool) bool {
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// target is an instance as who is root on the machine sees it.
func (m *machine) target(i api.Instance) tampering.Target {
	program, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", i.PID))
	return tampering.Target{ID: i.ID, PID: i.PID, Run: m.host.run, Data: m.host.data, Stays: []string{program, "shell"}}
}

// TestEachTamperingIsFoundAndHealed does all that root on the machine can do to instances of the built server, and that is found: each within five
// seconds, and healed by replacement without a failed request.
func TestEachTamperingIsFoundAndHealed(t *testing.T) {
	lanes := lanesOf(tampering.Kinds())
	m := newLanes(t, lanes)
	m.serve()
	m.apply()
	book := m.follow()
	var pages []page
	for _, l := range lanes {
		pages = append(pages, page{l.host(), "/", "mode serve"})
	}
	load := startSteadyLoad(t.Context(), m.gateway, 20*time.Millisecond, pages...)
	trials := make([]*trial, len(lanes))
	for n, l := range lanes {
		trials[n] = &trial{m: m, book: book, lane: l}
	}
	err := each(trials, (*trial).run)
	for _, f := range load.failures() {
		t.Errorf("a request failed: %v", f)
	}
	if err == nil {
		err = unwatched(m, trials)
	}
	for _, f := range load.failures() {
		t.Errorf("a request failed: %v", f)
	}
	if err == nil {
		err = besideInstances(m, book, load)
	}
	load.end()
	hit := map[string]bool{}
	for _, x := range trials {
		t.Log(strings.Join(x.report, "\n"))
		for _, id := range x.hit {
			hit[id] = true
		}
	}
	if err != nil {
		t.Error(err)
	}
	for _, f := range load.failures() {
		t.Errorf("a request failed: %v", f)
	}
	for id, said := range book.suspected() {
		if !hit[id] {
			t.Errorf("nobody touched %s: %v", id, said)
		}
	}
	t.Logf("%d requests answered", load.served.Load())
	m.sound()
	m.stop()
}

// sound makes sure that all is as released in the end, and that the ledger holds.
func (m *machine) sound() {
	m.t.Helper()
	if out, err := m.invar(m.t.Context(), "verify", "staging"); err != nil || strings.Contains(out, "DIFFERS") {
		m.t.Errorf("verify: %v\n%s", err, out)
	}
	if out, err := m.invar(m.t.Context(), "ledger", "verify"); err != nil || !strings.Contains(out, "ok: ") {
		m.t.Errorf("ledger verify: %v\n%s", err, out)
	}
}
