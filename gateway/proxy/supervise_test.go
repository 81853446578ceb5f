package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/gateway"
)

// supervised starts the test binary as the gateway, under a Supervisor.
func supervised(t *testing.T, cfg Config) *Supervisor {
	t.Helper()
	cfg.Log = testLog(t)
	if cfg.HTTP == "" {
		cfg.HTTP = "127.0.0.1:0"
	}
	s, err := Supervise(t.Context(), cfg, []string{os.Args[0]})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func stopAtEnd(t *testing.T, s *Supervisor) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Errorf("stopping the gateway: %v", err)
		}
		if left := ownSockets(s.cfg.controlPath()); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

func mustStatus(t testing.TB, s *Supervisor) gateway.Status {
	t.Helper()
	status, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return status
}

func TestKilledGatewayIsBackWithItsLastTableAndRefusesNoConnection(t *testing.T) {
	s := supervised(t, Config{Dir: t.TempDir()})
	stopAtEnd(t, s)
	web, db := newBox(t, "web-a"), newBox(t, "db-a")
	web.serveName()
	echo(db.listen(5432))
	table := webTable(web)
	uses := usesTable(web, db)
	table.Backends = append(table.Backends, uses.Backends...)
	table.Services = append(table.Services, uses.Services...)
	table.Inside = uses.Inside
	if err := s.Apply(t.Context(), table); err != nil {
		t.Fatal(err)
	}
	before := mustStatus(t, s)
	var gaps []time.Duration
	for range 7 {
		eventually(t, "a spare process that waits", func() bool { return s.spareWaits() })
		pid := mustStatus(t, s).PID
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		// Connections made while there is no gateway wait in the kernel, on the host and inside.
		inside := web.mustDial("127.77.0.2:5432")
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		status, body, err := askedOnce(t, client, before.HTTP)
		if err != nil || status != http.StatusOK || body != "web-a" {
			t.Fatalf("got %d %q, %v while the gateway was away", status, body, err)
		}
		gaps = append(gaps, time.Since(began))
		io.WriteString(inside, "select")
		inside.CloseWrite()
		if got, err := io.ReadAll(inside); err != nil || string(got) != "select" {
			t.Fatalf("inside: got %q, %v", got, err)
		}
		eventually(t, "a new process", func() bool {
			now, err := s.Status(t.Context())
			return err == nil && now.PID != pid && now.Serial == before.Serial
		})
	}
	slices.Sort(gaps)
	t.Logf("from kill to answer: median %v, all %v", gaps[len(gaps)/2], gaps)
	if gaps[len(gaps)/2] > 100*time.Millisecond {
		t.Errorf("the median gap is %v, want at most 100ms", gaps[len(gaps)/2])
	}
}

// spareWaits tells whether the spare has said that it waits.
func (s *Supervisor) spareWaits() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.spare == nil {
		return false
	}
	raw, err := s.spare.conn.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	raw.Control(func(fd uintptr) { n, _, _ = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT) })
	return n > 0
}

// askedOnce asks once. A connection that the dying process had accepted already is lost with it, and the request is then repeated; a
// refusal never is.
func askedOnce(t *testing.T, c *http.Client, address string) (int, string, error) {
	for {
		status, body, err := tryGet(t.Context(), c, address, "/")
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			continue
		}
		return status, body, err
	}
}

func TestKilledGatewayUnderLoadRefusesNoConnection(t *testing.T) {
	s, _, status := servingWeb(t)
	address := status.HTTP
	ctx, stop := context.WithCancel(t.Context())
	result := make(chan error, 4)
	answered := make(chan struct{}, 1)
	for range cap(result) {
		go func() { result <- connectAgainAndAgain(ctx, address, answered) }()
	}
	for range 5 {
		pid := mustStatus(t, s).PID
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a new process", func() bool { now, err := s.Status(t.Context()); return err == nil && now.PID != pid })
		<-answered
		<-answered // the second was asked after the first
	}
	stop()
	for range cap(result) {
		if err := <-result; err != nil {
			t.Error(err)
		}
	}
}

// connectAgainAndAgain connects and asks until ctx ends. What a killed process had accepted is lost, but no connection may be refused.
func connectAgainAndAgain(ctx context.Context, address string, answered chan<- struct{}) error {
	for ctx.Err() == nil {
		conn, err := net.DialTimeout("tcp", address, 10*time.Second)
		if err != nil {
			return fmt.Errorf("connecting: %w", err)
		}
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: shop.localhost\r\nConnection: close\r\n\r\n")
		raw, _ := io.ReadAll(conn)
		conn.Close()
		if strings.HasSuffix(string(raw), "web-a") {
			select {
			case answered <- struct{}{}:
			default:
			}
		}
	}
	return nil
}

func TestUpgradeUnderLoadFailsNoRequest(t *testing.T) {
	s := supervised(t, Config{Dir: t.TempDir()})
	stopAtEnd(t, s)
	web := newBox(t, "web-a")
	web.serve(http.HandlerFunc(answerSlowly))
	if err := s.Apply(t.Context(), webTable(web)); err != nil {
		t.Fatal(err)
	}
	address := mustStatus(t, s).HTTP
	gets := startLoad(t, address, 4, http.MethodGet, "/")
	posts := startLoad(t, address, 4, http.MethodPost, "/")
	for range 5 {
		gets.more(t, 100)
		pid := mustStatus(t, s).PID
		if err := s.Upgrade(t.Context()); err != nil {
			t.Fatal(err)
		}
		if now := mustStatus(t, s); now.PID == pid || now.Serial != 1 || now.HTTP != address {
			t.Fatalf("after the upgrade: %+v, want another process at %s with table 1", now, address)
		}
		eventually(t, "the old process ended", func() bool { return syscall.Kill(pid, 0) != nil })
	}
	gets.more(t, 100)
	gets.wantNoFailure(t)
	posts.wantNoFailure(t)
}

func TestConnectionsOutliveAnUpgradeAndAreCounted(t *testing.T) {
	s := supervised(t, Config{Dir: t.TempDir()})
	stopAtEnd(t, s)
	web, db := newBox(t, "web-a"), newBox(t, "db-a")
	echo(db.listen(5432))
	if err := s.Apply(t.Context(), usesTable(web, db)); err != nil {
		t.Fatal(err)
	}
	c := web.mustDial("127.77.0.2:5432")
	ask := func() {
		t.Helper()
		io.WriteString(c, "ping")
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
	}
	ask()
	if err := s.Upgrade(t.Context()); err != nil {
		t.Fatal(err)
	}
	ask()
	if n := mustStatus(t, s).Active["db-a"]; n != 1 {
		t.Errorf("%d connections under way, want the one of the old process", n)
	}
	web.mustDial("127.77.0.2:5432") // by the new one
	c.Close()
}

func TestGatewayOutlivesItsSupervisorAndIsFoundAgain(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), Version: "1"}
	s := supervised(t, cfg)
	web := newBox(t, "web-a")
	web.serveName()
	if err := s.Apply(t.Context(), webTable(web)); err != nil {
		t.Fatal(err)
	}
	first := mustStatus(t, s)
	if got, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", first.PID)); len(ownGroups()) > 0 && !strings.Contains(string(got), ":/"+ownGroup+"\n") {
		t.Errorf("cgroups are\n%s, %v\nwant one of its own", got, err)
	}
	s.Close()
	if status, body := get(t, http.DefaultClient, first.HTTP, "/"); status != http.StatusOK || body != "web-a" {
		t.Errorf("without a supervisor: %d %q", status, body)
	}
	s = supervised(t, cfg)
	if again := mustStatus(t, s); again.PID != first.PID || again.Serial != 1 {
		t.Errorf("found %+v, want the same process with table 1", again)
	}
	// The new supervisor has the sockets: a death is not noticed outside.
	if err := syscall.Kill(first.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status, body, err := askedOnce(t, http.DefaultClient, first.HTTP); err != nil || status != http.StatusOK || body != "web-a" {
		t.Errorf("after a kill: %d %q, %v", status, body, err)
	}
	eventually(t, "a new process", func() bool {
		now, err := s.Status(t.Context())
		return err == nil && now.PID != first.PID
	})
	s.Close()
	cfg.Version = "2"
	s = supervised(t, cfg)
	stopAtEnd(t, s)
	if now := mustStatus(t, s); now.Version != "2" || now.HTTP != first.HTTP || now.Serial != 1 {
		t.Errorf("found %+v, want version 2 on the same socket with the same table", now)
	}
}

func TestStartFailsWithAHintWhenTheAddressIsTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = Supervise(t.Context(), Config{Dir: t.TempDir(), HTTP: l.Addr().String()}, []string{os.Args[0]})
	if err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("error is %v, want that the address is in use", err)
	}
}

func TestHTTP3IsServedAgainAfterAnUpgrade(t *testing.T) {
	s := supervised(t, Config{Dir: t.TempDir(), HTTPS: freeAddress(t)})
	stopAtEnd(t, s)
	web := newBox(t, "web-a")
	web.serveName()
	if err := s.Apply(t.Context(), tlsTable(web)); err != nil {
		t.Fatal(err)
	}
	g := &running{t: t, status: mustStatus(t, s)}
	ask := func() (string, error) {
		h3 := &http3.Transport{TLSClientConfig: g.trusting(), Dial: func(ctx context.Context, _ string, c *tls.Config, q *quic.Config) (*quic.Conn, error) {
			return quic.DialAddr(ctx, g.status.HTTPS, c, q)
		}}
		defer h3.Close()
		resp, err := (&http.Client{Transport: h3}).Get("https://shop.localhost/")
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		return string(raw), err
	}
	if got, err := ask(); err != nil || got != "web-a" {
		t.Fatalf("before: %q, %v", got, err)
	}
	for range 3 {
		asked := make(chan error, 1)
		go func() {
			_, err := ask() // while it changes hands
			asked <- err
		}()
		if err := s.Upgrade(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, err := ask(); err != nil || got != "web-a" {
			t.Fatalf("after: %q, %v", got, err)
		}
		if err := <-asked; err != nil {
			t.Logf("a request during the handover: %v", err)
		}
	}
}
