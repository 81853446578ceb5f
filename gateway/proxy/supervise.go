package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
)

// environment is the variable in which a process that a Supervisor starts finds its inheritance.
const environment = "INVAR_GATEWAY"

const (
	readyTimeout = 15 * time.Second // from start to serving
	minBackoff   = 10 * time.Millisecond
	maxBackoff   = time.Second
	stableAfter  = 5 * time.Second // a gateway that lived this long is started again at once
	firstPassed  = 4               // descriptors: standard streams, the ready pipe, then the sockets
)

// inheritance is what a Supervisor gives to a process. The sockets are its descriptors from firstPassed on, in this order.
type inheritance struct {
	Config  Config   `json:"config"`
	Sockets []string `json:"sockets"`
}

// Inherited returns the configuration, with sockets, that a Supervisor gave to this process; ok is false when none did.
func Inherited(log *slog.Logger) (cfg Config, ok bool, err error) {
	raw, ok := os.LookupEnv(environment)
	if !ok {
		return Config{}, false, nil
	}
	os.Unsetenv(environment)
	var in inheritance
	if err := json.Unmarshal([]byte(raw), &in); err != nil {
		return Config{}, true, fault.Errorf(fault.Invalid, "reading %s: %w", environment, err)
	}
	files := map[string]*os.File{}
	for i, name := range in.Sockets {
		fd := firstPassed + i
		syscall.CloseOnExec(fd)
		files[name] = os.NewFile(uintptr(fd), name)
	}
	syscall.CloseOnExec(firstPassed - 1)
	in.Config.Ready = os.NewFile(firstPassed-1, "ready")
	in.Config.Log = log
	in.Config.Inherited, err = inheritedSockets(files)
	return in.Config, true, err
}

// Supervisor keeps a gateway running as a process of its own, which outlives this one. It holds a duplicate of every
// listening socket: while the gateway is restarted or replaced, the kernel queues connections and none is refused.
type Supervisor struct {
	cfg     Config
	command []string // starts the gateway: the program and its arguments; it must call Run with what Inherited returns
	log     *slog.Logger
	client  *Client
	stop    context.CancelFunc
	done    chan struct{}

	mu      sync.Mutex // one change at a time: apply, restart or upgrade
	sockets map[string]*os.File
}

// Supervise finds the gateway that serves cfg.Dir, or starts one with command, and restarts it whenever it dies, until Close. A gateway of
// another version, or with other addresses, is upgraded. When it returns, the gateway serves.
func Supervise(ctx context.Context, cfg Config, command []string) (*Supervisor, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "log"), 0o750); err != nil {
		return nil, fmt.Errorf("preparing the gateway's directory: %w", err)
	}
	s := &Supervisor{
		cfg: cfg, command: command, log: cfg.Log, client: Dial(cfg.controlPath()),
		done: make(chan struct{}), sockets: map[string]*os.File{},
	}
	if err := s.begin(ctx); err != nil {
		closeAll(s.sockets)
		return nil, err
	}
	life, stop := context.WithCancel(context.Background())
	s.stop = stop
	go s.keep(life)
	return s, nil
}

func (s *Supervisor) begin(ctx context.Context) error {
	status, err := s.client.Status(ctx)
	if errors.Is(err, fault.Unavailable) {
		return s.startFresh(ctx)
	}
	if err != nil {
		return err
	}
	if err := s.fetch(ctx); err != nil {
		return err
	}
	s.log.Info("gateway found", "pid", status.PID, "version", status.Version, "serial", status.Serial)
	if status.Version != s.cfg.Version || s.lacksSockets() {
		return s.upgrade(ctx)
	}
	return nil
}

func (s *Supervisor) startFresh(ctx context.Context) error {
	if err := s.openSockets(); err != nil {
		return err
	}
	return s.spawn(ctx)
}

func (s *Supervisor) lacksSockets() bool {
	for key, address := range s.cfg.hostSockets() {
		if s.sockets[passedKey(key, address)] == nil {
			return true
		}
	}
	return false
}

// openSockets opens the host's sockets that are not held, and lets go of those that the configuration no longer has.
func (s *Supervisor) openSockets() error {
	want := map[string]bool{}
	for key, address := range s.cfg.hostSockets() {
		name := passedKey(key, address)
		want[name] = true
		if s.sockets[name] != nil {
			continue
		}
		opened, err := openHostSocket(key, address, nil)
		if err != nil {
			return err
		}
		f, err := opened.file()
		opened.close()
		if err != nil {
			return err
		}
		s.sockets[name] = f
	}
	for name, f := range s.sockets {
		if isHostKey(name) && !want[name] {
			f.Close()
			delete(s.sockets, name)
		}
	}
	return nil
}

// fetch takes duplicates of the gateway's sockets that are not held yet, and lets go of those that it has closed.
func (s *Supervisor) fetch(ctx context.Context) error {
	fresh, all, err := s.client.listeners(ctx, sortedKeys(s.sockets))
	if err != nil {
		return err
	}
	for name, f := range s.sockets {
		if !slices.Contains(all, name) {
			f.Close()
			delete(s.sockets, name)
		}
	}
	maps.Copy(s.sockets, fresh)
	return nil
}

// spawn starts a gateway on the sockets held and waits until it serves. The process has a session of its own, so that it outlives this one.
func (s *Supervisor) spawn(ctx context.Context) error {
	ready, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	pid, err := s.fork(theirs)
	theirs.Close()
	if err != nil {
		return fmt.Errorf("starting the gateway: %w", err)
	}
	if err := ready.SetReadDeadline(time.Now().Add(readyTimeout)); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { ready.SetReadDeadline(time.Unix(1, 0)) })()
	if _, err := io.ReadFull(ready, make([]byte, len("ready\n"))); err != nil {
		err = fmt.Errorf("gateway (process %d) did not begin to serve: %w", pid, err)
		return fault.WithHint(fault.As(fault.Unavailable, err), "see %s", s.logPath())
	}
	s.log.Info("gateway started", "pid", pid)
	return nil
}

func (s *Supervisor) logPath() string { return filepath.Join(s.cfg.Dir, "log", "gateway.log") }

// fork starts the process. It uses syscall.ForkExec, not os/exec, which would make the sockets blocking in every process that shares them.
func (s *Supervisor) fork(ready *os.File) (int, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	out, err := os.OpenFile(s.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	names := sortedKeys(s.sockets)
	give, err := json.Marshal(inheritance{Config: s.cfg, Sockets: names})
	if err != nil {
		return 0, err
	}
	files := []*os.File{null, out, out, ready}
	for _, name := range names {
		files = append(files, s.sockets[name])
	}
	attr := &syscall.ProcAttr{
		Env: append(os.Environ(), environment+"="+string(give)),
		Sys: &syscall.SysProcAttr{Setsid: true},
	}
	for _, f := range files {
		fd, err := descriptor(f)
		if err != nil {
			return 0, err
		}
		attr.Files = append(attr.Files, uintptr(fd))
	}
	pid, err := syscall.ForkExec(s.command[0], s.command, attr)
	if err != nil {
		return 0, &os.PathError{Op: "exec", Path: s.command[0], Err: err}
	}
	go reap(pid)
	return pid, nil
}

// reap lets the kernel forget a process when it has ended.
func reap(pid int) {
	if p, err := os.FindProcess(pid); err == nil {
		p.Wait()
	}
}

// keep restarts the gateway when it dies.
func (s *Supervisor) keep(life context.Context) {
	defer close(s.done)
	backoff := minBackoff
	for life.Err() == nil {
		since := time.Now()
		s.await(life)
		if life.Err() != nil {
			return
		}
		died := time.Now()
		err := s.restart(life)
		switch {
		case err == nil && died.Sub(since) > stableAfter:
			backoff = minBackoff
		case err != nil && life.Err() == nil:
			s.log.Error("restarting the gateway", "error", err)
			pause(life, backoff)
			backoff = min(2*backoff, maxBackoff)
		}
	}
}

// await returns when the gateway that serves has died, or handed over.
func (s *Supervisor) await(life context.Context) {
	alive, err := s.client.watch(life)
	if err != nil {
		return
	}
	defer alive.Close()
	io.Copy(io.Discard, alive)
}

// restart starts a gateway unless another one serves already, as it does after an upgrade.
func (s *Supervisor) restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.client.Status(ctx); err == nil {
		return nil
	}
	died := time.Now()
	if err := s.openSockets(); err != nil {
		return err
	}
	if err := s.spawn(ctx); err != nil {
		return err
	}
	s.log.Warn("gateway had died and was started again", "took", time.Since(died))
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// Apply puts a table in force; see Client.Apply. It outlasts a restart of the gateway.
func (s *Supervisor) Apply(ctx context.Context, t gateway.Table) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.client.Apply(ctx, t)
	if err != nil {
		return err
	}
	return s.fetch(ctx)
}

// Status asks the gateway about itself. Active also has what gateways that have handed over still carry.
func (s *Supervisor) Status(ctx context.Context) (gateway.Status, error) {
	status, err := s.client.Status(ctx)
	if err != nil {
		return status, err
	}
	for _, path := range ownSockets(s.cfg.controlPath()) {
		old, err := Dial(path).Status(ctx)
		if err != nil || old.PID == status.PID {
			continue
		}
		addActive(status.Active, old.Active)
	}
	return status, nil
}

func addActive(to, from map[instance.ID]int64) {
	for id, n := range from {
		if n > 0 {
			to[id] += n
		}
	}
}

// Upgrade replaces the gateway by a process of the command as it is now. The new one takes over every listening socket before the old one stops to
// accept; the old one ends when its last connection does. No request fails.
func (s *Supervisor) Upgrade(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fetch(ctx); err != nil {
		return err
	}
	return s.upgrade(ctx)
}

func (s *Supervisor) upgrade(ctx context.Context) error {
	before, err := s.client.Status(ctx)
	if err != nil {
		return err
	}
	if err := s.openSockets(); err != nil {
		return err
	}
	if err := s.spawn(ctx); err != nil {
		return err
	}
	s.log.Info("gateway upgraded", "from", before.Version, "to", s.cfg.Version, "old_pid", before.PID)
	return Dial(socketOf(s.cfg, before.PID)).Drain(ctx)
}

// Close stops to supervise. The gateway goes on.
func (s *Supervisor) Close() error {
	s.stop()
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	closeAll(s.sockets)
	clear(s.sockets)
	return nil
}

// Stop stops to supervise and ends the gateway, and all those before it that still drain.
func (s *Supervisor) Stop(ctx context.Context) error {
	if err := s.Close(); err != nil {
		return err
	}
	return StopAll(ctx, s.cfg)
}
