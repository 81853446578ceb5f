package local

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime/local/launcher"
	"github.com/invarhq/invar/runtime/local/wire"
)

// errBroken says that the launcher went away over a request: nobody knows whether it was carried out.
var errBroken = errors.New("the launcher went away")

// startLimit is how long a launcher may take until it answers.
const startLimit = 10 * time.Second

// client talks to the launcher, and starts it.
type client struct {
	run     string
	program *os.File // sealed, so that libcontainer need not copy it for every instance
	build   string
	log     *slog.Logger

	mu     sync.Mutex
	idle   []*conn
	closed bool
}

type conn struct {
	net.Conn
	r *bufio.Reader
}

func newClient(run, path string, log *slog.Logger) (*client, error) {
	read := func() ([]byte, error) { return os.ReadFile(path) }
	if path == "" {
		read = launcher.Binary
	}
	b, err := read()
	if err != nil {
		return nil, fmt.Errorf("reading the launcher's program: %w", err)
	}
	program, err := sealedProgram(b)
	if err != nil {
		return nil, fmt.Errorf("preparing the launcher's program: %w", err)
	}
	sum := sha256.Sum256(b)
	return &client{run: run, program: program, build: hex.EncodeToString(sum[:]), log: log}, nil
}

// sealedProgram returns a file in memory that nothing can change any more.
func sealedProgram(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("invar-launcher", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("invar-launcher", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "invar-launcher")
	if _, err := f.Write(b); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (c *client) socket() string { return filepath.Join(c.run, "launcher.sock") }

// start starts a launcher that outlives this process: in a session of its own, with none of its descriptors.
func (c *client) start() (pid int, err error) {
	out, err := os.OpenFile(filepath.Join(c.run, "launcher.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	cmd := &exec.Cmd{
		Path:        "/proc/self/fd/" + strconv.Itoa(int(c.program.Fd())),
		Args:        []string{"invar-launcher", "-dir", c.run, "-build", c.build},
		Env:         []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Dir:         "/",
		Stdout:      out,
		Stderr:      out,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("starting the launcher: %w", err)
	}
	go cmd.Wait() // it ends when the launcher does, or with this process
	return cmd.Process.Pid, nil
}

func (c *client) dial(ctx context.Context) (*conn, error) {
	var d net.Dialer
	n, err := d.DialContext(ctx, "unix", c.socket())
	if err != nil {
		return nil, err
	}
	return &conn{n, wire.NewReader(n)}, nil
}

// dialSoon waits for a launcher that is being started, by keepLauncher.
func (c *client) dialSoon(ctx context.Context) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		n, err := c.dial(ctx)
		if err == nil {
			return n, nil
		}
		select {
		case <-ctx.Done():
			return nil, fault.WithHint(fault.As(fault.Unavailable, fmt.Errorf("reaching the launcher: %w", err)), "see %s", filepath.Join(c.run, "launcher.log"))
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (c *client) get(ctx context.Context) (*conn, error) {
	c.mu.Lock()
	if n := len(c.idle); n > 0 {
		used := c.idle[n-1]
		c.idle = c.idle[:n-1]
		c.mu.Unlock()
		return used, nil
	}
	c.mu.Unlock()
	return c.dialSoon(ctx)
}

func (c *client) put(used *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.idle) >= 16 {
		used.Close()
		return
	}
	c.idle = append(c.idle, used)
}

// forget drops the idle connections, to a launcher that is no more.
func (c *client) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.idle {
		n.Close()
	}
	c.idle = nil
}

func (c *client) close() {
	c.forget()
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.program.Close()
}

// call asks once. Its error is errBroken when the launcher went away after the request was sent.
func (c *client) call(ctx context.Context, q wire.Request) (wire.Response, error) {
	for {
		n, err := c.get(ctx)
		if err != nil {
			return wire.Response{}, err
		}
		sent, response, err := n.ask(ctx, q)
		if err != nil {
			n.Close()
			if !sent && ctx.Err() == nil {
				continue // an idle connection to a launcher that is no more
			}
			return wire.Response{}, fault.As(fault.Unavailable, fmt.Errorf("asking the launcher to %s: %w: %w", q.Op, errBroken, err))
		}
		c.put(n)
		return response, response.Err()
	}
}

// callRepeated asks for what can be repeated until a launcher answers.
func (c *client) callRepeated(ctx context.Context, q wire.Request) (wire.Response, error) {
	for {
		response, err := c.call(ctx, q)
		if !errors.Is(err, errBroken) || ctx.Err() != nil {
			return response, err
		}
	}
}

// ask sends q and reads the answer. sent tells whether the launcher may have seen the request.
func (n *conn) ask(ctx context.Context, q wire.Request) (sent bool, _ wire.Response, err error) {
	q.Version = wire.Version
	stop := context.AfterFunc(ctx, func() { n.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := wire.Write(n, q); err != nil {
		return false, wire.Response{}, err
	}
	response, err := wire.Read[wire.Response](n.r)
	return true, response, err
}

// quit ends the launcher and waits until it is gone.
func (c *client) quit(ctx context.Context) error {
	n, err := c.dial(ctx)
	if err != nil {
		return nil // there is none
	}
	defer n.Close()
	if _, _, err := n.ask(ctx, wire.Request{Op: wire.OpQuit}); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(c.run, "launcher.lock"), os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the end of the launcher: %w", ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}

// keepLauncher keeps a launcher of our build running and takes over what it tells, until ctx ends. The first success or failure goes to first.
func (h *Host) keepLauncher(ctx context.Context, first chan<- error) {
	report := func(err error) {
		if first != nil {
			first <- err
			first = nil
		}
	}
	for delay := time.Duration(0); ctx.Err() == nil; {
		began := time.Now()
		err := h.follow(ctx, func() { report(nil) })
		h.launcher.forget()
		if ctx.Err() != nil {
			break
		}
		h.log.Warn("launcher went away", "error", err)
		report(err)
		delay = min(2*delay+10*time.Millisecond, time.Second)
		if time.Since(began) > time.Second { // it did work: the next one starts at once
			delay = 0
		}
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
	}
	report(fault.Errorf(fault.Unavailable, "the local runtime was closed"))
}

// follow connects to the launcher, or starts one, and applies what it tells until it goes away.
func (h *Host) follow(ctx context.Context, synced func()) error {
	if err := h.ensureLauncher(ctx); err != nil {
		return err
	}
	before := h.known()
	n, err := h.launcher.dialSoon(ctx)
	if err != nil {
		return err
	}
	defer n.Close()
	stop := context.AfterFunc(ctx, func() { n.Close() })
	defer stop()
	_, response, err := n.ask(ctx, wire.Request{Op: wire.OpWatch})
	if err != nil {
		return err
	}
	h.reconcile(ctx, before, response.Instances)
	synced()
	for {
		response, err := wire.Read[wire.Response](n.r)
		if err != nil {
			return err
		}
		h.apply(response.Instances)
	}
}

// ensureLauncher starts a launcher when none answers, and replaces one of another build.
func (h *Host) ensureLauncher(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if n, err := h.launcher.dial(ctx); err == nil {
		defer n.Close()
		_, response, err := n.ask(ctx, wire.Request{Op: wire.OpHello})
		if err == nil && response.Hello != nil && response.Hello.Build == h.launcher.build {
			h.launcherPID.Store(int64(response.Hello.PID))
			return nil
		}
		h.log.Info("replacing the launcher by this build's")
		if err := h.launcher.quit(ctx); err != nil {
			return fmt.Errorf("ending the launcher of another build: %w", err)
		}
	}
	pid, err := h.launcher.start()
	if err != nil {
		return err
	}
	h.launcherPID.Store(int64(pid))
	n, err := h.launcher.dialSoon(ctx)
	if err != nil {
		return err
	}
	return n.Close()
}

// reconcile takes over all that a launcher knows, and discards what it does not: before lists what it should know.
func (h *Host) reconcile(ctx context.Context, before []*inst, all []wire.Status) {
	told := map[instance.ID]bool{}
	for _, s := range all {
		told[instance.ID(s.ID)] = true
	}
	h.apply(all)
	for _, i := range append(before, h.unfinished()...) {
		id := i.spec.Identity.ID
		if told[id] || !i.act.TryLock() { // who holds act is at work on it
			continue
		}
		h.log.Warn("instance is gone", "instance", id)
		if err := h.discard(ctx, i); err != nil {
			h.log.Error("discarding an instance", "instance", id, "error", err)
		}
		i.act.Unlock()
	}
}

// unfinished returns the instances whose creation an earlier Host did not finish.
func (h *Host) unfinished() []*inst {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []*inst
	for _, i := range h.instances {
		if i.seen.State == instance.Absent {
			list = append(list, i)
		}
	}
	return list
}
