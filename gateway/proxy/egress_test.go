package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/invarhq/invar/gateway"
)

const egressAddress = gateway.EgressAddress

func egressTable(web *box, allow ...string) gateway.Table {
	return gateway.Table{Inside: []gateway.Inside{{Instance: web.id, Network: web.path, Egress: &gateway.Egress{Address: egressAddress, Allow: allow}}}}
}

// proxied returns a client inside the box that uses the forward proxy.
func (b *box) proxied() *http.Client {
	t := &http.Transport{
		Proxy:       http.ProxyURL(&url.URL{Scheme: "http", Host: egressAddress}),
		DialContext: func(_ context.Context, _, address string) (net.Conn, error) { return b.dial(address) },
	}
	b.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

func TestEgressAllowsWhatIsListedAndLogsEverything(t *testing.T) {
	g := run(t, Config{})
	outside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s %s", r.Host, r.RequestURI) }))
	defer outside.Close()
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "secure") }))
	defer secure.Close()
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	to := outside.Listener.Addr().String()
	_, port, _ := net.SplitHostPort(other.Listener.Addr().String())
	web := newBox(t, "web-a")
	g.apply(egressTable(web, to, secure.Listener.Addr().String(), "localhost:"+port))

	client := web.proxied()
	ask := func(url string) (int, string) {
		t.Helper()
		resp, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(raw)
	}
	if status, body := ask("http://" + to + "/path?q=1"); status != http.StatusOK || body != to+" /path?q=1" {
		t.Errorf("listed, plain: %d %q", status, body)
	}
	if status, body := ask("http://" + other.Listener.Addr().String()); status != http.StatusForbidden || !strings.Contains(body, "add it to the component's egress list") {
		t.Errorf("not listed: %d %q, want 403 that says what to do", status, body)
	}
	// A name may be listed and still not lead to the host's own addresses.
	if status, body := ask("http://localhost:" + port); status != http.StatusForbidden || !strings.Contains(body, "must be listed literally") {
		t.Errorf("listed name of a loopback address: %d %q, want 403", status, body)
	}
	tr := client.Transport.(*http.Transport)
	tr.TLSClientConfig = secure.Client().Transport.(*http.Transport).TLSClientConfig
	if status, body := ask(secure.URL); status != http.StatusOK || body != "secure" {
		t.Errorf("listed, CONNECT: %d %q", status, body)
	}
	if _, err := client.Get("https://" + other.Listener.Addr().String()); err == nil || !strings.Contains(err.Error(), "Forbidden") {
		t.Errorf("not listed, CONNECT: %v, want Forbidden", err)
	}
	client.CloseIdleConnections() // the line of a tunnel is written at its end
	eventually(t, "a line for each", func() bool { return strings.Count(logLines(t, g.dir, "egress.log"), "\n") == 5 })
	logged := logLines(t, g.dir, "egress.log")
	for _, want := range []string{
		`"instance":"web-a","method":"GET","target":"` + to + `","verdict":"allowed","status":200`,
		`"method":"GET","target":"` + other.Listener.Addr().String() + `","verdict":"denied","status":403`,
		`"method":"CONNECT","target":"` + secure.Listener.Addr().String() + `","verdict":"allowed","status":200`,
		`"method":"CONNECT","target":"` + other.Listener.Addr().String() + `","verdict":"denied","status":403`,
		`"target":"localhost:` + port + `"`,
	} {
		if !strings.Contains(logged, want) {
			t.Errorf("the log lacks %s:\n%s", want, logged)
		}
	}
}

func TestEgressFollowsTheTable(t *testing.T) {
	g := run(t, Config{})
	outside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer outside.Close()
	web := newBox(t, "web-a")
	status := func() int {
		resp, err := web.proxied().Get(outside.URL)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	g.apply(egressTable(web, "example.com:443"))
	if got := status(); got != http.StatusForbidden {
		t.Errorf("status is %d before it is listed, want 403", got)
	}
	g.apply(egressTable(web, outside.Listener.Addr().String()))
	if got := status(); got != http.StatusOK {
		t.Errorf("status is %d when it is listed, want 200", got)
	}
	g.apply(gateway.Table{})
	if c, err := web.dial(egressAddress); err == nil {
		c.Close()
		t.Error("the forward proxy is still there without the table")
	}
}

func TestHostsOwnAddressesNeedALiteralEntry(t *testing.T) {
	e := &egress{}
	e.allow.Store(parseAllows([]string{"169.254.169.254:80", "metadata.example.com:80"}))
	for address, allowed := range map[string]bool{
		"169.254.169.254:80": true, // listed literally
		"169.254.169.254:81": false,
		"127.0.0.1:80":       false,
		"[::1]:80":           false,
		"[::ffff:7f00:1]:80": false,
		"0.0.0.0:80":         false,
		"[fe80::1]:80":       false,
		"100.100.100.200:80": false,
		"[fd00:ec2::254]:80": false,
		"224.0.0.1:80":       false,
		"192.0.2.7:80":       true, // some address out there
	} {
		if err := e.judge(address); (err == nil) != allowed {
			t.Errorf("%s: %v, want allowed: %v", address, err, allowed)
		}
	}
}

func FuzzEgressTarget(f *testing.F) {
	for _, seed := range []string{
		"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
		"CONNECT [::1]:443 HTTP/1.1\r\n\r\n",
		"GET http://example.com/a HTTP/1.1\r\nHost: other.example.com\r\n\r\n",
		"GET http://user@example.com:81/ HTTP/1.1\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
		"GET ftp://example.com/ HTTP/1.1\r\n\r\n",
		"GET http://[fe80::1%25eth0]/ HTTP/1.1\r\n\r\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
		if err != nil {
			return
		}
		host, port, err := target(r)
		if err != nil {
			return
		}
		if host == "" || port == 0 || strings.ContainsAny(host, "/@% ") {
			t.Fatalf("%q gave host %q, port %d", raw, host, port)
		}
		if h, p, err := net.SplitHostPort(net.JoinHostPort(host, fmt.Sprint(port))); err != nil || h != host || p != fmt.Sprint(port) {
			t.Fatalf("%q gave host %q, port %d, which does not read back: %q %q %v", raw, host, port, h, p, err)
		}
	})
}
