package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
)

// environment is the variable that tells a process that a Supervisor started it. Its value is the descriptor of a socket over which the
// process says that it waits, gets its configuration and sockets as soon as it is needed, and says that it serves.
const environment = "INVAR_GATEWAY"

const (
	parentSocket = 3
	waitingLine  = "waiting\n"      // of a spare, once it has initialised itself
	readyLine    = "ready\n"        // of a gateway that serves
	readyTimeout = 15 * time.Second // from start to serving
	minBackoff   = 10 * time.Millisecond
	maxBackoff   = time.Second
	stableAfter  = 5 * time.Second // a gateway that lived this long is started again at once
)

// Inherited waits until the Supervisor that started this process needs it, and returns what to call Run with. ok is false when no Supervisor
// started this process. It fails when the Supervisor goes away before.
func Inherited(log *slog.Logger) (cfg Config, ok bool, err error) {
	if os.Getenv(environment) == "" {
		return Config{}, false, nil
	}
	os.Unsetenv(environment)
	f := os.NewFile(parentSocket, "parent")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return Config{}, true, fmt.Errorf("inheriting from the supervisor: %w", err)
	}
	leaveService(log)
	io.WriteString(conn, waitingLine) // when nobody reads, there is nothing to receive either
	given, files, _, err := receiveListeners(conn.(*net.UnixConn))
	if errors.Is(err, io.EOF) {
		return Config{}, true, fault.Errorf(fault.Unavailable, "the supervisor ended before this spare gateway was needed")
	}
	if err != nil {
		return Config{}, true, err
	}
	if given == nil {
		return Config{}, true, fault.Errorf(fault.Invalid, "the supervisor gave no configuration")
	}
	given.Log, given.Ready = log, conn
	given.Inherited, err = inheritedSockets(files)
	return *given, true, err
}

// Supervisor keeps a gateway running as a process of its own, which outlives this one. It holds a duplicate of every
// listening socket: while the gateway is restarted or replaced, the kernel queues connections and none is refused. A spare
// process waits beside it, so that a dead gateway is replaced in the time that it takes to hand the sockets over.
type Supervisor struct {
	cfg     Config
	command []string // starts the gateway: the program and its arguments; it must call Run with what Inherited returns
	log     *slog.Logger
	client  *Client
	stop    context.CancelFunc
	done    chan struct{}
	changed chan struct{} // has something after a new table

	program string // what is executed: command's, also when another file lies at its path by now
	own     file   // this program, when command is the same; else zero

	serving       atomic.Pointer[process]        // the gateway; nil: none yet
	lastListeners atomic.Pointer[[]drift.Oddity] // what the last look at listeners found

	mu      sync.Mutex // one change at a time: apply, restart or upgrade
	sockets map[string]*os.File
	spare   *child            // nil: none
	watched []*os.File        // listeners of this process that are looked at as well
	ending  []ending          // gateways that were told to end
	owners  map[uint32]string // whose the sockets are that take connections from ours, by inode
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
	s := &Supervisor{cfg: cfg, command: command, program: command[0], log: cfg.Log, done: make(chan struct{}), changed: make(chan struct{}, 1), sockets: map[string]*os.File{}}
	s.client = dialGateway(cfg, s.servingPID)
	s.lastListeners.Store(new([]drift.Oddity))
	s.knowProgram()
	if err := s.begin(ctx); err != nil {
		closeAll(s.sockets)
		s.spare.dismiss()
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
	pid, err := s.client.whose(ctx)
	if err != nil {
		return err
	}
	if other := s.pushedAside(ctx, pid); other != 0 {
		s.log.Warn("the control path leads to a process that is no gateway of this program, and there is one", "path_pid", pid, "pid", other)
		pid = other
	}
	if err := s.serves(pid); err != nil {
		return fmt.Errorf("looking at the gateway that was found: %w", err)
	}
	if status, err = s.client.Status(ctx); err != nil {
		return err
	}
	if err := s.fetch(ctx); err != nil {
		return err
	}
	s.log.Info("gateway found", "pid", status.PID, "version", status.Version, "serial", status.Serial)
	if status.Version != s.cfg.Version || s.lacksSockets() || s.own != (file{}) && s.serving.Load().exe != s.own {
		return s.upgrade(ctx)
	}
	s.spare, err = s.fork()
	return err
}

// pushedAside returns the gateway of this very program that serves although the control path leads to a process of another one; 0: there is none.
func (s *Supervisor) pushedAside(ctx context.Context, found int) int {
	if at, err := ofProcess(found); s.own == (file{}) || err == nil && at.exe == s.own {
		return 0
	}
	for _, pid := range s.cfg.PIDs() {
		p, err := ofProcess(pid)
		if err != nil || p.exe != s.own {
			continue
		}
		status, err := s.of(ctx, pid)
		if err == nil && status.PID == pid && !status.Draining {
			return pid
		}
	}
	return 0
}

// of asks a process of this gateway for its status, and nobody who sits on its socket.
func (s *Supervisor) of(ctx context.Context, pid int) (gateway.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, politeness)
	defer cancel()
	return dialGateway(s.cfg, func() int { return pid }).Status(ctx)
}

// knowProgram sees to it that a gateway is of this very program where it is of the same file, also when that was replaced on disk by then.
func (s *Supervisor) knowProgram() {
	own, err := fileAt(selfProgram)
	if at, err2 := fileAt(s.command[0]); err == nil && err2 == nil && at == own {
		s.own, s.program = own, selfProgram
	}
}

// selfProgram is the file of the running program, whatever lies at its path.
const selfProgram = "/proc/self/exe"

// serves notes which process is the gateway, as it is now.
func (s *Supervisor) serves(pid int) error {
	p, err := ofProcess(pid)
	if err != nil {
		return err
	}
	p.socket = socketAt(socketOf(s.cfg, pid))
	s.serving.Store(&p)
	return nil
}

// servingPID returns the gateway's process, 0 when there was none yet.
func (s *Supervisor) servingPID() int {
	if p := s.serving.Load(); p != nil {
		return p.PID
	}
	return 0
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
	open := make(map[string]bool, len(all))
	for _, name := range all {
		open[name] = true
	}
	for name, f := range s.sockets {
		if !open[name] {
			f.Close()
			delete(s.sockets, name)
		}
	}
	maps.Copy(s.sockets, fresh)
	return nil
}

// spawn makes the spare a gateway on the sockets held, or a new process when there is no spare, waits until it serves, and starts the next spare.
func (s *Supervisor) spawn(ctx context.Context) error {
	c := s.spare
	s.spare = nil
	if c == nil || c.activate(s.cfg, s.sockets) != nil {
		c.dismiss()
		var err error
		if c, err = s.fork(); err != nil {
			return fmt.Errorf("starting the gateway: %w", err)
		}
		if err = c.activate(s.cfg, s.sockets); err != nil {
			return err
		}
	}
	err := c.awaitReady(ctx)
	c.dismiss()
	if err != nil {
		c.process.Kill() // or it would serve unseen, later
		err = fmt.Errorf("gateway (process %d) did not begin to serve: %w", c.process.Pid, err)
		return fault.WithHint(fault.As(fault.Unavailable, err), "see %s", s.logPath())
	}
	if err := s.serves(c.process.Pid); err != nil {
		return fault.As(fault.Unavailable, fmt.Errorf("looking at the gateway that was started: %w", err))
	}
	s.log.Info("gateway started", "pid", c.process.Pid)
	if s.spare, err = s.fork(); err != nil {
		s.log.Warn("starting a spare gateway", "error", err)
	}
	return nil
}

func (s *Supervisor) logPath() string { return filepath.Join(s.cfg.Dir, "log", "gateway.log") }

// child is a process that waits to become the gateway.
type child struct {
	process *os.Process
	conn    *net.UnixConn
}

// activate gives the process what it needs.
func (c *child) activate(cfg Config, sockets map[string]*os.File) error {
	if err := c.conn.SetDeadline(time.Now().Add(readyTimeout)); err != nil {
		return err
	}
	return sendListeners(c.conn, &cfg, sockets, nil)
}

func (c *child) awaitReady(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })()
	_, err := io.ReadFull(c.conn, make([]byte, len(waitingLine+readyLine)))
	return err
}

// dismiss lets go of the process: a spare ends, a gateway goes on.
func (c *child) dismiss() {
	if c != nil {
		c.conn.Close()
	}
}

// fork starts the process, in a session of its own so that it outlives this one. It uses syscall.ForkExec, not os/exec, which would make
// descriptors blocking in every process that shares them.
func (s *Supervisor) fork() (*child, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "child"), os.NewFile(uintptr(pair[1]), "parent")
	defer theirs.Close()
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	c := &child{conn: conn.(*net.UnixConn)}
	if c.process, err = s.exec(theirs); err != nil {
		conn.Close()
		return nil, err
	}
	go c.process.Wait() // lets the kernel forget the process when it has ended
	return c, nil
}

func (s *Supervisor) exec(parent *os.File) (*os.Process, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	out, err := os.OpenFile(s.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	pid, err := syscall.ForkExec(s.program, s.command, &syscall.ProcAttr{
		Env:   append(os.Environ(), fmt.Sprintf("%s=%d", environment, parentSocket)),
		Files: []uintptr{null.Fd(), out.Fd(), out.Fd(), parent.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, &os.PathError{Op: "exec", Path: s.command[0], Err: err}
	}
	return os.FindProcess(pid)
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
	for byTable := make([]byte, 64); err == nil; {
		_, err = alive.Read(byTable)
		select {
		case s.changed <- struct{}{}:
		default: // nobody has looked since the last
		}
	}
}

// Changed returns a channel that has something after another table came into force, whoever put it there.
func (s *Supervisor) Changed() <-chan struct{} { return s.changed }

// restart starts a gateway unless another one serves already, as it does after an upgrade.
func (s *Supervisor) restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answers(ctx) || ctx.Err() != nil {
		return ctx.Err()
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

// answerWithin is how long a gateway that lives may take to say so on a machine that has much to do.
const answerWithin = 10 * time.Second

func (s *Supervisor) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	_, err := s.client.Status(ctx)
	return err == nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// Apply puts a table in force; see Client.Apply. It outlasts a restart of the gateway.
func (s *Supervisor) Apply(ctx context.Context, t gateway.Table) error {
	sealed, err := t.Seal()
	if err != nil {
		return err
	}
	return s.Replace(ctx, sealed, "")
}

// Replace puts a table in force in place of another; see Client.Replace. It outlasts a restart of the gateway.
func (s *Supervisor) Replace(ctx context.Context, t gateway.Sealed, over digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.client.Replace(ctx, t, over); err != nil {
		return err
	}
	if s.holds(t.Table) {
		return nil // no listener is new or gone: the usual switch
	}
	return s.fetch(ctx)
}

// holds tells whether the sockets held are those that the table asks for.
func (s *Supervisor) holds(t gateway.Table) bool {
	want := wantedListeners(t)
	for _, w := range want {
		if s.sockets[w.key] == nil {
			return false
		}
	}
	return len(s.sockets) == len(want)+len(s.cfg.hostSockets())
}

// Status asks the gateway about itself. Active also has what gateways that have handed over still carry.
func (s *Supervisor) Status(ctx context.Context) (gateway.Status, error) {
	status, err := s.client.Status(ctx)
	if err != nil {
		return status, err
	}
	for _, pid := range s.cfg.PIDs() {
		if pid == status.PID {
			continue
		}
		old, err := s.of(ctx, pid)
		if err != nil {
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

// politeness is how long a gateway that is to be replaced may take to answer.
const politeness = time.Second

// Renew replaces a gateway that is not to be relied on by a new process, on the sockets that are held here: nothing is asked of the
// old one that it could deny. It hands over as in an upgrade if it can; else it ends.
func (s *Supervisor) Renew(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := *s.serving.Load()
	own := dialGateway(s.cfg, func() int { return old.PID })
	if err := politely(ctx, own.releaseQUIC); err != nil {
		s.log.Warn("the gateway does not give up HTTP/3", "pid", old.PID, "error", err)
	}
	if err := s.openSockets(); err != nil {
		return err
	}
	if err := s.spawn(ctx); err != nil {
		return err
	}
	if err := politely(ctx, own.Drain); err != nil {
		s.log.Warn("the gateway does not hand over: ending it", "pid", old.PID, "error", err)
		os.Remove(socketOf(s.cfg, old.PID)) // or whatever lies there
		s.ending = append(s.ending, ending{old, time.Now().Add(stopTimeout + politeness)})
		return old.Signal(handOver) // it answers what is under way, if it still can
	}
	return nil
}

// ending is a gateway that was told to end.
type ending struct {
	process
	by time.Time
}

// reap kills those that did not end in time. The caller holds mu.
func (s *Supervisor) reap(now time.Time) {
	s.ending = slices.DeleteFunc(s.ending, func(e ending) bool {
		if now.Before(e.by) {
			return false
		}
		if err := e.Signal(unix.SIGKILL); err != nil {
			s.log.Error("killing a gateway that did not end", "pid", e.PID, "error", err)
		}
		return true
	})
}

// politely asks a gateway that may not answer.
func politely(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, politeness)
	defer cancel()
	return do(ctx)
}

func (s *Supervisor) upgrade(ctx context.Context) error {
	before, err := s.client.Status(ctx)
	if err != nil {
		return err
	}
	if err := s.openSockets(); err != nil {
		return err
	}
	s.spare.dismiss() // it may be of the program as it was
	s.spare = nil
	if err := s.client.releaseQUIC(ctx); err != nil {
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
	for _, f := range s.watched {
		f.Close()
	}
	s.watched = nil
	s.spare.dismiss()
	s.spare = nil
	return nil
}

// Stop stops to supervise and ends the gateway, and all those before it that still drain.
func (s *Supervisor) Stop(ctx context.Context) error {
	if err := s.Close(); err != nil {
		return err
	}
	return StopAll(ctx, s.cfg)
}
