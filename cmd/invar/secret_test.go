package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/invarhq/invar/api"
)

// canary is a value that is found wherever it gets to.
type canary struct {
	value    string
	spelling map[string][]byte // how it may have been written down
}

func newCanary(name string) canary {
	value := "canary-" + name + "/+&=" + rand.Text()
	c := canary{value, map[string][]byte{
		"raw":             []byte(value),
		"hex":             []byte(hex.EncodeToString([]byte(value))),
		"upper case hex":  []byte(strings.ToUpper(hex.EncodeToString([]byte(value)))),
		"escaped as path": []byte(url.PathEscape(value)),
		"escaped":         []byte(url.QueryEscape(value)),
		"JSON":            []byte(strings.Trim(string(must(json.Marshal(value))), `"`)),
		"decimal bytes":   []byte(strings.Trim(fmt.Sprint([]byte(value)), "[]")),
		"reversed":        []byte(reversed(value)),
	}}
	for offset := range 3 { // what of it does not depend on what stands before and after
		for name, enc := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
			text := enc.EncodeToString(append(make([]byte, offset), value...))
			c.spelling[fmt.Sprint(name, " at ", offset)] = []byte(text[4 : len(text)-4])
		}
	}
	return c
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func reversed(s string) string {
	b := []byte(s)
	for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
		b[i], b[j] = b[j], b[i]
	}
	return string(b)
}

// keeper is a server whose app has a secret, and all that was ever seen of it from outside.
type keeper struct {
	*machine
	canaries []canary
	looked   int // places
}

// absent fails the test when a canary is in what was found somewhere.
func (k *keeper) absent(where string, content []byte) {
	k.t.Helper()
	k.looked++
	for _, c := range k.canaries {
		for how, spelling := range c.spelling {
			if i := bytes.Index(content, spelling); i >= 0 {
				k.t.Errorf("%s has the value of a secret, %s, at byte %d", where, how, i)
			}
		}
	}
}

func newKeeper(t *testing.T) *keeper {
	dir := t.TempDir()
	m := &machine{t: t, dir: dir, app: filepath.Join(dir, "keeper"), gateway: freeAddress(t), host: newHostOf(filepath.Join(dir, "data"))}
	t.Cleanup(func() { exec.Command(binary, "server", "stop", "--data", m.host.data).Run() })
	t.Cleanup(m.explain)
	if out, err := exec.Command("cp", "-r", "testdata/keeper", m.app).CombinedOutput(); err != nil {
		t.Fatalf("copying the app: %v\n%s", err, out)
	}
	return &keeper{machine: m}
}

// client runs the client with input, and looks at all that it says.
func (k *keeper) client(stdin string, args ...string) (string, int) {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(k.t.Context(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, binary, append([]string{"-C", k.app}, args...)...)
	c.Env = append(os.Environ(), "NO_COLOR=1", "INVAR_SERVER=unix://"+filepath.Join(k.host.data, "invar.sock"), "INVAR_CACHE="+filepath.Join(k.dir, "cache"))
	c.Stdin = strings.NewReader(stdin)
	out, _ := c.CombinedOutput()
	k.absent("invar "+strings.Join(args, " "), out)
	return string(out), c.ProcessState.ExitCode()
}

// wants runs the client, which must end with the status and say something.
func (k *keeper) wants(status int, says, stdin string, args ...string) string {
	k.t.Helper()
	out, got := k.client(stdin, args...)
	if got != status || !strings.Contains(out, says) {
		k.t.Fatalf("invar %s: status %d, want %d and %q\n%s", strings.Join(args, " "), got, status, says, out)
	}
	return out
}

// set sets the secret to a new canary.
func (k *keeper) set(name string, more ...string) canary {
	k.t.Helper()
	c := newCanary(name)
	k.canaries = append(k.canaries, c)
	k.wants(0, "staging/password: version ", c.value+"\n", append([]string{"secret", "set", "staging/password", "--reason", "test " + name}, more...)...)
	return c
}

// delivered checks that the instance behind the route has the value, as it was asked for.
func (k *keeper) delivered(want canary) {
	k.t.Helper()
	req, err := http.NewRequest("GET", "http://"+k.gateway+"/", nil)
	if err != nil {
		k.t.Fatal(err)
	}
	req.Host = "keeper.localhost"
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		k.t.Fatal(err)
	}
	defer resp.Body.Close()
	var got struct {
		SHA256, Mode, Write string
		UID, GID            int
		TmpFS               bool
	}
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		k.t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(want.value))
	if got.SHA256 != hex.EncodeToString(sum[:]) {
		k.t.Errorf("the instance reads another value: %+v", got)
	}
	if got.Mode != "0440" || got.UID != 1234 || got.GID != 65532 || !got.TmpFS || got.Write == "" {
		k.t.Errorf("delivered as %+v, want mode 0440, owner 1234:65532, on a tmpfs, not to be written to", got)
	}
}

// instances returns those of a component that are of the head.
func (k *keeper) instances(component string) []string {
	k.t.Helper()
	var ids []string
	for _, i := range k.environment().Instances {
		if i.Component == component && i.Head {
			ids = append(ids, i.ID)
		}
	}
	return ids
}

// TestSecretsAreNeverToldButToInstances sets, deploys, rotates and rolls back a secret, with components that crash, fail their checks
// and betray it in them, and a server that dies; then it looks for the values everywhere.
func TestSecretsAreNeverToldButToInstances(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: instances are namespaces and mounts; CI runs it")
	}
	k := newKeeper(t)
	k.serve()

	k.wants(1, "hint: invar secret set staging/password", "", "apply", "staging", "--yes")
	first := k.set("first")
	k.wants(0, "done: staging is generation 1", "", "apply", "staging", "--yes")
	k.delivered(first)
	plain := k.instances("plain")

	second := k.set("second")
	k.wants(0, "older: ", "", "secret", "list", "staging")
	k.delivered(first)
	k.wants(0, "secret password version  ", "", "plan", "staging", "--out", filepath.Join(k.dir, "plan.json"))
	third := k.set("third")
	k.wants(1, "saved plan is stale: secret password has a newer version", "", "apply", "staging", filepath.Join(k.dir, "plan.json"))
	k.wants(0, "done: staging is generation 2", "", "apply", "staging", "--yes")
	k.delivered(third)

	fourth := k.set("fourth", "--apply", "--yes")
	k.delivered(fourth)
	if got := k.instances("plain"); len(plain) != 1 || strings.Join(got, " ") != strings.Join(plain, " ") {
		t.Errorf("the component without secrets was %v and is %v after rotations", plain, got)
	}
	k.wants(0, "done: staging is generation 4", "", "rollback", "staging", "--yes")
	k.delivered(third)
	k.wants(0, "done: staging is generation 5", "", "rollback", "staging", "--to", "1", "--yes")
	k.delivered(first)
	_ = second // of which no instance ever was

	k.kill(k.server.cmd.Process.Pid)
	k.absent("the log of the server", []byte(k.server.log.String()))
	k.serve()
	k.delivered(first)
	k.wants(0, "done: staging is generation 6", "", "rollback", "staging", "--to", "3", "--yes")
	k.delivered(fourth)

	k.fails(`MODE = "serve"`, `MODE = "crash"`)
	k.fails("    http {\n      port = \"http\"\n      path = \"/healthz\"\n    }", "    exec { command = [\"/app/keeper\", \"check\"] }")
	k.fails(`"1234:65532"`, `"nobody-knows"`)
	k.delivered(fourth)

	k.lookAtProcesses()
	k.lookAtRun(fourth)
	k.lookAtAPI()
	for _, args := range [][]string{{"status", "staging"}, {"history", "staging"}, {"show", "staging"}, {"diff", "staging@1", "staging@2"},
		{"secret", "list", "staging"}, {"secret", "history", "staging/password"}, {"ledger", "log", "-n", "500"}, {"verify", "staging"}, {"-o", "json", "show", "staging"}} {
		if out, status := k.client("", args...); status > 2 {
			t.Errorf("invar %s: status %d\n%s", strings.Join(args, " "), status, out)
		}
	}
	k.crash()
	k.lookAtFiles(k.dir)
	t.Logf("looked at %d places", k.looked)
}

// fails applies a change that comes to nothing, and takes it back.
func (k *keeper) fails(old, new string) {
	k.t.Helper()
	k.edit(old, new)
	k.wants(3, "", "", "apply", "staging", "--yes")
	k.edit(new, old)
}

// lookAtProcesses looks at what every user of the machine may see of ours.
func (k *keeper) lookAtProcesses() {
	k.t.Helper()
	info, err := k.server.info()
	if err != nil {
		k.t.Fatal(err)
	}
	for name, pid := range map[string]int{"server": k.server.cmd.Process.Pid, "gateway": info.Gateway.PID, "launcher": k.host.launcher()} {
		for _, file := range []string{"cmdline", "environ"} {
			b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), file))
			if err != nil || len(b) == 0 {
				k.t.Errorf("%s of the %s, process %d: %q, %v", file, name, pid, b, err)
			}
			k.absent(file+" of the "+name, b)
		}
	}
	limits, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(k.server.cmd.Process.Pid), "limits"))
	if err != nil || !regexp.MustCompile(`Max core file size\s+0\s+0\s`).Match(limits) {
		k.t.Errorf("the server may dump core: %v\n%s", err, limits)
	}
}

// lookAtRun sees to it that a value is in memory once, where the instance reads it.
func (k *keeper) lookAtRun(want canary) {
	k.t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(k.host.run, &st); err != nil || st.Type != 0x01021994 {
		k.t.Errorf("%s is no tmpfs: %x, %v", k.host.run, st.Type, err)
	}
	delivered := regexp.MustCompile(`^instances/keeper-[a-z0-9]+/files/[0-9]+$`)
	var found []string
	err := filepath.WalkDir(k.host.run, func(path string, e fs.DirEntry, err error) error {
		name, _ := filepath.Rel(k.host.run, path)
		switch {
		case err != nil:
			return err
		case name == "netns":
			return fs.SkipDir // of namespaces, which can't be read
		case !e.Type().IsRegular():
			return nil
		}
		b, err := os.ReadFile(path)
		if bytes.Equal(b, []byte(want.value)) && delivered.MatchString(name) {
			found = append(found, name)
			return err
		}
		k.absent(path, b)
		return err
	})
	if err != nil || len(found) != 1 {
		k.t.Errorf("%s has the value in %q, want one file: %v", k.host.run, found, err)
	}
}

// lookAtAPI asks for all that can be asked for.
func (k *keeper) lookAtAPI() {
	k.t.Helper()
	env := k.environment()
	size, err := k.server.info()
	if err != nil {
		k.t.Fatal(err)
	}
	var doc struct {
		Paths map[string]map[string]any
	}
	if err := json.Unmarshal(k.get("/openapi.json"), &doc); err != nil || len(doc.Paths) == 0 {
		k.t.Fatalf("the document: %v", err)
	}
	asked := 0
	for path, ops := range doc.Paths {
		if ops["get"] == nil {
			continue
		}
		for _, p := range k.fill(path, env, size.Ledger.Size) {
			k.get(p)
			asked++
		}
	}
	for _, p := range []string{"/docs", "/metrics", "/ledger/checkpoint", "/ledger/tile/entries/000.p/" + strconv.FormatUint(size.Ledger.Size, 10), "/v2/_catalog", "/v2/keeper/tags/list"} {
		k.get(p)
	}
	if asked < 12+int(size.Ledger.Size) {
		k.t.Errorf("only %d operations were asked", asked)
	}
}

// fill replaces what is open in a path by all that there is.
func (k *keeper) fill(path string, env api.Environment, size uint64) []string {
	path = strings.NewReplacer("{env}", "staging", "{component}", "keeper", "{name}", "password", "{ref}", "staging", "{id}", "none").Replace(path)
	switch {
	case strings.HasSuffix(path, "/{index}"):
		var all []string
		for i := range size {
			all = append(all, strings.Replace(path, "{index}", strconv.FormatUint(i, 10), 1))
		}
		return all
	case path == api.PathDiff:
		return []string{path + "?a=staging@1&b=staging@3"}
	case path == api.PathEntries:
		return []string{path + "?limit=500"}
	}
	return []string{path}
}

// get looks at an answer, or at the beginning of one without end.
func (k *keeper) get(path string) []byte {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(k.t.Context(), time.Second)
	defer cancel()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(k.host.data, "invar.sock"))
	}}}
	if !strings.Contains(path, "/events") {
		ctx = k.t.Context()
	}
	req, err := http.NewRequestWithContext(ctx, "GET", "http://localhost"+path, nil)
	if err != nil {
		k.t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		k.t.Fatalf("GET %s: %v", path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil && ctx.Err() == nil {
		k.t.Errorf("GET %s: %v", path, err)
	}
	k.absent("GET "+path, b)
	return b
}

// crash has the server write down what all its goroutines do, and end, right after it was given a value.
func (k *keeper) crash() {
	k.t.Helper()
	k.set("last")
	if err := k.server.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		k.t.Fatal(err)
	}
	k.poll("the crash", func() bool { return strings.Contains(k.server.log.String(), "goroutine ") })
	k.poll("the end of the server", func() bool { return len(processes("server\x00--data\x00"+k.host.data+"\x00")) == 0 })
	k.absent("the crash of the server", []byte(k.server.log.String()))
}

// lookAtFiles looks at every file below dir: the data directory, the client's cache, the plans, the sources.
func (k *keeper) lookAtFiles(dir string) {
	k.t.Helper()
	reason := false // of the last version is in the ledger as it was given: what is there, a search finds
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		reason = reason || strings.HasPrefix(e.Name(), "ledger.db") && bytes.Contains(b, []byte("test last"))
		k.absent(path, b)
		if z, err := gzip.NewReader(bytes.NewReader(b)); err == nil {
			b, _ = io.ReadAll(z)
			k.absent("the unpacked "+path, b)
		}
		return nil
	})
	if err != nil || !reason {
		k.t.Errorf("looking at the files: %v (the ledger read: %v)", err, reason)
	}
}

// TestLostKeyStopsNothingThatRuns takes the key away: what runs goes on, what needs a secret fails and says why, and what needs none
// works. With the key held by a command, and with the key back, all is well again.
func TestLostKeyStopsNothingThatRuns(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: instances are namespaces and mounts; CI runs it")
	}
	k := newKeeper(t)
	k.serve()
	value := k.set("only")
	k.wants(0, "done: staging is generation 1", "", "apply", "staging", "--yes")
	was := k.instances("keeper")

	key, elsewhere := filepath.Join(k.host.data, "keys", "secrets.key"), filepath.Join(k.dir, "elsewhere.key")
	k.kill(k.server.cmd.Process.Pid)
	if err := os.Rename(key, elsewhere); err != nil {
		t.Fatal(err)
	}
	k.serve()
	if log := k.server.log.String(); !strings.Contains(log, "secret=staging/password") || !strings.Contains(log, "secrets.key is missing") {
		t.Errorf("the server's log does not name the secret and the key:\n%s", log)
	}
	k.delivered(value)
	k.wants(6, "secrets.key is missing", "another\n", "secret", "set", "staging/password")
	k.edit(`MODE = "serve"`, `MODE = "anew"`)
	k.wants(3, "secrets.key is missing", "", "apply", "staging", "--yes")
	k.delivered(value)
	if now := k.instances("keeper"); strings.Join(now, " ") != strings.Join(was, " ") {
		t.Errorf("the instances were %v, and are %v without the key", was, now)
	}
	if _, err := os.Stat(key); err == nil {
		t.Error("a key was made in place of the one that is missing")
	}

	k.kill(k.server.cmd.Process.Pid)
	var err error
	if k.server, err = startServer(k.host.data, os.Environ(), "--gateway", k.gateway, "--secrets-key-command", "cat '"+elsewhere+"'"); err != nil {
		t.Fatal(err)
	}
	k.wants(0, "done: staging is generation", "", "apply", "staging", "--yes")
	k.delivered(value)
	if _, err := os.Stat(key); err == nil {
		t.Error("what the command printed was written down")
	}
}
