package control_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/invarhq/invar/attest"
	"github.com/invarhq/invar/control"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/platform"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/state"
)

// watch is a desk whose server measures by itself, and notes what it measured.
type watch struct {
	*office
	mu     sync.Mutex
	at     map[spec.EnvName][]time.Time
	busy   int
	failed bool
	takes  time.Duration
	stop   func()
}

// newWatch is to be made in a synctest bubble.
func newWatch(t *testing.T, change ...func(*platform.Definition)) *watch {
	t.Helper()
	w := &watch{office: newOffice(t, "", change...), at: map[spec.EnvName][]time.Time{}, takes: time.Second}
	w.config.SignStatement = func(s []byte) ([]byte, error) { return append([]byte("signed "), s...), nil }
	w.config.Measure = w.measure
	w.crash()
	return w
}

func (w *watch) measure(_ context.Context, now func() (state.Environment, error)) ([]attest.Instance, error) {
	env, err := now()
	w.mu.Lock()
	if w.busy++; w.busy > 1 {
		w.t.Error("two environments are measured at once")
	}
	w.at[env.Name] = append(w.at[env.Name], time.Now())
	failed := w.failed
	w.mu.Unlock()
	time.Sleep(w.takes)
	w.mu.Lock()
	w.busy--
	w.mu.Unlock()
	if failed {
		return nil, fault.Errorf(fault.Unavailable, "the host is away")
	}
	return []attest.Instance{instanceOf(env, "web-a")}, err
}

func (w *watch) start() {
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = w.KeepVerified(ctx)
	}()
	w.stop = func() { cancel(); <-ended }
}

// restart has another server go on.
func (w *watch) restart(after time.Duration) {
	w.stop()
	w.crash()
	time.Sleep(after)
	w.start()
}

func (w *watch) times(env spec.EnvName) []time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]time.Time{}, w.at[env]...)
}

func every(t time.Duration, env platform.Pattern) func(*platform.Definition) {
	return func(d *platform.Definition) {
		d.Verifications = []platform.Verification{{Name: "test", Environments: []platform.Pattern{env}, EveryMillis: t.Milliseconds()}}
	}
}

func TestWhatRunsIsMeasuredAsOftenAsTheRulesSay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatch(t, every(time.Hour, "prod"))
		w.apply("prod", shop("1"))
		w.apply("staging", shop2("staging"))
		w.start()
		time.Sleep(10 * 24 * time.Hour)
		w.stop()
		for env, max := range map[spec.EnvName]time.Duration{"prod": time.Hour, "staging": platform.DefaultVerify} {
			last := w.env(env).Since
			for _, at := range w.times(env) {
				if at.Sub(last) > max {
					t.Errorf("%s was not measured for %s", env, at.Sub(last))
				}
				last = at
			}
			if got, atLeast := len(w.times(env)), int(10*24*time.Hour/max); got < atLeast || got > atLeast*5/4 {
				t.Errorf("%s was measured %d times, want %d or a few more", env, got, atLeast)
			}
		}
		if got := w.times(platform.Env); len(got) > 0 {
			t.Errorf("the platform's own environment was measured at %s", got)
		}
		for e, err := range w.Entries(t.Context(), 0, w.State().Size()) {
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := e.Entry.Data.(state.Verify); ok && e.Entry.Actor.String() != "system:schedule" {
				t.Errorf("entry %d is by %s", e.Index, e.Entry.Actor)
			}
		}
		w.audit()
	})
}

// When the next one is due follows from the ledger: a restart neither brings it forward nor puts it off.
func TestTheScheduleOutlastsTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatch(t)
		w.apply("prod", shop("1"))
		w.start()
		for range 10 * 12 {
			time.Sleep(2 * time.Hour)
			w.restart(0)
		}
		n := len(w.times("prod"))
		if n < 10 || n > 12 {
			t.Errorf("measured %d times in ten days", n)
		}
		w.restart(3 * 24 * time.Hour) // it was down
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := w.times("prod"); len(got) != n+1 {
			t.Errorf("after three days off: measured %d times, want %d", len(got), n+1)
		}
		w.stop()
	})
}

// Many that are due at once are measured one after the other, and the server rests in between.
func TestMeasuringLeavesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatch(t)
		for n := range 5 {
			w.apply(spec.EnvName(fmt.Sprint("env-", n)), shop2(fmt.Sprint("env-", n)))
		}
		time.Sleep(3 * 24 * time.Hour)
		began := time.Now()
		w.start()
		time.Sleep(70 * time.Second)
		w.restart(0)
		time.Sleep(5 * time.Minute)
		w.stop()
		var last time.Time
		for n := range 5 {
			at := w.times(spec.EnvName(fmt.Sprint("env-", n)))
			if len(at) != 1 || at[0].Sub(began) > 5*time.Minute {
				t.Fatalf("env-%d was measured at %s", n, at)
			}
			if at[0].After(last) {
				last = at[0]
			}
		}
		if last.Sub(began) < 3*20*w.takes {
			t.Errorf("all five within %s, of which each takes %s", last.Sub(began), w.takes)
		}
	})
}

func TestAScheduledMeasurementThatFailsIsRecordedAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatch(t)
		w.apply("prod", shop("1"))
		w.failed = true
		w.start()
		time.Sleep(3 * 24 * time.Hour)
		env := w.env("prod")
		if env.Measured == nil || env.Measured.Result != attest.NotMeasured || !env.MeasureLate(platform.DefaultVerify, time.Now()) {
			t.Errorf("%+v", env.Measured)
		}
		if n := len(w.times("prod")); n < 48 || n > 73 {
			t.Errorf("tried %d times in three days, want about once an hour", n)
		}
		w.mu.Lock()
		w.failed = false
		w.mu.Unlock()
		time.Sleep(2 * time.Hour)
		w.stop()
		if env := w.env("prod"); env.Measured.Result != attest.AsReleased || env.MeasureLate(platform.DefaultVerify, time.Now()) {
			t.Errorf("once it works again: %+v", env.Measured)
		}
	})
}

// What is destroyed is not measured, and what was new starts its time anew.
func TestWhatIsDestroyedIsNotMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWatch(t, every(time.Hour, "*"))
		w.apply("prod", shop("1"))
		if _, err := w.Destroy(t.Context(), alice, "prod", false, "", control.How{}); err != nil {
			t.Fatal(err)
		}
		w.start()
		time.Sleep(24 * time.Hour)
		w.stop()
		if got := w.times("prod"); len(got) > 0 {
			t.Errorf("measured at %s", got)
		}
	})
}
