package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/api/client"
	"github.com/invarhq/invar/runtime/local/tampering"
)

const (
	detectLimit = 5 * time.Second
	detectGiven = 15 * time.Second // until what is not found counts as missed
	detectRound = "ROUND"
)

// Each kind of tampering has a component of its own, so that about as many instances run as there are kinds. A round makes new
// versions of all: each is tampered with once, and none of them has a history.
const detectText = `
component "%[1]s" {
  image        = image.%[2]s
  env          = { MODE = "serve", ROUND = var.round }
  stop_timeout = "1s"
  port "http" { number = 8080 }
  health {
    http {
      port = "http"
      path = "/healthz"
    }
  }
  scratch "/tmp" { size = "1Mi" }
  resources {
    cpu    = 0.5
    memory = "64Mi"
    pids   = 64
  }
}
`

const detectImage = `
image "%[1]s" {
  layers {
    base = image.probe
    copy = { "./%[1]s" = "/%[1]s" }
  }
}
`

const detectHead = `app = "probe"

variable "round" {
  type    = string
  default = "ROUND"
}
image "probe" {
  go { package = "." }
}
environment "staging" {
  rollout {
    min_healthy_time = "0s"
    keep_warm        = "0s"
    drain            = "0s"
  }
}
`

// benchDetect tampers with instances at random moments, and waits for the entries.
func benchDetect(ctx context.Context, b *bench) error {
	kinds := detectKinds()
	app, err := b.detectApp(kinds)
	if err != nil {
		return err
	}
	d, err := b.newDaemon(ctx)
	if err != nil {
		return err
	}
	log := follow(ctx, d)
	defer log.stop()
	took := make([]sample, len(kinds))
	beside := make([]sample, len(tampering.Beside()))
	for n := range b.pick(b.n, 3) + 1 { // the first one warms up
		if n%3 == 2 { // a server takes what comes back a fourth time for the same as before, and gives it no entry of its own
			if err := errors.Join(d.stop(syscall.SIGTERM), d.again(ctx)); err != nil {
				return err
			}
		}
		if err := edit(app, lastRound(n-1), lastRound(n)); err != nil {
			return err
		}
		if _, err := d.run(ctx, app, "apply", benchEnv, "--yes"); err != nil {
			return err
		}
		one, err := d.detect(ctx, log, kinds)
		if err != nil {
			return err
		}
		other, err := d.detectBeside(ctx, log)
		if err != nil {
			return err
		}
		if n > 0 {
			addAll(took, one)
			addAll(beside, other)
		}
	}
	b.note("%d instances of one component each; all kinds beside each other, each at a random moment of two seconds; p50/p99", len(kinds))
	for n, k := range append(kinds, tampering.Beside()...) {
		s := append(took, beside...)[n]
		b.row(k.Name, fmt.Sprintf("%s/%s ms", number(s.p50()), number(s.at(0.99))), "", 0, atMost(s.at(1), float64(detectLimit.Milliseconds()), " ms"))
	}
	return nil
}

// again starts the server anew.
func (d *daemon) again(ctx context.Context) error {
	_, err := d.start(ctx)
	return err
}

// detectKinds are those that are done while a server runs.
func detectKinds() []tampering.Kind {
	var kinds []tampering.Kind
	for _, k := range tampering.Kinds() {
		if !k.Unwatched {
			kinds = append(kinds, k)
		}
	}
	return kinds
}

func lastRound(n int) string {
	if n < 0 {
		return `"` + detectRound + `"`
	}
	return fmt.Sprintf("%q", fmt.Sprint("round ", n))
}

func componentOf(n int) string { return fmt.Sprintf("kind%d", n) }

func addAll(to, from []sample) {
	for n := range to {
		to[n] = append(to[n], from[n]...)
	}
}

// detectApp makes the app.
func (b *bench) detectApp(kinds []tampering.Kind) (string, error) {
	dir := filepath.Join(b.dir, "probe")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(b.repo, "cmd", "invar", "testdata", "probe"))); err != nil {
		return "", err
	}
	var text strings.Builder
	text.WriteString(detectHead)
	for n, k := range kinds {
		name, image := componentOf(n), "probe"
		if k.Wide { // with a root that no other instance has
			image = name
			fmt.Fprintf(&text, detectImage, name)
			if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
				return "", err
			}
		}
		fmt.Fprintf(&text, detectText, name, image)
	}
	return dir, os.WriteFile(filepath.Join(dir, "invar.hcl"), []byte(text.String()), 0o644)
}

// detect tampers with all instances at once, each in its way, and returns what each took until it was in the ledger, in milliseconds.
func (d *daemon) detect(ctx context.Context, log *logbook, kinds []tampering.Kind) ([]sample, error) {
	env, err := d.client.Environment(ctx, benchEnv)
	if err != nil {
		return nil, err
	}
	targets := map[string]tampering.Target{}
	for _, i := range env.Instances {
		if i.Head && i.Health == "passing" {
			targets[i.Component] = d.target(i)
		}
	}
	took, failed := make([]sample, len(kinds)), make([]error, len(kinds))
	var all sync.WaitGroup
	for n, k := range kinds {
		t, ok := targets[componentOf(n)]
		if !ok {
			return nil, fmt.Errorf("%s has no healthy instance", componentOf(n))
		}
		all.Go(func() {
			time.Sleep(rand.N(2 * time.Second))
			var one time.Duration
			one, failed[n] = log.found(ctx, k, t)
			took[n].took(one)
		})
	}
	all.Wait()
	return took, errors.Join(failed...)
}

// detectBeside tampers with what is beside the instances, one thing after the other.
func (d *daemon) detectBeside(ctx context.Context, log *logbook) ([]sample, error) {
	var took []sample
	for _, k := range tampering.Beside() {
		time.Sleep(rand.N(time.Second))
		env, err := d.client.Environment(ctx, benchEnv) // what was tampered with is being replaced
		if err != nil {
			return nil, err
		}
		like := slices.IndexFunc(env.Instances, func(i api.Instance) bool { return i.Health == "passing" && i.Tainted == nil })
		if like < 0 {
			return nil, errors.New("no instance is healthy")
		}
		one, err := log.found(ctx, k, d.target(env.Instances[like]))
		if err != nil {
			return nil, err
		}
		var s sample
		s.took(one)
		took = append(took, s)
	}
	return took, nil
}

func (d *daemon) target(i api.Instance) tampering.Target {
	return tampering.Target{ID: i.ID, PID: i.PID, Run: d.runDir(), Data: d.data, Stays: []string{"/app/probe", "shell"}}
}

// runDir is the server's, which is named after the data directory (package runtime/local).
func (d *daemon) runDir() string {
	sum := sha256.Sum256([]byte(d.data))
	return filepath.Join("/run/invar", hex.EncodeToString(sum[:6]))
}

// logbook is the ledger as it becomes known.
type logbook struct {
	stop func()

	mu      sync.Mutex
	entries []api.Entry
	seen    []time.Time // when each could be read: it was durable then
	grown   chan struct{}
}

// follow reads the ledger, a hundred times a second, until it is stopped.
func follow(ctx context.Context, d *daemon) *logbook {
	c := d.client // of the socket: the next server's as well
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	l := &logbook{stop: func() { cancel(); <-over }, grown: make(chan struct{})}
	go func() {
		defer close(over)
		for next := uint64(0); ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
			part, err := c.Entries(ctx, client.EntriesQuery{From: next})
			if err != nil || len(part.Entries) == 0 {
				continue
			}
			next = part.Next
			l.add(part.Entries)
		}
	}()
	return l
}

func (l *logbook) add(entries []api.Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range entries {
		l.entries, l.seen = append(l.entries, e), append(l.seen, time.Now())
	}
	close(l.grown)
	l.grown = make(chan struct{})
}

// found tampers, waits for the entry, and undoes what would outlast the instance.
func (l *logbook) found(ctx context.Context, k tampering.Kind, t tampering.Target) (time.Duration, error) {
	l.mu.Lock()
	from := len(l.entries)
	l.mu.Unlock()
	began := time.Now()
	undo, err := k.Do(t)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", k.Name, err)
	}
	defer undo()
	ctx, cancel := context.WithTimeout(ctx, detectGiven)
	defer cancel()
	about := t.ID
	if k.Shows.Entry == "host.drift" {
		about = "" // such an entry is about no instance
	}
	for {
		l.mu.Lock()
		grown := l.grown
		for n := from; n < len(l.entries); n++ {
			if id, ok := k.Shows.In(l.entries[n].Kind, l.entries[n].Data); ok && id == about {
				at := l.seen[n]
				l.mu.Unlock()
				return at.Sub(began), nil
			}
		}
		l.mu.Unlock()
		select {
		case <-grown:
		case <-ctx.Done():
			return 0, fmt.Errorf("%s: not found within %v: no %v", k.Name, detectGiven, k.Shows)
		}
	}
}
