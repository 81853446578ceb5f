package local_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
)

// screen is what a terminal shows, as it comes.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func newScreen() *screen { return &screen{more: make(chan struct{}, 1)} }

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
	return s.text.Write(b)
}

func (s *screen) until(t *testing.T, text string) {
	t.Helper()
	limit := time.After(10 * time.Second)
	for {
		s.mu.Lock()
		shown := s.text.String()
		s.mu.Unlock()
		if strings.Contains(shown, text) {
			return
		}
		select {
		case <-s.more:
		case <-limit:
			t.Fatalf("no %q in %q", text, shown)
		}
	}
}

func TestSessionOnTerminalFollowsItsSize(t *testing.T) {
	m := newMachine(t)
	m.run("web-a")
	in, typed := io.Pipe()
	shown, resize := newScreen(), make(chan runtime.Size)
	type result struct {
		code int
		err  error
	}
	done := make(chan result, 1)
	go func() {
		code, err := m.host.Exec(t.Context(), "web-a", runtime.Session{
			Args: []string{"/bin/server", "terminal"}, Env: []string{"TERM=xterm"}, TTY: true, Size: runtime.Size{Rows: 24, Cols: 80},
			Resize: resize, Stdin: in, Stdout: shown,
		})
		done <- result{code, err}
	}()
	shown.until(t, "size 24 80 xterm")
	resize <- runtime.Size{Rows: 50, Cols: 132}
	shown.until(t, "size 50 132")
	typed.Write([]byte("hello\r"))
	shown.until(t, "read hello")
	typed.Write([]byte("exit\r"))
	if r := <-done; r.code != 4 || r.err != nil {
		t.Errorf("code %d, %v", r.code, r.err)
	}
}

func TestInterruptTypedOnATerminalKillsTheCommand(t *testing.T) {
	m := newMachine(t)
	m.run("web-a")
	in, typed := io.Pipe()
	shown := newScreen()
	go func() {
		shown.until(t, "stalling")
		typed.Write([]byte{3})
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	code, err := m.host.Exec(ctx, "web-a", runtime.Session{Args: []string{"/bin/server", "stall"}, TTY: true, Stdin: in, Stdout: shown})
	if code != 130 && code != 2 || err != nil { // Go's runtime exits with 2
		t.Errorf("code %d, %v", code, err)
	}
}

// A session has no more rights than the instance's own process.
func TestSessionIsConfinedAsTheInstance(t *testing.T) {
	m := newMachine(t)
	pid := m.run("web-a").PID
	var out bytes.Buffer
	code, err := m.host.Exec(t.Context(), "web-a", runtime.Session{Args: []string{"/bin/server", "status", "status", "cgroup"}, Stdout: &out, Stderr: &out})
	if code != 0 || err != nil {
		t.Fatalf("code %d, %v: %s", code, err, out.String())
	}
	own, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"NoNewPrivs:", "Seccomp:", "CapEff:", "CapBnd:", "CapPrm:"} {
		got, want := line(out.String(), field), line(string(own), field)
		if got != want || want == "" {
			t.Errorf("%q, the instance has %q", got, want)
		}
	}
	if got := line(out.String(), "Uid:"); len(strings.Fields(got)) < 2 || strings.Fields(got)[1] != "1000" {
		t.Errorf("its user is %q", got)
	}
}

func line(text, prefix string) string {
	for l := range strings.Lines(text) {
		if strings.HasPrefix(l, prefix) {
			return strings.TrimSpace(l)
		}
	}
	return ""
}

// A command that reads nothing does not keep a session alive whose caller is gone.
func TestSessionEndsThoughItsInputIsStuck(t *testing.T) {
	m := newMachine(t)
	m.run("web-a")
	shown := newScreen()
	endless := readerFunc(func(b []byte) (int, error) { return len(b), nil })
	done := make(chan error, 1)
	go func() {
		_, err := m.host.Exec(t.Context(), "web-a", runtime.Session{Args: []string{"/bin/server", "stall"}, Stdin: endless, Stdout: shown})
		done <- err
	}()
	shown.until(t, "stalling")
	if err := m.host.Close(); err != nil { // as when the server ends: its connections to the launcher go with it
		t.Error(err)
	}
	m.open()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("it goes on")
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func TestSessionNeedsAProgramOfTheImage(t *testing.T) {
	m := newMachine(t)
	m.run("web-a")
	_, err := m.host.Exec(t.Context(), "web-a", runtime.Session{Args: []string{"sh"}})
	if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), `its image has no program "sh"`) {
		t.Errorf("got %v", err)
	}
}

// run starts an instance and waits until it passes its checks.
func (m *machine) run(id string) instance.Observation {
	m.t.Helper()
	m.start(m.serving(id))
	return m.until(id, "passing", func(o instance.Observation) bool { return o.Health == instance.Passing })
}
