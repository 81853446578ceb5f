package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/gateway"
)

func TestControlSocketIsForTheSameUserOnly(t *testing.T) {
	g := run(t, Config{})
	own := filepath.Join(g.dir, "gateway.sock")
	// Only the peer's credentials are to stand in the way.
	for _, path := range []string{filepath.Dir(g.dir), g.dir} {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(own); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v, %v, want 0600", info.Mode(), err)
	}
	if err := os.Chmod(own, 0o666); err != nil {
		t.Fatal(err)
	}
	type answer struct {
		n   int
		err error
	}
	got := make(chan answer)
	go func() {
		runtime.LockOSThread() // for good: the thread is another user's from here on
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			got <- answer{err: errno}
			return
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			defer unix.Close(fd)
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: own})
		}
		if err != nil {
			got <- answer{err: err}
			return
		}
		unix.Write(fd, []byte("GET /v1/status HTTP/1.1\r\nHost: gateway\r\n\r\n")) // it may be closed already
		n, _ := unix.Read(fd, make([]byte, 16))
		got <- answer{n: n}
	}()
	if a := <-got; a.err != nil || a.n > 0 {
		t.Errorf("another user got %d bytes, %v, want the connection closed", a.n, a.err)
	}
	if _, err := g.Status(t.Context()); err != nil {
		t.Errorf("the own user: %v", err)
	}
}

func TestOlderTableIsRefused(t *testing.T) {
	g := run(t, Config{})
	g.apply(gateway.Table{Serial: 7})
	g.apply(gateway.Table{}) // gets the next number
	if s, _ := g.Status(t.Context()); s.Serial != 8 {
		t.Errorf("serial is %d, want 8", s.Serial)
	}
	if err := g.Apply(t.Context(), gateway.Table{Serial: 7}); err == nil || !strings.Contains(err.Error(), "older than 8") {
		t.Errorf("error is %v, want that 7 is older than 8", err)
	}
}

// Who names the table that is replaced is not kept out by its serial, and one who names another changes nothing.
func TestTableReplacesTheOneThatIsNamed(t *testing.T) {
	g := run(t, Config{})
	seal := func(serial uint64) gateway.Sealed {
		s, err := gateway.Table{Serial: serial}.Seal()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	ours, foreign, next := seal(7), seal(1<<64-1), seal(8)
	if err := g.Replace(t.Context(), ours, ""); err != nil {
		t.Fatal(err)
	}
	g.apply(foreign.Table)
	s, err := g.Status(t.Context())
	if err != nil || s.Digest != foreign.Digest || !strings.Contains(s.SetBy, fmt.Sprintf("process %d (", os.Getpid())) {
		t.Errorf("status is %+v, %v; want table %s and who set it", s, err, foreign.Digest)
	}
	if err := g.Replace(t.Context(), next, ours.Digest); !errors.Is(err, fault.Conflict) {
		t.Errorf("in place of a table that is not in force: %v", err)
	}
	if err := g.Replace(t.Context(), next, foreign.Digest); err != nil {
		t.Errorf("in place of the one in force: %v", err)
	}
	if s, _ := g.Status(t.Context()); s.Digest != next.Digest || s.Serial != 8 {
		t.Errorf("status is %+v, want %s", s, next.Digest)
	}
}

func TestTableWithGarbageIsRefused(t *testing.T) {
	g := run(t, Config{})
	for _, body := range []string{"", "{", `{"serial":1}{}`, `{"unknown":1}`, `{"http":[{"host":"a"}]}`} {
		conn, err := net.Dial("unix", filepath.Join(g.dir, "gateway.sock"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "PUT /v1/table HTTP/1.1\r\nHost: gateway\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
		raw, _ := io.ReadAll(conn)
		conn.Close()
		if !strings.HasPrefix(string(raw), "HTTP/1.1 400 ") {
			t.Errorf("%q gave %q, want 400", body, raw)
		}
	}
}

func TestRouteWithTLSIsNotServedInPlain(t *testing.T) {
	g := run(t, Config{})
	web := newBox(t, "web-a")
	web.serveName()
	g.apply(tlsTable(web))
	if status, body := g.get("/"); status != http.StatusServiceUnavailable || !strings.Contains(body, "no HTTPS address") {
		t.Errorf("got %d %q, want 503 that says why", status, body)
	}
	if s, _ := g.Status(t.Context()); s.Failures["route shop of prod"] == "" {
		t.Errorf("failures are %v, want the route", s.Failures)
	}
}

func TestJournalRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	j, err := openJournal(path, 100, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		j.add(fmt.Appendf(nil, "%d %s\n", i, strings.Repeat("x", 120)), false)
		eventually(t, "the file was rotated", func() bool {
			raw, err := os.ReadFile(path + ".1")
			return err == nil && strings.HasPrefix(string(raw), fmt.Sprintf("%d ", i))
		})
	}
	j.close()
	files, _ := filepath.Glob(path + "*")
	if len(files) != 1+keepLogs {
		t.Errorf("files are %v, want the current and %d old ones", files, keepLogs)
	}
	if raw, _ := os.ReadFile(path + ".5"); !strings.HasPrefix(string(raw), "3 ") {
		t.Errorf("the oldest begins with %.2q, want 3", raw)
	}
}

func TestJournalThatIsFullDropsLinesAndSaysHowMany(t *testing.T) {
	j := &journal{path: filepath.Join(t.TempDir(), "x.log"), limit: rotateAt, log: testLog(t), full: make(chan struct{}, 1)}
	j.drained = sync.NewCond(&j.mu)
	if err := j.open(); err != nil {
		t.Fatal(err)
	}
	defer j.file.Close()
	j.add(make([]byte, maxPending), false)
	j.add([]byte("one\n"), false)
	j.add([]byte("two\n"), false)
	waited := make(chan struct{})
	go func() {
		j.add([]byte("three\n"), true)
		close(waited)
	}()
	j.flush()
	<-waited
	j.flush()
	raw, err := os.ReadFile(j.path)
	if err != nil {
		t.Fatal(err)
	}
	if rest := string(raw[maxPending:]); strings.Contains(rest, "one") || !strings.Contains(rest, `"dropped":2}`) || !strings.HasSuffix(rest, "three\n") {
		t.Errorf("after what filled it, the journal has %q; want that 2 lines were dropped, and the one that waited", rest)
	}
}
