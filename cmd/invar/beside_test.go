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
