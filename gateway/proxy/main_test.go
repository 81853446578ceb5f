package proxy

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
)

// TestMain makes the test binary a gateway when a Supervisor of a test starts it as one.
func TestMain(m *testing.M) {
	cfg, ok, err := Inherited(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo})))
	if !ok {
		os.Exit(m.Run())
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		err = Run(ctx, cfg)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// box is a network namespace with nothing but loopback, as an instance has. It needs root.
type box struct {
	t    testing.TB
	id   instance.ID
	ns   *os.File
	path string
	nets *sockets
}

func newBox(t testing.TB, id instance.ID) *box {
	t.Helper()
	nets, err := newSockets()
	if err != nil {
		t.Fatal(err)
	}
	made := make(chan error, 1)
	var handle netns.NsHandle
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		var err error
		if handle, err = netns.New(); err == nil {
			var lo netlink.Link
			if lo, err = netlink.LinkByName("lo"); err == nil {
				err = netlink.LinkSetUp(lo)
			}
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatalf("making a network namespace (needs root): %v", err)
	}
	b := &box{t: t, id: id, nets: nets, ns: os.NewFile(uintptr(handle), string(id))}
	b.path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(handle))
	t.Cleanup(func() {
		b.ns.Close()
		nets.home.Close()
	})
	return b
}

func (b *box) listen(port int) *net.TCPListener {
	b.t.Helper()
	l, err := b.nets.listen(b.ns, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port)))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { l.Close() })
	return l
}

// serve serves HTTP on port 8080 inside.
func (b *box) serve(h http.Handler) *http.Server {
	b.t.Helper()
	s := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	l := b.listen(8080)
	go s.Serve(l)
	b.t.Cleanup(func() { s.Close() })
	return s
}

// serveName serves the instance's id.
func (b *box) serveName() *http.Server {
	return b.serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, string(b.id)) }))
}

// dial connects as a process inside would.
func (b *box) dial(address string) (net.Conn, error) {
	return b.nets.dial(b.t.Context(), b.ns, netip.MustParseAddrPort(address))
}

func (b *box) mustDial(address string) *net.TCPConn {
	b.t.Helper()
	c, err := b.dial(address)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

func backends(boxes ...*box) []gateway.Backend {
	var out []gateway.Backend
	for _, b := range boxes {
		out = append(out, gateway.Backend{ID: b.id, Network: b.path})
	}
	return out
}

func poolOf(weight int, boxes ...*box) gateway.Pool {
	p := gateway.Pool{Weight: weight}
	for _, b := range boxes {
		p.Instances = append(p.Instances, b.id)
	}
	return p
}

// webTable routes shop.localhost to port 8080 of all boxes.
func webTable(boxes ...*box) gateway.Table {
	t := gateway.Table{
		Backends: backends(boxes...),
		Services: []gateway.Service{{Name: "prod/web/http", Port: 8080}},
		HTTP:     []gateway.Route{{Env: "prod", Name: "shop", Host: "shop.localhost", Path: "/", Service: "prod/web/http"}},
	}
	if len(boxes) > 0 {
		t.Services[0].Pools = []gateway.Pool{poolOf(100, boxes...)}
	}
	return t
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// running is a gateway inside the test's process.
type running struct {
	*Client
	t      testing.TB
	status gateway.Status
	dir    string
}

func run(t testing.TB, cfg Config) *running {
	t.Helper()
	cfg.Dir = t.TempDir()
	if cfg.HTTP == "" {
		cfg.HTTP = "127.0.0.1:0"
	}
	if cfg.Log == nil {
		cfg.Log = testLog(t)
	}
	ready, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	cfg.Ready = theirs
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, cfg)
		theirs.Close()
	}()
	if _, err := io.ReadFull(ready, make([]byte, 6)); err != nil {
		t.Fatalf("gateway did not start: %v", <-ended)
	}
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	r := &running{Client: Dial(cfg.controlPath()), t: t, dir: cfg.Dir}
	if r.status, err = r.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *running) apply(table gateway.Table) {
	r.t.Helper()
	if err := r.Apply(r.t.Context(), table); err != nil {
		r.t.Fatal(err)
	}
}

// get asks shop.localhost.
func (r *running) get(path string) (status int, body string) {
	r.t.Helper()
	return get(r.t, http.DefaultClient, r.status.HTTP, path)
}

func get(t testing.TB, c *http.Client, address, path string) (status int, body string) {
	t.Helper()
	status, body, err := tryGet(t.Context(), c, address, path)
	if err != nil {
		t.Fatal(err)
	}
	return status, body
}

func tryGet(ctx context.Context, c *http.Client, address, path string) (status int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return 0, "", err
	}
	req.Host = "shop.localhost"
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(raw), err
}

// eventually polls at the real edge: processes, sockets, files.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func logLines(t testing.TB, dir, name string) string {
	raw, err := os.ReadFile(filepath.Join(dir, "log", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
