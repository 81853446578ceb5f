package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/reconcile"
	"github.com/invarhq/invar/runtime/runtimetest"
	"github.com/invarhq/invar/spec"
)

// bell is the part of the ledger about the machine.
type bell struct {
	mu     sync.Mutex
	open   []drift.Open
	rings  []string
	refuse error
	odd    func() // called before an entry is written, with mu held
}

func (b *bell) Open() []drift.Open {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.open)
}

func (b *bell) Odd(_ context.Context, found []drift.Oddity) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.odd != nil {
		b.odd()
	}
	if b.refuse != nil {
		return b.refuse
	}
	for _, o := range found {
		b.open = append(b.open, drift.Open{Finding: o.Finding, Response: o.Response, Since: time.Now()})
		b.rings = append(b.rings, fmt.Sprintf("%s %s", o.Response, o.Key()))
	}
	return nil
}

func (b *bell) Over(_ context.Context, over []drift.Open, how string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, o := range over {
		b.open = slices.DeleteFunc(b.open, func(p drift.Open) bool { return p.Finding.Key() == o.Finding.Key() })
		b.rings = append(b.rings, fmt.Sprintf("over %s: %s", o.Finding.Key(), how))
	}
	return nil
}

func (b *bell) heard() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.rings, "\n")
}

// foreign puts a table into force that is nobody's.
func (r *roads) foreign(t testing.TB, serial uint64) {
	sealed, err := gateway.Table{Serial: serial}.Seal()
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.table, r.setBy = sealed, "process 7 (curl, user 0)"
}

// alarmed is a world with an alarm, in which two instances have run for a minute. The caller stops it.
func alarmed(t *testing.T, b *bell) *world {
	t.Helper()
	w := newWorld(t, runtimetest.Config{})
	w.alarm = b
	w.start(t.Context())
	w.book.head(t, "prod", app(fast, "web×2=a"))
	settle(time.Minute)
	return w
}

const takenOver = "restore table in force\nover table in force: the right table was put in force again"

func TestForeignTableIsEnteredThenReplacedWhateverItsSerial(t *testing.T) {
	for _, serial := range []uint64{1, 1 << 60, 1<<64 - 1} {
		synctest.Test(t, func(t *testing.T) {
			b := &bell{}
			w := alarmed(t, b)
			defer w.stop()
			if b.heard() != "" {
				t.Fatalf("with nothing odd, the ledger has\n%s", b.heard())
			}
			right := w.road.to("prod/web/http")
			b.odd = func() {
				if len(w.road.to("prod/web/http")) != 0 {
					t.Error("it was replaced before the ledger had it")
				}
			}
			w.road.foreign(t, serial)
			began := time.Now()
			for len(w.road.to("prod/web/http")) == 0 {
				settle(10 * time.Millisecond)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("serial %d: replaced after %v", serial, took)
			}
			settle(time.Minute)
			if got := w.road.to("prod/web/http"); len(got) != len(right) {
				t.Errorf("serial %d: traffic goes to %v, want %v", serial, got, right)
			}
			if b.heard() != takenOver {
				t.Errorf("serial %d: the ledger has\n%s\nwant\n%s", serial, b.heard(), takenOver)
			}
		})
	}
}

// A table that comes between two of the server's own is found as well, although the next one would have replaced it anyway.
func TestForeignTableIsNotReplacedInPassing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bell{}
		w := alarmed(t, b)
		defer w.stop()
		w.road.foreign(t, 2)
		w.book.head(t, "prod", app(fast, "web×2=b"))
		settle(time.Minute)
		if b.heard() != takenOver {
			t.Errorf("the ledger has\n%s", b.heard())
		}
		w.wantPicture(t, "web: a×2 b×2 → b 100")
	})
}

func TestTableThatCanNotBeEnteredIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bell{refuse: errors.New("the disk is full")}
		w := alarmed(t, b)
		defer w.stop()
		w.road.foreign(t, 9)
		settle(time.Minute)
		if got := w.road.to("prod/web/http"); len(got) != 0 {
			t.Fatalf("traffic goes to %v", got)
		}
		b.mu.Lock()
		b.refuse = nil
		b.mu.Unlock()
		settle(10 * time.Second)
		if got := w.road.to("prod/web/http"); len(got) != 2 || b.heard() != takenOver {
			t.Errorf("with room again: traffic goes to %v, the ledger has\n%s", got, b.heard())
		}
	})
}

func TestGatewayThatKeepsAForeignTableIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bell{}
		w := alarmed(t, b)
		defer w.stop()
		w.road.foreign(t, 9)
		w.road.mu.Lock()
		w.road.refuse = func() (error, error) {
			if w.road.renewed == 0 {
				return fault.Errorf(fault.Conflict, "I do not like it"), nil
			}
			return nil, nil
		}
		w.road.mu.Unlock()
		settle(time.Minute)
		if w.road.renewed != 1 || b.heard() != takenOver {
			t.Errorf("renewed %d times, the ledger has\n%s", w.road.renewed, b.heard())
		}
	})
}

// place is a surrounding of a test.
type place struct {
	mu     sync.Mutex
	found  []drift.Oddity
	healed int
	cured  bool // healing helps
}

func (p *place) Kinds() []drift.Kind { return []drift.Kind{drift.Stray} }

func (p *place) Look(context.Context) ([]drift.Oddity, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.found, nil
}

func (p *place) Heal(_ context.Context, found []drift.Oddity) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.healed++
	if p.cured {
		p.found = nil
	}
	return "ended", nil
}

func (p *place) odd(response drift.Response) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.found = drift.Odd(response, []instance.Finding{{Kind: "stray", Field: "a", Found: "a process"}})
}

func TestOddityThatComesAgainAndAgainDoesNotFillTheLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, b, p := newWorld(t, runtimetest.Config{}), &bell{}, &place{cured: true}
		w.alarm, w.places = b, []reconcile.Surrounding{p}
		w.start(t.Context())
		defer w.stop()
		for range 1000 {
			p.odd(drift.End)
			settle(3 * time.Second)
		}
		if n := strings.Count(b.heard(), "end stray a"); n > 10 || p.healed != 1000 {
			t.Errorf("%d entries, healed %d times of 1000", n, p.healed)
		}
		settle(time.Hour)
		if len(b.Open()) != 0 {
			t.Errorf("open: %v", b.Open())
		}
	})
}

func TestAlertIsNotTouchedAndWhatStaysIsTriedLessAndLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for response, most := range map[drift.Response]int{drift.Alert: 0, drift.End: 70} {
			w, b, p := newWorld(t, runtimetest.Config{}), &bell{}, &place{}
			w.alarm, w.places = b, []reconcile.Surrounding{p}
			w.start(t.Context())
			p.odd(response)
			settle(time.Hour)
			w.stop()
			if b.heard() != string(response)+" stray a" || p.healed > most || most > 0 && p.healed < 50 {
				t.Errorf("%s: healed %d times, the ledger has\n%s", response, p.healed, b.heard())
			}
			w.start(t.Context()) // a server that starts again knows it
			settle(time.Minute)
			w.stop()
			if b.heard() != string(response)+" stray a" {
				t.Errorf("%s: after a restart the ledger has\n%s", response, b.heard())
			}
		}
	})
}

// What the host has and the ledger does not know is entered before it ends.
func TestInstanceThatTheLedgerDoesNotKnowIsEnteredAndEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bell{}
		w := alarmed(t, b)
		defer w.stop()
		for _, env := range []spec.EnvName{"prod", "nowhere"} {
			id := instance.ID("web-strange-" + string(env))
			s := w.host.Specs()[0]
			s.Identity.ID, s.Identity.Env = id, env
			b.odd = func() {
				if list, _ := w.host.List(t.Context()); len(list) != 3 {
					t.Errorf("it was ended before the ledger had it: %v", list)
				}
			}
			if err := errors.Join(w.host.Create(t.Context(), s), w.host.Start(t.Context(), id)); err != nil {
				t.Fatal(err)
			}
			settle(time.Minute)
			if list, _ := w.host.List(t.Context()); len(list) != 2 {
				t.Errorf("%s: the host has %v", env, list)
			}
			if want := fmt.Sprintf("end orphan %[1]s\nover orphan %[1]s: it was ended", id); b.heard() != want {
				t.Errorf("the ledger has\n%s\nwant\n%s", b.heard(), want)
			}
			b.rings = nil
		}
		w.wantPicture(t, "web: a×2 → a 100")
	})
}
