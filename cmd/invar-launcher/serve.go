package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/runtime/local/wire"
)

// launcher keeps the instances of one run directory.
type launcher struct {
	dir   string // absolute
	build string
	quit  chan struct{} // closed by OpQuit

	mu        sync.Mutex
	instances map[string]*record
	watchers  map[chan wire.Status]int // to the process that watches
}

func newLauncher(dir, build string) *launcher {
	return &launcher{
		dir: dir, build: build,
		quit:      make(chan struct{}),
		instances: map[string]*record{},
		watchers:  map[chan wire.Status]int{},
	}
}

// serve answers on the socket until OpQuit.
func (l *launcher) serve(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	listener.SetUnlinkOnClose(false) // a successor may have made its own by then
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	go func() {
		<-l.quit
		time.Sleep(10 * time.Millisecond) // lets the answer to OpQuit out
		listener.Close()
	}()
	for {
		conn, err := listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accepting: %w", err)
		}
		go l.converse(conn)
	}
}

// converse answers the requests of one connection.
func (l *launcher) converse(conn *net.UnixConn) {
	defer conn.Close()
	peer, err := checkPeer(conn)
	if err != nil {
		wire.Write(conn, wire.Response{Version: wire.Version, Error: wire.ErrorOf(err)})
		return
	}
	r := wire.NewReader(conn)
	for {
		request, err := wire.Read[wire.Request](r)
		if err == nil && request.Op == wire.OpWatch {
			l.watch(conn, r, peer)
			return
		}
		if err == nil && (request.Op == wire.OpExec || request.Op == wire.OpSession) {
			l.noteStranger(peer, request)
		}
		if err == nil && request.Op == wire.OpSession {
			l.session(conn, r, request)
			return
		}
		var response wire.Response
		if err == nil {
			response, err = l.answer(request)
		} else if fault.KindOf(err) != fault.Invalid {
			return // the peer is gone
		}
		response.Version, response.Error = wire.Version, wire.ErrorOf(err)
		if wire.Write(conn, response) != nil {
			return
		}
	}
}

// checkPeer refuses other users; the directory's mode does so before.
func checkPeer(conn *net.UnixConn) (pid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	if int(cred.Uid) != os.Getuid() {
		return 0, fault.Errorf(fault.Denied, "user %d may not talk to the launcher of user %d", cred.Uid, os.Getuid())
	}
	return int(cred.Pid), nil
}

func (l *launcher) answer(q wire.Request) (wire.Response, error) {
	switch q.Op {
	case wire.OpHello:
		return wire.Response{Hello: &wire.Hello{PID: os.Getpid(), Build: l.build}}, nil
	case wire.OpList:
		return wire.Response{Instances: l.list()}, nil
	case wire.OpQuit:
		l.mu.Lock()
		defer l.mu.Unlock()
		select {
		case <-l.quit:
		default:
			close(l.quit)
		}
		return wire.Response{}, nil
	case wire.OpCreate:
		return l.create(q)
	case wire.OpRemove:
		return wire.Response{}, l.remove(q.ID)
	}
	r, err := l.find(q.ID)
	if err != nil {
		return wire.Response{}, err
	}
	switch q.Op {
	case wire.OpStart:
		return r.answer(r.start())
	case wire.OpSignal:
		return r.answer(r.signal(unix.Signal(q.Signal)))
	case wire.OpExec:
		if q.Exec == nil || len(q.Exec.Args) == 0 {
			return wire.Response{}, fault.Errorf(fault.Invalid, "exec: no command")
		}
		result, err := r.exec(*q.Exec)
		return wire.Response{Exec: result}, err
	}
	return wire.Response{}, fault.Errorf(fault.Invalid, "operation %q is not known", q.Op)
}

func (l *launcher) find(id string) (*record, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.instances[id]
	if !ok {
		return nil, fault.Errorf(fault.NotFound, "the launcher has no instance %q", id)
	}
	return r, nil
}

func (l *launcher) list() []wire.Status {
	l.mu.Lock()
	records := slices.Collect(maps.Values(l.instances))
	l.mu.Unlock()
	list := make([]wire.Status, 0, len(records))
	for _, r := range records {
		if s := r.snapshot(); s.State != "" { // a record without a state is being created
			list = append(list, s)
		}
	}
	return list
}

// watch tells conn of every instance now, and of every change until conn ends.
func (l *launcher) watch(conn *net.UnixConn, r *bufio.Reader, peer int) {
	changes := make(chan wire.Status, 4096)
	l.mu.Lock()
	l.watchers[changes] = peer
	l.mu.Unlock()
	l.acquit(peer)
	defer func() {
		l.mu.Lock()
		delete(l.watchers, changes)
		l.mu.Unlock()
	}()
	if wire.Write(conn, wire.Response{Version: wire.Version, Instances: l.list()}) != nil {
		return
	}
	gone := make(chan struct{})
	go func() {
		r.ReadByte() // a watcher says nothing more: this ends when it ends
		close(gone)
	}()
	for {
		select {
		case s, ok := <-changes:
			if !ok || wire.Write(conn, wire.Response{Version: wire.Version, Instances: []wire.Status{s}}) != nil {
				return
			}
		case <-gone:
			return
		case <-l.quit:
			return
		}
	}
}

// tell gives a change to every watcher. One that does not keep up is cut off: it connects again and gets all.
func (l *launcher) tell(s wire.Status) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for w := range l.watchers {
		select {
		case w <- s:
		default:
			delete(l.watchers, w)
			close(w)
		}
	}
}
