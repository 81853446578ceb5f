package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/instance"
)

func TestPickAllocatesNothing(t *testing.T) {
	a, b := newBox(t, "web-a"), newBox(t, "web-b")
	table := webTable(a, b)
	table.Services[0].Pools = []gateway.Pool{poolOf(90, a), poolOf(10, b)}
	nets, err := newSockets()
	if err != nil {
		t.Fatal(err)
	}
	v := newView(gateway.Sealed{Table: table}, &view{}, nets, map[string]string{})
	s := v.services["prod/web/http"]
	var tried attempts
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() { s.pick(&tried, now) }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

// BenchmarkReverseProxy has as many client connections as GOMAXPROCS, to a Go backend in a namespace.
func BenchmarkReverseProxy(b *testing.B) {
	for _, c := range []struct {
		name string
		off  bool
	}{{"access log", false}, {"no access log", true}} {
		b.Run(c.name, func(b *testing.B) {
			g := run(b, Config{NoAccessLog: c.off, Log: slog.New(slog.DiscardHandler)})
			web := newBox(b, "web-a")
			web.serve(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
			g.apply(webTable(web))
			benchmark(b, g.status.HTTP)
		})
	}
}

// BenchmarkBareReverseProxy is what the standard library takes for the same, without table, namespace, retries, counts and log.
func BenchmarkBareReverseProxy(b *testing.B) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	defer backend.Close()
	to, err := url.Parse(backend.URL)
	if err != nil {
		b.Fatal(err)
	}
	front := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.SetXForwarded()
		},
		Transport: &http.Transport{MaxIdleConnsPerHost: idlePerBackend},
	})
	defer front.Close()
	benchmark(b, front.Listener.Addr().String())
}

// BenchmarkDirect asks the same kind of backend on the host without a gateway.
func BenchmarkDirect(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })}
	go s.Serve(l)
	defer s.Close()
	benchmark(b, l.Addr().String())
}

// benchmark asks with a client that costs little, so that what is measured is the other side.
func benchmark(b *testing.B, address string) {
	b.ReportAllocs()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			b.Error(err)
			return
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		for pb.Next() {
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n")
			resp, err := http.ReadResponse(r, nil)
			if err != nil || resp.StatusCode != http.StatusOK {
				b.Errorf("%v, %v", resp, err)
				return
			}
			io.Copy(io.Discard, resp.Body)
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
}

// BenchmarkApply is a switch as the server does it: a table to the gateway's process, and new listening sockets back.
func BenchmarkApply(b *testing.B) {
	s, err := Supervise(b.Context(), Config{Dir: b.TempDir(), HTTP: "127.0.0.1:0"}, []string{os.Args[0]})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Stop(context.Background())
	var webs []*box
	for i := range 50 {
		webs = append(webs, newBox(b, instance.ID(fmt.Sprintf("web-%d", i))))
	}
	db := newBox(b, "db-a")
	table := webTable(webs...)
	uses := usesTable(webs[0], db)
	table.Backends = append(table.Backends, uses.Backends...)
	table.Services = append(table.Services, uses.Services...)
	for _, w := range webs {
		table.Inside = append(table.Inside, usesTable(w, db).Inside...)
	}
	for b.Loop() {
		if err := s.Apply(b.Context(), table); err != nil {
			b.Fatal(err)
		}
	}
}
