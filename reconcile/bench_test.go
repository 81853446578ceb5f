package reconcile_test

import (
	"fmt"
	goruntime "runtime"
	"testing"
	"time"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/release"
	"github.com/invarhq/invar/runtime/runtimetest"
	"github.com/invarhq/invar/spec"
)

// BenchmarkConverge brings environments of 20 instances each from nothing to their head on an in-memory host, and then
// one of them, and all of them, to another. Its figures are seconds of wall clock, and megabytes of live heap, which the host's
// and the ledger's stand-ins are part of.
func BenchmarkConverge(b *testing.B) {
	for _, envs := range []int{50, 150, 500} {
		b.Run(fmt.Sprintf("instances=%d", envs*20), func(b *testing.B) {
			for b.Loop() {
				converge(b, envs)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

func converge(b *testing.B, envs int) {
	settings := fast
	settings.MaxParallel, settings.KeepWarmMillis, settings.DrainMillis = 10, 0, 0
	release := func(n int, version string) release.Record {
		r := app(settings, "web×15="+version+" >api", "api×4="+version+" >db", "db×1=a*")
		for i := range r.Routes {
			r.Routes[i].Host = fmt.Sprintf("%s.env-%d.localhost", r.Routes[i].Component, n)
		}
		return r
	}
	w := newWorld(b, runtimetest.Config{})
	w.book.keep = false
	before := liveHeap()
	w.start(b.Context())
	defer w.stop()
	all := func(version string) {
		for n := range envs {
			w.book.head(b, envName(n), release(n, version))
		}
		for n := range envs {
			w.await(b, envName(n))
		}
	}
	b.ReportMetric(elapsed(func() { all("a") }), "s/from-nothing")
	b.ReportMetric(float64(liveHeap()-before)/1e6, "MB")
	b.ReportMetric(elapsed(func() {
		w.book.head(b, envName(0), release(0, "b"))
		w.await(b, envName(0))
	}), "s/one-change")
	b.ReportMetric(elapsed(func() { all("c") }), "s/all-change")
	b.ReportMetric(float64(w.road.applied), "tables")
	if got := w.host.Passing(); got != envs*20 {
		b.Fatalf("%d instances pass, want %d", got, envs*20)
	}
}

func envName(n int) spec.EnvName { return spec.EnvName(fmt.Sprintf("env-%d", n)) }

func elapsed(do func()) float64 {
	began := time.Now()
	do()
	return time.Since(began).Seconds()
}

func liveHeap() uint64 {
	goruntime.GC()
	var m goruntime.MemStats
	goruntime.ReadMemStats(&m)
	return m.HeapAlloc
}

// await waits until the head's rollout has completed and what it replaced is gone.
func (w *world) await(b *testing.B, name spec.EnvName) {
	for {
		changed := w.book.Changed()
		e := w.env(name)
		if e.Head.Outcome == deploy.Completed && len(e.Instances) == 20 {
			return
		}
		if e.Head.Outcome == deploy.Broken {
			b.Fatalf("%s: %s", name, e.Head.Cause)
		}
		select {
		case <-changed:
		case <-time.After(2 * time.Minute):
			b.Fatalf("%s does not converge: %d instances, %s", name, len(e.Instances), e.Head.Outcome)
		}
	}
}

// BenchmarkSwitch rolls back onto warm instances and forth: from the head's entry to the table in force.
func BenchmarkSwitch(b *testing.B) {
	w := newWorld(b, runtimetest.Config{})
	w.book.keep = false
	w.start(b.Context())
	defer w.stop()
	versions := []release.Record{app(fast, "db×1=a*", "web×10=a >db"), app(fast, "db×1=a*", "web×10=b >db")}
	done := func(number int) {
		for {
			changed := w.book.Changed()
			if h := w.env("prod").Head; h.Number == number && h.Outcome == deploy.Completed {
				return
			}
			<-changed
		}
	}
	w.book.head(b, "prod", versions[0])
	done(1)
	w.book.head(b, "prod", versions[1])
	done(2)
	for n := 3; b.Loop(); n++ {
		applied := w.road.tables()
		w.book.head(b, "prod", versions[n%2^1])
		done(n)
		for w.road.tables() == applied {
			goruntime.Gosched()
		}
	}
}
