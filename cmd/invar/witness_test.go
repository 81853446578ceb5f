package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
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
