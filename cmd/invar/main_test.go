package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	_ "modernc.org/sqlite"

	"github.com/invarhq/invar/identity/oidc/oidctest"
)

// binary is what make builds, which every test here runs as a user would.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if out, err := exec.Command("make", "-C", "../..", "build").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building the binary: %v\n%s", err, out)
			return 1
		}
		dir, err := os.MkdirTemp("", "invar-bin-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "invar") // a copy: the next build must not replace it under a test
		if out, err := exec.Command("cp", "../../bin/invar", binary).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "copying the binary: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// TestScript runs every file of testdata/script: the manual's proof. Each has a work directory and, once it
// says "serve", a server of its own.
func TestScript(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: instances are namespaces and mounts; CI runs it")
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(e *testscript.Env) error {
			data := filepath.Join(e.WorkDir, "data")
			e.Setenv("DATA", data)
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "config"))
			e.Values[providerKey{}] = new(*oidctest.Provider)
			e.Setenv("INVAR_SERVER", "unix://"+filepath.Join(data, "invar.sock"))
			e.Setenv("PATH", filepath.Dir(binary)+":"+os.Getenv("PATH"))
			e.Setenv("EXAMPLES", absolute("../../examples"))
			e.Setenv("PROBE", absolute("testdata/probe"))
			e.Setenv("NOTEBOOK", absolute("testdata/notebook"))
			e.Setenv("INVAR_CACHE", filepath.Join(filepath.Dir(binary), "cache"))
			e.Setenv("NO_COLOR", "1")
			for _, v := range []string{"HOME", "GOCACHE", "GOMODCACHE", "GOPATH", "GOPROXY", "GOFLAGS", "GONOSUMDB", "GOSUMDB", "GOTOOLCHAIN", "XDG_CACHE_HOME"} {
				e.Setenv(v, goEnv(v))
			}
			e.Defer(func() { exec.Command(binary, "server", "stop", "--data", data).Run() })
			return nil
		},
		Cmds: commands(),
	})
}

type command = func(ts *testscript.TestScript, neg bool, args []string)

// commands are what scripts can say beside what testscript knows.
func commands() map[string]command {
	all := map[string]command{
		"serve":    cmdServe,
		"hammer":   cmdHammer,
		"calm":     cmdCalm,
		"fetch":    cmdFetch,
		"post":     cmdPost,
		"replace":  cmdReplace,
		"status":   cmdStatus,
		"runhint":  cmdRunHint,
		"sqlite":   cmdSQLite,
		"witness":  cmdWitness,
		"settles":  cmdSettles,
		"impostor": cmdImpostor,
		"submit":   cmdSubmit,

		"imagedigest": cmdImageDigest,
	}
	maps.Copy(all, badInput)
	maps.Copy(all, beside)
	maps.Copy(all, logins)
	return all
}

func absolute(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		panic(err)
	}
	return abs
}

// goEnv keeps the caches of the Go toolchain: the scripts' HOME would hide them.
func goEnv(name string) string {
	if v := os.Getenv(name); v != "" || !strings.HasPrefix(name, "GO") {
		return v
	}
	out, _ := exec.Command("go", "env", name).Output()
	return strings.TrimSpace(string(out))
}

// daemon is a server process of a test.
type daemon struct {
	data    string
	cmd     *exec.Cmd
	log     *output
	gateway string
}

// output is what a process says, to be read while it speaks.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// startServer starts a server on data and waits until it answers.
func startServer(data string, env []string, flags ...string) (*daemon, error) {
	return startServerOf(binary, data, env, flags...)
}

// startServerOf starts a server of another file of the program.
func startServerOf(program, data string, env []string, flags ...string) (*daemon, error) {
	s := &daemon{data: data, log: new(output)}
	args := append([]string{"server", "--data", data, "--listen", "", "--gateway", "127.0.0.1:0", "--gateway-tls", ""}, flags...)
	s.cmd = exec.Command(program, args...)
	s.cmd.Env = env
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	exited := make(chan struct{})
	go func() { s.cmd.Wait(); close(exited) }()
	deadline := time.After(30 * time.Second)
	for {
		if info, err := s.info(); err == nil && info.Gateway.PID != 0 {
			s.gateway = info.Gateway.HTTP
			return s, nil
		}
		select {
		case <-exited:
			return nil, fmt.Errorf("the server ended: %v\n%s", s.cmd.ProcessState, s.log)
		case <-deadline:
			s.cmd.Process.Kill()
			return nil, fmt.Errorf("the server did not answer within 30 s\n%s", s.log)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

type serverInfo struct {
	Gateway struct {
		HTTP string `json:"http"`
		PID  int    `json:"pid"`
	} `json:"gateway"`
	Ledger struct {
		VKey string `json:"vkey"`
		Size uint64 `json:"size"`
	} `json:"ledger"`
}

func (s *daemon) info() (serverInfo, error) {
	var info serverInfo
	return info, s.api("GET", "/v1/server", nil, &info)
}

// api calls the server's API without the client that is under test.
func (s *daemon) api(method, path string, in, out any) error {
	sock := filepath.Join(s.data, "invar.sock")
	c := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", sock)
		}}}
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, "http://localhost"+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// serve [FLAG...] starts the script's server; with "!" it must refuse to start. serve.log has what it said.
func cmdServe(ts *testscript.TestScript, neg bool, args []string) {
	env := append(os.Environ(), "HOME="+ts.Getenv("HOME"))
	s, err := startServer(ts.Getenv("DATA"), env, args...)
	if neg {
		if err == nil {
			s.cmd.Process.Kill()
			ts.Fatalf("the server started")
		}
		ts.Check(os.WriteFile(ts.MkAbs("serve.log"), []byte(err.Error()), 0o644))
		return
	}
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("serve.log"), []byte(s.log.String()), 0o644)) // what it said until it answered
	ts.Setenv("GATEWAY", s.gateway)
	ts.Setenv("SERVER_PID", fmt.Sprint(s.cmd.Process.Pid))
	ts.Defer(func() {
		s.cmd.Process.Signal(syscall.SIGTERM)
		if ts.Getenv("VERBOSE") != "" {
			ts.Logf("server log:\n%s", s.log)
		}
	})
}

// fetch HOST[/PATH] [TEXT] reads a page through the gateway; it must be 200 and contain TEXT.
func cmdFetch(ts *testscript.TestScript, neg bool, args []string) {
	host, path, _ := strings.Cut(args[0], "/")
	req, err := http.NewRequest("GET", "http://"+ts.Getenv("GATEWAY")+"/"+path, nil)
	ts.Check(err)
	req.Host = host
	resp, err := http.DefaultClient.Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	ok := resp.StatusCode == 200 && (len(args) < 2 || strings.Contains(string(body), args[1]))
	if ok == neg {
		ts.Fatalf("fetch %s: %s\n%s", args[0], resp.Status, body)
	}
}

// post HOST/PATH BODY sends a request through the gateway; it must be 201.
func cmdPost(ts *testscript.TestScript, neg bool, args []string) {
	host, path, _ := strings.Cut(args[0], "/")
	req, err := http.NewRequest("POST", "http://"+ts.Getenv("GATEWAY")+"/"+path, strings.NewReader(args[1]))
	ts.Check(err)
	req.Host = host
	resp, err := http.DefaultClient.Do(req)
	ts.Check(err)
	resp.Body.Close()
	if (resp.StatusCode == 201) == neg {
		ts.Fatalf("post %s: %s", args[0], resp.Status)
	}
}

// replace FILE OLD NEW edits a file.
func cmdReplace(ts *testscript.TestScript, neg bool, args []string) {
	src := ts.ReadFile(args[0])
	if !strings.Contains(src, args[1]) {
		ts.Fatalf("%s has no %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.ReplaceAll(src, args[1], args[2])), 0o644))
}

// status N COMMAND... runs a command that must end with the exit status N.
func cmdStatus(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if e, ok := err.(*exec.ExitError); ok {
		got = e.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("exit status %d, want %s", got, args[0])
	}
}

// runhint runs the command that the hint of the last error begins with, as a user would.
func cmdRunHint(ts *testscript.TestScript, neg bool, args []string) {
	_, hint, _ := strings.Cut(ts.ReadFile("stderr"), "hint: ")
	command, _, ok := strings.Cut(hint, " shows ")
	if !ok {
		ts.Fatalf("no command in the hint %q", hint)
	}
	words := strings.Fields(command)
	ts.Check(ts.Exec(words[0], words[1:]...))
}

// sqlite FILE STATEMENT changes a database behind invar's back.
func cmdSQLite(ts *testscript.TestScript, neg bool, args []string) {
	db, err := sql.Open("sqlite", ts.MkAbs(args[0]))
	ts.Check(err)
	defer db.Close()
	_, err = db.Exec(args[1])
	ts.Check(err)
}
