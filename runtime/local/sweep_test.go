package local_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/runtime/local"
)

func TestEachRootIsReadOnceAnHourOneAtATime(t *testing.T) {
	a, b := digest.Of([]byte("a")), digest.Of([]byte("b"))
	last := map[digest.Digest]time.Time{}
	began := time.Now()
	var turns []string
	for minute := range 130 {
		mounted := []digest.Digest{a}
		if minute >= 10 {
			mounted = append(mounted, b)
		}
		if minute == 128 {
			mounted = nil
		}
		if d, ok := local.NextToSweep(mounted, last, began.Add(time.Duration(minute)*time.Minute)); ok {
			turns = append(turns, map[digest.Digest]string{a: "a", b: "b"}[d]+" "+(time.Duration(minute)*time.Minute).String())
		}
	}
	if got, want := strings.Join(turns, ", "), "a 1h0m0s, b 1h10m0s, a 2h0m0s"; got != want {
		t.Errorf("read %s, want %s", got, want)
	}
	if len(last) != 2 || last[a].Before(began.Add(129*time.Minute)) {
		t.Errorf("a root that is mounted anew counts as read; remembers %v", last)
	}
}

// What changed below the file system shows in no stamp, and is found when the root's turn comes.
func TestSweepFindsWhatNoStampShows(t *testing.T) {
	m := newMachine(t)
	s := m.serving("web-1")
	m.start(s)
	if got, err := m.host.Sweep(t.Context(), m.root, 1<<30); err != nil || got != m.root {
		t.Fatalf("untouched, it has digest %s: %v", got, err)
	}
	if found := m.findings(s); len(found) > 0 {
		t.Fatalf("before:\n%s", strings.Join(found, "\n"))
	}
	m.flip(s)
	m.must(m.host.Reseal(m.root))
	if found := m.findings(s); len(found) > 0 {
		t.Fatalf("though its seal fits:\n%s", strings.Join(found, "\n"))
	}
	if got, err := m.host.Sweep(t.Context(), m.root, 1<<30); err != nil || got == m.root {
		t.Fatalf("changed, it has digest %s: %v", got, err)
	}
	if found := strings.Join(m.findings(s), "\n"); !strings.HasPrefix(found, "root content: sha256:") {
		t.Errorf("after it was read, found %q", found)
	}
}

func TestSweepKeepsToItsRate(t *testing.T) {
	m := newMachine(t)
	s := m.serving("web-1")
	m.start(s)
	info, err := os.Stat(m.host.RootFile("web-1"))
	m.must(err)
	began := time.Now()
	if _, err := m.host.Sweep(t.Context(), m.root, int(info.Size())); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 700*time.Millisecond { // the last quarter need not be waited for
		t.Errorf("%d bytes at as many bytes per second took %v", info.Size(), took)
	}
}

// What an earlier server knew of a root may have been changed while none ran: a new one reads it at once.
func TestRootThatChangedWhileNoServerRanIsFound(t *testing.T) {
	m := newMachine(t)
	s := m.serving("web-1")
	m.start(s)
	m.flip(s)
	m.must(m.host.Reseal(m.root))
	m.must(m.host.Close())
	m.open()
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if found := strings.Join(m.findings(s), "\n"); strings.HasPrefix(found, "root content: sha256:") {
			t.Logf("found after %v", time.Since(began).Round(time.Millisecond))
			return
		}
		if time.Since(began) > 5*time.Second {
			t.Fatal("not found within 5s")
		}
	}
}
