package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
)

// forkedShop is examples/shop with one web instance and three more components, five in all, in an environment "fresh" as well. Their rollouts wait
// for nothing but health, and keep nothing warm.
func (b *bench) forkedShop() (string, error) {
	more := ""
	for _, name := range []string{"stock", "prices", "reviews"} {
		more += fmt.Sprintf(`component %q {
  image = image.catalog
  port "http" { number = 9000 }
  health {
    http {
      port = "http"
      path = "/healthz"
    }
  }
  resources { memory = "64Mi" }
}
`, name)
	}
	return b.shop("replicas = 2", "replicas = 1", `min_healthy_time = "1s"`, `min_healthy_time = "0s"`, `keep_warm        = "15m"`, `keep_warm        = "0s"`,
		`environment "prod" {`, "environment \"fresh\" {\n  rollout { min_healthy_time = \"0s\" }\n}\nenvironment \"prod\" {", `route "shop" {`, more+`route "shop" {`)
}

// benchFork forks an environment of five components again and again, in turn with first applies of the same bundle, and searches a history.
func benchFork(ctx context.Context, b *bench) error {
	d, err := b.newDaemon(ctx)
	if err != nil {
		return err
	}
	app, err := b.forkedShop()
	if err != nil {
		return err
	}
	if _, err := d.run(ctx, app, "apply", benchEnv, "--yes"); err != nil {
		return err
	}
	if err := d.forks(ctx, app); err != nil {
		return err
	}
	return d.bisects(ctx, app)
}

// begun is what it takes to bring up an environment: until the head's entry, until all instances are healthy, and until the rollout's end is in the ledger.
type begun struct{ accepted, complete sample }

func (d *daemon) forks(ctx context.Context, app string) error {
	out, err := d.run(ctx, app, "plan", "fresh", "-o", "json")
	if err != nil {
		return err
	}
	var p api.Plan
	if err := json.Unmarshal([]byte(out), &p); err != nil {
		return err
	}
	var fork, apply begun
	var whole sample
	for round := range d.n + 1 {
		warm := round == 0
		env := fmt.Sprint("fork-", round)
		err := d.begins(ctx, &fork, warm, env, func() (api.Accepted, error) {
			return d.client.Fork(ctx, env, api.ForkRequest{From: benchEnv, TTLMS: time.Hour.Milliseconds()})
		})
		if err != nil {
			return err
		}
		err = d.begins(ctx, &apply, warm, "fresh", func() (api.Accepted, error) {
			p, err := d.client.Plan(ctx, "fresh", api.PlanRequest{Bundle: p.Bundle, Release: p.Release})
			if err != nil {
				return api.Accepted{}, err
			}
			return d.client.Apply(ctx, "fresh", api.ApplyRequest{Bundle: p.Bundle, Release: p.Release, BaseGeneration: p.BaseGeneration, PlanDigest: p.Digest})
		})
		if err != nil {
			return err
		}
		began := time.Now()
		if _, err := d.run(ctx, app, "fork", benchEnv, env+"-cli", "--ttl", "1h"); err != nil {
			return err
		}
		if !warm {
			whole.since(began)
		}
		if err := d.ends(ctx, env+"-cli"); err != nil {
			return err
		}
	}
	d.note("examples/shop with three more components: 5 components, 5 instances, images and roots there; rollouts wait for nothing but health")
	d.row("fork: asked → all healthy, rollout complete in the ledger; a first apply of the same bundle", fork.complete.ms(), apply.complete.ms(), ratios(fork.complete, apply.complete).p50(), target{})
	d.row("  asked → head moved", fork.accepted.ms(), apply.accepted.ms(), ratios(fork.accepted, apply.accepted).p50(), target{})
	d.row("  the whole command `invar fork`, start to exit", whole.ms(), "", 0, target{})
	return nil
}

// begins times an environment's begin, and ends it.
func (d *daemon) begins(ctx context.Context, took *begun, warm bool, env string, ask func() (api.Accepted, error)) error {
	asked := time.Now()
	accepted, err := ask()
	if err != nil {
		return err
	}
	moved := time.Since(asked)
	if err := d.completed(ctx, accepted); err != nil {
		return err
	}
	if !warm {
		took.accepted.took(moved)
		took.complete.since(asked)
	}
	e, err := d.client.Environment(ctx, env)
	if err != nil {
		return err
	}
	if e.Healthy != 5 || e.Wanted != 5 {
		return fmt.Errorf("%s has %d of %d instances healthy", env, e.Healthy, e.Wanted)
	}
	return d.ends(ctx, env)
}

// ends destroys an environment, and waits until nothing of it runs.
func (d *daemon) ends(ctx context.Context, env string) error {
	accepted, err := d.client.Destroy(ctx, env, api.DestroyRequest{})
	if err != nil {
		return err
	}
	return d.completed(ctx, accepted)
}

// completed waits for the end of the rollout that moved a head.
func (d *daemon) completed(ctx context.Context, accepted api.Accepted) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for event, err := range d.client.Events(ctx, client.EventsQuery{Env: accepted.Env, Since: &accepted.Entry}) {
		if err != nil {
			return err
		}
		if event.Entry == nil {
			continue
		}
		switch event.Entry.Kind {
		case "deploy.complete":
			return nil
		case "deploy.fail", "deploy.revert":
			return fmt.Errorf("generation %d: %s %s", accepted.Generation, event.Entry.Kind, event.Entry.Data)
		}
	}
	return ctx.Err()
}

// bisects searches a row of generations, of which a later half is bad, for the first bad one: once by one run after the other, and once by three at a time.
func (d *daemon) bisects(ctx context.Context, app string) error {
	n, want := d.pick(64, 8), d.pick(6, 3) // generations of which each may be the first bad one, and the runs that finding it takes
	first := 1 + n*5/8                     // a place that no run comes upon by luck
	heading := firstHeading
	for g := 2; g <= n+1; g++ {
		next := fmt.Sprintf("Good %d", g)
		if g >= first {
			next = fmt.Sprintf("Broken %d", g)
		}
		if err := edit(app, fmt.Sprintf("%q", heading), fmt.Sprintf("%q", next)); err != nil {
			return err
		}
		if _, err := d.run(ctx, app, "apply", benchEnv, "--yes"); err != nil {
			return err
		}
		heading = next
	}
	one, err := d.bisect(ctx, app, n+1, first, "1")
	if err != nil {
		return err
	}
	three, err := d.bisect(ctx, app, n+1, first, "3")
	if err != nil {
		return err
	}
	what := fmt.Sprintf("bisect over %d generations of 5 components", n)
	d.row(what+", runs", fmt.Sprint(one.runs), "", 0, atMost(float64(one.runs), float64(want), ""))
	d.row("  the whole command, start to exit", fmt.Sprintf("%s s", number(one.took.Seconds())), "", 0, target{})
	d.row("  for each run", fmt.Sprintf("%s ms", number(one.took.Seconds()*1000/float64(one.runs))), "", 0, target{})
	d.row(fmt.Sprintf("  with --parallel 3: the whole command, for %d runs", three.runs), fmt.Sprintf("%s s", number(three.took.Seconds())), "", 0, target{})
	return nil
}

// searched is what one bisection took.
type searched struct {
	runs int
	took time.Duration
}

func (d *daemon) bisect(ctx context.Context, app string, bad, first int, parallel string) (searched, error) {
	began := time.Now()
	out, err := d.run(ctx, app, "bisect", benchEnv, "--good", "1", "--bad", fmt.Sprint(bad), "--parallel", parallel, "-o", "json",
		"--", "sh", "-c", `! curl -fsS "$INVAR_BISECT_URL" | grep -q Broken`)
	took := time.Since(began)
	if err != nil {
		return searched{}, err
	}
	var r struct {
		Runs  []struct{}       `json:"runs"`
		First []api.Generation `json:"first_bad"`
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return searched{}, err
	}
	if len(r.First) != 1 || r.First[0].Number != first {
		return searched{}, fmt.Errorf("the first bad generation is %d, and bisect found %+v", first, r.First)
	}
	return searched{len(r.Runs), took}, nil
}
