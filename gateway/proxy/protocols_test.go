package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/invarhq/invar/gateway"
)

// trusting returns a TLS configuration that trusts the gateway's internal authority.
func (r *running) trusting() *tls.Config {
	r.t.Helper()
	raw, err := os.ReadFile(r.status.Root)
	if err != nil {
		r.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(raw) {
		r.t.Fatal("the root is not a certificate")
	}
	return &tls.Config{RootCAs: roots, ServerName: "shop.localhost"}
}

// client returns a client that finds every host at the gateway's HTTPS address.
func (r *running) client(t *http.Transport) *http.Client {
	t.TLSClientConfig = r.trusting()
	t.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, r.status.HTTPS)
	}
	r.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func tlsTable(boxes ...*box) gateway.Table {
	t := webTable(boxes...)
	t.HTTP[0].TLS = "internal"
	return t
}

func describe(w http.ResponseWriter, r *http.Request) {
	for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded", "Keep-Alive", "X-Secret-Hop"} {
		fmt.Fprintf(w, "%s=%s\n", name, strings.Join(r.Header.Values(name), "|"))
	}
	fmt.Fprintf(w, "Host=%s\nURI=%s\n", r.Host, r.RequestURI)
}

func TestHeadersAreForwardedAsTheyShould(t *testing.T) {
	g := run(t, Config{})
	web := newBox(t, "web-a")
	web.serve(http.HandlerFunc(describe))
	g.apply(webTable(web))
	req, _ := http.NewRequest(http.MethodGet, "http://"+g.status.HTTP+"/a%2Fb/../c?x=1&y=%20", nil)
	req.Host = "SHOP.localhost:8080"
	req.Header = http.Header{
		"X-Forwarded-For": {"6.6.6.6"}, "Forwarded": {"for=6.6.6.6"}, "Keep-Alive": {"timeout=5"},
		"Connection": {"X-Secret-Hop"}, "X-Secret-Hop": {"1"},
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, _ := io.ReadAll(resp.Body)
	want := "X-Forwarded-For=127.0.0.1\nX-Forwarded-Proto=http\nX-Forwarded-Host=SHOP.localhost:8080\nForwarded=\nKeep-Alive=\nX-Secret-Hop=\n" +
		"Host=SHOP.localhost:8080\nURI=/a%2Fb/../c?x=1&y=%20\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("the instance saw (-want +got):\n%s", diff)
	}
}

func TestHTTP2AndHTTP3WithTheInternalAuthority(t *testing.T) {
	g := run(t, Config{HTTPS: freeAddress(t)})
	web := newBox(t, "web-a")
	web.serve(http.HandlerFunc(describe))
	g.apply(tlsTable(web))

	h2 := g.client(&http.Transport{ForceAttemptHTTP2: true})
	resp, err := h2.Get("https://shop.localhost/")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.ProtoMajor != 2 || !strings.Contains(string(body), "X-Forwarded-Proto=https\n") {
		t.Errorf("got %s, %q, want HTTP/2 and https forwarded", resp.Proto, body)
	}
	_, port, _ := net.SplitHostPort(g.status.HTTPS)
	if got, want := resp.Header.Get("Alt-Svc"), `h3=":`+port+`"; ma=3600`; got != want {
		t.Errorf("Alt-Svc is %q, want %q", got, want)
	}

	h3 := &http3.Transport{TLSClientConfig: g.trusting(), Dial: func(ctx context.Context, _ string, c *tls.Config, q *quic.Config) (*quic.Conn, error) {
		return quic.DialAddr(ctx, g.status.HTTPS, c, q)
	}}
	defer h3.Close()
	resp, err = (&http.Client{Transport: h3}).Post("https://shop.localhost/", "text/plain", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	body, _ = io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.ProtoMajor != 3 || !strings.Contains(string(body), "Host=shop.localhost\n") {
		t.Errorf("got %s, %q, want HTTP/3", resp.Proto, body)
	}
}

// freeAddress returns an address that was free just now: TCP and UDP need the same port, so port 0 is no way.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestPlainRequestToATLSRouteIsRedirected(t *testing.T) {
	g := run(t, Config{HTTPS: freeAddress(t)})
	g.apply(tlsTable())
	c := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, _ := http.NewRequest(http.MethodGet, "http://"+g.status.HTTP+"/x?y=1", nil)
	req.Host = "shop.localhost"
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	_, port, _ := net.SplitHostPort(g.status.HTTPS)
	if got, want := resp.Header.Get("Location"), "https://shop.localhost:"+port+"/x?y=1"; resp.StatusCode != http.StatusPermanentRedirect || got != want {
		t.Errorf("got %d to %q, want 308 to %q", resp.StatusCode, got, want)
	}
}

func TestNoCertificateForAHostWithoutTLSRoute(t *testing.T) {
	g := run(t, Config{HTTPS: freeAddress(t)})
	g.apply(tlsTable())
	for _, name := range []string{"other.localhost", ""} {
		c := g.trusting()
		c.ServerName, c.InsecureSkipVerify = name, true
		if conn, err := tls.Dial("tcp", g.status.HTTPS, c); err == nil {
			conn.Close()
			t.Errorf("got a certificate for %q, want none", name)
		}
	}
}

func TestRootStaysAcrossStarts(t *testing.T) {
	dir := t.TempDir()
	first, err := loadRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	second, err := loadRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !first.cert.Equal(second.cert) {
		t.Error("the second start made another root")
	}
	if info, err := os.Stat(dir + "/root.key"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key's mode is %v, %v, want 0600", info.Mode(), err)
	}
}

func TestWebSocketPassesAndOutlivesASwitch(t *testing.T) {
	g := run(t, Config{})
	web := newBox(t, "web-a")
	web.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, msg, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, msg) != nil {
				return
			}
		}
	}))
	g.apply(webTable(web))
	c, _, err := websocket.Dial(t.Context(), "ws://"+g.status.HTTP+"/socket", &websocket.DialOptions{Host: "shop.localhost"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	say := func(text string) {
		t.Helper()
		if err := c.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(t.Context()); err != nil || string(got) != text {
			t.Fatalf("got %q, %v, want %q back", got, err, text)
		}
	}
	say("before")
	g.apply(webTable())
	say("after the instance left the table")
	if s, _ := g.Status(t.Context()); s.Active["web-a"] != 1 {
		t.Errorf("under way: %v, want the socket counted", s.Active)
	}
	c.Close(websocket.StatusNormalClosure, "")
	eventually(t, "the count goes back", func() bool { s, _ := g.Status(t.Context()); return s.Active["web-a"] == 0 })
}

func TestServerSentEventsAreNotHeldBack(t *testing.T) {
	g := run(t, Config{})
	web := newBox(t, "web-a")
	more := make(chan struct{})
	web.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
			<-more // the next event comes only when the client has read this one
		}
	}))
	g.apply(webTable(web))
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+g.status.HTTP, nil)
	req.Host = "shop.localhost"
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for i := range 3 {
		lines.Scan()
		if want := fmt.Sprintf("data: %d", i); lines.Text() != want {
			t.Fatalf("got %q, want %q", lines.Text(), want)
		}
		lines.Scan()
		more <- struct{}{}
	}
}

// TestGRPCStyleStreamsBothWays has a request that goes on while the response comes, and trailers, over HTTP/2 without TLS.
func TestGRPCStyleStreamsBothWays(t *testing.T) {
	g := run(t, Config{})
	web := newBox(t, "web-a")
	var proto atomic.Int64
	web.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proto.Store(int64(r.ProtoMajor))
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintf(w, "got %s\n", lines.Text())
			w.(http.Flusher).Flush()
		}
		w.Header().Set("Grpc-Status", "0")
		w.Header().Set(http.TrailerPrefix+"Grpc-Message", "fine")
	}))
	g.apply(webTable(web))
	h2c := &http.Transport{Protocols: new(http.Protocols)}
	h2c.Protocols.SetUnencryptedHTTP2(true)
	defer h2c.CloseIdleConnections()
	body, send := io.Pipe()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+g.status.HTTP+"/pkg.Service/Method", body)
	req.Host = "shop.localhost"
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	go io.WriteString(send, "1\n")
	resp, err := h2c.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for i := 1; i <= 3; i++ {
		if lines.Scan(); lines.Text() != fmt.Sprintf("got %d", i) {
			t.Fatalf("got %q after message %d", lines.Text(), i)
		}
		if i < 3 {
			fmt.Fprintf(send, "%d\n", i+1)
		}
	}
	send.Close()
	lines.Scan()
	want := http.Header{"Grpc-Status": {"0"}, "Grpc-Message": {"fine"}}
	if diff := cmp.Diff(want, resp.Trailer); diff != "" || proto.Load() != 2 {
		t.Errorf("HTTP/%d to the instance; trailers (-want +got):\n%s", proto.Load(), diff)
	}
}

func TestLimitsOnHeaderSizeAndTime(t *testing.T) {
	g := run(t, Config{ReadHeader: 200 * time.Millisecond, Idle: 200 * time.Millisecond})
	web := newBox(t, "web-a")
	web.serveName()
	g.apply(webTable(web))
	send := func(parts ...string) string {
		c, err := net.Dial("tcp", g.status.HTTP)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		for _, p := range parts {
			io.WriteString(c, p)
		}
		raw, _ := io.ReadAll(c) // until the gateway closes
		return string(bytes.SplitN(raw, []byte("\r\n"), 2)[0])
	}
	if got := send("GET / HTTP/1.1\r\nHost: shop.localhost\r\nX: ", strings.Repeat("x", 80<<10), "\r\n\r\n"); !strings.Contains(got, "431") {
		t.Errorf("a large header gave %q, want 431", got)
	}
	if got := send("GET / HTTP/1.1\r\nHost: shop.local"); got != "" && !strings.Contains(got, "408") {
		t.Errorf("a slow header gave %q, want the connection closed", got)
	}
	if got := send("GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n"); got != "HTTP/1.1 200 OK" {
		t.Errorf("an idle connection gave %q, want an answer and then the end", got)
	}
	if got := send("GET / HTTP/1.1\r\n\r\n"); !strings.Contains(got, "400") {
		t.Errorf("no host gave %q, want 400", got)
	}
	if got := send("POST / HTTP/1.1\r\nHost: shop.localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"); !strings.Contains(got, "400") && got != "HTTP/1.1 200 OK" {
		t.Errorf("two lengths gave %q", got)
	}
}

func TestAccessLogHasALineForEveryRequest(t *testing.T) {
	g := run(t, Config{})
	web := newBox(t, "web-a")
	web.serveName()
	g.apply(webTable(web))
	g.get("/quo\"te")
	g.apply(webTable())
	g.get("/none")
	eventually(t, "two lines", func() bool { return strings.Count(logLines(t, g.dir, "access.log"), "\n") == 2 })
	lines := strings.Split(logLines(t, g.dir, "access.log"), "\n")
	for i, want := range []string{
		`"env":"prod","route":"shop","instance":"web-a","method":"GET","host":"shop.localhost","path":"/quo\"te","status":200,"bytes":5,`,
		`"env":"prod","route":"shop","method":"GET","host":"shop.localhost","path":"/none","status":503,`,
	} {
		if !strings.Contains(lines[i], want) {
			t.Errorf("line %d is\n%s\nwant it to have\n%s", i, lines[i], want)
		}
	}
}
