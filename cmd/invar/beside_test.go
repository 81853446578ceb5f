package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime/local/tampering"
)

// What root on the machine does beside the instances, and how soon it is found.
var beside = map[string]command{
	"puttable": cmdPutTable,
	"recovers": cmdRecovers,
	"within":   cmdWithin,
}

// controlSocket returns a client of the gateway's control socket, as curl --unix-socket is one.
func controlSocket(data string) *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(data, "gateway", "gateway.sock"))
	}}}
}

// puttable SERIAL puts a route table in force in which no route is left.
func cmdPutTable(ts *testscript.TestScript, neg bool, args []string) {
	var table map[string]any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(ts.Getenv("DATA")+"/gateway/table.json")), &table))
	delete(table, "http")
	table["serial"] = json.Number(args[0])
	b, err := json.Marshal(table)
	ts.Check(err)
	req, err := http.NewRequest(http.MethodPut, "http://gateway/v1/table", bytes.NewReader(b))
	ts.Check(err)
	resp, err := controlSocket(ts.Getenv("DATA")).Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		ts.Fatalf("%s: %s", resp.Status, body)
	}
	ts.Setenv("SINCE", strconv.FormatInt(time.Now().UnixNano(), 10))
}

// recovers HOST LIMIT waits until a route is served again, at most that long since the last act.
func cmdRecovers(ts *testscript.TestScript, neg bool, args []string) {
	if request(ts.Getenv("GATEWAY"), args[0]) == nil {
		ts.Fatalf("%s was served all the time", args[0])
	}
	limit, err := time.ParseDuration(args[1])
	ts.Check(err)
	for request(ts.Getenv("GATEWAY"), args[0]) != nil {
		if since(ts) > limit {
			ts.Fatalf("%s is not served after %s", args[0], limit)
		}
		time.Sleep(time.Millisecond)
	}
	ts.Logf("served again after %s", since(ts).Round(time.Millisecond))
}

func since(ts *testscript.TestScript) time.Duration {
	n, err := strconv.ParseInt(ts.Getenv("SINCE"), 10, 64)
	ts.Check(err)
	return time.Since(time.Unix(0, n))
}

// within LIMIT TEXT ARG… runs invar until its output matches TEXT, at most that long since the last act.
func cmdWithin(ts *testscript.TestScript, neg bool, args []string) {
	limit, err := time.ParseDuration(args[0])
	ts.Check(err)
	want := regexp.MustCompile(args[1])
	for {
		c := exec.Command(binary, args[2:]...)
		c.Env = append(os.Environ(), "INVAR_SERVER="+ts.Getenv("INVAR_SERVER"))
		took := since(ts)
		out, _ := c.CombinedOutput() // what it says is looked at
		if want.Match(out) {
			ts.Logf("%s: after %s at most: %s", args[1], took.Round(time.Millisecond), firstMatch(want, string(out)))
			return
		}
		if took > limit {
			ts.Fatalf("no %q within %s\n%s", args[1], limit, out)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// firstMatch returns the line that matches.
func firstMatch(want *regexp.Regexp, text string) string {
	for line := range strings.Lines(text) {
		if want.MatchString(line) {
			return fmt.Sprintf("%.400s", strings.TrimSpace(line))
		}
	}
	return ""
}

// beside returns the entry of the kind that has a key with that beginning.
func (b *book) beside(kind, key string) (api.Entry, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.entries {
		var d struct {
			Findings []instance.Finding `json:"findings"`
			Keys     []string           `json:"keys"`
		}
		if e.Kind != kind || json.Unmarshal(e.Data, &d) != nil {
			continue
		}
		for _, f := range d.Findings {
			d.Keys = append(d.Keys, f.Key())
		}
		if slices.ContainsFunc(d.Keys, func(k string) bool { return strings.HasPrefix(k, key) }) {
			return e, true
		}
	}
	return api.Entry{}, false
}

// odd returns the entries about the machine.
func (b *book) odd() (out []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.entries {
		if strings.HasPrefix(e.Kind, "host.") {
			out = append(out, fmt.Sprint(e.Time.Format("15:04:05.000 "), e.Kind, " ", e.Outcome))
		}
	}
	return out
}

// TestWhatIsStartedBesideInstancesIsFoundAndEnded starts by hand what has the marks of an instance, and looks for the entries.
func TestWhatIsStartedBesideInstancesIsFoundAndEnded(t *testing.T) {
	m := newLanes(t, []lane{{name: "lane0"}})
	m.serve()
	m.apply()
	b := m.follow()
	load := startSteadyLoad(t.Context(), m.gateway, 20*time.Millisecond, page{"lane0.localhost", "/", "mode serve"})
	for n, stray := range tampering.Strays() {
		name := fmt.Sprintf("stray-%d-%d", os.Getpid(), n)
		began := time.Now()
		undo, err := stray.Do(m.target(m.environment().Instances[0]), name)
		if err != nil {
			t.Fatalf("%s: %v", stray.Name, err)
		}
		var e api.Entry
		key := "stray " + stray.Field
		if !within(2*foundWithin, func() (ok bool) { e, ok = b.beside("host.drift", key); return ok }) || e.Time.Sub(began) > foundWithin {
			t.Errorf("%s: not found within %v: %v", stray.Name, foundWithin, b.odd())
		}
		if !stray.Ended {
			for _, command := range []string{"status", "drift"} {
				if out, _ := m.invar(t.Context(), command); !strings.Contains(out, key) { // drift exits with 2
					t.Errorf("invar %s does not tell of %s:\n%s", command, stray.Name, out)
				}
			}
			undo()
		}
		if !within(foundWithin, func() (ok bool) { _, ok = b.beside("host.resolved", key); return ok }) {
			t.Errorf("%s: it is not over: %v", stray.Name, b.odd())
		}
		if stray.Ended {
			undo()
		}
		t.Logf("%-50s found after %4d ms, over after %4d ms", stray.Name, e.Time.Sub(began).Milliseconds(), time.Since(began).Milliseconds())
	}
	load.end()
	for _, f := range load.failures() {
		t.Errorf("a request failed: %v", f)
	}
	if n := len(b.odd()); n != 2*len(tampering.Strays()) || len(b.suspected()) > 0 {
		t.Errorf("%d entries: %v; instances: %v", n, b.odd(), b.suspected())
	}
	m.sound()
	m.stop()
}

// impersonated has somebody else's socket at the gateway's control path, who answers as a gateway does.
func (m *machine) impersonated() (asked *atomic.Int64, end func()) {
	m.t.Helper()
	path := filepath.Join(m.host.data, "gateway", "gateway.sock")
	if err := os.Remove(path); err != nil {
		m.t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		m.t.Fatal(err)
	}
	asked = new(atomic.Int64)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		fmt.Fprintf(w, `{"pid":%d,"serial":99}`, os.Getpid())
	})}
	go s.Serve(l)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	return asked, func() { s.Close() }
}

// TestGatewayTakenOverIsFoundAndHealed takes the way to the gateway, its socket and its process, one after the other, under load.
func TestGatewayTakenOverIsFoundAndHealed(t *testing.T) {
	m := newLanes(t, []lane{{name: "lane0"}})
	m.serve()
	m.apply()
	b := m.follow()
	load := startSteadyLoad(t.Context(), m.gateway, 20*time.Millisecond, page{"lane0.localhost", "/", "mode serve"})
	for _, c := range []struct {
		name, key string
		do        func(pid int)
		renewed   bool
	}{
		{"another's socket at the control path", "gateway control link", func(int) {
			asked, end := m.impersonated()
			t.Cleanup(func() {
				end()
				if n := asked.Load(); n > 0 {
					t.Errorf("the impostor was asked %d times", n)
				}
			})
		}, false},
		{"the control socket deleted", "gateway control socket", func(pid int) {
			if err := os.Remove(filepath.Join(m.host.data, "gateway", fmt.Sprintf("gateway.sock.%d", pid))); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"a stopped process", "gateway stopped by a signal", func(pid int) {
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			load.end() // what it had accepted waits, and is lost with it
		}, true},
	} {
		info, err := m.server.info()
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		c.do(info.Gateway.PID)
		var e api.Entry
		if !within(2*foundWithin, func() (ok bool) { e, ok = b.beside("host.drift", c.key); return ok }) || e.Time.Sub(began) > foundWithin {
			t.Fatalf("%s: not found within %v: %v", c.name, foundWithin, b.odd())
		}
		if !within(foundWithin, func() (ok bool) { _, ok = b.beside("host.resolved", c.key); return ok }) {
			t.Fatalf("%s: it is not over: %v", c.name, b.odd())
		}
		t.Logf("%-40s found after %4d ms, over after %4d ms", c.name, e.Time.Sub(began).Milliseconds(), time.Since(began).Milliseconds())
		if now, err := m.server.info(); err != nil || c.renewed == (now.Gateway.PID == info.Gateway.PID) {
			t.Errorf("%s: process %d serves, before it was %d (%v)", c.name, now.Gateway.PID, info.Gateway.PID, err)
		}
	}
	for _, f := range load.failures() {
		t.Errorf("a request failed: %v", f)
	}
	if err := request(m.gateway, "lane0.localhost"); err != nil {
		t.Error(err)
	}
	if len(b.odd()) != 6 {
		t.Errorf("the ledger has %v", b.odd())
	}
	m.sound()
	m.stop()
}

// TestNothingIsOddWhereNobodyTampers: crashes and upgrades are none.
func TestNothingIsOddWhereNobodyTampers(t *testing.T) {
	m := newLanes(t, []lane{{name: "lane0"}})
	other, second := newLanes(t, nil), filepath.Join(m.dir, "invar")
	m.serve()
	m.apply()
	other.serve() // another server on the machine
	b := m.follow()
	kill := func() {
		info, err := m.server.info()
		if err != nil {
			t.Fatal(err)
		}
		m.kill(info.Gateway.PID)
		m.poll("a page from the next gateway", func() bool { return request(m.gateway, "lane0.localhost") == nil })
	}
	settle := func() { time.Sleep(2500 * time.Millisecond) } // a look at everything
	settle()
	kill()
	settle()
	m.killServer()
	kill()
	settle()
	m.killLauncher()
	settle()
	// an upgrade: another file of the program, while the gateway of the first one serves; then the first one's file is replaced
	if out, err := exec.Command("cp", binary, second).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m.kill(m.server.cmd.Process.Pid)
	var err error
	if m.server, err = startServerOf(second, m.host.data, os.Environ(), "--gateway", m.gateway); err != nil {
		t.Fatal(err)
	}
	settle()
	if err := os.Remove(second); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(second, []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	kill() // the next one is of the program that runs, not of what lies at its path now
	settle()
	if len(b.odd()) > 0 || len(b.suspected()) > 0 {
		t.Errorf("the ledger has %v %v", b.odd(), b.suspected())
	}
	m.sound()
	other.stop()
	m.stop()
}
