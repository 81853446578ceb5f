package control_test

import (
	"fmt"
	"testing"

	"github.com/invarhq/invar/deploy"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/spec"
	"github.com/invarhq/invar/store"
)

// busy returns a desk whose ledger has about n entries: 20 environments that are applied to again and again, with
// instances that come, fail and go.
func busy(b testing.TB, n int64) *desk {
	d := newDesk(b)
	for round := 0; d.State().Size() < n; round++ {
		env := spec.EnvName(fmt.Sprintf("env%02d", round%20))
		a := shop(fmt.Sprint(round))
		a.Routes = nil
		d.apply(env, a)
		var steps []deploy.Step
		for old := range d.env(env).Instances {
			steps = append(steps, deploy.Step{Kind: deploy.Gone, ID: old})
		}
		for i := range 10 {
			id := fmt.Sprintf("web-%05d%05d", round, i)
			steps = append(steps, d.create(env, id))
			for range 4 {
				steps = append(steps, deploy.Step{Kind: deploy.Healthy, ID: instance.ID(id)}, deploy.Step{Kind: deploy.Failing, ID: instance.ID(id), Cause: "the check timed out"})
			}
		}
		if err := d.record(env, steps...); err != nil {
			b.Fatal(err)
		}
		d.complete(env)
	}
	return d
}

// BenchmarkOpen opens a ledger of 100,000 entries, with the snapshot that its server left, and without any.
func BenchmarkOpen(b *testing.B) {
	d := busy(b, 100_000)
	if err := d.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
	open := func(b *testing.B) {
		for b.Loop() {
			d.disk.Crash()
			d.open(false)
			b.StopTimer()
			if err := d.Ledger().Close(); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		b.ReportMetric(float64(d.State().Size()), "entries")
	}
	b.Run("snapshot", open)
	b.Run("no snapshot", func(b *testing.B) {
		if err := d.config.Store.PutSnapshot(b.Context(), store.Snapshot{}); err != nil {
			b.Fatal(err)
		}
		open(b)
	})
}

// BenchmarkRecord records one step in an environment of ten instances: what each step of a rollout costs here.
func BenchmarkRecord(b *testing.B) {
	d := busy(b, 10)
	env := spec.EnvName("env00")
	var id instance.ID
	for id = range d.env(env).Instances {
		break
	}
	healthy := false
	for b.Loop() {
		kind := deploy.Healthy
		if healthy {
			kind = deploy.Failing
		}
		if err := d.record(env, deploy.Step{Kind: kind, ID: id}); err != nil {
			b.Fatal(err)
		}
		healthy = !healthy
	}
}
