package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/digest"
	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/gateway"
)

// maxTable bounds a table's JSON: some 100,000 instances.
const maxTable = 64 << 20

// maxSocketPath is what the kernel takes, unix(7).
const maxSocketPath = 107

// control is the process's control socket.
type control struct {
	proxy      *Proxy
	path       string // of this process's own socket
	listener   net.Listener
	server     *http.Server
	handedOver chan struct{} // closed when another process has taken over
	once       sync.Once
	ending     chan struct{} // closed when this process is about to end
}

// listenControl opens the control socket and removes those of processes that are gone.
func (p *Proxy) listenControl() (*control, error) {
	link := p.cfg.controlPath()
	for _, old := range ownSockets(link) {
		if c, err := net.Dial("unix", old); err == nil {
			c.Close()
		} else if errors.Is(err, unix.ECONNREFUSED) {
			os.Remove(old)
		}
	}
	if path := socketOf(p.cfg, os.Getpid()); len(path) > maxSocketPath {
		return nil, fault.WithHint(fault.Errorf(fault.Invalid, "control socket %s: the path is longer than %d bytes", path, maxSocketPath), "choose a data directory with a shorter path")
	}
	c := &control{proxy: p, path: socketOf(p.cfg, os.Getpid()), handedOver: make(chan struct{}), ending: make(chan struct{})}
	l, err := net.Listen("unix", c.path)
	if err != nil {
		return nil, fmt.Errorf("opening the control socket: %w", err)
	}
	if err := os.Chmod(c.path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	c.listener = ownUserOnly{l}
	c.server = &http.Server{Handler: c.routes(), ReadHeaderTimeout: readHeaderTimeout, ConnContext: withPeer}
	return c, nil
}

// socketOf returns the path of a process's own socket.
func socketOf(c Config, pid int) string { return c.controlPath() + "." + strconv.Itoa(pid) }

// PIDs returns the processes of this gateway: the one that serves, its spare, and those that still drain.
func (c Config) PIDs() []int {
	var pids []int
	for _, path := range ownSockets(c.controlPath()) {
		if pid, err := strconv.Atoi(path[strings.LastIndexByte(path, '.')+1:]); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func ownSockets(link string) []string {
	found, _ := filepath.Glob(link + ".[0-9]*") // the pattern is well-formed
	return slices.DeleteFunc(found, func(path string) bool { return strings.HasSuffix(path, ".link") })
}

// publish begins to answer and points the link here.
func (c *control) publish() error {
	c.proxy.accepting.Go(func() { c.server.Serve(c.listener) })
	return link(c.proxy.cfg.controlPath(), c.path)
}

// link has the control path lead to a process's own socket, in one step.
func link(path, socket string) error {
	next := socket + ".link"
	os.Remove(next) // of a process that had this id before
	if err := os.Symlink(filepath.Base(socket), next); err != nil {
		return fmt.Errorf("publishing the control socket: %w", err)
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("publishing the control socket: %w", err)
	}
	return nil
}

// close answers what is being asked, and removes the socket.
func (c *control) close() {
	close(c.ending)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c.server.Shutdown(ctx)
	c.server.Close()
	os.Remove(c.path)
}

func (c *control) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v1/table", c.putTable)
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, c.proxy.status()) })
	mux.HandleFunc("POST /v1/drain", func(http.ResponseWriter, *http.Request) { c.once.Do(func() { close(c.handedOver) }) })
	mux.HandleFunc("POST /v1/release-quic", func(_ http.ResponseWriter, r *http.Request) { c.proxy.releaseQUIC(r.Context()) })
	mux.HandleFunc("POST /v1/listeners", c.passListeners)
	mux.HandleFunc("GET /v1/watch", c.watch)
	return mux
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

func writeError(w http.ResponseWriter, err error) {
	status, ok := statuses[fault.KindOf(err)]
	if !ok {
		status = http.StatusInternalServerError
	}
	http.Error(w, err.Error(), status)
}

var statuses = map[fault.Kind]int{
	fault.Invalid: http.StatusBadRequest, fault.Conflict: http.StatusConflict, fault.Unavailable: http.StatusServiceUnavailable,
}

// putTable puts a table in force. One that is not sound changes nothing.
func (c *control) putTable(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxTable))
	if err != nil {
		writeError(w, fault.As(fault.Invalid, fmt.Errorf("reading a route table: %w", err)))
		return
	}
	t, err := gateway.Decode(raw)
	if err != nil {
		writeError(w, err)
		return
	}
	sealed := gateway.Sealed{Table: t, Bytes: raw, Digest: digest.Of(raw)}
	if err := c.proxy.replace(sealed, digest.Digest(r.URL.Query().Get(overParameter)), peerOf(r.Context())); err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, c.proxy.status())
}

// overParameter names the table that a new one replaces.
const overParameter = "over"

// replace applies a table. Over names the one that it replaces, whatever its serial is: who names it has seen it, so that a table of
// somebody else, with whatever serial, neither goes unnoticed nor keeps the right one out. Without over, a table replaces any that is
// not newer, and serial 0 gets the next number.
func (p *Proxy) replace(t gateway.Sealed, over digest.Digest, by string) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining.Load() {
		return fault.Errorf(fault.Unavailable, "this gateway has handed over to another process")
	}
	inForce := p.view.Load().table
	switch {
	case over != "":
		if over != inForce.Digest {
			return fault.Errorf(fault.Conflict, "route table %d, %s, is in force, not %s", inForce.Serial, inForce.Digest, over)
		}
	case t.Serial == 0:
		t.Serial = inForce.Serial + 1
		if t, err = t.Seal(); err != nil {
			return err
		}
	case t.Serial < inForce.Serial:
		return fault.Errorf(fault.Conflict, "route table %d is older than %d, which is in force", t.Serial, inForce.Serial)
	}
	p.apply(t, by)
	return nil
}

// watch answers at once, writes a byte after each new table, and ends when the process does, or has handed over.
func (c *control) watch(w http.ResponseWriter, r *http.Request) {
	w.WriteHeader(http.StatusOK)
	for answer := http.NewResponseController(w); ; {
		next := c.proxy.view.Load().replaced
		if answer.Flush() != nil {
			return
		}
		select {
		case <-next:
			w.Write([]byte{'\n'}) // who does not read is cut off by Flush
		case <-r.Context().Done():
			return
		case <-c.handedOver:
			return
		case <-c.ending:
			return
		}
	}
}

// passListeners sends duplicates of the listening sockets that the caller does not name in its request.
func (c *control) passListeners(w http.ResponseWriter, r *http.Request) {
	var held []string
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxTable)).Decode(&held); err != nil {
		writeError(w, fault.As(fault.Invalid, fmt.Errorf("reading the names of listeners: %w", err)))
		return
	}
	files, all, err := c.proxy.files(held)
	if err != nil {
		writeError(w, err)
		return
	}
	defer closeAll(files)
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		writeError(w, err)
		return
	}
	defer conn.Close()
	_, err = io.WriteString(conn, switching)
	if err == nil {
		err = sendListeners(conn.(*net.UnixConn), nil, files, all)
	}
	if err != nil {
		c.proxy.log.Error("passing listeners on", "error", err)
	}
}

// ownUserOnly lets in peers with the user id of this process, and root.
type ownUserOnly struct{ net.Listener }

func (l ownUserOnly) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		cred, err := peer(conn.(*net.UnixConn))
		if err == nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid()) {
			return conn, nil
		}
		conn.Close()
	}
}

// peer asks the kernel who is at the other end of a connection.
func peer(conn *net.UnixConn) (unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return unix.Ucred{}, err
	}
	var cred *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, failed); err != nil {
		return unix.Ucred{}, fmt.Errorf("asking who the peer is: %w", err)
	}
	return *cred, nil
}

// peerKey is the context key of a connection's peer.
type peerKey struct{}

// withPeer keeps a connection for those who ask, by its requests' context, who made it.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, peerKey{}, conn)
}

// peerOf names the process that made the request's connection, for people.
func peerOf(ctx context.Context) string {
	conn, ok := ctx.Value(peerKey{}).(*net.UnixConn)
	if !ok {
		return ""
	}
	cred, err := peer(conn)
	if err != nil {
		return ""
	}
	return processName(int(cred.Pid), int(cred.Uid))
}
