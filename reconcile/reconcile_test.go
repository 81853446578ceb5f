package reconcile_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/runtimetest"
)

// settle lets d pass and waits until nothing moves.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (w *world) wantPicture(t *testing.T, want string) {
	t.Helper()
	if got := w.picture("prod"); got != want {
		t.Fatalf("%s\nwant %s\ntrace:\n%s", got, want, w.trace(60))
	}
}

func (w *world) wantHead(t *testing.T, number int, want deploy.Outcome) {
	t.Helper()
	if h := w.env("prod").Head; h.Number != number || h.Outcome != want {
		t.Fatalf("head is generation %d, %s (%s); want %d, %s\ntrace:\n%s", h.Number, h.Outcome, h.Cause, number, want, w.trace(60))
	}
}

func TestRolloutChangeAndRollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, runtimetest.Config{Behave: func(runtime.Spec) runtimetest.Behaviour {
			return runtimetest.Behaviour{CreateTakes: 10 * time.Millisecond, Ready: 50 * time.Millisecond, StopTakes: 10 * time.Millisecond}
		}})
		w.start(t.Context())
		defer w.stop()
		one, two := app(fast, "db×1=a*", "web×3=a >db"), app(fast, "db×1=a*", "web×3=b >db")
		w.book.head(t, "prod", one)
		settle(time.Second)
		w.wantPicture(t, "db: a×1 → a 100; web: a×3 → a 100")
		w.wantHead(t, 1, deploy.Completed)

		w.book.head(t, "prod", two)
		settle(time.Second)
		w.wantPicture(t, "db: a×1 → a 100; web: a×3 b×3 → b 100")
		w.wantHead(t, 2, deploy.Completed)

		w.book.head(t, "prod", one)
		began := time.Now()
		synctest.Wait()
		w.wantPicture(t, "db: a×1 → a 100; web: a×3 b×3 → a 100")
		w.wantHead(t, 3, deploy.Completed)
		if took := w.road.since().Sub(began); took < 0 || took > 10*time.Millisecond {
			t.Errorf("the rollback's table came into force after %v, want within 10ms", took)
		}
		settle(time.Hour)
		w.wantPicture(t, "db: a×1 → a 100; web: a×3 → a 100")
		if w.host.Len() != 4 {
			t.Errorf("%d instances on the host, want 4", w.host.Len())
		}
	})
}

func TestFailedReleaseRevertsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, runtimetest.Config{Behave: func(s runtime.Spec) runtimetest.Behaviour {
			if version(s) == "bad" {
				return runtimetest.Behaviour{Ready: time.Second, ExitAfter: 20 * time.Millisecond, ExitCode: 1}
			}
			return runtimetest.Behaviour{Ready: 50 * time.Millisecond}
		}})
		w.start(t.Context())
		defer w.stop()
		w.book.head(t, "prod", app(fast, "web×3=a"))
		settle(time.Second)
		w.book.head(t, "prod", app(fast, "web×3=bad"))
		settle(10 * time.Second)
		w.wantPicture(t, "web: a×3 → a 100")
		w.wantHead(t, 3, deploy.Completed)
	})
}

func TestDestroyLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, runtimetest.Config{})
		w.start(t.Context())
		defer w.stop()
		w.book.head(t, "prod", app(fast, "db×1=a*", "web×3=a >db"))
		settle(time.Second)
		w.book.head(t, "prod", app(fast, "db×1=a*", "web×3=b >db"))
		settle(time.Second)
		none := app(fast)
		none.V = 0
		w.book.head(t, "prod", none)
		settle(10 * time.Second)
		w.wantPicture(t, "")
		w.wantHead(t, 3, deploy.Completed)
		if w.host.Len() != 0 {
			t.Errorf("%d instances on the host, want none", w.host.Len())
		}
	})
}
