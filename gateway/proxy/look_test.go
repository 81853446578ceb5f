package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/drift"
	"github.com/invarhq/invar/gateway"
	"github.com/invarhq/invar/kernel"
)

// found looks, and returns what is odd: "alert listener tcp 127.0.0.1:80: expected -> found".
func found(t *testing.T, s *Supervisor) ([]drift.Oddity, string) {
	t.Helper()
	list, err := s.Look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, o := range list {
		lines = append(lines, fmt.Sprintf("%s %s: %s -> %s", o.Response, o.Key(), o.Expected, o.Found))
	}
	return list, strings.Join(lines, "\n")
}

func quiet(t *testing.T, s *Supervisor, when string) {
	t.Helper()
	if _, text := found(t, s); text != "" {
		t.Errorf("%s there is\n%s", when, text)
	}
}

// cure heals what is odd, and looks again.
func cure(t *testing.T, s *Supervisor) (how string) {
	t.Helper()
	list, _ := found(t, s)
	how, err := s.Heal(t.Context(), list)
	if err != nil {
		t.Fatal(err)
	}
	quiet(t, s, "after healing")
	return how
}

// steady asks shop.localhost all the time, on new connections, until the function that it returns is called, which tells what failed.
func steady(t *testing.T, address string) (end func()) {
	var failed atomic.Pointer[string]
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	asked := 0
	go func() {
		defer close(done)
		for ; ctx.Err() == nil; asked++ {
			status, body, err := tryGet(t.Context(), client, address, "/")
			if err != nil || status != http.StatusOK || body != "web-a" {
				text := fmt.Sprintf("%d %q %v", status, body, err)
				failed.CompareAndSwap(nil, &text)
			}
		}
	}()
	return func() {
		t.Helper()
		stop()
		<-done
		if text := failed.Load(); text != nil || asked == 0 {
			t.Errorf("of %d requests one failed: %v", asked, *text)
		}
	}
}

func TestNothingIsOddAboutAGatewayWhateverHappensToIt(t *testing.T) {
	dir := t.TempDir()
	s := supervised(t, Config{Dir: dir, HTTPS: "127.0.0.1:0"})
	quiet(t, s, "at first")
	web := newBox(t, "web-a")
	web.serveName()
	if err := s.Apply(t.Context(), webTable(web)); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := s.Watch(l); err != nil {
		t.Fatal(err)
	}
	quiet(t, s, "with a table and a listener of the server")
	pid := mustStatus(t, s).PID
	syscall.Kill(pid, syscall.SIGKILL)
	eventually(t, "another process", func() bool {
		quiet(t, s, "after it was killed")
		now, err := s.Status(t.Context())
		return err == nil && now.PID != pid
	})
	if err := s.Upgrade(t.Context()); err != nil {
		t.Fatal(err)
	}
	quiet(t, s, "after an upgrade")
	if err := s.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	quiet(t, s, "after it was renewed")
	before := mustStatus(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := supervised(t, Config{Dir: dir, HTTPS: "127.0.0.1:0"})
	quiet(t, again, "with another supervisor")
	if now := mustStatus(t, again); now.PID != before.PID {
		t.Errorf("the other supervisor replaced process %d by %d", before.PID, now.PID)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	newer := supervised(t, Config{Dir: dir, HTTPS: "127.0.0.1:0", Version: "2"})
	stopAtEnd(t, newer)
	quiet(t, newer, "with a supervisor of another version")
}

// servingWeb is a gateway that serves one instance, until the test ends.
func servingWeb(t *testing.T) (*Supervisor, *box, gateway.Status) {
	t.Helper()
	s := supervised(t, Config{Dir: t.TempDir()})
	stopAtEnd(t, s)
	web := newBox(t, "web-a")
	web.serveName()
	if err := s.Apply(t.Context(), webTable(web)); err != nil {
		t.Fatal(err)
	}
	return s, web, mustStatus(t, s)
}

// impostor is at the path in place of a gateway's control socket, and takes note of who asks.
func impostor(t *testing.T, path string) *atomic.Int64 {
	var asked atomic.Int64
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		fmt.Fprintf(w, `{"pid":%d,"version":"","serial":99}`, os.Getpid())
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return &asked
}

func TestControlLinkThatLeadsElsewhereIsPutBack(t *testing.T) {
	s, web, before := servingWeb(t)
	end := steady(t, before.HTTP)
	for name, take := range map[string]func(path string) error{
		"another link": func(path string) error { return os.Symlink("../elsewhere/sock", path) },
		"a file":       func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"nothing":      func(string) error { return nil },
	} {
		path := s.cfg.controlPath()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := take(path); err != nil {
			t.Fatal(err)
		}
		if err := s.Apply(t.Context(), webTable(web)); err != nil {
			t.Errorf("%s: a table does not reach the gateway: %v", name, err)
		}
		if _, text := found(t, s); !strings.HasPrefix(text, "restore gateway control link: gateway.sock.") || strings.Contains(text, "\n") {
			t.Errorf("%s: found %q", name, text)
		}
		if how := cure(t, s); !strings.Contains(how, "link") {
			t.Errorf("%s: %s", name, how)
		}
	}
	os.Remove(s.cfg.controlPath())
	asked := impostor(t, s.cfg.controlPath())
	if err := s.Apply(t.Context(), webTable(web)); err != nil {
		t.Error(err)
	}
	cure(t, s)
	end()
	if now := mustStatus(t, s); now.PID != before.PID || asked.Load() != 0 {
		t.Errorf("process %d serves, want %d; the impostor was asked %d times", now.PID, before.PID, asked.Load())
	}
}

// A table is never given to whoever sits on the gateway's own socket, and the gateway that can't be reached any more is replaced.
func TestGatewayWhoseSocketWasTakenIsRenewed(t *testing.T) {
	s, web, before := servingWeb(t)
	own := socketOf(s.cfg, before.PID)
	if err := os.Remove(own); err != nil {
		t.Fatal(err)
	}
	asked := impostor(t, own)
	if err := s.Apply(t.Context(), webTable(web)); err == nil || asked.Load() != 0 {
		t.Errorf("a table went to an impostor: %v, asked %d times", err, asked.Load())
	}
	if _, text := found(t, s); !strings.HasPrefix(text, "restore gateway control socket: ") {
		t.Errorf("found %q", text)
	}
	end := steady(t, before.HTTP)
	if how := cure(t, s); !strings.Contains(how, "new process") {
		t.Error(how)
	}
	if err := s.Apply(t.Context(), webTable(web)); err != nil || mustStatus(t, s).PID == before.PID {
		t.Errorf("a table: %v", err)
	}
	time.Sleep(50 * time.Millisecond)
	end()
}

func TestStoppedGatewayIsRenewed(t *testing.T) {
	s, _, before := servingWeb(t)
	if err := syscall.Kill(before.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	waits := make(chan string, 1)
	eventually(t, "a stopped gateway", func() bool {
		status, _ := kernel.Status(strconv.Itoa(before.PID), nil, "State")
		return strings.HasPrefix(status["State"], "T")
	})
	go func() { // in the kernel's queue until there is somebody
		_, body, err := tryGet(t.Context(), http.DefaultClient, before.HTTP, "/")
		waits <- fmt.Sprint(body, err)
	}()
	if _, text := found(t, s); !strings.Contains(text, "restore gateway stopped by a signal:  -> T") {
		t.Errorf("found %q", text)
	}
	cure(t, s)
	select {
	case got := <-waits:
		if got != "web-a<nil>" {
			t.Errorf("a request that waited got %s", got)
		}
	case <-time.After(10 * time.Second):
		t.Error("a request that waited got no answer")
	}
}

func TestTracedGatewayIsRenewed(t *testing.T) {
	s, _, before := servingWeb(t)
	attached, leave, left := make(chan error), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(left)
		runtime.LockOSThread() // and never unlocks: the tracer is a thread, and ends with it
		_, _, errno := syscall.Syscall6(syscall.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(before.PID), 0, 0, 0, 0)
		attached <- errno
		<-leave
	}()
	if err := <-attached; err != syscall.Errno(0) {
		t.Fatal(err)
	}
	defer func() { close(leave); <-left }()
	end := steady(t, before.HTTP)
	if _, text := found(t, s); !strings.HasPrefix(text, "restore gateway traced by:  -> process ") {
		t.Errorf("found %q", text)
	}
	cure(t, s)
	end()
	if mustStatus(t, s).PID == before.PID {
		t.Error("the same process serves")
	}
}

// other listens on an address that the gateway's socket was made to share, as root can with a descriptor of it.
func other(t *testing.T, s *Supervisor, address string) net.Listener {
	t.Helper()
	files, _, err := s.client.listeners(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(files)
	share := func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }
	for name, f := range files {
		fd, err := descriptor(f)
		if strings.HasPrefix(name, keyHTTP+"=") && err == nil {
			err = share(fd)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = share(int(fd)) }), err)
	}}
	l, err := config.Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestWhoListensBesideTheGatewayIsTold(t *testing.T) {
	for name, c := range map[string]struct{ own, other string }{
		"same address":          {"127.0.0.1:0", "127.0.0.1"},
		"more specific address": {"0.0.0.0:0", "127.0.0.1"},
		"of IPv4 beside both":   {"[::]:0", "0.0.0.0"},
	} {
		t.Run(name, func(t *testing.T) {
			s := supervised(t, Config{Dir: t.TempDir(), HTTP: c.own})
			stopAtEnd(t, s)
			_, port, _ := net.SplitHostPort(mustStatus(t, s).HTTP)
			l := other(t, s, net.JoinHostPort(c.other, port))
			list, text := found(t, s)
			want := fmt.Sprintf("process %d (", os.Getpid())
			if len(list) != 2 || !slices.ContainsFunc(list, func(o drift.Oddity) bool {
				return o.Response == drift.Alert && o.Field == "tcp "+l.Addr().String() && strings.Contains(o.Found, want)
			}) {
				t.Errorf("found\n%s", text)
			}
			if _, err := s.Heal(t.Context(), slices.DeleteFunc(list, func(o drift.Oddity) bool { return o.Response == drift.Alert })); err != nil {
				t.Error(err)
			}
			if list, text := found(t, s); len(list) != 1 || list[0].Response != drift.Alert {
				t.Errorf("healed, there is\n%s", text)
			}
			l.Close()
			quiet(t, s, "when the other is gone")
		})
	}
}

// A supervisor that finds an impostor at the control path, and the gateway alive beside it, goes on with the gateway.
func TestSupervisorFindsTheGatewayThatWasPushedAside(t *testing.T) {
	dir := t.TempDir()
	s := supervised(t, Config{Dir: dir})
	before := mustStatus(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	os.Remove(s.cfg.controlPath())
	cmd := exec.Command("python3", "-c", fakeGateway, s.cfg.controlPath())
	if err := cmd.Start(); err != nil {
		t.Skipf("needs python3, for a process of another program: %v", err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	eventually(t, "an impostor", func() bool {
		c, err := net.Dial("unix", s.cfg.controlPath())
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	again := supervised(t, Config{Dir: dir})
	stopAtEnd(t, again)
	if now := mustStatus(t, again); now.PID != before.PID {
		t.Errorf("process %d serves, want %d", now.PID, before.PID)
	}
	if _, text := found(t, again); !strings.HasPrefix(text, "restore gateway control link: "+filepath.Base(socketOf(s.cfg, before.PID))) {
		t.Errorf("found %q", text)
	}
	cure(t, again)
}

const fakeGateway = `
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen()
while True:
    c, _ = s.accept()
    try:
        c.recv(65536)
        body = b'{"pid":1,"version":"","serial":99,"http":"127.0.0.1:1"}'
        c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
    except OSError:
        pass
    c.close()
`

func TestEveryTableIsTold(t *testing.T) {
	s := supervised(t, Config{Dir: t.TempDir()})
	stopAtEnd(t, s)
	told := func(what string) {
		t.Helper()
		select {
		case <-s.Changed():
		case <-time.After(10 * time.Second):
			t.Fatalf("not told: %s", what)
		}
	}
	// The gateway may have begun to tell after the first table.
	eventually(t, "a gateway that tells", func() bool {
		if err := Dial(s.cfg.controlPath()).Apply(t.Context(), gateway.Table{}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-s.Changed():
			return true
		case <-time.After(10 * time.Millisecond):
			return false
		}
	})
	for range 3 {
		if err := Dial(s.cfg.controlPath()).Apply(t.Context(), gateway.Table{}); err != nil {
			t.Fatal(err)
		}
		told("a table of somebody else")
	}
	pid := mustStatus(t, s).PID
	syscall.Kill(pid, syscall.SIGKILL)
	told("another process")
	eventually(t, "another process", func() bool {
		now, err := s.Status(t.Context())
		return err == nil && now.PID != pid
	})
}

func BenchmarkLook(b *testing.B) {
	s, err := Supervise(b.Context(), Config{Dir: b.TempDir(), HTTP: "127.0.0.1:0", HTTPS: "127.0.0.1:0"}, []string{os.Args[0]})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Stop(context.Background())
	for b.Loop() {
		if found, err := s.look(); err != nil || len(found) > 0 {
			b.Fatal(found, err)
		}
	}
}
