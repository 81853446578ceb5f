package local_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/runtime/local/tampering"
)

// odd returns what the host finds beside its instances.
func (m *machine) odd() []drift.Oddity {
	m.t.Helper()
	found, err := m.host.Look(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	return found
}

func TestStrayIsFoundWithinFiveSecondsAndEnded(t *testing.T) {
	m := newMachine(t)
	s := m.serving("web-1")
	m.start(s)
	for n, stray := range tampering.Strays() {
		t.Run(stray.Name, func(t *testing.T) {
			name := fmt.Sprintf("stray-%d-%d", os.Getpid(), n)
			undo, err := stray.Do(m.target("web-1"), name)
			if err != nil {
				t.Fatal(err)
			}
			defer undo()
			began := time.Now()
			for len(m.odd()) == 0 {
				if time.Since(began) > 5*time.Second {
					t.Fatal("not found within 5s")
				}
				time.Sleep(10 * time.Millisecond)
			}
			found := m.odd()
			t.Logf("found after %v: %v", time.Since(began).Round(time.Millisecond), found[0])
			ends := found[0].Response == drift.End
			if len(found) != 1 || !strings.HasPrefix(found[0].Field, stray.Field) || ends != stray.Ended || ends && !strings.HasSuffix(found[0].Field, name) {
				t.Fatalf("found %v", found)
			}
			if !strings.Contains(found[0].Found, "process ") && stray.Field != "directory " {
				t.Errorf("no process is told: %q", found[0].Found)
			}
			if _, err := m.host.Heal(t.Context(), found); err != nil {
				t.Error(err)
			}
			time.Sleep(3 * time.Second) // two scans at least
			if left := m.odd(); stray.Ended && len(left) > 0 || !stray.Ended && len(left) != 1 {
				t.Errorf("afterwards there is %v", left)
			}
			if left := m.traces(filepath.Base(m.host.Run())); stray.Ended && strings.Contains(strings.Join(left, "\n"), name) {
				t.Errorf("left: %v", left)
			}
		})
	}
	if o := m.see("web-1"); !passing(o) || len(o.Foreign) > 0 {
		t.Errorf("the instance beside them is %+v", o)
	}
}

// What is made, removed, checked and entered by the host, however fast, is never taken for a stray; nor is what a dead launcher or another
// host leaves and has.
func TestNothingOfTheHostIsAStray(t *testing.T) {
	m, other := newMachine(t, inOwnRun(t)), newMachine(t)
	other.start(other.serving("web-1"))
	ctx, stop := context.WithCancel(t.Context())
	scan := m.host.Sight()
	var watched sync.WaitGroup
	looks := 0
	watched.Go(func() {
		for ; ctx.Err() == nil; looks++ {
			if found := scan(); len(found) > 0 {
				t.Errorf("found %v", found)
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			for n := range 10 {
				s := m.serving(fmt.Sprintf("web-%d-%d", w, n))
				m.start(s)
				if err := m.host.Remove(t.Context(), s.Identity.ID); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	m.start(m.serving("web-stays"))
	m.killLauncher()
	m.until("web-stays", "passing", passing)
	time.Sleep(time.Second)
	stop()
	watched.Wait()
	t.Logf("%d looks", looks)
}
