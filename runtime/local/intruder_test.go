package local_test

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/invarhq/invar/runtime/local/tampering"
	"github.com/invarhq/invar/runtime/local/wire"
)

// target is an instance as somebody who is root on the machine sees it.
func (m *machine) target(id string) tampering.Target {
	return tampering.Target{ID: id, PID: m.see(id).PID, Run: m.host.Run(), Data: m.config.Dir, Stays: []string{"/bin/server", "cat"}}
}

// Whoever holds on to an instance does not keep it from being removed.
func TestIntruderDoesNotKeepAnInstance(t *testing.T) {
	for _, name := range []string{"a process injected into all namespaces", "a process moved into the cgroup", "a debugger attached", "the pinned network replaced"} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			s := m.serving("web-" + strings.ReplaceAll(name, " ", "-"))
			m.start(s)
			undo, err := tampering.Named(name).Do(m.target(string(s.Identity.ID)))
			if err != nil {
				t.Fatal(err)
			}
			defer undo()
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
			defer cancel()
			if err := m.host.Remove(ctx, s.Identity.ID); err != nil {
				t.Errorf("removing: %v", err)
			}
			t.Logf("removed after %v", time.Since(began).Round(time.Millisecond))
		})
	}
}

// A host that has a command run before it watches the launcher, as after the launcher's death, is no stranger to the host that comes after it.
func TestWhoWatchesIsNoStranger(t *testing.T) {
	m := newMachine(t)
	s := m.serving("web-1")
	m.start(s)
	if err := m.host.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := tampering.ExecBriefly(tampering.Target{ID: "web-1", Run: m.host.Run(), Stays: []string{"/bin/server", "cat"}}); err != nil {
		t.Fatal(err)
	}
	if n := len(m.strangers("web-1")); n != 1 {
		t.Fatalf("%d strangers, before it watches", n)
	}
	m.open()
	if told := m.strangers("web-1"); len(told) > 0 {
		t.Errorf("strangers %+v", told)
	}
}

// strangers are who had the launcher run something in an instance, as the launcher tells everybody.
func (m *machine) strangers(id string) []wire.Stranger {
	m.t.Helper()
	c, err := net.Dial("unix", filepath.Join(m.host.Run(), "launcher.sock"))
	m.must(err)
	defer c.Close()
	m.must(wire.Write(c, wire.Request{Version: wire.Version, Op: wire.OpList}))
	r, err := wire.Read[wire.Response](wire.NewReader(c))
	m.must(err)
	for _, i := range r.Instances {
		if i.ID == id {
			return i.Strangers
		}
	}
	m.t.Fatalf("the launcher does not know %s", id)
	return nil
}
