package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
)

// load sends requests from several clients until it is stopped, and counts.
type load struct {
	ok, failed atomic.Int64
	slowest    atomic.Int64 // nanoseconds
	first      atomic.Pointer[string]
	stop       context.CancelFunc
	done       sync.WaitGroup
}

// startLoad asks path again and again. Half of the clients keep their connection, the others connect for each request.
func startLoad(t testing.TB, address string, clients int, method, path string) *load {
	l := new(load)
	ctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	for i := range clients {
		tr := &http.Transport{DisableKeepAlives: i%2 == 1}
		l.done.Go(func() {
			defer tr.CloseIdleConnections()
			for ctx.Err() == nil {
				l.one(&http.Client{Transport: tr, Timeout: 20 * time.Second}, address, method, path)
			}
		})
	}
	t.Cleanup(l.end)
	return l
}

func (l *load) one(c *http.Client, address, method, path string) {
	var body io.Reader
	if method == http.MethodPost {
		body = strings.NewReader("some body")
	}
	req, _ := http.NewRequest(method, "http://"+address+path, body)
	req.Host = "shop.localhost"
	began := time.Now()
	resp, err := c.Do(req)
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("status %s", resp.Status)
		}
	}
	if err != nil {
		text := err.Error()
		l.first.CompareAndSwap(nil, &text)
		l.failed.Add(1)
		return
	}
	l.ok.Add(1)
	for took := int64(time.Since(began)); ; {
		before := l.slowest.Load()
		if took <= before || l.slowest.CompareAndSwap(before, took) {
			return
		}
	}
}

func (l *load) end() {
	l.stop()
	l.done.Wait()
}

// more waits until n more requests were answered.
func (l *load) more(t testing.TB, n int64) {
	t.Helper()
	from := l.ok.Load() + l.failed.Load()
	eventually(t, "requests under load", func() bool { return l.ok.Load()+l.failed.Load() >= from+n })
}

func (l *load) wantNoFailure(t testing.TB) {
	t.Helper()
	l.end()
	t.Logf("%d requests, slowest %v", l.ok.Load(), time.Duration(l.slowest.Load()))
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%d of %d requests failed, the first: %s", n, n+l.ok.Load(), *l.first.Load())
	}
}

func TestSwitchUnderLoadFailsNoRequest(t *testing.T) {
	g := run(t, Config{})
	old := newBox(t, "web-0")
	server := old.serve(http.HandlerFunc(answerSlowly))
	g.apply(webTable(old))
	posts := startLoad(t, g.status.HTTP, 4, http.MethodPost, "/")
	gets := startLoad(t, g.status.HTTP, 4, http.MethodGet, "/")
	for i := range 20 {
		gets.more(t, 50)
		next := newBox(t, instance.ID(fmt.Sprintf("web-%d", i+1)))
		nextServer := next.serve(http.HandlerFunc(answerSlowly))
		g.apply(webTable(next))
		eventually(t, "the old instance drained", func() bool {
			s, err := g.Status(t.Context())
			return err == nil && s.Active[old.id] == 0
		})
		server.Close() // at once: nothing may be under way on it
		old, server = next, nextServer
	}
	posts.wantNoFailure(t)
	gets.wantNoFailure(t)
}

func answerSlowly(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	time.Sleep(time.Millisecond) // so that requests are under way when the table changes
	io.WriteString(w, "ok")
}

func TestIdempotentRequestIsRetriedWhenItsInstanceDies(t *testing.T) {
	g := run(t, Config{})
	dying, sound := newBox(t, "web-a"), newBox(t, "web-b")
	var broken atomic.Int64
	l := dying.listen(8080)
	go func() { // accepts, reads the request, and dies without an answer
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 4096))
			broken.Add(1)
			c.Close()
		}
	}()
	sound.serveName()
	g.apply(webTable(dying, sound))
	for range 10 {
		if status, body := g.get("/"); status != http.StatusOK || body != "web-b" {
			t.Fatalf("got %d %q, want web-b", status, body)
		}
	}
	if broken.Load() == 0 {
		t.Error("the dying instance was never asked")
	}
	resp, err := http.Post("http://"+g.status.HTTP, "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound { // another host
		t.Errorf("status is %d, want 404", resp.StatusCode)
	}
	failed := 0
	for range 4 {
		req, _ := http.NewRequest(http.MethodPost, "http://"+g.status.HTTP, strings.NewReader("x"))
		req.Host = "shop.localhost"
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusBadGateway {
			failed++
		}
	}
	if failed != 2 {
		t.Errorf("%d of 4 POSTs failed, want the 2 that the dying instance read: they must not be repeated", failed)
	}
}

func TestRefusedConnectionIsRetriedForEveryMethodAndTheInstanceAvoided(t *testing.T) {
	g := run(t, Config{})
	absent, sound := newBox(t, "web-a"), newBox(t, "web-b")
	sound.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))
	g.apply(webTable(absent, sound))
	for i := range 10 {
		want := fmt.Sprintf("body %d", i)
		req, _ := http.NewRequest(http.MethodPost, "http://"+g.status.HTTP, strings.NewReader(want))
		req.Host = "shop.localhost"
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(got) != want {
			t.Fatalf("got %d %q, want the body back", resp.StatusCode, got)
		}
	}
}

func TestCanaryGetsItsShare(t *testing.T) {
	g := run(t, Config{NoAccessLog: true})
	a, b := newBox(t, "web-a"), newBox(t, "web-b")
	a.serveName()
	b.serveName()
	table := webTable(a, b)
	table.Services[0].Pools = []gateway.Pool{poolOf(90, a), poolOf(10, b)}
	g.apply(table)
	got := map[string]int{}
	for i := range 300 {
		_, body := g.get("/")
		got[body]++
		if i == 150 {
			g.apply(table) // a new table does not begin from the start
		}
	}
	if got["web-a"] != 270 || got["web-b"] != 30 {
		t.Errorf("shares are %v, want exactly 270 and 30 of 300", got)
	}
}

func TestUsesReachTheUsedComponentAndNothingElse(t *testing.T) {
	g := run(t, Config{})
	web, db := newBox(t, "web-a"), newBox(t, "db-a")
	echo(db.listen(5432))
	g.apply(usesTable(web, db))
	c := web.mustDial("127.77.0.2:5432")
	io.WriteString(c, "select 1")
	c.CloseWrite()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "select 1" {
		t.Errorf("got %q, %v, want the echo and then the end", got, err)
	}
	eventually(t, "the count goes back", func() bool { s, _ := g.Status(t.Context()); return s.Active["db-a"] == 0 })
	if c, err := web.dial("127.0.0.1:5432"); err == nil {
		c.Close()
		t.Error("a port that is not declared can be reached")
	}
	g.apply(gateway.Table{})
	if c, err := web.dial("127.77.0.2:5432"); err == nil {
		c.Close()
		t.Error("the port is still there without the table")
	}
}

func usesTable(web *box, dbs ...*box) gateway.Table {
	t := gateway.Table{
		Backends: backends(dbs...),
		Services: []gateway.Service{{Name: "prod/db/sql", Port: 5432}},
		Inside:   []gateway.Inside{{Instance: web.id, Network: web.path, Uses: []gateway.Listen{{Address: "127.77.0.2:5432", Service: "prod/db/sql"}}}},
	}
	if len(dbs) > 0 {
		t.Services[0].Pools = []gateway.Pool{poolOf(100, dbs...)}
	}
	return t
}

// echo sends back what it reads.
func echo(l *net.TCPListener) {
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
}

func TestConnectionIsHeldUntilAnInstanceIsThere(t *testing.T) {
	g := run(t, Config{})
	web, db := newBox(t, "web-a"), newBox(t, "db-a")
	g.apply(usesTable(web))
	c := web.mustDial("127.77.0.2:5432")
	io.WriteString(c, "early")
	c.CloseWrite()
	g.apply(usesTable(web, db)) // in the table before it listens
	time.AfterFunc(50*time.Millisecond, func() { echo(db.listen(5432)) })
	if got, err := io.ReadAll(c); err != nil || string(got) != "early" {
		t.Errorf("got %q, %v, want what was sent before there was an instance", got, err)
	}
}

func TestHeldConnectionIsResetWhenNoInstanceComes(t *testing.T) {
	g := run(t, Config{Hold: 50 * time.Millisecond})
	web := newBox(t, "web-a")
	g.apply(usesTable(web))
	c := web.mustDial("127.77.0.2:5432")
	if _, err := io.ReadAll(c); err == nil {
		t.Error("the connection ended in order, want a reset")
	}
}

func TestTCPRouteOnTheHost(t *testing.T) {
	g := run(t, Config{})
	db := newBox(t, "db-a")
	echo(db.listen(5432))
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	table := gateway.Table{
		Backends: backends(db),
		Services: []gateway.Service{{Name: "prod/db/sql", Port: 5432, Pools: []gateway.Pool{poolOf(100, db)}}},
		TCP:      []gateway.Listen{{Address: address, Service: "prod/db/sql"}},
	}
	g.apply(table)
	s, err := g.Status(t.Context())
	if err != nil || !strings.Contains(s.Failures["tcp/"+address], "address already in use") {
		t.Errorf("failures are %v, %v, want that the address is taken", s.Failures, err)
	}
	free.Close()
	g.apply(table)
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "ping")
	got := make([]byte, 4)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "ping" {
		t.Errorf("got %q, %v", got, err)
	}
	if s, _ := g.Status(t.Context()); s.Active["db-a"] != 1 || len(s.Failures) != 0 {
		t.Errorf("status is %+v, want one connection under way and no failure", s)
	}
}
