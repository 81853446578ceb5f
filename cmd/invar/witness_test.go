package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/invarhq/invar/ledger"
	"github.com/invarhq/invar/ledger/witness"
	"github.com/invarhq/invar/ledger/witness/serve"
	"github.com/invarhq/invar/store/storetest"
)

// listening is what a witness logs when it can be asked.
var listening = regexp.MustCompile(`msg=witnessing listen=(\S+)`)

// witness NAME FLAG... starts a witness in the directory NAME. It sets NAME to what a server is given, NAME_KEY to its verifier key and
// NAME_PID to its process; NAME.log has its log.
func cmdWitness(ts *testscript.TestScript, neg bool, args []string) {
	name := args[0]
	logged, err := os.Create(ts.MkAbs(name + ".log"))
	ts.Check(err)
	defer logged.Close()
	said := new(output)
	listen := ts.Getenv(name + "_LISTEN") // the same again after a restart
	if listen == "" {
		listen = "127.0.0.1:0"
	}
	c := exec.Command(binary, append([]string{"witness", "--data", ts.MkAbs(name), "--listen", listen}, args[1:]...)...)
	c.Stdout, c.Stderr = said, logged
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	ts.Check(c.Start())
	exited := make(chan struct{})
	go func() { c.Wait(); close(exited) }()
	ts.Defer(func() { c.Process.Kill(); <-exited })
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if m := listening.FindStringSubmatch(ts.ReadFile(name + ".log")); m != nil {
			key := strings.TrimSpace(said.String())
			ts.Setenv(name+"_LISTEN", m[1])
			ts.Setenv(name+"_KEY", key)
			ts.Setenv(name, key+"@http://"+m[1])
			ts.Setenv(name+"_PID", fmt.Sprint(c.Process.Pid))
			return
		}
		select {
		case <-exited:
			ts.Fatalf("the witness %s ended: %v\n%s", name, c.ProcessState, ts.ReadFile(name+".log"))
		default:
		}
		if time.Now().After(deadline) {
			ts.Fatalf("the witness %s did not start\n%s", name, ts.ReadFile(name+".log"))
		}
	}
}

// settles STATUS REGEXP ARG... runs invar until it ends with the status and says what matches.
func cmdSettles(ts *testscript.TestScript, neg bool, args []string) {
	want := regexp.MustCompile(args[1])
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c := exec.Command(binary, args[2:]...)
		c.Dir = ts.MkAbs(".")
		c.Env = append(os.Environ(), "INVAR_SERVER="+ts.Getenv("INVAR_SERVER"))
		out, _ := c.CombinedOutput() // its exit status is looked at
		if fmt.Sprint(c.ProcessState.ExitCode()) == args[0] && want.Match(out) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("exit status %d within 20 s, want %s and %q\n%s", c.ProcessState.ExitCode(), args[0], args[1], out)
		}
	}
}

// impostor SIZE|WITNESS serves a log with the key of the script's server and another history, of that size or of what the witness
// remembers; it sets IMPOSTOR to its URL.
func cmdImpostor(ts *testscript.TestScript, neg bool, args []string) {
	skey := strings.TrimSpace(ts.ReadFile(ts.Getenv("DATA") + "/keys/ledger.key"))
	signer, verifier, err := ledger.ParseKey(skey)
	ts.Check(err)
	disk, err := storetest.NewDisk().Open()
	ts.Check(err)
	log, err := ledger.Open(context.Background(), disk, ledger.Config{Origin: signer.Name(), Signer: signer, Verifier: verifier})
	ts.Check(err)
	size, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil {
		s, err := serve.Read(ts.MkAbs(args[0]))
		ts.Check(err)
		size = s.Logs[0].Size
	}
	_, err = log.Append(context.Background(), func(next int64) (out [][]byte, _ error) {
		for i := next; i < size; i++ {
			out = append(out, fmt.Appendf(nil, "it never happened: %d", i))
		}
		return out, nil
	})
	ts.Check(err)
	impostor = log
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, err := log.Tile(r.Context(), strings.TrimPrefix(r.URL.Path, "/ledger/"))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(data)
	}))
	ts.Defer(func() { srv.Close(); log.Close() })
	ts.Setenv("IMPOSTOR", srv.URL)
}

// impostor is the log of the script's impostor; one script at a time has one.
var impostor *ledger.Log

// submit STATUS WITNESS asks a witness to cosign the impostor's checkpoint; the answer must have the status.
func cmdSubmit(ts *testscript.TestScript, neg bool, args []string) {
	_, url, _ := strings.Cut(ts.Getenv(args[1]), "@")
	ask := func(old int64) (int, string) {
		proof, err := impostor.ProveConsistency(context.Background(), old, impostor.Size())
		ts.Check(err)
		request := witness.Request{Old: old, Proof: proof, Checkpoint: impostor.Checkpoint()}
		resp, err := http.Post(url+"/add-checkpoint", "", bytes.NewReader(request.Marshal()))
		ts.Check(err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		ts.Check(err)
		return resp.StatusCode, string(body)
	}
	status, body := ask(0)
	if old, err := witness.ParseConflict([]byte(body)); status == http.StatusConflict && err == nil && old < impostor.Size() {
		status, body = ask(old)
	}
	if fmt.Sprint(status) != args[0] {
		ts.Fatalf("status %d, want %s: %s", status, args[0], body)
	}
}
