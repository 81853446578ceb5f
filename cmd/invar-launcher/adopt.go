package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/invarhq/invar/runtime/local/wire"
)

// adopt finds again what an earlier launcher left: running, waiting and exited instances. What it can't read
// it leaves alone; the host removes what no launcher knows.
func (l *launcher) adopt() error {
	entries, err := os.ReadDir("instances")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	slots := make(chan struct{}, adopters)
	for _, e := range entries {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			l.adoptOne(e.Name())
		})
	}
	all.Wait()
	return nil
}

// adopters is how many instances are read at once: a launcher is to be back soon.
const adopters = 8

func (l *launcher) adoptOne(id string) {
	r, err := l.load(id)
	if err != nil {
		fmt.Fprintf(os.Stderr, "invar-launcher: not adopting instance %s: %v\n", id, err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.instances[id] = r
}

func (l *launcher) load(id string) (*record, error) {
	r := l.newRecord(id, wire.Create{})
	var k kept
	if err := readJSON(filepath.Join(r.bundle(), "launcher.json"), &k); err != nil {
		return nil, err
	}
	r.create, r.told = k.Create, k.Told
	var err error
	if r.create.Runtime != "" {
		r.engine, err = loadFromCommand(r)
	} else {
		r.engine, err = loadContainer(r)
	}
	if err != nil {
		return nil, err
	}
	err = readJSON(filepath.Join(r.bundle(), "exit.json"), &r.status)
	if err == nil {
		close(r.gone)
		return r, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	r.status = wire.Status{ID: id, Attempt: r.create.Attempt, Told: r.told, State: wire.Created, PID: r.engine.pid(), StartedAt: r.startedAt()}
	if !r.status.StartedAt.IsZero() {
		r.status.State = wire.Running
	}
	if r.logs, err = openLogs(r.dir, r.create.Log); err != nil {
		return nil, err
	}
	go r.watch()
	return r, nil
}

// startedAt returns when the instance was let go, zero when it waits. A launcher that died between noting the time and letting
// the process go leaves one that waits: libcontainer's FIFO for letting it go is still there.
func (r *record) startedAt() time.Time {
	if _, err := os.Stat(filepath.Join(r.launcher.stateDir(), r.id, "exec.fifo")); err == nil {
		return time.Time{}
	}
	b, err := os.ReadFile(filepath.Join(r.bundle(), "started"))
	if err != nil {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, string(b))
	if err != nil {
		return time.Time{}
	}
	return t
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
