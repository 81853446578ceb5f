package reconcile_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
	"github.com/invarhq/invar/runtime/runtimetest"
)

// looker is a host that notes who was looked at, and gives signs.
type looker struct {
	*runtimetest.Fake
	mu    sync.Mutex
	looks map[instance.ID][]time.Time
	sign  chan struct{}
}

func (l *looker) Inspect(ctx context.Context, q runtime.Question) (runtime.Inspection, error) {
	l.mu.Lock()
	l.looks[q.Spec.Identity.ID] = append(l.looks[q.Spec.Identity.ID], time.Now())
	l.mu.Unlock()
	return l.Fake.Inspect(ctx, q)
}

func (l *looker) touched() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sign == nil {
		l.sign = make(chan struct{})
	}
	return l.sign
}

func (l *looker) touch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.sign)
	l.sign = nil
}

// A new instance is looked at when it runs, and all are when a sign comes: not only when the period is over.
func TestLookDoesNotWaitForThePeriod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, runtimetest.Config{})
		host := &looker{Fake: w.host, looks: map[instance.ID][]time.Time{}}
		w.via, w.inspectEvery, w.touched = host, time.Hour, host.touched
		w.start(t.Context())
		defer w.stop()
		settle(time.Second)
		began := time.Now()
		w.book.head(t, "prod", app(fast, "web×3=a"))
		settle(time.Second)
		ids := slices.Sorted(maps.Keys(host.looks))
		if len(ids) != 3 {
			t.Fatalf("looked at %v of 3 instances", ids)
		}
		for _, id := range ids {
			if at := host.looks[id]; len(at) != 1 || at[0].Sub(began) > 500*time.Millisecond {
				t.Errorf("looked at %s %v after the change", id, at[0].Sub(began))
			}
		}
		if err := w.host.Tamper(ids[1], drift.Fact{Kind: drift.Port, Field: "tcp 0.0.0.0:4444", Value: "listening"}); err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		if strings.Contains(w.trace(99), "drift") {
			t.Fatalf("found without a sign within the period:\n%s", w.trace(99))
		}
		host.touch()
		settle(time.Second)
		if !strings.Contains(w.trace(99), "drift") {
			t.Errorf("a second after the sign, nothing was found:\n%s", w.trace(99))
		}
	})
}
