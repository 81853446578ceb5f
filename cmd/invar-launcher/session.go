package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/utils"
	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/runtime/local/wire"
)

// session is a command that somebody talks to. On a terminal, stdin and stdout are its other side, and there is no stderr.
type session struct {
	p                     *libcontainer.Process
	terminal              bool
	stdin, stdout, stderr *os.File
}

const (
	hangupEvery = 500 * time.Millisecond // how often it is looked whether the peer is still there
	hangupGrace = 2 * time.Second        // between SIGHUP and SIGKILL
	lastOutput  = 200 * time.Millisecond // what it left running may hold its output open
)

// session runs a command on the connection, until it ends, or the connection does.
func (l *launcher) session(conn *net.UnixConn, r *bufio.Reader, q wire.Request) {
	s, err := l.openSession(q)
	if wire.Write(conn, wire.Response{Version: wire.Version, Error: wire.ErrorOf(err)}) != nil && err == nil {
		s.hangUp()
	}
	if err != nil {
		return
	}
	defer s.close()
	var send sync.Mutex
	done := make(chan struct{})
	go s.feed(r)
	go s.watchPeer(conn, done)
	var outputs sync.WaitGroup
	outputs.Go(func() { copyFrames(conn, &send, wire.Stdout, s.stdout) })
	if s.stderr != nil {
		outputs.Go(func() { copyFrames(conn, &send, wire.Stderr, s.stderr) })
	}
	state, _ := s.p.Wait()
	close(done)
	s.expire(time.Now().Add(lastOutput))
	outputs.Wait()
	code := -1
	if state != nil {
		code = exitCode(unix.WaitStatus(state.Sys().(syscall.WaitStatus)))
	}
	send.Lock()
	defer send.Unlock()
	wire.WriteFrame(conn, wire.ExitFrame(code))
}

func (l *launcher) openSession(q wire.Request) (*session, error) {
	if q.Session == nil || len(q.Session.Args) == 0 {
		return nil, fault.Errorf(fault.Invalid, "session: no command")
	}
	r, err := l.find(q.ID)
	if err != nil {
		return nil, err
	}
	if s := r.snapshot().State; s != wire.Running {
		return nil, fault.Errorf(fault.Conflict, "opening a session in instance %s: it is %s", r.id, s)
	}
	s, err := r.engine.session(*q.Session)
	if err != nil {
		return nil, fmt.Errorf("opening a session in instance %s: %w", r.id, err)
	}
	return s, nil
}

// session starts a command in the container's namespaces and limits, as its user.
func (c *container) session(q wire.Session) (_ *session, err error) {
	box, err := c.load()
	if err != nil {
		return nil, err
	}
	p := process(c.made.Process, q.Args)
	p.Env = append(p.Env[:len(p.Env):len(p.Env)], q.Env...)
	s := &session{p: p, terminal: q.TTY}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if q.TTY {
		return s, s.startOnTerminal(box, q)
	}
	return s, s.startOnPipes(box)
}

func (s *session) startOnTerminal(box *libcontainer.Container, q wire.Session) error {
	ours, theirs, err := utils.NewSockPair("console")
	if err != nil {
		return err
	}
	defer ours.Close()
	s.p.ConsoleSocket, s.p.ConsoleHeight, s.p.ConsoleWidth = theirs, q.Rows, q.Cols
	err = box.Run(s.p)
	theirs.Close()
	if err != nil {
		return startError(s.p, err)
	}
	terminal, err := receiveFile(ours)
	if err != nil {
		s.p.Signal(unix.SIGKILL)
		s.p.Wait()
		return fmt.Errorf("receiving its terminal: %w", err)
	}
	s.stdin, s.stdout = terminal, terminal
	return nil
}

func (s *session) startOnPipes(box *libcontainer.Container) error {
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	in, err := pipe(&s.stdin, &theirs, true)
	if err != nil {
		return err
	}
	out, err := pipe(&s.stdout, &theirs, false)
	if err != nil {
		return err
	}
	failures, err := pipe(&s.stderr, &theirs, false)
	if err != nil {
		return err
	}
	s.p.Stdin, s.p.Stdout, s.p.Stderr = in, out, failures
	return startError(s.p, box.Run(s.p))
}

// pipe keeps one end of a new pipe in ours and returns the other, to be closed with theirs.
func pipe(ours **os.File, theirs *[]*os.File, toProcess bool) (*os.File, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	keep, give := read, write
	if toProcess {
		keep, give = write, read
	}
	*ours, *theirs = keep, append(*theirs, give)
	return give, nil
}

// startError tells a command that the image does not have from other failures.
func startError(p *libcontainer.Process, err error) error {
	if err == nil {
		return nil
	}
	if text := err.Error(); strings.Contains(text, "executable file not found") || strings.Contains(text, "no such file or directory") {
		return fault.Errorf(fault.Invalid, "its image has no program %q", p.Args[0])
	}
	return err
}

// receiveFile receives the one descriptor that is sent over the socket.
func receiveFile(socket *os.File) (*os.File, error) {
	name, control := make([]byte, 256), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(socket.Fd()), name, control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("%d control messages: %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("%d descriptors: %v", len(fds), err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil { // so that reading it can be ended
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

// feed does what the peer says, until it says nothing more.
func (s *session) feed(r *bufio.Reader) {
	for {
		f, err := wire.ReadFrame(r)
		if err != nil {
			s.hangUp()
			return
		}
		switch f.Kind {
		case wire.Stdin:
			s.stdin.Write(f.Data) // it fails when the command reads no more, which is its business
		case wire.StdinEnd:
			if s.terminal {
				s.stdin.Write([]byte{4})
			} else {
				s.stdin.Close()
			}
		case wire.Resize:
			if rows, cols := f.Size(); s.terminal {
				s.resize(&unix.Winsize{Row: rows, Col: cols})
			}
		case wire.Signal:
			s.p.Signal(unix.Signal(f.Data[0]))
		}
	}
}

// resize tells the terminal, which signals the command. The descriptor stays one that a deadline ends (Fd would change that).
func (s *session) resize(size *unix.Winsize) {
	if raw, err := s.stdin.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, size) })
	}
}

// watchPeer ends the session when the peer is gone, though feed may be waiting for the command to read.
func (s *session) watchPeer(conn *net.UnixConn, done <-chan struct{}) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	for {
		select {
		case <-done:
			return
		case <-time.After(hangupEvery):
		}
		gone := false
		err := raw.Control(func(fd uintptr) {
			set := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
			n, err := unix.Poll(set, 0)
			gone = err == nil && n > 0 && set[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
		})
		if gone || err != nil {
			s.hangUp()
			return
		}
	}
}

// hangUp ends the command as a terminal that is closed does.
func (s *session) hangUp() {
	s.p.Signal(unix.SIGHUP)
	time.AfterFunc(hangupGrace, func() { s.p.Signal(unix.SIGKILL) })
}

// expire ends the reading of what the command left running.
func (s *session) expire(at time.Time) {
	for _, f := range []*os.File{s.stdout, s.stderr} {
		if f != nil {
			f.SetReadDeadline(at)
		}
	}
}

func (s *session) close() {
	for _, f := range []*os.File{s.stdin, s.stdout, s.stderr} {
		if f != nil {
			f.Close()
		}
	}
}

func copyFrames(conn *net.UnixConn, send *sync.Mutex, kind wire.FrameKind, from *os.File) {
	buf := make([]byte, wire.MaxFrame)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			send.Lock()
			failed := wire.WriteFrame(conn, wire.Frame{Kind: kind, Data: buf[:n]})
			send.Unlock()
			if failed != nil && !errors.Is(failed, unix.EINTR) {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
