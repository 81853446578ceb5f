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

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/runtime/local/wire"
)

// engine is the container behind a record: libcontainer's, or an OCI runtime's.
type engine interface {
	pid() int
	start() error
	signal(unix.Signal) error
	wait() exit                               // until the first process is gone; it does not outlive the launcher
	exec(wire.Exec) (*wire.ExecResult, error) // a command beside the first process
	session(wire.Session) (*session, error)   // the same, and somebody talks to it
	oom() bool                                // whether the kernel killed for want of memory
	destroy() error                           // kill, and delete all traces
}

// exit is how a first process ended.
type exit struct {
	code int // -1: not known; 128+n: by signal n
	at   time.Time
}

// record is one instance.
type record struct {
	launcher *launcher
	id       string
	dir      string // the instance's
	create   wire.Create
	told     string // names the OCI configuration that create had, whatever config.json says by now

	act    sync.Mutex // held by create, start and remove: one at a time
	engine engine     // set before the record has a state
	logs   *logs

	mu     sync.Mutex
	status wire.Status
	gone   chan struct{} // closed once the exit is recorded
}

func (l *launcher) newRecord(id string, c wire.Create) *record {
	return &record{launcher: l, id: id, dir: filepath.Join(l.dir, "instances", id), create: c, told: wire.Told(c.OCI), gone: make(chan struct{})}
}

func (r *record) snapshot() wire.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

// set changes the status and tells the watchers.
func (r *record) set(change func(*wire.Status)) {
	r.mu.Lock()
	change(&r.status)
	s := r.status
	r.mu.Unlock()
	r.launcher.tell(s)
}

func (r *record) answer(err error) (wire.Response, error) {
	return wire.Response{Instances: []wire.Status{r.snapshot()}}, err
}

// create makes an instance with a waiting process.
func (l *launcher) create(q wire.Request) (wire.Response, error) {
	if q.Create == nil || q.ID == "" || q.ID != filepath.Base(q.ID) || q.ID[0] == '.' {
		return wire.Response{}, fault.Errorf(fault.Invalid, "create: want an ID that can name a directory, and what to create")
	}
	r := l.newRecord(q.ID, *q.Create)
	r.act.Lock()
	defer r.act.Unlock()
	l.mu.Lock()
	if _, ok := l.instances[q.ID]; ok {
		l.mu.Unlock()
		return wire.Response{}, fault.Errorf(fault.Conflict, "instance %s exists", q.ID)
	}
	l.instances[q.ID] = r
	l.mu.Unlock()
	if err := r.make(); err != nil {
		l.forget(r)
		return wire.Response{}, fmt.Errorf("creating instance %s: %w", q.ID, err)
	}
	go r.watch()
	return r.answer(nil)
}

func (l *launcher) forget(r *record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.instances[r.id] == r {
		delete(l.instances, r.id)
	}
}

// make does the work of create. A crash in it leaves a directory that the host removes when no launcher knows the instance.
func (r *record) make() (err error) {
	if err := r.writeBundle(); err != nil {
		return err
	}
	if r.logs, err = openLogs(r.dir, r.create.Log); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			r.logs.close()
		}
	}()
	if r.create.Runtime != "" {
		r.engine, err = createWithCommand(r)
	} else {
		r.engine, err = createContainer(r)
	}
	if err != nil {
		return err
	}
	r.set(func(s *wire.Status) {
		*s = wire.Status{ID: r.id, Attempt: r.create.Attempt, Told: r.told, State: wire.Created, PID: r.engine.pid()}
	})
	return nil
}

func (r *record) bundle() string { return filepath.Join(r.dir, "oci") }

func (r *record) writeBundle() error {
	if err := os.Mkdir(r.bundle(), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.WriteFile(filepath.Join(r.bundle(), "config.json"), r.create.OCI, 0o600); err != nil {
		return err
	}
	k := kept{r.create, r.told}
	k.OCI = json.RawMessage("null")
	return writeJSON(filepath.Join(r.bundle(), "launcher.json"), k)
}

// kept is what a later launcher must know of a creation; the OCI configuration lies beside it.
type kept struct {
	wire.Create
	Told string `json:"told"`
}

// start lets the process go.
func (r *record) start() error {
	r.act.Lock()
	defer r.act.Unlock()
	switch r.snapshot().State {
	case wire.Running:
		return nil
	case wire.Created:
	default:
		return fault.Errorf(fault.Conflict, "starting instance %s: it has exited", r.id)
	}
	began := time.Now()
	if err := os.WriteFile(filepath.Join(r.bundle(), "started"), []byte(began.Format(time.RFC3339Nano)), 0o600); err != nil {
		return err
	}
	if err := r.engine.start(); err != nil {
		return fmt.Errorf("starting instance %s: %w", r.id, err)
	}
	r.set(func(s *wire.Status) {
		s.StartedAt = began
		if s.State == wire.Created { // it may have exited already
			s.State = wire.Running
		}
	})
	return nil
}

func (r *record) signal(s unix.Signal) error {
	if r.snapshot().State == wire.Exited {
		return nil
	}
	if err := r.engine.signal(s); err != nil && !errors.Is(err, unix.ESRCH) {
		select {
		case <-r.gone:
			return nil
		case <-time.After(100 * time.Millisecond): // its exit may be about to be recorded
		}
		if r.snapshot().State == wire.Exited {
			return nil
		}
		return fmt.Errorf("signalling instance %s: %w", r.id, err)
	}
	return nil
}

func (r *record) exec(e wire.Exec) (*wire.ExecResult, error) {
	if s := r.snapshot().State; s != wire.Running {
		return nil, fault.Errorf(fault.Conflict, "running a command in instance %s: it is %s", r.id, s)
	}
	result, err := r.engine.exec(e)
	if err != nil {
		return nil, fmt.Errorf("running a command in instance %s: %w", r.id, err)
	}
	return result, nil
}

// watch waits for the exit and records it, first on disk: the next launcher must know it too.
func (r *record) watch() {
	x := r.engine.wait()
	r.logs.close()
	oom := r.engine.oom()
	r.mu.Lock()
	s := r.status
	s.State, s.PID, s.ExitedAt, s.ExitCode, s.OOM = wire.Exited, 0, x.at, x.code, oom && (x.code == 137 || x.code == -1)
	r.mu.Unlock()
	if err := writeJSON(filepath.Join(r.bundle(), "exit.json"), s); err != nil && !errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(os.Stderr, "invar-launcher: recording the exit of %s: %v\n", r.id, err)
	}
	r.set(func(now *wire.Status) {
		s.StartedAt = now.StartedAt
		*now = s
	})
	close(r.gone)
}

// remove kills and forgets an instance; the host deletes its directory.
func (l *launcher) remove(id string) error {
	r, err := l.find(id)
	if err != nil {
		return l.sweep(id)
	}
	r.act.Lock()
	defer r.act.Unlock()
	if r.engine == nil {
		return nil // its creation failed while this waited
	}
	if err := r.end(); err != nil {
		return fmt.Errorf("removing instance %s: %w", id, err)
	}
	l.forget(r)
	r.set(func(s *wire.Status) { s.State, s.PID = wire.Gone, 0 })
	return nil
}

// end kills what runs, waits for its exit, and destroys the container.
func (r *record) end() error {
	if r.snapshot().State != wire.Exited {
		killed := r.engine.signal(unix.SIGKILL)
		select {
		case <-r.gone:
		case <-time.After(10 * time.Second):
			return errors.Join(errors.New("it is still there 10s after SIGKILL"), killed)
		}
	}
	return r.engine.destroy()
}

// writeJSON replaces a file as a whole.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
