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
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
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
