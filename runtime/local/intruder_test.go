package local_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/invarhq/invar/runtime/local/tampering"
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
